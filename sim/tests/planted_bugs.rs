//! Every planted bug is found: the oracles see. The table with the medians is made by
//! `cargo run -p sim --release -- mutants`.

use sim::{Bug, hunt};

/// None may need more seeds.
const MOST: u64 = 500;

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<Bug> = Bug::ALL.into_iter().filter(|bug| hunt(*bug, 1, MOST).gaps.is_empty()).collect();
    assert_eq!(missed, [], "not found within {MOST} seeds");
}
