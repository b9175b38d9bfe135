//! The timeline of a run: its violations and the history of the events that they concern, as text
//! for a terminal and as one HTML file.
//!
//! It shows the history and the results of the oracles. It judges nothing and reads no files.

mod axis;
mod draw;
mod index;
mod links;
mod page;
mod spans;
mod story;
mod text;
mod words;

#[cfg(test)]
mod tests;

use crate::history::Run;
use crate::oracles::Violation;
use story::{Scope, Story};

/// Limit of lines in the terminal, around the violations.
const TEXT_LINES_MAX: usize = 200;
/// Limit of rows in the drawing.
const ROWS_MAX: usize = 400;

/// For the terminal: the violations, then the entries of the events that they concern and all
/// faults, one line each.
///
/// At most about 200 entries, those nearest to the violations. Lines state how many entries are
/// left out, and where.
#[must_use]
pub fn text(run: &Run, violations: &[Violation]) -> String {
    text::render(&Story::of(run, violations, Scope::Essential), TEXT_LINES_MAX)
}

/// Like [`text`], but with every entry of the run and without a limit.
#[must_use]
pub fn text_of_everything(run: &Run, violations: &[Violation]) -> String {
    text::render(&Story::of(run, violations, Scope::Everything), usize::MAX)
}

/// A self-contained HTML page: the violations, and a drawing of all lanes over time. Events that
/// the violations concern are shown in full, all others are dimmed.
///
/// `scenario_toml` is in a collapsed section; `rerun` is the command that repeats the run.
#[must_use]
pub fn html(
    run: &Run,
    violations: &[Violation],
    title: &str,
    scenario_toml: &str,
    rerun: &str,
) -> String {
    page::render(
        &Story::of(run, violations, Scope::Essential),
        &text_of_everything(run, violations),
        title,
        scenario_toml,
        rerun,
    )
}
