//! The invariants of a worker whose sources and policies are replaced at any time.

use super::*;
use crate::breaker::BreakerPolicy;
use crate::source::SETTLE_GRACE;
use alloc::format;
use claims::Demand;
use core::num::NonZeroU32;
use proptest::prelude::*;

const SOURCES: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    Woken(usize),
    /// The claim in flight returns this number of events for each source, as far as asked for.
    AnswerClaim(u32, usize),
    FailClaim,
    /// An event is claimed on insert. With `late`, the intake has read its offers before a reload.
    Insert {
        source: usize,
        size: usize,
        late: bool,
    },
    Hand,
    Finish(usize, u16),
    AnswerSettle,
    FailSettle,
    Reconfigure(Vec<Option<Policy>>, usize),
}

fn policy() -> impl Strategy<Value = Policy> {
    (1..30u64, 1..5u32, prop::option::of(1..20u32), 0..3u32).prop_map(
        |(timeout, concurrency, rate, failures)| Policy {
            timeout: secs(timeout),
            concurrency,
            rate: rate.and_then(NonZeroU32::new),
            breaker: BreakerPolicy { failures, refusals: 0, open_for: secs(2) },
            ..Policy::default()
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<Option<Policy>>> {
    proptest::collection::vec(prop::option::weighted(0.7, policy()), SOURCES)
}

fn max_held() -> impl Strategy<Value = usize> {
    prop_oneof![1..5_000usize, Just(64 << 20)]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..3_000u64).prop_map(Op::Pass),
        1 => (0..12_000u64).prop_map(Op::Pass),
        2 => (0..SOURCES).prop_map(Op::Woken),
        6 => (0..20u32, 0..2_000usize).prop_map(|(events, size)| Op::AnswerClaim(events, size)),
        1 => Just(Op::FailClaim),
        5 => (0..SOURCES, 0..2_000usize, any::<bool>())
            .prop_map(|(source, size, late)| Op::Insert { source, size, late }),
        3 => Just(Op::Hand),
        6 => (any::<usize>(), prop::sample::select(vec![200u16, 503, 422]))
            .prop_map(|(which, status)| Op::Finish(which, status)),
        5 => Just(Op::AnswerSettle),
        1 => Just(Op::FailSettle),
        3 => (policies(), max_held()).prop_map(|(policies, max)| Op::Reconfigure(policies, max)),
    ];
    proptest::collection::vec(op, 1..80)
}

/// A claim that the worker has.
struct Given {
    source: usize,
    lease_ends: Instant,
    ended: bool,
}

/// What is left of an offer: events, bytes, lease.
type Offer = (u32, usize, Duration);

struct World {
    now: Instant,
    worker: Worker,
    policies: Vec<Option<Policy>>,
    offers: Vec<Option<Offer>>,
    /// The offers before the last reload, and its time.
    old_offers: (Instant, Vec<Option<Offer>>),
    claim: Option<(Instant, Vec<Demand>)>,
    settling: Option<Vec<Settlement>>,
    inserted: Vec<(Instant, Duration, Claim)>,
    deliveries: BTreeMap<Ticket, (usize, Instant)>,
    given: BTreeMap<EventId, Given>,
    events: u128,
    done: bool,
}

fn name(n: usize) -> SourceName {
    source(&format!("s{n}"))
}

fn number(source: &SourceName) -> usize {
    (0..SOURCES).find(|n| name(*n) == *source).expect("one of the sources")
}

fn configured(policies: &[Option<Policy>]) -> Vec<(SourceName, Policy)> {
    let sources = policies.iter().enumerate();
    sources.filter_map(|(n, policy)| Some((name(n), policy.clone()?))).collect()
}

impl World {
    fn new(policies: Vec<Option<Policy>>, max_held_bytes: usize) -> Self {
        let settings = Settings { max_held_bytes, ..Settings::default() };
        let now = at(1_000_000);
        Self {
            now,
            worker: Worker::new(now, settings, configured(&policies)),
            policies,
            offers: vec![None; SOURCES],
            old_offers: (now, vec![None; SOURCES]),
            claim: None,
            settling: None,
            inserted: Vec::new(),
            deliveries: BTreeMap::new(),
            given: BTreeMap::new(),
            events: 0,
            done: false,
        }
    }

    fn input(&mut self, input: Input) {
        self.worker.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        for polls in 0.. {
            assert!(polls < 10_000, "poll never returns None");
            let Some(action) = self.worker.poll(self.now) else { break };
            self.act(action);
        }
        let wake = self.worker.wake_at();
        assert!(wake.is_none_or(|wake| wake.at > self.now), "{wake:?} at {:?}", self.now);
        self.worker.memory.check();
        let load = self.worker.load();
        let open = self.given.values().filter(|given| !given.ended).count();
        assert_eq!(load.in_flight + load.ahead + load.unsettled, open, "{load:?}");
    }

    fn policy(&self, source: &SourceName) -> &Policy {
        self.policies[number(source)].as_ref().expect("only configured sources are used")
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Claim(demands) => {
                assert!(self.claim.is_none());
                for demand in &demands {
                    let policy = self.policy(&demand.source);
                    assert_eq!(demand.lease, policy.lease());
                    assert!((1..=policy.concurrency * 5).contains(&demand.limit));
                }
                self.claim = Some((self.now, demands));
            }
            Action::Offer { source, room, bytes, lease } => {
                assert_eq!(lease, self.policy(&source).lease());
                self.offers[number(&source)] = Some((room, bytes, lease));
            }
            Action::Deliver(Dispatch { ticket, claim, deadline }) => {
                let policy = self.policy(&claim.source);
                assert_eq!(deadline, self.now + policy.timeout);
                let given = &self.given[&claim.event];
                assert!(
                    deadline + SETTLE_GRACE <= given.lease_ends,
                    "the lease until {:?} does not cover a delivery until {deadline:?}",
                    given.lease_ends
                );
                let source = given.source;
                let in_flight = self.deliveries.values().filter(|(of, _)| *of == source).count();
                assert!(in_flight < policy.concurrency as usize, "{in_flight} are in flight");
                self.deliveries.insert(ticket, (source, deadline));
            }
            Action::Settle(batch) => {
                assert!(self.settling.is_none());
                assert!(batch.iter().all(|settlement| !self.given[&settlement.event].ended));
                self.settling = Some(batch);
            }
            Action::Breaker(source, _) => {
                let _ = self.policy(&source);
            }
            Action::Abandoned(batch) => {
                for settlement in batch {
                    self.given.get_mut(&settlement.event).unwrap().ended = true;
                }
            }
            Action::Suspended { .. } => panic!("no delivery lacks a resource"),
            Action::Done => self.done = true,
        }
    }

    /// Polls the worker at each wake time, and ends each delivery at its deadline.
    fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let wake = self.worker.wake_at().map(|wake| wake.at);
            let timeout =
                self.deliveries.iter().map(|(ticket, (_, deadline))| (*deadline, *ticket)).min();
            let next = wake.into_iter().chain(timeout.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            match timeout {
                Some((deadline, ticket)) if deadline <= self.now => {
                    self.finish(ticket, Reply::Failed(DeliveryError::Timeout));
                }
                _ => self.drain(),
            }
        }
        self.now = until;
        self.drain();
    }

    fn finish(&mut self, ticket: Ticket, reply: Reply) {
        self.deliveries.remove(&ticket);
        self.input(Input::Finished { ticket, reply });
    }

    fn event(&mut self, n: usize, size: usize) -> Claim {
        self.events += 1;
        Claim { source: name(n), body: vec![0; size].into(), ..claim(self.events) }
    }

    fn give(&mut self, claim: &Claim, lease_ends: Instant) {
        let given = Given { source: number(&claim.source), lease_ends, ended: false };
        self.given.insert(claim.event, given);
    }

    fn answer_claim(&mut self, events: u32, size: usize) {
        let Some((sent_at, demands)) = self.claim.take() else { return };
        let mut claims = Claims::default();
        for Demand { source, limit, mut bytes, lease, .. } in demands {
            for _ in 0..limit.min(events) {
                if size > bytes {
                    claims.held_back.push(claims::HeldBack { source: source.clone(), size });
                    break;
                }
                bytes -= size;
                let claim = self.event(number(&source), size);
                self.give(&claim, sent_at + lease);
                claims.claimed.push(claim);
            }
        }
        self.input(Input::Claimed(claims));
    }

    fn insert(&mut self, n: usize, size: usize, late: bool) {
        let (reloaded_at, old) = &mut self.old_offers;
        let offer = if late && self.now <= *reloaded_at + OFFERS_END_WITHIN {
            &mut old[n]
        } else {
            &mut self.offers[n]
        };
        if let Some((room, bytes, lease)) = offer
            && *room > 0
            && *bytes >= size
        {
            (*room, *bytes) = (*room - 1, *bytes - size);
            let lease = *lease;
            let claim = self.event(n, size);
            self.inserted.push((self.now, lease, claim));
        }
    }

    fn hand(&mut self) {
        for (since, lease, claim) in core::mem::take(&mut self.inserted) {
            self.give(&claim, since + lease);
            self.input(Input::Handed { since, claims: vec![claim] });
        }
    }

    fn answer_settle(&mut self) {
        if let Some(batch) = self.settling.take() {
            for settlement in batch {
                self.given.get_mut(&settlement.event).unwrap().ended = true;
            }
            self.input(Input::Settled);
        }
    }

    fn reconfigure(&mut self, policies: Vec<Option<Policy>>, max_held_bytes: usize) {
        let offers = core::mem::replace(&mut self.offers, vec![None; SOURCES]);
        self.old_offers = (self.now, offers);
        self.policies = policies;
        let sources = configured(&self.policies);
        self.input(Input::Reconfigured { sources, max_held_bytes });
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Pass(milliseconds) => self.pass(Duration::from_millis(milliseconds)),
            Op::Woken(n) => self.input(Input::Woken(vec![name(n)])),
            Op::AnswerClaim(events, size) => self.answer_claim(events, size),
            Op::FailClaim => {
                if self.claim.take().is_some() {
                    self.input(Input::ClaimFailed);
                }
            }
            Op::Insert { source, size, late } => self.insert(source, size, late),
            Op::Hand => self.hand(),
            Op::Finish(which, status_code) => {
                let count = self.deliveries.len().max(1);
                if let Some(ticket) = self.deliveries.keys().copied().nth(which % count) {
                    let reply =
                        Reply::Response { status_code, retry_after: None, excerpt: Bytes::new() };
                    self.finish(ticket, reply);
                }
            }
            Op::AnswerSettle => self.answer_settle(),
            Op::FailSettle => {
                if self.settling.take().is_some() {
                    self.input(Input::SettleFailed);
                }
            }
            Op::Reconfigure(policies, max_held_bytes) => self.reconfigure(policies, max_held_bytes),
        }
    }

    /// Answers everything. Every source that is configured at the end is claimed for again.
    fn answer_all(&mut self) {
        let mut claimed = BTreeSet::new();
        for _ in 0..200 {
            self.hand();
            if let Some((_, demands)) = &self.claim {
                claimed.extend(demands.iter().map(|demand| demand.source.clone()));
            }
            self.answer_claim(0, 0);
            self.answer_settle();
            while let Some(ticket) = self.deliveries.keys().next().copied() {
                self.finish(ticket, ok());
            }
            self.pass(Duration::from_millis(100));
        }
        let mut sources = configured(&self.policies).into_iter();
        assert!(sources.all(|(source, _)| claimed.contains(&source)), "{claimed:?}");
        assert_eq!(self.worker.load(), Load::default());
    }

    fn shut_down(&mut self) {
        let (cut_off_at, give_up_at) = (self.now + secs(1), self.now + secs(60));
        self.input(Input::ShutDown { cut_off_at, give_up_at });
        self.answer_claim(0, 0);
        self.answer_settle();
        self.drain();
        assert!(self.done);
        assert!(self.given.values().all(|given| given.ended));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    // However the configuration changes: a delivery is covered by its lease in the store, starts
    // only in a free slot of a configured source, every claimed event ends, and the worker has
    // nothing to do until its wake time.
    #[test]
    fn no_reload_breaks_a_lease_a_limit_or_loses_an_event(
        first in policies(), max_held_bytes in max_held(), ops in ops(),
    ) {
        let mut world = World::new(first, max_held_bytes);
        world.drain();
        for op in ops {
            world.apply(op);
        }
        world.answer_all();
        world.shut_down();
    }
}
