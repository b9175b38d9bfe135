//! Many sources in one process: each event is claimed in time.

use sim::run;
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::id::EventId;
use surehook_model::history::{Change, Committed};
use surehook_model::scenario::{Post, Scenario, Source};

const SOURCES: usize = 300;
/// Bound from acceptance to claim: a few round trips, without a delayed turn of the source.
const IN_TIME: Duration = Duration::from_millis(250);

/// The time from acceptance to claim of each event, by source.
fn waits(posts: Vec<Post>) -> BTreeMap<String, Vec<Duration>> {
    let sources = (0..SOURCES)
        .map(|n| Source { concurrency: 64, ..Source::named(&format!("source-{n}")) })
        .collect();
    let outcome = run(&Scenario { heal_at_ms: 10_000, ..Scenario::of(sources, posts) }, None);
    assert_eq!(outcome.violations, []);
    let when = |kind: Change| -> BTreeMap<EventId, Duration> {
        let of_a_kind =
            |committed: &Committed| (committed.change == kind).then_some(committed.event);
        outcome
            .run
            .committed()
            .filter_map(|(at, committed)| Some((of_a_kind(committed)?, at)))
            .collect()
    };
    let (accepted, claimed) = (when(Change::Accepted), when(Change::Claimed));
    let mut waits: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for (event, accepted_at) in accepted {
        let source = outcome.run.events[&event].source.clone();
        waits.entry(source).or_default().push(claimed[&event] - accepted_at);
    }
    waits
}

#[test]
fn an_event_of_any_of_many_sources_is_claimed_in_time() {
    // Two per second: the process is idle at each post, and all of its sources wait for the next
    // poll.
    let posts = (0..10)
        .zip((0..SOURCES).step_by(29))
        .map(|(n, source)| Post { source, ..Post::nth(n, 2_000 + n * 503) })
        .collect();
    let waits = waits(posts);
    assert_eq!(waits.len(), 10);
    for (source, waits) in waits {
        assert!(waits[0] <= IN_TIME, "{source} waited {:?}", waits[0]);
    }
}

#[test]
fn many_sources_with_work_are_all_served_in_time() {
    let posts = (0..SOURCES).map(|n| Post { source: n, ..Post::nth(n as u64, 3_000) }).collect();
    let waits = waits(posts);
    let longest = waits.values().flatten().max().unwrap();
    assert_eq!(waits.len(), SOURCES);
    assert!(*longest <= IN_TIME, "{longest:?}");
}
