//! The policy of retries: no attempt starts earlier than the back-off allows, nor than `Retry-After` asked for.
//!
//! Judged where it counts, at the downstream: between its answer to one attempt and the arrival of the next.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Fault, RequestId, Run, What};
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Outcome;
use surehook_core::id::{Attempt, EventId};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut requests: BTreeMap<RequestId, (EventId, Attempt, &str)> = BTreeMap::new();
    let mut not_before: BTreeMap<EventId, (At, Attempt, String)> = BTreeMap::new();
    // Clocks that jump can make an event due early: the database's is the only one that counts.
    let jumped: Vec<At> = run
        .each(|what| match what {
            What::Fault(Fault::Database { what, .. }) if what.contains("clock") => Some(()),
            _ => None,
        })
        .map(|(at, ())| at)
        .collect();
    let redriven: Vec<(At, EventId)> =
        run.committed().filter(|(_, c)| matches!(c.change, Change::Redriven)).map(|(at, c)| (at, c.event)).collect();
    for entry in &run.entries {
        match &entry.what {
            What::Received(received) => {
                requests.insert(received.request, (received.event, received.attempt, &received.source));
                if let Some((earliest, after, why)) = not_before.get(&received.event) {
                    let between = |at: At| at <= entry.at && at >= earliest.saturating_sub(Duration::from_secs(7200));
                    let excused =
                        jumped.iter().any(|at| between(*at)) || redriven.iter().any(|(at, event)| *event == received.event && between(*at));
                    if received.attempt > *after && entry.at < *earliest && !excused {
                        let early = (*earliest - entry.at).as_secs_f64();
                        let what = format!("event {}: attempt {} came {early:.3}s too early: {why}", received.event, received.attempt);
                        violations.push(violation(Promise::Backoff, entry.at, what, [received.event]));
                    }
                }
            }
            What::Committed(committed) => {
                let (Change::Settled { attempt, outcome: Outcome::Retry { .. }, .. }, Some(record)) =
                    (committed.change, run.events.get(&committed.event))
                else {
                    continue;
                };
                let Some(policy) = run.policies.get(&record.source) else { continue };
                let used = attempt.saturating_sub(committed.before.map_or(0, |row| row.delivery.budget_from));
                let least = policy.backoff.ceiling(used) / 2;
                let place = not_before.entry(committed.event).or_default();
                if entry.at + least > place.0 {
                    *place = (
                        entry.at + least,
                        attempt,
                        format!("the back-off after attempt {attempt} is {:.3}s at the least", least.as_secs_f64()),
                    );
                }
            }
            What::Replied { request, retry_after: Some(asked), status_code } if !(200..300).contains(status_code) => {
                let Some((event, attempt, source)) = requests.get(request) else { continue };
                let Some(policy) = run.policies.get(*source) else { continue };
                // Only a reply that arrived can be heeded.
                let heard = run.entries.iter().any(|other| {
                    matches!(&other.what, What::Sent { event: e, attempt: a, status_code: Some(code), .. } if e == event && a == attempt && code == status_code)
                });
                // The date form has whole seconds, and so has what is asked for.
                let asked = (*asked).min(policy.backoff.max_delay);
                let place = not_before.entry(*event).or_default();
                if heard && entry.at + asked > place.0 {
                    *place = (entry.at + asked, *attempt, format!("Retry-After asked for {:.3}s", asked.as_secs_f64()));
                }
            }
            _ => {}
        }
    }
    violations
}
