//! Finding: the whole record of one event, its request and its body.

use crate::db::{Db, event, event_of, record};
use bytes::Bytes;
use std::time::Duration;
use surehook::ports::{FoundBody, NewEvent, OperatorStore, StoreError};
use surehook::search::{AttemptEntry, EventFilter, EventRecord, PageSize, RequestRecord, Span};
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::EventId;
use surehook_core::verdict::{DeliveryError, Verdict};
use surehook_core::worker::claims::AttemptRecord;
use uuid::Uuid;

clauses! {
    find_shows_an_event_in_each_status => HistoryNewestFirst | RetriesAtOnce,
    find_and_list_show_attempts_as_they_were_recorded => HistoryNewestFirst | ListsTheFirstAttempt,
    find_returns_nothing_for_an_unknown_event => UnknownIsAnError,
    the_request_and_the_body_are_those_that_were_accepted
        => ShowsNoQuery | ShowsTheBodyAsText | ReceivedWhenItIsShown,
    an_erased_payload_is_not_an_empty_one => ShowsErasedAsEmpty,
}

async fn find_shows_an_event_in_each_status(db: Db) {
    let event = db.accepted("a").await;
    let queued = db.found(event).await;
    assert_eq!(
        (queued.id, queued.status, queued.attempt, queued.budget_from),
        (event, Status::Queued, 0, Some(0))
    );
    assert_eq!(
        (queued.next_attempt_at, queued.settled_at, queued.reason),
        (Some(queued.received_at), None, None)
    );
    assert!(queued.history.is_empty());

    let claim = db.claim_one("a").await;
    let processing = db.found(event).await;
    assert_eq!(
        (processing.status, processing.attempt, processing.next_attempt_at),
        (Status::Processing, 1, None)
    );
    assert_eq!(processing.budget_from, Some(0));

    db.settle(&claim, Outcome::Retry { after: Duration::from_secs(100) }).await;
    let retrying = db.found(event).await;
    assert_eq!(
        (retrying.status, retrying.attempt, retrying.history.len()),
        (Status::Retrying, 1, 1)
    );
    let wait = Duration::try_from(
        retrying.next_attempt_at.unwrap().duration_since(retrying.history[0].ended_at),
    )
    .unwrap();
    assert!((99..=101).contains(&wait.as_secs()), "{wait:?}");

    db.make_due(event, Duration::from_secs(100)).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Exhausted)).await;
    let dead = db.found(event).await;
    assert_eq!(
        (dead.status, dead.reason, dead.next_attempt_at),
        (Status::DeadLettered, Some(Reason::Exhausted), None)
    );
    assert!(dead.settled_at >= Some(dead.history[1].ended_at));
    assert_eq!(
        dead.history.iter().map(|entry| entry.attempt).collect::<Vec<_>>(),
        [1, 2],
        "the history is in order of attempts"
    );
    assert_eq!(dead.received_at, queued.received_at);
}

async fn find_and_list_show_attempts_as_they_were_recorded(db: Db) {
    let answered = record(Verdict::Transient);
    let unanswered = AttemptRecord {
        ended_ago: Duration::from_secs(10),
        took: Duration::from_micros(7),
        status_code: None,
        error: Some(DeliveryError::Timeout),
        excerpt: Bytes::from_static(b"x"),
        ..answered.clone()
    };
    let event = db.accepted("a").await;
    db.accepted("another").await;
    for record in [answered.clone(), unanswered.clone()] {
        let claim = db.claim_one("a").await;
        let settled = claim.settled(Outcome::Retry { after: Duration::ZERO }, Some(record));
        assert_eq!(db.store.settle(vec![settled]).await, Ok(vec![]));
    }
    let found = db.found(event).await;
    assert_eq!((found.attempt, found.budget_from), (2, Some(0)));
    for (number, record) in [answered, unanswered].into_iter().enumerate() {
        let entry = &found.history[number];
        let expected = AttemptEntry {
            attempt: u32::try_from(number + 1).unwrap(),
            ended_at: entry.ended_at,
            took: Some(record.took),
            verdict: record.verdict,
            status_code: record.status_code,
            error: record.error.map(|error| error.as_str().to_owned()),
            excerpt: record.excerpt,
        };
        assert_eq!(*entry, expected);
    }
    assert!(found.history[1].ended_at < found.history[0].ended_at, "it ended ten seconds ago");
    assert_listed(&db, event).await;
    let claim = db.claim_one("a").await;
    assert_listed(&db, event).await;
    db.settle(&claim, Outcome::Delivered).await;
    assert_listed(&db, event).await;
}

/// A list shows an event as a search for its id does, but only its newest attempt.
async fn assert_listed(db: &Db, event: EventId) {
    let mut found = db.found(event).await;
    found.history.drain(..found.history.len() - 1);
    let size = PageSize { events: 10, looks: 10 };
    let listed = db.store.list(EventFilter::default(), Span::ALL, size).await.unwrap().events;
    assert_eq!(listed.iter().find(|listed| listed.id == event), Some(&found));
}

async fn find_returns_nothing_for_an_unknown_event(db: Db) {
    let unknown = EventId::from_uuid(Uuid::now_v7());
    assert_eq!(db.store.find(unknown).await, Ok(None));
    assert_eq!(db.store.request(unknown).await, Ok(None));
    assert_eq!(db.store.body(unknown).await, Ok(FoundBody::NotFound));
}

async fn the_request_and_the_body_are_those_that_were_accepted(db: Db) {
    let body = Bytes::from_static(b"\0\xff'{}\xc3");
    let event = NewEvent { fingerprint: Fingerprint::of(&body), body, ..event("a") };
    assert_eq!(db.store.accept(vec![event.clone()]).await, Ok(vec![Stored::Inserted]));
    db.age(event.id, Duration::from_secs(100)).await;
    let expected = RequestRecord {
        source: event.source.to_string(),
        received_at: db.found(event.id).await.received_at,
        erased_at: None,
        fingerprint: event.fingerprint,
        query: event.query,
        headers: event.headers,
        body_bytes: 6,
    };
    assert_eq!(db.store.request(event.id).await, Ok(Some(expected)));
    assert_eq!(db.store.body(event.id).await, Ok(FoundBody::Found(event.body)));
}

async fn an_erased_payload_is_not_an_empty_one(db: Db) {
    let empty = NewEvent { body: Bytes::new(), ..event_of("b", "b") };
    assert_eq!(db.store.accept(vec![empty.clone()]).await, Ok(vec![Stored::Inserted]));
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    db.age(claim.event, Duration::from_hours(3)).await;
    let before = db.store.request(claim.event).await.unwrap().unwrap();
    let erased = db.store.erase(Duration::from_hours(2), None, 100).await.unwrap();
    assert_eq!(erased.erased, 1);
    assert_eq!(db.store.body(claim.event).await, Ok(FoundBody::Erased));
    let request = db.store.request(claim.event).await.unwrap().unwrap();
    assert!(request.erased_at.is_some_and(|at| at > before.received_at), "{request:?}");
    assert_eq!(request.fingerprint, before.fingerprint);
    assert_eq!((request.query.len(), request.headers.len(), request.body_bytes), (0, 0, 0));
    assert_eq!(db.store.body(empty.id).await, Ok(FoundBody::Found(Bytes::new())));
    assert_eq!(db.store.request(empty.id).await.unwrap().unwrap().erased_at, None);
}

/// What operators can read of one event. All stores must show the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readable {
    pub(crate) record: Option<EventRecord>,
    pub(crate) request: Option<RequestRecord>,
    pub(crate) body: FoundBody,
}

/// Makes each call that reads one event.
pub(crate) async fn read(
    store: &(impl OperatorStore + ?Sized),
    event: EventId,
) -> Result<Readable, StoreError> {
    Ok(Readable {
        record: store.find(event).await?,
        request: store.request(event).await?,
        body: store.body(event).await?,
    })
}
