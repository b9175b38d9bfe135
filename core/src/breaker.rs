//! A circuit breaker for one source's downstream, in one process.
//!
//! A downstream that is down refuses every event, and each refusal uses up an attempt of somebody's budget. After so many
//! failures in a row the breaker opens: nothing is claimed, and no attempt is burnt. After a while one event is let
//! through. If that fails too, the breaker stays open for as long again; if not, the flow ramps up: one delivery at a
//! time, and one more for each that succeeds, so that a downstream which has just come back is not overrun by what has
//! gathered.
//!
//! ```text
//!              failures in a row              open_for is over
//!   Closed ───────────────────────▶ Open ────────────────────────▶ HalfOpen
//!      ▲                             ▲ ▲                             │   │
//!      │ as many allowed as          │ └────────── a failure ────────┘   │ a success
//!      │ there are slots             │ failures in a row                 ▼
//!      └──────────────────────── Ramping ◀───────────────────────────────┘
//! ```
//!
//! A failure is a transient one, or `410 Gone`. Any other reply shows that the downstream judges what it gets, and is a
//! success here, even if it refuses that one event for good.

use crate::time::Instant;
use crate::verdict::{DeliveryError, Reply, Verdict};
use core::time::Duration;

/// When a source's breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// So many failures in a row open it. 0: it never opens.
    pub failures: u32,
    /// How long nothing is sent before one event is let through.
    pub open_for: Duration,
}

impl BreakerPolicy {
    /// Of a source that has no breaker.
    pub const OFF: Self = Self { failures: 0, open_for: Duration::ZERO };
}

impl Default for BreakerPolicy {
    /// The documented defaults: 20 failures in a row, 10 s.
    fn default() -> Self {
        Self { failures: 20, open_for: Duration::from_secs(10) }
    }
}

/// Where a breaker stands.
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
        /// How many deliveries in a row have failed.
        failures: u32,
    },
    /// Nothing is sent.
    Open {
        /// When one event is let through.
        until: Instant,
    },
    /// One event may be sent, and decides.
    HalfOpen,
    /// So many slots may be used.
    Ramping {
        /// At least 1.
        allowed: u32,
        /// How many deliveries in a row have failed.
        failures: u32,
    },
}

impl Breaker {
    /// As it is at first.
    pub const NEW: Self = Self::Closed { failures: 0 };

    /// The state in a word, as it is shown and logged.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half_open",
            Self::Ramping { .. } => "ramping",
        }
    }

    /// How many of a source's slots may be used.
    #[must_use]
    pub fn slots(self, concurrency: u32) -> u32 {
        match self {
            Self::Closed { .. } => concurrency,
            Self::Open { .. } => 0,
            Self::HalfOpen => 1,
            Self::Ramping { allowed, .. } => allowed.min(concurrency),
        }
    }

    /// Whether events may be claimed that have to wait for a slot.
    #[must_use]
    pub fn is_closed(self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// When it changes by itself.
    #[must_use]
    pub fn opens_half_at(self) -> Option<Instant> {
        match self {
            Self::Open { until } => Some(until),
            Self::Closed { .. } | Self::HalfOpen | Self::Ramping { .. } => None,
        }
    }

    /// After a delivery that ended at `now`, well or not. Of one that began before the breaker opened, the end is of no
    /// account while it is open.
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

/// What a reply says of its downstream's health; `None` if nothing, because the delivery was not sent, or was cut off from
/// this side.
#[must_use]
pub fn is_healthy(reply: &Reply, verdict: Verdict) -> Option<bool> {
    const GONE: u16 = 410;
    match reply {
        Reply::Failed(DeliveryError::CutOff) | Reply::NotSent => None,
        Reply::Response { status_code: GONE, .. } => Some(false),
        Reply::Response { .. } | Reply::Failed(_) => {
            Some(!matches!(verdict, Verdict::Transient | Verdict::Lost))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const POLICY: BreakerPolicy = BreakerPolicy { failures: 3, open_for: Duration::from_secs(10) };

    fn at(seconds: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(seconds))
    }

    fn after(breaker: Breaker, ends: &[bool]) -> Breaker {
        ends.iter().fold(breaker, |breaker, healthy| breaker.after(at(1), *healthy, POLICY, 4))
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not_let_it() {
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
    fn what_ends_while_it_is_open_is_of_no_account() {
        let open = Breaker::Open { until: at(11) };
        assert_eq!(after(open, &[true, false, true]), open);
    }

    #[test]
    fn one_event_decides_whether_it_opens_again_or_ramps_up() {
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
            "one slot is all there is"
        );
    }

    #[test]
    fn a_failure_on_the_ramp_halves_what_is_allowed_and_more_in_a_row_open_it() {
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

    #[test]
    fn a_downstream_is_well_as_long_as_it_judges_what_it_gets() {
        let response =
            |status_code| Reply::Response { status_code, retry_after: None, excerpt: Bytes::new() };
        assert_eq!(is_healthy(&response(200), Verdict::Delivered), Some(true));
        assert_eq!(is_healthy(&response(422), Verdict::Permanent), Some(true));
        assert_eq!(is_healthy(&response(410), Verdict::Permanent), Some(false));
        assert_eq!(is_healthy(&response(503), Verdict::Transient), Some(false));
        assert_eq!(
            is_healthy(&Reply::Failed(DeliveryError::Timeout), Verdict::Transient),
            Some(false)
        );
        assert_eq!(is_healthy(&Reply::Failed(DeliveryError::CutOff), Verdict::Transient), None);
        assert_eq!(is_healthy(&Reply::NotSent, Verdict::Transient), None);
    }
}
