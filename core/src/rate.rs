//! A rate limit for the deliveries of one source, in one process. It is the generic cell rate
//! algorithm: each start moves a theoretical time forward by the interval. A start may be earlier
//! than that time by at most a fixed tolerance.

use crate::time::Instant;
use core::num::NonZeroU32;
use core::time::Duration;

/// The tolerance: how far starts may run ahead of an even flow. Any span of time has at most
/// `1 + (span + BURST) × rate` starts.
pub const BURST: Duration = Duration::from_millis(100);

/// The state of one source's rate limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// The theoretical time of the next start in an even flow.
    next: Instant,
}

impl Pace {
    /// Counts a start at `now` and returns when the next one is allowed. That is now if the result
    /// is not after `now`.
    pub fn start(&mut self, now: Instant, rate: NonZeroU32) -> Instant {
        let interval = Duration::from_secs(1) / rate.get();
        self.next = self.next.max(now) + interval;
        self.next.before(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// The start times of a source that always has something to start.
    fn starts(rate: u32, until: Duration) -> Vec<Duration> {
        let (mut pace, mut at, mut starts) = (Pace::default(), Duration::ZERO, Vec::new());
        while at < until {
            starts.push(at);
            at = at.max(
                pace.start(Instant::from_origin(at), NonZeroU32::new(rate).unwrap()).since_origin(),
            );
        }
        starts
    }

    #[test]
    fn starts_are_even_after_a_short_burst() {
        let millis =
            |times: &[u64]| times.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(starts(1, Duration::from_secs(3)), millis(&[0, 900, 1900, 2900]));
        assert_eq!(starts(20, Duration::from_millis(200)), millis(&[0, 0, 0, 50, 100, 150]));
    }

    #[test]
    fn no_time_span_exceeds_rate_and_burst() {
        for rate in [1, 3, 7, 50, 400] {
            let starts = starts(rate, Duration::from_secs(5));
            for span in [1, 50, 100, 333, 1000, 2000].map(Duration::from_millis) {
                let most = 1 + (span + BURST).as_millis() * u128::from(rate) / 1000;
                for from in starts.iter().copied() {
                    let within =
                        starts.iter().filter(|at| (from..from + span).contains(at)).count();
                    assert!(within as u128 <= most, "{within} starts within {span:?} at {rate}/s");
                }
            }
            assert!(
                starts.len() as u64 >= 5 * u64::from(rate) - 1,
                "{} starts in 5 s at {rate}/s",
                starts.len()
            );
        }
    }

    #[test]
    fn idle_time_does_not_accumulate() {
        let (mut pace, rate) = (Pace::default(), NonZeroU32::new(10).unwrap());
        pace.start(Instant::ZERO, rate);
        let late = Instant::from_origin(Duration::from_mins(1));
        assert_eq!(pace.start(late, rate), late);
        assert_eq!(pace.start(late, rate), late + Duration::from_millis(100));
    }
}
