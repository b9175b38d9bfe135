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
    let losses = losses(run);
    let may_be_lost = |from: At, to: At| losses.iter().any(|at| from < *at && *at < to);
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

/// When commits may have been lost: the failovers to an asynchronous standby.
fn losses(run: &Run) -> Vec<At> {
    let is_failover = |what: &What| matches!(what, What::Fault(Fault::Database { what, .. }) if what.starts_with("failover"));
    let failovers = run.entries.iter().filter(|entry| is_failover(&entry.what));
    if run.failover_may_lose { failovers.map(|entry| entry.at).collect() } else { Vec::new() }
}

/// The spans in which each source may have been paused: those of [`spans`], and the time between a
/// failover that may have lost a resume and the next pause.
pub(super) fn possible_spans(run: &Run) -> BTreeMap<&str, Vec<(At, At)>> {
    let losses = losses(run);
    let mut spans = spans(run);
    for spans in spans.values_mut() {
        let resumed = spans.iter().map(|span| span.1);
        let next = spans.iter().skip(1).map(|span| span.0).chain([At::MAX]);
        let lost = resumed.zip(next).filter_map(|(resumed, next)| {
            let lost = losses.iter().find(|at| resumed < **at && **at < next)?;
            Some((*lost, next))
        });
        let lost: Vec<_> = lost.collect();
        spans.extend(lost);
    }
    spans
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Entry;

    fn at(seconds: u64) -> At {
        At::from_secs(seconds)
    }

    fn run(failover_may_lose: bool) -> Run {
        let failover =
            Fault::Database { what: "failover".into(), process: None, duration: Duration::ZERO };
        let paused = |paused| Fault::SourcePaused { source: "orders".into(), paused };
        let faults = [
            (1, paused(true)),
            (3, paused(false)),
            (5, failover),
            (9, paused(true)),
            (12, paused(false)),
        ];
        let entries =
            faults.map(|(second, fault)| Entry { at: at(second), what: What::Fault(fault) });
        Run { failover_may_lose, entries: entries.into(), ..Run::default() }
    }

    #[test]
    fn a_failover_may_lose_a_resume() {
        let known = [(at(1), at(3)), (at(9), at(12))];
        let possible = |run: &Run| possible_spans(run).remove("orders").unwrap_or_default();
        assert_eq!(possible(&run(false)), known);
        assert_eq!(possible(&run(true)), [known[0], known[1], (at(5), at(9))]);
    }
}
