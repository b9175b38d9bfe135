//! A source (a stream of events with one downstream) and its delivery policy.

use crate::backoff::Backoff;
use crate::breaker::BreakerPolicy;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use core::borrow::Borrow;
use core::fmt;
use core::num::NonZeroU32;
use core::time::Duration;

/// The maximum length of a source name in bytes.
pub const MAX_SOURCE_NAME_BYTES: usize = 64;

/// The name of a source, as in `POST /webhooks/{source}`: 1 to 64 of `a`–`z`, `A`–`Z`, `0`–`9`,
/// `-`, `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceName(Arc<str>);

impl SourceName {
    /// Parses a name.
    ///
    /// # Errors
    ///
    /// [`SourceNameError`] if it breaks the rule above.
    pub fn parse(text: &str) -> Result<Self, SourceNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if text.is_empty() || text.len() > MAX_SOURCE_NAME_BYTES || !text.bytes().all(allowed) {
            return Err(SourceNameError { name: text.into() });
        }
        Ok(Self(Arc::from(text)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for SourceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The text is not a valid source name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` cannot name a source: use 1 to 64 letters, digits, `-` or `_`")]
pub struct SourceNameError {
    /// The invalid text.
    pub name: String,
}

/// How the events of one source are delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The maximum time of one delivery, from connecting to the last byte of the response that is
    /// read.
    pub timeout: Duration,
    /// The maximum number of deliveries in flight, for each process. At least 1.
    pub concurrency: u32,
    /// The maximum number of deliveries that start in a second, for each process. See
    /// [`crate::rate`]. `None`: only `concurrency` limits them.
    pub rate: Option<NonZeroU32>,
    /// When the source's circuit breaker opens.
    pub breaker: BreakerPolicy,
    /// The number of attempts after which an event is dead-lettered. At least 1.
    pub max_attempts: u32,
    /// The back-off after a transient failure.
    pub backoff: Backoff,
    /// Status codes that are transient for this source. They override the table in
    /// [`crate::verdict`].
    pub retry_on: BTreeSet<u16>,
    /// Status codes that are permanent for this source. They override the table and `retry_on`.
    pub dead_letter_on: BTreeSet<u16>,
}

/// The minimum part of a lease that is left when a delivery times out: the time to settle it.
pub const SETTLE_GRACE: Duration = Duration::from_secs(5);

/// The part of a lease that a claimed event may wait in memory for a free slot.
pub const WAIT_ALLOWANCE: Duration = Duration::from_secs(5);

/// The longest timeout that a configuration can set. So processes know the longest lease that a
/// process with other settings can have set: see [`Policy::horizon`].
pub const MAX_TIMEOUT: Duration = Duration::from_hours(1);

/// By how much the clock of a database can differ between two servers, of which one replaces the
/// other, or be corrected, without an effect on due times.
pub const CLOCK_SKEW: Duration = Duration::from_mins(1);

impl Policy {
    /// How long a claim holds an event: the timeout, [`SETTLE_GRACE`], and [`WAIT_ALLOWANCE`].
    ///
    /// So a lease is always longer than its delivery. There is no setting that can make it too
    /// short.
    #[must_use]
    pub fn lease(&self) -> Duration {
        lease(self.timeout)
    }

    /// How far ahead a due time can be, unless the database's clock was set back: the longest wait
    /// for a retry, which `Retry-After` cannot exceed either, or the longest lease, and
    /// [`CLOCK_SKEW`]. See [`crate::due`].
    ///
    /// A lease may have been set by a process with another timeout. It must not be broken, so the
    /// longest possible lease counts. A retry that was scheduled with a longer `max_delay` than the
    /// present one may come early.
    #[must_use]
    pub fn horizon(&self) -> Duration {
        let longest_lease = lease(self.timeout.max(MAX_TIMEOUT));
        self.backoff.max_delay.max(longest_lease).saturating_add(CLOCK_SKEW)
    }

    /// The remaining lease that a delivery needs to start.
    #[must_use]
    pub fn cover(&self) -> Duration {
        self.timeout.saturating_add(SETTLE_GRACE)
    }
}

fn lease(timeout: Duration) -> Duration {
    timeout.saturating_add(SETTLE_GRACE).saturating_add(WAIT_ALLOWANCE)
}

impl Default for Policy {
    /// The documented defaults: 10 s timeout, 16 deliveries in flight, no rate limit, 150 attempts,
    /// and the default breaker.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            concurrency: 16,
            rate: None,
            breaker: BreakerPolicy::default(),
            max_attempts: 150,
            backoff: Backoff::default(),
            retry_on: BTreeSet::new(),
            dead_letter_on: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_needs_no_escape_in_a_path() {
        for good in ["a", "github", "Stripe_EU-2", &"n".repeat(64)] {
            let name = SourceName::parse(good).unwrap();
            assert_eq!(
                (name.as_str(), Borrow::<str>::borrow(&name), &*alloc::format!("{name}")),
                (good, good, good)
            );
        }
        for bad in ["", "a b", "a/b", "a.b", "ü", "a\0", &"n".repeat(65)] {
            assert!(SourceName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_lease_covers_waiting_delivery_and_settling() {
        let policy = Policy::default();
        assert_eq!(policy.lease(), policy.cover() + WAIT_ALLOWANCE);
        assert!(policy.cover() > policy.timeout);
        let endless = Policy { timeout: Duration::MAX, ..Policy::default() };
        assert_eq!((endless.lease(), endless.horizon()), (Duration::MAX, Duration::MAX));
    }

    #[test]
    fn the_horizon_is_the_longest_lease_or_the_longest_wait() {
        let short = Policy::default();
        assert_eq!(short.horizon(), MAX_TIMEOUT + SETTLE_GRACE + WAIT_ALLOWANCE + CLOCK_SKEW);
        let max_delay = Duration::from_hours(24);
        let long = Policy { backoff: Backoff { max_delay, ..short.backoff }, ..short };
        assert_eq!(long.horizon(), max_delay + CLOCK_SKEW);
    }
}
