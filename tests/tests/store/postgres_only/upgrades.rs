//! A rolling upgrade: programs of the previous version run beside this one.

use crate::db::{Db, event};
use std::time::Duration;
use surehook::ports::{Discarded, NewEvent, Retention};
use surehook_core::event::DiscardScope::Unclaimed;

/// The previous version does not know the table of actions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_of_events_that_the_previous_version_deleted_are_deleted_by_later_steps() {
    let db = Db::postgres().await;
    let events: Vec<NewEvent> = (0..6).map(|key| event(&format!("key-{key}"))).collect();
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    db.store.accept(events).await.unwrap();
    for id in &ids {
        assert_eq!(db.store.discard(*id, Unclaimed).await, Ok(Discarded::Now));
    }
    for pruned in [0, 2, 5] {
        let id = db.id(ids[pruned]);
        db.execute(&format!("delete from deliveries where event_id = {id}")).await;
        db.execute(&format!("delete from events where id = {id}")).await;
        assert_eq!(db.store.find(ids[pruned]).await, Ok(None));
    }
    let left = async || {
        let mut left = Vec::new();
        for (number, id) in ids.iter().enumerate() {
            let sql = format!("select count(*) from actions where event_id = {}", db.id(*id));
            if db.number(&sql).await > 0 {
                left.push(number);
            }
        }
        left
    };
    assert_eq!(left().await, [0, 1, 2, 3, 4, 5]);
    let long = Duration::from_hours(100);
    let retention = Retention { delivered: long, dead_lettered: long };
    let first = db.store.prune(retention, None, 2).await.unwrap();
    assert_eq!((first.deleted, first.reached.last), (0, Some(ids[3])));
    assert_eq!(left().await, [1, 3, 4, 5], "only the range of the step is examined");
    let second = db.store.prune(retention, Some(ids[3]), 2).await.unwrap();
    assert_eq!((second.deleted, second.reached.last), (0, None));
    assert_eq!(left().await, [1, 3, 4], "after the last event, the range is open");
}
