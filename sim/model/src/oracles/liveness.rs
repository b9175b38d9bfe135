//! Promise *Never stuck*: after the last fault is mended, every accepted event ends within a bound that follows from
//! policy: a lease, then every back-off and time-out that its budget still allows, and the time to work off what waits.

use super::{Promise, Violation, violation};
use crate::history::Run;
use std::time::Duration;
use surehook_core::event::Status;
use surehook_core::source::Policy;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let acknowledged = run.answers().filter_map(|(_, answer)| answer.event).collect::<std::collections::BTreeSet<_>>();
    let stuck = run.events.values().filter(|record| !matches!(record.status, Status::Delivered | Status::DeadLettered));
    let mut violations: Vec<Violation> = stuck
        .filter(|record| {
            run.policies.get(&record.source).is_some_and(|policy| run.ended_at >= run.healed_at + time_to_end(policy, run.events.len()))
        })
        .map(|record| {
            let known = if acknowledged.contains(&record.id) { "acknowledged" } else { "stored and never acknowledged" };
            let what = format!(
                "event {} of {} ({known}) is still {:?} after {} attempts, next due {:?}, long after the last fault",
                record.id, record.source, record.status, record.attempt, record.next_attempt_at
            );
            violation(Promise::Liveness, run.ended_at, what, [record.id])
        })
        .collect();
    if let Some(longest) = run.policies.values().map(|policy| time_to_end(policy, run.events.len())).max()
        && run.ended_at < run.healed_at + longest
        && !violations.is_empty()
    {
        violations.push(violation(Promise::Liveness, run.ended_at, "the run ended before the bound".to_owned(), []));
    }
    violations
}

/// How long after the last fault an event of this policy may take to end, if `events` are waiting with it. A database
/// clock that jumped back is in it, by up to a minute.
#[must_use]
pub fn time_to_end(policy: &Policy, events: usize) -> Duration {
    let retries: Duration = (1..=policy.max_attempts).map(|n| policy.backoff.ceiling(n) + policy.timeout).sum();
    let turns = u32::try_from(events).unwrap_or(u32::MAX) / policy.concurrency.max(1) + 1;
    policy.lease() * 2 + retries + policy.timeout * turns + Duration::from_secs(90)
}
