//! Promise *Explicit*: an event's row makes only the legal transitions, and each one increases the
//! fence by one. Capping a due time is no transition, and changes nothing else. This file follows
//! the diagram in `docs/ARCHITECTURE.md`, not the code in `core`, so that it is an independent
//! check.

use super::{Promise, Violation, violation};
use crate::history::{Change, Committed, Run};
use surehook_core::event::{Outcome, Reason, Status};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    run.committed()
        .filter_map(|(at, committed)| {
            let wrong = wrong(committed)?;
            let (before, after) =
                (committed.before.map(|row| row.delivery), committed.after.map(|row| row.delivery));
            Some(violation(
                Promise::Transitions,
                at,
                format!(
                    "event {}: {wrong} ({:?}: {before:?} to {after:?})",
                    committed.event, committed.change
                ),
                [committed.event],
            ))
        })
        .collect()
}

fn wrong(committed: &Committed) -> Option<&'static str> {
    if matches!(committed.change, Change::RolledBack | Change::Lost | Change::Erased) {
        return None;
    }
    let (before, after) =
        (committed.before.map(|row| row.delivery), committed.after.map(|row| row.delivery));
    let (status, attempts) = match (before, after) {
        // A delivered event has no row, so there is no fence to compare.
        (None, Some(after)) if matches!(committed.change, Change::Redriven { .. }) => {
            let is_queued =
                after.status == Status::Queued && after.attempt > 0 && after.attempts_used() == 0;
            return (!is_queued).then_some("a delivered event was not queued with a new budget");
        }
        (None, Some(after)) => {
            return (after.status != Status::Queued || after.attempt != 0)
                .then_some("a new event is not in status queued");
        }
        // A delivered event has no row when its retention ends.
        (None, None) => {
            return (committed.change != Change::Pruned)
                .then_some("a change without a row before and after");
        }
        (Some(before), None) => {
            let ended =
                matches!(committed.change, Change::Settled { outcome: Outcome::Delivered, .. })
                    && before.status == Status::Processing;
            let pruned =
                committed.change == Change::Pruned && before.status == Status::DeadLettered;
            return (!ended && !pruned).then_some("the row of an unfinished event was deleted");
        }
        (Some(before), Some(after)) => {
            ((before.status, after.status), i64::from(after.attempt) - i64::from(before.attempt))
        }
    };
    if committed.change == Change::Capped {
        return (before != after).then_some("more than the due time was capped");
    }
    if after?.fence != before?.fence.next() {
        return Some("the fence did not increase by one");
    }
    let legal = match (committed.change, status) {
        (
            Change::Claimed,
            (Status::Queued | Status::Retrying | Status::Processing, Status::Processing),
        ) => attempts == 1,
        (
            Change::Claimed,
            (Status::Queued | Status::Retrying | Status::Processing, Status::DeadLettered),
        ) => attempts == 0,
        (
            Change::Settled { outcome: Outcome::Release, .. },
            (Status::Processing, Status::Queued | Status::Retrying),
        ) => attempts == -1,
        (
            Change::Settled { .. },
            (Status::Processing, Status::Queued | Status::Retrying | Status::DeadLettered),
        ) => attempts == 0,
        (Change::Redriven { of_many }, (Status::DeadLettered, Status::Queued)) => {
            if of_many && before?.reason == Some(Reason::Discarded) {
                return Some("a redrive of many events took a discarded one");
            }
            attempts == 0 && after.is_some_and(|after| after.attempts_used() == 0)
        }
        (Change::Discarded, (before_status, Status::DeadLettered)) => {
            if after?.reason != Some(Reason::Discarded) {
                return Some("a discarded event has another reason");
            }
            let due_at = committed.before?.due_at;
            match before_status {
                Status::DeadLettered => attempts == 0 && before?.reason != Some(Reason::Discarded),
                Status::Queued | Status::Retrying => attempts == 0,
                Status::Processing if due_at.is_none_or(|due_at| due_at > committed.db_time) => {
                    return Some("an event was discarded before its lease ended");
                }
                Status::Processing => attempts == 0,
                Status::Delivered => false,
            }
        }
        _ => false,
    };
    (!legal).then_some("the transition is not legal")
}
