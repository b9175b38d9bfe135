//! How long a failed event waits before its next attempt: exponential back-off with a maximum. Half
//! of each delay is jitter, computed by a pure hash.

use crate::id::{Attempt, BudgetAttempt, EventId};
use core::time::Duration;

/// The back-off policy of a source.
///
/// ```
/// use core::time::Duration;
/// use surehook_core::backoff::Backoff;
/// use surehook_core::id::BudgetAttempt;
///
/// let backoff = Backoff { initial_delay: Duration::from_secs(5), factor: 2.0, max_delay: Duration::from_secs(60) };
/// assert_eq!([1, 2, 3, 9].map(|n| backoff.ceiling(BudgetAttempt(n)).as_secs()), [5, 10, 20, 60]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The delay after the first attempt, before jitter.
    pub initial_delay: Duration,
    /// The factor by which the delay grows with each attempt. At least 1.
    pub factor: f64,
    /// The longest delay.
    pub max_delay: Duration,
}

impl Default for Backoff {
    /// The documented defaults: 5 s, doubled for each attempt, at most 1 h.
    fn default() -> Self {
        Self {
            initial_delay: Duration::from_secs(5),
            factor: 2.0,
            max_delay: Duration::from_hours(1),
        }
    }
}

impl Backoff {
    /// The delay before jitter after the n-th attempt of the present retry budget:
    /// `min(max_delay, initial × factor^(n-1))`.
    #[must_use]
    pub fn ceiling(&self, BudgetAttempt(n): BudgetAttempt) -> Duration {
        if self.initial_delay.is_zero() {
            return Duration::ZERO; // zero times infinity would be NaN
        }
        let seconds = self.initial_delay.as_secs_f64() * power(self.factor, n.saturating_sub(1));
        Duration::try_from_secs_f64(seconds)
            .map_or(self.max_delay, |delay| delay.min(self.max_delay))
    }

    /// The shortest and the longest sum of the delays between `attempts` attempts. A downstream that
    /// is back before the shortest one has passed still gets each event.
    ///
    /// ```
    /// use core::time::Duration;
    /// use surehook_core::backoff::Backoff;
    ///
    /// let backoff = Backoff { initial_delay: Duration::from_secs(4), factor: 2.0, max_delay: Duration::from_secs(8) };
    /// assert_eq!(backoff.span(4), (Duration::from_secs(10), Duration::from_secs(20)));
    /// assert_eq!(backoff.span(1), (Duration::ZERO, Duration::ZERO));
    /// ```
    #[must_use]
    pub fn span(&self, attempts: u32) -> (Duration, Duration) {
        let (mut shortest, mut longest) = (Duration::ZERO, Duration::ZERO);
        for n in 1..attempts {
            let ceiling = self.ceiling(BudgetAttempt(n));
            // There can be a million attempts, and most of them have the same delay.
            let grows = ceiling < self.max_delay && !ceiling.is_zero() && self.factor > 1.0;
            let delays = if grows { 1 } else { attempts - n };
            shortest = shortest.saturating_add((ceiling / 2).saturating_mul(delays));
            longest = longest.saturating_add(ceiling.saturating_mul(delays));
            if !grows {
                break;
            }
        }
        (shortest, longest)
    }

    /// The delay after an attempt: half of [`Self::ceiling`] is fixed, half is jitter.
    ///
    /// The jitter is a hash of the event's id and the attempt. So events that fail together are
    /// retried at different times, and a replay of a run produces the same delays.
    #[must_use]
    pub fn delay(&self, event: EventId, attempt: Attempt, in_budget: BudgetAttempt) -> Duration {
        let ceiling = self.ceiling(in_budget);
        let half = ceiling / 2;
        half + share(ceiling - half, hash(event, attempt))
    }
}

/// `base` to the power of `exponent`, by squaring. The result is infinity if it exceeds an `f64`.
/// (`f64::powi` needs std.)
fn power(mut base: f64, mut exponent: u32) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

/// The part `fraction / 2^64` of a duration.
pub(crate) fn share(whole: Duration, fraction: u64) -> Duration {
    let nanos = whole.as_nanos();
    // Split so that the product of a 96-bit and a 64-bit number cannot overflow.
    let fraction = u128::from(fraction >> 32);
    let nanos = (nanos >> 32) * fraction + (((nanos & 0xffff_ffff) * fraction) >> 32);
    Duration::new(
        u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX),
        u32::try_from(nanos % 1_000_000_000).unwrap_or(0),
    )
}

fn hash(event: EventId, attempt: Attempt) -> u64 {
    let (high, low) = event.as_uuid().as_u64_pair();
    mix(mix(mix(high) ^ low) ^ u64::from(attempt))
}

/// The finalizer of splitmix64: each input bit changes about half of the output bits.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn any_duration() -> impl Strategy<Value = Duration> {
        (any::<u64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| Duration::new(secs, nanos))
    }

    #[test]
    fn the_defaults_double_up_to_an_hour() {
        let backoff = Backoff::default();
        let ceilings: alloc::vec::Vec<u64> = [1, 2, 3, 4, 10, 11, 20, u32::MAX]
            .iter()
            .map(|&n| backoff.ceiling(BudgetAttempt(n)).as_secs())
            .collect();
        assert_eq!(ceilings, [5, 10, 20, 40, 2560, 3600, 3600, 3600]);
    }

    #[test]
    fn a_zero_initial_delay_stays_zero() {
        let backoff = Backoff { initial_delay: Duration::ZERO, ..Backoff::default() };
        assert_eq!(backoff.ceiling(BudgetAttempt(u32::MAX)), Duration::ZERO);
    }

    /// It is calculated at a reload, and other work of the process waits for it.
    #[test]
    fn the_span_of_any_number_of_attempts_is_found_at_once() {
        let hour = Duration::from_hours(1);
        let (shortest, longest) = Backoff::default().span(u32::MAX);
        // Ten delays from 5 s to 2,560 s, and an hour after each other attempt but the last.
        assert_eq!(longest, Duration::from_secs(5 * 1023) + hour * (u32::MAX - 11));
        assert_eq!(shortest, longest / 2);
        for (factor, initial_delay) in [(1.0, hour / 2), (2.0, Duration::ZERO)] {
            let backoff = Backoff { initial_delay, factor, max_delay: hour };
            assert_eq!(backoff.span(u32::MAX).1, initial_delay * (u32::MAX - 1));
        }
    }

    #[test]
    fn jitter_spreads_events_that_fail_together() {
        let backoff = Backoff::default();
        let delays: alloc::collections::BTreeSet<Duration> = (0..100)
            .map(|n| backoff.delay(EventId::from_uuid(Uuid::from_u128(n)), 1, BudgetAttempt(1)))
            .collect();
        assert!(delays.len() > 95);
        let (first, last) = (delays.first().unwrap(), delays.last().unwrap());
        assert!(*last - *first > Duration::from_secs(2), "{first:?}..{last:?}");
    }

    #[test]
    fn each_bit_of_event_id_and_attempt_changes_the_jitter() {
        let jitter =
            |event: u128, attempt| hash(EventId::from_uuid(Uuid::from_u128(event)), attempt);
        let event = 0x0199_f0a5_7c1e_7b3d_9d2c_55aa_33cc_0f0f;
        let (mut seen, one) = (alloc::collections::BTreeSet::new(), jitter(event, 1));
        for other in (0..128)
            .map(|bit| jitter(event ^ (1 << bit), 1))
            .chain((0..32).map(|bit| jitter(event, 1 ^ (1 << bit))))
        {
            assert!(other != one && seen.insert(other));
            // On average 32 of the 64 bits change. The bounds are four standard deviations.
            assert!(
                (16..=48).contains(&(other ^ one).count_ones()),
                "{}",
                (other ^ one).count_ones()
            );
        }
    }

    #[test]
    fn the_mixer_matches_splitmix64() {
        // The first three outputs of the splitmix64 generator with seed 0.
        let states = (0..3u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let expected = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        assert_eq!(states.map(mix).collect::<alloc::vec::Vec<u64>>(), expected);
    }

    #[test]
    fn a_share_is_the_given_fraction_of_the_whole() {
        let (second, long) = (Duration::from_secs(1), Duration::from_secs(1 << 40));
        let parts = |whole| [0, 1 << 62, 1 << 63, 3 << 62].map(|fraction| share(whole, fraction));
        assert_eq!(parts(second), [0, 250, 500, 750].map(Duration::from_millis));
        assert_eq!(parts(long), [0, 1 << 38, 1 << 39, 3 << 38].map(Duration::from_secs));
    }

    proptest! {
        #[test]
        fn every_delay_is_within_its_bounds(
            initial in any_duration(), max_delay in any_duration(), factor in 1.0..1000.0f64,
            event in any::<u128>(), attempt in any::<u32>(), n in any::<u32>(),
        ) {
            let backoff = Backoff { initial_delay: initial, factor, max_delay };
            let ceiling = backoff.ceiling(BudgetAttempt(n));
            let delay = backoff.delay(EventId::from_uuid(Uuid::from_u128(event)), attempt, BudgetAttempt(n));
            prop_assert!(ceiling <= max_delay);
            prop_assert!(delay <= ceiling);
            prop_assert!(delay >= ceiling / 2);
        }

        #[test]
        fn the_span_is_the_sum_of_all_ceilings(
            initial in any_duration(), max_delay in any_duration(), factor in 1.0..5.0f64, attempts in 0..50u32,
        ) {
            let backoff = Backoff { initial_delay: initial, factor, max_delay };
            let (mut shortest, mut longest) = (Duration::ZERO, Duration::ZERO);
            for n in 1..attempts {
                shortest = shortest.saturating_add(backoff.ceiling(BudgetAttempt(n)) / 2);
                longest = longest.saturating_add(backoff.ceiling(BudgetAttempt(n)));
            }
            prop_assert_eq!(backoff.span(attempts), (shortest, longest));
        }

        #[test]
        fn a_later_attempt_never_has_a_lower_ceiling(
            initial in any_duration(), max_delay in any_duration(), factor in 1.0..1000.0f64, n in any::<u32>(),
        ) {
            let backoff = Backoff { initial_delay: initial, factor, max_delay };
            prop_assert!(backoff.ceiling(BudgetAttempt(n)) <= backoff.ceiling(BudgetAttempt(n.saturating_add(1))));
        }
    }
}
