//! Promise *No needless duplicates*: a downstream that answered an event with 2xx receives it again only
//! if a fault explains it. The fault must have touched this event: the process that delivered it
//! was killed, stopped or shut down, the response was lost or late, or the settlement failed. A
//! redrive by an operator explains it too.

use super::{Promise, Violation, sets_clock_forward, violation};
use crate::history::{
    At, CallResult, Change, Committed, Entry, Fault, RequestId, Run, Sending, What,
};
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::event::Outcome;
use surehook_core::id::{Attempt, EventId};

/// Bound from the claim of an event to its delivery: what a lease allows, plus a late response of
/// the database.
const CLAIMED_BEFORE: Duration = Duration::from_secs(15);
/// After a fault on the way to the database ends, its effect lasts at most this long: a hanging
/// call times out and is retried.
const STILL_FELT: Duration = Duration::from_secs(8);

/// Bound on the time between the end of a real process and its record.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// An attempt that the downstream answered with 2xx.
struct Taken {
    at: At,
    attempt: Attempt,
}

/// The input for judging a repetition: the entries of each event, and all faults.
struct Index<'a> {
    run: &'a Run,
    of: BTreeMap<EventId, Vec<&'a Entry>>,
    faults: Vec<(At, &'a Fault)>,
}

impl<'a> Index<'a> {
    fn of(run: &'a Run) -> Self {
        let mut index = Self { run, of: BTreeMap::new(), faults: Vec::new() };
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
                        "event {} was answered with 2xx at {:.3}s (attempt {}) and arrived again as attempt {}; no fault explains it",
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

/// Whether a process was stopped between an accept whose result it did not learn, and its next try.
/// If the event was deleted after its retention in that time, the next try stores it again.
fn stopped(index: &Index<'_>, process: &str, since: At, until: At) -> bool {
    // The commit can follow the stop: the call was on its way.
    index.faults.iter().take_while(|(at, _)| *at <= until).any(|(at, fault)| {
        matches!(fault, Fault::Paused { process: of, duration } if of == process && *at + *duration >= since)
    })
}

/// Whether something explains that a delivery ended without a response: its timeout, a downstream that
/// is broken, the network, or a shutdown, a stop or the end of its process.
fn may_lack_response(index: &Index<'_>, sending: &Sending, since: At, ended_at: At) -> bool {
    let Sending { process, source, .. } = sending;
    let policy = index.run.policies.of(process, source, since);
    if policy.is_none_or(|policy| ended_at >= since + policy.timeout) {
        return true;
    }
    let mut is_broken = false;
    for (at, fault) in index.faults.iter().take_while(|(at, _)| *at <= ended_at + SEEN_WITHIN) {
        match fault {
            Fault::Downstream { source: of, broken, .. } if of == source => {
                is_broken = *broken || (*at >= since && is_broken);
            }
            Fault::Network { duration, .. } if *at + *duration + STILL_FELT >= since => {
                return true;
            }
            Fault::Draining { process: of }
            | Fault::Paused { process: of, .. }
            | Fault::Killed { process: of }
            | Fault::Exited { process: of }
                if of == process && *at + CLAIMED_BEFORE >= since =>
            {
                return true;
            }
            _ => {}
        }
    }
    is_broken
}

/// Whether something explains that an event arrived again after a 2xx response.
fn explained(index: &Index<'_>, event: EventId, first: &Taken, again: At) -> bool {
    let mut sender = None;
    let mut reply_heard = false;
    // The delivery, and when it ended without a response.
    let (mut sent, mut gave_up_at) = (None, None);
    let mut settled = false;
    // The time of its accepts, and whether it was pruned after the last one.
    let (mut accepted_at, mut pruned) = (None, false);
    // The results of the sender's calls to settle it.
    let mut settle_calls = Vec::new();
    let own = index.of.get(&event).map_or(&[][..], Vec::as_slice);
    for entry in own.iter().take_while(|entry| entry.at <= again) {
        match &entry.what {
            // After a failover, an earlier attempt can have had this number, and another sending of
            // it after the response is what needs an explanation.
            What::Sending(sending) if sending.attempt == first.attempt && entry.at <= first.at => {
                sender = Some((sending.process.as_str(), entry.at));
                (sent, gave_up_at, reply_heard) = (Some(sending), None, false);
            }
            What::Sent { attempt, status_code, .. } if *attempt == first.attempt => {
                reply_heard |= status_code.is_some_and(|code| (200..300).contains(&code));
                gave_up_at = Some(entry.at).filter(|_| status_code.is_none());
            }
            What::Committed(Committed { process, change: Change::Accepted, .. }) => {
                if let Some(since) = accepted_at.replace(entry.at)
                    && pruned
                    && stopped(index, process, since, entry.at)
                {
                    return true;
                }
            }
            // A claim was taken back by a failover, and its event claimed again. Both claims may have
            // reached their processes.
            What::Committed(Committed { change: Change::RolledBack | Change::Lost, .. })
                if entry.at + CLAIMED_BEFORE >= first.at =>
            {
                return true;
            }
            What::Committed(committed) if entry.at >= first.at => {
                pruned |= committed.change == Change::Pruned;
                match committed.change {
                    // A shutdown recorded the delivery as cut off; the response came too late to be
                    // written.
                    Change::Settled { attempt, outcome: Outcome::CutOff, .. }
                        if attempt == first.attempt =>
                    {
                        return true;
                    }
                    Change::Settled { attempt, .. } if attempt == first.attempt => settled = true,
                    Change::Redriven { .. } if committed.before.is_none() => return true,
                    _ => {}
                }
            }
            What::Called { process, result, .. } if entry.at >= first.at => {
                settle_calls.push((process.as_str(), *result));
            }
            _ => {}
        }
    }
    // A failed settlement explains a repetition only if it was tried again until the lease ended.
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
        faults().any(|(at, fault)| sets_clock_forward(fault) && *at + CLAIMED_BEFORE >= since)
    };
    // The way from the process to the database was broken until the event arrived again: the
    // settlement is still in flight, or waits behind one that is.
    let way_is_broken = |sender: &str, since: At| {
        faults().any(|(at, fault)| {
            let (is_meant, duration) = match fault {
                // A cut concerns only the nodes that it names.
                Fault::Network { what, duration } => {
                    let names = |node| what.contains(node);
                    let is_cut = what.starts_with("cut from ");
                    (!is_cut || (names(sender) && names("the database")), duration)
                }
                Fault::Database { process: None, what, duration } => {
                    (!what.contains("clock"), duration)
                }
                // A call that fails is tried again. A call that hangs delays all settlements behind
                // it.
                Fault::Database { process: Some(process), what, duration } => {
                    (process == sender && what.contains("Slow"), duration)
                }
                _ => return false,
            };
            is_meant && *at + *duration + STILL_FELT >= since
        })
    };
    match sender {
        // The response was lost or late: the process could not know that the downstream had
        // answered 2xx.
        Some((_, since)) if !reply_heard => match (sent, gave_up_at) {
            (Some(sending), Some(at)) => may_lack_response(index, sending, since, at),
            _ => true,
        },
        // The database's clock was set forward, and the lease ended early.
        Some((_, since)) if clock_jumped(since) => true,
        // The process knew the response, but was killed, stopped or shut down before it could write
        // it. It may have been stopped just before.
        Some((process, since)) => {
            !settled && (tried_again || touched(process, since) || way_is_broken(process, since))
        }
        // The run has no record of the sender (it was seen only from outside): any recent fault of
        // a process, the network or the database explains it.
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
