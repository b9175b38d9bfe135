//! Promise *Bounded*, for deliveries: no process has more of a source's deliveries in flight than
//! its `concurrency`.

use super::{Promise, Violation, violation};
use crate::history::{Fault, Run, Sending, What};
use std::collections::BTreeMap;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut in_flight: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    // The source of each delivery in flight, and how often it is in flight: after a failover that lost
    // a claim, a process can send the same attempt again before the first response.
    let mut source_of: BTreeMap<_, (&str, u32)> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Sending(Sending { process, source, event, attempt }) => {
                let key = (process.as_str(), *event, *attempt);
                source_of.entry(key).or_insert((source.as_str(), 0)).1 += 1;
                let count = in_flight.entry((process, source)).or_default();
                *count += 1;
                let policy = run.policies.of(process, source, entry.at);
                let limit = policy.map_or(u32::MAX, |policy| policy.concurrency);
                if *count > limit {
                    let open = source_of
                        .iter()
                        .filter(|((of, ..), (from, _))| of == process && *from == source)
                        .map(|(open, _)| open);
                    violations.push(violation(
                        Promise::Slots,
                        entry.at,
                        format!("{process} has {count} deliveries of source {source} in flight, but only {limit} slots"),
                        open.map(|(_, event, _)| *event),
                    ));
                }
            }
            What::Sent { process, event, attempt, .. } => {
                let key = (process.as_str(), *event, *attempt);
                if let Some((source, times)) = source_of.get_mut(&key) {
                    if let Some(count) = in_flight.get_mut(&(process.as_str(), *source)) {
                        *count -= 1;
                    }
                    *times -= 1;
                    if *times == 0 {
                        source_of.remove(&key);
                    }
                }
            }
            What::Fault(Fault::Killed { process } | Fault::Exited { process }) => {
                in_flight.retain(|(of, _), _| of != process);
                source_of.retain(|(of, _, _), _| of != process);
            }
            _ => {}
        }
    }
    violations
}
