//! Every planted bug is found: the oracles see. The table with the medians is made by
//! `cargo run -p sim --release -- mutants`.

use sim::{Bug, hunt, run};
use surehook_model::oracles::Promise;
use surehook_model::scenario::expand;

/// None may need more seeds.
const MOST: u64 = 500;

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<Bug> =
        Bug::ALL.into_iter().filter(|bug| hunt(*bug, 1, MOST).gaps.is_empty()).collect();
    assert_eq!(missed, [], "not found within {MOST} seeds");
}

#[test]
fn a_run_that_got_stuck_says_what_each_process_waits_for() {
    let stuck = (0..MOST)
        .map(|seed| run(&expand(seed), Some(Bug::SlotNeverFrees)))
        .find(|outcome| {
            outcome.violations.iter().any(|violation| violation.promise == Promise::Liveness)
        })
        .expect("a slot that never frees leaves events behind");
    let said: Vec<String> = stuck.violations.iter().map(ToString::to_string).collect();
    for process in stuck.run.waits.keys() {
        assert!(
            said.iter().any(|line| line.contains(&format!("{process} waits for"))),
            "nothing is said of {process}: {said:#?}"
        );
    }
    assert!(said.iter().any(|line| line.contains("waits for the reply to attempt")), "{said:#?}");
    println!("{said:#?}");
}
