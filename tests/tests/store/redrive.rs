//! Redriving: dead letters, and delivered events on request, but no others.

use crate::db::{Db, LEASE, event_of, settlement};
use std::time::Duration;
use surehook::ports::Redriven;
use surehook_core::admission::Stored;
use surehook_core::event::{Outcome, Reason, RedrivenBy, Status};
use surehook_core::id::EventId;
use uuid::Uuid;

clauses! {
    a_dead_letter_is_queued_again_with_a_new_budget => RedriveKeepsTheBudget | RedriveForgetsAttempts,
    only_dead_letters_are_redriven => RedrivesWhatIsAlive,
    redriving_an_unknown_event_is_not_found => RedrivesWhatIsNot,
    a_delivered_event_is_redriven_on_request => RedrivesDeliveredAsNew,
    a_claim_before_a_redrive_cannot_settle_the_redriven_event => RedrivesDeliveredUnderAnOldFence,
    redrive_delivered_refuses_events_in_another_status => DeliversAgainWhateverItIs,
    only_one_of_several_concurrent_redrives_of_a_delivered_event_counts => DeliversAgainWhateverItIs,
}

async fn a_dead_letter_is_queued_again_with_a_new_budget(db: Db) {
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    assert_eq!(db.store.redrive(claim.event, RedrivenBy::Operator).await, Ok(Redriven::Queued));
    let found = db.found(claim.event).await;
    assert_eq!(
        (found.status, found.attempt, found.budget_from, found.reason, found.settled_at),
        (Status::Queued, 1, Some(1), None, None)
    );
    assert!(found.next_attempt_at.is_some());
    let again = db.claim_one("a").await;
    assert_eq!(
        (again.attempt, again.in_budget.0),
        (2, 1),
        "the attempt number continues, the budget starts anew"
    );
    db.settle(&again, Outcome::Delivered).await;
    assert_eq!(db.found(claim.event).await.history.len(), 2);
}

async fn only_dead_letters_are_redriven(db: Db) {
    let event = db.accepted("a").await;
    let refused = async |status: Status| {
        assert_eq!(
            db.store.redrive(event, RedrivenBy::Operator).await,
            Ok(Redriven::WrongStatus(status))
        );
    };
    refused(Status::Queued).await;
    let claim = db.claim_one("a").await;
    refused(Status::Processing).await;
    db.settle(&claim, Outcome::Retry { after: Duration::ZERO }).await;
    refused(Status::Retrying).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    refused(Status::Delivered).await;
}

async fn redriving_an_unknown_event_is_not_found(db: Db) {
    assert_eq!(
        db.store.redrive(EventId::from_uuid(Uuid::now_v7()), RedrivenBy::Operator).await,
        Ok(Redriven::NotFound)
    );
}

async fn a_delivered_event_is_redriven_on_request(db: Db) {
    let other = db.claimed("with-more-attempts").await;
    db.settle(&other, Outcome::Retry { after: Duration::ZERO }).await;
    db.settle(&db.claim_one("with-more-attempts").await, Outcome::Delivered).await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    for nth in 1..4 {
        assert_eq!(db.store.redrive_delivered(claim.event).await, Ok(Redriven::Queued));
        let found = db.found(claim.event).await;
        assert_eq!(
            (found.status, found.attempt, found.budget_from, found.settled_at),
            (Status::Queued, nth, Some(nth), None)
        );
        assert_eq!(found.next_attempt_at, found.actions.last().map(|entry| entry.at));
        let existing = db.store.accept(vec![event_of("a", "a")]).await.unwrap();
        assert!(
            matches!(existing[0], Stored::Existing { id, status: Status::Queued, .. } if id == claim.event),
            "{existing:?}"
        );
        let again = db.claim_one("a").await;
        assert_eq!(
            (again.event, again.attempt, again.in_budget.0),
            (claim.event, nth + 1, 1),
            "the attempt number continues, the budget starts anew"
        );
        assert_eq!(
            (again.query.clone(), again.headers.clone(), again.body.clone()),
            (claim.query.clone(), claim.headers.clone(), claim.body.clone())
        );
        db.settle(&again, Outcome::Delivered).await;
        let found = db.found(claim.event).await;
        assert_eq!(
            (found.status, found.history.len()),
            (Status::Delivered, again.attempt as usize)
        );
    }
}

async fn a_claim_before_a_redrive_cannot_settle_the_redriven_event(db: Db) {
    // Its lease expired, another process delivered the event, and an operator redrives it.
    let early = db.claimed("a").await;
    db.make_due(early.event, LEASE).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    assert_eq!(db.store.redrive_delivered(claim.event).await, Ok(Redriven::Queued));
    let (fence, _) = db.fence_and_due(claim.event).await;
    assert!(fence > claim.fence.0 + 1, "{fence} is not greater than the fence of the delivery");
    let again = db.claim_one("a").await;
    for stale in [&early, &claim] {
        assert_eq!(
            db.store.settle(vec![settlement(stale, Outcome::Delivered)]).await,
            Ok(vec![again.event])
        );
    }
    assert_eq!(db.found(again.event).await.status, Status::Processing);
    db.settle(&again, Outcome::Delivered).await;
}

async fn redrive_delivered_refuses_events_in_another_status(db: Db) {
    assert_eq!(
        db.store.redrive_delivered(EventId::from_uuid(Uuid::now_v7())).await,
        Ok(Redriven::NotFound)
    );
    let event = db.accepted("a").await;
    let refused = async |status: Status| {
        assert_eq!(db.store.redrive_delivered(event).await, Ok(Redriven::WrongStatus(status)));
    };
    refused(Status::Queued).await;
    let claim = db.claim_one("a").await;
    refused(Status::Processing).await;
    db.settle(&claim, Outcome::Retry { after: Duration::ZERO }).await;
    refused(Status::Retrying).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    refused(Status::DeadLettered).await;
}

async fn only_one_of_several_concurrent_redrives_of_a_delivered_event_counts(db: Db) {
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    let stores: Vec<_> = (0..4).map(|_| db.another()).collect();
    for attempt in 1..10 {
        let answers = futures::future::join_all(
            stores.iter().map(|store| store.redrive_delivered(claim.event)),
        )
        .await;
        let queued = answers.iter().filter(|answer| **answer == Ok(Redriven::Queued)).count();
        assert_eq!(queued, 1, "{answers:?}");
        assert_eq!(
            answers
                .iter()
                .filter(|answer| **answer == Ok(Redriven::WrongStatus(Status::Queued)))
                .count(),
            3,
            "{answers:?}"
        );
        let again = db.claim_one("a").await;
        assert_eq!(again.attempt, attempt + 1);
        db.settle(&again, Outcome::Delivered).await;
    }
}
