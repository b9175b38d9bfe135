//! Erasing payloads: only those of delivered events, after their retention.

use crate::db::{Db, demand, event, events, settlement};
use std::time::Duration;
use surehook::ports::{Erased, NewEvent, Redriven};
use surehook_core::admission::Stored;
use surehook_core::event::{Outcome, Reason, RedrivenBy, Status};

clauses! {
    retention_erases_the_payload_of_a_delivered_event_and_keeps_its_record
        => SaysErasedAndKeeps | ErasesTheFingerprint | ErasesByReception | ErasesAllButTheQuery,
    events_that_are_not_delivered_keep_their_payload => ErasesDeadLetters,
    erasing_advances_page_by_page_to_the_last_event => ErasesWithoutThePage,
    an_erased_event_cannot_be_redriven => SendsNothingOnceMore,
}

const HOUR: Duration = Duration::from_hours(1);
const KEPT: Duration = Duration::from_hours(2);

async fn erase(db: &Db) -> Erased {
    db.store.erase(KEPT, None, 100).await.unwrap()
}

async fn retention_erases_the_payload_of_a_delivered_event_and_keeps_its_record(db: Db) {
    let new = event("k");
    assert_eq!(db.store.accept(vec![new.clone()]).await, Ok(vec![Stored::Inserted]));
    let claim = db.claim_one("orders").await;
    db.settle(&claim, Outcome::Retry { after: Duration::ZERO }).await;
    db.age(new.id, HOUR * 3).await;
    let claim = db.claim_one("orders").await;
    db.settle(&claim, Outcome::Delivered).await;
    assert_eq!(
        erase(&db).await.erased,
        0,
        "the retention counts from the delivery, not from reception or an earlier attempt"
    );
    db.age(new.id, HOUR * 3).await;
    let before = db.found(new.id).await;
    assert_eq!(db.payload_size(new.id).await, i64::try_from(new.size()).unwrap());
    assert_eq!(erase(&db).await.erased, 1);
    assert_eq!(db.payload_size(new.id).await, 0);
    assert_eq!(db.found(new.id).await, before);
    let existing =
        Stored::Existing { id: new.id, fingerprint: new.fingerprint, status: Status::Delivered };
    assert_eq!(
        db.store.accept(vec![event("k")]).await,
        Ok(vec![existing]),
        "the key and the fingerprint are kept"
    );
    assert_eq!(erase(&db).await.erased, 0, "a payload is erased only once");

    // As if the clock of the process was behind.
    let young = db.claimed("young").await;
    let mut delivered = settlement(&young, Outcome::Delivered);
    delivered.record.as_mut().unwrap().ended_ago = HOUR * 3;
    assert_eq!(db.store.settle(vec![delivered]).await, Ok(vec![]));
    assert_eq!(erase(&db).await.erased, 0, "it was received within the retention");
}

async fn events_that_are_not_delivered_keep_their_payload(db: Db) {
    let queued = db.accepted("queued").await;
    let processing = db.claimed("processing").await;
    let retrying = db.claimed("retrying").await;
    db.settle(&retrying, Outcome::Retry { after: HOUR }).await;
    let dead = db.claimed("dead").await;
    db.settle(&dead, Outcome::DeadLetter(Reason::Permanent)).await;
    for event in [queued, processing.event, retrying.event, dead.event] {
        db.age(event, HOUR * 20).await;
    }
    assert_eq!(db.store.erase(Duration::ZERO, None, 100).await.unwrap().erased, 0);
    assert_eq!(db.store.redrive(dead.event, RedrivenBy::Operator).await, Ok(Redriven::Queued));
    let again = db.claim_one("dead").await;
    assert_eq!((again.query, again.headers, again.body), (dead.query, dead.headers, dead.body));
}

async fn erasing_advances_page_by_page_to_the_last_event(db: Db) {
    db.store.accept(events(0..6)).await.unwrap();
    let mut claimed = db.store.claim(vec![demand("orders", 6)]).await.unwrap().claimed;
    claimed.sort_by_key(|claim| claim.event);
    assert_eq!(
        db.store
            .settle(claimed.iter().map(|claim| settlement(claim, Outcome::Delivered)).collect())
            .await,
        Ok(vec![])
    );
    for claim in &claimed[..4] {
        db.age(claim.event, HOUR * 3).await;
    }
    let (mut after, mut pages) = (None, Vec::new());
    while pages.is_empty() || after.is_some() && pages.len() < 5 {
        let Erased { erased, reached } = db.store.erase(KEPT, after, 2).await.unwrap();
        pages.push((erased, reached.last));
        after = reached.last;
    }
    assert_eq!(
        pages,
        [
            (2, Some(claimed[1].event)),
            (2, Some(claimed[3].event)),
            (0, Some(claimed[5].event)),
            (0, None)
        ]
    );
    for (number, claim) in claimed.iter().enumerate() {
        assert_eq!(db.payload_size(claim.event).await == 0, number < 4, "{number}");
    }
    db.age(claimed[5].event, HOUR * 3).await;
    let last = db.store.erase(KEPT, Some(claimed[3].event), 2).await.unwrap();
    assert_eq!((last.erased, last.reached.last), (1, Some(claimed[5].event)));

    // An id from a clock behind does not end a pass, although its event is young.
    let behind = NewEvent { id: db.first_id(HOUR * 3), ..event("behind") };
    assert_eq!(db.store.accept(vec![behind.clone()]).await, Ok(vec![Stored::Inserted]));
    for (after, last, is_behind) in
        [(None, behind.id, true), (Some(behind.id), claimed[0].event, false)]
    {
        let reached = db.store.erase(KEPT, after, 1).await.unwrap().reached;
        assert_eq!((reached.last, reached.behind.is_some()), (Some(last), is_behind));
    }
}

async fn an_erased_event_cannot_be_redriven(db: Db) {
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    db.age(claim.event, HOUR * 3).await;
    assert_eq!(erase(&db).await.erased, 1);
    assert_eq!(db.store.redrive_delivered(claim.event).await, Ok(Redriven::Erased));
    assert_eq!(db.found(claim.event).await.status, Status::Delivered);
}
