//! A crash just before and just after every effect that passes a port, alone and in pairs.
//!
//! The scenario is small enough to try all of them: two processes, two events, a duplicate post,
//! and a downstream that fails each first attempt, so that there is a retry.

use sim::{report, rerun, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use surehook_model::scenario::{Behaviour, BehaviourAt, Fault, FaultAt, Post, Scenario, Source};

/// The second crash of a pair is at most this many effects after the first.
const PAIR_DISTANCE: u64 = 4;

fn small() -> Scenario {
    let source = Source {
        timeout_ms: 500,
        concurrency: 1,
        max_attempts: 6,
        initial_delay_ms: 100,
        max_delay_ms: 200,
        behaves: vec![BehaviourAt { at_ms: 0, how: Behaviour::FailsFirst }],
        ..Source::named("orders")
    };
    let posts =
        vec![Post { copies: 2, ..Post::nth(0, 10) }, Post { process: 1, ..Post::nth(1, 15) }];
    Scenario {
        seed: 11,
        processes: 2,
        drain_timeout_ms: 1_000,
        heal_at_ms: 2_000,
        ..Scenario::of(vec![source], posts)
    }
}

fn crash(effect: u64, after: bool) -> FaultAt {
    FaultAt { at_ms: 0, what: Fault::Crash { effect, after, down_ms: 50 } }
}

/// Runs every scenario, on all cores, and reports the first one that breaks a promise.
fn all_keep_every_promise(scenarios: &[Scenario]) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(scenario, None);
                    if !outcome.violations.is_empty() {
                        failed.lock().unwrap().get_or_insert_with(|| {
                            report(scenario, &outcome, &rerun(scenario, false, None))
                        });
                        return;
                    }
                }
            });
        }
    });
    if let Some(report) = failed.into_inner().unwrap() {
        panic!("{report}");
    }
}

/// The number of effects until all events are delivered. After that, processes only poll.
fn effects() -> u64 {
    let outcome = run(&small(), None);
    assert_eq!(outcome.violations, []);
    assert_eq!(outcome.run.events.len(), 2);
    outcome.effects
}

#[test]
fn a_crash_before_or_after_any_effect_breaks_nothing() {
    let crashes = (1..=effects()).flat_map(|effect| {
        [false, true].map(|after| Scenario { faults: vec![crash(effect, after)], ..small() })
    });
    all_keep_every_promise(&crashes.collect::<Vec<_>>());
}

#[test]
fn two_crashes_close_to_each_other_break_nothing() {
    let sides = [(false, false), (false, true), (true, false), (true, true)];
    let pairs = (1..=effects())
        .flat_map(|first| (1..=PAIR_DISTANCE).map(move |distance| (first, first + distance)));
    let scenarios = pairs.flat_map(|(first, second)| {
        sides.map(|(after_first, after_second)| Scenario {
            faults: vec![crash(first, after_first), crash(second, after_second)],
            ..small()
        })
    });
    all_keep_every_promise(&scenarios.collect::<Vec<_>>());
}
