//! Accepting: one event for each key, even if other processes accept it at the same time.

use crate::db::{Db, LEASE, demand, event, event_of, events, settlement, source};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use surehook::ports::{NewEvent, StoreError};
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::event::{Outcome, Reason, RedrivenBy, Status};
use surehook_core::id::EventId;

clauses! {
    a_new_event_is_inserted_and_queued => NewIsDueLater,
    a_new_event_with_a_lease_is_stored_as_claimed => SaysClaimedAndQueues | ClaimsTheWholeBatch | SaysClaimedAtAnotherTime,
    a_new_event_of_a_paused_source_is_queued_despite_its_lease => ClaimsWhatIsNewOfAPausedSource,
    an_accepted_event_is_visible_to_every_process => AnswersBeforeItStores,
    concurrent_accepts_of_one_key_store_one_event => NoUniqueness,
    two_processes_accept_overlapping_keys_in_opposite_orders_without_deadlock => DeadlocksUnlessSorted,
    concurrent_accepts_of_one_event_store_it_once_under_its_id => OwnIdIsRejected,
    one_key_twice_in_one_batch_stores_one_event => NoUniqueness,
    a_duplicate_does_not_affect_the_other_events_of_its_batch => DuplicateFailsItsBatch,
    results_are_in_the_order_of_the_batch => AnswersInTheOrderOfKeys,
    one_key_in_two_sources_stores_two_events => DedupesWithoutSource,
    a_retry_after_a_lost_reply_finds_the_event_under_its_id => OwnIdIsRejected,
    an_existing_key_is_answered_with_the_status_of_its_event => ExistingIsAlwaysQueued,
    a_delivered_event_repeated_beside_a_new_one_stays_delivered => ExistingIsAlwaysQueued,
    a_repeated_key_with_another_body_changes_nothing => KeepsTheNewestBody,
    a_rejected_row_rolls_back_its_whole_batch => PartOfARejectedBatchStays,
    an_empty_batch_does_nothing => NothingIsRejected,
}

/// The id of an event after it was accepted: its own, or that of the existing event with its key.
fn known_as(event: EventId, stored: Stored) -> EventId {
    match stored {
        Stored::Inserted | Stored::Claimed { .. } => event,
        Stored::Existing { id, .. } => id,
    }
}

async fn a_new_event_is_inserted_and_queued(db: Db) {
    let event = event("a");
    assert_eq!(db.store.accept(vec![event.clone()]).await, Ok(vec![Stored::Inserted]));
    let found = db.found(event.id).await;
    assert_eq!(
        (found.source.as_str(), found.key.as_str(), found.status, found.attempt),
        ("orders", "a", Status::Queued, 0)
    );
    assert_eq!(found.next_attempt_at, Some(found.received_at));
}

async fn a_new_event_with_a_lease_is_stored_as_claimed(db: Db) {
    let there = event("there");
    db.store.accept(vec![there.clone()]).await.unwrap();
    let leased = |event: NewEvent| NewEvent { lease: Some(LEASE), ..event };
    let (claimed, other) = (leased(event("claimed")), event("other"));
    let again = leased(NewEvent { id: event("there").id, ..there.clone() });
    let existing =
        Stored::Existing { id: there.id, fingerprint: there.fingerprint, status: Status::Queued };
    let stored = db.store.accept(vec![claimed.clone(), other.clone(), again]).await.unwrap();
    let found = db.found(claimed.id).await;
    let received_at = found.received_at;
    assert_eq!(stored, [Stored::Claimed { received_at }, Stored::Inserted, existing]);
    assert_eq!(
        (found.status, found.attempt, found.next_attempt_at, found.history.len()),
        (Status::Processing, 1, None, 0)
    );

    let claims = db.store.claim(vec![demand("orders", 9)]).await.unwrap();
    assert_eq!(
        claims.claimed.iter().map(|claim| claim.event).collect::<BTreeSet<_>>(),
        BTreeSet::from([there.id, other.id])
    );
    let first = claimed.clone().claimed(received_at);
    db.make_due(claimed.id, LEASE).await;
    let second = db.claim_one("orders").await;
    assert_eq!(
        (second.event, second.attempt, second.in_budget.0, second.fence),
        (claimed.id, 2, 2, first.fence.next()),
        "claimed again after the lease ended"
    );
    assert_eq!(
        db.store.settle(vec![settlement(&first, Outcome::Delivered)]).await,
        Ok(vec![claimed.id]),
        "the first claim is stale"
    );

    let more = leased(event("more"));
    let stored = db.store.accept(vec![more.clone()]).await.unwrap();
    let received_at = db.found(more.id).await.received_at;
    assert_eq!(stored, [Stored::Claimed { received_at }]);
    db.settle(&more.clone().claimed(received_at), Outcome::Delivered).await;
    assert_eq!(db.found(more.id).await.status, Status::Delivered);
}

async fn a_new_event_of_a_paused_source_is_queued_despite_its_lease(db: Db) {
    db.store.pause(source("a"), true).await.unwrap();
    let leased = |name: &str, key: &str| NewEvent { lease: Some(LEASE), ..event_of(name, key) };
    let stored = db.store.accept(vec![leased("a", "k"), leased("b", "k")]).await.unwrap();
    assert!(matches!(stored[..], [Stored::Inserted, Stored::Claimed { .. }]), "{stored:?}");
    // If a batch contains an existing event, other statements store the rest.
    let stored = db
        .store
        .accept(vec![leased("a", "k2"), leased("b", "k"), leased("b", "k2")])
        .await
        .unwrap();
    assert!(
        matches!(
            stored[..],
            [
                Stored::Inserted,
                Stored::Existing { status: Status::Processing, .. },
                Stored::Claimed { .. }
            ]
        ),
        "{stored:?}"
    );
    db.store.pause(source("a"), false).await.unwrap();
    assert_eq!(
        db.store.claim(vec![demand("a", 9), demand("b", 9)]).await.unwrap().claimed.len(),
        2
    );
}

async fn an_accepted_event_is_visible_to_every_process(db: Db) {
    let (batch, other) = (events(0..3), db.another());
    db.store.accept(batch.clone()).await.unwrap();
    for event in &batch {
        assert_eq!(other.find(event.id).await.unwrap().map(|found| found.id), Some(event.id));
    }
    assert_eq!(db.another().claim(vec![demand("orders", 9)]).await.unwrap().claimed.len(), 3);
}

async fn concurrent_accepts_of_one_key_store_one_event(db: Db) {
    let accepts = (0..100).map(|_| {
        let (store, event) = (Arc::clone(&db.store), event("same"));
        tokio::spawn(async move { (event.id, store.accept(vec![event]).await.unwrap().remove(0)) })
    });
    let answers: Vec<(EventId, Stored)> =
        join_all(accepts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|(_, stored)| *stored == Stored::Inserted).count(), 1);
    let ids: BTreeSet<EventId> =
        answers.into_iter().map(|(event, stored)| known_as(event, stored)).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!((db.count("events").await, db.count("deliveries").await), (1, 1));
}

async fn two_processes_accept_overlapping_keys_in_opposite_orders_without_deadlock(db: Db) {
    let (one, other) = (db.another(), db.another());
    for round in 0..30u32 {
        let keys = round * 100..round * 100 + 64;
        let forwards = events(keys.clone());
        // Created in this order, so that the order of ids differs from the order of keys.
        let backwards: Vec<NewEvent> = keys.rev().flat_map(|key| events(key..key + 1)).collect();
        let (first, second) = tokio::join!(
            tokio::spawn({
                let (one, batch) = (Arc::clone(&one), forwards.clone());
                async move { one.accept(batch).await }
            }),
            tokio::spawn({
                let (other, batch) = (Arc::clone(&other), backwards.clone());
                async move { other.accept(batch).await }
            })
        );
        let answers = [(forwards, first.unwrap().unwrap()), (backwards, second.unwrap().unwrap())];
        let mut known: BTreeMap<String, Vec<(EventId, bool)>> = BTreeMap::new();
        for (event, stored) in
            answers.into_iter().flat_map(|(batch, stored)| batch.into_iter().zip(stored))
        {
            known
                .entry(event.key.to_string())
                .or_default()
                .push((known_as(event.id, stored), stored == Stored::Inserted));
        }
        for (key, answers) in known {
            assert_eq!(answers[0].0, answers[1].0, "{key}");
            assert!(answers[0].1 != answers[1].1, "{key} must be new for exactly one process");
        }
    }
    assert_eq!(db.count("events").await, 30 * 64);
}

async fn concurrent_accepts_of_one_event_store_it_once_under_its_id(db: Db) {
    let other = db.another();
    for round in 0..30 {
        let batch = events(round * 10..round * 10 + 8);
        let (first, second) =
            tokio::join!(db.store.accept(batch.clone()), other.accept(batch.clone()));
        for ((event, first), second) in batch.iter().zip(first.unwrap()).zip(second.unwrap()) {
            assert_eq!(
                (known_as(event.id, first), known_as(event.id, second)),
                (event.id, event.id)
            );
            assert!((first == Stored::Inserted) != (second == Stored::Inserted));
        }
    }
}

async fn one_key_twice_in_one_batch_stores_one_event(db: Db) {
    let (first, second) = (event("twice"), event("twice"));
    let existing =
        Stored::Existing { id: first.id, fingerprint: first.fingerprint, status: Status::Queued };
    let answers = db.store.accept(vec![first.clone(), event("other"), second]).await;
    assert_eq!(answers, Ok(vec![Stored::Inserted, Stored::Inserted, existing]));
    assert_eq!((db.count("events").await, db.count("deliveries").await), (2, 2));
}

async fn a_duplicate_does_not_affect_the_other_events_of_its_batch(db: Db) {
    let first = event("key-00031");
    db.store.accept(vec![first.clone()]).await.unwrap();
    let answers = db.store.accept(events(0..64)).await.unwrap();
    for (key, answer) in answers.into_iter().enumerate() {
        let expected = if key == 31 {
            Stored::Existing {
                id: first.id,
                fingerprint: first.fingerprint,
                status: Status::Queued,
            }
        } else {
            Stored::Inserted
        };
        assert_eq!(answer, expected, "key {key}");
    }
    assert_eq!((db.count("events").await, db.count("deliveries").await), (64, 64));
}

async fn results_are_in_the_order_of_the_batch(db: Db) {
    let first = event("c");
    db.store.accept(vec![first.clone()]).await.unwrap();
    let existing =
        Stored::Existing { id: first.id, fingerprint: first.fingerprint, status: Status::Queued };
    let batch = ["d", "c", "a", "b"].map(event).to_vec();
    assert_eq!(
        db.store.accept(batch).await,
        Ok(vec![Stored::Inserted, existing, Stored::Inserted, Stored::Inserted])
    );
}

async fn a_repeated_key_with_another_body_changes_nothing(db: Db) {
    let first = event("k");
    db.store.accept(vec![first.clone()]).await.unwrap();
    let before = db.found(first.id).await;
    let body = bytes::Bytes::from_static(b"another");
    let second =
        NewEvent { fingerprint: Fingerprint::of(&body), headers: body.clone(), body, ..event("k") };
    let existing =
        Stored::Existing { id: first.id, fingerprint: first.fingerprint, status: Status::Queued };
    assert_eq!(db.store.accept(vec![second.clone()]).await, Ok(vec![existing]));
    assert_eq!((db.found(first.id).await, db.store.find(second.id).await), (before, Ok(None)));
    let claim = db.claim_one("orders").await;
    assert_eq!((claim.event, claim.headers, claim.body), (first.id, first.headers, first.body));
}

async fn one_key_in_two_sources_stores_two_events(db: Db) {
    let both = ["b", "a"].map(|name| event_of(name, "k"));
    let answers = db.store.accept(both.to_vec()).await;
    assert_eq!(answers, Ok(vec![Stored::Inserted, Stored::Inserted]));
    for event in both {
        let again = event_of(event.source.as_str(), "k");
        let existing = Stored::Existing {
            id: event.id,
            fingerprint: event.fingerprint,
            status: Status::Queued,
        };
        assert_eq!(db.store.accept(vec![again]).await, Ok(vec![existing]));
    }
}

async fn a_retry_after_a_lost_reply_finds_the_event_under_its_id(db: Db) {
    let batch = events(0..3);
    db.store.accept(batch.clone()).await.unwrap();
    let again = db.store.accept(batch.clone()).await.unwrap();
    for (event, stored) in batch.iter().zip(again) {
        assert_eq!(
            stored,
            Stored::Existing {
                id: event.id,
                fingerprint: event.fingerprint,
                status: Status::Queued
            }
        );
    }
}

async fn a_delivered_event_repeated_beside_a_new_one_stays_delivered(db: Db) {
    let old = event("old");
    db.store.accept(vec![old.clone()]).await.unwrap();
    let claim = db.claim_one("orders").await;
    db.settle(&claim, Outcome::Delivered).await;
    let existing =
        Stored::Existing { id: old.id, fingerprint: old.fingerprint, status: Status::Delivered };
    // The producer's retry, first under the same id, then under a new one.
    for (again, new) in [(old.clone(), event("new")), (event("old"), event("newer"))] {
        let answers = db.store.accept(vec![again, new]).await;
        assert_eq!(answers, Ok(vec![existing, Stored::Inserted]));
    }
    assert_eq!((db.count("events").await, db.count("deliveries").await), (3, 2));
    assert_eq!(db.found(old.id).await.status, Status::Delivered);
}

async fn an_existing_key_is_answered_with_the_status_of_its_event(db: Db) {
    let first = event("k");
    db.store.accept(vec![first.clone()]).await.unwrap();
    let replay = async |expected: Status| {
        let stored = db.store.accept(vec![event("k")]).await.unwrap().remove(0);
        assert_eq!(
            stored,
            Stored::Existing { id: first.id, fingerprint: first.fingerprint, status: expected }
        );
    };
    replay(Status::Queued).await;
    let claim = db.claim_one("orders").await;
    replay(Status::Processing).await;
    db.settle(&claim, Outcome::Retry { after: std::time::Duration::ZERO }).await;
    replay(Status::Retrying).await;
    let claim = db.claim_one("orders").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    replay(Status::DeadLettered).await;
    db.store.redrive(first.id, RedrivenBy::Operator).await.unwrap();
    let claim = db.store.claim(vec![demand("orders", 1)]).await.unwrap().claimed.remove(0);
    db.store.settle(vec![settlement(&claim, Outcome::Delivered)]).await.unwrap();
    replay(Status::Delivered).await;
}

async fn a_rejected_row_rolls_back_its_whole_batch(db: Db) {
    let first = event("first");
    db.store.accept(vec![first.clone()]).await.unwrap();
    // An id that belongs to another event.
    let mut batch = events(0..8);
    batch[5].id = first.id;
    let refused = db.store.accept(batch.clone()).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    assert_eq!((db.count("events").await, db.count("deliveries").await), (1, 1));
    batch.remove(5);
    assert_eq!(db.store.accept(batch).await, Ok(vec![Stored::Inserted; 7]));
}

async fn an_empty_batch_does_nothing(db: Db) {
    assert_eq!(db.store.accept(vec![]).await, Ok(vec![]));
    assert_eq!(db.store.settle(vec![]).await, Ok(vec![]));
    assert!(db.store.claim(vec![]).await.unwrap().claimed.is_empty());
}
