//! The simulator's command line.

use sim::{Bug, batch};
use std::collections::BTreeMap;
use std::sync::Mutex;
use surehook_model::marks::{Mark, marks};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args[0] == "dump" {
        let outcome = sim::run(&surehook_model::scenario::expand(args[1].parse().unwrap()), None);
        for entry in &outcome.run.entries {
            println!("{:10.4} {:?}", entry.at.as_secs_f64(), entry.what);
        }
        return;
    }
    if args[0] == "mutants" {
        for bug in Bug::ALL {
            let found = batch(0, args[1].parse().unwrap(), Some(bug), |_, outcome| outcome.violations.is_empty());
            match found.first() {
                Some(failure) => println!("{bug:?}: seed {} {}", failure.seed, failure.violations[0]),
                None => println!("{bug:?}: NOT FOUND"),
            }
        }
        return;
    }
    let (from, count) = (args[0].parse().unwrap(), args[1].parse().unwrap());
    let reached: Mutex<BTreeMap<Mark, u64>> = Mutex::default();
    let simulated = Mutex::new(std::time::Duration::ZERO);
    let failures = batch(from, count, None, |_, outcome| {
        for mark in marks(&outcome.run) {
            *reached.lock().unwrap().entry(mark).or_default() += 1;
        }
        *simulated.lock().unwrap() += outcome.run.ended_at;
        true
    });
    for failure in &failures {
        println!("seed {}: {} violations", failure.seed, failure.violations.len());
        failure.violations.iter().take(4).for_each(|violation| println!("  {violation}"));
    }
    println!("{} of {count} failed; {:?} simulated", failures.len(), simulated.lock().unwrap());
    for mark in Mark::ALL {
        println!("{mark:?}: {}", reached.lock().unwrap().get(&mark).copied().unwrap_or_default());
    }
}
