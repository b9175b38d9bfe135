//! Measures how soon each planted bug is found, and by which oracle.

use crate::batch::batch;
use crate::bugs::Bug;
use std::collections::BTreeMap;
use std::sync::Mutex;
use surehook_model::oracles::Promise;

/// The finds of one planted bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub bug: Bug,
    /// The number of seeds that each find took, counted from the start or from the find before.
    pub gaps: Vec<u64>,
    /// For each promise, the number of runs in which its violation came first.
    pub by: BTreeMap<Promise, u64>,
}

impl Found {
    /// The median number of seeds until a find.
    #[must_use]
    pub fn median(&self) -> Option<u64> {
        let mut gaps = self.gaps.clone();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).copied()
    }
}

/// Runs seeds with a bug until it is found `times` times, or until `most` seeds for each of these
/// finds have been tried.
#[must_use]
pub fn hunt(bug: Bug, times: usize, most: u64) -> Found {
    let seen = Mutex::new(0);
    let failures = batch(0, most * times as u64, Some(bug), |_, outcome| {
        let mut seen = seen.lock().expect("no run panics in these threads");
        *seen += usize::from(!outcome.violations.is_empty());
        *seen < times
    });
    let mut found = Found { bug, gaps: Vec::new(), by: BTreeMap::new() };
    let mut from = 0;
    for failure in failures {
        found.gaps.push(failure.seed + 1 - from);
        from = failure.seed + 1;
        *found.by.entry(failure.violations[0].promise).or_default() += 1;
    }
    found
}
