//! Promise *No needless duplicates*, for deliveries in flight: only one process at a time sends an
//! event. Two may overlap only if the first was suspended, if the database's clock was set
//! forward, so that its lease ended early, or if a failover rolled its claim back.

use super::{Promise, Violation, sets_clock_forward, violation};
use crate::history::{At, Change, Fault, Run, Sending, What};
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Outcome;
use surehook_core::id::{Attempt, EventId};

/// Bound from the claim of an event to its delivery: what a lease allows, plus a late response of
/// the database.
const CLAIMED_BEFORE: Duration = Duration::from_secs(15);

struct UnderWay<'a> {
    since: At,
    process: &'a str,
    attempt: Attempt,
}

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut under_way: BTreeMap<EventId, Vec<UnderWay<'_>>> = BTreeMap::new();
    let mut stopped: Vec<(&str, At, At)> = Vec::new();
    let mut jumped: Vec<At> = Vec::new();
    let mut rolled_back: BTreeMap<EventId, At> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Sending(Sending { process, event, attempt, .. }) => {
                let others = under_way.entry(*event).or_default();
                for other in others.iter() {
                    let was_stopped = |(of, from, to): &(&str, At, At)| {
                        *of == other.process && *from <= entry.at && *to >= other.since
                    };
                    let claimed_before = |at: &At| *at + CLAIMED_BEFORE >= other.since;
                    let may = stopped.iter().any(was_stopped)
                        || jumped.iter().any(claimed_before)
                        || rolled_back.get(event).is_some_and(claimed_before);
                    if !may {
                        let what = format!(
                            "{process} sends event {event} (attempt {attempt}) while {} still sends it (attempt {}, since {:.3}s)",
                            other.process,
                            other.attempt,
                            other.since.as_secs_f64()
                        );
                        violations.push(violation(Promise::Overlap, entry.at, what, [*event]));
                    }
                }
                others.push(UnderWay { since: entry.at, process, attempt: *attempt });
            }
            What::Sent { process, event, attempt, .. } => {
                ended(&mut under_way, *event, |one| {
                    one.process == process && one.attempt == *attempt
                });
            }
            What::Committed(committed) => match committed.change {
                // A shutdown releases the event before it ends the delivery.
                Change::Settled { attempt, outcome: Outcome::CutOff, .. } => {
                    ended(&mut under_way, committed.event, |one| {
                        one.process == committed.process && one.attempt == attempt
                    });
                }
                Change::RolledBack | Change::Lost => {
                    // The response of the claim may still be on its way to its process.
                    rolled_back.insert(committed.event, entry.at);
                    ended(&mut under_way, committed.event, |_| true);
                }
                _ => {}
            },
            What::Fault(Fault::Killed { process } | Fault::Exited { process }) => {
                for all in under_way.values_mut() {
                    all.retain(|one| one.process != process);
                }
            }
            What::Fault(Fault::Paused { process, duration }) => {
                stopped.push((process, entry.at, entry.at + *duration));
            }
            What::Fault(fault) if sets_clock_forward(fault) => jumped.push(entry.at),
            _ => {}
        }
    }
    violations
}

fn ended(
    under_way: &mut BTreeMap<EventId, Vec<UnderWay<'_>>>,
    event: EventId,
    is_meant: impl Fn(&UnderWay<'_>) -> bool,
) {
    if let Some(all) = under_way.get_mut(&event) {
        all.retain(|one| !is_meant(one));
    }
}
