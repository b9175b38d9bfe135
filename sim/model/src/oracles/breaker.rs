//! Promise *Isolated*, for a failing downstream: after `breaker.failures` failures in a row, or
//! `breaker.refusals` refusals without an accepted event between them, a process sends nothing until
//! the breaker's open time is over. Then it sends one probe. After that one succeeds, each further
//! success increases the allowed concurrency by one.
//!
//! The recorded times are not exactly those of the process: it learns of an end slightly later, and
//! decides on a start slightly earlier. A failure during the ramp also reduces the concurrency,
//! which this oracle does not check.

use super::{Promise, Violation, violation};
use crate::history::{At, Fault, Run, Sending, What};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook_core::breaker::Health;
use surehook_core::id::{Attempt, EventId};
use surehook_core::source::Policy;
use surehook_core::verdict::{DeliveryError, Reply, health, judge as verdict};

/// Bound on the time between a start or an end and its record.
const SEEN_WITHIN: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Watch {
    phase: Phase,
    in_flight: BTreeSet<(EventId, Attempt)>,
    /// Those in flight that began before the breaker last opened. Their ends say nothing to it.
    stale: BTreeSet<(EventId, Attempt)>,
}

enum Phase {
    Closed { failures: u32, refusals: u32 },
    Open { since: At },
    Probing { since: At },
    Ramping { allowed: usize, failures: u32, refusals: u32 },
}

impl Default for Phase {
    fn default() -> Self {
        Self::Closed { failures: 0, refusals: 0 }
    }
}

/// The stages that circuit breakers reached in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A breaker admitted a probe after it had been open.
    pub probed: bool,
    /// After a probe, the concurrency returned to all slots.
    pub recovered: bool,
}

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    watch(run).0
}

/// The stages that circuit breakers reached in `run`.
#[must_use]
pub fn seen(run: &Run) -> Seen {
    watch(run).1
}

fn watch(run: &Run) -> (Vec<Violation>, Seen) {
    let (mut violations, mut seen) = (Vec::new(), Seen::default());
    let mut watches: BTreeMap<(&str, &str), Watch> = BTreeMap::new();
    let mut draining: BTreeSet<&str> = BTreeSet::new();
    for entry in &run.entries {
        match &entry.what {
            What::Sending(Sending { process, source, event, attempt }) => {
                let watch = watches.entry((process, source)).or_default();
                watch.in_flight.insert((*event, *attempt));
                let policy = run.policies.of_newest(process, source, entry.at);
                let Some(policy) = policy.filter(|policy| opens(policy)) else { continue };
                let why = watch.begins(entry.at, (*event, *attempt), policy);
                seen.probed |= matches!(watch.phase, Phase::Probing { .. });
                if let Some(why) = why {
                    violations.push(violation(
                        Promise::Breaker,
                        entry.at,
                        format!("{process} sends event {event} of source {source}, {why}"),
                        [*event],
                    ));
                }
            }
            What::Sent { process, event, attempt, status_code } => {
                let Some(((_, source), watch)) = watches.iter_mut().find(|((of, _), watch)| {
                    of == process && watch.in_flight.contains(&(*event, *attempt))
                }) else {
                    continue;
                };
                watch.in_flight.remove(&(*event, *attempt));
                let is_stale = watch.stale.remove(&(*event, *attempt));
                // A delivery that a shutdown cut off says nothing about the downstream.
                let policy = run.policies.of_newest(process, source, entry.at);
                if let Some(policy) =
                    policy.filter(|_| !is_stale && !draining.contains(process.as_str()))
                {
                    let was_ramping = matches!(watch.phase, Phase::Ramping { .. });
                    watch.ends(entry.at, shown(*status_code, policy), policy);
                    seen.recovered |= was_ramping && matches!(watch.phase, Phase::Closed { .. });
                }
            }
            // A source that is removed and added again has a new breaker.
            What::Fault(Fault::Reloaded { process }) => {
                let lacks = |source| run.policies.of_newest(process, source, entry.at).is_none();
                for ((_, _), watch) in
                    watches.iter_mut().filter(|((of, source), _)| of == process && lacks(source))
                {
                    watch.phase = Phase::default();
                }
            }
            What::Fault(Fault::Draining { process }) => {
                draining.insert(process);
            }
            What::Fault(
                Fault::Killed { process } | Fault::Exited { process } | Fault::Started { process },
            ) => {
                draining.remove(process.as_str());
                watches.retain(|(of, _), _| of != process);
            }
            _ => {}
        }
    }
    (violations, seen)
}

fn opens(policy: &Policy) -> bool {
    policy.breaker.failures > 0 || policy.breaker.refusals > 0
}

fn shown(status_code: Option<u16>, policy: &Policy) -> Health {
    let reply = match status_code {
        Some(status_code) => {
            Reply::Response { status_code, retry_after: None, excerpt: Bytes::new() }
        }
        None => Reply::Failed(DeliveryError::Timeout),
    };
    verdict(&reply, policy).and_then(|verdict| health(&reply, verdict)).unwrap_or(Health::Failed)
}

impl Watch {
    /// Records the start of a delivery. Returns the reason if the breaker forbids it.
    fn begins(&mut self, at: At, begun: (EventId, Attempt), policy: &Policy) -> Option<String> {
        let in_flight = self.in_flight.difference(&self.stale).count();
        match self.phase {
            Phase::Closed { .. } => None,
            Phase::Open { since } if at < since + SEEN_WITHIN => {
                self.stale.insert(begun);
                None
            }
            Phase::Open { since } if at + SEEN_WITHIN < since + policy.breaker.open_for => {
                Some(format!(
                    "although its circuit breaker opened {:.3}s before, for {:?}",
                    (at - since).as_secs_f64(),
                    policy.breaker.open_for
                ))
            }
            Phase::Open { .. } => {
                self.phase = Phase::Probing { since: at };
                (in_flight > 1).then(|| {
                    format!(
                        "although its circuit breaker is half-open and {} are in flight already",
                        in_flight - 1
                    )
                })
            }
            Phase::Probing { since } if at < since + SEEN_WITHIN && in_flight == 1 => None,
            Phase::Probing { .. } => (in_flight > 1).then(|| {
                format!(
                    "although its circuit breaker is half-open and {} are in flight already",
                    in_flight - 1
                )
            }),
            Phase::Ramping { allowed, .. } => (in_flight > allowed).then(|| {
                format!(
                    "although {} are in flight already and the ramp allows {allowed}",
                    in_flight - 1
                )
            }),
        }
    }

    fn ends(&mut self, at: At, health: Health, policy: &Policy) {
        let limits = policy.breaker;
        let (failures, refusals) = match self.phase {
            Phase::Closed { failures, refusals } | Phase::Ramping { failures, refusals, .. } => {
                (failures, refusals)
            }
            Phase::Open { .. } | Phase::Probing { .. } => (0, 0),
        };
        let (failures, refusals) = match health {
            Health::Accepted => (0, 0),
            Health::Refused => (0, refusals + 1),
            Health::Failed => (failures + 1, refusals),
        };
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        let must_open = reached(failures, limits.failures) || reached(refusals, limits.refusals);
        let fails = health == Health::Failed || (health == Health::Refused && limits.refusals > 0);
        let was_open = matches!(self.phase, Phase::Open { .. });
        self.phase = match self.phase {
            Phase::Open { since } => Phase::Open { since },
            Phase::Probing { .. } if !fails => {
                Phase::Ramping { allowed: 2, failures: 0, refusals: 0 }
            }
            Phase::Probing { .. } => Phase::Open { since: at },
            Phase::Closed { .. } | Phase::Ramping { .. } if must_open => Phase::Open { since: at },
            Phase::Closed { .. } => Phase::Closed { failures, refusals },
            Phase::Ramping { allowed, .. } if health == Health::Failed => {
                Phase::Ramping { allowed, failures, refusals }
            }
            Phase::Ramping { allowed, .. } if allowed + 1 > policy.concurrency as usize => {
                Phase::Closed { failures: 0, refusals }
            }
            Phase::Ramping { allowed, .. } => {
                Phase::Ramping { allowed: allowed + 1, failures: 0, refusals }
            }
        };
        if !was_open && matches!(self.phase, Phase::Open { .. }) {
            self.stale = self.in_flight.clone();
        }
    }
}
