//! Promise *No needless twice*: a downstream sees an event again after it took it only if a fault explains it, and the
//! fault touched that very event: the process that delivered it died, was paused or was shut down, the reply was
//! lost or late, or the settlement failed. Or an operator asked for it.

use super::{Promise, Violation, violation};
use crate::history::{
    At, CallResult, Change, Committed, Entry, Fault, RequestId, Run, Sending, What,
};
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Outcome;
use surehook_core::id::{Attempt, EventId};

/// From the claim of an event to its delivery, at the most: what a lease allows for, and an answer that was late.
const CLAIMED_BEFORE: Duration = Duration::from_secs(15);
/// A fault of the way to the database is felt for so long after its end: a call that hung is given up, and tried again.
const STILL_FELT: Duration = Duration::from_secs(8);

/// What is known of one attempt that the downstream took.
struct Taken {
    at: At,
    attempt: Attempt,
}

/// What the judgement on a repetition looks at: each event's own entries, and everything that was broken.
struct Index<'a> {
    of: BTreeMap<EventId, Vec<&'a Entry>>,
    faults: Vec<(At, &'a Fault)>,
}

impl<'a> Index<'a> {
    fn of(run: &'a Run) -> Self {
        let mut index = Self { of: BTreeMap::new(), faults: Vec::new() };
        for entry in &run.entries {
            match &entry.what {
                What::Sending(Sending { event, .. })
                | What::Sent { event, .. }
                | What::Committed(Committed { event, .. }) => {
                    index.of.entry(*event).or_default().push(entry);
                }
                What::Called { call: "settle", events, .. } => {
                    for event in events {
                        index.of.entry(*event).or_default().push(entry);
                    }
                }
                What::Fault(fault) => index.faults.push((entry.at, fault)),
                _ => {}
            }
        }
        index
    }
}

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let index = Index::of(run);
    let mut violations = Vec::new();
    let mut requests: BTreeMap<RequestId, (EventId, Attempt)> = BTreeMap::new();
    let mut taken: BTreeMap<EventId, Taken> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Received(received) => {
                if let Some(first) = taken.get(&received.event)
                    && !explained(&index, received.event, first, entry.at)
                {
                    let what = format!(
                        "event {} was taken by its downstream at {:.3}s (attempt {}), arrived again as attempt {}, and no fault explains it",
                        received.event,
                        first.at.as_secs_f64(),
                        first.attempt,
                        received.attempt
                    );
                    violations.push(violation(
                        Promise::Duplicates,
                        entry.at,
                        what,
                        [received.event],
                    ));
                }
                requests.insert(received.request, (received.event, received.attempt));
            }
            What::Replied { request, status_code: 200..=299, .. } => {
                if let Some(&(event, attempt)) = requests.get(request) {
                    taken.insert(event, Taken { at: entry.at, attempt });
                }
            }
            _ => {}
        }
    }
    violations
}

/// Whether something between the taking of an event and its next arrival explains that it came again.
fn explained(index: &Index<'_>, event: EventId, first: &Taken, again: At) -> bool {
    let mut sender = None;
    let mut reply_heard = false;
    let mut settled = false;
    // What its sender learnt of each try to settle it.
    let mut settle_calls = Vec::new();
    let own = index.of.get(&event).map_or(&[][..], Vec::as_slice);
    for entry in own.iter().take_while(|entry| entry.at <= again) {
        match &entry.what {
            What::Sending(sending) if sending.attempt == first.attempt => {
                sender = Some((sending.process.as_str(), entry.at))
            }
            What::Sent { attempt, status_code, .. } if *attempt == first.attempt => {
                reply_heard |= status_code.is_some_and(|code| (200..300).contains(&code));
            }
            What::Committed(committed) if entry.at >= first.at => {
                match committed.change {
                    // A shutdown took the delivery for cut off; the reply came too late to be written.
                    Change::Settled { attempt, outcome: Outcome::CutOff, .. }
                        if attempt == first.attempt =>
                    {
                        return true;
                    }
                    Change::Settled { attempt, .. } if attempt == first.attempt => settled = true,
                    Change::Redriven if committed.before.is_none() => return true,
                    Change::RolledBack | Change::Lost => return true,
                    _ => {}
                }
            }
            What::Called { process, result, .. } if entry.at >= first.at => {
                settle_calls.push((process.as_str(), *result))
            }
            _ => {}
        }
    }
    // A settlement that failed explains nothing by itself: it has to be tried again. If it was, its lease ran out.
    settle_calls.retain(|(process, _)| sender.is_some_and(|(sender, _)| sender == *process));
    let tried_again = settle_calls.len() > 1 && settle_calls[0].1 != CallResult::Done;
    let faults = || index.faults.iter().take_while(|(at, _)| *at <= again);
    let touched = |process: &str, since: At| {
        faults().any(|(at, fault)| match fault {
            Fault::Killed { process: of } | Fault::Paused { process: of, .. } => {
                of == process && *at >= since
            }
            _ => false,
        })
    };
    let clock_jumped = |since: At| {
        let jumped =
            |fault: &Fault| matches!(fault, Fault::Database { what, .. } if what.contains("clock"));
        faults().any(|(at, fault)| jumped(fault) && *at + CLAIMED_BEFORE >= since)
    };
    // The way from the process to the database was broken until the event came again: the settlement is still on it,
    // or waits behind one that is.
    let way_is_broken = |since: At| {
        faults().any(|(at, fault)| match fault {
            Fault::Network { duration, .. } | Fault::Database { process: None, duration, .. } => {
                *at + *duration + STILL_FELT >= since
            }
            // One call that fails is tried again; one that hangs keeps all settlements behind it waiting.
            Fault::Database { what, duration, .. } => {
                what.contains("Slow") && *at + *duration + STILL_FELT >= since
            }
            _ => false,
        })
    };
    match sender {
        // The reply was lost or late: the process could not know that the event was taken.
        Some(_) if !reply_heard => true,
        // The database's clock jumped, and with it the end of the lease.
        Some((_, since)) if clock_jumped(since) => true,
        // It knew, and died, was paused or ended before it could write it down. A pause may lie just before.
        Some((process, since)) => {
            !settled && (tried_again || touched(process, since) || way_is_broken(since))
        }
        // Seen from outside only: any fault of a process in the time between must do.
        None => faults().any(|(at, fault)| {
            let may_explain = matches!(
                fault,
                Fault::Killed { .. }
                    | Fault::Paused { .. }
                    | Fault::Database { .. }
                    | Fault::Network { .. }
                    | Fault::Exited { .. }
            );
            may_explain && *at + Duration::from_mins(1) >= first.at
        }),
    }
}
