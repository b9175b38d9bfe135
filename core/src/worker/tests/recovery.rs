//! Tests of what a worker does after a failure of the store or of a downstream, of a turn between
//! more sources than one claim can have, and of a shutdown that is signalled again.

use super::*;
use alloc::format;

#[test]
fn a_successful_claim_ends_the_back_off() {
    let mut worker = worker(1);
    let mut now = START;
    for _ in 0..6 {
        assert_eq!(limits(&actions(&mut worker, now)), [1]);
        worker.handle(now, Input::ClaimFailed);
        let _ = actions(&mut worker, now);
        now = worker.wake_at().unwrap().at;
    }
    assert_eq!(limits(&actions(&mut worker, now)), [1]);
    worker.handle(now, claims(0..0));
    worker.handle(now, Input::Woken(vec![source("a")]));
    assert_eq!(limits(&actions(&mut worker, now)), [1]);
    worker.handle(now, Input::ClaimFailed);
    let _ = actions(&mut worker, now);
    let wait = worker.wake_at().unwrap().at.since(now);
    assert!(wait <= Settings::default().store_retry_initial, "{wait:?}");
}

#[test]
fn a_delivery_has_its_timeout_however_much_of_the_lease_is_left() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(at(100), claims(0..1));
    let acted = actions(&mut worker, at(100));
    let [Action::Deliver(Dispatch { deadline, .. }), ..] = &acted[..] else {
        panic!("{acted:?}");
    };
    assert_eq!(*deadline, at(100) + Policy::default().timeout);
}

#[test]
fn a_half_open_breaker_claims_its_probe_without_waiting_for_a_poll() {
    let breaker = crate::breaker::BreakerPolicy { failures: 2, refusals: 0, open_for: secs(10) };
    let policy = Policy { concurrency: 3, breaker, ..Policy::default() };
    let sources = [(source("a"), policy), (source("b"), Policy::default())];
    let mut worker = Worker::new(START, unpaced(), sources);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..2));
    let _ = actions(&mut worker, START);
    // The claim for the third slot finds nothing, and then the breaker opens.
    worker.handle(START, claims(0..0));
    end(&mut worker, at(1), &failed(), 2);
    assert_eq!(breakers(&actions(&mut worker, at(1))), ["open"]);
    worker.handle(at(1), Input::Settled);
    // A poll of the other source just before the end.
    assert_eq!(limits(&actions(&mut worker, at(10_000))).len(), 1);
    worker.handle(at(10_000), claims(0..0));
    let _ = actions(&mut worker, at(10_000));

    let acted = actions(&mut worker, at(10_001));
    assert_eq!((breakers(&acted), limits(&acted)), (vec!["half_open"], vec![1]));
}

#[test]
fn sources_without_a_seat_in_a_full_claim_are_in_the_next_one() {
    let names: Vec<SourceName> =
        (0..BATCH_ROWS + 100).map(|n| source(&format!("s{n:03}"))).collect();
    let sources = names.iter().map(|name| (name.clone(), Policy::default()));
    let mut worker = Worker::new(START, unpaced(), sources);
    worker.handle(START, Input::Woken(names.clone()));
    let mut demanded = |answer: Claims| {
        let acted = actions(&mut worker, START);
        let demands = acted.into_iter().find_map(|action| {
            if let Action::Claim(demands) = action { Some(demands) } else { None }
        });
        worker.handle(START, Input::Claimed(answer));
        demands.unwrap().into_iter().map(|demand| demand.source).collect::<BTreeSet<_>>()
    };
    // Each source in the first claim has an event, and probably more.
    let each = names.iter().take(BATCH_ROWS as usize).zip(0..);
    let claimed = each.map(|(name, n)| Claim { source: name.clone(), ..claim(n) }).collect();
    let first = demanded(Claims { claimed, ..Claims::default() });
    let next = demanded(Claims::default());
    assert_eq!(first.len(), BATCH_ROWS as usize);
    assert!(names.iter().all(|name| first.contains(name) || next.contains(name)));
}

#[test]
fn a_further_shutdown_input_never_extends_the_shutdown() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..1));
    let _ = actions(&mut worker, START);
    for seconds in [2, 5] {
        let (cut_off_at, give_up_at) = (at(seconds * 1_000), at(seconds * 1_000 + 500));
        worker.handle(at(1), Input::ShutDown { cut_off_at, give_up_at });
    }
    assert_eq!(worker.wake_at(), Some(Wake { at: at(2_000), reason: Step::CutOff }));
    let _ = actions(&mut worker, at(2_000));
    assert_eq!(worker.wake_at(), Some(Wake { at: at(2_500), reason: Step::GiveUp }));
}

#[test]
fn a_batch_of_settlements_is_bounded_however_many_wait() {
    let mut worker = worker(BATCH_ROWS + 100);
    let (mut claimed, mut acted) = (0, actions(&mut worker, START));
    while worker.load().in_flight < BATCH + 10 {
        let limit = u128::from(limits(&acted)[0]);
        worker.handle(START, claims(claimed..claimed + limit));
        claimed += limit;
        acted = actions(&mut worker, START);
    }
    let mut batches = Vec::new();
    let mut settle = |worker: &mut Worker, now| {
        batches.extend(actions(worker, now).iter().filter_map(|action| {
            if let Action::Settle(batch) = action { Some(batch.len()) } else { None }
        }));
    };
    // While the first settlement is in flight, all others are owed.
    end(&mut worker, at(1), &ok(), 1);
    settle(&mut worker, at(1));
    end(&mut worker, at(2), &ok(), BATCH + 5);
    worker.handle(at(3), Input::Settled);
    settle(&mut worker, at(3));
    worker.handle(at(4), Input::Settled);
    settle(&mut worker, at(4));
    assert_eq!(batches, [1, BATCH, 5]);
}
