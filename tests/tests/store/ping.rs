//! Checking that the database works. For databases that do not work, see `schema` and the tests of
//! each database.

use crate::db::{Db, demand, event};
use sqlx::ConnectOptions;
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use surehook::ports::{NewEvent, Store};
use surehook::store::sqlite::options;
use surehook_core::admission::Stored;
use tests::wait;

clauses! {
    a_working_database_answers_a_ping => NeverInOrder,
    a_probe_leaves_nothing_behind => ProbesStay,
}

async fn a_working_database_answers_a_ping(db: Db) {
    assert_eq!(db.store.ping().await, Ok(()));
    db.store.accept(vec![event("a")]).await.unwrap();
    assert_eq!((db.store.ping().await, db.another().ping().await), (Ok(()), Ok(())));
}

async fn a_probe_leaves_nothing_behind(db: Db) {
    let probe = event("probe");
    for body in [0, 1, 100_000] {
        let probe = NewEvent { body: vec![b'x'; body].into(), ..probe.clone() };
        assert_eq!(db.store.probe(probe).await, Ok(()));
    }
    assert_eq!(db.store.find(probe.id).await, Ok(None));
    assert!(
        db.store.claim(vec![demand(probe.source.as_str(), 10)]).await.unwrap().claimed.is_empty()
    );
    // Neither the probe's id nor its key is taken.
    assert_eq!(db.store.accept(vec![probe]).await, Ok(vec![Stored::Inserted]));
}

/// The check of the readiness keeps a probe that takes too long, and may not poll it for a long time.
async fn a_call_that_is_not_polled_keeps_no_connection(store: &Arc<dyn Store>) {
    for call in [store.probe(event("probe")), store.ping()] {
        let mut call = pin!(call);
        assert!(futures::poll!(&mut call).is_pending());
        let in_use = || store.connections().iter().map(|pool| pool.in_use).sum::<usize>();
        wait::until("its end", || {
            let in_use = in_use();
            ready(if in_use == 0 { Ok(()) } else { Err(format!("{in_use} connections in use")) })
        })
        .await;
        assert_eq!(call.await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_polled_keeps_no_connection_to_postgresql() {
    a_call_that_is_not_polled_keeps_no_connection(&Db::postgres().await.store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_polled_does_not_keep_the_writer_of_sqlite() {
    let db = Db::sqlite().await;
    a_call_that_is_not_polled_keeps_no_connection(&db.store).await;
    for wants_probe in [true, false] {
        // Another process writes, and the store waits for it.
        let mut other = options(&db.url).unwrap().connect().await.unwrap();
        sqlx::query("begin immediate").execute(&mut other).await.unwrap();
        let (store, key) = (Arc::clone(&db.store), format!("first-{wants_probe}"));
        let first = tokio::spawn(async move { store.accept(vec![event(&key)]).await });
        wait::until("a writer in use", || {
            let in_use = db.store.connections()[0].in_use;
            ready(if in_use == 1 { Ok(()) } else { Err(format!("{in_use} in use")) })
        })
        .await;
        let queued = if wants_probe { db.store.probe(event("probe")) } else { db.store.ping() };
        let mut queued = pin!(queued);
        assert!(futures::poll!(&mut queued).is_pending());
        sqlx::query("rollback").execute(&mut other).await.unwrap();
        assert_eq!(first.await.unwrap(), Ok(vec![Stored::Inserted]));
        let second = db.store.accept(vec![event(&format!("second-{wants_probe}"))]).await;
        assert_eq!(second, Ok(vec![Stored::Inserted]), "the writer is free again");
    }
}
