//! Asking whether the database is in order. When it is not: `schema`, and the tests of each database alone.

use crate::db::{Db, event};

pub(crate) async fn a_database_in_order_says_so(db: Db) {
    assert_eq!(db.store.ping().await, Ok(()));
    db.store.accept(vec![event("a")]).await.unwrap();
    assert_eq!((db.store.ping().await, db.another().ping().await), (Ok(()), Ok(())));
}
