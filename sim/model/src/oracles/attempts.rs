//! Promise *Bounded*, for attempts: an event's attempts are numbered from 1 without gaps, and never
//! exceed its budget.

use super::{Promise, Violation, violation};
use crate::history::{Change, Run};
use std::collections::BTreeMap;
use surehook_core::event::{Outcome, Status};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut say =
        |at, what, event| violations.push(violation(Promise::Attempts, at, what, [event]));
    // A redrive raises an event's budget, and so does each attempt that a shutdown cut off.
    let mut budgets: BTreeMap<_, u32> = BTreeMap::new();
    for (at, committed) in run.committed() {
        let Some(record) = run.events.get(&committed.event) else { continue };
        let Some(policy) = run.policies.get(&record.source) else { continue };
        let budget = budgets.entry(committed.event).or_insert(policy.max_attempts);
        match committed.change {
            Change::Redriven => {
                *budget =
                    committed.after.map_or(0, |row| row.delivery.attempt) + policy.max_attempts;
            }
            Change::Settled { outcome: Outcome::CutOff, .. } => *budget += 1,
            Change::RolledBack | Change::Lost => {
                *budget =
                    committed.after.map_or(0, |row| row.delivery.budget_from) + policy.max_attempts;
            }
            _ => {}
        }
        let claimed = committed.after.filter(|row| {
            row.delivery.status == Status::Processing && committed.change == Change::Claimed
        });
        if let Some(row) = claimed
            && row.delivery.attempt > *budget
        {
            say(
                at,
                format!(
                    "event {} was claimed for attempt {}, but its budget ends at {budget}",
                    committed.event, row.delivery.attempt
                ),
                committed.event,
            );
        }
    }
    for record in run.events.values() {
        for (expected, entry) in (1..).zip(&record.history) {
            if entry.attempt != expected {
                say(
                    run.ended_at,
                    format!(
                        "event {}: attempt {expected} is missing from its history, which has {} there",
                        record.id, entry.attempt
                    ),
                    record.id,
                );
                break;
            }
        }
        let ended =
            matches!(record.status, Status::Delivered | Status::DeadLettered | Status::Retrying);
        if ended && record.history.len() as u64 != u64::from(record.attempt) {
            say(
                run.ended_at,
                format!(
                    "event {} had {} attempts, but its history has {}",
                    record.id,
                    record.attempt,
                    record.history.len()
                ),
                record.id,
            );
        }
    }
    violations
}
