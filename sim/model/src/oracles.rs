//! The oracles: each takes a run and says where a promise was broken. One file a promise; none knows how the run was
//! made, so that a simulation and a real fault test are judged alike.

mod attempts;
mod availability;
mod backoff;
pub mod breaker;
mod bytes;
mod duplicates;
mod durability;
mod idempotency;
mod isolation;
mod lease;
mod liveness;
mod lookup;
mod overlap;
pub(crate) mod pause;
mod rate;
mod readiness;
mod refusal;
mod retention;
mod slots;
mod transitions;

use crate::history::{At, Run};
pub use liveness::time_to_end;
use std::fmt;
use surehook_core::id::EventId;

/// A promise that was broken, where, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The promise, by the name of its oracle.
    pub promise: Promise,
    /// When it showed.
    pub at: At,
    /// What happened, to which event, and what should have happened.
    pub what: String,
    /// The events it is about.
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
    /// What was acknowledged is never lost.
    Durability,
    /// One key, one event.
    Idempotency,
    /// Only legal transitions.
    Transitions,
    /// One live lease for each event, and no settlement by a stale one.
    Lease,
    /// Attempts stay within budget and are numbered without gap.
    Attempts,
    /// No attempt earlier than policy and downstream allow.
    Backoff,
    /// No duplicate delivery without a fault that explains it.
    Duplicates,
    /// One process at a time sends an event.
    Overlap,
    /// What has ended goes when its retention ends.
    Retention,
    /// Readiness follows the database.
    Readiness,
    /// What an answer denies was not stored.
    Refusal,
    /// Bytes go out as they came in.
    Bytes,
    /// A broken downstream harms nobody else.
    Isolation,
    /// Slots are never exceeded.
    Slots,
    /// An open breaker lets nothing through but one event, and then more step by step.
    Breaker,
    /// No more deliveries begin than a source's rate allows.
    Rate,
    /// Nothing of a paused source is claimed.
    Pause,
    /// `GET /events/{id}` and the status in a `202` never contradict what happened.
    Lookup,
    /// Every accepted event ends.
    Liveness,
    /// Once everything is mended, every post is answered.
    Availability,
    /// No process panics or ends by itself. Judged by whoever runs the world.
    NoPanic,
}

impl Promise {
    /// The promise, as it is made.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Durability => "what was acknowledged is never lost",
            Self::Idempotency => {
                "one idempotency key names one event, however often and wherever it is posted"
            }
            Self::Transitions => {
                "an event changes only along the arrows of its life, and its fence goes up by one each time"
            }
            Self::Lease => {
                "an event has one live lease at a time, and only the holder of the newest settles it"
            }
            Self::Attempts => "attempts stay within their budget and are numbered without a gap",
            Self::Backoff => "no attempt comes earlier than the back-off and Retry-After allow",
            Self::Duplicates => "an event that was taken comes again only if a fault explains it",
            Self::Overlap => "an event is sent by one process at a time",
            Self::Retention => {
                "an event is deleted when its retention ends, not earlier and not much later"
            }
            Self::Readiness => {
                "a process is ready while its database answers, and not ready while it does not"
            }
            Self::Refusal => "an answer that says that nothing was stored is true",
            Self::Bytes => "body and headers go out as they came in",
            Self::Isolation => {
                "one source's broken downstream delays neither the intake nor other sources"
            }
            Self::Slots => {
                "no process has more deliveries of a source in flight than its concurrency"
            }
            Self::Breaker => {
                "while a breaker is open nothing is sent but one event after each wait, and after that more step by step"
            }
            Self::Rate => "no process begins more deliveries of a source than its rate allows",
            Self::Pause => "nothing of a paused source is claimed",
            Self::Lookup => {
                "GET /events/{id} and the status in a 202 never contradict what happened"
            }
            Self::Liveness => "every accepted event is delivered or dead-lettered in time",
            Self::Availability => {
                "once everything is mended, every post is answered and none is turned away"
            }
            Self::NoPanic => "no process panics or ends by itself",
        }
    }
}

/// Asks every oracle. In the order of time.
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
        bytes::judge,
        isolation::judge,
        slots::judge,
        breaker::judge,
        rate::judge,
        pause::judge,
        lookup::judge,
        liveness::judge,
        availability::judge,
    ];
    let mut violations: Vec<Violation> = oracles.iter().flat_map(|oracle| oracle(run)).collect();
    violations.sort_by_key(|violation| violation.at);
    violations
}

fn violation(
    promise: Promise,
    at: At,
    what: String,
    events: impl IntoIterator<Item = EventId>,
) -> Violation {
    Violation { promise, at, what, events: events.into_iter().collect() }
}
