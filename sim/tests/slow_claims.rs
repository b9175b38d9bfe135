//! For a minute each claim takes seconds, as with a bad query plan, while the intake continues.

use sim::run;
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_model::history::{Change, What};
use surehook_model::scenario::{Behaviour, BehaviourAt, Fault, FaultAt, Post, Scenario, Source};

/// When the downstream of the first source recovers, and claims become slow.
const BACK_AT_MS: u64 = 60_000;
const SLOW_FOR_MS: u64 = 60_000;
/// The additional time of each claim. It is shorter than the store's call timeout, so that claims
/// end.
const SLOW_BY_MS: u64 = 3_000;

/// An outage of the first source leaves a backlog. When it ends, claims become slow. The second
/// source stays healthy.
fn scenario() -> Scenario {
    let down = [
        BehaviourAt { at_ms: 0, how: Behaviour::Answers { status_code: 503, retry_after_s: None } },
        BehaviourAt { at_ms: BACK_AT_MS, how: Behaviour::Takes },
    ];
    let recovering = Source {
        concurrency: 8,
        max_attempts: 50,
        behaves: down.into(),
        ..Source::named("recovering")
    };
    let healthy = Source { concurrency: 8, ..Source::named("healthy") };
    let backlog = (0..200).map(|n| Post::nth(n, 1_000 + n * 250));
    let recovering_posts = (200..300).map(|n| Post::nth(n, BACK_AT_MS + (n - 200) * 600));
    let healthy_posts =
        (300..500).map(|n| Post { source: 1, ..Post::nth(n, BACK_AT_MS + (n - 300) * 300) });
    let mut posts: Vec<Post> = backlog.chain(recovering_posts).chain(healthy_posts).collect();
    posts.sort_by_key(|post| post.at_ms);
    let slow = FaultAt {
        at_ms: BACK_AT_MS,
        what: Fault::ClaimsSlow { by_ms: SLOW_BY_MS, for_ms: SLOW_FOR_MS },
    };
    Scenario {
        faults: vec![slow],
        heal_at_ms: BACK_AT_MS + SLOW_FOR_MS,
        ..Scenario::of(vec![recovering, healthy], posts)
    }
}

#[test]
fn slow_claims_lose_nothing_and_the_source_recovers_in_time() {
    let outcome = run(&scenario(), None);
    assert_eq!(outcome.violations, []);
    let undelivered =
        outcome.run.events.values().filter(|event| event.status != Status::Delivered).count();
    assert_eq!((outcome.run.events.len(), undelivered), (500, 0));

    // The backlog is delivered soon after claims are fast again: a few seconds for the last slow
    // claims and for back-off.
    let last = outcome
        .run
        .entries
        .iter()
        .filter(|entry| matches!(entry.what, What::Received(_)))
        .map(|entry| entry.at)
        .max()
        .unwrap();
    let recovered_by = Duration::from_millis(BACK_AT_MS + SLOW_FOR_MS + 15_000);
    assert!(last <= recovered_by, "the last delivery arrives at {last:?}");
}

#[test]
fn slow_claims_do_not_delay_events_that_are_claimed_on_insert() {
    let outcome = run(&scenario(), None);
    let mut accepted: BTreeMap<EventId, Duration> = BTreeMap::new();
    let mut waits = Vec::new();
    for entry in &outcome.run.entries {
        match &entry.what {
            What::Committed(committed)
                if committed.change == Change::Accepted
                    && outcome.run.events[&committed.event].source == "healthy" =>
            {
                accepted.insert(committed.event, entry.at);
            }
            What::Received(received) => {
                waits.extend(accepted.remove(&received.event).map(|at| entry.at - at));
            }
            _ => {}
        }
    }
    assert_eq!((waits.len(), accepted.len()), (200, 0));
    waits.sort_unstable();
    // The first event may wait for one claim, which shows that no older event is due.
    let longest = waits[waits.len() - 1];
    assert!(
        waits[waits.len() * 9 / 10] < Duration::from_millis(100),
        "the 90th percentile of the waits is {:?}",
        waits[waits.len() * 9 / 10]
    );
    assert!(longest < Duration::from_millis(2 * SLOW_BY_MS), "the longest wait is {longest:?}");
}

#[test]
fn a_lease_that_ends_while_claims_are_slow_is_claimed_again() {
    let mut scenario = scenario();
    // The process is killed with deliveries in flight, so that their leases end while claims are
    // slow.
    scenario.faults.push(FaultAt {
        at_ms: BACK_AT_MS + 5_000,
        what: Fault::Kill { process: 0, down_ms: 1_000 },
    });
    let outcome = run(&scenario, None);
    assert_eq!(outcome.violations, []);
    let undelivered =
        outcome.run.events.values().filter(|event| event.status != Status::Delivered).count();
    assert_eq!(undelivered, 0);
}
