//! Promise *Explicit*, for readiness: a process is not ready while its database is down, and is
//! ready while there is no fault.

use super::isolation::quiet_spans;
use super::{Promise, Violation, violation};
use crate::history::{At, Fault, Run, What};
use std::time::Duration;

/// How old a process's knowledge of its database may be.
const LEARNT_WITHIN: Duration = Duration::from_millis(2_500);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let outages: Vec<(At, At)> = run
        .each(|what| match what {
            What::Fault(Fault::Database { what, process: None, duration }) if what == "down" => {
                Some(*duration)
            }
            _ => None,
        })
        .map(|(at, duration)| (at, at + duration))
        .collect();
    // When two outages overlap, the earlier end ends both.
    let end = |from: At| {
        outages.iter().map(|(_, to)| *to).filter(|to| *to > from).min().unwrap_or_default()
    };
    let down: Vec<(At, At)> = outages.iter().map(|(from, _)| (*from, end(*from))).collect();
    let quiet = quiet_spans(run);
    let asked = run.each(|what| match what {
        What::Ready { process, asked_at, is_ready } => Some((process, *asked_at, *is_ready)),
        _ => None,
    });
    asked
        .filter_map(|(at, (process, asked_at, is_ready))| {
            let is_down = down.iter().any(|(from, to)| {
                *from + LEARNT_WITHIN <= asked_at && at < *to && *to <= run.healed_at
            });
            let is_quiet = quiet
                .iter()
                .any(|(from, to)| *from <= asked_at.saturating_sub(LEARNT_WITHIN) && at <= *to);
            let wrong = match is_ready {
                true if is_down => "is ready, although its database is down",
                false if is_quiet => "is not ready, although no fault is active",
                _ => return None,
            };
            Some(violation(Promise::Readiness, at, format!("{process} {wrong}"), []))
        })
        .collect()
}
