//! Every planted bug is found by an oracle. `cargo run -p sim --release -- mutants` prints the
//! table with the medians.

use sim::{Bug, hunt, run};
use surehook_model::oracles::Promise;
use surehook_model::scenario::expand;

/// The maximum number of seeds until a bug is found.
const MOST: u64 = 500;

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<Bug> =
        Bug::ALL.into_iter().filter(|bug| hunt(*bug, 1, MOST).gaps.is_empty()).collect();
    assert_eq!(missed, [], "not found within {MOST} seeds");
}

#[test]
fn a_stuck_run_reports_what_each_process_waits_for() {
    let stuck = (0..MOST)
        .map(|seed| run(&expand(seed), Some(Bug::SlotNeverFrees)))
        .find(|outcome| {
            outcome.violations.iter().any(|violation| violation.promise == Promise::Liveness)
        })
        .expect("a slot that never frees breaks liveness in some seed");
    let said: Vec<String> = stuck.violations.iter().map(ToString::to_string).collect();
    for process in stuck.run.waits.keys() {
        assert!(
            said.iter().any(|line| line.contains(&format!("{process} waits for"))),
            "no violation mentions {process}: {said:#?}"
        );
    }
    assert!(
        said.iter().any(|line| line.contains("waits for the response to attempt")),
        "{said:#?}"
    );
    println!("{said:#?}");
}
