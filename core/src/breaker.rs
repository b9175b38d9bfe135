//! The circuit breaker of one source's downstream, in one process.
//!
//! A downstream that is down fails every event, and each failure uses up an attempt of the event's
//! budget. After a number of failures in a row the breaker opens: no events are claimed, and no
//! attempts are used up. When `open_for` has passed, one event is sent as a probe (half-open). If
//! the probe fails, the breaker opens again. If it succeeds, the concurrency ramps up (slow start):
//! it grows by one with each success, so that a recovered downstream is not overloaded by the
//! backlog.
//!
//! ```text
//!              failures in a row              open_for elapsed
//!   Closed ───────────────────────▶ Open ────────────────────────▶ HalfOpen
//!      ▲                             ▲ ▲                             │   │
//!      │ allowed exceeds             │ └────────── a failure ────────┘   │ a success
//!      │ the concurrency             │ failures in a row                 ▼
//!      └──────────────────────── Ramping ◀───────────────────────────────┘
//! ```
//!
//! A downstream that refuses an event permanently (`422`) processes requests, so a refusal counts
//! as a success. But a faulty release of a downstream can refuse every event, and each refusal
//! dead-letters its event. With [`BreakerPolicy::refusals`], refusals without an accepted event
//! between them open the breaker too, and a refused probe opens it again.
//!
//! [`crate::verdict::health`] decides what a reply counts as.

use crate::time::Instant;
use core::time::Duration;

/// What the end of a delivery shows about the downstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It accepts events.
    Accepted,
    /// It processes requests, but refuses this event permanently.
    Refused,
    /// It processes no requests.
    Failed,
}

/// When a source's breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// The number of failures in a row that opens the breaker. 0: failures never open it.
    pub failures: u32,
    /// The number of permanent refusals without an accepted event between them that opens the
    /// breaker. 0: refusals never open it.
    pub refusals: u32,
    /// How long deliveries are suspended before a probe is sent.
    pub open_for: Duration,
}

impl BreakerPolicy {
    /// The policy of a source without a breaker.
    pub const OFF: Self = Self { failures: 0, refusals: 0, open_for: Duration::ZERO };
}

impl Default for BreakerPolicy {
    /// The documented defaults: 20 failures in a row, any number of refusals, 10 s.
    fn default() -> Self {
        Self { failures: 20, refusals: 0, open_for: Duration::from_secs(10) }
    }
}

/// The state of a breaker.
///
/// ```
/// use core::time::Duration;
/// use surehook_core::breaker::{Breaker, BreakerPolicy, Health};
/// use surehook_core::time::Instant;
///
/// let policy = BreakerPolicy { failures: 2, refusals: 0, open_for: Duration::from_secs(10) };
/// let at = |seconds| Instant::from_origin(Duration::from_secs(seconds));
/// let failed = Breaker::NEW.after(at(1), Health::Failed, policy, 16);
/// assert_eq!(failed.slots(16), 16);
/// let open = failed.after(at(2), Health::Failed, policy, 16);
/// assert_eq!((open.slots(16), open.opens_half_at()), (0, Some(at(12))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// All slots may be used.
    Closed {
        /// The number of failures in a row.
        failures: u32,
        /// The number of refusals since the last accepted event, if the policy counts them.
        refusals: u32,
    },
    /// No deliveries.
    Open {
        /// When the breaker becomes half-open.
        until: Instant,
    },
    /// One event may be sent as a probe. Its result decides the next state.
    HalfOpen,
    /// A limited number of slots may be used (slow start).
    Ramping {
        /// The number of slots. At least 1.
        allowed: u32,
        /// The number of failures in a row.
        failures: u32,
        /// The number of refusals since the last accepted event, if the policy counts them.
        refusals: u32,
    },
}

impl Breaker {
    /// The initial state.
    pub const NEW: Self = Self::Closed { failures: 0, refusals: 0 };

    /// The name of the state, as it is shown and logged.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half_open",
            Self::Ramping { .. } => "ramping",
        }
    }

    /// The number of the source's slots that may be used.
    #[must_use]
    pub fn slots(self, concurrency: u32) -> u32 {
        match self {
            Self::Closed { .. } => concurrency,
            Self::Open { .. } => 0,
            Self::HalfOpen => 1,
            Self::Ramping { allowed, .. } => allowed.min(concurrency),
        }
    }

    /// Whether the breaker is closed. Only then are events claimed ahead of a free slot.
    #[must_use]
    pub fn is_closed(self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// When the state changes without an input: the end of `open_for`.
    #[must_use]
    pub fn opens_half_at(self) -> Option<Instant> {
        match self {
            Self::Open { until } => Some(until),
            Self::Closed { .. } | Self::HalfOpen | Self::Ramping { .. } => None,
        }
    }

    /// The state after a delivery ended at `now`. While the breaker is open, results are ignored. The
    /// caller also ignores those of deliveries that began before it opened: they say nothing about a
    /// downstream that has recovered since, and are not the result of the probe.
    #[must_use]
    pub fn after(
        self,
        now: Instant,
        health: Health,
        policy: BreakerPolicy,
        concurrency: u32,
    ) -> Self {
        let opened = Self::Open { until: now + policy.open_for };
        let (failures, refusals) = match self {
            Self::Open { .. } => return self,
            Self::HalfOpen => (0, 0),
            Self::Closed { failures, refusals } | Self::Ramping { failures, refusals, .. } => {
                (failures, refusals)
            }
        };
        let (failures, refusals) = match health {
            Health::Accepted => (0, 0),
            Health::Refused => (0, refusals.saturating_add(u32::from(policy.refusals > 0))),
            Health::Failed => (failures.saturating_add(1), refusals),
        };
        if reached(failures, policy.failures) || reached(refusals, policy.refusals) {
            return opened;
        }
        match (self, health) {
            (Self::HalfOpen, Health::Failed) => opened,
            // Whatever opened the breaker, a refused probe would dead-letter the next event too.
            (Self::HalfOpen, Health::Refused) if policy.refusals > 0 => opened,
            (Self::Open { .. } | Self::Closed { .. }, _) => Self::Closed { failures, refusals },
            (Self::HalfOpen, Health::Accepted | Health::Refused) => {
                Self::ramping(2, concurrency, refusals)
            }
            (Self::Ramping { allowed, .. }, Health::Accepted | Health::Refused) => {
                Self::ramping(allowed.saturating_add(1), concurrency, refusals)
            }
            (Self::Ramping { allowed, .. }, Health::Failed) => {
                Self::Ramping { allowed: (allowed / 2).max(1), failures, refusals }
            }
        }
    }

    /// The state at `now`, after the policy was replaced.
    ///
    /// An open breaker stays open until the time that it had, or for the new `open_for` if that is
    /// shorter: an operator who shortens it wants a probe soon. A longer one is for the next opening. If the
    /// new policy never opens a breaker, the breaker closes: a failed probe must not open it again.
    #[must_use]
    pub fn under(self, now: Instant, policy: BreakerPolicy) -> Self {
        let never_opens = policy.failures == 0 && policy.refusals == 0;
        match self {
            Self::Open { .. } | Self::HalfOpen | Self::Ramping { .. } if never_opens => Self::NEW,
            Self::Open { until } => Self::Open { until: until.min(now + policy.open_for) },
            Self::Closed { .. } | Self::HalfOpen | Self::Ramping { .. } => self,
        }
    }

    fn ramping(allowed: u32, concurrency: u32, refusals: u32) -> Self {
        if allowed > concurrency {
            Self::Closed { failures: 0, refusals }
        } else {
            Self::Ramping { allowed, failures: 0, refusals }
        }
    }
}

/// Whether a count has reached its limit. 0: no limit.
fn reached(count: u32, limit: u32) -> bool {
    limit > 0 && count >= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    use Health::{Accepted, Failed, Refused};

    const POLICY: BreakerPolicy =
        BreakerPolicy { failures: 3, refusals: 0, open_for: Duration::from_secs(10) };

    fn at(seconds: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(seconds))
    }

    fn after(breaker: Breaker, ends: &[Health]) -> Breaker {
        by(POLICY, breaker, ends)
    }

    /// Opened by a result at [`after`]'s time.
    fn open() -> Breaker {
        Breaker::Open { until: at(11) }
    }

    fn by(policy: BreakerPolicy, breaker: Breaker, ends: &[Health]) -> Breaker {
        ends.iter().fold(breaker, |breaker, health| breaker.after(at(1), *health, policy, 4))
    }

    fn closed(failures: u32, refusals: u32) -> Breaker {
        Breaker::Closed { failures, refusals }
    }

    fn ramping(allowed: u32, failures: u32) -> Breaker {
        Breaker::Ramping { allowed, failures, refusals: 0 }
    }

    #[test]
    fn only_consecutive_failures_open_the_breaker() {
        assert_eq!(after(Breaker::NEW, &[Failed, Failed, Failed]), open());
        assert_eq!(after(Breaker::NEW, &[Failed, Failed, Accepted, Failed, Failed]), closed(2, 0));
        assert_eq!(
            (open().slots(4), open().opens_half_at(), open().is_closed()),
            (0, Some(at(11)), false)
        );
    }

    #[test]
    fn results_are_ignored_while_the_breaker_is_open() {
        assert_eq!(after(open(), &[Accepted, Failed, Accepted]), open());
    }

    #[test]
    fn the_probe_decides_between_reopening_and_ramping_up() {
        assert_eq!(Breaker::HalfOpen.slots(4), 1);
        assert_eq!(after(Breaker::HalfOpen, &[Failed]), open());
        let ramped = after(Breaker::HalfOpen, &[Accepted]);
        assert_eq!((ramped, ramped.slots(4), ramped.is_closed()), (ramping(2, 0), 2, false));
        assert_eq!(after(Breaker::HalfOpen, &[Accepted, Accepted]).slots(4), 3);
        assert_eq!(after(Breaker::HalfOpen, &[Accepted; 3]), ramping(4, 0));
        assert_eq!(after(Breaker::HalfOpen, &[Accepted; 4]), Breaker::NEW);
        assert_eq!(
            Breaker::HalfOpen.after(at(1), Accepted, POLICY, 1),
            Breaker::NEW,
            "with one slot there is no ramp"
        );
    }

    #[test]
    fn failures_while_ramping_halve_the_slots_then_open_the_breaker() {
        let ramped = ramping(4, 0);
        assert_eq!(after(ramped, &[Failed]), ramping(2, 1));
        assert_eq!(after(ramped, &[Failed, Failed]), ramping(1, 2));
        assert_eq!(after(ramped, &[Failed, Accepted]), ramping(3, 0));
        assert_eq!(after(ramped, &[Failed; 3]), open());
    }

    #[test]
    fn refusals_count_as_successes_unless_the_policy_counts_them() {
        assert_eq!(after(Breaker::NEW, &[Failed, Failed, Refused, Failed, Failed]), closed(2, 0));
        assert_eq!(after(Breaker::NEW, &[Refused; 1000]), Breaker::NEW);
        assert_eq!(after(Breaker::HalfOpen, &[Refused, Refused]), ramping(3, 0));
    }

    #[test]
    fn refusals_without_an_accepted_event_between_them_open_the_breaker() {
        let policy = BreakerPolicy { refusals: 3, ..POLICY };
        let after = |breaker, ends: &[Health]| by(policy, breaker, ends);
        assert_eq!(after(Breaker::NEW, &[Refused, Refused]), closed(0, 2));
        assert_eq!(after(Breaker::NEW, &[Refused, Refused, Accepted, Refused]), closed(0, 1));
        assert_eq!(after(Breaker::NEW, &[Refused; 3]), open());
        assert_eq!(after(Breaker::NEW, &[Refused, Failed, Refused, Failed]), closed(1, 2));
        assert_eq!(after(Breaker::NEW, &[Refused, Failed, Refused, Failed, Refused]), open());
        let ramped = after(Breaker::HalfOpen, &[Accepted, Refused]);
        assert_eq!(ramped, Breaker::Ramping { allowed: 3, failures: 0, refusals: 1 });
        assert_eq!(after(ramped, &[Refused, Refused]), open());
        assert_eq!(
            after(ramped, &[Refused, Failed]),
            Breaker::Ramping { allowed: 2, failures: 1, refusals: 2 }
        );
        let only_refusals = BreakerPolicy { failures: 0, ..policy };
        assert_eq!(by(only_refusals, Breaker::NEW, &[Failed; 100]), closed(100, 0));
        assert_eq!(by(only_refusals, Breaker::NEW, &[Refused; 3]), open());
    }

    #[test]
    fn a_refused_probe_opens_the_breaker_again_if_refusals_count() {
        let policy = BreakerPolicy { refusals: 3, ..POLICY };
        assert_eq!(by(policy, Breaker::HalfOpen, &[Refused]), open());
        assert_eq!(by(policy, Breaker::HalfOpen, &[Accepted]), ramping(2, 0));
    }

    #[test]
    fn a_new_policy_shortens_an_open_breaker_and_prolongs_none() {
        let open_for = |seconds| BreakerPolicy { open_for: Duration::from_secs(seconds), ..POLICY };
        assert_eq!(open().under(at(2), open_for(3)), Breaker::Open { until: at(5) });
        assert_eq!(open().under(at(2), open_for(100)), open());
        for other in [closed(2, 1), Breaker::HalfOpen, ramping(2, 1)] {
            assert_eq!(other.under(at(2), open_for(3)), other);
        }
    }

    #[test]
    fn a_policy_without_a_breaker_closes_it() {
        let off = BreakerPolicy { failures: 0, ..POLICY };
        for other in [open(), Breaker::HalfOpen, ramping(2, 1)] {
            assert_eq!(other.under(at(2), off), Breaker::NEW);
        }
        assert_eq!(closed(2, 1).under(at(2), off), closed(2, 1));
        let only_refusals = BreakerPolicy { refusals: 1, ..off };
        assert_eq!(open().under(at(2), only_refusals), open());
    }

    #[test]
    fn a_source_without_a_breaker_never_opens() {
        let mut breaker = Breaker::NEW;
        for _ in 0..1000 {
            breaker = breaker.after(at(1), Failed, BreakerPolicy::OFF, 4);
            breaker = breaker.after(at(1), Refused, BreakerPolicy::OFF, 4);
        }
        assert_eq!((breaker.slots(4), breaker.is_closed()), (4, true));
    }
}
