//! Promise *No needless twice*: a downstream sees an event again after it took it only if a fault explains it, and the
//! fault touched that very event: the process that delivered it died, was paused or was shut down, the reply was
//! lost or late, or the settlement failed.

use super::{Promise, Violation, violation};
use crate::history::{At, CallResult, Change, Fault, RequestId, Run, What};
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Outcome;
use surehook_core::id::{Attempt, EventId};

/// What is known of one attempt that the downstream took.
struct Taken {
    at: At,
    attempt: Attempt,
}

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut requests: BTreeMap<RequestId, (EventId, Attempt)> = BTreeMap::new();
    let mut taken: BTreeMap<EventId, Taken> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Received(received) => {
                if let Some(first) = taken.get(&received.event)
                    && !explained(run, received.event, first, entry.at)
                {
                    let what = format!(
                        "event {} was taken by its downstream at {:.3}s (attempt {}), arrived again as attempt {}, and no fault explains it",
                        received.event,
                        first.at.as_secs_f64(),
                        first.attempt,
                        received.attempt
                    );
                    violations.push(violation(Promise::Duplicates, entry.at, what, [received.event]));
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
fn explained(run: &Run, event: EventId, first: &Taken, again: At) -> bool {
    let mut sender = None;
    let mut reply_heard = false;
    let mut settled = false;
    for entry in run.entries.iter().take_while(|entry| entry.at <= again) {
        match &entry.what {
            What::Sending(sending) if sending.event == event && sending.attempt == first.attempt => {
                sender = Some((sending.process.as_str(), entry.at))
            }
            What::Sent { event: of, attempt, status_code, .. } if *of == event && *attempt == first.attempt => {
                reply_heard |= status_code.is_some_and(|code| (200..300).contains(&code));
            }
            What::Committed(committed) if committed.event == event && entry.at >= first.at => {
                match committed.change {
                    // A shutdown took the delivery for cut off; the reply came too late to be written.
                    Change::Settled { attempt, outcome: Outcome::CutOff, .. } if attempt == first.attempt => return true,
                    Change::Settled { attempt, .. } if attempt == first.attempt => settled = true,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let touched = |process: &str, since: At| {
        run.entries.iter().skip_while(|entry| entry.at < since).take_while(|entry| entry.at <= again).any(|entry| match &entry.what {
            What::Fault(Fault::Killed { process: of } | Fault::Paused { process: of, .. }) => of == process,
            _ => false,
        })
    };
    // A settlement that failed explains nothing by itself: it has to be tried again. If it was, its lease ran out.
    let settle_calls = run
        .each(|what| match what {
            What::Called { call: "settle", process, result, events } if events.contains(&event) => Some((process.as_str(), *result)),
            _ => None,
        })
        .filter(|(at, (process, _))| *at >= first.at && sender.is_some_and(|(sender, _)| sender == *process))
        .map(|(_, (_, result))| result)
        .collect::<Vec<_>>();
    let tried_again = settle_calls.len() > 1 && settle_calls[0] != CallResult::Done;
    let clock_jumped = run
        .each(|what| if let What::Fault(Fault::Database { what, .. }) = what { Some(what) } else { None })
        .any(|(at, what)| at <= again && what.contains("clock"));
    // The way from the process to the database was broken until the event came again: the settlement is still on it,
    // or waits behind one that is.
    let way_is_broken = |since: At| {
        run.each(|what| match what {
            What::Fault(Fault::Network { duration, .. } | Fault::Database { process: None, duration, .. }) => Some(*duration),
            // One call that fails is tried again; one that hangs keeps all settlements behind it waiting.
            What::Fault(Fault::Database { what, duration, .. }) if what.contains("Slow") => Some(*duration),
            _ => None,
        })
        .any(|(at, duration)| at <= again && at + duration + Duration::from_secs(20) >= since)
    };
    match sender {
        // The reply was lost or late: the process could not know that the event was taken.
        Some(_) if !reply_heard => true,
        // The database's clock jumped, and with it the end of the lease.
        _ if clock_jumped => true,
        // It knew, and died, was paused or ended before it could write it down. A pause may lie just before.
        Some((process, since)) => !settled && (tried_again || touched(process, since) || way_is_broken(since)),
        // Seen from outside only: any fault of a process in the time between must do.
        None => run
            .each(|what| match what {
                What::Fault(
                    Fault::Killed { .. } | Fault::Paused { .. } | Fault::Database { .. } | Fault::Network { .. } | Fault::Exited { .. },
                ) => Some(()),
                _ => None,
            })
            .any(|(at, ())| at + Duration::from_secs(60) >= first.at && at <= again),
    }
}
