//! The seven ports (traits) between the program and its environment: three to the database, and one
//! each to the downstreams, the clock, and the event ids. The loops and the routes are the same for
//! each implementation. In production these are PostgreSQL or SQLite, an HTTP client, tokio's clock, and
//! the system's entropy. In a simulation there is a model of each.
//!
//! The database has three ports, because no user needs all of its methods: the loops for events use
//! [`EventStore`], the operators' routes [`OperatorStore`], and retention and readiness
//! [`MaintenanceStore`]. For all three, each method is one transaction, or a few that are each
//! harmless alone. No connection and no transaction outlives a call, and dropping the future of a
//! call leaves no transaction open.
//!
//! The database's clock is the only wall clock: durations are added to its time, and its time is
//! what is shown.

use crate::search::{
    ChangedPage, EventFilter, EventPage, EventRecord, FailureSummary, PageSize, RequestRecord,
    SourceRecord, Span, SummaryFilter, SummarySize,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Response};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, RedrivenBy, Status};
use surehook_core::id::{EventId, Fence};
use surehook_core::key::IdempotencyKey;
use surehook_core::retention::Reached;
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::verdict::{DeliveryError, Reply};
use surehook_core::worker::claims::{Claim, Claims, Demand, Settlement};

/// A call to the database in progress.
pub type StoreCall<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The database for the intake and the worker: accepts events, claims them, and settles them.
pub trait EventStore: Send + Sync {
    /// Maximum number of concurrent [`Self::accept`] calls. With only one, a server is idle between
    /// two commits. With many, the batches are small. If the database has only one writer, a second
    /// batch would wait without collecting more events.
    fn accepts_at_once(&self) -> usize {
        2
    }

    /// Commits a batch of new events. When this returns, they are durable.
    ///
    /// Returns one [`Stored`] for each event, in the order of the batch. The batch has each
    /// (source, key) at most once, in any order. The store locks rows in one order, so that two
    /// batches cannot deadlock. An event whose (source, key) is already stored changes nothing.
    /// After [`StoreError::Rejected`], no event of the batch is stored.
    ///
    /// A new event with a [lease](NewEvent::lease) is stored as [`Self::claim`] would leave it, and
    /// its claim is [`NewEvent::claimed`]. It is not claimed if its source is paused, or if the store
    /// leaves this to `claim`.
    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>>;

    /// Claims due events: for each demand at most its limit, the oldest due first as far as locks
    /// allow.
    ///
    /// Rows that a concurrent claim is taking are skipped. So fewer events than requested can be
    /// returned although more are due. Each row becomes *processing*, its attempt and fence
    /// increase by one, and it is due again at the end of its lease. If the previous lease of a row
    /// ended, the lost attempt is recorded. A row with no attempts left is dead-lettered instead.
    /// Events of a paused source are not claimed.
    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims>;

    /// Settles claims. Returns the events whose settlement was refused because of a stale fence:
    /// the row was claimed again, or settled by an earlier try of the same settlement. Nothing is
    /// written for those settlements. All others are written. If a batch settles an event under several
    /// fences, the event is returned once for each refused one.
    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>>;
}

/// The settlements of a batch that a store refused. `events` is the result of [`EventStore::settle`].
/// Of several settlements of one event, those with the lowest fences are refused, because an event is
/// claimed again only under a higher one. A failover that loses the last claim is an exception, which
/// only the row could show. Then the log and the counters name the wrong one.
pub(crate) fn refused(
    batch: impl IntoIterator<Item = (EventId, Fence)>,
    events: &[EventId],
) -> BTreeSet<(EventId, Fence)> {
    if events.is_empty() {
        return BTreeSet::new();
    }
    let mut times: BTreeMap<EventId, usize> = BTreeMap::new();
    for event in events {
        *times.entry(*event).or_default() += 1;
    }
    let in_order: BTreeSet<(EventId, Fence)> = batch.into_iter().collect();
    let is_refused = |(event, _): &(EventId, Fence)| {
        times.get_mut(event).is_some_and(|left| {
            let is_one = *left > 0;
            *left = left.saturating_sub(1);
            is_one
        })
    };
    in_order.into_iter().filter(is_refused).collect()
}

/// The database for operators: finds events, shows the work of each source, redrives, discards, and
/// pauses. Each redrive and each discard of an event is recorded in its history, in the same
/// transaction.
pub trait OperatorStore: Send + Sync {
    /// All data of one event, without its request.
    fn find(&self, event: EventId) -> StoreCall<'_, Option<EventRecord>>;

    /// The request of one event, without its body.
    fn request(&self, event: EventId) -> StoreCall<'_, Option<RequestRecord>>;

    /// The body of one event.
    fn body(&self, event: EventId) -> StoreCall<'_, FoundBody>;

    /// Queues a dead-lettered event again, with a new retry budget. Its history says who redrove it.
    fn redrive(&self, event: EventId, by: RedrivenBy) -> StoreCall<'_, Redriven>;

    /// Queues a delivered event again, with a new retry budget.
    fn redrive_delivered(&self, event: EventId) -> StoreCall<'_, Redriven>;

    /// One page of the events of `span` that match `filter`, newest first.
    fn list(&self, filter: EventFilter, span: Span, size: PageSize) -> StoreCall<'_, EventPage>;

    /// The failures of events that are not delivered, in groups by source, and by verdict, status
    /// code, error and the beginning of the excerpt of the newest attempt. Events that are waiting
    /// without a failed attempt are examined, but in no group.
    fn summary(&self, filter: SummaryFilter, size: SummarySize) -> StoreCall<'_, FailureSummary>;

    /// Queues the dead letters of `span` that match `filter` again, in the order of their ids, as
    /// [`Self::redrive`] does. If two concurrent calls reach the same event, the later one skips
    /// it. With `dry_run` it only counts them. The status in the filter is ignored, because the
    /// call applies only to dead letters. Discarded events are redriven only if the filter names
    /// their reason.
    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage>;

    /// Discards an event, if it is in the scope. A dead letter keeps the time when it ended.
    fn discard(&self, event: EventId, scope: DiscardScope) -> StoreCall<'_, Discarded>;

    /// Discards the events of `span` that match `filter`, in the order of their ids, as
    /// [`Self::discard`] does. Events that another call locks or changes are skipped. With
    /// `dry_run` it only counts them. The status in the filter is ignored. Waiting events are
    /// discarded only if the filter names their source.
    fn discard_all(
        &self,
        filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage>;

    /// The work of each source that is named here, has waiting events, has dead letters or is
    /// paused, in the order of their names. For each source, the events that are due, that are due
    /// later, and that are dead-lettered are each counted up to `count_to`. Discarded events are
    /// not counted. The newest dead letters are examined, at most
    /// [`dead_letter_looks`](crate::search::dead_letter_looks) of them.
    fn sources(&self, names: Vec<SourceName>, count_to: u32) -> StoreCall<'_, Vec<SourceRecord>>;

    /// The sources of all stored events, delivered ones included, in the order of their names.
    fn stored_sources(&self) -> StoreCall<'_, Vec<String>>;

    /// Pauses or resumes a source for all processes. The change is in effect when the call returns.
    /// Returns whether the state changed.
    fn pause(&self, source: SourceName, paused: bool) -> StoreCall<'_, bool>;
}

/// The database for maintenance and for checks of the process: prunes, erases, caps due times, and
/// says whether the database can be used.
pub trait MaintenanceStore: Send + Sync {
    /// Examines up to `limit` events in the order of their ids, starting after `after`. Deletes
    /// those that ended longer ago than `retention` allows, with their attempts and their recorded
    /// actions. Events that have not ended are never deleted.
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned>;

    /// Examines up to `limit` events in the order of their ids, starting after `after`. Erases the
    /// queries, headers and bodies of those that were delivered longer than `kept` ago. Their records and
    /// their idempotency keys stay.
    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased>;

    /// Caps up to `limit` due times that are beyond the horizon of their source, the earliest of a
    /// source first: such an event is due when the lease in its bound has passed from now. Its
    /// fence stays, so its holder can still settle it. Rows that another transaction has locked are
    /// skipped. Returns the number of capped due times.
    fn cap_due_times(&self, bounds: Vec<Bound>, limit: u32) -> StoreCall<'_, u64>;

    /// Checks that the database answers, is writable, and has the schema that this program needs. It
    /// runs to its end, also if the future is no longer polled.
    fn ping(&self) -> StoreCall<'_, ()>;

    /// Checks that new events can be stored: inserts this event as [`EventStore::accept`] does,
    /// removes it again, and commits. The event is never visible to other transactions. It runs to its
    /// end, also if the future is no longer polled.
    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()>;

    /// What holds the oldest snapshot of the database, if it has held it for at least `least`. `None`
    /// also for a database without such a thing.
    fn oldest_snapshot(&self, least: Duration) -> StoreCall<'_, Option<SnapshotHolder>> {
        let _ = least;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The size in bytes of a write-ahead log that is too large, because a connection of another
    /// process has kept it from being emptied. `None` also for a database without such a log.
    fn overgrown_log(&self) -> Option<u64> {
        None
    }

    /// The kind of database, and how it is reached: `sqlite`, `postgresql`, or `postgresql-pooled`
    /// through a pooler. `None` for a database of a test.
    fn database(&self) -> Option<&'static str> {
        None
    }

    /// The use of each connection pool.
    fn connections(&self) -> Vec<Connections> {
        Vec::new()
    }
}

/// All three ports to one database.
pub trait Store: EventStore + OperatorStore + MaintenanceStore {}

impl<S: EventStore + OperatorStore + MaintenanceStore> Store for S {}

/// Delivers events to downstreams.
pub trait Downstream: Send + Sync {
    /// Sends one claimed event to the destination of its source and waits for the reply, at most
    /// for `timeout`. It never fails: an error is a part of the reply.
    fn send(&self, claim: &Claim, timeout: Duration) -> BoxFuture<'static, Reply>;
}

/// Passes producers' requests on to destinations.
pub trait Relay: Send + Sync {
    /// Sends one request to the destination of a source, once, and returns its complete response. It
    /// is stored nowhere. The caller limits the time: it drops the future.
    fn relay(
        &self,
        source: &SourceName,
        request: Relayed,
    ) -> BoxFuture<'static, Result<Response<Bytes>, RelayFailed>>;
}

/// A request that is relayed.
#[derive(Clone, Debug)]
pub struct Relayed {
    pub method: Method,
    /// The query of the producer's request. Empty if there is none.
    pub query: Bytes,
    /// The headers to forward.
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why a relayed request has no response that can go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayFailed {
    /// There was no complete response.
    #[error("{}", .0.as_str())]
    NoResponse(DeliveryError),
    /// The process has no file descriptor or no memory for a connection.
    #[error("no file descriptor or no memory for a connection")]
    NoResource,
    /// The request cannot be built. The log has the reason.
    #[error("the request cannot be built")]
    Unsendable,
    /// The body of the response is larger than [`MAX_RELAYED_BODY`].
    #[error("the body of the response is larger than 64 KiB")]
    TooLarge,
}

/// The largest body of a relayed request, and of its response, in bytes: 64 KiB. Handshakes need less.
pub const MAX_RELAYED_BODY: usize = 64 << 10;

/// A monotonic clock.
pub trait Clock: Send + Sync {
    fn now(&self) -> Instant;

    /// Waits until `deadline`. Returns at once if it has passed.
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()>;
}

/// Generates event ids.
pub trait Ids: Send + Sync {
    /// A new event id that no process has generated before: a UUID of version 7.
    fn fresh(&self) -> EventId;
}

/// A session, or something else, that holds a snapshot of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHolder {
    /// The name that the session gave itself, or the kind and name of what holds it.
    pub name: String,
    pub role: Option<String>,
    pub state: Option<String>,
    /// The server process of a session.
    pub pid: Option<i64>,
    /// For how long. `None` if that is unknown.
    pub held_for: Option<Duration>,
}

/// The use of one connection pool. Each kind of work has its own pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// The kind of work: `intake`, `worker`, `operator`, `retention`, `readiness`; or `writer`,
    /// `reader`.
    pub pool: &'static str,
    /// Number of connections in use.
    pub in_use: usize,
    /// Maximum number of connections. A call that needs another one waits.
    pub limit: usize,
}

/// An event to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Chosen before the first try to store the event, and the same for each retry.
    pub id: EventId,
    pub source: SourceName,
    pub key: IdempotencyKey,
    pub fingerprint: Fingerprint,
    /// The query of the posted URL, without `?`. Empty if there is none, or if it is not forwarded.
    pub query: Bytes,
    /// The headers to forward, encoded by [`crate::headers`].
    pub headers: Bytes,
    /// The body, exactly as received.
    pub body: Bytes,
    /// If the event is new, it is also claimed, for this time.
    pub lease: Option<Duration>,
}

impl NewEvent {
    /// The bytes of the query, the headers and the body.
    #[must_use]
    pub fn size(&self) -> usize {
        self.query.len() + self.headers.len() + self.body.len()
    }

    /// The claim of this event after it was claimed on insert.
    #[must_use]
    pub fn claimed(self, received_at: Timestamp) -> Claim {
        let Self { id, source, query, headers, body, .. } = self;
        Claim::first(id, source, received_at, query, headers, body)
    }
}

/// The result of a redrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redriven {
    /// The event is queued again.
    Queued,
    /// The event is in another state than the redrive requires. This is its status.
    WrongStatus(Status),
    /// The event was delivered, and its payload is erased.
    Erased,
    /// The event does not exist.
    NotFound,
}

/// The result of discarding one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// The event is discarded. It was not before.
    Now,
    /// The event was discarded before. Nothing is changed.
    Before,
    /// The event is outside of the scope, or delivered. This is its status.
    WrongStatus(Status),
    /// The event does not exist.
    NotFound,
}

/// The stored body of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundBody {
    /// The body, exactly as received.
    Found(Bytes),
    /// The event's payload is erased.
    Erased,
    /// The event does not exist.
    NotFound,
}

/// How long events are kept after they ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub delivered: Duration,
    pub dead_lettered: Duration,
}

/// The result of one prune step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Number of deleted events.
    pub deleted: u64,
    /// How many of them were dead letters that were not discarded.
    pub dead_lettered: u64,
    /// How many of them were discarded dead letters.
    pub discarded: u64,
    /// Where the step ended.
    pub reached: Reached,
}

/// The result of one erase step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erased {
    /// Number of events whose payload was erased.
    pub erased: u64,
    /// Where the step ended.
    pub reached: Reached,
}

/// Why a call to the store failed.
///
/// Only after [`StoreError::Unknown`] the transaction may have been committed. After every other
/// error, nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database is unreachable, has no free connection, is not writable, or has another schema.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database aborted this transaction in favour of others (deadlock, serialization failure,
    /// lock timeout).
    #[error("the database aborted the transaction because of a conflict: {0}")]
    Conflict(String),
    /// The database rejects the data. One row can cause this for its whole batch.
    #[error("the database rejected the data: {0}")]
    Rejected(String),
    /// The connection broke, or the timeout expired, after the statement was sent. The transaction
    /// may have been committed.
    #[error("the outcome of the transaction is unknown, it may have been committed: {0}")]
    Unknown(String),
}
