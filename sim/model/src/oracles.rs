//! The oracles. Each one checks a run against one promise and reports violations. There is one file
//! for each promise. Oracles do not know how the run was made, so simulations and tests with real
//! faults are judged by the same rules.

mod actions;
mod attempts;
mod availability;
mod backoff;
pub mod breaker;
mod bytes;
mod configuration;
mod continuity;
mod discards;
mod duplicates;
mod durability;
mod idempotency;
mod isolation;
mod lease;
mod liveness;
mod lookup;
mod memory;
mod overlap;
pub(crate) mod pause;
mod rate;
mod readiness;
mod refusal;
mod relay;
mod retention;
mod shutdown;
mod slots;
mod transitions;

use crate::history::{At, Fault, Run};
pub use liveness::time_to_end;
use std::fmt;
use surehook_core::id::EventId;

/// A promise that was broken, where, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The broken promise; it names the oracle.
    pub promise: Promise,
    /// When the violation became visible.
    pub at: At,
    /// What happened, to which event, and what should have happened.
    pub what: String,
    pub events: Vec<EventId>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}] at {:.3}s: {}", self.promise, self.at.as_secs_f64(), self.what)
    }
}

/// The promises, one for each oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// Acknowledged events are never lost.
    Durability,
    /// One idempotency key names one event.
    Idempotency,
    /// Events make only legal transitions.
    Transitions,
    /// An event has one live lease at a time, and a stale lease settles nothing.
    Lease,
    /// Attempts stay within their budget and are numbered without gaps.
    Attempts,
    /// No attempt starts earlier than the policy and the downstream allow.
    Backoff,
    /// A duplicate delivery has a fault that explains it.
    Duplicates,
    /// Only one process at a time sends an event.
    Overlap,
    /// Ended events are deleted when their retention ends.
    Retention,
    /// A process serves the sources of its configuration, and no others.
    Configuration,
    /// Readiness follows the state of the database.
    Readiness,
    /// A response that denies the storing of an event is true.
    Refusal,
    /// A relayed request is never acknowledged as an event, and an event is never relayed.
    Relay,
    /// Bodies, queries and headers are forwarded unchanged, with the time of receipt.
    Bytes,
    /// A broken downstream does not affect other sources.
    Isolation,
    /// The bytes of the events that a process holds are bounded.
    Memory,
    /// The slots of a source are never exceeded.
    Slots,
    /// An open circuit breaker admits one probe, then the concurrency increases step by step.
    Breaker,
    /// A process starts deliveries no faster than the source's rate allows.
    Rate,
    /// Events of a paused source are not claimed.
    Pause,
    /// A discarded event is not sent until it is redriven.
    Discards,
    /// Each redrive and each discard is in the history of its event.
    Actions,
    /// A shutdown gives deliveries in flight the time that is set for it.
    Shutdown,
    /// A shutdown refuses no request before its listener closes.
    Continuity,
    /// `GET /events/{id}` and the status in a `202` never contradict the history.
    Lookup,
    /// Every accepted event is delivered or dead-lettered in time.
    Liveness,
    /// After all faults have ended, every post is answered.
    Availability,
    /// No process panics or exits unexpectedly. The simulator judges this itself.
    NoPanic,
}

impl Promise {
    /// The promise as one sentence, for reports.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Durability => "an acknowledged event is never lost",
            Self::Idempotency => {
                "an idempotency key names one event, across all requests and processes"
            }
            Self::Transitions => {
                "an event makes only legal transitions, and each one increases its fence by one"
            }
            Self::Lease => {
                "an event has one live lease at a time, and only its newest claim can settle it"
            }
            Self::Attempts => "attempts stay within their budget and are numbered without gaps",
            Self::Backoff => "no attempt starts earlier than the back-off and Retry-After allow",
            Self::Duplicates => {
                "an event answered with 2xx is delivered again only if a fault explains it"
            }
            Self::Overlap => "only one process at a time sends an event",
            Self::Retention => {
                "an event is deleted when its retention ends, not earlier and not much later"
            }
            Self::Readiness => {
                "a process is ready while its database answers, and not ready while it does not"
            }
            Self::Configuration => {
                "a process serves the sources that it was started with, and no others"
            }
            Self::Refusal => "if a response says that nothing was stored, nothing was stored",
            Self::Relay => {
                "a relayed request is never stored or acknowledged as an event, and an event is never relayed"
            }
            Self::Bytes => {
                "bodies, queries and headers are forwarded unchanged, with the time of receipt"
            }
            Self::Isolation => "a broken downstream delays neither the intake nor other sources",
            Self::Memory => {
                "the events that a process holds never have more bytes than max_held_bytes and one event"
            }
            Self::Slots => {
                "no process has more deliveries of a source in flight than its concurrency"
            }
            Self::Breaker => {
                "an open circuit breaker admits one probe after each wait; after a success, concurrency increases step by step"
            }
            Self::Rate => "no process starts deliveries faster than the source's rate allows",
            Self::Pause => "events of a paused source are not claimed",
            Self::Discards => "a discarded event is not sent until it is redriven",
            Self::Actions => "each redrive and each discard is in the history of its event",
            Self::Shutdown => "a shutdown does not cut off deliveries early",
            Self::Continuity => "a shutdown refuses no request before its listener closes",
            Self::Lookup => "GET /events/{id} and the status in a 202 never contradict the history",
            Self::Liveness => "every accepted event is delivered or dead-lettered in time",
            Self::Availability => {
                "after all faults have ended, every post is answered and none is refused for lack of capacity"
            }
            Self::NoPanic => "no process panics or exits unexpectedly",
        }
    }
}

/// Runs every oracle. The violations are sorted by time.
#[must_use]
pub fn judge(run: &Run) -> Vec<Violation> {
    let oracles = [
        durability::judge,
        idempotency::judge,
        transitions::judge,
        lease::judge,
        attempts::judge,
        backoff::judge,
        duplicates::judge,
        overlap::judge,
        retention::judge,
        readiness::judge,
        refusal::judge,
        relay::judge,
        bytes::judge,
        configuration::judge,
        isolation::judge,
        memory::judge,
        slots::judge,
        breaker::judge,
        rate::judge,
        pause::judge,
        discards::judge,
        actions::judge,
        shutdown::judge,
        continuity::judge,
        lookup::judge,
        liveness::judge,
        availability::judge,
    ];
    let mut violations: Vec<Violation> = oracles.iter().flat_map(|oracle| oracle(run)).collect();
    violations.sort_by_key(|violation| violation.at);
    violations
}

/// Whether a fault sets the database's clock forward, which ends leases and waits early.
fn sets_clock_forward(fault: &Fault) -> bool {
    matches!(fault, Fault::Database { what, .. } if what.contains("clock") && !what.contains("by -"))
}

fn violation(
    promise: Promise,
    at: At,
    what: String,
    events: impl IntoIterator<Item = EventId>,
) -> Violation {
    Violation { promise, at, what, events: events.into_iter().collect() }
}
