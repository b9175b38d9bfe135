//! The report of a run that broke a promise: the scenario, the violations with their timeline, the
//! command that repeats the run, and an HTML page.

use crate::bugs::Bug;
use crate::world::Outcome;
use std::fmt::Write;
use std::path::PathBuf;
use surehook_model::scenario::Scenario;
use surehook_model::timeline;

/// The command that repeats a run.
#[must_use]
pub fn rerun(scenario: &Scenario, from_seed: bool, bug: Option<Bug>) -> String {
    match (from_seed, bug) {
        (true, None) => {
            format!("MADSIM_TEST_SEED={} cargo test -p sim --test seeds", scenario.seed)
        }
        (true, Some(bug)) => {
            format!("cargo run -p sim --release -- run --seed {} --bug {bug}", scenario.seed)
        }
        (false, None) => {
            "cargo run -p sim --release -- run --scenario FILE   (FILE holds the scenario above)"
                .to_owned()
        }
        (false, Some(bug)) => format!(
            "cargo run -p sim --release -- run --scenario FILE --bug {bug}   (FILE holds the scenario above)"
        ),
    }
}

/// The failure as text. Also writes the page with the timeline to the system's temporary directory.
#[must_use]
pub fn report(scenario: &Scenario, outcome: &Outcome, rerun: &str) -> String {
    let text = to_toml(scenario);
    let mut report =
        format!("The scenario:\n\n{text}\n{}\n", timeline::text(&outcome.run, &outcome.violations));
    let page = std::env::temp_dir().join(format!("surehook-seed-{}.html", scenario.seed));
    match write_page(&page, scenario, outcome, rerun) {
        Ok(()) => writeln!(report, "The timeline as an HTML page: {}", page.display()),
        Err(error) => writeln!(
            report,
            "The HTML page with the timeline could not be written to {}: {error}",
            page.display()
        ),
    }
    .expect("writing to a string cannot fail");
    writeln!(report, "Repeat this run: {rerun}").expect("writing to a string cannot fail");
    report
}

/// Writes the timeline of a run as an HTML page.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write_page(
    page: &PathBuf,
    scenario: &Scenario,
    outcome: &Outcome,
    rerun: &str,
) -> std::io::Result<()> {
    let title = format!("Seed {}", scenario.seed);
    std::fs::write(
        page,
        timeline::html(&outcome.run, &outcome.violations, &title, &to_toml(scenario), rerun),
    )
}

/// A scenario as TOML.
#[must_use]
pub fn to_toml(scenario: &Scenario) -> String {
    toml::to_string(scenario).expect("every scenario can be written as TOML")
}
