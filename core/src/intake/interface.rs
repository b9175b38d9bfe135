//! The inputs, actions and settings of an intake.

use super::Capacity;
use crate::admission::{Admission, Fingerprint, NotStored, OnKeyReuse, Stored};
use crate::id::EventId;
use crate::key::IdempotencyKey;
use crate::source::SourceName;
use crate::time::Instant;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;
use jiff::Timestamp;

/// The maximum number of requests in one batch.
pub const BATCH_ROWS: usize = 256;
/// The maximum size of one batch in bytes. A single event may exceed it.
pub const BATCH_BYTES: usize = 4 << 20;
/// How often a part is handed to the store in all, if each call ends in a conflict or an unknown
/// outcome. Then its requests are answered as not stored, or as possibly stored.
pub const STORE_ATTEMPTS: u32 = 3;

/// The limits of an intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The maximum number of waiting requests. A request counts from its submission until the
    /// store's last result for it.
    pub max_queued: usize,
    /// The maximum number of concurrent calls to the store. At least 1.
    pub batches_at_once: usize,
    /// How long a request waits for its commit. Then the answer is that it may be stored.
    pub request_timeout: Duration,
}

/// Identifies one request of one intake. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// Identifies one call to the store. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub(super) u64);

/// An event that the store has claimed on insert: its request, and when it was stored, by the
/// store's clock.
pub type ClaimedOnInsert = (Ticket, Timestamp);

/// A request that was read and can be stored. The driver holds its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The id of the event, if it is new.
    pub event: EventId,
    /// The source to which it was posted.
    pub source: SourceName,
    /// The producer's idempotency key.
    pub key: IdempotencyKey,
    /// The fingerprint of its body.
    pub fingerprint: Fingerprint,
    /// What the source does with a reused idempotency key.
    pub on_key_reuse: OnKeyReuse,
    /// The bytes of its query, its headers and its body.
    pub size: usize,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A call to the store ended. On success there is one result for each event, in the order of
    /// [`Action::Store`].
    Stored {
        /// The call that ended.
        batch: BatchId,
        /// One result for each event, or why nothing is known to be stored.
        result: Result<Vec<Stored>, StoreFailure>,
    },
    /// The worker's capacity for new events of a source changed.
    Offered {
        /// The source whose capacity changed.
        source: SourceName,
        /// The capacity, in addition to the events that the worker already knows.
        capacity: Capacity,
        /// The lease of an event that is claimed on insert.
        lease: Duration,
    },
    /// The worker took over one event of an [`Action::HandOver`].
    TakenOver {
        /// The event's source.
        source: SourceName,
        /// The event's bytes.
        size: usize,
    },
    /// All offers end. The worker makes new ones.
    OffersWithdrawn,
    /// The worker accepts no more events.
    HandoverClosed,
    /// The worker ended before it could take over these events of an [`Action::HandOver`].
    NotHandedOver(Vec<ClaimedOnInsert>),
    /// The call of one [`Action::Release`] ended, successfully or not.
    Released,
    /// The limit [`Settings::max_queued`] changed. Requests that wait are kept.
    Limited {
        /// The new limit.
        max_queued: usize,
    },
    /// The process shuts down: waiting requests are still stored, new ones are refused.
    ShutDown,
}

/// Why the store did not store a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFailure {
    /// The database is unavailable. Nothing is stored.
    Unavailable,
    /// The transaction was aborted in favour of another one. Nothing is stored.
    Conflict,
    /// The database rejects the data. A single row may be the cause. Nothing is stored.
    Rejected,
    /// The outcome is unknown: the part may be stored.
    Unknown,
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Store these events with one call. An event with a lease is claimed on insert if it is new.
    Store {
        /// Identifies the call in [`Input::Stored`].
        batch: BatchId,
        /// The events, sorted by source and idempotency key. Each pair of them occurs once.
        events: Vec<(Ticket, Option<Duration>)>,
    },
    /// Hand these events over to the worker. The driver needs their bytes for this, so it comes
    /// before their answers.
    HandOver {
        /// When the call began. The leases are counted from here.
        since: Instant,
        /// The claimed events.
        events: Vec<ClaimedOnInsert>,
    },
    /// The worker accepts no more events: release these claims in the store. Like
    /// [`Action::HandOver`], it comes before the answers.
    Release(Vec<ClaimedOnInsert>),
    /// Signal new events of these sources that were not claimed on insert.
    Ring(BTreeSet<SourceName>),
    /// Answer a request and drop it. If it timed out, keep its bytes until [`Action::Forget`].
    Answer {
        /// The request to answer.
        ticket: Ticket,
        /// The result for the producer.
        answer: Result<Admission, Refusal>,
    },
    /// Drop the bytes of a request that timed out: the store's last result for it has arrived.
    Forget(Ticket),
    /// The shutdown is complete. The last action.
    Done,
}

/// Why a request is not acknowledged. In each case the producer can retry it with the same
/// idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `max_queued` requests are waiting.
    #[error("too many requests are waiting to be stored")]
    Overloaded,
    /// The process is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The store's last result did not arrive in time. The event may be stored.
    #[error("the database did not answer in time")]
    TimedOut,
    /// The event is not stored, or may be.
    #[error("the database did not store the event")]
    NotStored(NotStored),
}
