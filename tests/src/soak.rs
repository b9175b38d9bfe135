//! The length of long scenarios: seconds in `make test`, or longer as set by `SUREHOOK_SOAK`.

use std::time::{Duration, Instant};

/// The variable with the duration of scenarios that have a long form, such as `10m`.
const VARIABLE: &str = "SUREHOOK_SOAK";

/// The requested duration, or `None` for the short form.
///
/// # Panics
///
/// If the variable is not a duration.
#[must_use]
pub fn asked_for() -> Option<Duration> {
    let text = std::env::var(VARIABLE).ok()?;
    Some(
        humantime::parse_duration(&text)
            .unwrap_or_else(|error| panic!("{VARIABLE} must be a duration such as 10m: {error}")),
    )
}

/// The long form of a value if a soak was requested, and otherwise the short one.
#[must_use]
pub fn either<T>(short: T, long: T) -> T {
    if asked_for().is_some() { long } else { short }
}

/// Rounds until the requested time has passed, but at least one.
pub fn rounds() -> impl Iterator<Item = usize> {
    let begun = Instant::now();
    (0..).take_while(move |round| {
        *round == 0 || asked_for().is_some_and(|time| begun.elapsed() < time)
    })
}
