//! A shutdown leaves deliveries in flight their time: none is cut off before the part of the drain
//! timeout begins that is reserved for writing results, unless a second signal arrives.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Committed, Fault, Run, Sending, What};
use std::collections::BTreeMap;
use surehook_core::event::Outcome;
use surehook_core::shutdown::Division;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let Some(drain_timeout) = run.drain_timeout else { return Vec::new() };
    let until_cut_off = Division::of(drain_timeout).cut_off;
    let mut violations = Vec::new();
    // For each start of each process, when it may cut off its deliveries.
    let mut starts: BTreeMap<&str, Vec<Option<At>>> = BTreeMap::new();
    // The start of its process in which each attempt was sent. A slow database may commit its
    // settlement after the next start.
    let mut sent_by = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Fault(Fault::Started { process }) => {
                starts.entry(process).or_default().push(None);
            }
            What::Fault(Fault::Draining { process }) => {
                if let Some(cut_off_at) =
                    starts.get_mut(process.as_str()).and_then(|s| s.last_mut())
                {
                    // A second signal cuts them off at once.
                    let at = if cut_off_at.is_some() { entry.at } else { entry.at + until_cut_off };
                    *cut_off_at = Some(at);
                }
            }
            What::Sending(Sending { process, event, attempt, .. }) => {
                let start = starts.get(process.as_str()).map_or(0, Vec::len);
                sent_by.insert((*event, *attempt), start);
            }
            What::Committed(Committed {
                process,
                event,
                change: Change::Settled { attempt, outcome: Outcome::CutOff, .. },
                ..
            }) => {
                let start = sent_by.get(&(*event, *attempt)).and_then(|start| start.checked_sub(1));
                let allowed = start.and_then(|start| *starts.get(process.as_str())?.get(start)?);
                if allowed.is_none_or(|allowed| entry.at < allowed) {
                    let when = allowed.map_or_else(
                        || "without a shutdown".to_owned(),
                        |allowed| format!("{:?} early", allowed - entry.at),
                    );
                    let what = format!("{process} cut off the delivery of event {event} {when}");
                    violations.push(violation(Promise::Shutdown, entry.at, what, [*event]));
                }
            }
            _ => {}
        }
    }
    violations
}
