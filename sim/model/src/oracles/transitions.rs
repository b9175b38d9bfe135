//! Promise *Explicit*: an event's row changes only along the arrows of its life, and every change moves the fence by
//! one. Written from the design's drawing, not from the code that decides.

use super::{Promise, Violation, violation};
use crate::history::{Change, Committed, Run};
use surehook_core::event::{Outcome, Status};

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
        // What was delivered has no row any more, and no fence to compare.
        (None, Some(after)) if committed.change == Change::Redriven => {
            let is_queued =
                after.status == Status::Queued && after.attempt > 0 && after.used() == 0;
            return (!is_queued)
                .then_some("what was delivered is not queued again with a new budget");
        }
        (None, Some(after)) => {
            return (after.status != Status::Queued || after.attempt != 0)
                .then_some("a new event is not queued");
        }
        // What was delivered has no row any more when its retention ends.
        (None, None) => {
            return (committed.change != Change::Pruned).then_some("a change to nothing");
        }
        (Some(before), None) => {
            let ended =
                matches!(committed.change, Change::Settled { outcome: Outcome::Delivered, .. })
                    && before.status == Status::Processing;
            let pruned =
                committed.change == Change::Pruned && before.status == Status::DeadLettered;
            return (!ended && !pruned).then_some("a row is gone that was owed");
        }
        (Some(before), Some(after)) => {
            ((before.status, after.status), i64::from(after.attempt) - i64::from(before.attempt))
        }
    };
    if after?.fence != before?.fence.next() {
        return Some("the fence did not move by one");
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
        (Change::Redriven, (Status::DeadLettered, Status::Queued)) => {
            attempts == 0 && after.is_some_and(|after| after.used() == 0)
        }
        _ => false,
    };
    (!legal).then_some("there is no such transition")
}
