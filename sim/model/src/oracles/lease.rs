//! Promise *At least once*, for leases: an event has one live lease at a time, is claimed only when
//! it is due, and is settled only with the fence of its newest claim. A redrive of a delivered
//! event sets a fence greater than all its earlier ones. A due time is capped only if it is beyond
//! the horizon, and not to less than a lease.

use super::{Promise, Violation, violation};
use crate::history::{Change, Run};
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Status;
use surehook_core::id::{EventId, Fence};

/// Tolerance for the times of a real database, which are rounded.
const ROUNDING: Duration = Duration::from_millis(100);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut newest = BTreeMap::new();
    let mut highest: BTreeMap<EventId, Fence> = BTreeMap::new();
    for (at, committed) in run.committed() {
        let event = committed.event;
        if let Some(fence) = committed.after.map(|row| row.delivery.fence) {
            let before = highest.insert(event, fence);
            if matches!(committed.change, Change::Redriven { .. })
                && committed.before.is_none()
                && let Some(before) = before.filter(|before| fence <= *before)
            {
                let why = format!(
                    "event {event} was redriven with fence {}, but had fence {} before",
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
                        || "not due at all".to_owned(),
                        |due| {
                            format!(
                                "due {:.3}s later",
                                due.duration_since(committed.db_time).as_secs_f64()
                            )
                        },
                    );
                    let why = format!(
                        "event {event} was claimed by {} although it was {early}",
                        committed.process
                    );
                    violations.push(violation(Promise::Lease, at, why, [event]));
                }
                if let Some(after) =
                    committed.after.filter(|row| row.delivery.status == Status::Processing)
                {
                    newest.insert(event, after.delivery.fence);
                    let lease_ends = after.due_at.unwrap_or(committed.db_time);
                    let sent = committed.sent.unwrap_or(at);
                    let policy = run.events.get(&event).and_then(|record| {
                        run.policies.of(&committed.process, &record.source, sent)
                    });
                    if let Some(policy) = policy.filter(|policy| {
                        lease_ends + ROUNDING + run.commits_within
                            < committed.db_time + policy.lease()
                    }) {
                        let (leased, least) =
                            (lease_ends.duration_since(committed.db_time), policy.lease());
                        let what = format!(
                            "event {event} was leased for {leased:#}, but timeout, grace and allowance add up to {least:?}"
                        );
                        violations.push(violation(Promise::Lease, at, what, [event]));
                    }
                }
            }
            Change::Settled { fence, .. } if newest.get(&event) != Some(&fence) => {
                let why = format!(
                    "event {event} was settled by {} with fence {}, but the newest claim has {}",
                    committed.process,
                    fence.0,
                    newest
                        .get(&event)
                        .map_or_else(|| "none".to_owned(), |fence| fence.0.to_string())
                );
                violations.push(violation(Promise::Lease, at, why, [event]));
            }
            // A rolled-back change counts as if it had never been made.
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
            Change::Capped => {
                let record = run.events.get(&event);
                let sent = committed.sent.unwrap_or(at);
                let policy = record
                    .and_then(|record| run.policies.of(&committed.process, &record.source, sent));
                if let (Some(policy), Some(was), Some(is)) = (
                    policy,
                    committed.before.and_then(|row| row.due_at),
                    committed.after.and_then(|row| row.due_at),
                ) {
                    let [was, is] = [was, is].map(|due| due.duration_since(committed.db_time));
                    let (horizon, lease) = (policy.horizon(), policy.lease());
                    if was <= signed(horizon) || is + signed(ROUNDING) < signed(lease) {
                        let what = format!(
                            "the due time of event {event} was {was:#} ahead and was capped to {is:#}, but the horizon is {horizon:?} and a lease {lease:?}"
                        );
                        violations.push(violation(Promise::Lease, at, what, [event]));
                    }
                }
            }
            Change::Accepted
            | Change::Settled { .. }
            | Change::Redriven { .. }
            | Change::Discarded
            | Change::Pruned
            | Change::Erased => {}
        }
    }
    violations
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}
