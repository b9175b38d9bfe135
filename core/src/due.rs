//! Due times that are too far ahead, and when the database is searched for them.
//!
//! Due times follow the database's clock. If that clock is set back by hours, retries wait hours
//! longer, and leases whose holders have died last hours longer. But no wait and no lease is longer
//! than the source's [horizon](Policy::horizon). So a due time beyond the horizon was set before the
//! clock was set back. It is *capped*: the event is due when a lease has passed from now.
//!
//! Such an event may be in flight. Its holder counts the lease by its own clock, and began earlier.
//! So the holder ends first, and the event is not sent twice.

use crate::source::{Policy, SourceName};
use core::time::Duration;
use jiff::Timestamp;

/// Maximum number of rows that one step caps. It is small, because a step occupies SQLite's only
/// writer, or locks rows in PostgreSQL, until it ends.
pub const STEP_ROWS: u32 = 100;
/// The pause between the steps of a pass.
pub const STEP_PAUSE: Duration = Duration::from_millis(10);
/// The pause after a pass, and after an error.
pub const PASS_PAUSE: Duration = Duration::from_secs(30);

/// How far ahead the due times of a source may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The source.
    pub source: SourceName,
    /// A due time further ahead than this is capped.
    pub horizon: Duration,
    /// How far ahead a capped due time is.
    pub lease: Duration,
}

impl Bound {
    /// The bound of a source with this policy.
    #[must_use]
    pub fn new(source: SourceName, policy: &Policy) -> Self {
        Self { source, horizon: policy.horizon(), lease: policy.lease() }
    }

    /// Whether a due time is beyond the horizon. Both times are of the database's clock.
    #[must_use]
    pub fn excludes(&self, due_at: Timestamp, now: Timestamp) -> bool {
        let ahead = due_at.duration_since(now);
        ahead.is_positive() && ahead.unsigned_abs() > self.horizon
    }
}

/// A pass over the due times of all sources, in steps of at most [`STEP_ROWS`] rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass {
    capped: u64,
}

/// What follows a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// How long to wait before the next step.
    pub pause: Duration,
    /// If the pass has ended and has capped due times: their number.
    pub capped: Option<u64>,
}

impl Pass {
    /// Processes the result of a step: how many due times it capped. `None` if it failed.
    pub fn handle(&mut self, capped: Option<u64>) -> Next {
        let Some(capped) = capped else { return Next { pause: PASS_PAUSE, capped: None } };
        self.capped += capped;
        if capped >= u64::from(STEP_ROWS) {
            return Next { pause: STEP_PAUSE, capped: None };
        }
        let Self { capped } = core::mem::take(self);
        Next { pause: PASS_PAUSE, capped: (capped > 0).then_some(capped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Backoff;
    use crate::event::Outcome;
    use crate::id::{BudgetAttempt, EventId};
    use crate::source::MAX_TIMEOUT;
    use crate::verdict::{Reply, decide};
    use bytes::Bytes;
    use jiff::SignedDuration;
    use proptest::prelude::*;
    use uuid::Uuid;

    const YEAR: Duration = Duration::from_hours(366 * 24);

    /// Of every order of magnitude, because only a short wait is near a short horizon.
    fn up_to(longest: Duration) -> impl Strategy<Value = Duration> {
        let longest = u64::try_from(longest.as_nanos()).unwrap();
        (0..u64::BITS, 0..=longest)
            .prop_map(|(halvings, nanos)| Duration::from_nanos(nanos >> halvings))
    }

    fn timestamp() -> impl Strategy<Value = Timestamp> {
        (0..4_000_000_000_000_000i64).prop_map(|us| Timestamp::from_microsecond(us).unwrap())
    }

    fn later(time: Timestamp, by: Duration) -> Timestamp {
        time.checked_add(SignedDuration::try_from(by).unwrap()).unwrap()
    }

    fn policy() -> impl Strategy<Value = Policy> {
        (up_to(MAX_TIMEOUT), up_to(YEAR), up_to(YEAR), 1.0..100.0f64).prop_map(
            |(timeout, initial_delay, max_delay, factor)| Policy {
                timeout,
                max_attempts: u32::MAX,
                backoff: Backoff { initial_delay, factor, max_delay },
                ..Policy::default()
            },
        )
    }

    fn bound(policy: &Policy) -> Bound {
        Bound::new(SourceName::parse("orders").unwrap(), policy)
    }

    proptest! {
        /// Whatever the timeout of the process that set it.
        #[test]
        fn a_clock_that_only_moves_forward_sets_no_due_time_beyond_the_horizon(
            own in policy(), other in policy(), set_at in timestamp(), passed in up_to(YEAR),
            event in any::<u128>(), n in 1..u32::MAX, retry_after in prop::option::of(any::<u64>().prop_map(Duration::from_secs)),
        ) {
            let now = later(set_at, passed);
            prop_assert!(!bound(&own).excludes(later(set_at, other.lease()), now), "a lease of another process");
            let reply = Reply::Response { status_code: 503, retry_after, excerpt: Bytes::new() };
            let (_, outcome) = decide(&reply, &own, EventId::from_uuid(Uuid::from_u128(event)), n, BudgetAttempt(n));
            let Outcome::Retry { after } = outcome else { panic!("{outcome:?}") };
            prop_assert!(!bound(&own).excludes(later(set_at, after), now), "a retry after {after:?}");
        }

        #[test]
        fn no_event_waits_longer_than_the_horizon_however_far_the_clock_is_set_back(
            policy in policy(), due_at in timestamp(), now in timestamp(),
        ) {
            let bound = bound(&policy);
            let capped = if bound.excludes(due_at, now) { later(now, bound.lease) } else { due_at };
            prop_assert!(capped <= due_at, "no due time is put off");
            prop_assert!(capped <= later(now, bound.horizon));
            prop_assert!(!bound.excludes(capped, now), "a due time is capped once");
        }
    }

    #[test]
    fn a_pass_continues_while_its_steps_are_full_and_reports_their_sum() {
        let (full, step) = (Some(u64::from(STEP_ROWS)), Next { pause: STEP_PAUSE, capped: None });
        let end = |capped| Next { pause: PASS_PAUSE, capped };
        let mut pass = Pass::default();
        assert_eq!(pass.handle(Some(0)), end(None));
        assert_eq!([full, full].map(|capped| pass.handle(capped)), [step, step]);
        assert_eq!(pass.handle(None), end(None), "a failed step does not end the pass");
        assert_eq!(pass.handle(Some(7)), end(Some(207)));
        assert_eq!(pass.handle(Some(1)), end(Some(1)));
        assert_eq!([full, Some(0)].map(|capped| pass.handle(capped)), [step, end(Some(100))]);
    }
}
