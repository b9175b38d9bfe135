//! Settling: only by the holder of the newest claim, and only once.

use crate::db::{Db, LEASE, demand, events, settlement};
use std::time::Duration;
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::{EventId, Fence};
use surehook_core::verdict::{DeliveryError, Verdict};
use surehook_core::worker::claims::Settlement;
use uuid::Uuid;

clauses! {
    a_delivered_event_ends_with_an_attempt_in_its_history => ForgetsRecords | DeliveredStaysOwed,
    a_settlement_is_refused_after_the_event_was_claimed_again => ForgetsTheFence | NeverRefuses,
    a_repeated_settlement_is_refused_and_changes_nothing => NeverRefuses | RecordsWhatItRefuses,
    a_stale_settlement_does_not_affect_its_batch => StaleFailsItsBatch,
    two_settlements_of_one_claim_in_one_batch_settle_it_once => LastOfABatchWins,
    two_claims_of_one_event_in_one_batch_are_distinguished => RefusesByEventAlone,
    settlements_of_unknown_events_and_fences_are_refused => NeverRefuses,
    a_delivery_without_a_record_still_has_an_end_time => BareDeliveryHasNoEntry,
    an_attempt_has_the_time_of_its_end_not_of_its_settlement => EndsWhenItIsSettled,
}

const LATER: Outcome = Outcome::Retry { after: Duration::from_hours(1) };

async fn a_delivered_event_ends_with_an_attempt_in_its_history(db: Db) {
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    let found = db.found(claim.event).await;
    assert_eq!(
        (found.status, found.attempt, found.budget_from, found.next_attempt_at),
        (Status::Delivered, 1, None, None)
    );
    let [attempt] = &found.history[..] else { panic!("{:?}", found.history) };
    assert_eq!(found.settled_at, Some(attempt.ended_at));
    assert_eq!(
        (attempt.attempt, attempt.verdict, attempt.status_code),
        (1, Verdict::Delivered, Some(503))
    );
    assert_eq!(
        (attempt.took, &attempt.excerpt[..]),
        (Some(Duration::from_micros(12_345)), &b"try \0 later \xff"[..])
    );
    assert_eq!(db.count("deliveries").await, 0, "no delivery must be left");
}

async fn a_settlement_is_refused_after_the_event_was_claimed_again(db: Db) {
    let slow = db.claimed("a").await;
    db.make_due(slow.event, LEASE).await;
    let newer = db.claim_one("a").await;
    for outcome in [
        Outcome::Delivered,
        LATER,
        Outcome::DeadLetter(Reason::Permanent),
        Outcome::Release,
        Outcome::CutOff,
    ] {
        assert_eq!(
            db.store.settle(vec![settlement(&slow, outcome)]).await,
            Ok(vec![slow.event]),
            "{outcome:?}"
        );
    }
    let found = db.found(slow.event).await;
    assert_eq!((found.status, found.attempt, found.history.len()), (Status::Processing, 2, 1));
    db.settle(&newer, Outcome::Delivered).await;
}

async fn a_repeated_settlement_is_refused_and_changes_nothing(db: Db) {
    for (key, outcome) in [
        ("a", Outcome::Delivered),
        ("b", LATER),
        ("c", Outcome::DeadLetter(Reason::Exhausted)),
        ("d", Outcome::Release),
        ("e", Outcome::CutOff),
    ] {
        let claim = db.claimed(key).await;
        db.settle(&claim, outcome).await;
        let settled = db.found(claim.event).await;
        assert_eq!(
            db.store.settle(vec![settlement(&claim, outcome)]).await,
            Ok(vec![claim.event]),
            "{outcome:?}"
        );
        assert_eq!(db.found(claim.event).await, settled);
    }
}

async fn a_stale_settlement_does_not_affect_its_batch(db: Db) {
    db.store.accept(events(0..20)).await.unwrap();
    let claimed = db.store.claim(vec![demand("orders", 20)]).await.unwrap().claimed;
    let stale = &claimed[7];
    db.settle(stale, Outcome::Release).await;
    let batch = claimed.iter().map(|claim| settlement(claim, Outcome::Delivered)).collect();
    assert_eq!(db.store.settle(batch).await, Ok(vec![stale.event]));
    assert_eq!((db.count("deliveries").await, db.count("attempts").await), (1, 19));
}

async fn two_settlements_of_one_claim_in_one_batch_settle_it_once(db: Db) {
    let claim = db.claimed("a").await;
    let batch = vec![settlement(&claim, LATER), settlement(&claim, Outcome::Delivered)];
    assert_eq!(db.store.settle(batch).await, Ok(vec![claim.event]));
    assert_eq!(db.found(claim.event).await.status, Status::Retrying);
}

async fn two_claims_of_one_event_in_one_batch_are_distinguished(db: Db) {
    let slow = db.claimed("a").await;
    db.make_due(slow.event, LEASE).await;
    let newer = db.claim_one("a").await;
    let batch = vec![settlement(&newer, LATER), settlement(&slow, Outcome::Delivered)];
    assert_eq!(db.store.settle(batch).await, Ok(vec![slow.event]));
    assert_eq!(db.found(slow.event).await.status, Status::Retrying);
}

async fn settlements_of_unknown_events_and_fences_are_refused(db: Db) {
    let claim = db.claimed("a").await;
    let unknown = Settlement {
        event: EventId::from_uuid(Uuid::now_v7()),
        ..settlement(&claim, Outcome::Delivered)
    };
    let unheard = Settlement { fence: Fence(u64::MAX), ..settlement(&claim, Outcome::Delivered) };
    assert_eq!(
        db.store.settle(vec![unknown.clone(), unheard.clone()]).await.map(|mut refused| {
            refused.sort();
            refused
        }),
        {
            let mut both = vec![unknown.event, unheard.event];
            both.sort();
            Ok(both)
        }
    );
    assert_eq!(db.count("attempts").await, 0);
}

async fn a_delivery_without_a_record_still_has_an_end_time(db: Db) {
    let claim = db.claimed("a").await;
    let bare = Settlement { record: None, ..settlement(&claim, Outcome::Delivered) };
    assert_eq!(db.store.settle(vec![bare]).await, Ok(vec![]));
    let found = db.found(claim.event).await;
    assert_eq!(
        (found.attempt, found.history.len(), found.history[0].verdict),
        (1, 1, Verdict::Delivered)
    );
    assert_eq!(found.settled_at, Some(found.history[0].ended_at));
}

async fn an_attempt_has_the_time_of_its_end_not_of_its_settlement(db: Db) {
    let claim = db.claimed("a").await;
    let mut settlement = settlement(&claim, LATER);
    let record = settlement.record.as_mut().unwrap();
    (record.ended_ago, record.status_code, record.error) =
        (Duration::from_secs(90), None, Some(DeliveryError::ConnectionReset));
    db.store.settle(vec![settlement]).await.unwrap();
    let found = db.found(claim.event).await;
    let attempt = &found.history[0];
    assert_eq!((attempt.status_code, attempt.error.as_deref()), (None, Some("connection reset")));
    let before = Duration::try_from(found.received_at.duration_since(attempt.ended_at)).unwrap();
    assert!((80..=90).contains(&before.as_secs()), "{before:?}");
}
