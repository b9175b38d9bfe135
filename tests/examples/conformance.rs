//! `make conformance DATABASE=postgres://…`: whether the promises hold on a database that is given.
//! Runs the contract of the store, examines the plans of its statements, and runs the trial of
//! [`tests::trial`], each in its own schemas. Prints a table, and drops the schemas. With `DIRECT`,
//! `DATABASE` may lead to a pooler.

use futures::FutureExt;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::panic::AssertUnwindSafe;
use std::process::{ExitCode, Stdio};
use tests::conformance::{self, Plans, Schema};
use tests::trial::{self, Trial};

/// A clause that needs its own database: a snapshot of another test keeps dead rows.
const NEEDS_A_DATABASE: &str = "disk_usage_is_constant";

/// The parts of the contract that need nothing but a schema.
const PARTS: [&str; 4] =
    ["::postgres::", "::postgres_connections::", "::postgres_beyond::", "differential::the_same"];

/// The plans in states that any role can make.
const PLANS: &str = "postgres_only::plans::plans_are_index_probes_when_empty_and_when_filled";

/// The plans in states that only a superuser can make.
const PLANS_WITH_ANY_NUMBERS: &str =
    "postgres_only::plans::plans_stay_index_probes_with_any_numbers_in_the_catalog";

#[tokio::main]
async fn main() -> ExitCode {
    let Ok(database) = std::env::var(conformance::DATABASE) else {
        eprintln!("usage: make conformance DATABASE=postgres://user:password@host/database");
        return ExitCode::FAILURE;
    };
    let direct = std::env::var(conformance::DIRECT).unwrap_or(database);
    conformance::drop_all(&direct).await;
    let mut has_failed = contract(conformance::plans(&direct).await);
    let schema = Schema::create().await.expect("the environment names a database");
    // It panics if a promise is broken.
    let trial = AssertUnwindSafe(trial::run(&schema.url)).catch_unwind().await;
    conformance::drop_all(&direct).await;
    match trial {
        Ok(Trial { posts, delivered, lost, repeated, kills, first_starts, is_pooled }) => println!(
            "\nTrial: {posts} posts, {delivered} delivered, {lost} lost, {repeated} repeated and explained, \
             {kills} kills, {first_starts} first starts; sessions {}.",
            if is_pooled { "pooled" } else { "direct" }
        ),
        Err(_) => {
            has_failed = true;
            println!("\nThe trial failed: see above.");
        }
    }
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs the contract, and what can be examined of the plans. Prints a row for each module. Returns
/// whether a clause failed.
fn contract(plans: Plans) -> bool {
    let of_plans: &[&str] = match plans {
        Plans::CannotBeRead => &[],
        Plans::Read => &[PLANS],
        Plans::ReadWithAnyNumbers => &[PLANS, PLANS_WITH_ANY_NUMBERS],
    };
    let mut cargo = tests::program::cargo();
    cargo.args(["test", "--locked", "--workspace", "--test", "store", "--", "--test-threads", "4"]);
    let mut tests = cargo
        .args(["--skip", NEEDS_A_DATABASE])
        .args(PARTS)
        .args(of_plans)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("cargo can be run");
    let mut parts: BTreeMap<String, (usize, Vec<String>)> = BTreeMap::new();
    for line in BufReader::new(tests.stdout.take().expect("it is piped")).lines() {
        let line = line.expect("the tests print text");
        let Some((test, result)) =
            line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
        else {
            // What a failed clause says.
            eprintln!("{line}");
            continue;
        };
        let part = test.trim_start_matches("postgres_only::").split("::").next();
        let part = part.unwrap_or(test).to_owned();
        let (held, failed) = parts.entry(part).or_default();
        if result == "ok" { *held += 1 } else { failed.push(test.to_owned()) }
    }
    let ended = tests.wait().expect("the tests can be waited for");
    println!("| part of the contract | clauses that hold | clauses that fail |");
    println!("|---|--:|---|");
    for (part, (held, failed)) in &parts {
        println!("| {part} | {held} | {} |", failed.join(", "));
    }
    match plans {
        Plans::CannotBeRead => println!("| plans: cannot be read | | |"),
        Plans::Read => println!("| plans with any numbers in the catalogs: need a superuser | | |"),
        Plans::ReadWithAnyNumbers => {}
    }
    !ended.success()
}
