//! A failed run made readable: what was broken, and what happened to the events it was about, as text for a terminal
//! and as one HTML file.
//!
//! It only tells what the history and the oracles say. It judges nothing and reads no files.

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

/// Lines of a timeline in the terminal, around the violations.
const TEXT_LINES_MAX: usize = 200;
/// Rows of the drawing.
const ROWS_MAX: usize = 400;

/// For the terminal: the broken promises in words, then the events they are about and every fault, one line each.
///
/// At most some 200 entries, the ones nearest to the violations; it says how many are left out, and where.
#[must_use]
pub fn text(run: &Run, violations: &[Violation]) -> String {
    text::render(&Story::of(run, violations, Scope::Essential), TEXT_LINES_MAX)
}

/// As [`text`], with every entry of the run, and without a bound.
#[must_use]
pub fn text_of_everything(run: &Run, violations: &[Violation]) -> String {
    text::render(&Story::of(run, violations, Scope::Everything), usize::MAX)
}

/// One HTML page that needs nothing else: the broken promises in words, and a drawing of who did what when, in which
/// the events of the violations are told in full and all others are dim.
///
/// `scenario_toml` is folded away in it; `rerun` is the line that runs it again.
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
