//! A source: one stream of events with one downstream, and the policy by which it is delivered.

use crate::backoff::Backoff;
use crate::breaker::BreakerPolicy;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use core::borrow::Borrow;
use core::fmt;
use core::num::NonZeroU32;
use core::time::Duration;

/// The longest source name, in bytes.
pub const MAX_SOURCE_NAME_BYTES: usize = 64;

/// The name of a source, as it stands in `POST /webhooks/{source}`: 1 to 64 of `a`–`z`, `A`–`Z`, `0`–`9`, `-`, `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceName(Arc<str>);

impl SourceName {
    /// Takes a name that follows the rule above.
    ///
    /// # Errors
    ///
    /// [`SourceNameError`] if it does not.
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

/// The text cannot name a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` cannot name a source: use 1 to 64 letters, digits, `-` or `_`")]
pub struct SourceNameError {
    /// The text as it was given.
    pub name: String,
}

/// How the events of one source are delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The time one delivery may take, from connecting to the last byte of the reply that is read.
    pub timeout: Duration,
    /// Deliveries in flight at once, for each process. At least 1.
    pub concurrency: u32,
    /// Deliveries that may begin in a second, for each process, see [`crate::rate`]. `None`: as many as there are slots.
    pub rate: Option<NonZeroU32>,
    /// When the source's breaker opens.
    pub breaker: BreakerPolicy,
    /// Attempts an event may use up before it is dead-lettered. At least 1.
    pub max_attempts: u32,
    /// How long a transient failure waits for its next attempt.
    pub backoff: Backoff,
    /// Status codes that are transient for this source, whatever the table says.
    pub retry_on: BTreeSet<u16>,
    /// Status codes that are permanent for this source, whatever the table says. Wins over `retry_on`.
    pub dead_letter_on: BTreeSet<u16>,
}

/// What is left of a lease, at the least, when a delivery has run to its time-out: the time to settle it.
pub const SETTLE_GRACE: Duration = Duration::from_secs(5);

/// The part of a lease that a claimed event may spend waiting in memory for a free slot.
pub const WAIT_ALLOWANCE: Duration = Duration::from_secs(5);

impl Policy {
    /// How long a claim holds an event: the time-out, the grace for settling, and the allowance for waiting.
    ///
    /// A lease outlives its delivery by construction: there is no setting by which it could be too short.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.timeout.saturating_add(SETTLE_GRACE).saturating_add(WAIT_ALLOWANCE)
    }

    /// What must be left of a lease for a delivery to start.
    #[must_use]
    pub fn cover(&self) -> Duration {
        self.timeout.saturating_add(SETTLE_GRACE)
    }
}

impl Default for Policy {
    /// The documented defaults: 10 s, 16 in flight at any rate, 20 attempts, and those of the breaker.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            concurrency: 16,
            rate: None,
            breaker: BreakerPolicy::default(),
            max_attempts: 20,
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
    fn a_name_is_a_path_segment_that_needs_no_escape() {
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
    fn a_lease_covers_its_delivery_with_time_to_wait() {
        let policy = Policy::default();
        assert_eq!(policy.lease(), policy.cover() + WAIT_ALLOWANCE);
        assert!(policy.cover() > policy.timeout);
        let endless = Policy { timeout: Duration::MAX, ..Policy::default() };
        assert_eq!(endless.lease(), Duration::MAX);
    }
}
