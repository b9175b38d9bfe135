//! What a worker is told, what it asks for, and what bounds it. Plain data; the decisions are in the parent module.

use super::exchange::{Claim, Claims, Demand, Settlement};
use crate::breaker::Breaker;
use crate::source::SourceName;
use crate::time::Instant;
use crate::verdict::Reply;
use alloc::vec::Vec;
use core::time::Duration;

/// The most events of one claim, over all sources, and the most settlements of one batch.
pub const BATCH_ROWS: u32 = 512;
pub(super) const BATCH: usize = BATCH_ROWS as usize;

/// So many settlements are written without waiting for more.
pub const FULL_ROWS: u32 = 128;
pub(super) const FULL: usize = FULL_ROWS as usize;

/// What bounds and paces one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often an idle source is asked for while there is work elsewhere or was a moment ago.
    pub poll_busy: Duration,
    /// How often it is asked for at the least, when nothing has come for long.
    pub poll_idle: Duration,
    /// A claim follows the one before after this time at the soonest, so that under load each brings more.
    pub claim_pace: Duration,
    /// A batch of settlements follows the one before after this time at the soonest, unless it has [`FULL_ROWS`] or the
    /// worker is shutting down. No delivery waits for it.
    pub settle_pace: Duration,
    /// The first wait after the store failed; doubled each time.
    pub store_retry_initial: Duration,
    /// The longest wait after the store failed.
    pub store_retry_max: Duration,
    /// How long deliveries are suspended when one could not be sent for want of a resource of this process; doubled each
    /// time that none could be sent since.
    pub shortage_initial: Duration,
    /// The longest time for which deliveries are suspended so.
    pub shortage_max: Duration,
    /// The limit in bytes of the events that are held; one event may exceed it. How the sources share them is in
    /// `memory`.
    pub max_held_bytes: usize,
    /// Sets this worker's waits apart from those of others. Any number.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            poll_busy: Duration::from_millis(100),
            poll_idle: Duration::from_secs(1),
            claim_pace: Duration::from_millis(2),
            settle_pace: Duration::from_millis(5),
            store_retry_initial: Duration::from_millis(50),
            store_retry_max: Duration::from_secs(5),
            shortage_initial: Duration::from_millis(100),
            shortage_max: Duration::from_secs(5),
            max_held_bytes: 64 << 20,
            seed: 0,
        }
    }
}

/// Names one delivery between [`Action::Deliver`] and [`Input::Finished`]. Never used twice by one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// These sources may have something new.
    Woken(Vec<SourceName>),
    /// The claim succeeded.
    Claimed(Claims),
    /// The claim failed, or its outcome is unknown. What it may have claimed comes back when its lease ends.
    ClaimFailed,
    /// These events were claimed for this worker as they were stored, on an [`Action::Offer`].
    Handed {
        /// Before they were sent to the store: their leases are counted from here.
        since: Instant,
        /// The events.
        claims: Vec<Claim>,
    },
    /// A delivery ended.
    Finished {
        /// The delivery.
        ticket: Ticket,
        /// What came back.
        reply: Reply,
    },
    /// The settlements were written, apart from those that were refused as stale.
    Settled,
    /// The settlements failed, or their outcome is unknown.
    SettleFailed,
    /// Stop claiming, give back what has not been sent, and finish. No offer holds any more; what was handed over on one
    /// is told before this.
    ShutDown {
        /// Deliveries that are still in flight then are cut off.
        cut_off_at: Instant,
        /// The worker is done then at the latest, whatever is unwritten.
        give_up_at: Instant,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Ask the store for due events, and answer with [`Input::Claimed`] or [`Input::ClaimFailed`].
    Claim(Vec<Demand>),
    /// From now on, until the next offer for this source, so many of its events may be claimed for this worker in the
    /// moment in which they are stored, and given to it with [`Input::Handed`]. None of them has to be.
    Offer {
        /// The source.
        source: SourceName,
        /// The limit. What is handed over uses the offer up; the next offer counts without what was handed over until
        /// then and was not told yet.
        room: u32,
        /// The limit of their bytes together.
        bytes: usize,
        /// How long the claim holds each event.
        lease: Duration,
    },
    /// Send one event, and answer with [`Input::Finished`] at its deadline at the latest.
    Deliver(Delivery),
    /// Write these settlements, and answer with [`Input::Settled`] or [`Input::SettleFailed`].
    Settle(Vec<Settlement>),
    /// A delivery could not be sent for want of a resource of this process: nothing is sent or claimed for this long. For
    /// the log.
    Suspended {
        /// From now on.
        wait: Duration,
    },
    /// A source's breaker has another state now. For the log, and for whoever asks.
    Breaker(SourceName, Breaker),
    /// These settlements could not be written while their leases lasted, and are given up: the events are claimable
    /// again, and may be delivered twice. For the log.
    Abandoned(Vec<Settlement>),
    /// Nothing is held any more, or the time to shut down is over. The last action.
    Done,
}

/// One event to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Names it in [`Input::Finished`].
    pub ticket: Ticket,
    /// The event.
    pub claim: Claim,
    /// When the reply must be there. The lease outlives this by [`crate::source::SETTLE_GRACE`] at least.
    pub deadline: Instant,
}

/// Why a worker will act at the time that [`Worker::wake_at`](super::Worker::wake_at) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WakeReason {
    /// There is something to deliver and a slot for it.
    Deliver,
    /// A batch can be settled.
    Settle,
    /// A source that is known to have work has room.
    Claim,
    /// Sources that had nothing are asked again.
    Poll,
    /// An event has waited in memory for as long as its lease allows.
    Release,
    /// A source's breaker has another state, or deliveries are suspended, which is to be told.
    Tell,
    /// There is room for another number of new events.
    Offer,
    /// A source's rate lets its next delivery begin.
    Rate,
    /// A source's breaker lets one event through.
    HalfOpen,
    /// Deliveries were suspended for want of a resource, and are tried again.
    Resume,
    /// The shutdown's time for deliveries ends.
    CutOff,
    /// The shutdown's time ends.
    GiveUp,
    /// Everything is finished.
    Done,
}

/// When a worker wants to be polled again, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Not later than this. In the past if an action is ready.
    pub at: Instant,
    /// What will be due.
    pub reason: WakeReason,
}

/// How much a worker holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Deliveries in flight.
    pub in_flight: usize,
    /// Claimed events that wait for a slot.
    pub ahead: usize,
    /// Settlements that are not known to be written.
    pub unsettled: usize,
    /// The bytes of the events that are in flight or wait for a slot.
    pub held_bytes: usize,
}
