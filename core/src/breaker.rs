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
//! [`crate::verdict::is_healthy`] decides which replies count as failures.

use crate::time::Instant;
use core::time::Duration;

/// When a source's breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// The number of failures in a row that opens the breaker. 0 disables it.
    pub failures: u32,
    /// How long deliveries are suspended before a probe is sent.
    pub open_for: Duration,
}

impl BreakerPolicy {
    /// The policy of a source without a breaker.
    pub const OFF: Self = Self { failures: 0, open_for: Duration::ZERO };
}

impl Default for BreakerPolicy {
    /// The documented defaults: 20 failures in a row, 10 s.
    fn default() -> Self {
        Self { failures: 20, open_for: Duration::from_secs(10) }
    }
}

/// The state of a breaker.
///
/// ```
/// use core::time::Duration;
/// use surehook_core::breaker::{Breaker, BreakerPolicy};
/// use surehook_core::time::Instant;
///
/// let policy = BreakerPolicy { failures: 2, open_for: Duration::from_secs(10) };
/// let at = |seconds| Instant::from_origin(Duration::from_secs(seconds));
/// let failed = Breaker::NEW.after(at(1), false, policy, 16);
/// assert_eq!(failed.slots(16), 16);
/// let open = failed.after(at(2), false, policy, 16);
/// assert_eq!((open.slots(16), open.opens_half_at()), (0, Some(at(12))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// All slots may be used.
    Closed {
        /// The number of failures in a row.
        failures: u32,
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
    },
}

impl Breaker {
    /// The initial state.
    pub const NEW: Self = Self::Closed { failures: 0 };

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

    /// The state after a delivery ended at `now`, successfully or not. While the breaker is open,
    /// results of deliveries that started before are ignored.
    #[must_use]
    pub fn after(
        self,
        now: Instant,
        healthy: bool,
        policy: BreakerPolicy,
        concurrency: u32,
    ) -> Self {
        let opens =
            |failures: u32| policy.failures > 0 && failures.saturating_add(1) >= policy.failures;
        let opened = Self::Open { until: now + policy.open_for };
        match (self, healthy) {
            (Self::Open { .. }, _) => self,
            (Self::Closed { .. }, true) => Self::NEW,
            (Self::HalfOpen, true) => Self::ramping(2, concurrency),
            (Self::Ramping { allowed, .. }, true) => {
                Self::ramping(allowed.saturating_add(1), concurrency)
            }
            (Self::HalfOpen, false) => opened,
            (Self::Closed { failures } | Self::Ramping { failures, .. }, false)
                if opens(failures) =>
            {
                opened
            }
            (Self::Closed { failures }, false) => {
                Self::Closed { failures: failures.saturating_add(1) }
            }
            (Self::Ramping { allowed, failures }, false) => Self::Ramping {
                allowed: (allowed / 2).max(1),
                failures: failures.saturating_add(1),
            },
        }
    }

    fn ramping(allowed: u32, concurrency: u32) -> Self {
        if allowed > concurrency { Self::NEW } else { Self::Ramping { allowed, failures: 0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy { failures: 3, open_for: Duration::from_secs(10) };

    fn at(seconds: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(seconds))
    }

    fn after(breaker: Breaker, ends: &[bool]) -> Breaker {
        ends.iter().fold(breaker, |breaker, healthy| breaker.after(at(1), *healthy, POLICY, 4))
    }

    #[test]
    fn only_consecutive_failures_open_the_breaker() {
        let open = Breaker::Open { until: at(11) };
        assert_eq!(after(Breaker::NEW, &[false, false, false]), open);
        assert_eq!(
            after(Breaker::NEW, &[false, false, true, false, false]),
            Breaker::Closed { failures: 2 }
        );
        assert_eq!(
            (open.slots(4), open.opens_half_at(), open.is_closed()),
            (0, Some(at(11)), false)
        );
    }

    #[test]
    fn results_are_ignored_while_the_breaker_is_open() {
        let open = Breaker::Open { until: at(11) };
        assert_eq!(after(open, &[true, false, true]), open);
    }

    #[test]
    fn the_probe_decides_between_reopening_and_ramping_up() {
        assert_eq!(Breaker::HalfOpen.slots(4), 1);
        assert_eq!(after(Breaker::HalfOpen, &[false]), Breaker::Open { until: at(11) });
        let ramping = after(Breaker::HalfOpen, &[true]);
        assert_eq!(
            (ramping, ramping.slots(4), ramping.is_closed()),
            (Breaker::Ramping { allowed: 2, failures: 0 }, 2, false)
        );
        assert_eq!(after(Breaker::HalfOpen, &[true, true]).slots(4), 3);
        assert_eq!(
            after(Breaker::HalfOpen, &[true; 3]),
            Breaker::Ramping { allowed: 4, failures: 0 }
        );
        assert_eq!(after(Breaker::HalfOpen, &[true; 4]), Breaker::NEW);
        assert_eq!(
            Breaker::HalfOpen.after(at(1), true, POLICY, 1),
            Breaker::NEW,
            "with one slot there is no ramp"
        );
    }

    #[test]
    fn failures_while_ramping_halve_the_slots_then_open_the_breaker() {
        let ramping = Breaker::Ramping { allowed: 4, failures: 0 };
        assert_eq!(after(ramping, &[false]), Breaker::Ramping { allowed: 2, failures: 1 });
        assert_eq!(after(ramping, &[false, false]), Breaker::Ramping { allowed: 1, failures: 2 });
        assert_eq!(after(ramping, &[false, true]), Breaker::Ramping { allowed: 3, failures: 0 });
        assert_eq!(after(ramping, &[false; 3]), Breaker::Open { until: at(11) });
    }

    #[test]
    fn a_source_without_a_breaker_never_opens() {
        let mut breaker = Breaker::NEW;
        for _ in 0..1000 {
            breaker = breaker.after(at(1), false, BreakerPolicy::OFF, 4);
        }
        assert_eq!((breaker.slots(4), breaker.is_closed()), (4, true));
    }
}
