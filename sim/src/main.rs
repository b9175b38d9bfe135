//! The simulator's command line.

use sim::run;
use surehook_model::scenario::expand;

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let (from, count) = (args.next().unwrap_or(0), args.next().unwrap_or(1));
    let mut failed = 0;
    for seed in from..from + count {
        let outcome = run(&expand(seed), None);
        if !outcome.violations.is_empty() {
            failed += 1;
            println!("seed {seed}: {} violations", outcome.violations.len());
            outcome.violations.iter().take(4).for_each(|violation| println!("  {violation}"));
        }
    }
    println!("{failed} of {count} failed");
}
