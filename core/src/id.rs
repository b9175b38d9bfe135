//! Identities: of an event, and of one attempt's place in its life.

use core::fmt;
use core::str::FromStr;
use uuid::Uuid;

/// The identity of one event: a UUID, version 7 (RFC 9562), so that ids sort by the time they were made.
///
/// It is fixed before the event is first written. A store that finds the row with this very id has therefore met
/// an earlier try of the same request, not another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Uuid);

impl EventId {
    /// Takes a UUID made elsewhere. Its version is not checked: ids are compared, never interpreted.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID itself, for a store's binary column.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }

    /// No id is less.
    pub const MIN: Self = Self(Uuid::nil());

    /// No id is greater. It is not an event's: version 7 has no such UUID.
    pub const MAX: Self = Self(Uuid::max());

    /// The least id that can be made at a time, in milliseconds since 1970: a bound for a stretch of ids by time (the
    /// first 48 bits of a UUID of version 7 are its time, RFC 9562 §5.7). Later than the year 10889 is then.
    #[must_use]
    pub fn first_at(milliseconds: u64) -> Self {
        const LAST: u64 = (1 << 48) - 1;
        Self(Uuid::from_u128(u128::from(milliseconds.min(LAST)) << 80))
    }

    /// The id that follows this one. The greatest is followed by itself.
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

    /// Reads the hyphenated form, 36 characters, in either case.
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

/// The place of one attempt in its event's life: 1 is the first. Never reused for another delivery that was sent.
pub type Attempt = u32;

/// A number that goes up by one at every transition of an event's row.
///
/// A claim is given the fence it made, and a settlement is refused unless it presents the fence the row still has.
/// The attempt cannot serve for this: a release moves it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl Fence {
    /// The fence after one more transition.
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
    fn an_id_is_read_as_it_is_written() {
        let text = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e";
        assert_eq!(text.parse::<EventId>().unwrap().to_string(), text);
    }

    #[test]
    fn the_first_id_of_a_time_is_between_those_made_before_and_those_made_then() {
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
            "the end of all times"
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
