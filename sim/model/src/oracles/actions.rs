//! Promise *Explicit*, for operators: each redrive and each discard is in the history of its event, in
//! their order, with the number of attempts before it.

use super::{Promise, Violation, violation};
use crate::history::{Change, Run};
use std::collections::{BTreeMap, BTreeSet};
use surehook::search::ActionEntry;
use surehook_core::event::Action;
use surehook_core::id::{Attempt, EventId, Fence};

/// A redrive or a discard that was committed.
struct Acted {
    fence: Fence,
    attempt: Attempt,
    is_discard: bool,
}

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut acted: BTreeMap<EventId, Vec<Acted>> = BTreeMap::new();
    // Events that a failover took back to their delivery. That state has no fence, so it is not known
    // which actions came before it.
    let mut unknown: BTreeSet<EventId> = BTreeSet::new();
    for (_, committed) in run.committed() {
        let actions = acted.entry(committed.event).or_default();
        match (committed.change, committed.after) {
            (change @ (Change::Redriven { .. } | Change::Discarded), Some(after)) => {
                actions.push(Acted {
                    fence: after.delivery.fence,
                    attempt: after.delivery.attempt,
                    is_discard: change == Change::Discarded,
                });
            }
            (Change::RolledBack, Some(after)) => {
                actions.retain(|action| action.fence <= after.delivery.fence);
            }
            (Change::RolledBack, None) => {
                unknown.insert(committed.event);
            }
            // A process that was stopped in an accept for longer than the retention stores the event again.
            (Change::Lost | Change::Accepted, _) => actions.clear(),
            _ => {}
        }
    }
    let is_equal = |(acted, entry): (&Acted, &ActionEntry)| {
        acted.is_discard == (entry.action == Action::Discarded) && acted.attempt == entry.attempt
    };
    let mut violations = Vec::new();
    for record in run.events.values().filter(|record| !unknown.contains(&record.id)) {
        let acted = acted.get(&record.id).map(Vec::as_slice).unwrap_or_default();
        let is_complete =
            acted.len() == record.actions.len() && acted.iter().zip(&record.actions).all(is_equal);
        if !is_complete {
            let what = format!(
                "event {} was redriven or discarded {} times, but its history has {:?}",
                record.id,
                acted.len(),
                record.actions
            );
            violations.push(violation(Promise::Actions, run.ended_at, what, [record.id]));
        }
    }
    violations
}
