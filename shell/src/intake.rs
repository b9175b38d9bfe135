//! The intake loop: group commit without a timer.
//!
//! Requests queue while a batch is being committed, and the next batch takes what has gathered: idle, a batch of one
//! with no added wait; busy, one commit for hundreds. A producer that hangs up does not cancel its commit.
//!
//! Not here: HTTP (see [`crate::http`]) and the meaning of a store's answer (see `surehook_core::admission`).

use crate::doorbell::Doorbell;
use crate::handover::{Handed, Handover};
use crate::health::Health;
use crate::ports::{Clock, NewEvent, Store, StoreError};
use futures::{FutureExt, StreamExt, select_biased, stream};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use surehook_core::admission::{Admission, NotStored, OnKeyReuse, Stored, resolve};
use surehook_core::event::{Outcome, Status};
use surehook_core::key::IdempotencyKey;
use surehook_core::reading::{Account, Growth, RequestId};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::worker::exchange::Claim;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// The most rows of one batch.
const BATCH_ROWS: usize = 256;
/// The most bytes of one batch, unless a single event is larger.
const BATCH_BYTES: usize = 4 << 20;
/// How often one batch is sent to the store before its requests are told to come back.
const TRIES: u32 = 3;
/// How long a request waits for its commit before its producer is told to come back.
const PATIENCE: Duration = Duration::from_millis(1800);

/// What bounds the intake's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait for their commit.
    pub max_queued: usize,
    /// Bytes of requests that are being read or wait for their commit. Sources share them, see
    /// [`surehook_core::reading`].
    pub max_queued_bytes: usize,
    /// The most bytes that one request may take.
    pub max_body: usize,
    /// How many sources there are.
    pub sources: usize,
}

/// Why an event was not accepted. Each means: nothing is lost, come back with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// As much is waiting as [`Limits`] allows.
    #[error("too many requests are waiting to be stored")]
    Overloaded,
    /// The request was read for so long that it gave its memory up to another.
    #[error("the request arrived too slowly while memory was short")]
    GaveWay,
    /// The process is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The database did not take the batch.
    #[error("the database is not available")]
    Unavailable,
    /// The database did not answer in time; the event may be stored.
    #[error("the database did not answer in time")]
    TimedOut,
    /// The database refuses this very event; its neighbours were stored.
    #[error("the database refused to store the event")]
    Refused,
}

/// The handle by which requests reach the intake loop. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    queue: mpsc::Sender<Waiting>,
    slots: Arc<Semaphore>,
    memory: Arc<Memory>,
    clock: Arc<dyn Clock>,
}

/// What the loop works with.
pub struct Ports {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Rung for what was stored and waits to be claimed.
    pub doorbell: Arc<Doorbell>,
    /// The way to this process's worker for what was claimed as it was stored.
    pub handover: Arc<Handover>,
    /// Told what each commit teaches about the database.
    pub health: Arc<Health>,
}

/// Makes an intake: the handle, and the loop to run beside it.
///
/// The loop ends after `shutdown` has completed and every request that was taken has its answer.
pub fn intake(
    limits: Limits,
    ports: Ports,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> (Intake, impl Future<Output = ()> + Send) {
    let (queue, requests) = mpsc::channel(limits.max_queued);
    let intake = Intake {
        queue,
        slots: Arc::new(Semaphore::new(limits.max_queued)),
        memory: Arc::new(Memory::new(limits)),
        clock: Arc::clone(&ports.clock),
    };
    (intake, run(requests, ports, shutdown))
}

impl Intake {
    /// Opens an account of the memory that one request of this source will take. Nothing is taken yet.
    #[must_use]
    pub fn reservation(&self, source: &SourceName) -> Reservation {
        let (gives_way, given_up) = oneshot::channel();
        let mut state = self.memory.state();
        let id = state.account.open(self.clock.now(), source);
        state.reading.insert(id, gives_way);
        drop(state);
        Reservation { memory: Arc::clone(&self.memory), clock: Arc::clone(&self.clock), id, given_up: Some(given_up) }
    }

    /// Hands an event over and waits until it is durable, or known not to be, or the patience is at an end.
    ///
    /// Dropping this future does not take the event back.
    ///
    /// # Errors
    ///
    /// [`IntakeError`]; the producer may always come back with the same key.
    pub async fn submit(&self, event: NewEvent, on_key_reuse: OnKeyReuse, reservation: Reservation) -> Result<Admission, IntakeError> {
        reservation.is_read();
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| IntakeError::Overloaded)?;
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { event, on_key_reuse, reply, _slot: slot, _reservation: reservation };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => IntakeError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => IntakeError::ShuttingDown,
        })?;
        let deadline = self.clock.now() + PATIENCE;
        select_biased! {
            answer = answer.fuse() => answer.unwrap_or(Err(IntakeError::ShuttingDown)),
            () = self.clock.sleep_until(deadline).fuse() => Err(IntakeError::TimedOut),
        }
    }
}

/// The memory of all requests.
struct Memory(Mutex<MemoryState>);

struct MemoryState {
    account: Account,
    /// How each request that is being read learns that it has to give way.
    reading: BTreeMap<RequestId, oneshot::Sender<()>>,
}

impl Memory {
    fn new(limits: Limits) -> Self {
        let account = Account::new(limits.max_queued_bytes, limits.max_body, limits.sources);
        Self(Mutex::new(MemoryState { account, reading: BTreeMap::new() }))
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory that one request holds, until its answer is sent.
pub struct Reservation {
    memory: Arc<Memory>,
    clock: Arc<dyn Clock>,
    id: RequestId,
    given_up: Option<oneshot::Receiver<()>>,
}

impl Reservation {
    /// Takes so many bytes more. Slower requests may have to give way to that.
    ///
    /// # Errors
    ///
    /// [`IntakeError::Overloaded`] if that would exceed what [`Limits`] allow.
    pub fn grow(&mut self, bytes: usize) -> Result<(), IntakeError> {
        let mut state = self.memory.state();
        let Growth::Granted(gave_way) = state.account.grow(self.clock.now(), self.id, bytes) else {
            return Err(IntakeError::Overloaded);
        };
        for id in gave_way {
            if let Some(gives_way) = state.reading.remove(&id) {
                let _ = gives_way.send(());
            }
        }
        Ok(())
    }

    /// Completes when the request has to give its memory up to another. Only once, and never once it is read.
    pub fn gives_way(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let given_up = self.given_up.take();
        async move {
            let is_given_up = match given_up {
                Some(given_up) => given_up.await.is_ok(),
                None => false,
            };
            if !is_given_up {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The request is read: from now on it keeps its memory until it has its answer.
    fn is_read(&self) {
        let mut state = self.memory.state();
        state.account.read(self.id);
        state.reading.remove(&self.id);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        state.account.close(self.id);
        state.reading.remove(&self.id);
    }
}

/// A request that waits for its commit.
struct Waiting {
    event: NewEvent,
    on_key_reuse: OnKeyReuse,
    reply: oneshot::Sender<Result<Admission, IntakeError>>,
    _slot: OwnedSemaphorePermit,
    _reservation: Reservation,
}

impl Waiting {
    fn answer(self, answer: Result<Admission, IntakeError>) {
        // A producer that hung up is not there to hear it.
        let _ = self.reply.send(answer);
    }
}

async fn run(mut requests: mpsc::Receiver<Waiting>, ports: Ports, shutdown: impl Future<Output = ()> + Send + 'static) {
    let mut shutdown = shutdown.boxed().fuse();
    // All that has gathered is taken in one step. One by one, tokio's cooperative budget would end a batch at 127.
    let gathered = stream::poll_fn(move |context| {
        if let Poll::Ready(()) = shutdown.poll_unpin(context) {
            requests.close();
        }
        let mut gathered = Vec::new();
        let count = std::task::ready!(requests.poll_recv_many(context, &mut gathered, BATCH_ROWS));
        Poll::Ready((count > 0).then_some(gathered))
    });
    gathered
        .flat_map(|gathered| stream::iter(batches(gathered)))
        .map(|batch| commit(&ports, batch))
        .buffer_unordered(ports.store.accepts_at_once())
        .for_each(|()| async {})
        .await;
}

/// All the requests of one batch that bear one source and key. The first is stored; the others learn from it.
struct Group {
    first: Waiting,
    others: Vec<Waiting>,
}

/// Requests in batches of at most [`BATCH_BYTES`], each sorted by source and key and holding each once.
fn batches(gathered: Vec<Waiting>) -> Vec<Vec<Group>> {
    let mut groups: BTreeMap<(SourceName, IdempotencyKey), Group> = BTreeMap::new();
    for waiting in gathered {
        match groups.entry((waiting.event.source.clone(), waiting.event.key.clone())) {
            std::collections::btree_map::Entry::Occupied(group) => group.into_mut().others.push(waiting),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Group { first: waiting, others: Vec::new() });
            }
        }
    }
    let (mut batches, mut bytes) = (vec![Vec::new()], 0);
    for group in groups.into_values() {
        let size = group.first.event.size();
        if bytes + size > BATCH_BYTES && bytes > 0 {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        batches.last_mut().expect("there is always a batch").push(group);
    }
    batches
}

/// Stores one batch and answers each of its requests. What the worker has room for is claimed in the same moment, and
/// handed over to it. A batch that is rejected is halved until the row that is to blame stands alone.
async fn commit(ports: &Ports, batch: Vec<Group>) {
    let Ports { store, clock, doorbell, handover, health: _ } = ports;
    // With each part: whether an earlier try may have stored it.
    let mut parts = vec![(batch, false)];
    while let Some((mut part, mut is_in_doubt)) = parts.pop() {
        let leases = handover.take(part.iter().map(|group| (&group.first.event.source, group.first.event.size())));
        let asked: Vec<NewEvent> = part.iter().zip(leases).map(|(group, lease)| NewEvent { lease, ..group.first.event.clone() }).collect();
        let since = clock.now();
        let stored = accept(ports, asked.clone(), &mut is_in_doubt).await;
        let left = hand_over(handover, since, asked, stored.as_deref().unwrap_or_default());
        match stored {
            Ok(stored) => {
                assert_eq!(stored.len(), part.len(), "the store answers for each event of a batch");
                doorbell.ring(
                    part.iter()
                        .zip(&stored)
                        .filter(|(_, stored)| **stored == Stored::Inserted)
                        .map(|(group, _)| group.first.event.source.clone()),
                );
                part.into_iter().zip(stored).for_each(|(group, stored)| settle(group, stored));
            }
            Err(StoreError::Rejected(_)) if part.len() > 1 => {
                let second = part.split_off(part.len() / 2);
                parts.push((second, is_in_doubt));
                parts.push((part, is_in_doubt));
            }
            Err(error @ StoreError::Rejected(_)) => {
                let rests = part.into_iter().filter_map(|group| refuse_first(group, &error, is_in_doubt));
                parts.extend(rests.map(|rest| (vec![rest], is_in_doubt)));
            }
            Err(error) => refuse(part, &error, is_in_doubt),
        }
        if !left.is_empty() {
            release(store.as_ref(), &left).await;
        }
    }
}

/// Hands over what was claimed, and gives back the room of what was not. Answers the claims of which the worker takes no
/// more.
fn hand_over(handover: &Handover, since: Instant, asked: Vec<NewEvent>, stored: &[Stored]) -> Vec<Claim> {
    let is_claimed = |nth: usize| stored.get(nth) == Some(&Stored::Claimed);
    let (claimed, others): (Vec<_>, Vec<_>) = asked.into_iter().enumerate().partition(|(nth, _)| is_claimed(*nth));
    handover.give_back(others.iter().filter(|(_, event)| event.lease.is_some()).map(|(_, event)| (&event.source, event.size())));
    let claims: Vec<Claim> =
        claimed.into_iter().map(|(_, event)| Claim::first(event.id, event.source, event.headers, event.body)).collect();
    if claims.is_empty() {
        return claims;
    }
    handover.hand(Handed { since, claims }).map_or_else(|handed| handed.claims, |()| Vec::new())
}

/// Gives back what was claimed for a worker that has ended meanwhile, so that another need not wait for the lease's end.
async fn release(store: &dyn Store, claims: &[Claim]) {
    let batch = claims.iter().map(|claim| claim.settled(Outcome::Release, None)).collect();
    if let Err(error) = store.settle(batch).await {
        let first = &claims[0];
        tracing::warn!(%error, events = claims.len(), event_id = %first.event, source = %first.source, "not given back; claimable again when their leases end");
    }
}

/// Asks the store, and again where another try can help. The ids stay the same, so that a try whose reply was lost
/// is recognised. What such a try may have claimed is left to its lease: whether it did, nobody knows any more.
/// `is_in_doubt` becomes true with the first try that may have stored them.
async fn accept(ports: &Ports, mut events: Vec<NewEvent>, is_in_doubt: &mut bool) -> Result<Vec<Stored>, StoreError> {
    let bytes = events.iter().map(NewEvent::size).sum();
    let mut tries = 1;
    loop {
        let storing = ports.health.storing(ports.clock.now(), bytes);
        let stored = ports.store.accept(events.clone()).await;
        storing.ended(ports.clock.now(), &stored);
        let error = match stored {
            Ok(stored) => return Ok(stored),
            Err(error) => error,
        };
        *is_in_doubt |= matches!(error, StoreError::Unknown(_));
        let again = match error {
            StoreError::Conflict(_) | StoreError::Unknown(_) => tries < TRIES,
            StoreError::Unavailable(_) | StoreError::Rejected(_) => false,
        };
        if !again {
            return Err(error);
        }
        tracing::debug!(%error, tries, "storing a batch again");
        tries += 1;
        for event in &mut events {
            event.lease = None;
        }
    }
}

fn settle(group: Group, stored: Stored) {
    let Group { first, others } = group;
    let (id, fingerprint) = (first.event.id, first.event.fingerprint);
    let admission = resolve(id, fingerprint, first.on_key_reuse, stored);
    let seen_by_others = match stored {
        Stored::Inserted => Stored::Existing { id, fingerprint, status: Status::Queued },
        Stored::Claimed => Stored::Existing { id, fingerprint, status: Status::Processing },
        existing @ Stored::Existing { .. } => existing,
    };
    first.answer(Ok(admission));
    for other in others {
        let admission = resolve(other.event.id, other.event.fingerprint, other.on_key_reuse, seen_by_others);
        other.answer(Ok(admission));
    }
}

/// Refuses the row that stands alone. Others with its key may have another body: the next of them is asked for itself.
fn refuse_first(group: Group, error: &StoreError, is_in_doubt: bool) -> Option<Group> {
    let mut others = group.others.into_iter();
    let rest = others.next().map(|first| Group { first, others: others.collect() });
    refuse(vec![Group { first: group.first, others: Vec::new() }], error, is_in_doubt);
    rest
}

fn refuse(part: Vec<Group>, error: &StoreError, is_in_doubt: bool) {
    let last = match error {
        StoreError::Rejected(_) => NotStored::Refused,
        StoreError::Unavailable(_) | StoreError::Conflict(_) => NotStored::Unavailable,
        StoreError::Unknown(_) => NotStored::Unknown,
    };
    let answer = match last.after(is_in_doubt) {
        NotStored::Refused => IntakeError::Refused,
        NotStored::Unavailable => IntakeError::Unavailable,
        NotStored::Unknown => IntakeError::TimedOut,
    };
    let (first, events) = (&part[0].first.event, part.len());
    if answer == IntakeError::TimedOut {
        tracing::warn!(%error, events, event_id = %first.id, source = %first.source, "may be stored; the producers are told to send again");
    } else {
        tracing::warn!(%error, events, event_id = %first.id, source = %first.source, "not stored; the producers are told to come back");
    }
    for group in part {
        group.first.answer(Err(answer));
        group.others.into_iter().for_each(|other| other.answer(Err(answer)));
    }
}
