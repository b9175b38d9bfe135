//! The scenarios that are kept, each for a reason, are replayed for ever.

use clap::ValueEnum;
use sim::{Bug, report, rerun, run};
use std::path::PathBuf;
use surehook_model::scenario::Scenario;

fn kept() -> Vec<(PathBuf, Scenario)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} holds the kept scenarios");
    let read = |file: &PathBuf| {
        toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files.into_iter().map(|file| (file.clone(), read(&file))).collect()
}

#[test]
fn every_kept_scenario_says_why_and_keeps_every_promise() {
    for (file, scenario) in kept() {
        assert!(!scenario.why.is_empty(), "{} does not say why it is kept", file.display());
        let outcome = run(&scenario, None);
        assert!(outcome.violations.is_empty(), "{}\n{}", file.display(), report(&scenario, &outcome, &rerun(&scenario, false, None)));
    }
}

#[test]
fn a_scenario_that_was_kept_for_a_bug_still_catches_it() {
    for (file, scenario) in kept() {
        if let Some(name) = &scenario.catches {
            let bug = Bug::from_str(name, false).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(!run(&scenario, Some(bug)).violations.is_empty(), "{} no longer catches {name}", file.display());
        }
    }
}
