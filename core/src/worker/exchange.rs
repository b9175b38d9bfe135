//! What a worker and its store hand each other: demands, claims and settlements. Plain data.

use crate::event::Outcome;
use crate::id::{Attempt, EventId, Fence};
use crate::source::SourceName;
use crate::verdict::{DeliveryError, Verdict};
use alloc::borrow::Cow;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// One source's part of a claim: how many due events are wanted, and on what terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The source whose events are wanted.
    pub source: SourceName,
    /// At most so many. At least 1.
    pub limit: u32,
    /// The limit in bytes of all events that are given out. One that does not fit stays due, and those that
    /// were due after it do so too; the answer tells its size.
    pub bytes: usize,
    /// How long the claim holds each event.
    pub lease: Duration,
    /// An event that has used up so many attempts of its budget is dead-lettered and not given out.
    pub max_attempts: u32,
}

/// One event that was claimed: everything that a delivery needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The event.
    pub event: EventId,
    /// Its source.
    pub source: SourceName,
    /// The fence that this claim made; its settlement presents it.
    pub fence: Fence,
    /// The number of the attempt that this claim is for, from 1.
    pub attempt: Attempt,
    /// Which attempt of the event's present budget this is, from 1.
    pub nth: u32,
    /// How long ago the event was stored, by the store's clock, when it was claimed.
    pub age: Duration,
    /// The headers to forward, as the intake encoded them.
    pub headers: Bytes,
    /// The body, byte for byte.
    pub body: Bytes,
}

impl Claim {
    /// The claim of an event that was claimed in the moment in which it was stored.
    #[must_use]
    pub fn first(event: EventId, source: SourceName, headers: Bytes, body: Bytes) -> Self {
        Self {
            event,
            source,
            fence: Fence::default().next(),
            attempt: 1,
            nth: 1,
            age: Duration::ZERO,
            headers,
            body,
        }
    }

    /// The memory that this claim's bytes take.
    #[must_use]
    pub fn size(&self) -> usize {
        self.headers.len() + self.body.len()
    }

    /// The end of this claim, at the moment that it was made.
    #[must_use]
    pub fn settled(&self, outcome: Outcome, record: Option<AttemptRecord>) -> Settlement {
        let Self { event, fence, attempt, age, .. } = *self;
        Settlement { event, source: self.source.clone(), fence, attempt, outcome, age, record }
    }
}

/// An event that a claim found with no attempts left and dead-lettered, unsent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buried {
    /// The event.
    pub event: EventId,
    /// Its source.
    pub source: SourceName,
    /// The last attempt it had.
    pub attempt: Attempt,
}

/// A store's answer to a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Events to deliver, at most as many of each source as were wanted.
    pub claimed: Vec<Claim>,
    /// Events that were dead-lettered instead, for the log. They count against the limit.
    pub buried: Vec<Buried>,
    /// For each source of which not all was given out because it did not fit: the first event that stayed.
    pub held_back: Vec<HeldBack>,
}

/// The next event of a source stayed due, because it did not fit into the [bytes](Demand::bytes) that were left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The source.
    pub source: SourceName,
    /// The [size](Claim::size) of the event.
    pub size: usize,
}

/// The end of one claim, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The event.
    pub event: EventId,
    /// Its source, for the log.
    pub source: SourceName,
    /// The fence of the claim. The store refuses the settlement if the row has moved on.
    pub fence: Fence,
    /// The number of the attempt.
    pub attempt: Attempt,
    /// What is to become of the event.
    pub outcome: Outcome,
    /// How old the event was when this claim of it ended: when the reply was there, or it was given back. By up to the
    /// claim's round trip too much.
    pub age: Duration,
    /// The attempt's entry in the event's history; `None` if nothing was sent.
    pub record: Option<AttemptRecord>,
}

impl Settlement {
    /// The entry that a store writes for this settlement.
    ///
    /// A release sent nothing and has none. A delivery always has one: the last attempt is what tells when an event that
    /// was delivered ended.
    #[must_use]
    pub fn entry(&self) -> Option<Cow<'_, AttemptRecord>> {
        match (self.outcome, &self.record) {
            (Outcome::Release, _) => None,
            (_, Some(record)) => Some(Cow::Borrowed(record)),
            (Outcome::Delivered, None) => Some(Cow::Owned(AttemptRecord {
                ended_ago: Duration::ZERO,
                took: Duration::ZERO,
                verdict: Verdict::Delivered,
                status_code: None,
                error: None,
                excerpt: Bytes::new(),
            })),
            (Outcome::Retry { .. } | Outcome::DeadLetter(_) | Outcome::CutOff, None) => None,
        }
    }
}

/// One attempt's entry in its event's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    /// How long before this settlement was handed to the store the attempt ended.
    pub ended_ago: Duration,
    /// How long the delivery took.
    pub took: Duration,
    /// The judgement on it.
    pub verdict: Verdict,
    /// The response's status code, if a response came.
    pub status_code: Option<u16>,
    /// Why no complete reply came, if none did.
    pub error: Option<DeliveryError>,
    /// The first bytes of the response's body.
    pub excerpt: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Delivery;
    use uuid::Uuid;

    fn claim() -> Claim {
        let (headers, body) = (Bytes::from_static(b"a: b"), Bytes::from_static(b"a body"));
        let (event, source) =
            (EventId::from_uuid(Uuid::from_u128(1)), SourceName::parse("a").unwrap());
        Claim {
            event,
            source,
            fence: Fence(1),
            attempt: 1,
            nth: 1,
            age: Duration::ZERO,
            headers,
            body,
        }
    }

    #[test]
    fn the_first_claim_is_the_one_that_a_new_row_would_give() {
        let new = Delivery::accepted().claim(Duration::from_secs(1), 1).unwrap().delivery;
        let Claim { event, source, headers, body, .. } = claim();
        let first = Claim::first(event, source, headers, body);
        assert_eq!((first.fence, first.attempt, first.nth), (new.fence, new.attempt, new.used()));
    }

    #[test]
    fn a_claim_takes_the_memory_of_its_headers_and_its_body() {
        assert_eq!(claim().size(), 10);
    }

    #[test]
    fn what_was_sent_has_an_entry_and_a_delivery_always_has_one() {
        let record = AttemptRecord {
            ended_ago: Duration::ZERO,
            took: Duration::from_millis(3),
            verdict: Verdict::Transient,
            status_code: Some(503),
            error: None,
            excerpt: Bytes::new(),
        };
        let verdict = |outcome, record| {
            claim().settled(outcome, record).entry().map(|entry| (entry.verdict, entry.status_code))
        };
        let retry = Outcome::Retry { after: Duration::ZERO };
        assert_eq!(verdict(retry, Some(record.clone())), Some((Verdict::Transient, Some(503))));
        assert_eq!(verdict(Outcome::Delivered, None), Some((Verdict::Delivered, None)));
        assert_eq!((verdict(retry, None), verdict(Outcome::Release, Some(record))), (None, None));
    }
}
