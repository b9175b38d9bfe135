//! `Retry-After` and `Date` of a downstream with any values: the delay stays between the back-off
//! and its cap, and valid numbers of seconds and dates are parsed correctly.

use jiff::Timestamp;
use jiff::tz::Offset;
use std::time::Duration;
use surehook_core::backoff::Backoff;
use surehook_core::id::{BudgetAttempt, EventId};
use surehook_core::retry_after::retry_after;
use surehook_core::verdict::next_delay;
use uuid::Uuid;

/// Reads the first line of `data` as `Retry-After`, and the second, if there is one, as `Date`.
///
/// # Panics
///
/// If a delay exceeds its bounds, or a value is parsed incorrectly.
pub fn run(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let (value, date) = (lines.next().unwrap_or_default(), lines.next());
    let asked = retry_after(value, date);
    bounded(asked);
    let trimmed = value.trim_ascii();
    if !trimmed.is_empty() && trimmed.iter().all(u8::is_ascii_digit) {
        let seconds = trimmed.iter().fold(0u64, |sum, digit| {
            sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
        });
        assert_eq!(asked, Some(Duration::from_secs(seconds)));
    } else if date.is_none() {
        assert_eq!(asked, None, "a date needs a `Date` header to be compared with");
    }
    // The wait from a date to itself is zero, if the value is a date.
    if let Some(wait) = retry_after(value, Some(value)) {
        assert!(
            wait.is_zero() || trimmed.iter().all(u8::is_ascii_digit),
            "the wait from a date to itself is {wait:?}"
        );
    }
    if let Some(bytes) = data.first_chunk::<8>() {
        let [a, b] = [&bytes[..4], &bytes[4..]]
            .map(|half| u32::from_le_bytes(half.try_into().expect("each half has four bytes")));
        dates(i64::from(a), i64::from(b));
    }
}

fn bounded(asked: Option<Duration>) {
    let (backoff, event) = (Backoff::default(), EventId::from_uuid(Uuid::from_u128(7)));
    for n in [1, 2, 20, u32::MAX] {
        let delay = next_delay(&backoff, event, n, BudgetAttempt(n), asked);
        assert!(
            delay >= backoff.delay(event, n, BudgetAttempt(n)) && delay <= backoff.max_delay,
            "{delay:?} after attempt {n}"
        );
        assert!(
            asked.is_none_or(|asked| delay >= asked.min(backoff.max_delay)),
            "the delay is {delay:?}, but `Retry-After` is {asked:?}"
        );
    }
}

/// Writes two dates from 1970 to 2106 in each format that includes the century. The wait must be
/// their difference.
fn dates(now: i64, then: i64) {
    let wait = u64::try_from(then - now).ok().map(Duration::from_secs);
    let date = written(now, "%a, %d %b %Y %H:%M:%S GMT");
    for form in ["%a, %d %b %Y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"] {
        let value = written(then, form);
        assert_eq!(
            retry_after(value.as_bytes(), Some(date.as_bytes())),
            wait,
            "from {date} to {value}"
        );
    }
}

fn written(second: i64, form: &str) -> String {
    Offset::UTC
        .to_datetime(Timestamp::from_second(second).expect("the date is a valid timestamp"))
        .strftime(form)
        .to_string()
}
