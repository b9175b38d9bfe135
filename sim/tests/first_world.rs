//! The smallest useful run: the production service on simulated ports, with a crash and a restart.

use sim::run;
use surehook_model::history::{Fault as Happened, What};
use surehook_model::scenario::{Fault, FaultAt, Post, Scenario, Source};

fn scenario() -> Scenario {
    let posts = (0..50).map(|n| Post { size: 100, ..Post::nth(n, n * 40) }).collect();
    let faults = vec![FaultAt { at_ms: 1_000, what: Fault::Kill { process: 0, down_ms: 500 } }];
    Scenario { faults, ..Scenario::of(vec![Source::named("orders")], posts) }
}

#[test]
fn a_crash_and_a_restart_lose_nothing() {
    let outcome = run(&scenario(), None);
    assert_eq!(outcome.violations, []);
    assert_eq!(outcome.run.events.len(), 50);
    let killed = outcome
        .run
        .entries
        .iter()
        .filter(|entry| matches!(entry.what, What::Fault(Happened::Killed { .. })))
        .count();
    let started = outcome
        .run
        .entries
        .iter()
        .filter(|entry| matches!(entry.what, What::Fault(Happened::Started { .. })))
        .count();
    assert_eq!((killed, started), (1, 2));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(&scenario(), None).trace(), run(&scenario(), None).trace());
}
