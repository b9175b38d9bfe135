//! Runs many seeds in parallel, on all cores.

use crate::bugs::Bug;
use crate::world::{Outcome, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use surehook_model::oracles::Violation;
use surehook_model::scenario::expand;

/// A seed whose run broke a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub seed: u64,
    /// Sorted by time.
    pub violations: Vec<Violation>,
}

/// Runs seeds from `first` on, on all cores, until `count` are done or `each` returns `false`.
///
/// `each` is called once for each run, in no particular order. The failures are sorted by seed.
pub fn batch(
    first: u64,
    count: u64,
    bug: Option<Bug>,
    each: impl Fn(u64, &Outcome) -> bool + Sync,
) -> Vec<Failure> {
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.saturating_add(count) {
                        return;
                    }
                    let outcome = run(&expand(seed), bug);
                    if !each(seed, &outcome) {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if !outcome.violations.is_empty() {
                        failures
                            .lock()
                            .expect("no run panics in this thread")
                            .push(Failure { seed, violations: outcome.violations });
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no run panics in these threads");
    failures.sort_by_key(|failure: &Failure| failure.seed);
    failures
}
