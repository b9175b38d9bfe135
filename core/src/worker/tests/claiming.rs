//! How much a worker asks for, in which turn, and when it asks again.

use super::*;

/// A worker of three sources, each of which could take 300 events at once.
fn of_three() -> Worker {
    let policy = Policy { concurrency: 300, ..Policy::default() };
    Worker::new(START, unpaced(), ["a", "b", "c"].map(|name| (source(name), policy.clone())))
}

#[test]
fn a_claim_is_no_larger_than_a_batch_and_the_next_begins_where_it_ended() {
    let mut worker = of_three();
    assert_eq!(limits(&actions(&mut worker, START)), [300, BATCH_ROWS - 300]);
    worker.handle(START, claims(0..0));
    worker.handle(START, Input::Woken(vec![source("a"), source("b"), source("c")]));
    let Some(Action::Claim(demands)) = worker.poll(START) else { panic!("a claim") };
    let asked: Vec<(&str, u32)> = demands.iter().map(|demand| (demand.source.as_str(), demand.limit)).collect();
    assert_eq!(asked, [("c", 300), ("a", BATCH_ROWS - 300)]);
}

/// A claim of an event that takes so many bytes.
fn heavy(n: u128, bytes: usize) -> Claim {
    Claim { headers: vec![b'h'; 4].into(), body: vec![b'b'; bytes - 4].into(), ..claim(n) }
}

#[test]
fn no_more_is_asked_for_than_there_is_memory_for_and_what_has_ended_frees_its_own() {
    let settings = Settings { max_held_bytes: 10_000, ..unpaced() };
    let policy = Policy { concurrency: 100, ..Policy::default() };
    let mut worker = Worker::new(START, settings, [(source("a"), policy)]);
    let _ = actions(&mut worker, START);
    for round in 0..5 {
        // Six at once take more than half of the memory, and there is room for as many as are typical in the rest.
        worker.handle(at(round), Input::Claimed(Claims { claimed: (0..6).map(|n| heavy(n, 1_000)).collect(), buried: vec![] }));
        let acted = actions(&mut worker, at(round));
        assert!(limits(&acted).iter().all(|limit| (1..=4).contains(limit)) && !limits(&acted).is_empty(), "{:?}", limits(&acted));
        assert_eq!(tickets(&acted).len(), 6);
        end(&mut worker, at(round), &ok(), 6);
        let _ = actions(&mut worker, at(round));
        worker.handle(at(round), Input::Settled);
        assert_eq!(worker.load(), Load::default());
    }
    // What fills the memory stops the claims, until some of it is gone, also unsent.
    worker.handle(at(9), Input::Claimed(Claims { claimed: vec![heavy(1, 10_000)], buried: vec![] }));
    assert_eq!(limits(&actions(&mut worker, at(9))), []);
    let stranger = Claim { source: source("gone"), ..heavy(2, 10_000) };
    end(&mut worker, at(10), &ok(), 1);
    let acted = actions(&mut worker, at(10));
    assert_eq!((outcomes(&acted).len(), limits(&acted).len()), (1, 1));
    worker.handle(at(11), Input::Settled);
    worker.handle(at(11), Input::Claimed(Claims { claimed: vec![stranger], buried: vec![] }));
    worker.handle(at(11), Input::Woken(vec![source("a")]));
    let acted = actions(&mut worker, at(11));
    assert_eq!((outcomes(&acted), limits(&acted).len()), (vec![Outcome::Release], 1));
}

#[test]
fn as_many_are_claimed_ahead_as_are_consumed_from_one_claim_to_the_next() {
    let pace = Duration::from_millis(2);
    let policy = Policy { concurrency: 16, ..Policy::default() };
    let mut worker =
        Worker::new(START, Settings { claim_pace: pace, settle_pace: Duration::ZERO, ..Settings::default() }, [(source("a"), policy)]);
    let mut now = START;
    for round in 0..20 {
        let _ = actions(&mut worker, now);
        // The claim takes a quarter of the pace, in which three deliveries end: twelve from one claim to the next.
        end(&mut worker, now, &ok(), 3);
        let _ = actions(&mut worker, now);
        now = now + pace / 4;
        worker.handle(now, claims(round * 12..round * 12 + 12));
        end(&mut worker, now, &ok(), 9);
        let _ = actions(&mut worker, now);
        if worker.settling.is_some() {
            worker.handle(now, Input::Settled);
        }
        now = now + pace;
    }
    let asked_in_all = worker.lanes[0].demand() as usize + worker.load().ahead + worker.load().in_flight;
    assert!((16 + 10..=16 + 12).contains(&asked_in_all), "{asked_in_all}");
}

#[test]
fn work_brings_the_polls_back_to_their_pace_and_so_does_what_was_buried() {
    for buried in [false, true] {
        let mut worker = worker(1);
        let mut now = START;
        // Idle for long: the polls are far apart.
        for _ in 0..8 {
            let _ = actions(&mut worker, now);
            worker.handle(now, claims(0..0));
            let _ = actions(&mut worker, now);
            now = worker.wake_at().unwrap().at;
        }
        let _ = actions(&mut worker, now);
        let came = if buried {
            Claims { claimed: vec![], buried: vec![Buried { event: claim(0).event, source: source("a"), attempt: 2 }] }
        } else {
            Claims { claimed: vec![Claim { source: source("gone"), ..claim(0) }], buried: vec![] }
        };
        worker.handle(now, Input::Claimed(came));
        assert_eq!(worker.polling.interval, worker.settings.poll_busy);
        assert!(worker.polling.at <= now + worker.settings.poll_busy, "{buried}");
    }
}

#[test]
fn what_is_in_flight_is_held_without_its_bytes() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(START, Input::Claimed(Claims { claimed: vec![heavy(0, 100)], buried: vec![] }));
    let Some(Action::Deliver(delivery)) = worker.poll(START) else { panic!("a delivery") };
    assert_eq!((delivery.claim.size(), worker.in_flight[&delivery.ticket].claim.size()), (100, 0));
}

#[test]
fn workers_and_polls_wait_apart() {
    let second = secs(1);
    let wait = |seed, count| Worker::new(START, Settings { seed, ..unpaced() }, []).jittered(second, count);
    let one = wait(7, 1);
    let others = (0..64).map(|bit| wait(7 ^ (1 << bit), 1)).chain((0..64).map(|bit| wait(7, 1 ^ (1 << bit))));
    let apart: BTreeSet<Duration> = others.inspect(|wait| assert!(*wait >= second / 2 && *wait <= second)).collect();
    assert!(apart.len() == 128 && !apart.contains(&one));
    let mut idle = worker(1);
    let _ = actions(&mut idle, START);
    idle.handle(START, claims(0..0));
    let counts = [0, 1].map(|_| {
        let at = idle.polling.at;
        let _ = actions(&mut idle, at);
        idle.handle(at, claims(0..0));
        idle.polling.count
    });
    assert_eq!(counts, [1, 2], "each poll has a wait of its own");
}

#[test]
fn events_that_take_no_memory_are_claimed_like_others() {
    let mut worker = worker(4);
    let _ = actions(&mut worker, START);
    let empty = (0..2).map(|n| Claim { body: Bytes::new(), ..claim(n) }).collect();
    worker.handle(START, Input::Claimed(Claims { claimed: empty, buried: vec![] }));
    assert_eq!(limits(&actions(&mut worker, START)), [2]);
}
