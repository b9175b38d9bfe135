//! What the process knows of its own health: whether it is draining, whether its loops live, and whether the
//! database answered just now.

use crate::ports::{Clock, Store};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, select_biased};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use surehook_core::time::Instant;

/// How long the database may take to answer before the process is not ready.
const PING_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long an answer of the database is good for, from when it was asked. However often readiness is asked for, the
/// database is asked at most once in this time.
const PING_FRESH: Duration = Duration::from_secs(1);

/// The health of one process. It starts healthy: not draining, with no loop to watch.
#[derive(Debug, Default)]
pub struct Health {
    draining: AtomicBool,
    /// By [`Loop`]: whether it has ended.
    ended: [AtomicBool; Loop::ALL.len()],
    /// By [`Loop`]: whether this process has it.
    watched: [AtomicBool; Loop::ALL.len()],
    /// Whether the database answered the last ping, so that only a change is logged.
    unreachable: Arc<AtomicBool>,
    probe: Mutex<Option<Probe>>,
}

/// A loop without which the process does not do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// The group commit of the intake.
    Intake,
    /// The deliveries.
    Worker,
    /// The pruning of what is older than its retention.
    Pruning,
}

impl Loop {
    /// Every loop.
    pub const ALL: [Self; 3] = [Self::Intake, Self::Worker, Self::Pruning];

    /// Its name in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intake => "intake",
            Self::Worker => "worker",
            Self::Pruning => "pruning",
        }
    }
}

/// Why the process should be sent no requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It is shutting down.
    #[error("the process is shutting down")]
    Draining,
    /// A loop has ended that should not have.
    #[error("the {} loop of this process has ended; restart the process and see its log", .0.as_str())]
    LoopEnded(Loop),
    /// The database did not answer within 1.5 seconds, or answered that it cannot be used. The log says why.
    #[error("the database did not answer, or cannot be used; the log says why")]
    Database,
}

impl Health {
    /// From now on the process takes no new work. There is no way back.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Health::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Keep the result for as long as the loop runs: when it is dropped, by an end or by a panic, the loop has ended.
    #[must_use]
    pub fn watch(self: &Arc<Self>, which: Loop) -> Alive {
        self.ended[which as usize].store(false, Ordering::Release);
        self.watched[which as usize].store(true, Ordering::Release);
        Alive { health: Arc::clone(self), which }
    }

    /// The loops that were ever watched, with whether they run.
    #[must_use]
    pub fn loops(&self) -> Vec<(&'static str, bool)> {
        let watched = Loop::ALL.into_iter().filter(|which| self.watched[*which as usize].load(Ordering::Acquire));
        watched.map(|which| (which.as_str(), !self.ended[which as usize].load(Ordering::Acquire))).collect()
    }

    /// Whether the process should be sent requests: it is not draining, no loop has ended, and the database answers.
    ///
    /// # Errors
    ///
    /// [`NotReady`] says why not, after at most 1.5 seconds.
    pub async fn ready(&self, store: &Arc<dyn Store>, clock: &Arc<dyn Clock>) -> Result<(), NotReady> {
        if self.is_draining() {
            return Err(NotReady::Draining);
        }
        if let Some(ended) = Loop::ALL.into_iter().find(|which| self.ended[*which as usize].load(Ordering::Acquire)) {
            return Err(NotReady::LoopEnded(ended));
        }
        if self.probe(store, clock).await { Ok(()) } else { Err(NotReady::Database) }
    }

    /// The answer to the newest ping; asks anew if that is too old. All who ask meanwhile share one ping, and it goes
    /// on with the next of them if the one who started it hangs up.
    fn probe(&self, store: &Arc<dyn Store>, clock: &Arc<dyn Clock>) -> Shared<BoxFuture<'static, bool>> {
        let now = clock.now();
        let mut newest = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probe) = newest.as_ref() {
            let good_for = if probe.answer.peek().is_some() { PING_FRESH } else { PING_TIMEOUT };
            if now.since(probe.asked) < good_for {
                return probe.answer.clone();
            }
        }
        let (store, late, unreachable) = (Arc::clone(store), clock.sleep_until(now + PING_TIMEOUT), Arc::clone(&self.unreachable));
        let answer = async move { ping(store, late, &unreachable).await }.boxed().shared();
        *newest = Some(Probe { asked: now, answer: answer.clone() });
        answer
    }
}

async fn ping(store: Arc<dyn Store>, late: BoxFuture<'static, ()>, unreachable: &AtomicBool) -> bool {
    let failed = select_biased! {
        answer = store.ping().fuse() => answer.err().map(|error| error.to_string()),
        () = late.fuse() => Some(format!("no answer within {} ms", PING_TIMEOUT.as_millis())),
    };
    let was_unreachable = unreachable.swap(failed.is_some(), Ordering::AcqRel);
    match &failed {
        Some(error) if !was_unreachable => tracing::warn!(%error, "not ready: the database cannot be used; it is asked again and again"),
        None if was_unreachable => tracing::info!("the database can be used again"),
        _ => {}
    }
    failed.is_none()
}

#[derive(Debug)]
struct Probe {
    asked: Instant,
    answer: Shared<BoxFuture<'static, bool>>,
}

/// The sign of life of one loop; see [`Health::watch`].
#[derive(Debug)]
pub struct Alive {
    health: Arc<Health>,
    which: Loop,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.health.ended[self.which as usize].store(true, Ordering::Release);
    }
}
