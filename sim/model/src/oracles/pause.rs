//! Pausing: while an operator has paused a source, no process claims its events. A failover to an
//! asynchronous standby may lose the pause, as it may lose other commits.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Fault, Run, What};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where the start of a claim is not recorded: bound on the time from a claim's start to its
/// commit.
const BEGUN_BEFORE: Duration = Duration::from_secs(10);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let spans = spans(run);
    let may_be_lost = |from: At, to: At| {
        run.failover_may_lose
            && run.entries.iter().any(|entry| {
                let is_failover = matches!(&entry.what, What::Fault(Fault::Database { what, .. }) if what.starts_with("failover"));
                is_failover && from < entry.at && entry.at < to
            })
    };
    let claimed = run.committed().filter(|(_, committed)| committed.change == Change::Claimed);
    claimed
        .filter_map(|(at, committed)| {
            let source = run.events.get(&committed.event)?.source.as_str();
            let began = committed.began.unwrap_or_else(|| at.saturating_sub(BEGUN_BEFORE));
            let span = spans.get(source)?.iter().find(|(from, to)| *from < began && began < *to)?;
            if may_be_lost(span.0, began) {
                return None;
            }
            let what = format!(
                "{} claimed event {} of source {source}, which has been paused since {:.3}s",
                committed.process,
                committed.event,
                span.0.as_secs_f64()
            );
            Some(violation(Promise::Pause, at, what, [committed.event]))
        })
        .collect()
}

/// The spans in which each source was paused.
pub(crate) fn spans(run: &Run) -> BTreeMap<&str, Vec<(At, At)>> {
    let mut spans: BTreeMap<&str, Vec<(At, At)>> = BTreeMap::new();
    for entry in &run.entries {
        if let What::Fault(Fault::SourcePaused { source, paused }) = &entry.what {
            let spans = spans.entry(source).or_default();
            let open = spans.last_mut().filter(|span| span.1 == At::MAX);
            match (open, paused) {
                (None, true) => spans.push((entry.at, At::MAX)),
                (Some(span), false) => span.1 = entry.at,
                (Some(_), true) | (None, false) => {}
            }
        }
    }
    spans
}
