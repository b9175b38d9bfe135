//! The inputs, actions and settings of a worker. Plain data; the decisions are in the parent
//! module.

use super::claims::{Claim, Claims, Demand, Settlement};
use crate::breaker::Breaker;
use crate::source::{Policy, SourceName};
use crate::time::Instant;
use crate::verdict::Reply;
use alloc::vec::Vec;
use core::time::Duration;

/// The maximum number of events in one claim, over all sources, and of settlements in one batch.
pub const BATCH_ROWS: u32 = 512;
pub(super) const BATCH: usize = BATCH_ROWS as usize;

/// If at least this number of settlements waits, a batch is written without waiting for
/// `settle_pace`.
pub const FULL_ROWS: u32 = 128;
pub(super) const FULL: usize = FULL_ROWS as usize;

/// How long after [`Input::Reconfigured`] a store call of the same process may start that claims
/// events on an old offer.
pub const OFFERS_END_WITHIN: Duration = Duration::from_secs(1);

/// The limits and intervals of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The poll interval for idle sources while there is or recently was work in other sources.
    pub poll_busy: Duration,
    /// The longest poll interval, which is reached after repeated polls that found no work.
    pub poll_idle: Duration,
    /// The minimum interval between two claims. Under load it makes each claim larger.
    pub claim_pace: Duration,
    /// The minimum interval between two batches of settlements. It does not apply if at least
    /// [`FULL_ROWS`] settlements wait, or during a shutdown. It delays no delivery.
    pub settle_pace: Duration,
    /// The first wait after a failure of the store. Doubled with each further failure.
    pub store_retry_initial: Duration,
    /// The longest wait after a failure of the store.
    pub store_retry_max: Duration,
    /// How long deliveries are suspended when this process lacks a resource to send one. Doubled
    /// each time, until a delivery is sent.
    pub shortage_initial: Duration,
    /// The longest such suspension.
    pub shortage_max: Duration,
    /// The maximum size in bytes of all events that the worker holds. A single event may exceed it.
    /// The module `memory` shares it between the sources, and says what an event counts with at least.
    pub max_held_bytes: usize,
    /// Any number. Workers with different seeds have different jitter.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            poll_busy: Duration::from_millis(100),
            poll_idle: Duration::from_secs(1),
            claim_pace: Duration::from_millis(2),
            settle_pace: Duration::from_millis(20),
            store_retry_initial: Duration::from_millis(50),
            store_retry_max: Duration::from_secs(5),
            shortage_initial: Duration::from_millis(100),
            shortage_max: Duration::from_secs(5),
            max_held_bytes: 64 << 20,
            seed: 0,
        }
    }
}

/// Identifies one delivery between [`Action::Deliver`] and [`Input::Finished`]. A worker never
/// reuses a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What happened. Each result is reported once, for an action that asked for it. Results that arrive
/// after the worker has cut off a delivery or is over are ignored.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// These sources may have new events.
    Woken(Vec<SourceName>),
    /// The claim succeeded.
    Claimed(Claims),
    /// The claim failed, or its outcome is unknown. Events that it may have claimed become
    /// claimable when their leases end.
    ClaimFailed,
    /// These events were claimed for this worker on insert, as an [`Action::Offer`] allowed.
    Handed {
        /// The time before they were sent to the store. Their leases are counted from here.
        since: Instant,
        /// The claimed events.
        claims: Vec<Claim>,
    },
    /// A delivery ended.
    Finished {
        /// The delivery that ended.
        ticket: Ticket,
        /// The result of the delivery.
        reply: Reply,
    },
    /// The settlements were committed, except those that were refused as stale.
    Settled,
    /// The settlements failed, or their outcome is unknown.
    SettleFailed,
    /// The configuration was read again: from now on these are the sources and their policies. It
    /// has no effect during the shutdown. All offers end; events that were handed over on an offer
    /// before must be reported before this.
    ///
    /// The driver ends the offers first, and takes the time of this input after that. Store calls
    /// in flight may still claim events on an old offer, and so may calls that start within
    /// [`OFFERS_END_WITHIN`]: the intake may have read its offers just before.
    Reconfigured {
        /// The sources of the new configuration.
        sources: Vec<(SourceName, Policy)>,
        /// The new [`Settings::max_held_bytes`].
        max_held_bytes: usize,
    },
    /// Stop claiming, release unsent events, and finish. All offers end. Events that were handed
    /// over on an offer must be reported before this.
    ShutDown {
        /// When deliveries in flight are cut off.
        cut_off_at: Instant,
        /// The worker finishes by this time, even if settlements are not written.
        give_up_at: Instant,
    },
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Claim due events in the store. Report the result with [`Input::Claimed`] or
    /// [`Input::ClaimFailed`].
    Claim(Vec<Demand>),
    /// Until the next offer for this source, up to this number of its new events may be claimed for
    /// this worker on insert. They are reported with [`Input::Handed`].
    Offer {
        /// The source of the offer.
        source: SourceName,
        /// The maximum number of events. Events that are handed over use up the offer. The next
        /// offer does not account for events that were handed over before it and are not reported
        /// yet.
        room: u32,
        /// The maximum total size of the events in bytes.
        bytes: usize,
        /// How long the claim holds each event.
        lease: Duration,
    },
    /// Send one event. Report the result with [`Input::Finished`] by its deadline.
    Deliver(Dispatch),
    /// Write these settlements. Report the result with [`Input::Settled`] or
    /// [`Input::SettleFailed`].
    Settle(Vec<Settlement>),
    /// A delivery could not be sent, because this process lacks a resource. Deliveries and claims
    /// are suspended. For the log.
    Suspended {
        /// The duration, counted from now.
        wait: Duration,
    },
    /// A circuit breaker changed its state. For the log and the metrics.
    Breaker(SourceName, Breaker),
    /// These settlements were abandoned: their leases ended, or the time for the shutdown was over,
    /// before they could be written. The events are claimable when their leases have ended, and may
    /// be delivered twice. For the log.
    Abandoned(Vec<Settlement>),
    /// The worker holds nothing any more, or the time for the shutdown is over. The last action.
    Done,
}

/// An event to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// Identifies the delivery in [`Input::Finished`].
    pub ticket: Ticket,
    /// The claimed event.
    pub claim: Claim,
    /// When the delivery must have ended. The lease ends at least [`crate::source::SETTLE_GRACE`]
    /// later.
    pub deadline: Instant,
}

/// Why a worker has a step at the time of [`Worker::wake_at`](super::Worker::wake_at).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// There is an event to deliver and a free slot.
    Deliver,
    /// A batch can be settled.
    Settle,
    /// A source with work, or possibly with work, has capacity.
    Claim,
    /// Sources without work are polled again.
    Poll,
    /// An event has waited in memory as long as its lease allows.
    Release,
    /// A change of a breaker or a suspension must be reported.
    Tell,
    /// The offered capacity of a source changed.
    Offer,
    /// A source's rate limit allows the next delivery.
    Rate,
    /// A source's breaker becomes half-open.
    HalfOpen,
    /// A suspension ends, and deliveries are tried again.
    Resume,
    /// Deliveries in flight must be cut off, because of the shutdown.
    CutOff,
    /// The time for the shutdown is over.
    GiveUp,
    /// The shutdown is complete.
    Done,
}

/// When a worker must be polled again, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Poll at this time or earlier. In the past if an action is ready.
    pub at: Instant,
    /// The step that is due then.
    pub reason: Step,
}

/// What a worker holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Deliveries in flight.
    pub in_flight: usize,
    /// Claimed events that wait for a free slot.
    pub ahead: usize,
    /// Settlements that are not known to be committed.
    pub unsettled: usize,
    /// The bytes of the events in flight and of those that wait for a slot.
    pub held_bytes: usize,
}
