//! What a worker and its store exchange: demands, claims and settlements. Plain data.

use crate::event::{Outcome, Reason};
use crate::id::{Attempt, BudgetAttempt, EventId, Fence};
use crate::source::SourceName;
use crate::verdict::{DeliveryError, Verdict};
use alloc::borrow::Cow;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;
use jiff::Timestamp;

/// The part of a claim for one source: the number of due events, and the terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The source whose events are claimed.
    pub source: SourceName,
    /// The maximum number of events. At least 1.
    pub limit: u32,
    /// The maximum total size of the events in bytes. An event that does not fit stays due, and so
    /// do those that were due after it. The answer has its size.
    pub bytes: usize,
    /// How long the claim holds each event.
    pub lease: Duration,
    /// An event that has used up this number of attempts of its budget is dead-lettered and not
    /// returned.
    pub max_attempts: u32,
}

/// A claimed event, with everything that its delivery needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The id of the event.
    pub event: EventId,
    /// The source of the event.
    pub source: SourceName,
    /// The fence that this claim created. Its settlement must carry it.
    pub fence: Fence,
    /// The number of the attempt that this claim is for, from 1.
    pub attempt: Attempt,
    /// The number of the attempt within the present budget, from 1.
    pub in_budget: BudgetAttempt,
    /// The time from storing the event to this claim, by the store's clock.
    pub age: Duration,
    /// When the event was stored, by the store's clock. The same at each claim.
    pub received_at: Timestamp,
    /// The query of the producer's request, as it was posted. Empty if there is none.
    pub query: Bytes,
    /// The headers to forward, as encoded by the intake.
    pub headers: Bytes,
    /// The body, exactly as received.
    pub body: Bytes,
}

impl Claim {
    /// The claim of an event that was claimed on insert.
    #[must_use]
    pub fn first(
        event: EventId,
        source: SourceName,
        received_at: Timestamp,
        query: Bytes,
        headers: Bytes,
        body: Bytes,
    ) -> Self {
        Self {
            event,
            source,
            fence: Fence::default().next(),
            attempt: 1,
            in_budget: BudgetAttempt(1),
            age: Duration::ZERO,
            received_at,
            query,
            headers,
            body,
        }
    }

    /// The size of its query, headers and body in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.query.len() + self.headers.len() + self.body.len()
    }

    /// Creates the settlement of this claim. Its age is the age at the time of the claim.
    #[must_use]
    pub fn settled(&self, outcome: Outcome, record: Option<AttemptRecord>) -> Settlement {
        let Self { event, fence, attempt, age, .. } = *self;
        Settlement { event, source: self.source.clone(), fence, attempt, outcome, age, record }
    }
}

/// An event that a claim dead-lettered without a delivery, because it had no attempts left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLettered {
    /// The id of the event.
    pub event: EventId,
    /// The source of the event.
    pub source: SourceName,
    /// The number of its last attempt.
    pub attempt: Attempt,
    /// Why it had none left.
    pub reason: Reason,
}

/// The store's answer to a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Events to deliver. For each source, at most the requested number.
    pub claimed: Vec<Claim>,
    /// Events that were dead-lettered instead, for the log. They count against the limit.
    pub dead_lettered: Vec<DeadLettered>,
    /// For each source with an event that did not fit: the first such event.
    pub held_back: Vec<HeldBack>,
}

/// The next due event of a source did not fit into the remaining [bytes](Demand::bytes), and stays
/// due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The source of the event.
    pub source: SourceName,
    /// The [size](Claim::size) of the event.
    pub size: usize,
}

/// The result of one claim, to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The id of the event.
    pub event: EventId,
    /// The source of the event, for the log.
    pub source: SourceName,
    /// The fence of the claim. The store refuses the settlement if the row has changed since.
    pub fence: Fence,
    /// The number of the attempt.
    pub attempt: Attempt,
    /// What happens to the event.
    pub outcome: Outcome,
    /// Age of the event at the end of this claim (response received, or event released). It is too
    /// large by at most the claim's round trip.
    pub age: Duration,
    /// The attempt's entry in the event's history. `None` if nothing was sent.
    pub record: Option<AttemptRecord>,
}

impl Settlement {
    /// The history entry that a store writes for this settlement.
    ///
    /// A release has none, because nothing was sent. A delivery always has one, because the last
    /// attempt tells when a delivered event was finished.
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

/// The entry of one attempt in its event's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    /// The time from the end of the attempt until this settlement was sent to the store.
    pub ended_ago: Duration,
    /// The duration of the delivery.
    pub took: Duration,
    /// The verdict on the attempt.
    pub verdict: Verdict,
    /// The status code, if there was a response.
    pub status_code: Option<u16>,
    /// Why there was no complete response head, if so.
    pub error: Option<DeliveryError>,
    /// The first bytes of the response's body.
    pub excerpt: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DeliveryState;
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
            in_budget: BudgetAttempt(1),
            age: Duration::ZERO,
            received_at: Timestamp::UNIX_EPOCH,
            query: Bytes::from_static(b"q=1"),
            headers,
            body,
        }
    }

    #[test]
    fn a_claim_on_insert_equals_the_first_claim_of_a_new_row() {
        let new = DeliveryState::accepted().claim(Duration::from_secs(1), 1).unwrap().delivery;
        let Claim { event, source, received_at, query, headers, body, .. } = claim();
        let first = Claim::first(event, source, received_at, query, headers, body);
        assert_eq!(
            (first.fence, first.attempt, first.in_budget),
            (new.fence, new.attempt, new.in_budget())
        );
    }

    #[test]
    fn the_size_of_a_claim_is_that_of_its_query_headers_and_body() {
        assert_eq!(claim().size(), 13);
    }

    #[test]
    fn a_release_has_no_history_entry_and_a_delivery_has_one() {
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
