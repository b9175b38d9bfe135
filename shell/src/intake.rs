//! The intake loop: performs the actions of [`surehook_core::intake::Intake`]. It holds the bytes
//! of waiting requests, and the channels for their answers. A commit is not cancelled if its
//! producer closes the connection.
//!
//! Not here: HTTP (see [`crate::http`]) and every decision about a request (see
//! [`surehook_core::intake`]).

use crate::alarm::Alarm;
use crate::config::limits;
use crate::doorbell::Doorbell;
use crate::handover::{Handed, Handover};
use crate::health::Health;
use crate::ports::{Clock, EventStore, NewEvent, StoreError};
use futures::future::{BoxFuture, pending};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, select_biased};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use surehook_core::admission::{Admission, NotStored, OnKeyReuse, Stored};
use surehook_core::event::Outcome;
use surehook_core::id::EventId;
use surehook_core::intake::{
    self as machine, Action, BATCH_ROWS, BatchId, ClaimedOnInsert, Input, Refusal, Request,
    Settings, StoreFailure, Ticket,
};
use surehook_core::reading::{Account, Growth, RequestId};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::worker::claims::Claim;
use tokio::sync::{mpsc, oneshot, watch};

/// How long a request waits for its commit. After that, it is answered with an error, and its
/// producer can retry.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1800);

/// Maximum number of requests that the loop has not received yet. It receives all of them whenever
/// it runs.
const MOST_UNREAD: usize = limits::MAX_QUEUED;

/// The limits of the intake's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of requests that wait for their commit.
    pub max_queued: usize,
    /// Maximum bytes of all requests that are being read or wait for their commit. Sources share
    /// them, see [`surehook_core::reading`].
    pub max_queued_bytes: usize,
    /// Maximum bytes of one request, of whatever source: its body, its query and its headers.
    pub max_request: usize,
    /// Number of configured sources.
    pub sources: usize,
}

/// Why an event was not accepted. After each of these errors, the producer can safely retry with
/// the same idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// A limit of [`Limits`] is reached.
    #[error("too many requests are waiting to be stored")]
    Overloaded,
    /// The request arrived slowly, and other requests needed its memory or its connection.
    #[error("the request arrived too slowly while memory or connections were short")]
    GaveWay,
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The database did not store the batch.
    #[error("the database is not available")]
    Unavailable,
    /// The database did not answer in time. The event may be stored.
    #[error("the database did not answer in time")]
    TimedOut,
    /// The database rejects this event. The other events of its batch are stored.
    #[error("the database refused to store the event")]
    Refused,
}

/// Submits requests to the intake loop. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    queue: mpsc::Sender<Waiting>,
    max_queued: watch::Sender<usize>,
    memory: Arc<Memory>,
    clock: Arc<dyn Clock>,
}

/// The dependencies of the intake loop.
pub struct IntakePorts {
    pub store: Arc<dyn EventStore>,
    pub clock: Arc<dyn Clock>,
    /// Signals the sources whose new events wait for a claim.
    pub doorbell: Arc<Doorbell>,
    /// Passes events claimed on insert to the worker of this process.
    pub handover: Arc<Handover>,
    /// Records what each commit shows about the database.
    pub health: Arc<Health>,
}

/// Creates an intake: the handle, and the loop that must run beside it.
///
/// The loop ends when `shutdown` has completed and every queued request is answered.
pub fn intake(
    limits: Limits,
    ports: IntakePorts,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> (Intake, impl Future<Output = ()> + Send) {
    // Grows with the requests in it. The loop takes all of them at once and refuses those beyond
    // `max_queued`.
    let (queue, requests) = mpsc::channel(MOST_UNREAD);
    let (max_queued, limited) = watch::channel(limits.max_queued);
    let memory = Arc::new(Memory::new(limits));
    let intake = Intake { queue, max_queued, memory, clock: Arc::clone(&ports.clock) };
    let settings = Settings {
        max_queued: limits.max_queued,
        batches_at_once: ports.store.accepts_at_once(),
        request_timeout: REQUEST_TIMEOUT,
    };
    (intake, run(requests, limited, ports, settings, shutdown))
}

impl Intake {
    /// Replaces the limits. Requests that are being read or wait are kept.
    pub fn limit(&self, limits: Limits) {
        let Limits { max_queued, max_queued_bytes, max_request, sources } = limits;
        self.memory.state().account.resize(max_queued_bytes, max_request, sources);
        self.max_queued.send_replace(max_queued);
    }

    /// Starts to account for the memory of one request of this source. It reserves no bytes yet.
    #[must_use]
    pub fn reservation(&self, source: &SourceName) -> Reservation {
        let (shed, is_shed) = oneshot::channel();
        let mut state = self.memory.state();
        let id = state.account.open(self.clock.now(), source);
        state.reading.insert(id, shed);
        drop(state);
        Reservation {
            memory: Arc::clone(&self.memory),
            clock: Arc::clone(&self.clock),
            id,
            is_shed: Some(is_shed),
        }
    }

    /// Queues an event and waits until it is committed, until it is known to have failed, or until
    /// the timeout.
    ///
    /// Dropping this future does not cancel the commit.
    ///
    /// # Errors
    ///
    /// [`IntakeError`]. The producer can always retry with the same key.
    pub async fn submit(
        &self,
        event: NewEvent,
        on_key_reuse: OnKeyReuse,
        reservation: Reservation,
    ) -> Result<Admission, IntakeError> {
        reservation.is_read();
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { event, on_key_reuse, reply, reservation };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => IntakeError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => IntakeError::ShuttingDown,
        })?;
        answer.await.unwrap_or(Err(IntakeError::ShuttingDown))
    }
}

/// Accounts for the memory of all requests.
struct Memory(Mutex<MemoryState>);

struct MemoryState {
    account: Account,
    /// Tells a request that is being read to free its memory for another request.
    reading: BTreeMap<RequestId, oneshot::Sender<()>>,
}

impl Memory {
    fn new(limits: Limits) -> Self {
        let account = Account::new(limits.max_queued_bytes, limits.max_request, limits.sources);
        Self(Mutex::new(MemoryState { account, reading: BTreeMap::new() }))
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory that one request uses until its answer is sent.
pub struct Reservation {
    memory: Arc<Memory>,
    clock: Arc<dyn Clock>,
    id: RequestId,
    /// Completes when a faster request needs the memory. `None` once it is awaited.
    is_shed: Option<oneshot::Receiver<()>>,
}

impl Reservation {
    /// Reserves `bytes` more. Slower requests can lose their memory for this.
    ///
    /// # Errors
    ///
    /// [`IntakeError::Overloaded`] if this would exceed the [`Limits`].
    pub fn grow(&mut self, bytes: usize) -> Result<(), IntakeError> {
        let mut state = self.memory.state();
        let Growth::Granted(gave_way) = state.account.grow(self.clock.now(), self.id, bytes) else {
            return Err(IntakeError::Overloaded);
        };
        for id in gave_way {
            if let Some(shed) = state.reading.remove(&id) {
                let _ = shed.send(());
            }
        }
        Ok(())
    }

    /// Completes when the request must free its memory for another one. It completes at most once,
    /// and never after the whole request was read.
    pub fn gives_way(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let is_shed = self.is_shed.take();
        async move {
            let is_shed = match is_shed {
                Some(is_shed) => is_shed.await.is_ok(),
                None => false,
            };
            if !is_shed {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Records that the whole request was read. It now keeps its memory until it is answered.
    pub fn is_read(&self) {
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

/// A request on its way to the loop, with the channel for its answer.
struct Waiting {
    event: NewEvent,
    on_key_reuse: OnKeyReuse,
    reply: Reply,
    reservation: Reservation,
}

/// The result of a finished store call.
type Ended = (BatchId, Result<Vec<Stored>, StoreError>);

type Reply = oneshot::Sender<Result<Admission, IntakeError>>;

/// A request that waits for its commit.
struct Held {
    event: NewEvent,
    /// `None` once the request has timed out.
    reply: Option<Reply>,
    _reservation: Reservation,
}

/// Performs the actions of the [machine](machine::Intake).
async fn run(
    mut requests: mpsc::Receiver<Waiting>,
    mut limited: watch::Receiver<usize>,
    ports: IntakePorts,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let IntakePorts { store, clock, doorbell, handover, health } = ports;
    let mut intake = machine::Intake::new(settings);
    let mut held: BTreeMap<Ticket, Held> = BTreeMap::new();
    let mut calls: FuturesUnordered<BoxFuture<'_, Ended>> = FuturesUnordered::new();
    let mut releases: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    // A set of which all futures were polled wakes its task again. One that is never woken prevents that.
    calls.push(pending().boxed());
    releases.push(pending().boxed());
    let mut alarm = Alarm::new(Arc::clone(&clock));
    let mut shutdown = shutdown.boxed().fuse();
    let mut gathered = Vec::new();
    let mut last_failure = None;
    // False once the channel is closed and all its requests were received.
    let mut is_open = true;
    loop {
        // Before the offers are read: a lease of an earlier offer is counted from an earlier time.
        let now = clock.now();
        for input in handover.inputs() {
            intake.handle(input);
        }
        if limited.has_changed().unwrap_or(false) {
            intake.handle(Input::Limited { max_queued: *limited.borrow_and_update() });
        }
        let mut not_stored = NotStoredLog::default();
        while let Some(action) = intake.poll(now) {
            match action {
                Action::Store { batch, events } => {
                    let events: Vec<NewEvent> = events
                        .into_iter()
                        .map(|(ticket, lease)| NewEvent { lease, ..held[&ticket].event.clone() })
                        .collect();
                    let storing =
                        health.storing(clock.now(), events.iter().map(NewEvent::size).sum());
                    let (store, clock) = (store.as_ref(), clock.as_ref());
                    let call = async move {
                        let result = store.accept(events).await;
                        storing.ended(clock.now(), &result);
                        (batch, result)
                    };
                    calls.push(call.boxed());
                }
                Action::HandOver { since, events } => {
                    let claims = claims(&held, &events);
                    if handover.hand(Handed { since, claims }).is_err() {
                        intake.handle(Input::NotHandedOver(events));
                    }
                }
                Action::Release(events) => {
                    releases.push(release(store.as_ref(), claims(&held, &events)).boxed());
                }
                Action::Ring(sources) => doorbell.ring(sources),
                Action::Answer { ticket, answer: Err(Refusal::TimedOut) } => {
                    let reply = held.get_mut(&ticket).and_then(|held| held.reply.take());
                    answer(reply, Err(IntakeError::TimedOut));
                }
                Action::Answer { ticket, answer: result } => {
                    let Held { event, reply, .. } =
                        held.remove(&ticket).expect("every queued request is in `held`");
                    if let Err(Refusal::NotStored(why)) = result {
                        not_stored.add(why, &event);
                    }
                    answer(reply, result.map_err(IntakeError::from));
                }
                Action::Forget(ticket) => {
                    held.remove(&ticket);
                }
                Action::Done => return,
            }
        }
        not_stored.write(last_failure.take().as_ref());
        // Receives all waiting requests in one step. If it received them one by one, tokio's
        // cooperative budget would limit a batch to 127 requests.
        let mut incoming = poll_fn(|context| {
            if is_open {
                requests.poll_recv_many(context, &mut gathered, BATCH_ROWS)
            } else {
                Poll::Pending
            }
        })
        .fuse();
        select_biased! {
            (batch, result) = calls.select_next_some() => {
                let result = result.map_err(|error| {
                    tracing::debug!(%error, "storing a batch failed");
                    let failure = failure(&error);
                    last_failure = Some(error);
                    failure
                });
                intake.handle(Input::Stored { batch, result });
            }
            () = releases.select_next_some() => intake.handle(Input::Released),
            // Requests that were sent earlier are still received. Then the channel ends.
            () = shutdown => requests.close(),
            count = incoming => {
                let now = clock.now();
                for waiting in gathered.drain(..) {
                    admit(&mut intake, &mut held, now, waiting);
                }
                if count == 0 {
                    is_open = false;
                    intake.handle(Input::ShutDown);
                }
            }
            () = pin!(alarm.at_latest(intake.wake_at()).fuse()) => {}
        }
    }
}

/// Queues a request, or answers it with an error immediately.
fn admit(
    intake: &mut machine::Intake,
    held: &mut BTreeMap<Ticket, Held>,
    now: Instant,
    waiting: Waiting,
) {
    let Waiting { event, on_key_reuse, reply, reservation } = waiting;
    let request = Request {
        event: event.id,
        source: event.source.clone(),
        key: event.key.clone(),
        fingerprint: event.fingerprint,
        on_key_reuse,
        size: event.size(),
    };
    match intake.submit(now, request) {
        Ok(ticket) => {
            held.insert(ticket, Held { event, reply: Some(reply), _reservation: reservation });
        }
        Err(refusal) => answer(Some(reply), Err(refusal.into())),
    }
}

fn answer(reply: Option<Reply>, answer: Result<Admission, IntakeError>) {
    if let Some(reply) = reply {
        // Fails if the producer has closed its connection. It needs no answer then.
        let _ = reply.send(answer);
    }
}

/// The claims of events that the store claimed on insert.
fn claims(held: &BTreeMap<Ticket, Held>, events: &[ClaimedOnInsert]) -> Vec<Claim> {
    events
        .iter()
        .map(|(ticket, received_at)| held[ticket].event.clone().claimed(*received_at))
        .collect()
}

/// Releases claims whose worker has ended, so that another worker does not wait for the end of
/// their leases.
async fn release(store: &dyn EventStore, claims: Vec<Claim>) {
    let batch = claims.iter().map(|claim| claim.settled(Outcome::Release, None)).collect();
    if let Err(error) = store.settle(batch).await {
        let first = &claims[0];
        tracing::warn!(%error, events = claims.len(), event_id = %first.event, source = %first.source, "release of claimed events failed; they become claimable when their leases end");
    }
}

fn failure(error: &StoreError) -> StoreFailure {
    match error {
        StoreError::Unavailable(_) => StoreFailure::Unavailable,
        StoreError::Conflict(_) => StoreFailure::Conflict,
        StoreError::Rejected(_) => StoreFailure::Rejected,
        StoreError::Unknown(_) => StoreFailure::Unknown,
    }
}

impl From<Refusal> for IntakeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Overloaded => Self::Overloaded,
            Refusal::ShuttingDown => Self::ShuttingDown,
            Refusal::TimedOut | Refusal::NotStored(NotStored::Unknown) => Self::TimedOut,
            Refusal::NotStored(NotStored::Unavailable) => Self::Unavailable,
            Refusal::NotStored(NotStored::Refused) => Self::Refused,
        }
    }
}

/// Collects the requests that are answered with an error after a failed store call, for one log
/// line.
#[derive(Default)]
struct NotStoredLog {
    first: Option<(NotStored, EventId, SourceName)>,
    events: usize,
}

impl NotStoredLog {
    fn add(&mut self, why: NotStored, event: &NewEvent) {
        self.events += 1;
        self.first.get_or_insert_with(|| (why, event.id, event.source.clone()));
    }

    fn write(self, error: Option<&StoreError>) {
        let Some((why, event_id, source)) = self.first else { return };
        let (events, error) = (self.events, error.map(tracing::field::display));
        match why {
            NotStored::Unknown => {
                tracing::warn!(error, events, %event_id, %source, "events may be stored (commit outcome unknown); answering 503");
            }
            NotStored::Unavailable | NotStored::Refused => {
                tracing::warn!(error, events, %event_id, %source, "events not stored; answering 503");
            }
        }
    }
}
