//! A point on one process's monotonic clock. It is not a wall-clock time: the database's clock is
//! the only wall clock for due times and leases.

use core::time::Duration;

/// A point in time on a monotonic clock with an arbitrary origin, in nanoseconds.
///
/// Instants of different processes cannot be compared. All arithmetic saturates, so that no
/// configured duration can make a deadline overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);
    /// Later than every deadline that can be reached.
    pub const MAX: Self = Self(u64::MAX);

    /// The instant `since_origin` after the clock's origin.
    #[must_use]
    pub fn from_origin(since_origin: Duration) -> Self {
        Self(saturating_nanos(since_origin))
    }

    /// The time from the clock's origin to this instant.
    #[must_use]
    pub fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// The time that passed from `earlier` to this instant; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The instant `duration` before this one, but not before the clock's origin.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(duration)))
    }
}

impl core::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(duration)))
    }
}

fn saturating_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Instant::ZERO + Duration::MAX, Instant::MAX);
        assert_eq!(Instant::ZERO.before(Duration::from_secs(1)), Instant::ZERO);
        assert_eq!(Instant::ZERO.since(Instant::MAX), Duration::ZERO);
    }
}
