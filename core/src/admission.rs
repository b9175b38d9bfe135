//! The fingerprint of a request, and what the store's result for it means.

use crate::event::Status;
use crate::id::EventId;
use core::fmt;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// SHA-256 of a body. Two requests with the same idempotency key are the same request if their
/// fingerprints are equal.
///
/// Headers are excluded on purpose: producers set some of them anew for each try (dates,
/// signatures, trace ids).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Computes the fingerprint of a body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// Wraps a fingerprint that was read from a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    /// All bytes in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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

/// What a source does when an idempotency key is used again with a different body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnKeyReuse {
    /// Refuse the request: one key identifies one event.
    #[default]
    Reject,
    /// Answer with the first event. For producers that change the body when they retry.
    FirstWins,
}

/// What a store found when it inserted an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The row is new and committed, and due at once.
    Inserted,
    /// The row is new and committed, and was claimed on insert for the worker of this process.
    Claimed {
        /// When the event was stored, by the store's clock.
        received_at: Timestamp,
    },
    /// The store already has a row with this source and key.
    Existing {
        /// That row's id.
        id: EventId,
        /// That row's fingerprint.
        fingerprint: Fingerprint,
        /// The present status of that event.
        status: Status,
    },
}

impl Stored {
    /// Whether the row is new and was claimed on insert.
    #[must_use]
    pub const fn is_claimed(self) -> bool {
        matches!(self, Self::Claimed { .. })
    }
}

/// The answer to the producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The event is new.
    Accepted {
        /// The id of the event.
        id: EventId,
        /// Its present status.
        status: Status,
    },
    /// The event was accepted before: this is a replay.
    Replayed {
        /// The id of the first event.
        id: EventId,
        /// Its present status.
        status: Status,
    },
    /// The key belongs to an event with a different body. Nothing was stored.
    KeyReused {
        /// The id of that event.
        first: EventId,
    },
}

impl Admission {
    /// The dead letter that is redriven because its producer has sent it again.
    /// `redrive_on_replay` is a setting of the source.
    ///
    /// ```
    /// use surehook_core::admission::Admission;
    /// use surehook_core::event::Status;
    /// use surehook_core::id::EventId;
    ///
    /// let replayed = |status| Admission::Replayed { id: EventId::MIN, status };
    /// assert_eq!(replayed(Status::DeadLettered).redrives(true), Some(EventId::MIN));
    /// assert_eq!(replayed(Status::DeadLettered).redrives(false), None);
    /// assert_eq!(replayed(Status::Retrying).redrives(true), None);
    /// ```
    #[must_use]
    pub fn redrives(self, redrive_on_replay: bool) -> Option<EventId> {
        match self {
            Self::Replayed { id, status: Status::DeadLettered } => redrive_on_replay.then_some(id),
            Self::Accepted { .. } | Self::Replayed { .. } | Self::KeyReused { .. } => None,
        }
    }
}

/// Decides the answer to the request with this `id` and `fingerprint` from the store's result.
///
/// If the existing row has the request's own id, an earlier try of this request was committed and
/// its response was lost. So the event counts as *new*.
pub fn resolve(
    id: EventId,
    fingerprint: Fingerprint,
    on_key_reuse: OnKeyReuse,
    stored: Stored,
) -> Admission {
    match stored {
        Stored::Inserted => Admission::Accepted { id, status: Status::Queued },
        Stored::Claimed { .. } => Admission::Accepted { id, status: Status::Processing },
        Stored::Existing { id: existing, status, .. } if existing == id => {
            Admission::Accepted { id, status }
        }
        Stored::Existing { id, fingerprint: first, status } => {
            if first == fingerprint || on_key_reuse == OnKeyReuse::FirstWins {
                Admission::Replayed { id, status }
            } else {
                Admission::KeyReused { first: id }
            }
        }
    }
}

/// Why an event was not stored, after all tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// Nothing was stored: the store is unavailable.
    Unavailable,
    /// Nothing was stored: the store rejects this event.
    Refused,
    /// The event may be stored.
    Unknown,
}

impl NotStored {
    /// What is known after another try failed in this way. `is_in_doubt` says that the outcome of
    /// an earlier try is unknown. A later failure does not resolve that doubt; only a result of the
    /// store does.
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
        // The SHA-256 of "abc" starts with these bytes (FIPS 180-4).
        assert_eq!(alloc::format!("{:?}", Fingerprint::of(b"abc")), "Fingerprint(ba7816bf…)");
    }

    fn existing(id: EventId, body: &[u8]) -> Stored {
        Stored::Existing { id, fingerprint: Fingerprint::of(body), status: Status::Retrying }
    }

    fn resolved(policy: OnKeyReuse, stored: Stored) -> Admission {
        resolve(OURS, Fingerprint::of(b"body"), policy, stored)
    }

    #[test]
    fn a_later_failure_does_not_resolve_an_unknown_outcome() {
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
            resolved(OnKeyReuse::Reject, Stored::Claimed { received_at: Timestamp::UNIX_EPOCH }),
            Admission::Accepted { id: OURS, status: Status::Processing }
        );
    }

    #[test]
    fn only_a_replay_of_a_dead_letter_redrives_it() {
        let fingerprint = Fingerprint::of(b"body");
        for status in Status::ALL {
            for (id, redriven) in [
                (THEIRS, (status == Status::DeadLettered).then_some(THEIRS)),
                // An earlier try of this request was committed and dead-lettered since.
                (OURS, None),
            ] {
                let stored = Stored::Existing { id, fingerprint, status };
                let admission = resolved(OnKeyReuse::Reject, stored);
                assert_eq!(admission.redrives(true), redriven, "{status:?}");
                assert_eq!(admission.redrives(false), None);
            }
        }
        let reused = resolved(OnKeyReuse::Reject, existing(THEIRS, b"other"));
        let new = resolved(OnKeyReuse::Reject, Stored::Inserted);
        assert_eq!((reused.redrives(true), new.redrives(true)), (None, None));
    }

    #[test]
    fn a_row_with_the_requests_own_id_is_accepted_as_new() {
        assert_eq!(
            resolved(OnKeyReuse::Reject, existing(OURS, b"body")),
            Admission::Accepted { id: OURS, status: Status::Retrying }
        );
    }

    #[test]
    fn the_same_body_is_a_replay_and_a_different_one_is_refused() {
        let replayed = Admission::Replayed { id: THEIRS, status: Status::Retrying };
        assert_eq!(resolved(OnKeyReuse::Reject, existing(THEIRS, b"body")), replayed);
        let refused = Admission::KeyReused { first: THEIRS };
        assert_eq!(resolved(OnKeyReuse::Reject, existing(THEIRS, b"other")), refused);
        assert_eq!(resolved(OnKeyReuse::FirstWins, existing(THEIRS, b"other")), replayed);
    }
}
