//! What no sequence of inputs may make a worker do, stated over arbitrary sequences.

use super::*;
use crate::event::Outcome;
use crate::id::{EventId, Fence};
use crate::source::SETTLE_GRACE;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

const SOURCES: usize = 3;

/// One thing that happens to the worker.
#[derive(Clone, Debug)]
enum Step {
    Pass(Duration),
    Wake(usize),
    AnswerClaim { give: [u32; SOURCES], size: usize },
    FailClaim,
    Finish { which: usize, status_code: Option<u16> },
    AnswerSettle,
    FailSettle,
    ShutDown { cut_off_in: Duration, give_up_in: Duration },
    Spurious(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    let millis = |range: core::ops::Range<u64>| range.prop_map(Duration::from_millis);
    prop_oneof![
        4 => millis(0..3_000).prop_map(Step::Pass),
        1 => millis(0..60_000).prop_map(Step::Pass),
        2 => (0..SOURCES + 1).prop_map(Step::Wake),
        6 => (prop::array::uniform(0..40u32), 0..2_000usize).prop_map(|(give, size)| Step::AnswerClaim { give, size }),
        1 => Just(Step::FailClaim),
        12 => (any::<usize>(), prop_oneof![Just(Some(200)), Just(Some(503)), Just(Some(422)), Just(None)])
            .prop_map(|(which, status_code)| Step::Finish { which, status_code }),
        6 => Just(Step::AnswerSettle),
        2 => Just(Step::FailSettle),
        1 => (millis(0..10_000), millis(0..10_000)).prop_map(|(cut_off_in, more)| Step::ShutDown { cut_off_in, give_up_in: cut_off_in + more }),
        1 => millis(0..10).prop_map(Step::Spurious),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Given,
    Sent,
    Answered,
    Settling,
    Ended,
}

struct Given {
    source: usize,
    lease_ends: Instant,
    place: Place,
    sent: bool,
}

/// The world around one worker: it answers what the worker asks, and watches.
struct World {
    now: Instant,
    worker: Worker,
    policies: Vec<Policy>,
    claim: Option<(Instant, Vec<Demand>)>,
    settle: Option<Vec<Settlement>>,
    deliveries: BTreeMap<Ticket, (EventId, Fence, Instant)>,
    given: BTreeMap<(EventId, Fence), Given>,
    next_event: u128,
    give_up_at: Option<Instant>,
    done: bool,
}

fn name(source: usize) -> SourceName {
    SourceName::parse(&format!("s{source}")).unwrap()
}

impl World {
    fn new(concurrency: [u32; SOURCES], max_held_bytes: usize) -> Self {
        let policies: Vec<Policy> = concurrency
            .iter()
            .enumerate()
            .map(|(n, &concurrency)| Policy {
                concurrency,
                timeout: Duration::from_secs(1 + 4 * n as u64),
                max_attempts: 3,
                ..Policy::default()
            })
            .collect();
        let now = Instant::from_origin(Duration::from_secs(1_000));
        let settings = Settings { max_held_bytes, ..Settings::default() };
        let worker = Worker::new(now, settings, policies.iter().cloned().enumerate().map(|(n, policy)| (name(n), policy)));
        Self {
            now,
            worker,
            policies,
            claim: None,
            settle: None,
            deliveries: BTreeMap::new(),
            given: BTreeMap::new(),
            next_event: 0,
            give_up_at: None,
            done: false,
        }
    }

    fn input(&mut self, input: Input) {
        self.worker.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        for polls in 0.. {
            assert!(polls < 100_000, "poll never comes to an end");
            let before = self.worker.wake_at();
            let Some(action) = self.worker.poll(self.now) else {
                if let Some(wake) = self.worker.wake_at() {
                    assert!(wake.at > self.now, "nothing is due and yet {wake:?} at {:?}", self.now);
                }
                return;
            };
            assert!(before.is_some_and(|wake| wake.at <= self.now), "an action without a wake: {before:?}");
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        assert!(!self.done, "{action:?} after the last action");
        match action {
            Action::Claim(demands) => {
                assert!(self.claim.is_none(), "two claims at once");
                assert!(self.give_up_at.is_none(), "a claim while shutting down");
                assert!(!demands.is_empty());
                assert!(demands.iter().map(|demand| demand.limit).sum::<u32>() <= BATCH_ROWS);
                for (n, policy) in self.policies.iter().enumerate() {
                    let asked: Vec<&Demand> = demands.iter().filter(|demand| demand.source == name(n)).collect();
                    assert!(asked.len() <= 1);
                    for demand in asked {
                        assert!(demand.limit >= 1);
                        assert!(demand.limit <= policy.concurrency * 5);
                        assert_eq!((demand.lease, demand.max_attempts), (policy.lease(), policy.max_attempts));
                    }
                }
                self.claim = Some((self.now, demands));
            }
            Action::Deliver(Delivery { ticket, claim, deadline }) => {
                assert!(self.give_up_at.is_none(), "a delivery while shutting down");
                let given = self.given.get_mut(&(claim.event, claim.fence)).expect("only what was claimed is delivered");
                assert_eq!(given.place, Place::Given, "a claim is delivered once");
                given.place = Place::Sent;
                given.sent = true;
                let policy = &self.policies[given.source];
                assert_eq!(deadline, self.now + policy.timeout);
                assert!(deadline + SETTLE_GRACE <= given.lease_ends, "the lease does not cover the delivery");
                let source = given.source;
                let fresh = self.deliveries.insert(ticket, (claim.event, claim.fence, deadline)).is_none();
                assert!(fresh, "a ticket is used twice");
                let in_flight = self.given.values().filter(|given| given.source == source && given.place == Place::Sent).count();
                assert!(in_flight <= self.policies[source].concurrency as usize, "more in flight than there are slots");
            }
            Action::Settle(settlements) => {
                assert!(self.settle.is_none(), "two settlements at once");
                assert!(!settlements.is_empty() && settlements.len() <= BATCH);
                for settlement in &settlements {
                    let given = self.given.get_mut(&(settlement.event, settlement.fence)).expect("only what was claimed is settled");
                    match settlement.outcome {
                        Outcome::Release => {
                            assert_eq!((given.sent, settlement.record.is_some()), (false, false), "only the unsent is released")
                        }
                        Outcome::CutOff => {
                            assert!(given.sent && settlement.record.is_some() && matches!(given.place, Place::Sent | Place::Answered))
                        }
                        Outcome::Delivered | Outcome::Retry { .. } | Outcome::DeadLetter(_) => {
                            assert!(given.sent && settlement.record.is_some());
                            assert_eq!(given.place, Place::Answered, "only an answered delivery is settled");
                        }
                    }
                    assert_ne!(given.place, Place::Ended, "a settled claim is settled again");
                    given.place = Place::Settling;
                }
                self.settle = Some(settlements);
            }
            Action::Abandoned(settlements) => {
                for settlement in settlements {
                    let given = self.given.get_mut(&(settlement.event, settlement.fence)).expect("only what was claimed is abandoned");
                    assert_ne!(given.place, Place::Ended);
                    let gave_up = self.give_up_at.is_some_and(|at| at <= self.now);
                    assert!(gave_up || given.lease_ends <= self.now, "a settlement is abandoned while its lease lasts");
                    given.place = Place::Ended;
                }
            }
            Action::Done => {
                self.done = true;
                if self.give_up_at.is_none_or(|at| at > self.now) {
                    assert!(self.claim.is_none() && self.settle.is_none(), "done with a call under way");
                    assert!(self.given.values().all(|given| given.place == Place::Ended), "done with something held");
                }
            }
        }
    }

    /// Time passes as it does for a driver: never past a wake without a poll, never past a deadline without an answer.
    fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let wake = self.worker.wake_at().map(|wake| wake.at);
            let deadline = self.deliveries.iter().map(|(ticket, entry)| (entry.2, *ticket)).min();
            let next = wake.into_iter().chain(deadline.map(|entry| entry.0)).min().filter(|at| *at <= until);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            match deadline {
                Some((at, ticket)) if at <= self.now => self.finish(ticket, None),
                _ => self.drain(),
            }
        }
        self.now = until;
        self.drain();
    }

    fn finish(&mut self, ticket: Ticket, status_code: Option<u16>) {
        let (event, fence, _) = self.deliveries.remove(&ticket).unwrap();
        let given = self.given.get_mut(&(event, fence)).unwrap();
        if given.place == Place::Sent {
            given.place = Place::Answered;
        }
        let reply = match status_code {
            Some(status_code) => Reply::Response { status_code, retry_after: None, excerpt: Bytes::from_static(b"x") },
            None => Reply::Failed(DeliveryError::Timeout),
        };
        self.input(Input::Finished { ticket, reply });
    }

    fn answer_claim(&mut self, give: [u32; SOURCES], size: usize) {
        let Some((sent_at, demands)) = self.claim.take() else { return };
        let mut claims = Claims::default();
        for demand in demands {
            let source = (0..SOURCES).find(|&n| name(n) == demand.source).unwrap();
            for _ in 0..give[source].min(demand.limit) {
                self.next_event += 1;
                let (event, fence) = (EventId::from_uuid(Uuid::from_u128(self.next_event)), Fence(1));
                let claim = Claim {
                    event,
                    source: name(source),
                    fence,
                    attempt: 1,
                    nth: 1,
                    headers: Bytes::new(),
                    body: Bytes::from(vec![0; size]),
                };
                self.given.insert((event, fence), Given { source, lease_ends: sent_at + demand.lease, place: Place::Given, sent: false });
                claims.claimed.push(claim);
            }
        }
        self.input(Input::Claimed(claims));
    }

    fn answer_settle(&mut self) {
        if let Some(settlements) = self.settle.take() {
            for settlement in settlements {
                self.given.get_mut(&(settlement.event, settlement.fence)).unwrap().place = Place::Ended;
            }
            self.input(Input::Settled);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pass(duration) => self.pass(duration),
            Step::Wake(source) => self.input(Input::Woken(vec![name(source)])),
            Step::AnswerClaim { give, size } => self.answer_claim(give, size),
            Step::FailClaim => {
                if self.claim.take().is_some() {
                    self.input(Input::ClaimFailed);
                }
            }
            Step::Finish { which, status_code } => {
                if let Some(ticket) = self.deliveries.keys().copied().nth(which % self.deliveries.len().max(1)) {
                    self.finish(ticket, status_code);
                }
            }
            Step::AnswerSettle => self.answer_settle(),
            Step::FailSettle => {
                if let Some(settlements) = self.settle.take() {
                    for settlement in settlements {
                        let given = self.given.get_mut(&(settlement.event, settlement.fence)).unwrap();
                        given.place = if given.sent { Place::Answered } else { Place::Given };
                    }
                    self.input(Input::SettleFailed);
                }
            }
            Step::ShutDown { cut_off_in, give_up_in } => {
                let give_up_at = self.now + give_up_in;
                self.give_up_at = Some(self.give_up_at.map_or(give_up_at, |at| at.min(give_up_at)));
                let cut_off_at = self.now + cut_off_in;
                self.input(Input::ShutDown { cut_off_at, give_up_at });
            }
            Step::Spurious(duration) => {
                self.now = self.now + duration;
                self.drain();
            }
        }
    }

    /// A healed world answers everything; then the worker must come to its end by itself.
    fn finish_all(&mut self) {
        self.step(Step::ShutDown { cut_off_in: Duration::from_secs(30), give_up_in: Duration::from_secs(600) });
        for _ in 0..10_000 {
            if self.done {
                break;
            }
            self.answer_claim([1; SOURCES], 1);
            self.answer_settle();
            if let Some(ticket) = self.deliveries.keys().next().copied() {
                self.finish(ticket, Some(200));
            }
            self.pass(Duration::from_millis(100));
        }
        assert!(self.done, "the worker never ends: {:?} waits for {:?}", self.worker.load(), self.worker.wake_at());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// It never exceeds a source's slots, delivers a claim twice, settles what it does not hold, starts what its lease
    /// cannot cover, forgets a claim, or disagrees with itself about when it is due.
    #[test]
    fn a_worker_keeps_its_promises_whatever_happens(
        concurrency in prop::array::uniform(1..6u32), max_held_bytes in prop_oneof![Just(64 << 20), 1..5_000usize], steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new(concurrency, max_held_bytes);
        world.drain();
        for step in steps {
            world.step(step);
        }
        world.finish_all();
    }
}
