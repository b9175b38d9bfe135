//! Pruning: ended events are deleted completely after their retention.

use crate::db::{Db, demand, event, events, settlement};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use surehook::ports::{Discarded, NewEvent, Pruned, Redriven, Retention};
use surehook_core::admission::Stored;
use surehook_core::event::{DiscardScope, Outcome, Reason, RedrivenBy, Status};
use surehook_core::id::EventId;
use surehook_core::retention::Reached;

clauses! {
    delivered_events_and_dead_letters_have_separate_retentions => OneRetention | LeavesAttempts,
    pruning_never_deletes_undelivered_events => PrunesWhatIsOwed,
    pruning_advances_page_by_page_to_the_last_event => IgnoresThePage | PassNeverEnds | PassEndsAtWhatIsYoung,
    ids_from_a_clock_behind_do_not_end_a_pruning_pass => PassEndsAtWhatIsYoung | FrontNeverEnds,
    the_front_does_not_pass_events_that_are_kept_longer_than_dead_letters => FrontNeverEnds,
    discarded_dead_letters_are_deleted_but_not_counted_as_dead_letters => CountsDiscarded,
    a_pruned_key_is_new_again => KeysOutliveTheirEvents,
    a_redrive_during_pruning_leaves_an_event_whole_or_deleted => LeavesAttempts,
    a_delivered_event_redriven_during_pruning_is_whole_or_deleted => LeavesAttempts,
    concurrent_prunings_delete_each_event_once => SaysTwiceAsMany,
}

beyond_the_port! {
    a_delivered_event_without_attempts_counts_from_its_reception,
    disk_usage_is_constant_under_a_month_of_steady_load,
}

const HOUR: Duration = Duration::from_hours(1);
const RETENTION: Retention =
    Retention { delivered: Duration::from_hours(2), dead_lettered: Duration::from_hours(10) };

/// Accepts events and ends them with this outcome.
async fn ended(db: &Db, keys: std::ops::Range<u32>, outcome: Outcome) -> Vec<EventId> {
    let count = keys.end - keys.start;
    db.store.accept(events(keys)).await.unwrap();
    let mut claimed = db.store.claim(vec![demand("orders", count)]).await.unwrap().claimed;
    claimed.sort_by_key(|claim| claim.event);
    assert_eq!(
        db.store.settle(claimed.iter().map(|claim| settlement(claim, outcome)).collect()).await,
        Ok(vec![])
    );
    claimed.iter().map(|claim| claim.event).collect()
}

async fn prune(db: &Db) -> Pruned {
    db.store.prune(RETENTION, None, 100).await.unwrap()
}

async fn delivered_events_and_dead_letters_have_separate_retentions(db: Db) {
    let late = db.claimed("late").await;
    db.settle(&late, Outcome::Retry { after: Duration::ZERO }).await;
    db.age(late.event, HOUR * 3).await;
    let claim = db.claim_one("late").await;
    db.settle(&claim, Outcome::Delivered).await;
    assert_eq!(prune(&db).await.deleted, 0, "the retention counts from the last attempt");
    db.age(late.event, HOUR * 3).await;
    assert_eq!(prune(&db).await.deleted, 1);

    // As if the clock of the process was behind.
    let young = db.claimed("young").await;
    let mut delivered = settlement(&young, Outcome::Delivered);
    delivered.record.as_mut().unwrap().ended_ago = HOUR * 3;
    assert_eq!(db.store.settle(vec![delivered]).await, Ok(vec![]));
    assert_eq!(prune(&db).await.deleted, 0, "it was received within the retention");
    db.age(young.event, HOUR * 3).await;
    assert_eq!(prune(&db).await.deleted, 1);

    let letter = db.claimed("letter").await;
    db.settle(&letter, Outcome::Retry { after: Duration::ZERO }).await;
    db.age(letter.event, HOUR * 11).await;
    let claim = db.claim_one("letter").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    assert_eq!(prune(&db).await.deleted, 0, "the retention of a dead letter counts from its end");
    db.age(letter.event, HOUR * 11).await;
    assert_eq!(prune(&db).await.dead_lettered, 1);

    let delivered = ended(&db, 0..1, Outcome::Delivered).await[0];
    let dead = ended(&db, 1..2, Outcome::DeadLetter(Reason::Permanent)).await[0];
    assert_eq!(prune(&db).await.deleted, 0, "both are within their retention");
    db.age(delivered, HOUR * 3).await;
    db.age(dead, HOUR * 3).await;
    let pruned = prune(&db).await;
    assert_eq!((pruned.deleted, pruned.dead_lettered), (1, 0));
    assert_eq!(db.store.find(delivered).await, Ok(None));
    let found = db.found(dead).await;
    assert_eq!((found.status, found.history.len()), (Status::DeadLettered, 1));
    db.age(dead, HOUR * 8).await;
    let pruned = prune(&db).await;
    assert_eq!((pruned.deleted, pruned.dead_lettered), (1, 1));
    assert_eq!(
        (db.count("events").await, db.count("deliveries").await, db.count("attempts").await),
        (0, 0, 0)
    );

    let delivered = ended(&db, 2..3, Outcome::Delivered).await[0];
    let dead = ended(&db, 3..4, Outcome::DeadLetter(Reason::Permanent)).await[0];
    db.age(delivered, HOUR * 3).await;
    db.age(dead, HOUR * 3).await;
    let longer = Retention { delivered: HOUR * 10, dead_lettered: HOUR * 2 };
    assert_eq!(db.store.prune(longer, None, 100).await.unwrap().dead_lettered, 1);
    assert_eq!(db.found(delivered).await.status, Status::Delivered);
}

async fn discarded_dead_letters_are_deleted_but_not_counted_as_dead_letters(db: Db) {
    let dead = ended(&db, 0..3, Outcome::DeadLetter(Reason::Permanent)).await;
    for event in &dead[..2] {
        let discarded = db.store.discard(*event, DiscardScope::DeadLetters).await;
        assert_eq!(discarded, Ok(Discarded::Now));
    }
    // Redriven and dead-lettered again, it is a dead letter like all others.
    assert_eq!(db.store.redrive(dead[1], RedrivenBy::Operator).await, Ok(Redriven::Queued));
    let again = db.claim_one("orders").await;
    db.settle(&again, Outcome::DeadLetter(Reason::Permanent)).await;
    for event in &dead {
        db.age(*event, HOUR * 11).await;
    }
    let pruned = prune(&db).await;
    assert_eq!((pruned.deleted, pruned.dead_lettered, pruned.discarded), (3, 2, 1));
}

async fn pruning_never_deletes_undelivered_events(db: Db) {
    let queued = db.accepted("queued").await;
    let processing = db.claimed("processing").await.event;
    let claim = db.claimed("retrying").await;
    db.settle(&claim, Outcome::Retry { after: HOUR }).await;
    let claim_of_redriven = db.claimed("redriven").await;
    db.settle(&claim_of_redriven, Outcome::DeadLetter(Reason::Permanent)).await;
    db.store.redrive(claim_of_redriven.event, RedrivenBy::Operator).await.unwrap();
    for event in [queued, processing, claim.event, claim_of_redriven.event] {
        db.age(event, HOUR * 100_000).await;
    }
    assert_eq!(prune(&db).await.deleted, 0);
    assert_eq!(
        db.store
            .prune(
                Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO },
                None,
                100
            )
            .await
            .unwrap()
            .deleted,
        0
    );
    assert_eq!((db.count("events").await, db.count("attempts").await), (4, 2));
}

async fn pruning_advances_page_by_page_to_the_last_event(db: Db) {
    let delivered = ended(&db, 0..25, Outcome::Delivered).await;
    for event in &delivered[..15] {
        db.age(*event, HOUR * 3).await;
    }
    let step = async |after: Option<EventId>| {
        let pruned = db.store.prune(RETENTION, after, 10).await.unwrap();
        (pruned.deleted, pruned.reached.last)
    };
    assert_eq!(step(None).await, (10, Some(delivered[9])));
    assert_eq!(step(Some(delivered[9])).await, (5, Some(delivered[19])));
    assert_eq!(step(Some(delivered[19])).await, (0, None), "there is no next page");
    assert_eq!(db.count("events").await, 10);
    assert_eq!(step(Some(delivered[24])).await, (0, None), "there are no later events");
    for event in &delivered[15..] {
        db.age(*event, HOUR * 3).await;
    }
    assert_eq!(step(Some(delivered[20])).await, (4, None), "earlier events are skipped");
}

async fn ids_from_a_clock_behind_do_not_end_a_pruning_pass(db: Db) {
    let behind = NewEvent { id: db.first_id(HOUR * 3), ..event("behind") };
    db.store.accept(vec![behind.clone()]).await.unwrap();
    let claimed = db.claim_one("orders").await;
    db.settle(&claimed, Outcome::Delivered).await;
    let right = ended(&db, 0..1, Outcome::Delivered).await[0];
    db.age(right, HOUR * 3).await;

    let first = db.store.prune(RETENTION, None, 1).await.unwrap();
    assert_eq!((first.deleted, first.reached.last), (0, Some(behind.id)));
    let by = HOUR * 3 - RETENTION.delivered;
    let is_near = |found: Duration| found.abs_diff(by) < Duration::from_mins(1);
    assert!(first.reached.behind.is_some_and(is_near), "{first:?}");
    let second = db.store.prune(RETENTION, Some(behind.id), 1).await;
    assert_eq!(
        second,
        Ok(Pruned {
            deleted: 1,
            dead_lettered: 0,
            discarded: 0,
            reached: Reached { last: Some(right), behind: None }
        })
    );
}

/// The front never returns. What it passes too early is deleted by the next slow round only.
async fn the_front_does_not_pass_events_that_are_kept_longer_than_dead_letters(db: Db) {
    let event = NewEvent { id: db.first_id(HOUR * 3), ..event("kept") };
    db.store.accept(vec![event.clone()]).await.unwrap();
    let claimed = db.claim_one("orders").await;
    db.settle(&claimed, Outcome::Delivered).await;
    let retention = Retention { delivered: HOUR * 10, dead_lettered: HOUR * 2 };
    let pruned = db.store.prune(retention, None, 1).await.unwrap();
    assert_eq!(pruned.reached, Reached { last: Some(event.id), behind: None });
}

async fn a_pruned_key_is_new_again(db: Db) {
    let delivered = ended(&db, 0..1, Outcome::Delivered).await[0];
    assert!(
        matches!(db.store.accept(events(0..1)).await.unwrap()[0], Stored::Existing { id, .. } if id == delivered)
    );
    db.age(delivered, HOUR * 3).await;
    prune(&db).await;
    assert_eq!(db.store.accept(vec![event("key-00000")]).await, Ok(vec![Stored::Inserted]));
}

async fn a_redrive_during_pruning_leaves_an_event_whole_or_deleted(db: Db) {
    let other = db.another();
    for round in 0..20 {
        let dead = ended(&db, round..round + 1, Outcome::DeadLetter(Reason::Permanent)).await[0];
        db.age(dead, HOUR * 20).await;
        let (pruned, redriven) = tokio::join!(
            other.prune(RETENTION, None, 100),
            db.store.redrive(dead, RedrivenBy::Operator)
        );
        match redriven.unwrap() {
            Redriven::Queued => {
                assert_eq!(pruned.unwrap().deleted, 0);
                let claim = db.claim_one("orders").await;
                assert_eq!((claim.event, claim.attempt), (dead, 2));
                assert_eq!(db.found(dead).await.history.len(), 1);
                db.settle(&claim, Outcome::Delivered).await;
                db.age(dead, HOUR * 20).await;
                prune(&db).await;
            }
            Redriven::NotFound => assert_eq!(pruned.unwrap().deleted, 1),
            other @ (Redriven::WrongStatus(_) | Redriven::Erased) => panic!("{other:?}"),
        }
        assert_eq!(
            (db.count("events").await, db.count("deliveries").await, db.count("attempts").await),
            (0, 0, 0)
        );
    }
}

async fn a_delivered_event_redriven_during_pruning_is_whole_or_deleted(db: Db) {
    let other = db.another();
    for round in 0..20 {
        let delivered = ended(&db, round..round + 1, Outcome::Delivered).await[0];
        db.age(delivered, HOUR * 20).await;
        let (pruned, redriven) =
            tokio::join!(other.prune(RETENTION, None, 100), db.store.redrive_delivered(delivered));
        match redriven.unwrap() {
            Redriven::Queued => {
                assert_eq!(pruned.unwrap().deleted, 0);
                let claim = db.claim_one("orders").await;
                assert_eq!((claim.event, claim.attempt), (delivered, 2));
                db.settle(&claim, Outcome::Delivered).await;
                assert_eq!(db.found(delivered).await.history.len(), 2);
                db.age(delivered, HOUR * 20).await;
                prune(&db).await;
            }
            Redriven::NotFound => assert_eq!(pruned.unwrap().deleted, 1),
            other @ (Redriven::WrongStatus(_) | Redriven::Erased) => panic!("{other:?}"),
        }
        assert_eq!(
            (db.count("events").await, db.count("deliveries").await, db.count("attempts").await),
            (0, 0, 0)
        );
    }
}

async fn concurrent_prunings_delete_each_event_once(db: Db) {
    let (one, other) = (db.another(), Arc::clone(&db.store));
    let everything = Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO };
    for round in 0..5 {
        ended(&db, round * 100..round * 100 + 50, Outcome::Delivered).await;
        ended(&db, round * 100 + 50..round * 100 + 100, Outcome::DeadLetter(Reason::Permanent))
            .await;
        let (first, second) =
            tokio::join!(one.prune(everything, None, 200), other.prune(everything, None, 200));
        let both = first.unwrap().deleted + second.unwrap().deleted;
        let rest = db.store.prune(everything, None, 200).await.unwrap().deleted;
        assert_eq!(both + rest, 100, "each pruning skips rows that the other has locked");
        assert_eq!(
            (db.count("events").await, db.count("deliveries").await, db.count("attempts").await),
            (0, 0, 0)
        );
    }
}

/// As if someone had deleted the attempts.
async fn a_delivered_event_without_attempts_counts_from_its_reception(db: Db) {
    let events = ended(&db, 0..2, Outcome::Delivered).await;
    db.execute("delete from attempts").await;
    let erased = async || db.store.erase(HOUR * 2, None, 100).await.unwrap().erased;
    assert_eq!((erased().await, prune(&db).await.deleted), (0, 0));
    db.age(events[0], HOUR * 3).await;
    assert_eq!(erased().await, 1);
    assert_eq!(db.store.redrive_delivered(events[1]).await, Ok(Redriven::Queued));
    let found = db.found(events[1]).await;
    assert_eq!((found.attempt, found.budget_from), (0, Some(0)));
    assert_eq!(prune(&db).await.deleted, 1);
    assert_eq!(db.store.find(events[0]).await, Ok(None));
}

/// A month of days, each with the same number of events, all delivered immediately. The events of
/// the last seven days are kept.
async fn disk_usage_is_constant_under_a_month_of_steady_load(db: Db) {
    const DAY_US: i64 = 24 * 3600 * 1_000_000;
    const EVENTS_A_DAY: i64 = 1_000;
    let now =
        i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let began = now - 40 * DAY_US;
    let mut sizes = Vec::new();
    for day in 0..30 {
        let midnight = began + day * DAY_US;
        db.execute(&db.delivered_on(midnight, EVENTS_A_DAY)).await;
        let kept = u64::try_from(now - midnight + 6 * DAY_US).unwrap();
        let retention = Retention {
            delivered: Duration::from_micros(kept),
            dead_lettered: Duration::from_micros(kept),
        };
        let mut after = None;
        loop {
            after = db.store.prune(retention, after, 500).await.unwrap().reached.last;
            if after.is_none() {
                break;
            }
        }
        // Autovacuum does this automatically.
        db.reuse_space().await;
        sizes.push(db.size().await);
    }
    assert!(
        (6 * EVENTS_A_DAY..=8 * EVENTS_A_DAY).contains(&db.count("events").await),
        "the events of a week are kept"
    );
    let (early, late) = (sizes[9], sizes[29]);
    println!("after 10 days {early} bytes, after 30 days {late}");
    assert!(late <= early + early / 20, "{sizes:?}");
}
