//! Virtual time and seeded ids: the simulated clock and id ports, and hyper's timer.

use crate::timer::{sleep, sleep_until};
use crate::waits::{Wait, Waits};
use futures::FutureExt;
use futures::future::BoxFuture;
use madsim::rand::Rng;
use madsim::time::TimeHandle;
use std::pin::Pin;
use std::time::Duration;
use surehook::ports::{Clock, Ids};
use surehook_core::id::EventId;
use surehook_core::time::Instant;

/// The monotonic clock of one process. Each start has its own origin, as on a real machine.
pub(crate) struct SimClock {
    ahead: Duration,
    process: usize,
    waits: Waits,
}

impl SimClock {
    pub(crate) fn boot(process: usize, waits: Waits) -> Self {
        Self {
            ahead: Duration::from_millis(madsim::rand::thread_rng().gen_range(0..1_000_000)),
            process,
            waits,
        }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant::from_origin(TimeHandle::current().elapsed() + self.ahead)
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let wait = deadline.since(self.now());
        if wait.is_zero() {
            return futures::future::ready(()).boxed();
        }
        // A deadline centuries away must not overflow the simulated clock.
        let wait = wait.min(Duration::from_secs(1 << 32));
        let waiting =
            self.waits.begin(self.process, Wait::Until(TimeHandle::current().elapsed() + wait));
        sleep(wait).map(move |()| drop(waiting)).boxed()
    }
}

/// The start of a run on every correct clock: 2026-01-01.
pub(crate) const START_MILLIS: i64 = 1_767_225_600_000;

/// Ids from the run's seed. As in a UUIDv7, the time of the process's wall clock comes first.
pub(crate) struct SimIds {
    pub(crate) ahead_ms: i64,
}

impl Ids for SimIds {
    fn fresh(&self) -> EventId {
        let since = i64::try_from(TimeHandle::current().elapsed().as_millis())
            .expect("the run is too short to overflow i64 milliseconds");
        let millis = u64::try_from(START_MILLIS + since + self.ahead_ms)
            .expect("the clock does not show a time before 1970");
        let random: [u8; 10] = madsim::rand::thread_rng().r#gen();
        EventId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SimTimer;

impl hyper::rt::Timer for SimTimer {
    #[expect(clippy::disallowed_methods, reason = "inside a simulation this is the virtual clock")]
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(std::time::Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(sleep_until(deadline))
    }
}
