//! A timer for a loop that determines after each input when its next step is due.
//!
//! A new timer after each input would be expensive: the registration of a timer that is earlier than all
//! others wakes the thread that waits for the sockets. So a timer that is set to an earlier time stays.
//! It then wakes the loop once without need.

use crate::ports::Clock;
use futures::FutureExt;
use futures::future::{BoxFuture, Fuse, FusedFuture};
use std::sync::Arc;
use surehook_core::time::Instant;

/// The timer of one loop.
pub(crate) struct Alarm {
    clock: Arc<dyn Clock>,
    set_to: Instant,
    sleep: Fuse<BoxFuture<'static, ()>>,
}

impl Alarm {
    /// An alarm that is not set.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, set_to: Instant::ZERO, sleep: Fuse::terminated() }
    }

    /// Completes at this time, or at an earlier time for which it was set before. Never completes
    /// without a time. Dropping the future leaves the alarm set.
    pub(crate) async fn at_latest(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return std::future::pending().await };
        if self.sleep.is_terminated() || at < self.set_to {
            self.sleep = self.clock.sleep_until(at).fuse();
            self.set_to = at;
        }
        (&mut self.sleep).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TokioClock;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_latest_of_its_times_or_earlier() {
        let clock = Arc::new(TokioClock::new());
        let after = |seconds| Some(Instant::ZERO + Duration::from_secs(seconds));
        let mut alarm = Alarm::new(clock.clone());
        assert!(alarm.at_latest(after(5)).now_or_never().is_none());
        alarm.at_latest(after(9)).await;
        assert_eq!(Some(clock.now()), after(5), "it was set to 5 s before");
        alarm.at_latest(after(9)).await;
        assert_eq!(Some(clock.now()), after(9));
        assert!(alarm.at_latest(after(30)).now_or_never().is_none());
        alarm.at_latest(after(12)).await;
        assert_eq!(Some(clock.now()), after(12), "it was set to a later time before");
        assert!(alarm.at_latest(None).now_or_never().is_none());
    }
}
