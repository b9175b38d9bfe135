//! The id of an event, the number of an attempt, and the fence of a row.

use core::fmt;
use core::str::FromStr;
use uuid::Uuid;

/// The id of an event: a UUID of version 7 (RFC 9562), so ids sort by their time of creation.
///
/// The id is chosen before the event is first written. So if a store finds a row with the same id,
/// an earlier try of the same request was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Uuid);

impl EventId {
    /// Wraps a UUID. Its version is not checked: ids are only compared.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID, for a store's binary column.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }

    /// The smallest id.
    pub const MIN: Self = Self(Uuid::nil());

    /// The greatest id. No event has it: it is not a UUID of version 7.
    pub const MAX: Self = Self(Uuid::max());

    /// The smallest id of a time, in milliseconds since 1970. It bounds a range of ids by time: the
    /// first 48 bits of a UUID of version 7 are its time (RFC 9562 §5.7). Times after the year
    /// 10889 are clamped.
    #[must_use]
    pub fn first_at(milliseconds: u64) -> Self {
        const LAST: u64 = (1 << 48) - 1;
        Self(Uuid::from_u128(u128::from(milliseconds.min(LAST)) << 80))
    }

    /// The time of creation, in milliseconds since 1970, by the clock of the machine that created the id.
    #[must_use]
    pub const fn created_at(self) -> u64 {
        (self.0.as_u128() >> 80) as u64
    }

    /// The next greater id. The greatest id returns itself.
    #[must_use]
    pub fn successor(self) -> Self {
        Self(Uuid::from_u128(self.0.as_u128().saturating_add(1)))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for EventId {
    type Err = NotAnEventId;

    /// Parses the hyphenated form (36 characters, in either case).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != uuid::fmt::Hyphenated::LENGTH {
            return Err(NotAnEventId);
        }
        Uuid::try_parse(text).map(Self).map_err(|_| NotAnEventId)
    }
}

/// The text is not a hyphenated UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event id is a UUID of 36 characters, like 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e")]
pub struct NotAnEventId;

/// The number of an attempt within its event's history, from 1. It is reused only after a release,
/// because nothing was sent then.
pub type Attempt = u32;

/// The number of an attempt within the present retry budget of its event, from 1. It differs from
/// [`Attempt`] once the event was redriven, or a shutdown cut an attempt off. A type, so that the
/// two cannot be swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BudgetAttempt(pub u32);

/// A number that increases by one with every transition of an event's row (fencing token).
///
/// A claim gets the fence that it created. A settlement is refused unless it carries the row's
/// present fence. The attempt number cannot serve for this, because a release decreases it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl Fence {
    /// The fence after the next transition.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn an_id_round_trips_through_text() {
        let text = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e";
        assert_eq!(text.parse::<EventId>().unwrap().to_string(), text);
    }

    #[test]
    fn the_first_id_of_a_time_separates_earlier_and_later_ids() {
        let made_at = |milliseconds: u64, rest: u128| {
            EventId::from_uuid(Uuid::from_u128((u128::from(milliseconds) << 80) | rest))
        };
        let (least, greatest) = (7 << 76 | 2 << 62, (1 << 80) - 1);
        for time in [1, 1_795_000_000_000, (1 << 48) - 1] {
            let first = EventId::first_at(time);
            assert!(made_at(time - 1, greatest) < first && first < made_at(time, least), "{time}");
        }
        assert_eq!(
            EventId::first_at(u64::MAX),
            EventId::first_at((1 << 48) - 1),
            "times saturate at 48 bits"
        );
    }

    #[test]
    fn other_spellings_of_a_uuid_are_refused() {
        for text in [
            "",
            "0199c2f05b7a7c3e9d415f0a7b1c2d3e",
            "{0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e}",
            "not-a-uuid",
            "zzzzzzzz-5b7a-7c3e-9d41-5f0a7b1c2d3e",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(NotAnEventId), "{text}");
        }
    }
}
