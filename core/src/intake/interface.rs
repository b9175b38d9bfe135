//! What goes into an intake and what comes out of it.

use super::Capacity;
use crate::admission::{Admission, Fingerprint, NotStored, OnKeyReuse, Stored};
use crate::id::EventId;
use crate::key::IdempotencyKey;
use crate::source::SourceName;
use crate::time::Instant;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

/// The most requests of one batch.
pub const BATCH_ROWS: usize = 256;
/// The most bytes of one batch, unless a single event is larger.
pub const BATCH_BYTES: usize = 4 << 20;
/// How often a part is handed to the store before its requests are answered that they are not stored, or may be.
pub const STORE_ATTEMPTS: u32 = 3;

/// How an intake works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most requests that wait at once, from their submission until the store's last result for them.
    pub max_queued: usize,
    /// The most calls to the store at once. At least 1.
    pub batches_at_once: usize,
    /// How long a request waits for its commit before it is answered that it may be stored.
    pub request_timeout: Duration,
}

/// One request of one intake. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// One call to the store. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub(super) u64);

/// A request that was read and may be stored. Its bytes are with the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The id that its event gets if it is new.
    pub event: EventId,
    /// Its source.
    pub source: SourceName,
    /// The producer's idempotency key.
    pub key: IdempotencyKey,
    /// The fingerprint of its body.
    pub fingerprint: Fingerprint,
    /// What its source does with a reused idempotency key.
    pub on_key_reuse: OnKeyReuse,
    /// The bytes of its headers and its body.
    pub size: usize,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A call to the store has ended. On success there is one result for each event, in the order of [`Action::Store`].
    Stored {
        /// The call.
        batch: BatchId,
        /// Its result.
        result: Result<Vec<Stored>, StoreFailure>,
    },
    /// The worker's room for new events of a source has changed.
    Offered {
        /// The source.
        source: SourceName,
        /// The room, besides the events that the worker knows of.
        capacity: Capacity,
        /// The lease of an event that is claimed on insert.
        lease: Duration,
    },
    /// The worker has taken over one event of a [`Action::HandOver`].
    TakenOver {
        /// The event's source.
        source: SourceName,
        /// The event's bytes.
        size: usize,
    },
    /// The worker takes no more events.
    HandoverClosed,
    /// The worker had ended before it could be handed these events of a [`Action::HandOver`].
    NotHandedOver(Vec<Ticket>),
    /// The call of one [`Action::Release`] has ended, with success or not.
    Released,
    /// The process shuts down: requests that wait are still stored, new ones are refused.
    ShutDown,
}

/// Why the store did not store a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFailure {
    /// The database cannot be used. Nothing is stored.
    Unavailable,
    /// The database gave way to another transaction. Nothing is stored.
    Conflict,
    /// The database rejects the data; one row may be the cause. Nothing is stored.
    Rejected,
    /// The part may be stored.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Store these events with one call. An event with a lease is claimed on insert if it is new.
    Store {
        /// Names the call in [`Input::Stored`].
        batch: BatchId,
        /// The events, sorted by source and idempotency key; each pair occurs once.
        events: Vec<(Ticket, Option<Duration>)>,
    },
    /// Hand these events over to the worker. The driver needs their bytes for that, so this comes before their answers.
    HandOver {
        /// When the call began: leases are counted from here.
        since: Instant,
        /// The events.
        events: Vec<Ticket>,
    },
    /// The worker takes no more: give these claims back to the store. The same order holds as for [`Action::HandOver`].
    Release(Vec<Ticket>),
    /// These sources have new events that were not claimed on insert.
    Ring(BTreeSet<SourceName>),
    /// Answer a request, and forget it unless it timed out: then [`Action::Forget`] follows.
    Answer {
        /// The request.
        ticket: Ticket,
        /// The answer.
        answer: Result<Admission, Refusal>,
    },
    /// The store's last result for a request that had timed out is in: forget its bytes.
    Forget(Ticket),
    /// Everything is finished.
    Done,
}

/// Why a request is not acknowledged. In each case the producer may send again with the same idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many requests wait as may.
    #[error("too many requests are waiting to be stored")]
    Overloaded,
    /// The process is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The store's last result did not come in time. The event may be stored.
    #[error("the database did not answer in time")]
    TimedOut,
    /// The store did not store it, or may have.
    #[error("the database did not store the event")]
    NotStored(NotStored),
}
