//! Runs the saved scenarios, each of which is kept for a reason.

use clap::ValueEnum;
use sim::{Bug, report, rerun, run};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use surehook_core::event::Status;
use surehook_model::history::What;
use surehook_model::scenario::Scenario;

fn kept() -> Vec<(PathBuf, Scenario)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no scenarios in {folder}");
    let read = |file: &PathBuf| {
        toml::from_str(&std::fs::read_to_string(file).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files.into_iter().map(|file| (file.clone(), read(&file))).collect()
}

#[test]
fn every_kept_scenario_has_a_reason_and_keeps_every_promise() {
    for (file, scenario) in kept() {
        assert!(!scenario.why.is_empty(), "{} has no reason in `why`", file.display());
        let outcome = run(&scenario, None);
        assert!(
            outcome.violations.is_empty(),
            "{}\n{}",
            file.display(),
            report(&scenario, &outcome, &rerun(&scenario, false, None))
        );
    }
}

#[test]
fn a_scenario_kept_for_a_bug_still_catches_it() {
    for (file, scenario) in kept() {
        if let Some(name) = &scenario.catches {
            let bug = Bug::from_str(name, false)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(
                !run(&scenario, Some(bug)).violations.is_empty(),
                "{} no longer catches {name}",
                file.display()
            );
        }
    }
}

/// Two processes. In each of them, five failures and up to four further deliveries in flight open
/// the breaker, which then admits one probe in each of sixty minutes.
#[test]
fn an_outage_of_an_hour_uses_up_no_retry_budget() {
    let (_, scenario) = kept()
        .into_iter()
        .find(|(file, _)| file.ends_with("outage-of-an-hour.toml"))
        .expect("the scenario exists");
    let outcome = run(&scenario, None);
    let (source, until) = (&scenario.sources[0], Duration::from_secs(3650));
    let mut tries: BTreeMap<_, usize> = BTreeMap::new();
    for entry in outcome.run.entries.iter().filter(|entry| entry.at < until) {
        if let What::Sending(sending) = &entry.what
            && sending.source == source.name
        {
            *tries.entry(sending.event).or_default() += 1;
        }
    }
    let (sent, most) = (tries.values().sum::<usize>(), tries.values().max().copied().unwrap_or(0));
    println!("{sent} deliveries in the hour, at most {most} per event");
    let bound = scenario.processes * (source.breaker_failures + source.concurrency + 60) as usize;
    assert!(
        sent <= bound && most < source.max_attempts as usize,
        "{sent} deliveries (bound {bound}), {most} of one event"
    );
    let waiting: Vec<_> =
        outcome.run.events.values().filter(|event| event.source == source.name).collect();
    assert_eq!(
        (waiting.len(), waiting.iter().filter(|event| event.status == Status::Delivered).count()),
        (40, 40)
    );
}

/// Two processes. In each of them, five refusals and up to four further deliveries in flight open
/// the breaker, which then admits one probe in each of ten minutes.
#[test]
fn a_downstream_that_refuses_everything_for_ten_minutes_costs_few_events() {
    let (_, scenario) = kept()
        .into_iter()
        .find(|(file, _)| file.ends_with("refusals-open-the-breaker.toml"))
        .expect("the scenario exists");
    let outcome = run(&scenario, None);
    let source = &scenario.sources[0];
    let with = |status| outcome.run.events.values().filter(|event| event.status == status).count();
    let (dead, delivered) = (with(Status::DeadLettered), with(Status::Delivered));
    println!("{dead} dead-lettered, {delivered} delivered");
    let bound = scenario.processes * (source.breaker_refusals + source.concurrency + 10) as usize;
    assert!(dead <= bound, "{dead} dead-lettered (bound {bound})");
    assert_eq!(dead + delivered, scenario.posts.len());
}
