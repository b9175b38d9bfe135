//! The `Retry-After` header of a response (RFC 9110 §10.2.3): seconds, or a date.

use core::time::Duration;
use jiff::civil::DateTime;
use jiff::fmt::strtime::BrokenDownTime;

/// Parses a value of `Retry-After` as a delay, counted from the response.
///
/// `date` is the value of the response's own `Date` header. A date in `Retry-After` is compared
/// with it, so a clock skew between the downstream and this machine does not matter. Returns `None`
/// for a date without a valid `Date`, for a date in the past, and for anything that is neither
/// seconds nor a date. Seconds saturate.
///
/// ```
/// use core::time::Duration;
/// use surehook_core::retry_after::retry_after;
///
/// assert_eq!(retry_after(b"120", None), Some(Duration::from_secs(120)));
/// let (then, date) = (b"Sun, 06 Nov 1994 08:50:37 GMT", b"Sun, 06 Nov 1994 08:49:37 GMT");
/// assert_eq!(retry_after(then, Some(date)), Some(Duration::from_secs(60)));
/// ```
#[must_use]
pub fn retry_after(value: &[u8], date: Option<&[u8]>) -> Option<Duration> {
    let value = core::str::from_utf8(value).ok()?.trim_ascii();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let then = http_date(value)?;
    let now = http_date(core::str::from_utf8(date?).ok()?.trim_ascii())?;
    u64::try_from(then.checked_sub(now)?).ok().map(Duration::from_secs)
}

/// Seconds since 1970 of an HTTP date, in any of the three forms that a recipient must accept (RFC
/// 9110 §5.6.7).
fn http_date(text: &str) -> Option<i64> {
    const FORMS: [&str; 3] = [
        "%a, %d %b %Y %H:%M:%S GMT", // IMF-fixdate
        "%A, %d-%b-%y %H:%M:%S GMT", // RFC 850
        "%a %b %e %H:%M:%S %Y",      // asctime
    ];
    const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let datetime: DateTime =
        FORMS.iter().find_map(|form| BrokenDownTime::parse(form, text).ok()?.to_datetime().ok())?;
    // Not converted by a timestamp type: its range ends a day before the end of 9999, which some
    // servers send as "never".
    Some(datetime.duration_since(EPOCH).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Backoff;
    use crate::id::{BudgetAttempt, EventId};
    use crate::verdict::next_delay;
    use proptest::prelude::*;
    use uuid::Uuid;

    const DATE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    #[test]
    fn seconds_are_parsed() {
        assert_eq!(retry_after(b"120", None), Some(Duration::from_mins(2)));
        assert_eq!(retry_after(b" 0 ", None), Some(Duration::ZERO));
        assert_eq!(
            retry_after(b"99999999999999999999999", None),
            Some(Duration::from_secs(u64::MAX))
        );
    }

    #[test]
    fn all_three_date_forms_are_relative_to_the_date_header() {
        for later in [
            "Sun, 06 Nov 1994 08:50:37 GMT",
            "Sunday, 06-Nov-94 08:50:37 GMT",
            "Sun Nov  6 08:50:37 1994",
        ] {
            assert_eq!(
                retry_after(later.as_bytes(), Some(DATE)),
                Some(Duration::from_mins(1)),
                "{later}"
            );
        }
    }

    #[test]
    fn the_last_representable_date_is_parsed() {
        let never = b"Fri, 31 Dec 9999 23:59:59 GMT";
        assert_eq!(retry_after(never, Some(DATE)), Some(Duration::from_secs(252_618_189_022)));
        assert_eq!(
            retry_after(never, Some(b"Fri, 31 Dec 9999 23:59:58 GMT")),
            Some(Duration::from_secs(1))
        );
    }

    #[test]
    fn invalid_and_past_values_are_none() {
        for nothing in [
            "",
            "soon",
            "-1",
            "1.5",
            "+5",
            "0x10",
            "1e3",
            "120;",
            "Sun, 06 Nov 1994 08:48:37 GMT",
            "Sun, 31 Feb 1994 08:49:37 GMT",
        ] {
            assert_eq!(retry_after(nothing.as_bytes(), Some(DATE)), None, "{nothing}");
        }
        assert_eq!(retry_after(b"Sun, 06 Nov 1994 08:50:37 GMT", None), None);
        assert_eq!(retry_after(b"Sun, 06 Nov 1994 08:50:37 GMT", Some(b"today")), None);
        assert_eq!(retry_after(b"\xff\xfe", Some(DATE)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_delay_between_the_backoff_and_the_cap(
            value in proptest::collection::vec(any::<u8>(), 0..64), date in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            event in any::<u128>(), n in any::<u32>(),
        ) {
            bounded(&value, date.as_deref(), event, n)?;
        }

        #[test]
        fn any_number_keeps_the_delay_between_the_backoff_and_the_cap(value in "[0-9]{1,30}", event in any::<u128>(), n in any::<u32>()) {
            bounded(value.as_bytes(), None, event, n)?;
        }

        #[test]
        fn any_date_keeps_the_delay_between_the_backoff_and_the_cap(
            day in 0..40u8, month in "(Jan|Feb|Jun|Dec)", year in "[0-9]{4}", hour in 0..30u8, event in any::<u128>(), n in any::<u32>(),
        ) {
            let value = alloc::format!("Sun, {day:02} {month} {year} {hour:02}:00:00 GMT");
            bounded(value.as_bytes(), Some(DATE), event, n)?;
        }
    }

    fn bounded(
        value: &[u8],
        date: Option<&[u8]>,
        event: u128,
        n: u32,
    ) -> Result<(), TestCaseError> {
        let (backoff, event) = (Backoff::default(), EventId::from_uuid(Uuid::from_u128(event)));
        let asked = retry_after(value, date);
        let delay = next_delay(&backoff, event, n, BudgetAttempt(n), asked);
        prop_assert!(delay >= backoff.delay(event, n, BudgetAttempt(n)));
        prop_assert!(delay <= backoff.max_delay);
        if let Some(asked) = asked {
            prop_assert!(delay >= asked.min(backoff.max_delay));
        }
        Ok(())
    }
}
