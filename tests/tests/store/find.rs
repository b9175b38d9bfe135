//! Finding: the whole record of one event.

use crate::db::Db;
use std::time::Duration;
use surehook::ports::{OperatorStore, StoreError};
use surehook::search::EventRecord;
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::EventId;
use uuid::Uuid;

clauses! {
    find_shows_an_event_in_each_status => HistoryNewestFirst | RetriesAtOnce,
    find_returns_nothing_for_an_unknown_event => UnknownIsAnError,
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

async fn find_returns_nothing_for_an_unknown_event(db: Db) {
    assert_eq!(db.store.find(EventId::from_uuid(Uuid::now_v7())).await, Ok(None));
}

/// What operators can read of one event. All stores must show the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readable {
    pub(crate) record: Option<EventRecord>,
}

/// Makes each call that reads one event.
pub(crate) async fn read(
    store: &(impl OperatorStore + ?Sized),
    event: EventId,
) -> Result<Readable, StoreError> {
    Ok(Readable { record: store.find(event).await? })
}
