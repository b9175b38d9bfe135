//! How long a scenario goes on: for seconds in `make test`, for longer where `SUREHOOK_SOAK` says so.

use std::time::{Duration, Instant};

/// Names the time that scenarios with a long form take, as `10m`.
const VARIABLE: &str = "SUREHOOK_SOAK";

/// The time that was asked for; `None` for the short form.
///
/// # Panics
///
/// If the variable holds no duration.
#[must_use]
pub fn asked_for() -> Option<Duration> {
    let text = std::env::var(VARIABLE).ok()?;
    Some(
        humantime::parse_duration(&text)
            .unwrap_or_else(|error| panic!("{VARIABLE} must be a duration such as 10m: {error}")),
    )
}

/// The long form of a figure if a soak was asked for, and else the short one.
#[must_use]
pub fn either<T>(short: T, long: T) -> T {
    if asked_for().is_some() { long } else { short }
}

/// Rounds until the time that was asked for is over, and at least one.
pub fn rounds() -> impl Iterator<Item = usize> {
    let begun = Instant::now();
    (0..).take_while(move |round| {
        *round == 0 || asked_for().is_some_and(|time| begun.elapsed() < time)
    })
}
