//! The schema: created once, by whichever process is first, and refused if it is another one.

use crate::db::{Db, Raw, event};
use crate::later::Later;
use bytes::Bytes;
use futures::future::join_all;
use surehook::ports::{Discarded, StoreError};
use surehook::store::{MigrateError, OpenStore};
use surehook_core::admission::Stored;
use surehook_core::event::{DiscardScope, Outcome, Reason};
use surehook_core::id::EventId;
use uuid::Uuid;

clauses_of_databases! {
    a_database_without_a_schema_is_unavailable => AlwaysInOrder,
    a_newer_schema_is_refused => AlwaysInOrder,
    a_foreign_schema_is_refused => AlwaysInOrder,
}

beyond_the_port! {
    several_processes_can_migrate_concurrently,
    the_schema_refuses_rows_that_no_transition_writes,
    only_columns_whose_value_can_be_missing_may_be_null,
    an_event_inserted_by_a_previous_version_has_an_empty_query,
    a_database_created_later_is_used,
}

fn unavailable<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> String {
    match answer {
        Err(StoreError::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    }
}

async fn drop_schema(db: &Db) {
    for table in
        ["events", "deliveries", "attempts", "actions", "paused_sources", "_sqlx_migrations"]
    {
        db.execute(&format!("drop table {table}")).await;
    }
}

async fn a_database_without_a_schema_is_unavailable(db: Db) {
    drop_schema(&db).await;
    let store = db.another();
    let maintenance = db.maintenance(&store);
    unavailable(maintenance.ping().await);
    unavailable(store.accept(vec![event("a")]).await);
    db.open().migrate().await.unwrap();
    maintenance.ping().await.unwrap();
    assert_eq!(
        store.accept(vec![event("a")]).await,
        Ok(vec![Stored::Inserted]),
        "the schema is used as soon as it exists"
    );
    db.execute("delete from _sqlx_migrations").await;
    let why = unavailable(maintenance.ping().await);
    assert!(why.contains("surehook migrate"), "{why}");
}

async fn several_processes_can_migrate_concurrently(db: Db) {
    drop_schema(&db).await;
    let processes: Vec<OpenStore> = (0..8).map(|_| db.open()).collect();
    let migrations =
        processes.into_iter().map(|process| tokio::spawn(async move { process.migrate().await }));
    for migrated in join_all(migrations).await {
        assert_eq!(migrated.unwrap(), Ok(()));
    }
    db.store.ping().await.unwrap();
    assert_eq!(db.open().migrate().await, Ok(()), "a second migration does nothing");
}

async fn the_schema_refuses_rows_that_no_transition_writes(db: Db) {
    let queued = db.id(db.accepted("queued").await);
    let claim = db.claimed("dead").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let discarded = db.store.discard(claim.event, DiscardScope::DeadLetters).await;
    assert_eq!(discarded, Ok(Discarded::Now));
    let dead = db.id(claim.event);
    let is_sqlite = matches!(db.raw, Raw::Sqlite(_));
    let empty = if is_sqlite { "x''" } else { "''" };
    let mut changes = vec![
        format!("events set fingerprint = {empty}"),
        format!("deliveries set due_at = null where event_id = {queued}"),
        format!("deliveries set due_at = ended_at where event_id = {dead}"),
        format!("deliveries set ended_at = due_at where event_id = {queued}"),
        format!("deliveries set ended_at = null where event_id = {dead}"),
        format!("deliveries set reason = 'lost' where event_id = {queued}"),
        format!("deliveries set reason = null where event_id = {dead}"),
        format!("deliveries set reason = 'another' where event_id = {dead}"),
        format!("deliveries set status = 'another' where event_id = {queued}"),
        format!("deliveries set discarded_fence = fence where event_id = {queued}"),
        "deliveries set attempt = -1".to_owned(),
        "deliveries set budget_from = -1".to_owned(),
        "attempts set attempt = -1".to_owned(),
        "attempts set took_us = -1".to_owned(),
        "attempts set verdict = 'another'".to_owned(),
        "actions set attempt = -1".to_owned(),
        "actions set action = 'another'".to_owned(),
    ];
    if is_sqlite {
        // PostgreSQL has a type for ids.
        for column in [
            "events set id",
            "deliveries set event_id",
            "attempts set event_id",
            "actions set event_id",
        ] {
            changes.push(format!("{column} = x'00'"));
        }
    }
    for change in changes {
        assert!(db.is_refused_by_a_check(&format!("update {change}")).await, "{change}");
    }
}

async fn only_columns_whose_value_can_be_missing_may_be_null(db: Db) {
    let columns = match db.raw {
        Raw::Sqlite(_) => {
            "select t.name || '.' || c.name as name, c.\"notnull\" = 0 as may_be_null
             from sqlite_schema t cross join pragma_table_info(t.name) c
             where t.name in ('events', 'deliveries', 'attempts', 'actions', 'paused_sources')"
        }
        _ => {
            "select table_name || '.' || column_name as name, is_nullable = 'YES' as may_be_null
             from information_schema.columns
             where table_name in ('events', 'deliveries', 'attempts', 'actions', 'paused_sources')
                 and table_schema = current_schema()"
        }
    };
    let (may_be_null, redrives) = match db.raw {
        Raw::Sqlite(_) => (8, "events.erased_at"),
        _ => (9, "events.redrives"),
    };
    let known = [
        "events.erased_at",
        redrives,
        "deliveries.due_at",
        "deliveries.ended_at",
        "deliveries.reason",
        "deliveries.discarded_fence",
        "attempts.took_us",
        "attempts.status_code",
        "attempts.error",
    ]
    .map(|name| format!("'{name}'"))
    .join(", ");
    let count = async |condition: &str| {
        db.number(&format!("select count(*) from ({columns}) as columns where {condition}")).await
    };
    assert_eq!(count(&format!("may_be_null and name in ({known})")).await, may_be_null);
    assert_eq!(count(&format!("may_be_null and name not in ({known})")).await, 0);
    assert!(count("not may_be_null").await > 0);
}

async fn an_event_inserted_by_a_previous_version_has_an_empty_query(db: Db) {
    db.accepted("a").await;
    let id = EventId::from_uuid(Uuid::now_v7());
    let columns = "source, fingerprint, received_at, headers, body";
    db.execute(&format!(
        "insert into events (id, idempotency_key, {columns}) select {}, 'another', {columns} from events",
        db.id(id)
    ))
    .await;
    assert_eq!(db.store.request(id).await.unwrap().unwrap().query, Bytes::new());
}

async fn a_newer_schema_is_refused(db: Db) {
    db.execute(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         select 9999, description, success, checksum, execution_time from _sqlx_migrations where version = 1",
    )
    .await;
    let refused = db.open().migrate().await.unwrap_err();
    assert!(matches!(refused, MigrateError::Newer { found: 9999, .. }), "{refused:?}");
    assert!(refused.to_string().contains("run a newer surehook"), "{refused}");
    let why = unavailable(db.maintenance(&db.store).ping().await);
    assert!(why.contains("run a newer surehook"), "{why}");
}

async fn a_foreign_schema_is_refused(db: Db) {
    db.execute("update _sqlx_migrations set success = false").await;
    assert!(matches!(db.open().migrate().await, Err(MigrateError::Failed(_))));
    unavailable(db.maintenance(&db.store).ping().await);
    drop_schema(&db).await;
    db.execute("create table events (unrelated integer)").await;
    let refused = db.open().migrate().await.unwrap_err().to_string();
    assert!(
        refused.contains("the table `events` exists and was not created by Surehook"),
        "{refused}"
    );
    unavailable(db.maintenance(&db.another()).ping().await);
}

async fn a_database_created_later_is_used(db: Db) {
    let is_sqlite = matches!(db.raw, Raw::Sqlite(_));
    let later = Later::beside(db);
    let opened = later.open();
    let store = opened.store();
    unavailable(store.ping().await);
    unavailable(store.accept(vec![event("a")]).await);
    let migrated = opened.migrate().await;
    // A missing folder is an error in the path, so a start does not wait for it.
    let is_right = if is_sqlite {
        matches!(migrated, Err(MigrateError::Failed(_)))
    } else {
        matches!(migrated, Err(MigrateError::Unreachable(_)))
    };
    assert!(is_right, "{migrated:?}");
    later.come().await;
    opened.migrate().await.unwrap();
    store.ping().await.unwrap();
    assert_eq!(store.accept(vec![event("a")]).await, Ok(vec![Stored::Inserted]));
}
