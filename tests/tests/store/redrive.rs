//! Redriving: a dead letter, and nothing else.

use crate::db::Db;
use std::time::Duration;
use surehook::ports::Redriven;
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::EventId;
use uuid::Uuid;

pub(crate) async fn a_dead_letter_is_queued_again_with_a_new_budget(db: Db) {
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    assert_eq!(db.store.redrive(claim.event).await, Ok(Redriven::Queued));
    let found = db.found(claim.event).await;
    assert_eq!((found.status, found.attempt, found.budget_from, found.reason, found.settled_at), (Status::Queued, 1, Some(1), None, None));
    assert!(found.next_attempt_at.is_some());
    let again = db.claim_one("a").await;
    assert_eq!((again.attempt, again.nth), (2, 1), "attempts keep counting, the budget starts anew");
    db.settle(&again, Outcome::Delivered).await;
    assert_eq!(db.found(claim.event).await.history.len(), 2);
}

pub(crate) async fn what_is_not_dead_lettered_is_not_redriven(db: Db) {
    let event = db.accepted("a").await;
    let refused = async |status: Status| assert_eq!(db.store.redrive(event).await, Ok(Redriven::NotDeadLettered(status)));
    refused(Status::Queued).await;
    let claim = db.claim_one("a").await;
    refused(Status::Processing).await;
    db.settle(&claim, Outcome::Retry { after: Duration::ZERO }).await;
    refused(Status::Retrying).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    refused(Status::Delivered).await;
}

pub(crate) async fn an_unknown_event_is_not_found(db: Db) {
    assert_eq!(db.store.redrive(EventId::from_uuid(Uuid::now_v7())).await, Ok(Redriven::NotFound));
}
