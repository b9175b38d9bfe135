//! Promise *Bounded*, for a source with a rate: no process starts its deliveries faster than the
//! rate, in any span of time.

use super::{Promise, Violation, violation};
use crate::history::{At, Fault, Run, Sending, What};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use surehook_core::rate::BURST;

/// The longest span that is checked.
const SPAN: Duration = Duration::from_secs(5);
/// Bound on the delay between a start and its record.
const SEEN_LATE: Duration = Duration::from_millis(500);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut starts: BTreeMap<(&str, &str), VecDeque<At>> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Sending(Sending { process, source, event, .. }) => {
                let policy = run.policies.of(process, source, entry.at);
                let Some(rate) = policy.and_then(|policy| policy.rate) else { continue };
                let recent = starts.entry((process, source)).or_default();
                recent.push_back(entry.at);
                while recent.front().is_some_and(|at| *at + SPAN < entry.at) {
                    recent.pop_front();
                }
                let over = recent.iter().rev().zip(1u128..).find(|(from, count)| {
                    let span = entry.at - **from + BURST + SEEN_LATE;
                    *count > 1 + span.as_micros() * u128::from(rate.get()) / 1_000_000
                });
                if let Some((from, count)) = over {
                    let span = (entry.at - *from).as_secs_f64();
                    let what = format!(
                        "{process} started {count} deliveries of source {source} within {span:.3}s, but its rate is {rate} per second"
                    );
                    violations.push(violation(Promise::Rate, entry.at, what, [*event]));
                    recent.clear();
                }
            }
            What::Fault(Fault::Killed { process } | Fault::Exited { process }) => {
                starts.retain(|(of, _), _| of != process);
            }
            _ => {}
        }
    }
    violations
}
