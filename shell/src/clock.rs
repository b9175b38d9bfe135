//! The clock in production: tokio's monotonic clock.

use crate::ports::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use surehook_core::time::Instant;

/// Time since the creation of this value.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    origin: tokio::time::Instant,
}

impl TokioClock {
    /// Creates a clock whose origin is now.
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
            // The deadline is beyond the range of the platform, so it is never reached.
            None => futures::future::pending().boxed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn sleeping_ends_at_the_deadline_or_at_once_if_it_has_passed() {
        let clock = TokioClock::new();
        let start = clock.now();
        clock.sleep_until(start + Duration::from_secs(5)).await;
        let woken = clock.now();
        assert!(woken.since(start) >= Duration::from_secs(5));
        clock.sleep_until(start).await;
        assert_eq!(clock.now(), woken);
    }

    #[tokio::test(start_paused = true)]
    async fn sleeping_until_the_latest_instant_never_ends() {
        let clock = TokioClock::new();
        assert!(clock.sleep_until(Instant::MAX).now_or_never().is_none());
    }
}
