//! The smallest world that proves the split: the production service over simulated ports, a crash and a restart.

use sim::run;
use surehook_model::history::{Fault as Happened, What};
use surehook_model::scenario::{Fault, FaultAt, Post, Scenario, Source};

fn scenario() -> Scenario {
    let source = Source {
        name: "orders".to_owned(),
        timeout_ms: 2_000,
        concurrency: 2,
        rate: 0,
        breaker_failures: 0,
        breaker_open_ms: 0,
        max_attempts: 5,
        initial_delay_ms: 500,
        max_delay_ms: 2_000,
        first_wins: false,
        behaves: vec![],
    };
    let post = |n: u64| Post {
        at_ms: n * 40,
        source: 0,
        process: 0,
        key: format!("order-{n}"),
        body: n,
        size: 100,
        copies: 1,
        hangs_up_ms: None,
        poison: false,
    };
    Scenario {
        why: String::new(),
        catches: None,
        seed: 1,
        processes: 1,
        drain_timeout_ms: 5_000,
        sources: vec![source],
        posts: (0..50).map(post).collect(),
        faults: vec![FaultAt { at_ms: 1_000, what: Fault::Kill { process: 0, down_ms: 500 } }],
        heal_at_ms: 5_000,
    }
}

#[test]
fn a_crash_and_a_restart_lose_nothing() {
    let outcome = run(&scenario(), None);
    assert_eq!(outcome.violations, []);
    assert_eq!(outcome.run.events.len(), 50);
    let killed = outcome.run.entries.iter().filter(|entry| matches!(entry.what, What::Fault(Happened::Killed { .. }))).count();
    let started = outcome.run.entries.iter().filter(|entry| matches!(entry.what, What::Fault(Happened::Started { .. }))).count();
    assert_eq!((killed, started), (1, 2));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(&scenario(), None).trace(), run(&scenario(), None).trace());
}
