//! Promise *Bounded*, for storage: an event is deleted when its retention ends, and its payload is
//! erased when the payload retention ends. Neither is early, and the deletion is not much later.

use super::isolation::quiet_spans;
use super::{Promise, Violation, violation};
use crate::history::{At, Change, Fault, Run, What};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Status;
use surehook_core::id::EventId;

/// Bound from the end of a retention to the pruning: two intervals between passes, and the pass
/// itself.
const PRUNED_WITHIN: Duration = Duration::from_secs(135);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let Some(kept) = run.kept else { return Vec::new() };
    let mut violations = Vec::new();
    let mut say =
        |at, what: String, event| violations.push(violation(Promise::Retention, at, what, [event]));
    // When each ended event ended, in the run's time and in the database's time, with its
    // retention.
    let mut ended: BTreeMap<EventId, (At, Duration, Timestamp)> = BTreeMap::new();
    // When the last delivery of each event ended. The event's end is that moment, however late it
    // is written.
    let mut sent: BTreeMap<EventId, At> = BTreeMap::new();
    // When each event ended for the first time, in the database's time.
    let mut first_settled: BTreeMap<EventId, Timestamp> = BTreeMap::new();
    let mut jumped = false;
    for entry in &run.entries {
        let committed = match &entry.what {
            What::Committed(committed) => committed,
            What::Fault(Fault::Database { what, .. }) => {
                jumped |= what.contains("clock");
                continue;
            }
            What::Sent { event, .. } => {
                sent.insert(*event, entry.at);
                continue;
            }
            _ => continue,
        };
        let event = committed.event;
        match committed.change {
            Change::Pruned | Change::Erased => {
                let is_pruned = committed.change == Change::Pruned;
                let status = committed.before.map_or(Status::Delivered, |row| row.delivery.status);
                let least = match (is_pruned, status) {
                    (true, Status::DeadLettered) => kept.dead_lettered,
                    (true, _) => kept.delivered,
                    (false, _) => kept.payload,
                };
                let done = if is_pruned { "pruned" } else { "erased" };
                if status != Status::Delivered && !(is_pruned && status == Status::DeadLettered) {
                    say(entry.at, format!("event {event} was {done} in status {status:?}"), event);
                } else if let Some((_, _, settled_at)) = ended.get(&event) {
                    let age = Duration::try_from(committed.db_time.duration_since(*settled_at))
                        .unwrap_or_default();
                    if age < least {
                        say(
                            entry.at,
                            format!(
                                "event {event} ({status:?}) was {done} {age:?} after its end, but its retention is {least:?}"
                            ),
                            event,
                        );
                    }
                }
                if is_pruned {
                    ended.remove(&event);
                }
            }
            Change::Lost => {
                ended.remove(&event);
            }
            // A dead letter that is discarded keeps the time when it ended.
            Change::Discarded
                if committed
                    .before
                    .is_some_and(|row| row.delivery.status == Status::DeadLettered) => {}
            Change::Capped => {}
            Change::Accepted
            | Change::Claimed
            | Change::Settled { .. }
            | Change::Redriven { .. }
            | Change::Discarded
            | Change::RolledBack => {
                let kept = match committed.after.map(|row| row.delivery.status) {
                    None => kept.delivered,
                    Some(Status::DeadLettered) => kept.dead_lettered,
                    Some(_) => {
                        ended.remove(&event);
                        continue;
                    }
                };
                let since = sent.get(&event).map_or(Duration::ZERO, |sent| entry.at - *sent);
                let settled_at = committed.db_time - since;
                let first = *first_settled.entry(event).or_insert(settled_at);
                // A rollback restores an earlier end, and the clock may have jumped since then.
                let settled_at =
                    if committed.change == Change::RolledBack { first } else { settled_at };
                ended.insert(event, (entry.at, kept, settled_at));
            }
        }
    }
    // The remaining events were not pruned.
    let quiet = quiet_spans(run);
    for (event, (at, kept, _)) in ended {
        let (from, by) = (at + kept, at + kept + PRUNED_WITHIN);
        if !jumped
            && by <= run.ended_at
            && quiet.iter().any(|(start, end)| *start <= from && by <= *end)
        {
            say(
                by,
                format!(
                    "event {event} ended at {:.3}s and was not pruned after its retention of {kept:?}",
                    at.as_secs_f64()
                ),
                event,
            );
        }
    }
    violations
}
