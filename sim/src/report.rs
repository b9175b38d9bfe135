//! What a person gets of a run that broke a promise: the promise in words, what happened, the line to run it again,
//! and a page with the timeline.

use crate::bugs::Bug;
use crate::world::Outcome;
use std::fmt::Write;
use std::path::PathBuf;
use surehook_model::scenario::Scenario;
use surehook_model::timeline;

/// How a run is run again.
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

/// The failure as text. The page with the timeline is written beside it, into the system's temporary folder.
#[must_use]
pub fn report(scenario: &Scenario, outcome: &Outcome, rerun: &str) -> String {
    let text = to_toml(scenario);
    let mut report =
        format!("The scenario:\n\n{text}\n{}\n", timeline::text(&outcome.run, &outcome.violations));
    let page = std::env::temp_dir().join(format!("surehook-seed-{}.html", scenario.seed));
    match write_page(&page, scenario, outcome, rerun) {
        Ok(()) => writeln!(report, "The timeline as a page: {}", page.display()),
        Err(error) => writeln!(
            report,
            "The timeline's page could not be written to {}: {error}",
            page.display()
        ),
    }
    .expect("a string takes all");
    writeln!(report, "Run it again: {rerun}").expect("a string takes all");
    report
}

/// Writes the timeline of a run as one page.
///
/// # Errors
///
/// Those of writing the file.
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

/// A scenario as a file holds it.
#[must_use]
pub fn to_toml(scenario: &Scenario) -> String {
    toml::to_string(scenario).expect("a scenario is plain data")
}
