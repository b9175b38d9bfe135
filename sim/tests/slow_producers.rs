//! Slow producers of one source fill the memory for requests, beside a fast producer of another.

use sim::{Bug, Outcome, run};
use surehook_model::history::What;
use surehook_model::marks::{Mark, marks};
use surehook_model::oracles::Promise;
use surehook_model::scenario::{MAX_BODY_BYTES, Post, Scenario, Source};

/// More than fit into the memory of one process.
const SLOW: u64 = 30;
const FAST: u64 = 100;

fn scenario() -> Scenario {
    let slow = (0..SLOW).map(|n| Post {
        size: MAX_BODY_BYTES,
        trickles_ms: Some(5_000),
        ..Post::nth(n, 1_000 + n * 10)
    });
    let fast = (0..FAST).map(|n| Post { source: 1, ..Post::nth(SLOW + n, 1_000 + n * 50) });
    let sources = vec![Source::named("slow"), Source::named("fast")];
    Scenario { heal_at_ms: 20_000, ..Scenario::of(sources, slow.chain(fast).collect()) }
}

/// The number of requests to the fast source that were not accepted.
fn refused(outcome: &Outcome) -> usize {
    let posts = outcome.run.posts();
    let is_refused = |what: &What| match what {
        What::Answered { post, status_code, .. } => {
            posts[post].source == "fast" && *status_code != 202
        }
        What::Unanswered { post, .. } => posts[post].source == "fast",
        _ => false,
    };
    outcome.run.entries.iter().filter(|entry| is_refused(&entry.what)).count()
}

#[test]
fn slow_producers_delay_no_post_to_another_source() {
    let outcome = run(&scenario(), None);
    assert_eq!(outcome.violations, []);
    assert_eq!(refused(&outcome), 0);
    let marks = marks(&outcome.run);
    assert!(marks.contains(&Mark::AcceptedBesideSlow), "{marks:?}");
    assert!(marks.contains(&Mark::SlowRequestGaveWay), "{marks:?}");
}

#[test]
fn without_reserved_memory_slow_producers_turn_others_away() {
    for bug in [Bug::NoReservedMemory, Bug::OneRequestAtATime] {
        let outcome = run(&scenario(), Some(bug));
        let promises: Vec<Promise> =
            outcome.violations.iter().map(|violation| violation.promise).collect();
        assert!(promises.contains(&Promise::Isolation), "{bug}: {promises:?}");
        assert!(refused(&outcome) > 0, "{bug}");
    }
}
