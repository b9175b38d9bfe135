//! Discarding: a process starts no delivery of a discarded event, until the event is redriven.

use super::{Promise, Violation, sets_clock_forward, violation};
use crate::history::{At, Fault, Run, What};
use std::collections::BTreeMap;
use surehook_core::event::Reason;
use surehook_core::id::EventId;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut discarded: BTreeMap<EventId, At> = BTreeMap::new();
    // A process that was stopped does not see that its lease has ended. If the database's clock is
    // set forward, leases end early.
    let mut stopped: Vec<(&str, At)> = Vec::new();
    let mut is_clock_forward = false;
    for entry in &run.entries {
        match &entry.what {
            What::Committed(committed) => {
                let row = committed.after.map(|row| row.delivery);
                if row.is_some_and(|row| row.reason == Some(Reason::Discarded)) {
                    discarded.entry(committed.event).or_insert(entry.at);
                } else {
                    discarded.remove(&committed.event);
                }
            }
            What::Sending(sending) => {
                let Some(since) = discarded.get(&sending.event) else { continue };
                let was_stopped = stopped
                    .iter()
                    .any(|(process, until)| *process == sending.process && until >= since);
                if !was_stopped && !is_clock_forward {
                    let what = format!(
                        "{} sends event {} (attempt {}), which was discarded at {:.3}s",
                        sending.process,
                        sending.event,
                        sending.attempt,
                        since.as_secs_f64()
                    );
                    violations.push(violation(Promise::Discards, entry.at, what, [sending.event]));
                }
            }
            What::Fault(Fault::Paused { process, duration }) => {
                stopped.push((process, entry.at + *duration));
            }
            What::Fault(fault) => is_clock_forward |= sets_clock_forward(fault),
            _ => {}
        }
    }
    violations
}
