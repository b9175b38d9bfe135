//! Promise *Bounded*, for deliveries: no process has more of a source's deliveries in flight than
//! its `concurrency`.

use super::{Promise, Violation, violation};
use crate::history::{Fault, Run, Sending, What};
use std::collections::BTreeMap;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut in_flight: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut source_of = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Sending(Sending { process, source, event, attempt }) => {
                source_of.insert((process.as_str(), *event, *attempt), source.as_str());
                let count = in_flight.entry((process, source)).or_default();
                *count += 1;
                let policy = run.policies.of(process, source, entry.at);
                let limit = policy.map_or(u32::MAX, |policy| policy.concurrency);
                if *count > limit {
                    let open = source_of
                        .iter()
                        .filter(|((of, ..), from)| of == process && *from == source)
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
                if let Some(source) = source_of.remove(&(process.as_str(), *event, *attempt))
                    && let Some(count) = in_flight.get_mut(&(process.as_str(), source))
                {
                    *count -= 1;
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
