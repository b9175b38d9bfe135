//! Runs a batch of seeds. Each run keeps every promise, and together they reach every mark.
//!
//! `MADSIM_TEST_SEED=7` repeats one seed. `MADSIM_TEST_NUM=1000` sets the number of seeds, from
//! that seed or from 0.

use sim::{batch, report, rerun, run};
use std::collections::BTreeMap;
use std::sync::Mutex;
use surehook_model::marks::{Mark, marks};
use surehook_model::scenario::expand;

/// The number of seeds that together reach every mark.
const SEEDS: u64 = 300;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| {
        text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, but is {text}"))
    })
}

#[test]
fn every_seed_keeps_every_promise_and_together_they_reach_every_mark() {
    let (seed, count) = (number("MADSIM_TEST_SEED"), number("MADSIM_TEST_NUM"));
    let count = count.unwrap_or(if seed.is_some() { 1 } else { SEEDS });
    let reached: Mutex<BTreeMap<Mark, u64>> = Mutex::default();
    let failures = batch(seed.unwrap_or(0), count, None, |_, outcome| {
        for mark in marks(&outcome.run) {
            *reached.lock().unwrap().entry(mark).or_default() += 1;
        }
        true
    });
    if let Some(first) = failures.first() {
        let scenario = expand(first.seed);
        let others: Vec<u64> = failures.iter().map(|failure| failure.seed).collect();
        panic!(
            "{}\nseeds that broke a promise: {others:?}",
            report(&scenario, &run(&scenario, None), &rerun(&scenario, true, None))
        );
    }
    let reached = reached.into_inner().unwrap();
    println!("{reached:#?}");
    if seed.is_none() && count >= SEEDS {
        let missed: Vec<Mark> =
            Mark::ALL.into_iter().filter(|mark| !reached.contains_key(mark)).collect();
        assert_eq!(missed, [], "{count} seeds did not reach these marks");
    }
}
