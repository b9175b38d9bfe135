//! One source's part of a worker: its slots, the events that wait for one, and how much to ask for.

use super::exchange::Claim;
use super::memory::Origin;
use crate::breaker::Breaker;
use crate::rate::Pace;
use crate::source::{Policy, SourceName};
use crate::time::Instant;
use alloc::collections::VecDeque;
use core::time::Duration;

/// A claim-ahead never exceeds so many times the concurrency.
const AHEAD_FACTOR: u32 = 4;

/// The least that a lane with work is taken to want, where not every lane can get all that it has room for.
const LEAST_APPETITE: u32 = 4;

/// With a rate, no more is claimed than may begin in so many seconds. Shorter than [`crate::source::WAIT_ALLOWANCE`].
const RATED_AHEAD_SECONDS: u32 = 2;

/// What is known of a source's due events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expects {
    /// The last claim brought none, and nobody named the source since.
    Nothing,
    /// It was not asked for a while: a poll is due, or the worker has just started.
    Perhaps,
    /// The last claim brought some, or the source was named since.
    Work,
}

/// One source within a worker.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) source: SourceName,
    pub(super) policy: Policy,
    /// Claimed events that wait for a slot, the one whose lease ends first in front.
    pub(super) ahead: VecDeque<Held>,
    /// Slots that are taken.
    pub(super) in_flight: u32,
    /// Whether there may be something to claim.
    pub(super) expects: Expects,
    /// Deliveries that ended while the present claim has been under way.
    pub(super) completed: u32,
    /// Events that the present claim asks for, or the last one asked for.
    wanted: u32,
    /// Events that the present claim's answer brought, or the last one's.
    pub(super) came: u32,
    /// The last answer brought fewer events than were asked for: no others were due.
    is_drained: bool,
    /// What is left of the last offer that was told: events, and their bytes.
    pub(super) offered: Offered,
    /// The size of the source's next event, if it did not fit into the last claim.
    pub(super) next_size: Option<usize>,
    /// Whether the source is asked for although its next event did not fit: it may be another by now.
    pub(super) looks_again: bool,
    /// Whether the claim that is under way asks for the source.
    pub(super) is_asked: bool,
    /// About how many bytes one of its events takes.
    pub(super) typical_size: usize,
    /// Whether the lane stands in the worker's queue of those that can deliver.
    pub(super) in_turn: bool,
    /// Whether the downstream is taken to be well.
    pub(super) breaker: Breaker,
    /// Whether the next delivery has to wait for its time, by the source's rate.
    pub(super) is_ahead_of_its_rate: bool,
    pace: Pace,
    /// Whether the source was named while its claim was under way: the claim may have looked too early.
    rung: bool,
    /// About how many deliveries end from one claim to the next, when the next is sent as soon as it may be.
    consumed: u32,
}

/// What may be handed over: so many events, of so many bytes together.
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
    pub(super) lease_ends: Instant,
    /// A delivery that starts later could outlive the lease.
    pub(super) start_by: Instant,
}

impl Lane {
    pub(super) fn new(source: SourceName, policy: Policy) -> Self {
        Self {
            source,
            policy,
            ahead: VecDeque::new(),
            in_flight: 0,
            expects: Expects::Perhaps,
            completed: 0,
            wanted: 0,
            came: 0,
            is_drained: false,
            offered: Offered::default(),
            next_size: None,
            looks_again: false,
            is_asked: false,
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
        !self.ahead.is_empty()
            && self.in_flight < self.breaker.slots(self.policy.concurrency)
            && !self.is_ahead_of_its_rate
    }

    /// How many events to ask for: the slots, plus about what is consumed from one claim to the next, less what is
    /// held. A slow downstream gets next to nothing ahead, so that no process hoards; a fast one is kept busy. While the
    /// breaker is not closed there are fewer slots, and nothing is claimed ahead.
    pub(super) fn demand(&self) -> u32 {
        let ahead = if self.breaker.is_closed() {
            self.consumed.min(self.policy.concurrency.saturating_mul(AHEAD_FACTOR))
        } else {
            0
        };
        let held =
            self.in_flight.saturating_add(u32::try_from(self.ahead.len()).unwrap_or(u32::MAX));
        // What a rate lets begin within this time; more would wait in memory for longer than its lease allows.
        let in_time = self
            .policy
            .rate
            .map_or(u32::MAX, |rate| rate.get().saturating_mul(RATED_AHEAD_SECONDS));
        self.breaker
            .slots(self.policy.concurrency)
            .saturating_add(ahead)
            .min(in_time)
            .saturating_sub(held)
    }

    /// How many events to ask for where there are more lanes than a claim can ask in full: so few that those with little
    /// to do leave the claim to those with much, and twice what came last, so that it grows while there is more.
    pub(super) fn appetite(&self) -> u32 {
        match self.expects {
            Expects::Work => self.came.saturating_mul(2).max(LEAST_APPETITE),
            Expects::Nothing | Expects::Perhaps => 1,
        }
    }

    /// How many events may be handed over as they are stored: as many as there is room for, while the downstream is well
    /// and nothing older is known to wait. A claim that is under way is not waited for: it was sent for what little was
    /// stored without an offer, and if offers stopped for it, as much would be stored so meanwhile. So for the length of a
    /// claim there may come twice of what there is room for.
    pub(super) fn offer(&self) -> u32 {
        if self.is_drained && self.breaker.is_closed() { self.demand() } else { 0 }
    }

    /// A delivery begins. Answers when the next may, if that is later than `now`.
    pub(super) fn begins(&mut self, now: Instant) -> Option<Instant> {
        self.in_flight += 1;
        let next = self.pace.start(now, self.policy.rate?);
        self.is_ahead_of_its_rate = next > now;
        self.is_ahead_of_its_rate.then_some(next)
    }

    /// A delivery showed whether the downstream is well. Answers whether the breaker has another state.
    pub(super) fn learned(&mut self, now: Instant, healthy: bool) -> bool {
        let before = self.breaker;
        self.breaker = before.after(now, healthy, self.policy.breaker, self.policy.concurrency);
        before.as_str() != self.breaker.as_str()
    }

    /// The source was named as having something new.
    pub(super) fn ring(&mut self) {
        self.expects = Expects::Work;
        self.rung = true;
    }

    /// A claim for this source goes out, for at most so many events.
    pub(super) fn asked(&mut self, wanted: u32) {
        self.wanted = wanted;
        self.completed = 0;
        self.came = 0;
        self.rung = false;
        self.is_asked = true;
        self.looks_again = false;
    }

    /// About how many events fit into so many bytes, at least one. One more than that, so that the store tells the size of
    /// the first that does not fit.
    pub(super) fn fit_into(&self, bytes: usize) -> u32 {
        bytes
            .checked_div(self.typical_size)
            .map_or(u32::MAX, |events| u32::try_from(events).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// An event of the source takes so many bytes.
    pub(super) fn weighed(&mut self, size: usize) {
        self.typical_size =
            self.typical_size.midpoint(size) + usize::from(self.typical_size < size);
    }

    /// The claim's answer is in, after its round trip; claims follow each other at `pace` at the fastest. Nothing came:
    /// the source is asked again at the next poll. Fewer came than were asked for: there may be more all the same, since
    /// rows that others were just locking are skipped. What did not fit is known to be due.
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
