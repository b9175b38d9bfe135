//! One source within a worker (a queue): its slots, the events that wait for a slot, and how many
//! events to claim.

use super::Lease;
use super::claims::Claim;
use super::interface::OFFERS_END_WITHIN;
use super::memory::Origin;
use crate::breaker::{Breaker, Health};
use crate::rate::Pace;
use crate::source::{Policy, SourceName};
use crate::time::Instant;
use alloc::collections::VecDeque;
use core::time::Duration;

/// Events claimed ahead are at most this many times the concurrency.
const AHEAD_FACTOR: u32 = 4;

/// The minimum appetite of a queue with work, when a claim cannot serve all queues in full.
const LEAST_APPETITE: u32 = 4;

/// With a rate limit, a queue holds at most the events that can start within this time. It must be
/// shorter than [`crate::source::WAIT_ALLOWANCE`].
const RATED_AHEAD_SECONDS: u32 = 2;

/// What is known about a source's due events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expects {
    /// The last claim returned none, and no new events were signalled since.
    Nothing,
    /// A poll of the source is due, or the worker has just started.
    Unknown,
    /// The last claim returned some, or new events were signalled since.
    Work,
}

/// One source within a worker.
#[derive(Debug)]
pub(super) struct SourceQueue {
    pub(super) source: SourceName,
    pub(super) policy: Policy,
    /// Whether the configuration has the source. If it was removed, the queue keeps its last policy
    /// for the deliveries in flight, and gets no events.
    pub(super) is_configured: bool,
    /// Claimed events that wait for a slot. The one whose lease ends first is in front.
    pub(super) ahead: VecDeque<Held>,
    /// The number of slots in use.
    pub(super) in_flight: u32,
    /// How often the breaker has opened.
    pub(super) openings: u64,
    /// How many deliveries in flight began before the breaker last opened.
    stale: u32,
    /// Whether there may be events to claim.
    pub(super) expects: Expects,
    /// The number of deliveries that ended while the present claim was in flight.
    pub(super) completed: u32,
    /// The number of events that the present or last claim asked for.
    wanted: u32,
    /// The number of events that the present or last claim returned.
    pub(super) came: u32,
    /// The last claim returned fewer events than it asked for and held none back. So no others were
    /// due, except rows that were locked at that moment.
    is_drained: bool,
    /// What is left of the last reported offer.
    pub(super) offered: Offered,
    /// The size of the source's next event, if it did not fit into the last claim.
    pub(super) next_size: Option<usize>,
    /// Whether to claim although the next event did not fit: another event may be the next by now.
    pub(super) looks_again: bool,
    /// Whether the claim in flight includes this source.
    pub(super) is_asked: bool,
    /// The lease that the present or last claim asked for.
    asked_lease: Duration,
    /// The leases of the policies before the present one. `None` if there was no other lease.
    former: Option<FormerLeases>,
    /// The approximate size of one of its events in bytes.
    pub(super) typical_size: usize,
    /// Whether the queue is in the worker's queue `deliverable`.
    pub(super) in_turn: bool,
    /// The circuit breaker of the downstream.
    pub(super) breaker: Breaker,
    /// Whether the rate limit delays the next delivery.
    pub(super) is_ahead_of_its_rate: bool,
    pace: Pace,
    /// Whether new events were signalled while the claim was in flight. The claim may have missed
    /// them.
    rung: bool,
    /// The approximate number of deliveries that end from one claim to the next, if claims follow
    /// each other as fast as allowed.
    consumed: u32,
}

/// The leases that a source had under earlier policies.
#[derive(Clone, Copy, Debug)]
struct FormerLeases {
    /// The shortest of them.
    shortest: Duration,
    /// A claim on insert that started later has the lease of the present policy.
    until: Instant,
}

/// The maximum number and total size in bytes of events that may be claimed on insert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offered {
    pub(super) room: u32,
    pub(super) bytes: usize,
}

/// A claimed event that waits for a slot.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) claim: Claim,
    pub(super) origin: Origin,
    /// What the event counts with: see [`super::memory::Memory::take`].
    pub(super) weight: usize,
    pub(super) lease: Lease,
    /// A delivery that starts later could outlive the lease.
    pub(super) start_by: Instant,
}

impl SourceQueue {
    pub(super) fn new(source: SourceName, policy: Policy) -> Self {
        Self {
            source,
            asked_lease: policy.lease(),
            policy,
            is_configured: true,
            ahead: VecDeque::new(),
            in_flight: 0,
            openings: 0,
            stale: 0,
            expects: Expects::Unknown,
            completed: 0,
            wanted: 0,
            came: 0,
            is_drained: false,
            offered: Offered::default(),
            next_size: None,
            looks_again: false,
            is_asked: false,
            former: None,
            typical_size: 0,
            in_turn: false,
            breaker: Breaker::NEW,
            is_ahead_of_its_rate: false,
            pace: Pace::default(),
            rung: false,
            consumed: 0,
        }
    }

    pub(super) fn can_deliver(&self) -> bool {
        !self.ahead.is_empty() && self.in_flight < self.slots() && !self.is_ahead_of_its_rate
    }

    /// The number of deliveries that may be in flight. While the breaker is not closed, those from
    /// before it opened do not count, within the concurrency: a delivery that hangs must not delay the
    /// probe.
    fn slots(&self) -> u32 {
        let concurrency = self.policy.concurrency;
        self.breaker.slots(concurrency).saturating_add(self.stale).min(concurrency)
    }

    /// The number of events to claim: the slots, plus about the number of events that are consumed
    /// from one claim to the next, minus the events held. A slow downstream gets almost nothing
    /// ahead, so that no process hoards events; a fast one is kept busy. While the breaker is not
    /// closed, there are fewer slots, and nothing is claimed ahead. For a removed source, nothing is
    /// claimed.
    pub(super) fn demand(&self) -> u32 {
        if !self.is_configured {
            return 0;
        }
        let ahead = if self.breaker.is_closed() {
            self.consumed.min(self.policy.concurrency.saturating_mul(AHEAD_FACTOR))
        } else {
            0
        };
        let waiting = u32::try_from(self.ahead.len()).unwrap_or(u32::MAX);
        // The number of deliveries that the rate limit lets start in time. More events would wait
        // in memory until their leases no longer cover a delivery. Those in flight have started.
        let in_time = self
            .policy
            .rate
            .map_or(u32::MAX, |rate| rate.get().saturating_mul(RATED_AHEAD_SECONDS));
        self.slots()
            .saturating_add(ahead)
            .saturating_sub(self.in_flight.saturating_add(waiting))
            .min(in_time.saturating_sub(waiting))
    }

    /// The demand of a source when one claim cannot serve all sources in full. For a source with
    /// work, it is twice what the last claim returned, and at least [`LEAST_APPETITE`]. So a busy
    /// source gets most of the claim, and its share doubles with each claim while there is a
    /// backlog. For a source that only may have work, it is 1.
    pub(super) fn appetite(&self) -> u32 {
        match self.expects {
            Expects::Work => self.came.saturating_mul(2).max(LEAST_APPETITE),
            Expects::Nothing | Expects::Unknown => 1,
        }
    }

    /// The number of events to offer for claim on insert: the free capacity, or zero if the
    /// downstream fails or older events are known to wait.
    ///
    /// A claim in flight does not stop offers. It was sent for the few events that were stored
    /// without an offer. If offers stopped until it returned, the same number of new events would
    /// be stored without an offer again. So until it returns, up to twice the capacity can arrive.
    pub(super) fn offer(&self) -> u32 {
        if self.is_drained && self.breaker.is_closed() { self.demand() } else { 0 }
    }

    /// Starts a delivery. Returns when the next one may start, if that is after `now`.
    pub(super) fn begins(&mut self, now: Instant) -> Option<Instant> {
        self.in_flight += 1;
        let next = self.pace.start(now, self.policy.rate?);
        self.is_ahead_of_its_rate = next > now;
        self.is_ahead_of_its_rate.then_some(next)
    }

    /// A delivery ended that began after this number of openings of the breaker. If its end showed the
    /// health of the downstream, the breaker learns it, unless it has opened since. Returns whether the
    /// breaker changed its state.
    pub(super) fn ended(&mut self, now: Instant, openings: u64, health: Option<Health>) -> bool {
        self.in_flight -= 1;
        if openings != self.openings {
            self.stale -= 1;
            return false;
        }
        let before = self.breaker;
        let Some(health) = health.filter(|_| self.is_configured) else { return false };
        self.breaker = before.after(now, health, self.policy.breaker, self.policy.concurrency);
        let has_moved = before.as_str() != self.breaker.as_str();
        if has_moved && matches!(self.breaker, Breaker::Open { .. }) {
            self.openings += 1;
            self.stale = self.in_flight;
        }
        has_moved
    }

    /// Replaces the policy, or adds a source again that was removed. Returns whether the breaker
    /// changed its state. The events in `ahead` still have their old times to start.
    pub(super) fn reconfigure(&mut self, now: Instant, policy: Policy) -> bool {
        let lease = self.policy.lease();
        if lease != policy.lease() {
            let shortest = self.former.map_or(lease, |former| former.shortest.min(lease));
            self.former = Some(FormerLeases { shortest, until: now + OFFERS_END_WITHIN });
        }
        if self.policy.rate != policy.rate {
            self.forget_rate();
        }
        if !self.is_configured {
            self.is_configured = true;
            self.is_drained = false;
            self.next_size = None;
            self.expects = Expects::Unknown;
        }
        let before = self.breaker;
        self.breaker = before.under(now, policy.breaker);
        self.policy = policy;
        let has_moved = before.as_str() != self.breaker.as_str();
        if has_moved {
            // Nothing was claimed while the breaker was open, so events may be due.
            self.expects = Expects::Work;
        }
        has_moved
    }

    /// The source was removed from the configuration. If it is added again, its breaker and its rate
    /// limit start new.
    pub(super) fn remove(&mut self) {
        self.is_configured = false;
        self.breaker = Breaker::NEW;
        self.forget_rate();
    }

    fn forget_rate(&mut self) {
        self.pace = Pace::default();
        self.is_ahead_of_its_rate = false;
    }

    /// The lease of an event that was claimed at `claimed_at`. It may be shorter than in the store,
    /// but not longer.
    pub(super) fn lease_of(&self, origin: Origin, claimed_at: Instant) -> Duration {
        let present = self.policy.lease();
        match (origin, self.former) {
            (Origin::Claim, _) => self.asked_lease,
            (Origin::Offer, Some(FormerLeases { shortest, until })) if claimed_at <= until => {
                present.min(shortest)
            }
            (Origin::Offer, _) => present,
        }
    }

    /// When the delivery of an event with this lease must have started. An event from a policy with
    /// a longer lease waits no longer than one of the present policy. So no event waits until its
    /// lease ends behind another one.
    pub(super) fn start_by(&self, lease: Lease) -> Instant {
        lease.ends.min(lease.claimed_at + self.policy.lease()).before(self.policy.cover())
    }

    /// New events of the source were signalled.
    pub(super) fn ring(&mut self) {
        self.expects = Expects::Work;
        self.rung = true;
    }

    /// A claim for at most `wanted` events of this source is sent.
    pub(super) fn asked(&mut self, wanted: u32) {
        self.wanted = wanted;
        self.asked_lease = self.policy.lease();
        self.completed = 0;
        self.came = 0;
        self.rung = false;
        self.is_asked = true;
        self.looks_again = false;
    }

    /// The approximate number of events that fit into `bytes`, plus one, so that the store reports
    /// the size of the first event that does not fit.
    pub(super) fn fit_into(&self, bytes: usize) -> u32 {
        bytes
            .checked_div(self.typical_size)
            .map_or(u32::MAX, |events| u32::try_from(events).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// Updates the typical size with the size of an event.
    pub(super) fn weighed(&mut self, size: usize) {
        self.typical_size =
            self.typical_size.midpoint(size) + usize::from(self.typical_size < size);
    }

    /// The claim returned after `round_trip`; claims are at least `pace` apart. If no events came,
    /// the source is claimed again at the next poll. Even if fewer came than requested, there
    /// may be others, because the claim skips rows that are locked at the moment. An event that did
    /// not fit is known to be due.
    pub(super) fn answered(&mut self, round_trip: Duration, pace: Duration) {
        let (completed, cycle) = (u128::from(self.completed), round_trip.max(pace));
        let consumed =
            (completed * cycle.as_nanos()).checked_div(round_trip.as_nanos()).unwrap_or(completed);
        self.consumed = self.consumed.midpoint(u32::try_from(consumed).unwrap_or(u32::MAX));
        self.is_asked = false;
        let is_held_back = self.next_size.is_some();
        self.expects = if self.came > 0 || self.rung || is_held_back {
            Expects::Work
        } else {
            Expects::Nothing
        };
        self.is_drained = self.came < self.wanted && !is_held_back;
    }
}
