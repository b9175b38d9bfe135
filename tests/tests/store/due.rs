//! Due times beyond the horizon, as if the clock had been set back: they are capped.

use crate::db::{Db, LEASE, demand, event_of, settlement, source};
use std::time::Duration;
use surehook_core::due::Bound;
use surehook_core::event::{Outcome, Status};
use surehook_core::id::EventId;
use surehook_core::worker::claims::{Claim, Demand};

clauses! {
    due_times_beyond_the_horizon_are_capped_to_a_lease
        => CapsNothing | CapsWithinTheHorizon | CapsToNow | CapsEverySource,
    an_event_whose_due_time_was_capped_can_still_be_settled => CapChangesTheFence,
    each_source_has_its_own_horizon_and_lease => OneHorizonForAll | OneLeaseForAllCaps,
    a_step_caps_the_earliest_due_times_up_to_its_limit => CapsTheLatestFirst | CapsWithoutLimit,
}

const HOUR: Duration = Duration::from_hours(1);

fn bound(source_name: &str, horizon: Duration) -> Bound {
    Bound { source: source(source_name), horizon, lease: LEASE }
}

/// An event that waits for a retry.
async fn retrying(db: &Db, source: &str, key: &str, after: Duration) -> EventId {
    let event = event_of(source, key);
    db.store.accept(vec![event.clone()]).await.unwrap();
    let claim = db.claim_one(source).await;
    assert_eq!(claim.event, event.id);
    db.settle(&claim, Outcome::Retry { after }).await;
    event.id
}

/// A claim whose lease is much longer than the present settings allow.
async fn claimed_for_three_hours(db: &Db) -> Claim {
    db.accepted("a").await;
    let demand = Demand { lease: HOUR * 3, ..demand("a", 1) };
    db.store.claim(vec![demand]).await.unwrap().claimed.remove(0)
}

/// The due time of an event, in minutes from now.
async fn due(db: &Db, event: EventId) -> i64 {
    let (_, seconds) = db.fence_and_due(event).await;
    (seconds.expect("a due time") + 30) / 60
}

async fn due_times_beyond_the_horizon_are_capped_to_a_lease(db: Db) {
    let within = retrying(&db, "a", "within", HOUR).await;
    let beyond = retrying(&db, "a", "beyond", HOUR * 3).await;
    let of_another = retrying(&db, "b", "k", HOUR * 3).await;
    let leased = claimed_for_three_hours(&db).await.event;
    let now = db.accepted("c").await;
    let bounds = ["a", "c", "none"].map(|name| bound(name, HOUR * 2));
    assert_eq!(db.store.cap_due_times(bounds.to_vec(), 100).await, Ok(2));
    let mut found = Vec::new();
    for event in [within, beyond, of_another, leased, now] {
        found.push(due(&db, event).await);
    }
    assert_eq!(found, [60, 1, 180, 1, 0]);
    assert_eq!(db.store.cap_due_times(bounds.to_vec(), 100).await, Ok(0), "they are capped once");
    assert_eq!(db.store.cap_due_times(vec![], 100).await, Ok(0));
}

async fn an_event_whose_due_time_was_capped_can_still_be_settled(db: Db) {
    let claim = claimed_for_three_hours(&db).await;
    let before = db.found(claim.event).await;
    assert_eq!(db.store.cap_due_times(vec![bound("a", HOUR)], 1).await, Ok(1));
    let found = db.found(claim.event).await;
    assert_eq!((found.status, found.attempt), (Status::Processing, before.attempt));
    assert_eq!(db.store.settle(vec![settlement(&claim, Outcome::Delivered)]).await, Ok(vec![]));
    assert_eq!(db.found(claim.event).await.status, Status::Delivered);
}

async fn each_source_has_its_own_horizon_and_lease(db: Db) {
    let mut events = Vec::new();
    for source in ["a", "b", "c"] {
        events.push(retrying(&db, source, "k", HOUR * 3).await);
    }
    let bounds = [("a", 4, 1), ("b", 2, 2), ("c", 1, 3)].map(|(name, hours, minutes)| Bound {
        lease: Duration::from_mins(minutes),
        ..bound(name, HOUR * hours)
    });
    assert_eq!(db.store.cap_due_times(bounds.into(), 100).await, Ok(2));
    let mut found = Vec::new();
    for event in events {
        found.push(due(&db, event).await);
    }
    assert_eq!(found, [180, 2, 3]);
}

async fn a_step_caps_the_earliest_due_times_up_to_its_limit(db: Db) {
    let mut events = Vec::new();
    for (source, hours) in [("a", 5), ("a", 3), ("a", 4), ("b", 3)] {
        let key = format!("{source}-{hours}");
        events.push(retrying(&db, source, &key, HOUR * hours).await);
    }
    let bounds = vec![bound("a", HOUR), bound("b", HOUR)];
    let mut steps = Vec::new();
    for _ in 0..3 {
        let capped = db.store.cap_due_times(bounds.clone(), 2).await.unwrap();
        let mut left = Vec::new();
        for event in &events {
            left.push(due(&db, *event).await > 1);
        }
        steps.push((capped, left));
    }
    let expected = [
        (2, vec![true, false, false, true]),
        (2, vec![false, false, false, false]),
        (0, vec![false, false, false, false]),
    ];
    assert_eq!(steps, expected);
}
