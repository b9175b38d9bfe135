//! The four ports between the loops and the world. Whatever implements them, the loops are the same: PostgreSQL or
//! SQLite, reqwest, tokio's clock and the system's entropy in production; a model of each in a simulation.

use crate::search::{EventFilter, EventPage, PageSize, RedrivenPage, SourceRecord, Span};
use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use std::time::Duration;
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::event::{Reason, Status};
use surehook_core::id::{Attempt, EventId};
use surehook_core::key::IdempotencyKey;
use surehook_core::retention::Reached;
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::verdict::{Reply, Verdict};
use surehook_core::worker::exchange::{Claim, Claims, Demand, Settlement};

/// The database. Each method is one transaction, or a few that are each harmless alone; no connection and no
/// transaction outlives a call, and dropping a call's future leaves none open.
///
/// The database's clock is the only wall clock: durations are added to its time, and its time is what is shown.
pub trait Store: Send + Sync {
    /// How many batches of [`Self::accept`] it is to be given at once. One alone leaves a server idle between two commits,
    /// many make the batches small; and where there is one writer, a second batch only waits and gathers nothing meanwhile.
    fn accepts_at_once(&self) -> usize {
        2
    }

    /// How many connections it has in use at this moment, of each kind of work that has its own.
    fn connections(&self) -> Vec<Connections> {
        Vec::new()
    }

    /// Makes a batch of new events durable: when this answers, they are committed.
    ///
    /// Answers one [`Stored`] for each event, in the batch's order. The batch holds each (source, key) at most once
    /// and may come in any order; the store locks rows in one order, so that two batches cannot deadlock. An event
    /// whose (source, key) is there already changes nothing. After [`StoreError::Rejected`] nothing of the batch is
    /// stored. A new event with a [lease](NewEvent::lease) starts as [`Self::claim`] would leave it, and its claim is the
    /// [first](Claim::first) there can be; unless its source is paused, or the store leaves that to `claim`.
    fn accept(&self, batch: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>>;

    /// Claims events that are due, for each demand at most its limit, oldest due first as far as locks allow.
    ///
    /// Rows that another claim is just taking are skipped, so fewer than wanted may come back although more are due.
    /// Each row becomes *processing*, its attempt and fence go up by one, and it is due again at its lease's end. A
    /// row whose lease ran out gets its lost attempt recorded. A row with no attempts left is dead-lettered instead.
    /// Nothing of a paused source is claimed.
    fn claim(&self, demands: Vec<Demand>) -> BoxFuture<'_, Result<Claims, StoreError>>;

    /// Settles claims. Answers the events whose settlement was refused because their row has moved on: claimed
    /// again, or settled by an earlier try of this very settlement. Nothing is written for those, all else is.
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>>;

    /// Everything that is known of one event.
    fn find(&self, event: EventId) -> BoxFuture<'_, Result<Option<EventRecord>, StoreError>>;

    /// Sends a dead-lettered event back to *queued* with a new budget.
    fn redrive(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>>;

    /// Sends a delivered event back to *queued* with a new budget, to be delivered once more.
    fn redrive_delivered(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>>;

    /// A page of the events of a span that match, newest first.
    fn list(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
    ) -> BoxFuture<'_, Result<EventPage, StoreError>>;

    /// Sends the dead letters of a span that match back to *queued*, the one of the least id first, as [`Self::redrive`]
    /// does; of two calls at once that meet the same one, the later leaves it to the other. With `dry_run` it only
    /// counts them. What status the filter names is of no account: dead letters are meant.
    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> BoxFuture<'_, Result<RedrivenPage, StoreError>>;

    /// The work of each source that is named here, has work waiting, has dead letters or is paused, in the order of
    /// their names. Of each at most `count_to` events that are due, that will be, and that are dead-lettered are counted.
    fn sources(
        &self,
        names: Vec<SourceName>,
        count_to: u32,
    ) -> BoxFuture<'_, Result<Vec<SourceRecord>, StoreError>>;

    /// From when this answers, nothing of the source is claimed, by any process, or it is again. Answers whether that
    /// was otherwise before.
    fn pause(&self, source: SourceName, paused: bool) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Looks at up to `limit` events in the order of their ids, behind `after`, and deletes those that ended longer
    /// ago than `retention` allows, with their attempts. What is still owed is never deleted.
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Pruned, StoreError>>;

    /// Looks at up to `limit` events in the order of their ids, behind `after`, and erases the headers and bodies of those
    /// that were delivered longer ago than they are `kept`. Their record stays, and their keys are remembered.
    fn erase(
        &self,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Erased, StoreError>>;

    /// Whether the database answers, can be written to, and has the schema that this program needs.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Whether new events can be stored: inserts this one as [`Self::accept`] does, takes it back, and commits. Nobody ever
    /// sees it.
    fn probe(&self, event: NewEvent) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// The way to the downstreams.
pub trait Downstream: Send + Sync {
    /// Sends one claimed event to its source's destination and waits for the reply, at most until `timeout` has
    /// passed. Never fails: what went wrong is part of the reply.
    fn send(&self, claim: &Claim, timeout: Duration) -> BoxFuture<'static, Reply>;
}

/// A monotonic clock.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Instant;

    /// Waits until `deadline`; at once if it has passed.
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()>;
}

/// A source of fresh identities.
pub trait Ids: Send + Sync {
    /// A new event id, never given before by any process: a UUID of version 7.
    fn fresh(&self) -> EventId;
}

/// The connections to a database that one kind of work has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// The kind of work: `intake`, `worker`, `operator`, `retention`, `readiness`; or `writer`, `reader`.
    pub lane: &'static str,
    /// So many are in use.
    pub in_use: usize,
    /// So many there may be; who needs one more waits.
    pub limit: usize,
}

/// An event on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Its id, fixed before the first try to store it.
    pub id: EventId,
    /// Its source.
    pub source: SourceName,
    /// The producer's key.
    pub key: IdempotencyKey,
    /// The fingerprint of the body.
    pub fingerprint: Fingerprint,
    /// The headers to forward, encoded by [`crate::headers`].
    pub headers: Bytes,
    /// The body, byte for byte.
    pub body: Bytes,
    /// If it is new, it is to be claimed in the same moment, for so long.
    pub lease: Option<Duration>,
}

impl NewEvent {
    /// The memory that this event's bytes take.
    #[must_use]
    pub fn size(&self) -> usize {
        self.headers.len() + self.body.len()
    }
}

/// Everything that is known of one event, by the database's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The event.
    pub id: EventId,
    /// Its source. Kept as text: a source may have left the configuration since.
    pub source: String,
    /// The producer's key.
    pub key: String,
    /// When it was stored.
    pub received_at: Timestamp,
    /// Where it stands.
    pub status: Status,
    /// The newest attempt that was claimed; 0 before the first.
    pub attempt: Attempt,
    /// The attempt after which the present budget counts; `None` once it is delivered.
    pub budget_from: Option<Attempt>,
    /// When it is next due; `None` while it is being processed and once it has ended.
    pub next_attempt_at: Option<Timestamp>,
    /// When it ended; `None` before that.
    pub settled_at: Option<Timestamp>,
    /// Why it was dead-lettered; `None` unless it is.
    pub reason: Option<Reason>,
    /// Its attempts, oldest first.
    pub history: Vec<AttemptEntry>,
}

/// One attempt of an event's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptEntry {
    /// Its number.
    pub attempt: Attempt,
    /// When it ended, or was found to be lost.
    pub ended_at: Timestamp,
    /// How long it took; `None` if it was lost.
    pub took: Option<Duration>,
    /// The judgement on it.
    pub verdict: Verdict,
    /// The response's status code, if a response came.
    pub status_code: Option<u16>,
    /// Why no complete reply came, in the words of [`surehook_core::verdict::DeliveryError`].
    pub error: Option<String>,
    /// The first bytes of the response's body.
    pub excerpt: Bytes,
}

/// What became of a redrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redriven {
    /// The event is queued again.
    Queued,
    /// The event has not ended as it would have to have; this is where it stands.
    StandsElsewhere(Status),
    /// The event was delivered, and its payload has been erased since.
    Erased,
    /// There is no such event.
    NotFound,
}

/// How long events are kept after they ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Delivered events.
    pub delivered: Duration,
    /// Dead-lettered events.
    pub dead_lettered: Duration,
}

/// What one step of pruning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// So many events were deleted.
    pub deleted: u64,
    /// Where it ended.
    pub reached: Reached,
}

/// What one step of erasing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erased {
    /// The payloads of so many events were erased.
    pub erased: u64,
    /// Where it ended.
    pub reached: Reached,
}

/// Why a call to the store did not do what was asked.
///
/// Only [`StoreError::Unknown`] leaves open whether it was done; after every other error nothing was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, has no connection to spare, cannot write, or has another schema.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database gave up this transaction in favour of others (deadlock, serialization failure, lock time-out).
    #[error("the database gave way to another transaction: {0}")]
    Conflict(String),
    /// The database refuses what it was given; one row may be to blame for its whole batch.
    #[error("the database refused the data: {0}")]
    Rejected(String),
    /// The connection broke, or the time ran out, after the statement was sent: it may have been committed.
    #[error("whether the database committed is unknown: {0}")]
    Unknown(String),
}
