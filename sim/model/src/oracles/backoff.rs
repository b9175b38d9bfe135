//! The retry policy: no attempt starts earlier than the back-off and `Retry-After` allow.
//!
//! Measured at the downstream: from its response to one attempt until the next attempt arrives.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Fault, RequestId, Run, What};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook_core::event::Outcome;
use surehook_core::id::{Attempt, BudgetAttempt, EventId};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut requests: BTreeMap<RequestId, (EventId, Attempt)> = BTreeMap::new();
    let mut not_before: BTreeMap<EventId, (At, Attempt, String)> = BTreeMap::new();
    let mut asked: BTreeMap<(EventId, Attempt), (At, Duration)> = BTreeMap::new();
    let mut heard: BTreeSet<(EventId, Attempt)> = BTreeSet::new();
    // A jump of the database's clock can make an event due early. It is the only clock that matters
    // here.
    let jumped: Vec<At> = run
        .each(|what| match what {
            What::Fault(Fault::Database { what, .. }) if what.contains("clock") => Some(()),
            _ => None,
        })
        .map(|(at, ())| at)
        .collect();
    let redriven: Vec<(At, EventId)> = run
        .committed()
        .filter(|(_, c)| matches!(c.change, Change::Redriven { .. }))
        .map(|(at, c)| (at, c.event))
        .collect();
    for entry in &run.entries {
        match &entry.what {
            What::Received(received) => {
                requests.insert(received.request, (received.event, received.attempt));
                if let Some((earliest, after, why)) = not_before.get(&received.event) {
                    let between = |at: At| {
                        at <= entry.at && at >= earliest.saturating_sub(Duration::from_hours(2))
                    };
                    let excused = jumped.iter().any(|at| between(*at))
                        || redriven
                            .iter()
                            .any(|(at, event)| *event == received.event && between(*at));
                    if received.attempt > *after && entry.at < *earliest && !excused {
                        let early = (*earliest - entry.at).as_secs_f64();
                        let what = format!(
                            "event {}: attempt {} arrived {early:.3}s too early: {why}",
                            received.event, received.attempt
                        );
                        violations.push(violation(
                            Promise::Backoff,
                            entry.at,
                            what,
                            [received.event],
                        ));
                    }
                }
            }
            What::Replied { request, retry_after: Some(asked_for), .. } => {
                let Some(&(event, attempt)) = requests.get(request) else { continue };
                asked.insert((event, attempt), (entry.at, *asked_for));
            }
            // `Retry-After` applies only if the response arrived, and it limits the next attempt
            // only once it is written.
            What::Sent { event, attempt, status_code: Some(_), .. } => {
                heard.insert((*event, *attempt));
            }
            What::Committed(committed)
                if matches!(committed.change, Change::RolledBack | Change::Lost) =>
            {
                not_before.remove(&committed.event);
            }
            What::Committed(committed) => {
                let Change::Settled { attempt, outcome: Outcome::Retry { .. }, .. } =
                    committed.change
                else {
                    continue;
                };
                let Some(backoff) = run
                    .events
                    .get(&committed.event)
                    .and_then(|record| run.policies.backoff(&record.source))
                else {
                    continue;
                };
                let used = attempt
                    .saturating_sub(committed.before.map_or(0, |row| row.delivery.budget_from));
                let least = backoff.ceiling(BudgetAttempt(used)) / 2;
                let mut bound = (
                    committed.began.unwrap_or(entry.at) + least,
                    format!(
                        "the back-off after attempt {attempt} is at least {:.3}s",
                        least.as_secs_f64()
                    ),
                );
                if let Some((at, asked_for)) = asked.get(&(committed.event, attempt))
                    && heard.contains(&(committed.event, attempt))
                {
                    let asked_for = (*asked_for).min(backoff.max_delay);
                    bound = bound.max((
                        *at + asked_for,
                        format!("Retry-After asked for {:.3}s", asked_for.as_secs_f64()),
                    ));
                }
                not_before.insert(committed.event, (bound.0, attempt, bound.1));
            }
            _ => {}
        }
    }
    violations
}
