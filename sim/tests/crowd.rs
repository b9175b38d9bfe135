//! Many sources in one process: each event is looked for in time.

use sim::run;
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::id::EventId;
use surehook_model::history::{Change, Committed};
use surehook_model::scenario::{Post, Scenario, Source};

const SOURCES: usize = 300;
/// An event is claimed this soon after it was accepted: a few round trips, and no turn that comes late.
const IN_TIME: Duration = Duration::from_millis(250);

fn source(n: usize) -> Source {
    Source {
        name: format!("source-{n}"),
        timeout_ms: 2_000,
        concurrency: 64,
        rate: 0,
        breaker_failures: 0,
        breaker_open_ms: 0,
        max_attempts: 5,
        initial_delay_ms: 500,
        max_delay_ms: 2_000,
        first_wins: false,
        behaves: vec![],
    }
}

fn post(at_ms: u64, source: usize, n: u64) -> Post {
    Post { at_ms, source, process: 0, key: format!("key-{n}"), body: n, size: 10, copies: 1, hangs_up_ms: None, poison: false }
}

/// How long after its acceptance each event was claimed, by its source.
fn waits(posts: Vec<Post>) -> BTreeMap<String, Vec<Duration>> {
    let scenario = Scenario {
        why: String::new(),
        catches: None,
        seed: 1,
        processes: 1,
        drain_timeout_ms: 5_000,
        sources: (0..SOURCES).map(source).collect(),
        posts,
        faults: vec![],
        heal_at_ms: 10_000,
    };
    let outcome = run(&scenario, None);
    assert_eq!(outcome.violations, []);
    let when = |kind: Change| -> BTreeMap<EventId, Duration> {
        let of_a_kind = |committed: &Committed| (committed.change == kind).then_some(committed.event);
        outcome.run.committed().filter_map(|(at, committed)| Some((of_a_kind(committed)?, at))).collect()
    };
    let (accepted, claimed) = (when(Change::Accepted), when(Change::Claimed));
    let mut waits: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for (event, accepted_at) in accepted {
        let source = outcome.run.events[&event].source.to_string();
        waits.entry(source).or_default().push(claimed[&event] - accepted_at);
    }
    waits
}

#[test]
fn an_event_of_any_of_many_sources_is_looked_for_in_time() {
    // Two a second: each finds the process idle, with all of its sources waiting for the next poll.
    let posts = (0..10).map(|n| post(2_000 + n * 503, (n * 29) as usize % SOURCES, n)).collect();
    let waits = waits(posts);
    assert_eq!(waits.len(), 10);
    for (source, waits) in waits {
        assert!(waits[0] <= IN_TIME, "{source} waited {:?}", waits[0]);
    }
}

#[test]
fn many_sources_that_all_have_work_are_all_served_in_time() {
    let posts = (0..SOURCES as u64).map(|n| post(3_000, n as usize, n)).collect();
    let waits = waits(posts);
    let longest = waits.values().flatten().max().unwrap();
    assert_eq!(waits.len(), SOURCES);
    assert!(*longest <= IN_TIME, "{longest:?}");
}
