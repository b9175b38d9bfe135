//! Tests of a reload: what changes for each source, and what stays.

use super::memory::LIMIT;
use super::*;
use crate::breaker::BreakerPolicy;
use claims::{Demand, HeldBack};
use core::num::NonZeroU32;

const MAX_HELD: usize = 64 << 20;

fn with(sources: &[(&str, &Policy)]) -> Input {
    let sources = sources.iter().map(|(name, policy)| (source(name), (*policy).clone())).collect();
    Input::Reconfigured { sources, max_held_bytes: MAX_HELD }
}

fn timeout(seconds: u64, concurrency: u32) -> Policy {
    Policy { timeout: secs(seconds), concurrency, ..Policy::default() }
}

fn started(policy: &Policy) -> Worker {
    let mut worker = Worker::new(START, unpaced(), [(source("a"), policy.clone())]);
    let _ = actions(&mut worker, START);
    worker
}

/// A worker whose offer for two events was reported.
fn offering(policy: &Policy) -> Worker {
    let mut worker = started(policy);
    worker.handle(START, claims(0..0));
    assert_eq!(offers(&mut worker, START), [("a", 2, policy.lease())]);
    worker
}

fn handed(since: Instant, event: u128) -> Input {
    Input::Handed { since, claims: vec![claim(event)] }
}

/// The offers that are made now.
fn offers(worker: &mut Worker, now: Instant) -> Vec<(&'static str, u32, Duration)> {
    let all = core::iter::from_fn(|| worker.poll(now)).collect::<Vec<_>>();
    let offers = all.iter().filter_map(|action| {
        let Action::Offer { source: of, room, lease, .. } = action else { return None };
        let name = ["a", "b"].into_iter().find(|name| source(name) == *of).expect("a known source");
        Some((name, *room, *lease))
    });
    offers.collect()
}

fn asked(actions: &[Action]) -> Vec<Demand> {
    let demands = actions.iter().filter_map(|action| {
        if let Action::Claim(demands) = action { Some(demands.clone()) } else { None }
    });
    demands.flatten().collect()
}

fn deadlines(actions: &[Action]) -> Vec<Instant> {
    let deadlines = actions.iter().filter_map(|action| {
        if let Action::Deliver(dispatch) = action { Some(dispatch.deadline) } else { None }
    });
    deadlines.collect()
}

#[test]
fn a_new_policy_is_in_effect_at_once_and_deliveries_in_flight_stay() {
    let mut worker = started(&timeout(10, 4));
    worker.handle(START, claims(0..6));
    assert_eq!(tickets(&actions(&mut worker, START)).len(), 4);
    worker.handle(at(1), with(&[("a", &Policy { max_attempts: 1, ..timeout(8, 3) })]));
    assert_eq!(worker.load(), Load { in_flight: 4, ahead: 2, unsettled: 0, held_bytes: 24 });
    assert_eq!(tickets(&actions(&mut worker, at(1))), [], "all slots are in use");
    end(&mut worker, at(2), &failed(), 1);
    let acted = actions(&mut worker, at(2));
    assert_eq!(tickets(&acted), [], "three are in flight, and there are three slots");
    assert_eq!(outcomes(&acted), [Outcome::DeadLetter(Reason::Exhausted)], "the new max_attempts");
    end(&mut worker, at(3), &ok(), 2);
    assert_eq!(deadlines(&actions(&mut worker, at(3))), [at(3) + secs(8); 2]);
    worker.handle(at(4), with(&[("a", &timeout(8, 5))]));
    worker.handle(at(4), Input::Settled);
    assert_eq!(worker.load().in_flight, 3);
    let acted = asked(&actions(&mut worker, at(4)));
    assert_eq!((acted[0].limit, acted[0].lease), (2, timeout(8, 5).lease()));
}

#[test]
fn an_open_breaker_stays_open_and_a_policy_without_one_closes_it() {
    let policy = |failures, seconds| {
        let breaker = BreakerPolicy { failures, refusals: 0, open_for: secs(seconds) };
        Policy { concurrency: 3, breaker, ..Policy::default() }
    };
    let open = || {
        let mut worker = started(&policy(2, 10));
        worker.handle(START, claims(0..2));
        let _ = actions(&mut worker, START);
        worker.handle(START, claims(2..2));
        end(&mut worker, at(1), &failed(), 2);
        assert_eq!(breakers(&actions(&mut worker, at(1))), ["open"]);
        worker.handle(at(1), Input::Settled);
        worker
    };
    let half_open_at = |worker: &mut Worker| {
        assert_eq!(actions(worker, at(2)), []);
        let wake = worker.wake_at().unwrap();
        assert_eq!(wake.reason, Step::HalfOpen);
        wake.at
    };
    let mut worker = open();
    worker.handle(at(2), with(&[("a", &policy(2, 60))]));
    assert_eq!(half_open_at(&mut worker), at(10_001));
    worker.handle(at(2), with(&[("a", &policy(2, 3))]));
    assert_eq!(half_open_at(&mut worker), at(3_002));
    worker.handle(at(2), with(&[("a", &policy(0, 3))]));
    let acted = actions(&mut worker, at(2));
    assert_eq!((breakers(&acted), limits(&acted)), (vec!["closed"], vec![3]), "events may be due");
}

#[test]
fn a_changed_rate_starts_new_and_an_equal_one_continues() {
    let rated = |rate| Policy { rate: NonZeroU32::new(rate), ..timeout(10, 100) };
    let mut worker = started(&rated(5));
    worker.handle(START, claims(0..10));
    assert_eq!(tickets(&actions(&mut worker, START)).len(), 1);
    let next = |worker: &Worker| worker.wake_at().map(|wake| (wake.at, wake.reason));
    worker.handle(at(1), with(&[("a", &rated(5))]));
    assert_eq!(tickets(&actions(&mut worker, at(1))), []);
    assert_eq!(next(&worker), Some((at(100), Step::Rate)));
    worker.handle(at(2), with(&[("a", &rated(1))]));
    assert_eq!(tickets(&actions(&mut worker, at(2))).len(), 1, "the new rate has no starts yet");
    assert_eq!(next(&worker), Some((at(902), Step::Rate)));
    worker.handle(at(3), with(&[("a", &rated(0))]));
    assert_eq!(tickets(&actions(&mut worker, at(3))).len(), 8, "without a rate, none is held back");
    assert_ne!(worker.wake_at().map(|wake| wake.reason), Some(Step::Rate));

    let one_slot = |rate| Policy { concurrency: 1, ..rated(rate) };
    let mut worker = started(&one_slot(1));
    worker.handle(START, claims(0..1));
    let _ = actions(&mut worker, START);
    assert_eq!(next(&worker), Some((at(900), Step::Rate)));
    worker.handle(at(1), with(&[("a", &one_slot(0))]));
    let _ = actions(&mut worker, at(1));
    assert_eq!(next(&worker), None);
}

#[test]
fn waiting_events_start_only_if_their_lease_covers_the_new_timeout() {
    for (seconds, start_by) in [(10, at(5_000)), (12, at(3_000)), (2, at(5_000))] {
        let mut worker = started(&timeout(10, 1));
        worker.handle(START, claims(0..2));
        let _ = actions(&mut worker, START);
        worker.handle(START, with(&[("a", &timeout(seconds, 1))]));
        let _ = actions(&mut worker, START);
        assert_eq!(worker.load().ahead, 1);
        let wake = worker.wake_at().unwrap();
        assert_eq!((wake.at, wake.reason), (start_by, Step::Release), "{seconds} s");
    }
    let mut worker = started(&timeout(10, 1));
    worker.handle(START, claims(0..2));
    let _ = actions(&mut worker, START);
    worker.handle(at(1), with(&[("a", &timeout(15, 1))]));
    assert_eq!(outcomes(&actions(&mut worker, at(1))), [Outcome::Release], "released at once");
    assert_eq!(worker.load().ahead, 0);
}

#[test]
fn a_claim_in_flight_has_the_lease_that_it_asked_for() {
    // Its lease is 20 s. A delivery of 12 s must start within 3 s.
    for (answered, starts) in [(3_000, 2), (3_001, 0)] {
        let mut worker = started(&timeout(10, 2));
        worker.handle(at(1), with(&[("a", &timeout(60, 2))]));
        worker.handle(at(2), with(&[("a", &timeout(12, 2))]));
        worker.handle(at(answered), claims(0..2));
        let acted = actions(&mut worker, at(answered));
        assert_eq!(tickets(&acted).len(), starts, "{answered}");
        assert_eq!(worker.load().ahead, 0, "otherwise, both are released");
        assert!(asked(&acted).iter().all(|demand| demand.lease == timeout(12, 2).lease()));
    }
}

#[test]
fn the_settlement_of_an_event_is_retried_until_its_own_lease_ends() {
    let mut worker = started(&timeout(60, 1));
    worker.handle(at(1), with(&[("a", &timeout(1, 1))]));
    worker.handle(at(2), claims(0..1));
    let _ = actions(&mut worker, at(2));
    end(&mut worker, at(3), &ok(), 1);
    let _ = actions(&mut worker, at(3));
    // The new lease is 11 s, that of the claim 70 s.
    worker.handle(at(69_999), Input::SettleFailed);
    assert_eq!(worker.load().unsettled, 1);
}

#[test]
fn an_event_claimed_on_an_old_offer_has_the_shortest_lease_so_far() {
    let reloads = |leases: &[u64]| {
        let mut worker = offering(&timeout(leases[0], 2));
        for seconds in &leases[1..] {
            worker.handle(at(1), with(&[("a", &timeout(*seconds, 2))]));
        }
        worker
    };
    // Released: the lease of 20 s or of 12 s does not cover a delivery of 60 s. Otherwise, the
    // delivery must start within the time that the shortest lease leaves.
    let cases: [(&[u64], Option<u64>); 5] = [
        (&[10, 60], None),
        (&[10, 12], Some(3_000)),
        (&[60, 10], Some(5_000)),
        (&[10, 60, 12], Some(3_000)),
        (&[60, 2, 10], None),
    ];
    let grace = u64::try_from(OFFERS_END_WITHIN.as_millis()).unwrap();
    for (seconds, within) in cases {
        for since in [0, 1, 1 + grace] {
            let covered = within.map_or(since, |within| since + within);
            let mut worker = reloads(seconds);
            worker.handle(at(covered), handed(at(since), 0));
            let starts = tickets(&actions(&mut worker, at(covered))).len();
            assert_eq!(starts, usize::from(within.is_some()), "{seconds:?}, since {since}");
            let mut worker = reloads(seconds);
            worker.handle(at(covered + 1), handed(at(since), 0));
            assert_eq!(tickets(&actions(&mut worker, at(covered + 1))), [], "{seconds:?}");
        }
        let mut worker = reloads(seconds);
        let since = 2 + grace;
        worker.handle(at(since + 5_000), handed(at(since), 0));
        let starts = tickets(&actions(&mut worker, at(since + 5_000))).len();
        assert_eq!(starts, 1, "{seconds:?}: an event of the new offer");
    }
}

#[test]
fn every_offer_is_made_again() {
    let policy = timeout(10, 2);
    let mut worker = offering(&policy);
    worker.handle(at(1), with(&[("a", &policy)]));
    assert_eq!(offers(&mut worker, at(1)), [("a", 2, policy.lease())]);
    worker.handle(at(2), with(&[("a", &timeout(3, 1))]));
    assert_eq!(offers(&mut worker, at(2)), [("a", 1, timeout(3, 1).lease())]);
}

#[test]
fn a_new_source_is_claimed_for_at_once() {
    let (old, new) = (timeout(10, 2), timeout(20, 3));
    let mut worker = started(&old);
    worker.handle(START, claims(0..0));
    let _ = actions(&mut worker, START);
    worker.handle(at(1), with(&[("b", &new), ("a", &old)]));
    let demands = asked(&actions(&mut worker, at(1)));
    assert_eq!(demands.len(), 1, "{demands:?}");
    assert_eq!(
        (&demands[0].source, demands[0].limit, demands[0].lease),
        (&source("b"), 3, new.lease())
    );
    let claimed = vec![Claim { source: source("b"), ..claim(1) }];
    worker.handle(at(2), Input::Claimed(Claims { claimed, ..Claims::default() }));
    assert_eq!(deadlines(&actions(&mut worker, at(2))), [at(2) + new.timeout]);
}

#[test]
fn a_removed_source_gets_no_events_and_its_deliveries_end() {
    let old = Policy { max_attempts: 1, ..timeout(10, 2) };
    let mut worker = started(&old);
    worker.handle(START, claims(0..3));
    assert_eq!(limits(&actions(&mut worker, START)), [0_u32; 0]);
    worker.handle(at(1), with(&[("b", &timeout(10, 1))]));
    let acted = actions(&mut worker, at(1));
    assert_eq!(outcomes(&acted), [Outcome::Release]);
    assert!(asked(&acted).iter().all(|demand| demand.source == source("b")), "{acted:?}");
    worker.handle(at(1), Input::Settled);
    worker.handle(at(2), Input::Woken(vec![source("a")]));
    worker.handle(at(2), claims(5..5));
    end(&mut worker, at(3), &failed(), 2);
    let acted = actions(&mut worker, at(3));
    assert_eq!(outcomes(&acted), [Outcome::DeadLetter(Reason::Exhausted); 2], "the old policy");
    assert_eq!(asked(&acted), []);
    worker.handle(at(3), Input::Settled);
    assert_eq!(worker.load(), Load::default());
    for n in 1..10 {
        let now = at(10_000 * n);
        let all = core::iter::from_fn(|| worker.poll(now)).collect::<Vec<_>>();
        assert!(asked(&all).iter().all(|demand| demand.source == source("b")), "{all:?}");
        worker.handle(now, claims(5..5));
        assert!(offers(&mut worker, now).iter().all(|(name, ..)| *name == "b"));
    }
}

#[test]
fn events_that_come_for_a_removed_source_are_released() {
    let mut worker = offering(&timeout(10, 2));
    worker.handle(START, Input::Woken(vec![source("a")]));
    assert_eq!(limits(&actions(&mut worker, START)), [2]);
    worker.handle(at(1), with(&[]));
    worker.handle(at(2), claims(0..2));
    worker.handle(at(2), handed(START, 2));
    assert_eq!(outcomes(&actions(&mut worker, at(2))), [Outcome::Release; 3]);
    assert_eq!(worker.load().held_bytes, 0);
    worker.handle(at(19_999), Input::SettleFailed);
    assert_eq!(worker.load().unsettled, 3, "the releases are retried while the lease lasts");
    assert_eq!(outcomes(&actions(&mut worker, at(30_000))), [Outcome::Release; 3]);
    worker.handle(at(30_000), Input::SettleFailed);
    assert!(
        matches!(&actions(&mut worker, at(30_000))[..], [Action::Abandoned(all)] if all.len() == 3)
    );
    assert_eq!(worker.wake_at(), None, "without sources there is nothing to do");
}

#[test]
fn a_source_that_is_added_again_has_a_new_breaker_and_its_slots_in_use() {
    let breaker = BreakerPolicy { failures: 1, refusals: 0, open_for: secs(10) };
    let policy = Policy { breaker, ..timeout(10, 3) };
    let mut worker = started(&policy);
    worker.handle(START, claims(0..3));
    let _ = actions(&mut worker, START);
    end(&mut worker, at(1), &failed(), 1);
    worker.handle(at(1), with(&[]));
    let acted = actions(&mut worker, at(1));
    assert_eq!(breakers(&acted), [""; 0], "no state is reported for a removed source");
    assert_eq!(worker.wake_at().map(|wake| wake.reason), None);
    end(&mut worker, at(2), &failed(), 1);
    assert_eq!(breakers(&actions(&mut worker, at(2))), [""; 0]);
    worker.handle(at(3), with(&[("a", &policy)]));
    let acted = actions(&mut worker, at(3));
    assert_eq!((breakers(&acted), limits(&acted)), (vec![], vec![2]), "one delivery is in flight");
    worker.handle(at(4), claims(3..3));
    assert_eq!(offers(&mut worker, at(4)), [("a", 2, policy.lease())]);
}

#[test]
fn the_rate_of_a_removed_source_is_forgotten() {
    let rated = Policy { rate: NonZeroU32::new(1), ..timeout(10, 100) };
    let mut worker = started(&rated);
    worker.handle(START, claims(0..2));
    let _ = actions(&mut worker, START);
    worker.handle(START, with(&[]));
    assert_eq!(outcomes(&actions(&mut worker, START)), [Outcome::Release]);
    assert_eq!(worker.wake_at(), None);
    worker.handle(at(1), with(&[("a", &rated)]));
    let _ = actions(&mut worker, at(1));
    worker.handle(at(2), claims(2..4));
    assert_eq!(tickets(&actions(&mut worker, at(2))).len(), 1, "the rate starts new");
}

#[test]
fn a_source_that_is_added_again_is_claimed_for_before_it_is_offered() {
    let policy = timeout(10, 2);
    let mut worker = offering(&policy);
    worker.handle(at(1), with(&[]));
    assert_eq!(actions(&mut worker, at(1)), []);
    worker.handle(at(2), with(&[("a", &policy)]));
    let all = core::iter::from_fn(|| worker.poll(at(2))).collect::<Vec<_>>();
    assert!(matches!(&all[..], [Action::Claim(_)]), "{all:?}");
    // The size of the next event is unknown again: another process may have delivered it.
    let held_back = vec![HeldBack { source: source("a"), size: MAX_HELD / 2 }];
    worker.handle(at(3), Input::Claimed(Claims { held_back, ..Claims::default() }));
    worker.handle(at(3), with(&[]));
    worker.handle(at(3), with(&[("a", &policy)]));
    assert_eq!(asked(&actions(&mut worker, at(3)))[0].bytes, MAX_HELD / 4);
}

#[test]
fn the_shares_of_memory_follow_the_limit_and_the_sources() {
    let policy = timeout(10, 16);
    let reload = |names: &[&str], max_held_bytes| Input::Reconfigured {
        sources: names.iter().map(|name| (source(name), policy.clone())).collect(),
        max_held_bytes,
    };
    let mut worker = Worker::new(
        START,
        Settings { max_held_bytes: LIMIT, ..unpaced() },
        [(source("a"), policy.clone())],
    );
    let _ = actions(&mut worker, START);
    worker.handle(
        START,
        Input::Claimed(Claims { claimed: vec![heavy(0, 12_000)], ..Claims::default() }),
    );
    let bytes = |worker: &mut Worker| {
        let all = core::iter::from_fn(|| worker.poll(START)).collect::<Vec<_>>();
        let offers = all.into_iter().filter_map(|action| {
            if let Action::Offer { source, bytes, .. } = action {
                Some((source, bytes))
            } else {
                None
            }
        });
        offers.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(bytes(&mut worker), BTreeMap::from([(source("a"), LIMIT / 4)]));
    worker.handle(START, claims(0..0));
    worker.handle(START, reload(&["a", "b"], LIMIT));
    worker.memory.check();
    assert_eq!(worker.memory.room(0), 0, "it holds more than its new share");
    assert_eq!(bytes(&mut worker), BTreeMap::from([(source("a"), LIMIT / 8)]));
    worker.handle(START, claims(0..0));
    assert_eq!(bytes(&mut worker), BTreeMap::from([(source("b"), LIMIT / 8)]));
    worker.handle(START, reload(&["b"], 2 * LIMIT));
    worker.memory.check();
    assert_eq!(bytes(&mut worker), BTreeMap::from([(source("b"), LIMIT / 2)]));
    end(&mut worker, START, &ok(), 1);
    worker.memory.check();
    assert_eq!(worker.load().held_bytes, 0);
}

#[test]
fn memory_that_was_reserved_for_no_claim_is_reserved_again_by_the_new_shares() {
    let policy = timeout(10, 16);
    let mut worker = Worker::new(
        START,
        Settings { max_held_bytes: LIMIT, ..unpaced() },
        [(source("a"), policy.clone())],
    );
    let _ = actions(&mut worker, START);
    let held_back = vec![HeldBack { source: source("a"), size: LIMIT / 2 }];
    worker.handle(START, Input::Claimed(Claims { held_back, ..Claims::default() }));
    worker.memory.check();
    let sources = || vec![(source("a"), policy.clone())];
    worker.handle(START, Input::Reconfigured { sources: sources(), max_held_bytes: LIMIT / 4 });
    worker.memory.check();
    let demands = asked(&actions(&mut worker, START));
    assert_eq!(demands[0].bytes, LIMIT / 2, "a single event may exceed the limit");
    // The claim in flight keeps its memory.
    worker.handle(START, Input::Reconfigured { sources: sources(), max_held_bytes: LIMIT });
    worker.memory.check();
    let claimed = vec![heavy(0, LIMIT / 2)];
    worker.handle(START, Input::Claimed(Claims { claimed, ..Claims::default() }));
    worker.memory.check();
    assert_eq!(tickets(&actions(&mut worker, START)).len(), 1);
    end(&mut worker, START, &ok(), 1);
    worker.memory.check();
}

#[test]
fn a_reload_during_the_shutdown_has_no_effect() {
    let policy = Policy { max_attempts: 1, ..timeout(10, 1) };
    let mut worker = started(&policy);
    worker.handle(START, claims(0..1));
    let _ = actions(&mut worker, START);
    worker.handle(at(1), Input::ShutDown { cut_off_at: at(9_000), give_up_at: at(10_000) });
    worker.handle(at(2), with(&[("a", &timeout(10, 5)), ("b", &timeout(10, 5))]));
    assert_eq!(actions(&mut worker, at(2)), []);
    end(&mut worker, at(3), &failed(), 1);
    assert_eq!(
        outcomes(&actions(&mut worker, at(3))),
        [Outcome::DeadLetter(Reason::Exhausted)],
        "under the policy before the shutdown"
    );
    worker.handle(at(3), Input::Settled);
    assert_eq!(actions(&mut worker, at(3)), [Action::Done]);
}
