//! Tests of a worker's decisions, one situation each. The invariants over all sequences of inputs
//! are checked in `sim/model/src/targets/worker/`, by proptest and by the fuzzer; those of a reload
//! in `reconfiguring_at_random`.

mod accounts;
mod claiming;
mod memory;
mod offering;
mod reconfiguring;
mod reconfiguring_at_random;
mod recovery;
mod shortage;

use super::*;
use crate::event::Reason;
use crate::id::{BudgetAttempt, EventId, Fence};
use crate::source::WAIT_ALLOWANCE;
use alloc::vec;
use bytes::Bytes;
use claims::{Claims, DeadLettered};
use uuid::Uuid;

const START: Instant = Instant::ZERO;

fn source(name: &str) -> SourceName {
    SourceName::parse(name).unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(millis: u64) -> Instant {
    Instant::from_origin(Duration::from_millis(millis))
}

fn worker(concurrency: u32) -> Worker {
    let policy = Policy { concurrency, max_attempts: 2, ..Policy::default() };
    Worker::new(START, unpaced(), [(source("a"), policy)])
}

/// Settings without pauses between claims and between batches, so that tests need not let time
/// pass.
fn unpaced() -> Settings {
    Settings { claim_pace: Duration::ZERO, settle_pace: Duration::ZERO, ..Settings::default() }
}

fn claim(n: u128) -> Claim {
    Claim {
        event: EventId::from_uuid(Uuid::from_u128(n)),
        source: source("a"),
        fence: Fence(1),
        attempt: 1,
        in_budget: BudgetAttempt(1),
        age: Duration::ZERO,
        received_at: jiff::Timestamp::UNIX_EPOCH,
        query: Bytes::new(),
        headers: Bytes::new(),
        body: Bytes::from_static(b"body"),
    }
}

/// A claim of an event with this total size.
fn heavy(n: u128, bytes: usize) -> Claim {
    Claim { headers: vec![b'h'; 4].into(), body: vec![b'b'; bytes - 4].into(), ..claim(n) }
}

fn claims(events: core::ops::Range<u128>) -> Input {
    Input::Claimed(Claims { claimed: events.map(claim).collect(), ..Claims::default() })
}

fn ok() -> Reply {
    Reply::Response { status_code: 200, retry_after: None, excerpt: Bytes::new() }
}

/// All actions that are due now, except offers.
fn actions(worker: &mut Worker, now: Instant) -> Vec<Action> {
    core::iter::from_fn(|| worker.poll(now))
        .filter(|action| !matches!(action, Action::Offer { .. }))
        .collect()
}

fn tickets(actions: &[Action]) -> Vec<Ticket> {
    actions
        .iter()
        .filter_map(|action| {
            if let Action::Deliver(delivery) = action { Some(delivery.ticket) } else { None }
        })
        .collect()
}

fn limits(actions: &[Action]) -> Vec<u32> {
    let demands = actions.iter().filter_map(|action| {
        if let Action::Claim(demands) = action { Some(demands) } else { None }
    });
    demands.flatten().map(|demand| demand.limit).collect()
}

fn outcomes(actions: &[Action]) -> Vec<Outcome> {
    let batches = actions
        .iter()
        .filter_map(|action| if let Action::Settle(batch) = action { Some(batch) } else { None });
    batches.flatten().map(|settlement| settlement.outcome).collect()
}

#[test]
fn a_worker_claims_delivers_and_settles() {
    let mut worker = worker(2);
    assert_eq!(limits(&actions(&mut worker, START)), [2]);
    worker.handle(at(5), claims(0..1));
    let delivering = actions(&mut worker, at(5));
    assert_eq!(tickets(&delivering).len(), 1);
    assert_eq!(limits(&delivering), [1], "the claim returned an event, so there may be others");
    worker.handle(at(9), Input::Finished { ticket: tickets(&delivering)[0], reply: ok() });
    let settling = actions(&mut worker, at(9));
    assert_eq!(outcomes(&settling), [Outcome::Delivered]);
    worker.handle(at(12), Input::Settled);
    assert_eq!(worker.load(), Load::default());
}

#[test]
fn a_settlement_has_the_events_age_at_the_reply() {
    let mut worker = worker(2);
    actions(&mut worker, at(1_000));
    worker.handle(
        at(1_005),
        Input::Claimed(Claims {
            claimed: vec![Claim { age: secs(3_600), ..claim(0) }],
            ..Claims::default()
        }),
    );
    let ticket = tickets(&actions(&mut worker, at(1_006)))[0];
    worker.handle(at(1_250), Input::Finished { ticket, reply: ok() });
    let Some(Action::Settle(batch)) = actions(&mut worker, at(1_300)).pop() else {
        panic!("expected a batch of settlements")
    };
    assert_eq!(
        batch[0].age,
        secs(3_600) + Duration::from_millis(250),
        "counted from the start of the claim"
    );
    let stranger = Claim { source: source("gone"), age: secs(5), ..claim(1) };
    worker.handle(at(1_310), Input::Settled);
    worker
        .handle(at(1_320), Input::Claimed(Claims { claimed: vec![stranger], ..Claims::default() }));
    let Some(Action::Settle(batch)) = actions(&mut worker, at(1_330)).pop() else {
        panic!("expected a batch of settlements")
    };
    assert_eq!(
        (batch[0].outcome, batch[0].age),
        (Outcome::Release, secs(5) + Duration::from_millis(1_320 - 1_006))
    );
}

#[test]
fn settlements_accumulate_while_a_batch_is_in_flight() {
    let mut worker = worker(3);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..3));
    let tickets = tickets(&actions(&mut worker, START));
    worker.handle(at(1), Input::Finished { ticket: tickets[0], reply: ok() });
    assert_eq!(outcomes(&actions(&mut worker, at(1))).len(), 1);
    for &ticket in &tickets[1..] {
        worker.handle(at(2), Input::Finished { ticket, reply: ok() });
        assert_eq!(outcomes(&actions(&mut worker, at(2))), []);
    }
    worker.handle(at(4), Input::Settled);
    assert_eq!(outcomes(&actions(&mut worker, at(4))).len(), 2);
}

#[test]
fn events_are_claimed_ahead_only_for_a_fast_downstream() {
    let mut fast = worker(4);
    let _ = actions(&mut fast, START);
    fast.handle(START, claims(0..4));
    let _ = actions(&mut fast, START);
    let mut events = 4;
    for round in 1..20 {
        // While a claim is in flight, everything that the worker holds is consumed.
        while let Some(ticket) = fast.in_flight.keys().next().copied() {
            fast.handle(at(round), Input::Finished { ticket, reply: ok() });
            let _ = actions(&mut fast, at(round));
            if fast.settling.is_some() {
                fast.handle(at(round), Input::Settled);
            }
        }
        fast.handle(at(round), claims(events..events + 20));
        events += 20;
        let _ = actions(&mut fast, at(round));
    }
    let wanted = fast.queues[0].demand() as usize + fast.load().ahead + fast.load().in_flight;
    assert_eq!(wanted, 20, "the slots and four times their number ahead");

    let mut slow = worker(4);
    let _ = actions(&mut slow, START);
    slow.handle(START, claims(0..4));
    let _ = actions(&mut slow, START);
    assert_eq!(slow.queues[0].demand(), 0);
}

#[test]
fn an_empty_source_is_polled_less_often_until_woken() {
    let mut worker = worker(1);
    let (mut now, mut waits) = (START, vec![]);
    for _ in 0..8 {
        assert_eq!(limits(&actions(&mut worker, now)), [1]);
        worker.handle(now, claims(0..0));
        assert_eq!(actions(&mut worker, now), []);
        let wake = worker.wake_at().unwrap();
        assert_eq!(wake.reason, Step::Poll);
        waits.push(wake.at.since(now));
        now = wake.at;
    }
    assert!(waits[0] <= Duration::from_millis(100), "{waits:?}");
    assert!(waits[6] > Duration::from_millis(500) && waits[6] <= secs(1), "{waits:?}");
    assert_eq!(limits(&actions(&mut worker, now)), [1]);
    worker.handle(now, claims(0..0));
    worker.handle(now, Input::Woken(vec![source("a"), source("unknown")]));
    assert_eq!(limits(&actions(&mut worker, now)), [1]);
}

#[test]
fn a_source_woken_during_its_claim_is_claimed_again() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, Input::Woken(vec![source("a")]));
    worker.handle(START, claims(0..0));
    assert_eq!(limits(&actions(&mut worker, START)), [1]);
}

#[test]
fn an_event_that_waited_too_long_is_released_unsent() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..2));
    assert_eq!(tickets(&actions(&mut worker, START)).len(), 1);
    let wake = worker.wake_at().unwrap();
    assert_eq!((wake.at, wake.reason), (START + WAIT_ALLOWANCE, Step::Release));
    assert_eq!(outcomes(&actions(&mut worker, wake.at)), [Outcome::Release]);
}

#[test]
fn a_claim_whose_answer_took_too_long_is_released_unsent() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    let late = START + WAIT_ALLOWANCE + Duration::from_nanos(1);
    worker.handle(late, claims(0..1));
    let actions = actions(&mut worker, late);
    assert_eq!((tickets(&actions).len(), outcomes(&actions)), (0, vec![Outcome::Release]));
}

#[test]
fn a_settlement_is_retried_until_its_lease_ends_then_abandoned() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let ticket = tickets(&actions(&mut worker, START))[0];
    worker.handle(at(1), Input::Finished { ticket, reply: ok() });
    let first = actions(&mut worker, at(1));
    assert_eq!((outcomes(&first), limits(&first)), (vec![Outcome::Delivered], vec![1]));
    worker.handle(at(1), Input::ClaimFailed);
    worker.handle(at(1), Input::SettleFailed);
    let lease_ends = START + Policy::default().lease();
    let (mut now, mut tries) = (at(1), 1);
    loop {
        let due = actions(&mut worker, now);
        if let [Action::Abandoned(settlements), rest @ ..] = &due[..] {
            assert_eq!(settlements.len(), 1);
            assert_eq!(outcomes(rest), []);
            break;
        }
        if outcomes(&due) == [Outcome::Delivered] {
            assert_eq!(limits(&due), [0_u32; 0], "no claims while a settlement fails");
            tries += 1;
            worker.handle(now, Input::SettleFailed);
        }
        now = now.max(worker.wake_at().unwrap().at);
    }
    assert!(now >= lease_ends);
    assert!((6..=20).contains(&tries), "{tries}");
}

#[test]
fn a_late_reply_is_settled_although_its_lease_has_ended() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let ticket = tickets(&actions(&mut worker, START))[0];
    let late = START + secs(3600); // the process was paused
    worker.handle(late, Input::Finished { ticket, reply: ok() });
    assert_eq!(
        outcomes(&actions(&mut worker, late)),
        [Outcome::Delivered],
        "the fence decides, not the lease"
    );
}

#[test]
fn a_failing_store_is_called_less_and_less_often() {
    let mut worker = worker(1);
    let (mut now, mut waits) = (START, vec![]);
    for _ in 0..12 {
        assert_eq!(limits(&actions(&mut worker, now)), [1]);
        worker.handle(now, Input::ClaimFailed);
        assert_eq!(limits(&actions(&mut worker, now)), [0_u32; 0]);
        let wake = worker.wake_at().unwrap();
        waits.push(wake.at.since(now));
        now = wake.at;
    }
    assert!(
        waits[0] <= Duration::from_millis(50)
            && waits[11] >= Duration::from_millis(2_500)
            && waits[11] <= secs(5),
        "{waits:?}"
    );
}

#[test]
fn a_settlement_that_fails_is_sent_less_often_although_claims_succeed() {
    let mut worker = worker(2);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let taken = actions(&mut worker, START);
    assert_eq!(limits(&taken), [1], "a claim is in flight");
    worker.handle(at(1), Input::Finished { ticket: tickets(&taken)[0], reply: ok() });
    let (mut now, mut waits) = (at(1), vec![]);
    for round in 0..6 {
        assert_eq!(outcomes(&actions(&mut worker, now)).len(), 1);
        worker.handle(now, Input::SettleFailed);
        if round == 0 {
            worker.handle(now, claims(1..1));
        }
        let failed_at = now;
        while {
            let wake = worker.wake_at().unwrap();
            now = wake.at.max(now);
            wake.reason != Step::Settle
        } {
            assert_eq!(actions(&mut worker, now), [], "no claim while settlements wait");
        }
        waits.push(now.since(failed_at));
    }
    assert!(
        waits[0] >= Duration::from_millis(25) && waits[5] >= Duration::from_millis(750),
        "{waits:?}"
    );
}

#[test]
fn a_claim_that_fails_is_sent_less_often_although_settlements_succeed() {
    let mut worker = worker(2);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let taken = actions(&mut worker, START);
    assert_eq!(limits(&taken), [1], "a claim is in flight");
    worker.handle(at(1), Input::Finished { ticket: tickets(&taken)[0], reply: ok() });
    assert_eq!(outcomes(&actions(&mut worker, at(1))).len(), 1);
    worker.handle(at(1), Input::ClaimFailed);
    worker.handle(at(1), Input::Settled);
    assert_eq!(actions(&mut worker, at(1)), [], "the claim waits");
    assert!(worker.wake_at().unwrap().at >= at(1) + Duration::from_millis(25));
}

#[test]
fn a_shutdown_releases_waiting_events_and_finishes_deliveries() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..3));
    let ticket = tickets(&actions(&mut worker, START))[0];
    worker.handle(at(1), Input::ShutDown { cut_off_at: at(9_000), give_up_at: at(10_000) });
    let later = at(200);
    assert_eq!(outcomes(&actions(&mut worker, later)), [Outcome::Release, Outcome::Release]);
    worker.handle(later, Input::Settled);
    worker.handle(later, Input::Finished { ticket, reply: ok() });
    assert_eq!(outcomes(&actions(&mut worker, later)), [Outcome::Delivered]);
    worker.handle(later, Input::Settled);
    assert_eq!(actions(&mut worker, later), [Action::Done]);
    assert_eq!(worker.wake_at(), None);
}

#[test]
fn a_claim_that_returns_during_shutdown_is_released() {
    let mut worker = worker(2);
    let _ = actions(&mut worker, START);
    worker.handle(START, Input::ShutDown { cut_off_at: at(9_000), give_up_at: at(10_000) });
    assert_eq!(actions(&mut worker, START), [], "the shutdown waits for the claim");
    worker.handle(at(3), claims(0..2));
    assert_eq!(outcomes(&actions(&mut worker, at(3))), [Outcome::Release, Outcome::Release]);
}

#[test]
fn deliveries_in_flight_after_the_drain_are_cut_off_uncharged() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let ticket = tickets(&actions(&mut worker, START))[0];
    worker.handle(START, Input::ShutDown { cut_off_at: at(100), give_up_at: at(200) });
    assert_eq!(worker.wake_at().map(|wake| (wake.at, wake.reason)), Some((at(100), Step::CutOff)));
    let cut = actions(&mut worker, at(100));
    assert_eq!(outcomes(&cut), [Outcome::CutOff]);
    worker.handle(at(101), Input::Finished { ticket, reply: ok() });
    worker.handle(at(101), Input::Settled);
    assert_eq!(actions(&mut worker, at(101)), [Action::Done]);
}

#[test]
fn results_that_arrive_after_the_end_are_ignored() {
    // The delivery is cut off before the end, or by the end.
    for cut_off_at in [at(100), at(200)] {
        let mut worker = worker(2);
        let _ = actions(&mut worker, START);
        worker.handle(START, claims(0..1));
        let delivering = actions(&mut worker, START);
        let ticket = tickets(&delivering)[0];
        assert_eq!(limits(&delivering), [1], "a claim is in flight");
        worker.handle(at(1), Input::ShutDown { cut_off_at, give_up_at: at(200) });
        assert_eq!(actions(&mut worker, at(300)).last(), Some(&Action::Done));
        worker.handle(at(301), Input::Finished { ticket, reply: ok() });
        worker.handle(at(301), Input::Settled);
        worker.handle(at(301), claims(1..2));
        worker.handle(at(301), Input::ShutDown { cut_off_at: at(400), give_up_at: at(500) });
        assert_eq!(actions(&mut worker, at(600)), []);
        assert_eq!(worker.load(), Load::default());
    }
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "the result of a delivery that is not in flight")]
fn a_delivery_is_reported_once() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let ticket = tickets(&actions(&mut worker, START))[0];
    worker.handle(at(1), Input::Finished { ticket, reply: ok() });
    worker.handle(at(1), Input::Finished { ticket, reply: ok() });
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "a claim returned that is not in flight")]
fn a_claim_is_reported_once() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..0));
    worker.handle(START, claims(0..0));
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "settlements were written that are not in flight")]
fn a_batch_of_settlements_is_reported_once() {
    let mut worker = worker(1);
    worker.handle(START, Input::Settled);
}

#[test]
fn the_end_of_the_shutdown_abandons_pending_settlements() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let ticket = tickets(&actions(&mut worker, START))[0];
    worker.handle(at(1), Input::Finished { ticket, reply: ok() });
    let _ = actions(&mut worker, at(1)); // the settlement is in flight and never answered
    worker.handle(at(1), Input::ShutDown { cut_off_at: at(100), give_up_at: at(200) });
    assert_eq!(worker.load().unsettled, 1, "a settlement in flight is not settled yet");
    let last = actions(&mut worker, at(200));
    assert!(
        matches!(&last[..], [Action::Abandoned(settlements), Action::Done] if settlements.len() == 1),
        "{last:?}"
    );
}

#[test]
fn a_failed_last_attempt_is_dead_lettered() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(
        START,
        Input::Claimed(Claims {
            claimed: vec![Claim { attempt: 5, in_budget: BudgetAttempt(2), ..claim(0) }],
            ..Claims::default()
        }),
    );
    let ticket = tickets(&actions(&mut worker, START))[0];
    worker.handle(at(7), Input::Finished { ticket, reply: Reply::Failed(DeliveryError::Timeout) });
    let settling = actions(&mut worker, at(9));
    let [Action::Settle(batch), ..] = &settling[..] else { panic!("{settling:?}") };
    assert_eq!((batch[0].outcome, batch[0].attempt), (Outcome::DeadLetter(Reason::Exhausted), 5));
    let record = batch[0].record.as_ref().unwrap();
    assert_eq!(
        (record.took, record.ended_ago),
        (Duration::from_millis(7), Duration::from_millis(2))
    );
}

#[test]
fn a_claim_with_only_dead_lettered_events_is_followed_by_another() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    let dead_lettered = vec![DeadLettered {
        event: claim(0).event,
        source: source("a"),
        attempt: 2,
        reason: Reason::Lost,
    }];
    worker.handle(START, Input::Claimed(Claims { dead_lettered, ..Claims::default() }));
    assert_eq!(limits(&actions(&mut worker, START)), [1]);
}

#[test]
fn busy_sources_do_not_starve_others() {
    let policy = Policy { concurrency: 400, ..Policy::default() };
    let mut worker =
        Worker::new(START, unpaced(), ["a", "b", "c"].map(|name| (source(name), policy.clone())));
    let mut asked = BTreeSet::new();
    for _ in 0..3 {
        for action in actions(&mut worker, START) {
            let Action::Claim(demands) = action else { continue };
            assert!(demands.iter().map(|demand| demand.limit).sum::<u32>() <= BATCH_ROWS);
            asked.extend(demands.into_iter().map(|demand| demand.source));
        }
        worker.handle(START, claims(0..0));
        worker.handle(START, Input::Woken(vec![source("a"), source("b"), source("c")]));
    }
    assert_eq!(asked.len(), 3);
}

#[test]
fn claims_and_settlements_keep_their_minimum_interval() {
    let Settings { claim_pace, settle_pace, .. } = Settings::default();
    let concurrency = FULL_ROWS + 3;
    let policy = Policy { concurrency, ..Policy::default() };
    let mut worker = Worker::new(START, Settings::default(), [(source("a"), policy)]);
    assert_eq!(limits(&actions(&mut worker, START)), [concurrency]);
    worker.handle(START, claims(0..FULL as u128 + 2));
    let delivering = actions(&mut worker, START);
    assert_eq!(limits(&delivering), [0_u32; 0], "the next claim waits");
    assert_eq!(worker.wake_at(), Some(Wake { at: START + claim_pace, reason: Step::Claim }));
    let tickets = tickets(&delivering);

    worker.handle(START, Input::Finished { ticket: tickets[0], reply: ok() });
    assert_eq!(outcomes(&actions(&mut worker, START)).len(), 1, "the first batch is sent at once");
    worker.handle(START, Input::Settled);
    worker.handle(START, Input::Finished { ticket: tickets[1], reply: ok() });
    assert_eq!(outcomes(&actions(&mut worker, START + claim_pace)), [], "the second batch waits");
    worker.handle(START + claim_pace, claims(0..0));
    let _ = actions(&mut worker, START + claim_pace);
    assert_eq!(worker.wake_at(), Some(Wake { at: START + settle_pace, reason: Step::Settle }));
    assert_eq!(outcomes(&actions(&mut worker, START + settle_pace)).len(), 1);

    worker.handle(START + settle_pace, Input::Settled);
    for &ticket in &tickets[2..] {
        worker.handle(START + settle_pace, Input::Finished { ticket, reply: ok() });
    }
    assert_eq!(
        outcomes(&actions(&mut worker, START + settle_pace)).len(),
        FULL,
        "a full batch does not wait"
    );
}

#[test]
fn a_shutdown_does_not_wait_for_the_settle_pace() {
    let mut worker = Worker::new(START, Settings::default(), [(source("a"), Policy::default())]);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..2));
    let tickets = tickets(&actions(&mut worker, START));
    for ticket in tickets {
        worker.handle(START, Input::Finished { ticket, reply: ok() });
        worker.handle(START, Input::ShutDown { cut_off_at: at(1000), give_up_at: at(2000) });
        assert_eq!(outcomes(&actions(&mut worker, START)).len(), 1);
        worker.handle(START, Input::Settled);
    }
}

fn failed() -> Reply {
    Reply::Response { status_code: 503, retry_after: None, excerpt: Bytes::new() }
}

fn breakers(actions: &[Action]) -> Vec<&'static str> {
    actions
        .iter()
        .filter_map(|action| {
            if let Action::Breaker(_, breaker) = action { Some(breaker.as_str()) } else { None }
        })
        .collect()
}

/// Ends this number of deliveries in flight.
fn end(worker: &mut Worker, now: Instant, reply: &Reply, deliveries: usize) {
    for ticket in worker.in_flight.keys().copied().take(deliveries).collect::<Vec<_>>() {
        worker.handle(now, Input::Finished { ticket, reply: reply.clone() });
    }
}

fn breaking(concurrency: u32) -> Worker {
    let breaker = crate::breaker::BreakerPolicy { failures: 2, refusals: 0, open_for: secs(10) };
    Worker::new(
        START,
        unpaced(),
        [(source("a"), Policy { concurrency, breaker, ..Policy::default() })],
    )
}

#[test]
fn an_open_breaker_releases_waiting_events_and_stops_claims() {
    let mut worker = breaking(2);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..5));
    assert_eq!(tickets(&actions(&mut worker, START)).len(), 2);
    end(&mut worker, at(1), &failed(), 2);
    let acted = actions(&mut worker, at(1));
    assert_eq!(breakers(&acted), ["open"]);
    let outcomes = outcomes(&acted);
    assert_eq!(
        outcomes.iter().filter(|outcome| **outcome == Outcome::Release).count(),
        3,
        "unsent events cost no attempt: {outcomes:?}"
    );
    assert_eq!((limits(&acted), tickets(&acted)), (vec![], vec![]));
    worker.handle(at(2), Input::Settled);
    worker.handle(at(3), Input::Woken(vec![source("a")]));
    assert_eq!(actions(&mut worker, at(3)), []);
    assert_eq!(worker.wake_at(), Some(Wake { at: at(10_001), reason: Step::HalfOpen }));

    let acted = actions(&mut worker, at(10_001));
    assert_eq!((breakers(&acted), limits(&acted)), (vec!["half_open"], vec![1]));
    worker.handle(at(10_002), claims(5..6));
    assert_eq!(tickets(&actions(&mut worker, at(10_002))).len(), 1);
    end(&mut worker, at(10_003), &failed(), 1);
    let acted = actions(&mut worker, at(10_003));
    assert_eq!(
        (breakers(&acted), limits(&acted)),
        (vec!["open"], vec![]),
        "only the probe costs an attempt"
    );
}

#[test]
fn concurrency_ramps_up_with_each_success_after_recovery() {
    let mut worker = breaking(4);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..2));
    let _ = actions(&mut worker, START);
    end(&mut worker, at(1), &failed(), 2);
    let _ = actions(&mut worker, at(1));
    worker.handle(at(2), Input::Claimed(Claims::default()));
    worker.handle(at(2), Input::Settled);
    let mut now = 10_001;
    let mut in_flight = Vec::new();
    let mut next = 10;
    while in_flight.len() < 4 {
        let acted = actions(&mut worker, at(now));
        let asked = limits(&acted).iter().sum::<u32>();
        worker.handle(at(now), claims(next..next + u128::from(asked)));
        next += 100;
        in_flight.push(tickets(&actions(&mut worker, at(now))).len());
        end(&mut worker, at(now + 1), &ok(), 10);
        if worker.settling.is_some() {
            worker.handle(at(now + 1), Input::Settled);
        }
        now += 2;
    }
    assert_eq!(in_flight, [1, 2, 4, 4]);
    assert!(worker.queues[0].breaker.is_closed());
}

#[test]
fn a_rate_limit_spaces_deliveries_and_limits_claims() {
    let policy =
        Policy { concurrency: 100, rate: core::num::NonZeroU32::new(5), ..Policy::default() };
    let mut worker = Worker::new(START, unpaced(), [(source("a"), policy)]);
    assert_eq!(limits(&actions(&mut worker, START)), [10]);
    worker.handle(START, claims(0..10));
    assert_eq!(tickets(&actions(&mut worker, START)).len(), 1);
    let mut starts = vec![0];
    while starts.len() < 6 {
        let wake = worker.wake_at().unwrap();
        assert_eq!(wake.reason, Step::Rate);
        let began = tickets(&actions(&mut worker, wake.at)).len();
        starts.extend(core::iter::repeat_n(wake.at.since_origin().as_millis(), began));
    }
    assert_eq!(starts, [0, 100, 300, 500, 700, 900]);
}

#[test]
fn deliveries_in_flight_do_not_count_against_the_rate_limit() {
    let policy =
        Policy { concurrency: 100, rate: core::num::NonZeroU32::new(5), ..Policy::default() };
    let mut worker = Worker::new(START, unpaced(), [(source("a"), policy)]);
    assert_eq!(limits(&actions(&mut worker, START)), [10]);
    worker.handle(START, claims(0..10));
    // The destination answers none of them, and each has one of the hundred slots.
    let (mut now, mut begun, mut claimed) = (START, 0, 10);
    while now < at(6_000) {
        let taken = actions(&mut worker, now);
        begun += tickets(&taken).len();
        for limit in limits(&taken) {
            assert!(limit <= 10, "what starts within two seconds");
            worker.handle(now, claims(claimed..claimed + u128::from(limit)));
            claimed += u128::from(limit);
        }
        now = worker.wake_at().unwrap().at.max(now);
    }
    assert!((29..=32).contains(&begun), "{begun} deliveries began in 6 s");
}

#[test]
fn a_delivery_from_before_the_breaker_opened_neither_delays_the_probe_nor_counts_as_it() {
    let mut worker = breaking(3);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..3));
    let old = tickets(&actions(&mut worker, START));
    for ticket in &old[..2] {
        worker.handle(at(1), Input::Finished { ticket: *ticket, reply: failed() });
    }
    assert_eq!(breakers(&actions(&mut worker, at(1))), ["open"]);
    worker.handle(at(2), Input::Settled);
    assert_eq!(limits(&actions(&mut worker, at(2))), [0_u32; 0]);
    let half_open = actions(&mut worker, at(10_001));
    assert_eq!((breakers(&half_open), limits(&half_open)), (vec!["half_open"], vec![1]));
    worker.handle(at(10_001), claims(3..4));
    let probe = tickets(&actions(&mut worker, at(10_001)));
    assert_eq!(probe.len(), 1);
    worker.handle(at(10_002), Input::Finished { ticket: old[2], reply: failed() });
    assert_eq!(breakers(&actions(&mut worker, at(10_002))), [""; 0]);
    worker.handle(at(10_003), Input::Finished { ticket: probe[0], reply: ok() });
    assert_eq!(breakers(&actions(&mut worker, at(10_003))), ["ramping"]);
}

#[test]
fn events_claimed_before_the_breaker_opened_are_released() {
    let mut worker = breaking(3);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..2));
    assert_eq!(limits(&actions(&mut worker, START)), [1], "a claim is in flight");
    end(&mut worker, at(1), &failed(), 2);
    assert_eq!(breakers(&actions(&mut worker, at(1))), ["open"]);
    worker.handle(at(2), Input::Settled);
    worker.handle(at(2), claims(2..3));
    assert_eq!(outcomes(&actions(&mut worker, at(2))), [Outcome::Release]);
    assert_eq!(worker.load().ahead, 0);
}
