//! Dropping the future of a call at any moment.

use crate::db::{Db, demand, events, settlement};
use std::time::Duration;
use surehook_core::event::Outcome;
use tokio::time::timeout;

clauses_of_databases! {
    a_dropped_call_leaves_no_transaction_open => DroppedCallsStayOpen,
}

async fn a_dropped_call_leaves_no_transaction_open(db: Db) {
    let (store, mut was_dropped) = (db.events(), false);
    // The delays grow, so that calls are cut in all their stages. The first delays are too short
    // for any stage.
    for step in 0..60u32 {
        let time_limit = Duration::from_micros(u64::from(step) * 40);
        let batch = events(step * 10..step * 10 + 10);
        was_dropped |= timeout(time_limit, store.accept(batch.clone())).await.is_err();
        was_dropped |= timeout(time_limit, store.claim(vec![demand("orders", 5)])).await.is_err();
        store.accept(batch).await.unwrap();
        let claims = store.claim(vec![demand("orders", 5)]).await.unwrap();
        let settlements =
            claims.claimed.iter().map(|claim| settlement(claim, Outcome::Delivered)).collect();
        was_dropped |= timeout(time_limit, store.settle(settlements)).await.is_err();
        db.wait_for_no_transaction().await;
    }
    assert!(was_dropped);
    assert_eq!(db.count("events").await, 600, "a dropped call must have stored all or nothing");
    db.store.ping().await.unwrap();
}
