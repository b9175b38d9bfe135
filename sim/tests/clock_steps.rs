//! The database's clock is set back by hours while events wait, are leased, or are in flight.

use sim::{Bug, Outcome, run};
use std::time::Duration;
use surehook_core::due::PASS_PAUSE;
use surehook_core::event::Status;
use surehook_model::history::{Change, What};
use surehook_model::marks::{Mark, marks};
use surehook_model::oracles::Promise;
use surehook_model::scenario::{Behaviour, BehaviourAt, Fault, FaultAt, Post, Scenario, Source};

const HOUR_MS: i64 = 3_600_000;
/// When the clock is set back: just before a second pass over the due times, 30 s after the start.
const STEP_AT_MS: u64 = 29_000;
const REFUSES: Behaviour = Behaviour::Answers { status_code: 503, retry_after_s: None };

/// A source whose downstream behaves like this until the clock has been set back. One event is
/// posted before, and one after.
fn scenario(how: Behaviour) -> Scenario {
    let behaves = [(0, how), (STEP_AT_MS + 500, Behaviour::Takes)];
    let behaves = behaves.map(|(at_ms, how)| BehaviourAt { at_ms, how });
    let source = Source {
        initial_delay_ms: 10_000,
        max_delay_ms: 10_000,
        timeout_ms: 8_000,
        behaves: behaves.into(),
        ..Source::named("only")
    };
    let step = FaultAt { at_ms: STEP_AT_MS, what: Fault::DatabaseClock { by_ms: -3 * HOUR_MS } };
    let posts = vec![Post::nth(0, STEP_AT_MS - 2_000), Post::nth(1, STEP_AT_MS + 5_000)];
    Scenario {
        faults: vec![step],
        heal_at_ms: 90_000,
        processes: 2,
        ..Scenario::of(vec![source], posts)
    }
}

/// The times at which the first event arrived at its downstream.
fn arrivals(outcome: &Outcome) -> Vec<Duration> {
    let of_first = |what: &What| matches!(what, What::Received(received) if outcome.run.events[&received.event].key == "key-0");
    outcome.run.entries.iter().filter(|entry| of_first(&entry.what)).map(|entry| entry.at).collect()
}

fn assert_all_delivered(outcome: &Outcome) {
    assert_eq!(outcome.violations, []);
    let delivered =
        outcome.run.events.values().filter(|event| event.status == Status::Delivered).count();
    assert_eq!((outcome.run.events.len(), delivered), (2, 2));
}

/// The second attempt comes a lease after the next pass.
fn assert_delivered_after_a_pass_and_a_lease(scenario: &Scenario) {
    let outcome = run(scenario, None);
    assert_all_delivered(&outcome);
    let arrivals = arrivals(&outcome);
    assert_eq!(arrivals.len(), 2, "{arrivals:?}");
    let step = Duration::from_millis(STEP_AT_MS);
    let (earliest, latest) =
        (step + scenario.sources[0].policy().lease(), PASS_PAUSE + Duration::from_secs(3));
    assert!(arrivals[1] > earliest && arrivals[1] < earliest + latest, "{arrivals:?}");
    assert!(marks(&outcome.run).contains(&Mark::DueTimeCapped));
    let capped = outcome.run.committed().filter(|(_, one)| one.change == Change::Capped).count();
    assert_eq!(capped, 1, "one of two processes caps the due time, once");
}

fn promises(scenario: &Scenario, bug: Bug) -> Vec<Promise> {
    run(scenario, Some(bug)).violations.iter().map(|violation| violation.promise).collect()
}

#[test]
fn a_retry_comes_a_lease_after_a_pass_when_the_clock_was_set_back() {
    assert_delivered_after_a_pass_and_a_lease(&scenario(REFUSES));
}

#[test]
fn a_lost_lease_ends_a_lease_after_a_pass_when_the_clock_was_set_back() {
    let mut scenario = scenario(Behaviour::Hangs);
    for process in 0..2 {
        let what = Fault::Kill { process, down_ms: 200 };
        scenario.faults.insert(0, FaultAt { at_ms: STEP_AT_MS - 1_000, what });
    }
    assert_delivered_after_a_pass_and_a_lease(&scenario);
}

#[test]
fn an_event_in_flight_is_not_sent_again_when_the_clock_is_set_back() {
    let scenario = scenario(Behaviour::TakesLate { after_ms: 7_000 });
    let outcome = run(&scenario, None);
    assert_all_delivered(&outcome);
    assert_eq!(arrivals(&outcome).len(), 1);
    assert!(marks(&outcome.run).contains(&Mark::DueTimeCapped), "it is capped in flight");

    let promises = promises(&scenario, Bug::CappedToNow);
    assert!(promises.contains(&Promise::Overlap), "{promises:?}");
}

#[test]
fn due_times_that_are_not_capped_keep_a_retry_for_hours() {
    let promises = promises(&scenario(REFUSES), Bug::DueTimesNotCapped);
    assert!(promises.contains(&Promise::Liveness), "{promises:?}");
}

#[test]
fn a_clock_that_is_set_forward_loses_nothing() {
    for by_ms in [60_000, HOUR_MS, 30 * HOUR_MS] {
        let mut scenario = scenario(Behaviour::FailsFirst);
        scenario.faults = vec![FaultAt { at_ms: STEP_AT_MS, what: Fault::DatabaseClock { by_ms } }];
        let outcome = run(&scenario, None);
        assert_all_delivered(&outcome);
        let arrivals = arrivals(&outcome);
        assert_eq!(arrivals.len(), 2, "one retry, early: {arrivals:?}");
        assert!(arrivals[1] < Duration::from_millis(STEP_AT_MS + 2_000), "{arrivals:?}");
    }
}
