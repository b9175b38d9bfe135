//! The health of this process: whether it drains, whether its loops run, whether the database
//! answered recently, and whether new events can be stored.
//!
//! [`surehook_core::readiness`] decides whether there is a doubt about the last of these.

use crate::ports::{Clock, Ids, MaintenanceStore, NewEvent, StoreError};
use bytes::Bytes;
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, select_biased};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::admission::Fingerprint;
use surehook_core::key::IdempotencyKey;
use surehook_core::readiness::{Learned, Readiness};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;

/// Timeout of a ping. The process is not ready if the database does not answer in this time.
const PING_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the result of a ping is used, counted from the start of the ping. The database is
/// pinged at most once in this time, independent of the number of readiness requests.
const PING_FRESH: Duration = Duration::from_secs(1);
/// How long a probe may take before another one starts. A probe is not cancelled earlier. A commit
/// that waits for a standby continues on the server after its client has gone, so each cancelled
/// probe would leave a session there.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// The health of one process. Initially it is healthy: not draining, and without loops to watch.
#[derive(Debug, Default)]
pub struct Health {
    draining: AtomicBool,
    /// By [`Loop`]: whether it has ended.
    ended: [AtomicBool; Loop::ALL.len()],
    /// By [`Loop`]: whether this process has it.
    watched: [AtomicBool; Loop::ALL.len()],
    /// Whether the last ping failed, so that only changes are logged.
    unreachable: Arc<AtomicBool>,
    ping: Mutex<Option<Asked>>,
    /// What the commits of the intake showed about the database.
    readiness: Arc<Mutex<Readiness>>,
    /// Whether the last probe failed, so that only changes are logged.
    unstorable: AtomicBool,
    probe: Mutex<Option<Asked>>,
}

/// A loop that the process needs for its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// Stores new events in batches (group commit).
    Intake,
    /// Claims, delivers and settles events.
    Worker,
    /// Prunes events and erases payloads after their retention.
    Pruning,
}

impl Loop {
    pub const ALL: [Self; 3] = [Self::Intake, Self::Worker, Self::Pruning];

    /// The name of the loop in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intake => "intake",
            Self::Worker => "worker",
            Self::Pruning => "pruning",
        }
    }
}

/// Why the process should receive no requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("the process is shutting down")]
    Draining,
    /// A loop has ended unexpectedly.
    #[error("the {} loop of this process has ended; restart the process and see its log", .0.as_str())]
    LoopEnded(Loop),
    /// The database did not answer within 1.5 seconds, or answered that it cannot be used. The log
    /// says why.
    #[error("the database did not answer, or cannot be used; the log says why")]
    Database,
    /// The last commit of the intake failed or hangs, and so does the probe that followed it.
    #[error("new events cannot be stored; the log says why")]
    Intake,
}

impl Health {
    /// Marks the process as draining: it is not ready, although it still accepts events. This cannot be
    /// undone.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Health::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Marks a loop as running. Keep the result while the loop runs: when it is dropped, also by a
    /// panic, the loop has ended.
    #[must_use]
    pub fn watch(self: &Arc<Self>, which: Loop) -> Alive {
        self.ended[which as usize].store(false, Ordering::Release);
        self.watched[which as usize].store(true, Ordering::Release);
        Alive { health: Arc::clone(self), which }
    }

    /// The loops of this process, each with whether it runs.
    #[must_use]
    pub fn loops(&self) -> Vec<(&'static str, bool)> {
        let watched = Loop::ALL
            .into_iter()
            .filter(|which| self.watched[*which as usize].load(Ordering::Acquire));
        watched
            .map(|which| (which.as_str(), !self.ended[which as usize].load(Ordering::Acquire)))
            .collect()
    }

    /// Records that a batch of this size is being stored. Keep the result, and call
    /// [`Storing::ended`] with the outcome.
    #[must_use]
    pub fn storing(&self, now: Instant, bytes: usize) -> Storing {
        lock(&self.readiness).began(now, bytes);
        Storing { readiness: Arc::clone(&self.readiness), began: now, bytes, has_ended: false }
    }

    /// Whether the process should receive requests: it is not draining, no loop has ended, the
    /// database answers, and new events can be stored (if this process has an intake).
    ///
    /// # Errors
    ///
    /// [`NotReady`] with the reason, after at most 1.5 seconds.
    pub async fn ready(
        &self,
        store: &Arc<dyn MaintenanceStore>,
        clock: &Arc<dyn Clock>,
        ids: &Arc<dyn Ids>,
    ) -> Result<(), NotReady> {
        if self.is_draining() {
            return Err(NotReady::Draining);
        }
        if let Some(ended) =
            Loop::ALL.into_iter().find(|which| self.ended[*which as usize].load(Ordering::Acquire))
        {
            return Err(NotReady::LoopEnded(ended));
        }
        let deadline = clock.now() + PING_TIMEOUT;
        if self.ping(store, clock).await.is_err() {
            return Err(NotReady::Database);
        }
        if self.watched[Loop::Intake as usize].load(Ordering::Acquire)
            && !self.can_store(store, clock, ids, deadline).await
        {
            return Err(NotReady::Intake);
        }
        Ok(())
    }

    /// The result of the newest ping, or of a new one if that is too old. Concurrent callers share
    /// one ping. If the caller that started it disconnects, the next caller continues it.
    fn ping(&self, store: &Arc<dyn MaintenanceStore>, clock: &Arc<dyn Clock>) -> Answer {
        shared(&self.ping, clock, PING_TIMEOUT, PING_FRESH, || {
            let (store, late, unreachable) = (
                Arc::clone(store),
                clock.sleep_until(clock.now() + PING_TIMEOUT),
                Arc::clone(&self.unreachable),
            );
            async move { ping(store, late, &unreachable).await }.boxed()
        })
    }

    /// Whether new events can be stored. A probe is sent only if there is a doubt.
    async fn can_store(
        &self,
        store: &Arc<dyn MaintenanceStore>,
        clock: &Arc<dyn Clock>,
        ids: &Arc<dyn Ids>,
        deadline: Instant,
    ) -> bool {
        let failed = self.settle_doubts(store, clock, ids, deadline).await.err();
        let was_unstorable = self.unstorable.swap(failed.is_some(), Ordering::AcqRel);
        match &failed {
            Some(error) if !was_unstorable => {
                tracing::warn!(%error, "not ready: new events cannot be stored; probing again at the next readiness request");
            }
            None if was_unstorable => tracing::info!("new events can be stored again"),
            _ => {}
        }
        failed.is_none()
    }

    /// Probes until there is no doubt. A failure after the start of a probe requires another probe.
    async fn settle_doubts(
        &self,
        store: &Arc<dyn MaintenanceStore>,
        clock: &Arc<dyn Clock>,
        ids: &Arc<dyn Ids>,
        deadline: Instant,
    ) -> Result<(), Arc<str>> {
        loop {
            let doubt = lock(&self.readiness).doubt(clock.now());
            let Some(bytes) = doubt else { return Ok(()) };
            let probe = self.probe(store, clock, ids, bytes);
            select_biased! {
                answer = probe.fuse() => answer?,
                () = clock.sleep_until(deadline).fuse() => return Err(format!("no answer within {} ms", PING_TIMEOUT.as_millis()).into()),
            }
        }
    }

    /// The result of the newest probe, or of a new one if that is too old. Concurrent callers share
    /// one probe.
    fn probe(
        &self,
        store: &Arc<dyn MaintenanceStore>,
        clock: &Arc<dyn Clock>,
        ids: &Arc<dyn Ids>,
        bytes: usize,
    ) -> Answer {
        shared(&self.probe, clock, PROBE_LIMIT, Duration::ZERO, || {
            let (store, clock, readiness, event) = (
                Arc::clone(store),
                Arc::clone(clock),
                Arc::clone(&self.readiness),
                probe_event(ids, bytes),
            );
            async move {
                let began = clock.now();
                let answer = store.probe(event).await;
                match &answer {
                    Ok(()) => lock(&readiness).probed(clock.now(), began),
                    Err(_) => lock(&readiness).probe_failed(clock.now(), bytes),
                }
                answer.map_err(|error| error.to_string().into())
            }
            .boxed()
        })
    }
}

type Answer = Shared<BoxFuture<'static, Result<(), Arc<str>>>>;

/// A request to the database, and its result.
#[derive(Debug)]
struct Asked {
    at: Instant,
    answer: Answer,
}

/// The result of the newest request. Sends a new request if there is no result within `limit`, or
/// if the result is too old: a success after `good_for`, a failure after [`PING_FRESH`].
fn shared(
    newest: &Mutex<Option<Asked>>,
    clock: &Arc<dyn Clock>,
    limit: Duration,
    good_for: Duration,
    ask: impl FnOnce() -> BoxFuture<'static, Result<(), Arc<str>>>,
) -> Answer {
    let now = clock.now();
    let mut newest = lock(newest);
    if let Some(asked) = newest.as_ref() {
        let good_for = asked
            .answer
            .peek()
            .map_or(limit, |answer| if answer.is_ok() { good_for } else { PING_FRESH });
        if now.since(asked.at) < good_for {
            return asked.answer.clone();
        }
    }
    let answer = ask().shared();
    *newest = Some(Asked { at: now, answer: answer.clone() });
    answer
}

async fn ping(
    store: Arc<dyn MaintenanceStore>,
    late: BoxFuture<'static, ()>,
    unreachable: &AtomicBool,
) -> Result<(), Arc<str>> {
    let failed = select_biased! {
        answer = store.ping().fuse() => answer.err().map(|error| error.to_string()),
        () = late.fuse() => Some(format!("no answer within {} ms", PING_TIMEOUT.as_millis())),
    };
    let was_unreachable = unreachable.swap(failed.is_some(), Ordering::AcqRel);
    match &failed {
        Some(error) if !was_unreachable => {
            tracing::warn!(%error, "not ready: the database cannot be used; checking again at the next readiness request");
        }
        None if was_unreachable => tracing::info!("the database can be used again"),
        _ => {}
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// A test event that no producer sent. Its body cannot be compressed by any database.
fn probe_event(ids: &Arc<dyn Ids>, bytes: usize) -> NewEvent {
    let id = ids.fresh();
    let seed = id.as_uuid().as_u128();
    let body: Bytes = (0..bytes.div_ceil(32) as u128)
        .flat_map(|nth| *Fingerprint::of(&(seed ^ nth).to_be_bytes()).as_bytes())
        .take(bytes)
        .collect();
    NewEvent {
        id,
        source: SourceName::parse("probe").expect("`probe` is a valid source name"),
        key: IdempotencyKey::parse(id.to_string().as_bytes()).expect("an id is a valid key"),
        fingerprint: Fingerprint::of(&body),
        query: Bytes::new(),
        headers: Bytes::new(),
        body,
        lease: None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A batch that is being stored. Created by [`Health::storing`].
#[derive(Debug)]
pub struct Storing {
    readiness: Arc<Mutex<Readiness>>,
    began: Instant,
    bytes: usize,
    has_ended: bool,
}

impl Storing {
    /// Records the result of the call.
    pub fn ended<T>(mut self, now: Instant, result: &Result<T, StoreError>) {
        let learned = match result {
            Ok(_) => Learned::Stored,
            Err(StoreError::Rejected(_)) => Learned::Refused,
            Err(StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::Unknown(_)) => {
                Learned::Failed
            }
        };
        lock(&self.readiness).ended(now, self.began, self.bytes, learned);
        self.has_ended = true;
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        if !self.has_ended {
            lock(&self.readiness).forget(self.began, self.bytes);
        }
    }
}

/// Marks a loop as running until it is dropped. Created by [`Health::watch`].
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
