//! The clock of production: tokio's.

use crate::ports::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use surehook_core::time::Instant;

/// Tokio's monotonic clock, counted from when this value was made.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    origin: tokio::time::Instant,
}

impl TokioClock {
    /// A clock whose origin is now.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: tokio::time::Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        Instant::from_origin(self.origin.elapsed())
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        match self.origin.checked_add(deadline.since_origin()) {
            Some(deadline) => tokio::time::sleep_until(deadline).boxed(),
            // Beyond what the platform can name: it never comes.
            None => futures::future::pending().boxed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn it_sleeps_until_the_deadline_and_not_at_all_when_that_has_passed() {
        let clock = TokioClock::new();
        let start = clock.now();
        clock.sleep_until(start + Duration::from_secs(5)).await;
        let woken = clock.now();
        assert!(woken.since(start) >= Duration::from_secs(5));
        clock.sleep_until(start).await;
        assert_eq!(clock.now(), woken);
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_instant_never_comes() {
        let clock = TokioClock::new();
        assert!(clock.sleep_until(Instant::MAX).now_or_never().is_none());
    }
}
