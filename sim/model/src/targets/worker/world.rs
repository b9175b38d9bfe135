//! The store and the downstreams around one worker: they answer as they are told to, and watch what the worker asks.

use super::{Case, SOURCES, Step};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;
use surehook_core::breaker::{Breaker, BreakerPolicy};
use surehook_core::event::{Outcome, Reason};
use surehook_core::id::{EventId, Fence};
use surehook_core::rate::BURST;
use surehook_core::source::{Policy, SETTLE_GRACE, SourceName};
use surehook_core::time::Instant;
use surehook_core::verdict::{DeliveryError, Reply};
use surehook_core::worker::exchange::{Buried, Claim, Claims, Demand, HeldBack, Settlement};
use surehook_core::worker::{Action, BATCH_ROWS, Delivery, Input, Settings, Ticket, Worker};
use uuid::Uuid;

const OPEN_FOR: Duration = Duration::from_secs(2);

/// Where a claim stands, as the world sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Given,
    Sent,
    Answered,
    Settling,
    Ended,
}

/// A claim that the worker was given.
struct Given {
    source: usize,
    lease_ends: Instant,
    place: Place,
    sent: bool,
    /// Its bytes, and whether it was handed over as it was stored.
    size: usize,
    handed: bool,
    /// What the downstream said: the status code, if it is not a time-out, and the least delay that it asked for.
    reply: Option<(Option<u16>, Option<Duration>)>,
}

/// What is seen of one source's breaker and rate, from outside.
#[derive(Default)]
struct Watched {
    /// The breaker as the worker told it last; `None`: closed from the beginning.
    told: Option<Breaker>,
    /// Deliveries that failed in a row, as far as they count.
    failures: u32,
    /// The breaker has to open now.
    must_open: bool,
    opened_at: Instant,
    starts: Vec<Instant>,
}

impl Watched {
    fn breaker(&self) -> Breaker {
        self.told.unwrap_or(Breaker::NEW)
    }

    fn begins(&mut self, now: Instant, policy: &Policy, in_flight: usize) {
        assert!(
            in_flight <= self.breaker().slots(policy.concurrency) as usize,
            "{in_flight} in flight, and the breaker is {:?}",
            self.breaker()
        );
        self.starts.push(now);
        if let Some(rate) = policy.rate {
            for (n, from) in self.starts.iter().rev().enumerate() {
                let span = now.since(*from) + BURST;
                let most = 1 + span.as_micros() * u128::from(rate.get()) / 1_000_000;
                assert!(n as u128 <= most, "{} starts within {span:?} at {rate} a second", n + 1);
            }
        }
    }

    fn ends(&mut self, healthy: bool, policy: &Policy) {
        self.failures = if healthy { 0 } else { self.failures + 1 };
        self.must_open = match self.breaker() {
            Breaker::Closed { .. } | Breaker::Ramping { .. } => {
                policy.breaker.failures > 0 && self.failures >= policy.breaker.failures
            }
            Breaker::HalfOpen => !healthy,
            Breaker::Open { .. } => {
                self.failures = 0;
                false
            }
        };
    }

    /// How many are allowed on the ramp is told when it begins, and from then on follows from what ends.
    fn climbs(&mut self, healthy: bool, concurrency: u32) {
        if let Some(Breaker::Ramping { allowed, .. }) = &mut self.told {
            *allowed =
                if healthy { (*allowed + 1).min(concurrency) } else { (*allowed / 2).max(1) };
        }
    }

    fn moves(&mut self, now: Instant, breaker: Breaker) {
        match (self.breaker(), breaker) {
            (
                Breaker::Closed { .. } | Breaker::Ramping { .. } | Breaker::HalfOpen,
                Breaker::Open { until },
            ) => {
                assert!(core::mem::take(&mut self.must_open), "it opens without a reason");
                assert_eq!(until, now + OPEN_FOR);
                (self.opened_at, self.failures) = (now, 0);
            }
            (Breaker::Open { .. }, Breaker::HalfOpen) => {
                assert!(now >= self.opened_at + OPEN_FOR, "it opens half too early")
            }
            (Breaker::HalfOpen, Breaker::Ramping { allowed: 2, .. }) => {}
            (Breaker::HalfOpen | Breaker::Ramping { .. }, Breaker::Closed { failures: 0 }) => {}
            (before, after) => panic!("a breaker goes from {before:?} to {after:?}"),
        }
        self.told = Some(breaker);
    }
}

/// The world around one worker.
pub(super) struct World {
    now: Instant,
    worker: Worker,
    policies: Vec<Policy>,
    watched: Vec<Watched>,
    claim: Option<(Instant, Vec<Demand>)>,
    settle: Option<Vec<Settlement>>,
    /// What is left of each source's offer: events, and their bytes.
    offers: [(u32, usize); SOURCES],
    max_held_bytes: usize,
    /// The size of the largest event that there was.
    largest: usize,
    /// What was stored on an offer, and since when.
    stored: Vec<(Instant, Claim)>,
    deliveries: BTreeMap<Ticket, (EventId, Fence, Instant)>,
    last_answered: Option<Ticket>,
    given: BTreeMap<(EventId, Fence), Given>,
    next_event: u128,
    give_up_at: Option<Instant>,
    /// Deliveries are suspended until then, as the worker told.
    suspended_until: Option<Instant>,
    done: bool,
}

fn name(source: usize) -> SourceName {
    SourceName::parse(&format!("s{source}")).unwrap()
}

impl World {
    pub(super) fn new(case: &Case) -> Self {
        let max_held_bytes = case.max_held_bytes;
        let policies: Vec<Policy> = (0..SOURCES)
            .map(|n| Policy {
                concurrency: case.concurrency[n],
                timeout: Duration::from_secs(1 + 4 * n as u64),
                rate: NonZeroU32::new(case.rate[n]),
                breaker: BreakerPolicy { failures: case.breaker_failures[n], open_for: OPEN_FOR },
                max_attempts: 3,
                ..Policy::default()
            })
            .collect();
        let now = Instant::from_origin(Duration::from_secs(1_000));
        let settings = Settings { max_held_bytes, ..Settings::default() };
        let worker = Worker::new(
            now,
            settings,
            policies.iter().cloned().enumerate().map(|(n, policy)| (name(n), policy)),
        );
        Self {
            now,
            worker,
            watched: policies.iter().map(|_| Watched::default()).collect(),
            policies,
            claim: None,
            settle: None,
            offers: [(0, 0); SOURCES],
            max_held_bytes,
            largest: 0,
            stored: Vec::new(),
            deliveries: BTreeMap::new(),
            last_answered: None,
            given: BTreeMap::new(),
            next_event: 0,
            give_up_at: None,
            suspended_until: None,
            done: false,
        }
    }

    fn input(&mut self, input: Input) {
        self.worker.handle(self.now, input);
        self.drain();
    }

    pub(super) fn drain(&mut self) {
        for polls in 0.. {
            assert!(polls < 100_000, "poll never comes to an end");
            let before = self.worker.wake_at();
            let Some(action) = self.worker.poll(self.now) else {
                if let Some(wake) = self.worker.wake_at() {
                    assert!(
                        wake.at > self.now,
                        "nothing is due and yet {wake:?} at {:?}",
                        self.now
                    );
                }
                self.count();
                return;
            };
            assert!(
                before.is_some_and(|wake| wake.at <= self.now),
                "an action without a wake: {before:?}"
            );
            self.act(action);
        }
    }

    /// Nothing is forgotten and nothing is counted twice: what was given and has not ended is held.
    fn count(&self) {
        if self.give_up_at.is_none_or(|at| at > self.now) {
            let open = self.given.values().filter(|given| given.place != Place::Ended).count();
            let load = self.worker.load();
            assert_eq!(load.in_flight + load.ahead + load.unsettled, open, "{load:?}");
            assert!(load.held_bytes <= self.max_held_bytes + self.largest, "{load:?}");
        }
    }

    /// What each source has for itself, once for claims and once for what is handed over.
    fn own_share(&self) -> usize {
        self.max_held_bytes / 4 / SOURCES
    }

    /// The bytes of events that wait for a slot or are in flight.
    fn held(&self, which: impl Fn(&Given) -> bool) -> usize {
        let is_held = |given: &&Given| matches!(given.place, Place::Given | Place::Sent);
        self.given
            .values()
            .filter(is_held)
            .filter(|given| which(given))
            .map(|given| given.size)
            .sum()
    }

    fn act(&mut self, action: Action) {
        assert!(!self.done, "{action:?} after the last action");
        match action {
            Action::Claim(demands) => {
                assert!(self.claim.is_none(), "two claims at once");
                assert!(self.give_up_at.is_none(), "a claim while shutting down");
                assert!(!self.is_suspended(), "a claim while deliveries are suspended");
                assert!(!demands.is_empty());
                assert!(demands.iter().map(|demand| demand.limit).sum::<u32>() <= BATCH_ROWS);
                for (n, policy) in self.policies.iter().enumerate() {
                    let asked: Vec<&Demand> =
                        demands.iter().filter(|demand| demand.source == name(n)).collect();
                    assert!(asked.len() <= 1);
                    for demand in asked {
                        assert!(demand.limit >= 1);
                        assert!(demand.limit <= policy.concurrency * 5);
                        let breaker = self.watched[n].breaker();
                        assert!(
                            breaker.is_closed()
                                || demand.limit <= breaker.slots(policy.concurrency),
                            "{demand:?}, {breaker:?}"
                        );
                        assert_eq!(
                            (demand.lease, demand.max_attempts),
                            (policy.lease(), policy.max_attempts)
                        );
                        let own = self
                            .own_share()
                            .saturating_sub(self.held(|given| given.source == n && !given.handed));
                        assert!(
                            demand.bytes >= own,
                            "less than what is left of its own share, {own}: {demand:?}"
                        );
                    }
                }
                // No source can take so much that another cannot have its own share.
                let promised = demands.iter().map(|demand| demand.bytes).sum::<usize>()
                    + self.offers.iter().map(|(_, bytes)| bytes).sum::<usize>();
                let all = self.worker.load().held_bytes + promised;
                assert!(
                    all <= self.max_held_bytes + self.largest,
                    "{all} bytes held, asked for or offered"
                );
                self.claim = Some((self.now, demands));
            }
            Action::Offer { source, room, bytes, lease } => {
                let source = (0..SOURCES).find(|&n| name(n) == source).unwrap();
                let policy = &self.policies[source];
                assert_eq!(lease, policy.lease());
                assert!(room <= policy.concurrency * 5, "an offer of {room}");
                assert!(self.give_up_at.is_none(), "an offer while shutting down");
                assert_ne!(
                    (room, bytes),
                    self.offers[source],
                    "an offer that is no other than the last"
                );
                assert!(bytes <= self.own_share(), "an offer of {bytes} bytes");
                assert!(
                    room == 0 || self.watched[source].breaker().is_closed(),
                    "an offer past a breaker"
                );
                assert!(
                    room == 0 || !self.is_suspended(),
                    "an offer while deliveries are suspended"
                );
                self.offers[source] = (room, bytes);
            }
            Action::Deliver(Delivery { ticket, claim, deadline }) => {
                assert!(self.give_up_at.is_none(), "a delivery while shutting down");
                assert!(!self.is_suspended(), "a delivery while deliveries are suspended");
                let given = self
                    .given
                    .get_mut(&(claim.event, claim.fence))
                    .expect("only what was claimed is delivered");
                assert_eq!(given.place, Place::Given, "a claim is delivered once");
                given.place = Place::Sent;
                given.sent = true;
                let policy = &self.policies[given.source];
                assert_eq!(deadline, self.now + policy.timeout);
                assert!(
                    deadline + SETTLE_GRACE <= given.lease_ends,
                    "the lease does not cover the delivery"
                );
                let source = given.source;
                let fresh =
                    self.deliveries.insert(ticket, (claim.event, claim.fence, deadline)).is_none();
                assert!(fresh, "a ticket is used twice");
                let in_flight = self
                    .given
                    .values()
                    .filter(|given| given.source == source && given.place == Place::Sent)
                    .count();
                assert!(
                    in_flight <= self.policies[source].concurrency as usize,
                    "more in flight than there are slots"
                );
                self.watched[source].begins(self.now, &self.policies[source], in_flight);
            }
            Action::Settle(settlements) => {
                assert!(self.settle.is_none(), "two settlements at once");
                assert!(!settlements.is_empty() && settlements.len() <= BATCH_ROWS as usize);
                for settlement in &settlements {
                    let given = self
                        .given
                        .get_mut(&(settlement.event, settlement.fence))
                        .expect("only what was claimed is settled");
                    match settlement.outcome {
                        Outcome::Release => {
                            assert_eq!(
                                (given.sent, settlement.record.is_some()),
                                (false, false),
                                "only the unsent is released"
                            );
                        }
                        Outcome::CutOff => {
                            assert!(
                                given.sent
                                    && settlement.record.is_some()
                                    && matches!(given.place, Place::Sent | Place::Answered)
                            );
                        }
                        Outcome::Delivered | Outcome::Retry { .. } | Outcome::DeadLetter(_) => {
                            assert!(given.sent && settlement.record.is_some());
                            assert_eq!(
                                given.place,
                                Place::Answered,
                                "only an answered delivery is settled"
                            );
                            judged(
                                settlement.outcome,
                                given.reply.expect("answered"),
                                self.policies[given.source].backoff.max_delay,
                            );
                        }
                    }
                    assert_ne!(given.place, Place::Ended, "a settled claim is settled again");
                    given.place = Place::Settling;
                }
                self.settle = Some(settlements);
            }
            Action::Breaker(source, breaker) => {
                let source = (0..SOURCES).find(|&n| name(n) == source).unwrap();
                self.watched[source].moves(self.now, breaker);
            }
            Action::Suspended { wait } => {
                assert!(!self.is_suspended(), "a suspension is prolonged");
                assert!(
                    wait > Duration::ZERO && wait <= Settings::default().shortage_max,
                    "suspended for {wait:?}"
                );
                self.suspended_until = Some(self.now + wait);
            }
            Action::Abandoned(settlements) => {
                for settlement in settlements {
                    let given = self
                        .given
                        .get_mut(&(settlement.event, settlement.fence))
                        .expect("only what was claimed is abandoned");
                    assert_ne!(given.place, Place::Ended);
                    let gave_up = self.give_up_at.is_some_and(|at| at <= self.now);
                    assert!(
                        gave_up || given.lease_ends <= self.now,
                        "a settlement is abandoned while its lease lasts"
                    );
                    given.place = Place::Ended;
                }
            }
            Action::Done => {
                self.done = true;
                if self.give_up_at.is_none_or(|at| at > self.now) {
                    assert!(
                        self.claim.is_none() && self.settle.is_none(),
                        "done with a call under way"
                    );
                    assert!(
                        self.given.values().all(|given| given.place == Place::Ended),
                        "done with something held"
                    );
                }
            }
        }
    }

    fn is_suspended(&self) -> bool {
        self.suspended_until.is_some_and(|until| self.now < until)
    }

    /// Time passes as it does for a driver: never past a wake without a poll, never past a deadline without an answer.
    fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let wake = self.worker.wake_at().map(|wake| wake.at);
            let deadline = self.deliveries.iter().map(|(ticket, entry)| (entry.2, *ticket)).min();
            let next = wake
                .into_iter()
                .chain(deadline.map(|entry| entry.0))
                .min()
                .filter(|at| *at <= until);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            match deadline {
                Some((at, ticket)) if at <= self.now => self.finish(ticket, None, None),
                _ => self.drain(),
            }
        }
        self.now = until;
        self.drain();
    }

    fn finish(&mut self, ticket: Ticket, status_code: Option<u16>, retry_after: Option<Duration>) {
        let (event, fence, _) = self.deliveries.remove(&ticket).unwrap();
        let given = self.given.get_mut(&(event, fence)).unwrap();
        if given.place == Place::Sent {
            given.place = Place::Answered;
            // A time-out asks for nothing.
            given.reply = Some((status_code, status_code.and(retry_after)));
        }
        let source = given.source;
        let reply = match status_code {
            Some(status_code) => {
                Reply::Response { status_code, retry_after, excerpt: Bytes::from_static(b"x") }
            }
            None => Reply::Failed(DeliveryError::Timeout),
        };
        self.last_answered = Some(ticket);
        let in_flight = self.worker.load().in_flight;
        self.worker.handle(self.now, Input::Finished { ticket, reply });
        // What was cut off before is of no account.
        if self.worker.load().in_flight < in_flight {
            let healthy = matches!(status_code, Some(200 | 422));
            self.watched[source].ends(healthy, &self.policies[source]);
            self.watched[source].climbs(healthy, self.policies[source].concurrency);
        }
        self.drain();
        assert!(self.watched.iter().all(|watched| !watched.must_open), "a breaker stays closed");
    }

    fn not_sent(&mut self, ticket: Ticket) {
        let (event, fence, _) = self.deliveries.remove(&ticket).unwrap();
        self.last_answered = Some(ticket);
        let in_flight = self.worker.load().in_flight;
        self.worker.handle(self.now, Input::Finished { ticket, reply: Reply::NotSent });
        // What was cut off before is settled as that.
        if self.worker.load().in_flight < in_flight {
            let given = self.given.get_mut(&(event, fence)).unwrap();
            assert_eq!(given.place, Place::Sent);
            (given.place, given.sent) = (Place::Given, false);
        }
        self.drain();
    }

    fn answer_claim(&mut self, give: [u32; SOURCES], bury_every: u32, size: usize) {
        let Some((sent_at, demands)) = self.claim.take() else { return };
        let mut claims = Claims::default();
        for demand in demands {
            let source = (0..SOURCES).find(|&n| name(n) == demand.source).unwrap();
            let mut bytes = demand.bytes;
            for nth in 1..=give[source].min(demand.limit) {
                self.next_event += 1;
                let (event, fence) =
                    (EventId::from_uuid(Uuid::from_u128(self.next_event)), Fence(1));
                if bury_every > 0 && nth % bury_every == 0 {
                    claims.buried.push(Buried { event, source: name(source), attempt: 3 });
                    continue;
                }
                self.largest = self.largest.max(size);
                if size > bytes {
                    claims.held_back.push(HeldBack { source: name(source), size });
                    break;
                }
                bytes -= size;
                let claim = Claim {
                    event,
                    source: name(source),
                    fence,
                    attempt: 1,
                    nth: 1,
                    age: Duration::ZERO,
                    headers: Bytes::new(),
                    body: Bytes::from(vec![0; size]),
                };
                self.given.insert(
                    (event, fence),
                    Given {
                        source,
                        lease_ends: sent_at + demand.lease,
                        place: Place::Given,
                        sent: false,
                        size,
                        handed: false,
                        reply: None,
                    },
                );
                claims.claimed.push(claim);
            }
        }
        self.input(Input::Claimed(claims));
    }

    /// Stores events of which the worker has to be told yet.
    fn store(&mut self, give: [u32; SOURCES], size: usize) {
        if self.give_up_at.is_some() {
            return;
        }
        for (source, give) in give.into_iter().enumerate() {
            let taken = self
                .stored
                .iter()
                .filter(|(_, claim)| claim.source == name(source))
                .map(|(_, claim)| claim.size());
            let (taken, taken_bytes) = (taken.clone().count(), taken.sum::<usize>());
            let (room, bytes) = self.offers[source];
            let fit = bytes
                .saturating_sub(taken_bytes)
                .checked_div(size)
                .map_or(u32::MAX, |fit| u32::try_from(fit).unwrap());
            for _ in 0..give.min(room.saturating_sub(u32::try_from(taken).unwrap())).min(fit) {
                self.largest = self.largest.max(size);
                self.next_event += 1;
                let event = EventId::from_uuid(Uuid::from_u128(self.next_event));
                let claim =
                    Claim::first(event, name(source), Bytes::new(), Bytes::from(vec![0; size]));
                self.stored.push((self.now, claim));
            }
        }
    }

    /// Hands over what was stored. Without an offer the worker is told nothing.
    fn hand(&mut self) {
        for (since, claim) in core::mem::take(&mut self.stored) {
            let source = (0..SOURCES).find(|&n| name(n) == claim.source).unwrap();
            let (lease_ends, size) = (since + self.policies[source].lease(), claim.size());
            let given = Given {
                source,
                lease_ends,
                place: Place::Given,
                sent: false,
                size,
                handed: true,
                reply: None,
            };
            self.given.insert((claim.event, claim.fence), given);
            // What is handed over uses the offer up.
            let (room, bytes) = &mut self.offers[source];
            (*room, *bytes) = (room.saturating_sub(1), bytes.saturating_sub(size));
            self.input(Input::Handed { since, claims: vec![claim] });
        }
    }

    fn answer_settle(&mut self) {
        if let Some(settlements) = self.settle.take() {
            for settlement in settlements {
                self.given.get_mut(&(settlement.event, settlement.fence)).unwrap().place =
                    Place::Ended;
            }
            self.input(Input::Settled);
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Pass(duration) => self.pass(duration),
            Step::Wake(source) => self.input(Input::Woken(vec![name(source)])),
            Step::AnswerClaim { give, bury_every, size } => {
                self.answer_claim(give, bury_every, size)
            }
            Step::Store { give, size } => self.store(give, size),
            Step::Hand => self.hand(),
            Step::FailClaim => {
                if self.claim.take().is_some() {
                    self.input(Input::ClaimFailed);
                }
            }
            Step::Finish { which, status_code, retry_after } => {
                if let Some(ticket) =
                    self.deliveries.keys().copied().nth(which % self.deliveries.len().max(1))
                {
                    self.finish(ticket, status_code, retry_after);
                }
            }
            Step::NotSent { which } => {
                if let Some(ticket) =
                    self.deliveries.keys().copied().nth(which % self.deliveries.len().max(1))
                {
                    self.not_sent(ticket);
                }
            }
            Step::FinishAgain => {
                if let Some(ticket) = self.last_answered {
                    self.input(Input::Finished {
                        ticket,
                        reply: Reply::Failed(DeliveryError::Timeout),
                    });
                }
            }
            Step::AnswerSettle => self.answer_settle(),
            Step::FailSettle => {
                if let Some(settlements) = self.settle.take() {
                    for settlement in settlements {
                        let given =
                            self.given.get_mut(&(settlement.event, settlement.fence)).unwrap();
                        given.place = if given.sent { Place::Answered } else { Place::Given };
                    }
                    self.input(Input::SettleFailed);
                }
            }
            Step::ShutDown { cut_off_in, give_up_in } => {
                self.hand();
                let give_up_at = self.now + give_up_in;
                self.give_up_at = Some(self.give_up_at.map_or(give_up_at, |at| at.min(give_up_at)));
                let cut_off_at = self.now + cut_off_in;
                self.input(Input::ShutDown { cut_off_at, give_up_at });
            }
            Step::Late(duration) => {
                self.now = self.now + duration;
                self.drain();
            }
        }
    }

    /// A healed world answers everything; then the worker must come to its end by itself.
    pub(super) fn finish_all(&mut self) {
        self.step(Step::ShutDown {
            cut_off_in: Duration::from_secs(30),
            give_up_in: Duration::from_mins(10),
        });
        for _ in 0..10_000 {
            if self.done {
                break;
            }
            self.answer_claim([1; SOURCES], 0, 1);
            self.answer_settle();
            if let Some(ticket) = self.deliveries.keys().next().copied() {
                self.finish(ticket, Some(200), None);
            }
            self.pass(Duration::from_millis(100));
        }
        assert!(
            self.done,
            "the worker never ends: {:?} waits for {:?}",
            self.worker.load(),
            self.worker.wake_at()
        );
    }
}

/// An outcome is what the reply means: the worker mixes up no two deliveries, and waits as long as it was asked to.
fn judged(
    outcome: Outcome,
    (status_code, asked): (Option<u16>, Option<Duration>),
    longest: Duration,
) {
    let right = match outcome {
        Outcome::Delivered => status_code == Some(200),
        Outcome::Retry { after } => {
            let least = asked.unwrap_or_default().min(longest);
            matches!(status_code, Some(503) | None) && least <= after && after <= longest
        }
        Outcome::DeadLetter(Reason::Permanent) => status_code == Some(422),
        Outcome::DeadLetter(Reason::Exhausted) => matches!(status_code, Some(503) | None),
        Outcome::DeadLetter(Reason::Lost) | Outcome::Release | Outcome::CutOff => false,
    };
    assert!(right, "{outcome:?} after status {status_code:?} and a wish for {asked:?}");
}
