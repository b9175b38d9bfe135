//! The command line of the simulator: run, soak, minimise, and the table of planted bugs.

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sim::{Bug, batch, hunt, minimise, report, rerun, run, to_toml, write_page};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;
use surehook_model::scenario::{Scenario, expand};

/// Run the production service in deterministic simulations
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one scenario and report whether every promise was kept
    Run {
        #[command(flatten)]
        what: What,
        /// Write the timeline as an HTML page
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Write the expanded scenario
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        /// Print only a digest of the run
        #[arg(long)]
        trace: bool,
    },
    /// Run seeds for a given time, or until one breaks a promise
    Soak {
        /// Duration in minutes of real time
        #[arg(long)]
        minutes: f64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Reduce a failing scenario while the same promise stays broken, and print the result
    Minimise {
        #[command(flatten)]
        what: What,
        /// Maximum number of runs
        #[arg(long, default_value_t = 3000)]
        runs: u32,
    },
    /// Plant each bug and print which oracle finds it, after how many seeds
    Mutants {
        /// Only this bug
        #[arg(long)]
        bug: Option<Bug>,
        /// Number of finds for each bug
        #[arg(long, default_value_t = 5)]
        times: usize,
        /// Maximum number of seeds for each find
        #[arg(long, default_value_t = 500)]
        most: u64,
    },
}

#[derive(Args)]
struct What {
    /// The seed that expands into the scenario
    #[arg(long, required_unless_present = "scenario", conflicts_with = "scenario")]
    seed: Option<u64>,
    /// A TOML file with the scenario
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Plant this bug
    #[arg(long)]
    bug: Option<Bug>,
}

impl What {
    fn load(&self) -> Result<Scenario, Box<dyn Error>> {
        match (&self.scenario, self.seed) {
            (Some(file), _) => Ok(toml::from_str(&std::fs::read_to_string(file)?)?),
            (None, Some(seed)) => Ok(expand(seed)),
            (None, None) => Err("no scenario selected: give --seed or --scenario".into()),
        }
    }
}

fn main() -> ExitCode {
    match done(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Runs a command. Returns whether every promise was kept.
fn done(command: Command) -> Result<bool, Box<dyn Error>> {
    match command {
        Command::Run { what, html, save, trace } => {
            let scenario = what.load()?;
            let outcome = run(&scenario, what.bug);
            let again = rerun(&scenario, what.seed.is_some(), what.bug);
            if let Some(file) = save {
                std::fs::write(file, to_toml(&scenario))?;
            }
            if let Some(file) = html {
                write_page(&file, &scenario, &outcome, &again)?;
            }
            if trace {
                println!("{}", outcome.trace());
            } else if outcome.violations.is_empty() {
                println!(
                    "every promise was kept, in {:.1} simulated minutes and {} effects",
                    outcome.run.ended_at.as_secs_f64() / 60.0,
                    outcome.effects
                );
            } else {
                println!("{}", report(&scenario, &outcome, &again));
            }
            Ok(outcome.violations.is_empty())
        }
        Command::Soak { minutes, from } => Ok(soak(Duration::from_secs_f64(minutes * 60.0), from)),
        Command::Minimise { what, runs } => {
            let scenario = what.load()?;
            let Some(violation) = run(&scenario, what.bug).violations.into_iter().next() else {
                return Err(
                    "the scenario keeps every promise; only a failing scenario can be reduced"
                        .into(),
                );
            };
            let bar = progress(u64::from(runs), "{spinner} {pos} runs, {msg}");
            let smallest = minimise(&scenario, what.bug, violation.promise, runs, |smaller| {
                bar.set_message(format!(
                    "{} faults and {} posts left",
                    smaller.faults.len(),
                    smaller.posts.len()
                ));
                bar.inc(1);
            });
            bar.finish_and_clear();
            // Run it again: its events and times differ from those of the original violation.
            let still = run(&smallest, what.bug)
                .violations
                .into_iter()
                .find(|found| found.promise == violation.promise);
            println!(
                "# breaks: {}\n{}",
                still.expect("the smallest scenario breaks the same promise"),
                to_toml(&smallest)
            );
            Ok(true)
        }
        Command::Mutants { bug, times, most } => {
            println!("| planted bug | found by | median seeds | of finds |\n|---|---|---|---|");
            let mut all_found = true;
            for bug in Bug::ALL.into_iter().filter(|one| bug.is_none_or(|bug| bug == *one)) {
                let found = hunt(bug, times, most);
                let by = found
                    .by
                    .iter()
                    .map(|(promise, count)| format!("{promise:?} ×{count}"))
                    .collect::<Vec<_>>()
                    .join(", ");
                let median = found
                    .median()
                    .map_or_else(|| "not found".to_owned(), |median| median.to_string());
                println!("| {bug} | {by} | {median} | {} |", found.gaps.len());
                all_found &= found.gaps.first().is_some_and(|gap| *gap <= most);
            }
            Ok(all_found)
        }
    }
}

fn soak(duration: Duration, from: u64) -> bool {
    #[expect(clippy::disallowed_methods, reason = "the duration of a soak is in real time")]
    let (began, now) = (std::time::Instant::now(), std::time::Instant::now);
    let bar = progress(duration.as_secs(), "{bar:40} {pos}/{len} s, {msg}");
    let tally = Mutex::new((0u64, Duration::ZERO));
    let failures = batch(from, u64::MAX - from, None, |_, outcome| {
        let mut tally = tally.lock().expect("no run panics in these threads");
        tally.0 += 1;
        tally.1 += outcome.run.ended_at;
        bar.set_position((now() - began).as_secs());
        bar.set_message(format!("{} seeds", tally.0));
        outcome.violations.is_empty() && now() - began < duration
    });
    bar.finish_and_clear();
    let (seeds, simulated) = *tally.lock().expect("no run panics in these threads");
    let real = (now() - began).as_secs_f64();
    println!(
        "{seeds} seeds in {real:.1} s: {:.0} seeds per minute, {:.1} simulated hours per second",
        f64::from(u32::try_from(seeds).unwrap_or(u32::MAX)) * 60.0 / real,
        simulated.as_secs_f64() / 3600.0 / real
    );
    if let Some(failure) = failures.first() {
        let scenario = expand(failure.seed);
        println!("{}", report(&scenario, &run(&scenario, None), &rerun(&scenario, true, None)));
    }
    failures.is_empty()
}

fn progress(length: u64, template: &str) -> ProgressBar {
    ProgressBar::new(length)
        .with_style(ProgressStyle::with_template(template).expect("the template is valid"))
}
