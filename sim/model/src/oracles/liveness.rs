//! Promise *Never stuck*: after the last fault has ended, every accepted event ends within a bound.
//! The bound follows from the slowest policy of its source: a lease, the back-offs and timeouts that the budget still
//! allows, and the time to process the backlog.

use super::{Promise, Violation, violation};
use crate::history::{Committed, Run};
use std::time::Duration;
use surehook_core::due::PASS_PAUSE;
use surehook_core::event::Status;
use surehook_core::id::{BudgetAttempt, EventId};
use surehook_core::source::Policy;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let acknowledged = run
        .answers()
        .filter_map(|(_, answer)| answer.event)
        .collect::<std::collections::BTreeSet<_>>();
    let slowest = run.policies.slowest();
    let stuck = run
        .events
        .values()
        .filter(|record| !matches!(record.status, Status::Delivered | Status::DeadLettered));
    let mut violations: Vec<Violation> = stuck
        .filter(|record| {
            slowest.get(record.source.as_str()).is_some_and(|policy| run.ended_at >= run.healed_at + time_to_end(policy, run.events.len()))
        })
        .map(|record| {
            let known = if acknowledged.contains(&record.id) { "acknowledged" } else { "stored, but never acknowledged" };
            let what = format!(
                "event {} of {} ({known}) is still {:?} after {} attempts, long after the last fault; {}",
                record.id,
                record.source,
                record.status,
                record.attempt,
                row(run, record.id)
            );
            violation(Promise::Liveness, run.ended_at, what, [record.id])
        })
        .collect();
    if !violations.is_empty() {
        for (process, waits) in &run.waits {
            let waits = if waits.is_empty() { "nothing".to_owned() } else { waits.join("; ") };
            violations.push(violation(
                Promise::Liveness,
                run.ended_at,
                format!("{process} waits for {waits}"),
                [],
            ));
        }
    }
    if let Some(longest) =
        slowest.values().map(|policy| time_to_end(policy, run.events.len())).max()
        && run.ended_at < run.healed_at + longest
        && !violations.is_empty()
    {
        violations.push(violation(
            Promise::Liveness,
            run.ended_at,
            "the run ended before the longest bound was reached".to_owned(),
            [],
        ));
    }
    violations
}

/// Describes an event's row as last committed.
fn row(run: &Run, event: EventId) -> String {
    let last = run.committed().filter(|(_, committed)| committed.event == event).last();
    let Some((at, Committed { db_time, after: Some(row), .. })) = last else {
        return "no write of its row is recorded".to_owned();
    };
    let due = row.due_at.map_or_else(
        || "no due time".to_owned(),
        |due| format!("due {:.3}s later", due.duration_since(*db_time).as_secs_f64()),
    );
    format!(
        "its row was last written at {:.3}s, with fence {} and {due}",
        at.as_secs_f64(),
        row.delivery.fence.0
    )
}

/// How long after the last fault an event with this policy may take to end, if `events` events are
/// waiting. Includes up to a minute for a database clock that jumped back, and the time until a due
/// time is capped and a lease has passed, if a first step fails.
#[must_use]
pub fn time_to_end(policy: &Policy, events: usize) -> Duration {
    let retries: Duration = (1..=policy.max_attempts)
        .map(|n| policy.backoff.ceiling(BudgetAttempt(n)) + policy.timeout)
        .sum();
    let turns = u32::try_from(events).unwrap_or(u32::MAX) / policy.concurrency.max(1) + 1;
    let rated = policy.rate.map_or(Duration::ZERO, |rate| {
        Duration::from_secs(1) * u32::try_from(events).unwrap_or(u32::MAX) / rate.get()
    });
    policy.lease() * 3
        + PASS_PAUSE * 2
        + retries
        + policy.timeout * turns
        + policy.breaker.open_for * 2
        + rated
        + Duration::from_secs(90)
}
