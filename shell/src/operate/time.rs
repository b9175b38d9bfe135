//! Times as people type them, in UTC like all times that the commands print.

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::Offset;

/// What a time can look like, for error messages.
pub(super) const FORMS: &str = "a date such as 2026-11-28, a time in UTC such as `2026-11-28 14:00`, `yesterday 14:00` or 14:00, a time in RFC 3339, or an age such as 2h";

/// The time that a text means at the time `now`; `None` if it means none.
pub(super) fn parse(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim();
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let in_utc = |time: DateTime| Offset::UTC.to_timestamp(time).ok();
    let today = Offset::UTC.to_datetime(now).date();
    if let Some(time) = clock(text) {
        // The last time that it was this late.
        let at = in_utc(today.to_datetime(time))?;
        return if at <= now {
            Some(at)
        } else {
            in_utc(today.yesterday().ok()?.to_datetime(time))
        };
    }
    if let Ok(time) = text.parse() {
        return in_utc(time);
    }
    let (day, time) = text.split_once(' ').unwrap_or((text, "00:00"));
    let day = match day.to_ascii_lowercase().as_str() {
        "today" => Some(today),
        "yesterday" => today.yesterday().ok(),
        _ => None,
    };
    if let Some(day) = day {
        return in_utc(day.to_datetime(clock(time.trim())?));
    }
    let age = humantime::parse_duration(text.strip_suffix("ago").unwrap_or(text)).ok()?;
    now.checked_sub(age).ok()
}

/// A time of a day: hours and minutes, with or without seconds.
fn clock(text: &str) -> Option<Time> {
    let (hours, _) = text.split_once(':')?;
    let is_number =
        (1..=2).contains(&hours.len()) && hours.bytes().all(|byte| byte.is_ascii_digit());
    let padded = if hours.len() == 1 { format!("0{text}") } else { text.to_owned() };
    padded.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        "2026-11-28T12:30:00Z".parse().unwrap()
    }

    #[test]
    fn a_time_is_read_as_people_type_it() {
        for (text, expected) in [
            ("2026-11-25T10:00:00+01:00", "2026-11-25T09:00:00Z"),
            ("2026-11-25 10:00:00Z", "2026-11-25T10:00:00Z"),
            ("2026-11-25", "2026-11-25T00:00:00Z"),
            ("2026-11-25 14:00", "2026-11-25T14:00:00Z"),
            ("2026-11-25T14:00:05", "2026-11-25T14:00:05Z"),
            // As the commands print times.
            ("2026-11-25 06:45:44.159", "2026-11-25T06:45:44.159Z"),
            ("today", "2026-11-28T00:00:00Z"),
            ("yesterday", "2026-11-27T00:00:00Z"),
            ("Yesterday 14:00", "2026-11-27T14:00:00Z"),
            ("today 9:30", "2026-11-28T09:30:00Z"),
            ("today 23:00", "2026-11-28T23:00:00Z"),
            ("12:30", "2026-11-28T12:30:00Z"),
            ("12:31", "2026-11-27T12:31:00Z"),
            ("9:05", "2026-11-28T09:05:00Z"),
            ("06:45:44", "2026-11-28T06:45:44Z"),
            ("2h", "2026-11-28T10:30:00Z"),
            ("2h 30m", "2026-11-28T10:00:00Z"),
            ("90 min ago", "2026-11-28T11:00:00Z"),
            (" 1day ", "2026-11-27T12:30:00Z"),
        ] {
            let expected: Timestamp = expected.parse().unwrap();
            assert_eq!(parse(text, now()), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_time_is_refused() {
        for text in [
            "",
            " ",
            "ago",
            "tomorrow",
            "yesterday at noon",
            "yesterday 25:00",
            "-1h",
            "2",
            "999999y",
            "2026-13-01",
            "2026-11-31",
            "25:00",
            "14",
            ":",
            "28.11.2026",
            "2026-11-28 14:00 CET",
        ] {
            assert_eq!(parse(text, now()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_time_is_read_as_itself(micros in 0..4_102_444_800_000_000i64) {
            let time = Timestamp::from_microsecond(micros).unwrap();
            let printed = crate::http::view::rfc3339(time);
            prop_assert_eq!(parse(&printed, now()), Some(time));
            let shown = printed[..19].replace('T', " ");
            prop_assert_eq!(parse(&shown, now()).unwrap().as_second(), time.as_second());
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text, now());
        }
    }
}
