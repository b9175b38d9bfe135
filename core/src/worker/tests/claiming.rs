//! Tests of claims: their size, the order of the sources, and polls.

use super::*;
use alloc::format;
use alloc::string::{String, ToString};

/// A worker of three sources with 300 slots each.
fn of_three() -> Worker {
    let policy = Policy { concurrency: 300, ..Policy::default() };
    Worker::new(START, unpaced(), ["a", "b", "c"].map(|name| (source(name), policy.clone())))
}

#[test]
fn a_claim_fits_a_batch_and_includes_every_source() {
    let mut worker = of_three();
    assert_eq!(
        limits(&actions(&mut worker, START)),
        [86, 86, 300],
        "half of an even share for two sources, the rest for the last"
    );
    let came = |name, count| (0..count).map(move |n| Claim { source: source(name), ..claim(n) });
    let claimed = came("a", 86).chain(came("b", 86)).chain(came("c", 300)).collect();
    worker.handle(START, Input::Claimed(Claims { claimed, ..Claims::default() }));
    let asked = asked(&actions(&mut worker, START));
    assert_eq!(
        asked.iter().map(|(name, limit)| (name.as_str(), *limit)).collect::<Vec<_>>(),
        [("a", 214), ("b", 214)]
    );
}

/// The demands of the only claim in `actions`.
fn asked(actions: &[Action]) -> Vec<(String, u32)> {
    let demands: Vec<_> = actions
        .iter()
        .filter_map(|action| if let Action::Claim(demands) = action { Some(demands) } else { None })
        .collect();
    assert!(demands.len() <= 1, "one claim at a time");
    demands.into_iter().flatten().map(|demand| (demand.source.to_string(), demand.limit)).collect()
}

/// Answers the claim in flight with `count` events of `busy` and none of others. The claim has
/// dead-lettered them, so they use no slots.
fn bring(worker: &mut Worker, busy: &str, count: u32) {
    let dead_lettered = (0..count)
        .map(|n| DeadLettered {
            event: claim(n.into()).event,
            source: source(busy),
            attempt: 2,
            reason: Reason::Lost,
        })
        .collect();
    worker.handle(START, Input::Claimed(Claims { dead_lettered, ..Claims::default() }));
}

/// A worker of `count` sources.
fn of_many(count: usize) -> Worker {
    let policy = Policy { concurrency: 64, ..Policy::default() };
    Worker::new(START, unpaced(), (0..count).map(|n| (source(&format!("s{n}")), policy.clone())))
}

#[test]
fn a_thousand_sources_that_may_have_work_take_two_claims() {
    let mut worker = of_many(1000);
    let first = asked(&actions(&mut worker, START));
    bring(&mut worker, "s0", 0);
    let second = asked(&actions(&mut worker, START));
    bring(&mut worker, "s0", 0);
    assert_eq!((first.len(), second.len()), (512, 488));
    let all: BTreeSet<_> = first.into_iter().chain(second).map(|(name, _)| name).collect();
    assert_eq!(all.len(), 1000);
    assert_eq!(asked(&actions(&mut worker, START)), [], "no source has events");
}

#[test]
fn a_thousand_idle_sources_do_not_reduce_a_busy_sources_claims() {
    let mut worker = of_many(1001);
    worker.handle(START, Input::Woken(vec![source("s1000")]));
    let mut others = BTreeSet::new();
    for _ in 0..8 {
        let mut asked = asked(&actions(&mut worker, START));
        let busy =
            asked.iter().position(|(name, _)| name == "s1000").expect("the claim includes it");
        assert_eq!(asked.swap_remove(busy).1, 64);
        others.extend(asked.into_iter().map(|(name, _)| name));
        bring(&mut worker, "s1000", 64);
    }
    assert_eq!(others.len(), 1000, "the claims have included all others");
    assert_eq!(asked(&actions(&mut worker, START)), [("s1000".to_string(), 64)]);
}

#[test]
fn sources_with_little_work_leave_the_claim_to_a_busy_one() {
    let mut worker = of_many(41);
    let everyone: Vec<SourceName> = (0..41).map(|n| source(&format!("s{n}"))).collect();
    let mut of_seven = Vec::new();
    for _ in 0..3 {
        worker.handle(START, Input::Woken(everyone.clone()));
        let asked = asked(&actions(&mut worker, START));
        assert_eq!(
            (asked.len(), asked.iter().map(|(_, limit)| limit).sum::<u32>() <= BATCH_ROWS),
            (41, true)
        );
        let limit = asked.iter().find(|(name, _)| name == "s7").expect("the claim includes it").1;
        of_seven.push(limit);
        // All sources are signalled while the claim is in flight, but only `s7` has events.
        worker.handle(START, Input::Woken(everyone.clone()));
        bring(&mut worker, "s7", limit);
    }
    assert_eq!(of_seven, [7, 64, 64]);
}

#[test]
fn events_claimed_ahead_match_consumption_between_claims() {
    let pace = Duration::from_millis(2);
    let policy = Policy { concurrency: 16, ..Policy::default() };
    let mut worker = Worker::new(
        START,
        Settings { claim_pace: pace, settle_pace: Duration::ZERO, ..Settings::default() },
        [(source("a"), policy)],
    );
    let mut now = START;
    for round in 0..20 {
        let _ = actions(&mut worker, now);
        // The claim takes a quarter of the pace. In that time three deliveries end, so twelve end
        // from one claim to the next.
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
    let asked_in_all =
        worker.queues[0].demand() as usize + worker.load().ahead + worker.load().in_flight;
    assert!((16 + 10..=16 + 12).contains(&asked_in_all), "{asked_in_all}");
}

#[test]
fn claimed_and_dead_lettered_events_reset_the_poll_interval() {
    for dead_lettered in [false, true] {
        let mut worker = worker(1);
        let mut now = START;
        // After a long idle time, the polls are far apart.
        for _ in 0..8 {
            let _ = actions(&mut worker, now);
            worker.handle(now, claims(0..0));
            let _ = actions(&mut worker, now);
            now = worker.wake_at().unwrap().at;
        }
        let _ = actions(&mut worker, now);
        let came = if dead_lettered {
            Claims {
                dead_lettered: vec![DeadLettered {
                    event: claim(0).event,
                    source: source("a"),
                    attempt: 2,
                    reason: Reason::Lost,
                }],
                ..Claims::default()
            }
        } else {
            Claims {
                claimed: vec![Claim { source: source("gone"), ..claim(0) }],
                ..Claims::default()
            }
        };
        worker.handle(now, Input::Claimed(came));
        assert_eq!(worker.polling.interval, worker.settings.poll_busy);
        assert!(worker.polling.at <= now + worker.settings.poll_busy, "{dead_lettered}");
    }
}

#[test]
fn deliveries_in_flight_are_held_without_their_bytes() {
    let mut worker = worker(1);
    let _ = actions(&mut worker, START);
    worker.handle(
        START,
        Input::Claimed(Claims { claimed: vec![heavy(0, 100)], ..Claims::default() }),
    );
    let Some(Action::Deliver(delivery)) = worker.poll(START) else { panic!("expected a delivery") };
    assert_eq!((delivery.claim.size(), worker.in_flight[&delivery.ticket].claim.size()), (100, 0));
}

#[test]
fn waits_differ_between_workers_and_between_polls() {
    let second = secs(1);
    let wait = |seed, count| {
        Worker::new(START, Settings { seed, ..unpaced() }, []).jittered(second, count)
    };
    let one = wait(7, 1);
    let others = (0..64)
        .map(|bit| wait(7 ^ (1 << bit), 1))
        .chain((0..64).map(|bit| wait(7, 1 ^ (1 << bit))));
    let apart: BTreeSet<Duration> =
        others.inspect(|wait| assert!(*wait >= second / 2 && *wait <= second)).collect();
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
    assert_eq!(counts, [1, 2], "each poll has different jitter");
}

#[test]
fn events_without_bytes_are_claimed_like_others() {
    let mut worker = worker(4);
    let _ = actions(&mut worker, START);
    let empty = (0..2).map(|n| Claim { body: Bytes::new(), ..claim(n) }).collect();
    worker.handle(START, Input::Claimed(Claims { claimed: empty, ..Claims::default() }));
    assert_eq!(limits(&actions(&mut worker, START)), [2]);
}
