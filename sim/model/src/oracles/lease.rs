//! Promise *At least once*, its core: an event has one live lease at a time, a claim is made only when it is due, and
//! a settlement counts only if it bears the fence of the newest claim. What is delivered once more gets a fence beyond all
//! that its event has had.

use super::{Promise, Violation, violation};
use crate::history::{Change, Run};
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Status;
use surehook_core::id::{EventId, Fence};

/// What times of a real database may be apart from what they were computed from.
const ROUNDING: Duration = Duration::from_millis(100);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut newest = BTreeMap::new();
    let mut highest: BTreeMap<EventId, Fence> = BTreeMap::new();
    for (at, committed) in run.committed() {
        let event = committed.event;
        if let Some(fence) = committed.after.map(|row| row.delivery.fence) {
            let before = highest.insert(event, fence);
            if committed.change == Change::Redriven
                && committed.before.is_none()
                && let Some(before) = before.filter(|before| fence <= *before)
            {
                let why = format!(
                    "event {event} was queued once more under fence {}, and had {} before",
                    fence.0, before.0
                );
                violations.push(violation(Promise::Lease, at, why, [event]));
            }
        }
        match committed.change {
            Change::Claimed => {
                let due = committed.before.and_then(|row| row.due_at);
                if due.is_none_or(|due| due > committed.db_time) {
                    let early = due.map_or_else(
                        || "was never due".to_owned(),
                        |due| {
                            format!(
                                "was not due for another {:.3}s",
                                due.duration_since(committed.db_time).as_secs_f64()
                            )
                        },
                    );
                    let why =
                        format!("event {event} was claimed by {} and {early}", committed.process);
                    violations.push(violation(Promise::Lease, at, why, [event]));
                }
                if let Some(after) =
                    committed.after.filter(|row| row.delivery.status == Status::Processing)
                {
                    newest.insert(event, after.delivery.fence);
                    let lease_ends = after.due_at.unwrap_or(committed.db_time);
                    let policy =
                        run.events.get(&event).and_then(|record| run.policies.get(&record.source));
                    if let Some(policy) = policy.filter(|policy| {
                        lease_ends + ROUNDING + run.commits_within
                            < committed.db_time + policy.lease()
                    }) {
                        let (leased, least) =
                            (lease_ends.duration_since(committed.db_time), policy.lease());
                        let what = format!(
                            "event {event} was leased for {leased:#}, and timeout, grace and allowance are {least:?}"
                        );
                        violations.push(violation(Promise::Lease, at, what, [event]));
                    }
                }
            }
            Change::Settled { fence, .. } if newest.get(&event) != Some(&fence) => {
                let why = format!(
                    "event {event} was settled by {} with fence {}, and the newest claim's is {}",
                    committed.process,
                    fence.0,
                    newest
                        .get(&event)
                        .map_or_else(|| "none".to_owned(), |fence| fence.0.to_string())
                );
                violations.push(violation(Promise::Lease, at, why, [event]));
            }
            // What is taken back is as if it had never been.
            Change::RolledBack | Change::Lost => {
                let row = committed.after.map(|row| row.delivery);
                newest.remove(&event);
                highest.remove(&event);
                if let Some(row) = row {
                    highest.insert(event, row.fence);
                }
                if let Some(row) = row.filter(|row| row.status == Status::Processing) {
                    newest.insert(event, row.fence);
                }
            }
            Change::Accepted
            | Change::Settled { .. }
            | Change::Redriven
            | Change::Pruned
            | Change::Erased => {}
        }
    }
    violations
}
