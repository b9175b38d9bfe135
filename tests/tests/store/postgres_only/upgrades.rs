//! A rolling upgrade: programs of the previous version run beside this one.

use super::races::{end, held_open};
use crate::db::{Db, event};
use std::time::Duration;
use surehook::ports::{Discarded, NewEvent, Retention};
use surehook_core::event::DiscardScope::Unclaimed;
use surehook_core::id::EventId;

const LONG: Retention =
    Retention { delivered: Duration::from_hours(100), dead_lettered: Duration::from_hours(100) };

/// The previous version does not know the table of actions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_of_events_that_the_previous_version_deleted_are_deleted_by_later_steps() {
    let db = Db::postgres().await;
    let ids = discarded(&db, 6, &[0, 2, 5]).await;
    assert_eq!(left(&db, &ids).await, [0, 1, 2, 3, 4, 5]);
    let first = db.store.prune(LONG, None, 2).await.unwrap();
    assert_eq!((first.deleted, first.reached.last), (0, Some(ids[3])));
    assert_eq!(left(&db, &ids).await, [1, 3, 4, 5], "only the range of the step is examined");
    let second = db.store.prune(LONG, Some(ids[3]), 2).await.unwrap();
    assert_eq!((second.deleted, second.reached.last), (0, None));
    assert_eq!(left(&db, &ids).await, [1, 3, 4], "after the last event, the range is open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_leaves_actions_of_events_before_its_range() {
    let db = Db::postgres().await;
    let ids = discarded(&db, 4, &[0, 3]).await;
    let step = db.store.prune(LONG, Some(ids[1]), 10).await.unwrap();
    assert_eq!((step.deleted, step.reached.last), (0, None));
    assert_eq!(left(&db, &ids).await, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_examines_four_actions_for_each_event_of_its_limit() {
    let db = Db::postgres().await;
    let ids = discarded(&db, 12, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).await;
    for expected in [&[4, 5, 6, 7, 8, 9, 10, 11][..], &[8, 9, 10, 11], &[11], &[11]] {
        let step = db.store.prune(LONG, None, 1).await.unwrap();
        assert_eq!((step.deleted, step.reached.last), (0, Some(ids[11])));
        assert_eq!(left(&db, &ids).await, expected, "the oldest are examined first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_skips_locked_actions_without_waiting() {
    let db = Db::postgres().await;
    let ids = discarded(&db, 3, &[0, 1]).await;
    let lock = format!("select from actions where event_id = {} for update", db.id(ids[0]));
    let mut locking = held_open(&db, &lock).await;
    db.store.prune(LONG, None, 10).await.unwrap();
    assert_eq!(left(&db, &ids).await, [0, 2]);
    end(&mut locking, "rollback").await;
    db.store.prune(LONG, None, 10).await.unwrap();
    assert_eq!(left(&db, &ids).await, [2]);
}

/// Discards this number of events. Then deletes some as the previous version does.
async fn discarded(db: &Db, count: u32, pruned: &[usize]) -> Vec<EventId> {
    let events: Vec<NewEvent> = (0..count).map(|key| event(&format!("key-{key}"))).collect();
    let ids: Vec<EventId> = events.iter().map(|event| event.id).collect();
    db.store.accept(events).await.unwrap();
    for id in &ids {
        assert_eq!(db.store.discard(*id, Unclaimed).await, Ok(Discarded::Now));
    }
    for id in pruned.iter().map(|number| ids[*number]) {
        db.execute(&format!("delete from deliveries where event_id = {}", db.id(id))).await;
        db.execute(&format!("delete from events where id = {}", db.id(id))).await;
        assert_eq!(db.store.find(id).await, Ok(None));
    }
    ids
}

/// The numbers of the events that have actions.
async fn left(db: &Db, ids: &[EventId]) -> Vec<usize> {
    let mut left = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let sql = format!("select count(*) from actions where event_id = {}", db.id(*id));
        if db.number(&sql).await > 0 {
            left.push(number);
        }
    }
    left
}
