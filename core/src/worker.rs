//! The state machine of one process's worker. It decides which events to claim, what to deliver
//! when, and what to write back. It holds no socket, no connection and no clock. Its memory may be
//! lost at any time, because a lease covers everything in it.
//!
//! The contract of the driver, as in sans-I/O protocol libraries:
//!
//! 1. Report what happened: [`Worker::handle`].
//! 2. Carry out the actions: call [`Worker::poll`] until it returns `None`.
//! 3. Sleep until the next input, at most until [`Worker::wake_at`]. A spurious wake-up is
//!    harmless.
//!
//! `poll` and `wake_at` use the same list of due steps (`next_step`), so they cannot disagree.
//! While an action is ready, `wake_at` is in the past. After waking at a time, either an action is
//! ready or `wake_at` is later than that time.
//!
//! ```
//! use core::time::Duration;
//! use surehook_core::source::{Policy, SourceName};
//! use surehook_core::time::Instant;
//! use surehook_core::worker::claims::Claims;
//! use surehook_core::worker::{Action, Input, Settings, Step, Worker};
//!
//! let at = |milliseconds| Instant::from_origin(Duration::from_millis(milliseconds));
//! let sources = [(SourceName::parse("orders").unwrap(), Policy::default())];
//! let mut worker = Worker::new(at(0), Settings::default(), sources);
//! // It knows of no work yet, so its first claim asks for one event for each slot.
//! let Some(Action::Claim(demands)) = worker.poll(at(0)) else { unreachable!() };
//! assert_eq!(demands[0].limit, Policy::default().concurrency);
//! // No event is due, so it offers its capacity for claims on insert.
//! worker.handle(at(1), Input::Claimed(Claims::default()));
//! assert!(matches!(worker.poll(at(1)), Some(Action::Offer { room: 16, .. })));
//! // It claims again when it is woken for new events, or at the next poll.
//! assert_eq!(worker.poll(at(1)), None);
//! assert_eq!(worker.wake_at().map(|wake| wake.reason), Some(Step::Poll));
//! ```

mod agenda;
mod claiming;
pub mod claims;
mod interface;
mod memory;
mod queue;
mod reconfiguring;
mod shortage;
#[cfg(test)]
mod tests;

use crate::backoff::{mix, share};
use crate::breaker::Breaker;
use crate::event::Outcome;
use crate::source::{Policy, SourceName};
use crate::time::Instant;
use crate::verdict::{DeliveryError, Reply, decide, health};
use agenda::Agenda;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use claims::{AttemptRecord, Claim, Settlement};
use core::time::Duration;
use interface::{BATCH, FULL};
use memory::{Memory, Origin};
use queue::{Expects, Held, Offered, SourceQueue};
use shortage::Shortage;

pub use interface::{
    Action, BATCH_ROWS, Dispatch, FULL_ROWS, Input, Load, OFFERS_END_WITHIN, Settings, Step,
    Ticket, Wake,
};

/// The worker of one process. See the [module](self).
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    queues: Vec<SourceQueue>,
    /// The queue of each source, also of those that were removed from the configuration.
    by_source: BTreeMap<SourceName, usize>,
    phase: Phase,
    next_ticket: u64,
    in_flight: BTreeMap<Ticket, InFlight>,
    /// Deliveries that were cut off and whose results have not arrived.
    cut_off: BTreeSet<Ticket>,
    unsettled: VecDeque<Unsettled>,
    settling: Option<Vec<Unsettled>>,
    abandoned: Vec<Settlement>,
    claiming: Option<Claiming>,
    /// The earliest times of the next claim and of the next batch of settlements.
    claim_after: Instant,
    settle_after: Instant,
    /// Where the next claim starts, among the queues with work (`claim_from`) and among those that
    /// may have some (`probe_from`). So a full claim starves no source. `seats` counts the seats of
    /// all claims so far.
    claim_from: usize,
    probe_from: usize,
    seats: u32,
    store: StoreHealth,
    shortage: Shortage,
    polling: Polling,
    memory: Memory,
    /// Sets of queues, derived from their states by [`Self::refresh`]. `deliverable`: can start a
    /// delivery, in turn. `askable`: have capacity and work. `probable`: have capacity and may have
    /// work. `dormant`: have capacity but no work, and wait for the next poll. `expiring`: hold an
    /// event that must start by that time.
    deliverable: VecDeque<usize>,
    askable: BTreeSet<usize>,
    probable: BTreeSet<usize>,
    dormant: BTreeSet<usize>,
    expiring: Agenda,
    /// The queues whose offer differs from the last one reported, and whether offers are made at
    /// all.
    offering: BTreeSet<usize>,
    makes_offers: bool,
    /// When the rate limit of a queue allows its next delivery, and when its open breaker becomes
    /// half-open.
    rated: Agenda,
    opening_half: Agenda,
    /// Changes of breakers that are not reported yet.
    moved_breakers: VecDeque<(SourceName, Breaker)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Draining {
        cut_off_at: Instant,
        give_up_at: Instant,
    },
    /// The time for the shutdown is over. Calls in flight are abandoned.
    Over,
    Done,
}

/// A delivery that the driver carries out.
#[derive(Debug)]
struct InFlight {
    queue: usize,
    started_at: Instant,
    /// How often the breaker of its source had opened.
    openings: u64,
    lease: Lease,
    size: usize,
    /// What the event counts with: see [`Memory::take`].
    weight: usize,
    origin: Origin,
    /// The claim without its bytes, which the driver holds.
    claim: Claim,
}

/// A settlement that is not known to be committed.
#[derive(Clone, Debug)]
struct Unsettled {
    settlement: Settlement,
    ended_at: Instant,
    lease_ends: Instant,
}

/// The lease of a claimed event, by this process's clock.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// The time before the claim was sent.
    claimed_at: Instant,
    ends: Instant,
}

#[derive(Debug)]
struct Claiming {
    /// The time before the claim was sent. Leases are counted from here, so they end earlier in
    /// memory than in the store.
    sent_at: Instant,
    asked: Vec<usize>,
}

/// Whether calls of the store fail. Claims and settlements can fail separately, for example if a
/// right is missing or one kind is too slow. A success of one says nothing about the other.
#[derive(Clone, Copy, Debug, Default)]
struct StoreHealth {
    claims: Failing,
    settlements: Failing,
}

impl StoreHealth {
    fn fails(self) -> bool {
        self.claims.failures > 0 || self.settlements.failures > 0
    }
}

/// The failures of one kind of call since its last success.
#[derive(Clone, Copy, Debug, Default)]
struct Failing {
    failures: u32,
    retry_at: Instant,
}

impl Failing {
    /// When the call may be sent. In the past if its last one succeeded.
    fn ready_at(self) -> Instant {
        if self.failures == 0 { Instant::ZERO } else { self.retry_at }
    }
}

#[derive(Clone, Copy, Debug)]
struct Polling {
    at: Instant,
    interval: Duration,
    count: u64,
}

impl Worker {
    /// Creates a worker for these sources at `now`. It knows of no work yet, so its first claim
    /// covers all sources.
    pub fn new(
        now: Instant,
        settings: Settings,
        sources: impl IntoIterator<Item = (SourceName, Policy)>,
    ) -> Self {
        let queues: Vec<SourceQueue> =
            sources.into_iter().map(|(source, policy)| SourceQueue::new(source, policy)).collect();
        let count = queues.len();
        let mut worker = Self {
            settings,
            by_source: queues
                .iter()
                .enumerate()
                .map(|(index, queue)| (queue.source.clone(), index))
                .collect(),
            queues,
            phase: Phase::Running,
            next_ticket: 0,
            in_flight: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            unsettled: VecDeque::new(),
            settling: None,
            abandoned: Vec::new(),
            claiming: None,
            claim_after: Instant::ZERO,
            settle_after: Instant::ZERO,
            claim_from: 0,
            probe_from: 0,
            seats: 0,
            store: StoreHealth::default(),
            shortage: Shortage::default(),
            polling: Polling {
                at: now + settings.poll_busy,
                interval: settings.poll_busy,
                count: 0,
            },
            memory: Memory::new(settings.max_held_bytes, count),
            deliverable: VecDeque::new(),
            askable: BTreeSet::new(),
            probable: BTreeSet::new(),
            dormant: BTreeSet::new(),
            expiring: Agenda::new(count),
            offering: BTreeSet::new(),
            makes_offers: true,
            rated: Agenda::new(count),
            opening_half: Agenda::new(count),
            moved_breakers: VecDeque::new(),
        };
        for index in 0..count {
            worker.refresh(index);
        }
        worker
    }

    /// Processes an input.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Woken(sources) => self.woken(&sources),
            Input::Claimed(claims) => self.claimed(now, claims),
            Input::ClaimFailed => self.claim_failed(now),
            Input::Handed { since, claims } => self.handed(now, since, claims),
            Input::Finished { ticket, reply } => self.finished(now, ticket, reply),
            Input::Settled => {
                let batch = self.settling.take();
                debug_assert!(
                    batch.is_some() || self.is_over(),
                    "settlements were written that are not in flight"
                );
                self.store.settlements = Failing::default();
            }
            Input::SettleFailed => self.settle_failed(now),
            Input::Reconfigured { sources, max_held_bytes } => {
                self.reconfigure(now, sources, max_held_bytes);
            }
            Input::ShutDown { cut_off_at, give_up_at } => {
                self.shut_down(now, cut_off_at, give_up_at);
            }
        }
        self.refresh_offers();
        self.grant_memory();
    }

    /// The next action to carry out. `None` until [`Self::wake_at`] or the next input.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        loop {
            let (at, step) = self.next_step()?;
            if at > now {
                return None;
            }
            let action = self.take(now, step);
            self.grant_memory();
            if action.is_some() {
                return action;
            }
        }
    }

    /// When to poll again if there is no input before. `None` if only an input can lead to an
    /// action.
    #[must_use]
    pub fn wake_at(&self) -> Option<Wake> {
        self.next_step().map(|(at, reason)| Wake { at, reason })
    }

    /// What the worker holds.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            in_flight: self.in_flight.len(),
            ahead: self.queues.iter().map(|queue| queue.ahead.len()).sum(),
            unsettled: self.unsettled.len() + self.settling.as_ref().map_or(0, Vec::len),
            held_bytes: self.memory.held(),
        }
    }

    /// The earliest step. Of steps that are due at the same time, the first of this list.
    fn next_step(&self) -> Option<(Instant, Step)> {
        const READY: Instant = Instant::ZERO;
        let running = self.phase == Phase::Running;
        let sending = running && self.shortage.until.is_none();
        let when = |condition: bool, at: Instant| condition.then_some(at);
        let (cut_off, give_up) = match self.phase {
            Phase::Draining { cut_off_at, give_up_at } => {
                (when(!self.in_flight.is_empty(), cut_off_at), Some(give_up_at))
            }
            Phase::Running | Phase::Over | Phase::Done => (None, None),
        };
        let settle_ready = self.store.settlements.ready_at();
        let settle_at = if running && self.unsettled.len() < FULL {
            settle_ready.max(self.settle_after)
        } else {
            settle_ready
        };
        let claim_at = settle_ready.max(self.store.claims.ready_at()).max(self.claim_after);
        [
            (
                when(!self.moved_breakers.is_empty() || self.shortage.untold.is_some(), READY),
                Step::Tell,
            ),
            (when(!self.abandoned.is_empty(), READY), Step::Settle),
            (when(self.is_finished(), READY), Step::Done),
            (give_up, Step::GiveUp),
            (cut_off, Step::CutOff),
            (
                when(
                    self.settling.is_none()
                        && !self.unsettled.is_empty()
                        && self.phase != Phase::Done,
                    settle_at,
                ),
                Step::Settle,
            ),
            (self.expiring.first().map(|(start_by, _)| start_by), Step::Release),
            (self.rated.first().filter(|_| running).map(|(at, _)| at), Step::Rate),
            (self.opening_half.first().filter(|_| running).map(|(at, _)| at), Step::HalfOpen),
            (self.shortage.until.filter(|_| running), Step::Resume),
            (when(sending && !self.deliverable.is_empty(), READY), Step::Deliver),
            (when(sending && self.may_claim(), claim_at), Step::Claim),
            // The last of the immediate steps, so that one offer includes the effects of all
            // others.
            (when(running && !self.offering.is_empty(), READY), Step::Offer),
            (
                when(
                    running && (self.memory.is_short() || !self.dormant.is_empty()),
                    self.polling.at,
                ),
                Step::Poll,
            ),
        ]
        .into_iter()
        .filter_map(|(at, reason)| Some((at?, reason)))
        .min_by_key(|(at, _)| *at)
    }

    /// Carries out a due step. Not every step results in an action, but each one changes what is
    /// due next.
    fn take(&mut self, now: Instant, step: Step) -> Option<Action> {
        match step {
            Step::Settle if !self.abandoned.is_empty() => {
                Some(Action::Abandoned(core::mem::take(&mut self.abandoned)))
            }
            Step::Settle => Some(self.settle(now)),
            Step::Deliver => self.deliver(now),
            Step::Claim => Some(self.claim(now)),
            Step::Done => {
                self.phase = Phase::Done;
                Some(Action::Done)
            }
            Step::Release => {
                let index = self.expiring.first().expect("a queue expires").1;
                let held =
                    self.queues[index].ahead.pop_front().expect("an expiring queue holds an event");
                self.release(now, index, held);
                self.refresh(index);
                None
            }
            Step::Tell if self.shortage.untold.is_some() => {
                self.shortage.untold.take().map(|wait| Action::Suspended { wait })
            }
            Step::Resume => {
                self.shortage.until = None;
                self.refresh_offers();
                None
            }
            Step::Tell => self
                .moved_breakers
                .pop_front()
                .map(|(source, breaker)| Action::Breaker(source, breaker)),
            Step::Offer => {
                let index = self.offering.pop_first().expect("an offer has changed");
                let offered = self.offer(index);
                let queue = &mut self.queues[index];
                queue.offered = offered;
                let Offered { room, bytes } = offered;
                Some(Action::Offer {
                    source: queue.source.clone(),
                    room,
                    bytes,
                    lease: queue.policy.lease(),
                })
            }
            Step::Rate => {
                let index = self.rated.first().expect("a rate-limited queue is due").1;
                self.rated.set(index, None);
                self.queues[index].is_ahead_of_its_rate = false;
                self.refresh(index);
                None
            }
            Step::HalfOpen => {
                let index = self.opening_half.first().expect("a breaker is open").1;
                self.queues[index].breaker = Breaker::HalfOpen;
                // Nothing was claimed while the breaker was open, so events may be due.
                self.queues[index].expects = Expects::Work;
                self.breaker_moved(index);
                None
            }
            Step::Poll => {
                self.polling.count += 1;
                self.polling.at = now + self.jittered(self.polling.interval, self.polling.count);
                for index in core::mem::take(&mut self.dormant) {
                    self.queues[index].expects = Expects::Unknown;
                    self.refresh(index);
                }
                self.look_again();
                None
            }
            Step::CutOff => {
                for ticket in self.in_flight.keys().copied().collect::<Vec<_>>() {
                    self.cut_off.insert(ticket);
                    self.end(now, ticket, Reply::Failed(DeliveryError::CutOff), true);
                }
                None
            }
            Step::GiveUp => {
                self.abandoned.extend(
                    self.settling
                        .take()
                        .into_iter()
                        .flatten()
                        .chain(self.unsettled.drain(..))
                        .map(|unsettled| unsettled.settlement),
                );
                for (ticket, in_flight) in core::mem::take(&mut self.in_flight) {
                    let InFlight { queue, origin, size, weight, .. } = in_flight;
                    self.memory.free(queue, origin, size, weight);
                    self.cut_off.insert(ticket);
                }
                self.claiming = None;
                self.phase = Phase::Over;
                None
            }
        }
    }

    /// Whether calls in flight are abandoned. Their results may still arrive, and are ignored.
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over | Phase::Done)
    }

    fn is_finished(&self) -> bool {
        let draining = matches!(self.phase, Phase::Draining { .. } | Phase::Over);
        draining
            && self.in_flight.is_empty()
            && self.unsettled.is_empty()
            && self.settling.is_none()
            && self.claiming.is_none()
    }

    /// Holds a claimed event, or releases it if it can no longer be delivered here.
    fn hold(&mut self, now: Instant, claimed_at: Instant, origin: Origin, claim: Claim) {
        let Some(&index) = self.by_source.get(&claim.source) else {
            let lease = Lease { claimed_at, ends: claimed_at };
            return self.owe(now, lease, &claim, Outcome::Release, None);
        };
        let queue = &mut self.queues[index];
        let weight = self.memory.take(index, origin, claim.size());
        queue.weighed(weight);
        let lease = Lease { claimed_at, ends: claimed_at + queue.lease_of(origin, claimed_at) };
        let held = Held { lease, start_by: queue.start_by(lease), claim, origin, weight };
        // If the breaker opened or the source was removed after the claim was sent, the event is
        // released, like those that were waiting.
        if self.phase == Phase::Running
            && queue.is_configured
            && !matches!(queue.breaker, Breaker::Open { .. })
        {
            queue.ahead.push_back(held);
        } else {
            self.release(now, index, held);
        }
        self.refresh(index);
    }

    /// Starts the next event of the queue whose turn it is. `None` if the event's lease no longer
    /// covers a delivery.
    fn deliver(&mut self, now: Instant) -> Option<Action> {
        let index = self.deliverable.pop_front()?;
        self.queues[index].in_turn = false;
        let held =
            self.queues[index].ahead.pop_front().expect("a deliverable queue holds an event");
        if now > held.start_by {
            self.release(now, index, held);
            self.refresh(index);
            return None;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let queue = &mut self.queues[index];
        self.rated.set(index, queue.begins(now));
        let without_bytes = Claim {
            query: bytes::Bytes::new(),
            headers: bytes::Bytes::new(),
            body: bytes::Bytes::new(),
            ..held.claim.clone()
        };
        let Held { lease, origin, weight, .. } = held;
        let in_flight = InFlight {
            queue: index,
            started_at: now,
            openings: queue.openings,
            lease,
            size: held.claim.size(),
            weight,
            origin,
            claim: without_bytes,
        };
        let deadline = now + queue.policy.timeout;
        self.in_flight.insert(ticket, in_flight);
        self.refresh(index);
        Some(Action::Deliver(Dispatch { ticket, claim: held.claim, deadline }))
    }

    /// The result of a delivery that was cut off before is ignored.
    fn finished(&mut self, now: Instant, ticket: Ticket, reply: Reply) {
        if !self.cut_off.remove(&ticket) {
            self.end(now, ticket, reply, false);
        }
    }

    /// Ends a delivery: frees its slot and queues its settlement.
    fn end(&mut self, now: Instant, ticket: Ticket, reply: Reply, cut_off: bool) {
        let Some(ended) = self.in_flight.remove(&ticket) else {
            debug_assert!(false, "the result of a delivery that is not in flight: {ticket:?}");
            return;
        };
        let InFlight { queue: index, started_at, openings, lease, size, weight, origin, claim } =
            ended;
        self.memory.free(index, origin, size, weight);
        if !cut_off && reply != Reply::NotSent {
            self.memory.learn(index, memory::Pace::of(now.since(started_at)));
        }
        let queue = &mut self.queues[index];
        queue.completed += u32::from(self.claiming.is_some());
        let (verdict, decided) =
            decide(&reply, &queue.policy, claim.event, claim.attempt, claim.in_budget);
        let outcome = if cut_off { Outcome::CutOff } else { decided };
        let health = verdict.and_then(|verdict| health(&reply, verdict));
        let has_moved = queue.ended(now, openings, health);
        match (&reply, cut_off) {
            (_, true) => {}
            (Reply::NotSent, false) => self.suspend(now),
            (Reply::Response { .. } | Reply::Failed(_), false) => self.was_sent(),
        }
        let (status_code, error, excerpt) = match reply {
            Reply::Response { status_code, excerpt, .. } => (Some(status_code), None, excerpt),
            Reply::Failed(error) => (None, Some(error), bytes::Bytes::new()),
            Reply::NotSent => (None, None, bytes::Bytes::new()),
        };
        let took = now.since(started_at);
        let record = verdict.map(|verdict| AttemptRecord {
            ended_ago: Duration::ZERO,
            took,
            verdict,
            status_code,
            error,
            excerpt,
        });
        self.owe(now, lease, &claim, outcome, record);
        if has_moved {
            if matches!(self.queues[index].breaker, Breaker::Open { .. }) {
                for held in core::mem::take(&mut self.queues[index].ahead) {
                    self.release(now, index, held);
                }
            }
            self.breaker_moved(index);
        } else {
            self.refresh(index);
        }
    }

    /// Reports a breaker's new state.
    fn breaker_moved(&mut self, index: usize) {
        let queue = &self.queues[index];
        self.moved_breakers.push_back((queue.source.clone(), queue.breaker));
        self.refresh(index);
    }

    /// Releases an event that was not sent.
    fn release(&mut self, now: Instant, index: usize, held: Held) {
        self.memory.free(index, held.origin, held.claim.size(), held.weight);
        self.owe(now, held.lease, &held.claim, Outcome::Release, None);
    }

    fn owe(
        &mut self,
        now: Instant,
        lease: Lease,
        claim: &Claim,
        outcome: Outcome,
        record: Option<AttemptRecord>,
    ) {
        let age = claim.age.saturating_add(now.since(lease.claimed_at));
        let settlement = Settlement { age, ..claim.settled(outcome, record) };
        self.unsettled.push_back(Unsettled { settlement, ended_at: now, lease_ends: lease.ends });
    }

    fn settle(&mut self, now: Instant) -> Action {
        let batch: Vec<Unsettled> =
            self.unsettled.drain(..self.unsettled.len().min(BATCH)).collect();
        let settlements = batch.iter().map(|unsettled| unsettled.as_of(now)).collect();
        self.settle_after = now + self.settings.settle_pace;
        self.settling = Some(batch);
        self.refresh_offers();
        Action::Settle(settlements)
    }

    /// Failed settlements are retried until their leases end. After that, another worker may hold
    /// the event.
    fn settle_failed(&mut self, now: Instant) {
        let batch = self.settling.take();
        debug_assert!(
            batch.is_some() || self.is_over(),
            "settlements failed that are not in flight"
        );
        for unsettled in batch.into_iter().flatten().rev() {
            if now >= unsettled.lease_ends {
                self.abandoned.push(unsettled.settlement);
            } else {
                self.unsettled.push_front(unsettled);
            }
        }
        self.store.settlements = self.failed_again(now, self.store.settlements);
    }

    fn shut_down(&mut self, now: Instant, cut_off_at: Instant, give_up_at: Instant) {
        self.phase = match self.phase {
            Phase::Running => Phase::Draining { cut_off_at, give_up_at },
            Phase::Draining { cut_off_at: cut_off, give_up_at: give_up } => Phase::Draining {
                cut_off_at: cut_off_at.min(cut_off),
                give_up_at: give_up_at.min(give_up),
            },
            // A further signal may arrive while the worker ends.
            Phase::Over | Phase::Done => return,
        };
        for index in 0..self.queues.len() {
            for held in core::mem::take(&mut self.queues[index].ahead) {
                self.release(now, index, held);
            }
            self.refresh(index);
        }
    }

    fn woken(&mut self, sources: &[SourceName]) {
        for source in sources {
            if let Some(&index) = self.by_source.get(source) {
                self.queues[index].ring();
                self.refresh(index);
            }
        }
    }

    /// The state of a kind of call after another failure.
    fn failed_again(&self, now: Instant, before: Failing) -> Failing {
        let doubled =
            self.settings.store_retry_initial.saturating_mul(1 << before.failures.min(20));
        let failures = before.failures.saturating_add(1);
        let wait = self.jittered(doubled.min(self.settings.store_retry_max), u64::from(failures));
        Failing { failures, retry_at: now + wait }
    }

    /// Half of the wait is fixed and half is a hash, so that workers which fail or idle together do
    /// not retry together.
    fn jittered(&self, wait: Duration, count: u64) -> Duration {
        let half = wait / 2;
        half + share(wait - half, mix(self.settings.seed ^ mix(count)))
    }

    /// Updates everything that is derived from a queue. Must be called after every change to it.
    fn refresh(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if queue.can_deliver() && !queue.in_turn {
            queue.in_turn = true;
            self.deliverable.push_back(index);
        } else if !queue.can_deliver() && queue.in_turn {
            queue.in_turn = false;
            self.deliverable.retain(|&other| other != index);
        }
        let wants = queue.demand() > 0;
        let expects = queue.expects;
        let asks = wants && expects != Expects::Nothing;
        let has_memory = self.memory.may_claim(index, queue.next_size);
        let is_askable = asks && (has_memory || queue.looks_again);
        let member = |set: &mut BTreeSet<usize>, is: bool| {
            if is { set.insert(index) } else { set.remove(&index) }
        };
        member(&mut self.askable, is_askable && expects == Expects::Work);
        member(&mut self.probable, is_askable && expects == Expects::Unknown);
        member(&mut self.dormant, wants && expects == Expects::Nothing);
        self.expiring.set(index, queue.ahead.front().map(|held| held.start_by));
        self.opening_half.set(index, queue.breaker.opens_half_at());
        self.refresh_memory(index, asks, has_memory);
        self.refresh_offer(index);
    }
}

impl Unsettled {
    /// The settlement as it is sent to the store at `now`.
    fn as_of(&self, now: Instant) -> Settlement {
        let mut settlement = self.settlement.clone();
        if let Some(record) = &mut settlement.record {
            record.ended_ago = now.since(self.ended_at);
        }
        settlement
    }
}
