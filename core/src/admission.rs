//! What the intake decides about one request: whether it is admitted, and what its place in the store means.

use crate::event::Status;
use crate::id::EventId;
use crate::key::{IdempotencyKey, KeyError};
use alloc::string::String;
use core::fmt;
use sha2::{Digest, Sha256};

/// The digest by which two requests with one key are told to be the same: SHA-256 over the body.
///
/// Headers are left out on purpose: producers stamp each try anew (dates, signatures, trace ids).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// A fingerprint read back from a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest itself.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(")?;
        for byte in &self.0[..4] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…)")
    }
}

/// Reads the idempotency key of a request from the values of the header that its source names.
///
/// # Errors
///
/// [`KeyError`] if there is no such header, more than one, or one that is not a key.
pub fn idempotency_key<'a>(
    header: &str,
    mut values: impl Iterator<Item = &'a [u8]>,
) -> Result<IdempotencyKey, KeyError> {
    let Some(value) = values.next() else {
        return Err(KeyError::Missing { header: String::from(header) });
    };
    if values.next().is_some() {
        return Err(KeyError::Repeated { header: String::from(header) });
    }
    IdempotencyKey::parse(value)
}

/// What a source does with a key that comes again with another body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnKeyReuse {
    /// Refuse it: one key names one event.
    #[default]
    Reject,
    /// Answer with the first event, for producers that stamp a body anew when they retry.
    FirstWins,
}

/// What a store found when it was asked to insert an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The row is new and committed, and due at once.
    Inserted,
    /// The row is new and committed, and was claimed in the same moment, for the one who asked for that.
    Claimed,
    /// A row with this source and key was there.
    Existing {
        /// That row's id.
        id: EventId,
        /// That row's fingerprint.
        fingerprint: Fingerprint,
        /// Where that event stands.
        status: Status,
    },
}

/// What the producer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The event is new.
    Accepted {
        /// Its id.
        id: EventId,
        /// Where it stands.
        status: Status,
    },
    /// The event was accepted before.
    Replayed {
        /// The first event's id.
        id: EventId,
        /// Where it stands.
        status: Status,
    },
    /// The key belongs to an event with another body. Nothing was stored.
    KeyReused,
}

/// Tells what a store's answer means for the request that asked with `id` and `fingerprint`.
///
/// A row that bears the request's own id is the work of an earlier try whose reply was lost: the event is *new*.
pub fn resolve(
    id: EventId,
    fingerprint: Fingerprint,
    on_key_reuse: OnKeyReuse,
    stored: Stored,
) -> Admission {
    match stored {
        Stored::Inserted => Admission::Accepted { id, status: Status::Queued },
        Stored::Claimed => Admission::Accepted { id, status: Status::Processing },
        Stored::Existing { id: existing, status, .. } if existing == id => {
            Admission::Accepted { id, status }
        }
        Stored::Existing { id, fingerprint: first, status } => {
            if first == fingerprint || on_key_reuse == OnKeyReuse::FirstWins {
                Admission::Replayed { id, status }
            } else {
                Admission::KeyReused
            }
        }
    }
}

/// Why an event was not stored, by all the tries to store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// Nothing was stored: the store could not be used.
    Unavailable,
    /// Nothing was stored: the store refuses this event.
    Refused,
    /// It may be stored.
    Unknown,
}

impl NotStored {
    /// What is known after one more try failed in this way. A later failure does not undo an earlier try: once it is
    /// unknown whether an event is stored, only an answer of the store settles that.
    #[must_use]
    pub const fn after(self, is_in_doubt: bool) -> Self {
        if is_in_doubt { Self::Unknown } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const OURS: EventId = EventId::from_uuid(Uuid::from_u128(1));
    const THEIRS: EventId = EventId::from_uuid(Uuid::from_u128(2));

    #[test]
    fn a_fingerprint_is_shown_by_its_first_bytes() {
        // The SHA-256 of "abc" begins so (FIPS 180-4).
        assert_eq!(alloc::format!("{:?}", Fingerprint::of(b"abc")), "Fingerprint(ba7816bf…)");
    }

    fn existing(id: EventId, body: &[u8]) -> Stored {
        Stored::Existing { id, fingerprint: Fingerprint::of(body), status: Status::Retrying }
    }

    fn resolved(policy: OnKeyReuse, stored: Stored) -> Admission {
        resolve(OURS, Fingerprint::of(b"body"), policy, stored)
    }

    #[test]
    fn exactly_one_header_bears_the_key() {
        let read = |values: &[&'static [u8]]| idempotency_key("X-Id", values.iter().copied());
        assert_eq!(read(&[b"k"]).unwrap().as_str(), "k");
        assert_eq!(read(&[]), Err(KeyError::Missing { header: "X-Id".into() }));
        assert_eq!(read(&[b"k", b"k"]), Err(KeyError::Repeated { header: "X-Id".into() }));
    }

    #[test]
    fn a_later_failure_does_not_say_that_an_unknown_try_stored_nothing() {
        for last in [NotStored::Unavailable, NotStored::Refused, NotStored::Unknown] {
            assert_eq!(last.after(false), last);
            assert_eq!(last.after(true), NotStored::Unknown);
        }
    }

    #[test]
    fn a_new_row_is_accepted() {
        assert_eq!(
            resolved(OnKeyReuse::Reject, Stored::Inserted),
            Admission::Accepted { id: OURS, status: Status::Queued }
        );
        assert_eq!(
            resolved(OnKeyReuse::Reject, Stored::Claimed),
            Admission::Accepted { id: OURS, status: Status::Processing }
        );
    }

    #[test]
    fn our_own_row_is_new_whatever_its_status() {
        assert_eq!(
            resolved(OnKeyReuse::Reject, existing(OURS, b"body")),
            Admission::Accepted { id: OURS, status: Status::Retrying }
        );
    }

    #[test]
    fn the_same_body_is_a_replay_and_another_is_refused() {
        let replayed = Admission::Replayed { id: THEIRS, status: Status::Retrying };
        assert_eq!(resolved(OnKeyReuse::Reject, existing(THEIRS, b"body")), replayed);
        assert_eq!(resolved(OnKeyReuse::Reject, existing(THEIRS, b"other")), Admission::KeyReused);
        assert_eq!(resolved(OnKeyReuse::FirstWins, existing(THEIRS, b"other")), replayed);
    }
}
