//! The scenarios that are kept, each for a reason, are replayed for ever.

use sim::{report, rerun, run};
use surehook_model::scenario::Scenario;

#[test]
fn every_kept_scenario_keeps_every_promise() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} holds the kept scenarios");
    for file in files {
        let scenario: Scenario =
            toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(!scenario.why.is_empty(), "{} does not say why it is kept", file.display());
        let outcome = run(&scenario, None);
        assert!(outcome.violations.is_empty(), "{}\n{}", file.display(), report(&scenario, &outcome, &rerun(&scenario, false, None)));
    }
}
