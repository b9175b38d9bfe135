//! The store and the downstreams around one worker. They answer as the steps require, and check the
//! worker's actions.

use super::{Case, SOURCES, Step};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;
use surehook_core::breaker::{Breaker, BreakerPolicy, Health};
use surehook_core::event::{Outcome, Reason};
use surehook_core::id::{BudgetAttempt, EventId, Fence};
use surehook_core::rate::BURST;
use surehook_core::source::{Policy, SETTLE_GRACE, SourceName};
use surehook_core::time::Instant;
use surehook_core::verdict::{DeliveryError, Reply};
use surehook_core::worker::claims::{Claim, Claims, DeadLettered, Demand, HeldBack, Settlement};
use surehook_core::worker::{Action, BATCH_ROWS, Dispatch, Input, Settings, Ticket, Worker};
use uuid::Uuid;

const OPEN_FOR: Duration = Duration::from_secs(2);

/// The state of a claim, as this world sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Given,
    Sent,
    Answered,
    Settling,
    Ended,
}

/// A claim that the worker received.
struct Given {
    source: usize,
    lease_ends: Instant,
    place: Place,
    sent: bool,
    /// Its bytes, and whether it was claimed on insert and handed over.
    size: usize,
    handed: bool,
    /// Whether it was in flight when the breaker of its source opened.
    is_stale: bool,
    /// The downstream's response: the status code (`None` for a timeout) and the value of
    /// `Retry-After`.
    reply: Option<(Option<u16>, Option<Duration>)>,
}

/// One source's breaker and rate, as seen from outside.
#[derive(Default)]
struct Watched {
    /// The breaker's last reported state; `None`: closed since the start.
    told: Option<Breaker>,
    /// The number of failures in a row that count.
    failures: u32,
    /// The number of refusals that count, since the last accepted event.
    refusals: u32,
    /// Whether the breaker must open now.
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
            "{in_flight} deliveries are in flight, but the breaker is {:?}",
            self.breaker()
        );
        self.starts.push(now);
        if let Some(rate) = policy.rate {
            for (n, from) in self.starts.iter().rev().enumerate() {
                let span = now.since(*from) + BURST;
                let most = 1 + span.as_micros() * u128::from(rate.get()) / 1_000_000;
                assert!(
                    n as u128 <= most,
                    "{} starts within {span:?} at a rate of {rate} per second",
                    n + 1
                );
            }
        }
    }

    fn ends(&mut self, health: Health, policy: &Policy) {
        (self.failures, self.refusals) = match health {
            Health::Accepted => (0, 0),
            Health::Refused => (0, self.refusals + 1),
            Health::Failed => (self.failures + 1, self.refusals),
        };
        let limits = policy.breaker;
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        self.must_open = match self.breaker() {
            Breaker::Closed { .. } | Breaker::Ramping { .. } => {
                reached(self.failures, limits.failures) || reached(self.refusals, limits.refusals)
            }
            Breaker::HalfOpen => {
                health == Health::Failed || (health == Health::Refused && limits.refusals > 0)
            }
            Breaker::Open { .. } => {
                (self.failures, self.refusals) = (0, 0);
                false
            }
        };
    }

    /// The worker reports the allowed concurrency when a ramp starts. Later values follow from the
    /// results.
    fn climbs(&mut self, health: Health, concurrency: u32) {
        if let Some(Breaker::Ramping { allowed, .. }) = &mut self.told {
            *allowed = match health {
                Health::Accepted | Health::Refused => (*allowed + 1).min(concurrency),
                Health::Failed => (*allowed / 2).max(1),
            };
        }
    }

    fn moves(&mut self, now: Instant, breaker: Breaker) {
        match (self.breaker(), breaker) {
            (
                Breaker::Closed { .. } | Breaker::Ramping { .. } | Breaker::HalfOpen,
                Breaker::Open { until },
            ) => {
                assert!(
                    core::mem::take(&mut self.must_open),
                    "the breaker opened without a reason"
                );
                assert_eq!(until, now + OPEN_FOR);
                (self.opened_at, self.failures, self.refusals) = (now, 0, 0);
            }
            (Breaker::Open { .. }, Breaker::HalfOpen) => {
                assert!(now >= self.opened_at + OPEN_FOR, "the breaker became half-open too early");
            }
            (Breaker::HalfOpen, Breaker::Ramping { allowed: 2, .. }) => {}
            (Breaker::HalfOpen | Breaker::Ramping { .. }, Breaker::Closed { failures: 0, .. }) => {}
            (before, after) => {
                panic!("illegal transition of a breaker from {before:?} to {after:?}")
            }
        }
        self.told = Some(breaker);
    }
}

/// The environment of one worker.
pub(super) struct World {
    now: Instant,
    worker: Worker,
    policies: Vec<Policy>,
    watched: Vec<Watched>,
    claim: Option<(Instant, Vec<Demand>)>,
    settle: Option<Vec<Settlement>>,
    /// The rest of each source's offer: events and bytes.
    offers: [(u32, usize); SOURCES],
    max_held_bytes: usize,
    /// The size of the largest event so far.
    largest: usize,
    /// The events that were claimed on insert, with the time of the claim.
    stored: Vec<(Instant, Claim)>,
    deliveries: BTreeMap<Ticket, (EventId, Fence, Instant)>,
    given: BTreeMap<(EventId, Fence), Given>,
    next_event: u128,
    give_up_at: Option<Instant>,
    /// Until when deliveries are suspended, as the worker reported.
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
                breaker: BreakerPolicy {
                    failures: case.breaker_failures[n],
                    refusals: case.breaker_refusals[n],
                    open_for: OPEN_FOR,
                },
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
            assert!(polls < 100_000, "poll never returns None");
            let before = self.worker.wake_at();
            let Some(action) = self.worker.poll(self.now) else {
                if let Some(wake) = self.worker.wake_at() {
                    assert!(
                        wake.at > self.now,
                        "no action is ready, but wake_at is {wake:?} at {:?}",
                        self.now
                    );
                }
                self.count();
                return;
            };
            assert!(
                before.is_some_and(|wake| wake.at <= self.now),
                "an action was ready before wake_at: {before:?}"
            );
            self.act(action);
        }
    }

    /// The worker holds every claim that has not ended, and counts it once.
    fn count(&self) {
        if self.give_up_at.is_none_or(|at| at > self.now) {
            let open = self.given.values().filter(|given| given.place != Place::Ended).count();
            let load = self.worker.load();
            assert_eq!(load.in_flight + load.ahead + load.unsettled, open, "{load:?}");
            assert!(load.held_bytes <= self.max_held_bytes + self.largest, "{load:?}");
        }
    }

    /// The bytes that are reserved for each source, separately for claims and for handed-over
    /// events.
    fn own_share(&self) -> usize {
        self.max_held_bytes / 4 / SOURCES
    }

    /// What an event of this size counts with: see decision 0092.
    fn weight(&self, size: usize) -> usize {
        size.max((16 << 10).min(self.max_held_bytes / 4096).min(self.own_share()))
    }

    /// What the events count with that wait for a slot or are in flight.
    fn held(&self, which: impl Fn(&Given) -> bool) -> usize {
        let is_held = |given: &&Given| matches!(given.place, Place::Given | Place::Sent);
        self.given
            .values()
            .filter(is_held)
            .filter(|given| which(given))
            .map(|given| self.weight(given.size))
            .sum()
    }

    fn act(&mut self, action: Action) {
        assert!(!self.done, "{action:?} after Done");
        match action {
            Action::Claim(demands) => {
                assert!(self.claim.is_none(), "two concurrent claims");
                assert!(self.give_up_at.is_none(), "a claim during the shutdown");
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
                            "the demand is below the rest of the source's share, {own}: {demand:?}"
                        );
                    }
                }
                // No source can take so much memory that another one loses its reserved share.
                let promised = demands.iter().map(|demand| demand.bytes).sum::<usize>()
                    + self.offers.iter().map(|(_, bytes)| bytes).sum::<usize>();
                let all = self.worker.load().held_bytes + promised;
                assert!(
                    all <= self.max_held_bytes + self.largest,
                    "{all} bytes are held, demanded or offered"
                );
                self.claim = Some((self.now, demands));
            }
            Action::Offer { source, room, bytes, lease } => {
                let source = (0..SOURCES).find(|&n| name(n) == source).unwrap();
                let policy = &self.policies[source];
                assert_eq!(lease, policy.lease());
                assert!(room <= policy.concurrency * 5, "the offer of {room} events is too large");
                assert!(self.give_up_at.is_none(), "an offer during the shutdown");
                assert_ne!(
                    (room, bytes),
                    self.offers[source],
                    "the offer is the same as the last one"
                );
                assert!(bytes <= self.own_share(), "the offer of {bytes} bytes is too large");
                assert!(
                    room == 0 || self.watched[source].breaker().is_closed(),
                    "an offer while the breaker is not closed"
                );
                assert!(
                    room == 0 || !self.is_suspended(),
                    "an offer while deliveries are suspended"
                );
                self.offers[source] = (room, bytes);
            }
            Action::Deliver(Dispatch { ticket, claim, deadline }) => {
                assert!(self.give_up_at.is_none(), "a delivery during the shutdown");
                assert!(!self.is_suspended(), "a delivery while deliveries are suspended");
                let given = self
                    .given
                    .get_mut(&(claim.event, claim.fence))
                    .expect("only claimed events are delivered");
                assert_eq!(given.place, Place::Given, "a claim was delivered twice");
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
                assert!(fresh, "a ticket was used twice");
                let in_flight = self
                    .given
                    .values()
                    .filter(|given| given.source == source && given.place == Place::Sent);
                assert!(
                    in_flight.clone().count() <= self.policies[source].concurrency as usize,
                    "more deliveries in flight than slots"
                );
                let in_flight = in_flight.filter(|given| !given.is_stale).count();
                self.watched[source].begins(self.now, &self.policies[source], in_flight);
            }
            Action::Settle(settlements) => {
                assert!(self.settle.is_none(), "two concurrent settlements");
                assert!(!settlements.is_empty() && settlements.len() <= BATCH_ROWS as usize);
                for settlement in &settlements {
                    let given = self
                        .given
                        .get_mut(&(settlement.event, settlement.fence))
                        .expect("only claimed events are settled");
                    match settlement.outcome {
                        Outcome::Release => {
                            assert_eq!(
                                (given.sent, settlement.record.is_some()),
                                (false, false),
                                "only unsent events are released without a record"
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
                                "only a delivery with a result is settled"
                            );
                            judged(
                                settlement.outcome,
                                given.reply.expect("the delivery has a result"),
                                self.policies[given.source].backoff.max_delay,
                            );
                        }
                    }
                    assert_ne!(
                        given.place,
                        Place::Ended,
                        "a claim was settled again after its end"
                    );
                    given.place = Place::Settling;
                }
                self.settle = Some(settlements);
            }
            Action::Breaker(source, breaker) => {
                let source = (0..SOURCES).find(|&n| name(n) == source).unwrap();
                self.watched[source].moves(self.now, breaker);
                if matches!(breaker, Breaker::Open { .. }) {
                    for given in self.given.values_mut().filter(|given| given.source == source) {
                        given.is_stale |= given.place == Place::Sent;
                    }
                }
            }
            Action::Suspended { wait } => {
                assert!(!self.is_suspended(), "a suspension was extended");
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
                        .expect("only claimed events are abandoned");
                    assert_ne!(given.place, Place::Ended);
                    let gave_up = self.give_up_at.is_some_and(|at| at <= self.now);
                    assert!(
                        gave_up || given.lease_ends <= self.now,
                        "a settlement was abandoned before the end of its lease"
                    );
                    given.place = Place::Ended;
                }
            }
            Action::Done => {
                self.done = true;
                if self.give_up_at.is_none_or(|at| at > self.now) {
                    assert!(
                        self.claim.is_none() && self.settle.is_none(),
                        "Done came with a call in flight"
                    );
                    assert!(
                        self.given.values().all(|given| given.place == Place::Ended),
                        "Done came with claims that have not ended"
                    );
                }
            }
        }
    }

    fn is_suspended(&self) -> bool {
        self.suspended_until.is_some_and(|until| self.now < until)
    }

    /// Lets time pass as a driver sees it: it polls at each wake time, and ends each delivery at
    /// its deadline.
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
            // A timeout has no `Retry-After`.
            given.reply = Some((status_code, status_code.and(retry_after)));
        }
        let (source, is_stale) = (given.source, given.is_stale);
        let reply = match status_code {
            Some(status_code) => {
                Reply::Response { status_code, retry_after, excerpt: Bytes::from_static(b"x") }
            }
            None => Reply::Failed(DeliveryError::Timeout),
        };
        let in_flight = self.worker.load().in_flight;
        self.worker.handle(self.now, Input::Finished { ticket, reply });
        // Results of deliveries that were cut off before are ignored, and for the breaker those of
        // deliveries from before it opened.
        if self.worker.load().in_flight < in_flight && !is_stale {
            let health = match status_code {
                Some(200) => Health::Accepted,
                Some(422) => Health::Refused,
                _ => Health::Failed,
            };
            self.watched[source].ends(health, &self.policies[source]);
            self.watched[source].climbs(health, self.policies[source].concurrency);
        }
        self.drain();
        assert!(self.watched.iter().all(|watched| !watched.must_open), "a breaker did not open");
    }

    fn not_sent(&mut self, ticket: Ticket) {
        let (event, fence, _) = self.deliveries.remove(&ticket).unwrap();
        let in_flight = self.worker.load().in_flight;
        self.worker.handle(self.now, Input::Finished { ticket, reply: Reply::NotSent });
        // A delivery that was cut off before is settled as cut off.
        if self.worker.load().in_flight < in_flight {
            let given = self.given.get_mut(&(event, fence)).unwrap();
            assert_eq!(given.place, Place::Sent);
            (given.place, given.sent) = (Place::Given, false);
        }
        self.drain();
    }

    fn answer_claim(&mut self, give: [u32; SOURCES], dead_letter_every: u32, size: usize) {
        let Some((sent_at, demands)) = self.claim.take() else { return };
        let mut claims = Claims::default();
        for demand in demands {
            let source = (0..SOURCES).find(|&n| name(n) == demand.source).unwrap();
            let mut bytes = demand.bytes;
            for nth in 1..=give[source].min(demand.limit) {
                self.next_event += 1;
                let (event, fence) =
                    (EventId::from_uuid(Uuid::from_u128(self.next_event)), Fence(1));
                if dead_letter_every > 0 && nth % dead_letter_every == 0 {
                    claims.dead_lettered.push(DeadLettered {
                        event,
                        source: name(source),
                        attempt: 3,
                        reason: Reason::Lost,
                    });
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
                    in_budget: BudgetAttempt(1),
                    age: Duration::ZERO,
                    received_at: jiff::Timestamp::UNIX_EPOCH,
                    query: Bytes::new(),
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
                        is_stale: false,
                        reply: None,
                    },
                );
                claims.claimed.push(claim);
            }
        }
        self.input(Input::Claimed(claims));
    }

    /// Stores events. The worker does not know of them yet.
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
                let claim = Claim::first(
                    event,
                    name(source),
                    jiff::Timestamp::UNIX_EPOCH,
                    Bytes::new(),
                    Bytes::new(),
                    Bytes::from(vec![0; size]),
                );
                self.stored.push((self.now, claim));
            }
        }
    }

    /// Hands over the stored events. Without an offer there are none.
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
                is_stale: false,
                reply: None,
            };
            self.given.insert((claim.event, claim.fence), given);
            // Handed-over events reduce the offer.
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
            Step::AnswerClaim { give, dead_letter_every, size } => {
                self.answer_claim(give, dead_letter_every, size);
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

    /// Answers everything successfully. The worker must then end.
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
            "the worker does not end: its load is {:?}, its wake time is {:?}",
            self.worker.load(),
            self.worker.wake_at()
        );
    }
}

/// Checks that an outcome matches the response: the worker does not mix up deliveries, and waits at
/// least for `Retry-After`.
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
        Outcome::DeadLetter(Reason::Lost | Reason::Discarded)
        | Outcome::Release
        | Outcome::CutOff => false,
    };
    assert!(right, "{outcome:?} after status {status_code:?} and Retry-After {asked:?}");
}
