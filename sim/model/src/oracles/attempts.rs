//! Promise *Bounded*, for attempts: an event's attempts are numbered from 1 without gaps, and never
//! exceed its budget: the `max_attempts` of the process that claims it.

use super::{Promise, Violation, violation};
use crate::history::{Change, Run};
use std::collections::BTreeMap;
use surehook_core::event::{Outcome, Status};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut say =
        |at, what, event| violations.push(violation(Promise::Attempts, at, what, [event]));
    // The attempts of each event that do not count: those before a redrive, and those that a
    // shutdown cut off.
    let mut uncounted: BTreeMap<_, u32> = BTreeMap::new();
    for (at, committed) in run.committed() {
        let Some(record) = run.events.get(&committed.event) else { continue };
        let uncounted = uncounted.entry(committed.event).or_default();
        match committed.change {
            Change::Redriven { .. } => {
                *uncounted = committed.after.map_or(0, |row| row.delivery.attempt);
            }
            Change::Settled { outcome: Outcome::CutOff, .. } => *uncounted += 1,
            Change::RolledBack | Change::Lost => {
                *uncounted = committed.after.map_or(0, |row| row.delivery.budget_from);
            }
            _ => {}
        }
        let sent = committed.sent.unwrap_or(at);
        let Some(policy) = run.policies.of(&committed.process, &record.source, sent) else {
            continue;
        };
        let budget = *uncounted + policy.max_attempts;
        let claimed = committed.after.filter(|row| {
            row.delivery.status == Status::Processing && committed.change == Change::Claimed
        });
        if let Some(row) = claimed
            && row.delivery.attempt > budget
        {
            say(
                at,
                format!(
                    "event {} was claimed by {} for attempt {}, but its budget ends at {budget}",
                    committed.event, committed.process, row.delivery.attempt
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
