//! Checking that the database works. For databases that do not work, see `schema` and the tests of
//! each database.

use crate::db::{Db, demand, event};
use surehook::ports::NewEvent;
use surehook_core::admission::Stored;

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
