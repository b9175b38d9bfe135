//! Tests for SQLite only: its plans, and a database file that another process has locked.

use crate::db::{Db, demand, event, events};
use crate::statements;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use std::time::{Duration, Instant};
use surehook::ports::StoreError;
use surehook::store::sqlite::options;
use surehook_core::admission::Stored;
use surehook_core::event::Status;

async fn session(db: &Db) -> SqliteConnection {
    options(&db.url).unwrap().connect().await.unwrap()
}

/// Statements that scan a small table, or the rows that their own subqueries have found.
const SCANS: [&str; 9] = [
    "discard_scan",
    "letters",
    "list",
    "paused",
    "schema",
    "source_work",
    "sources_named",
    "stored_sources",
    "summary",
];

#[tokio::test]
async fn every_statement_uses_index_probes() {
    let db = Db::sqlite().await;
    let mut session = session(&db).await;
    let mut statements = statements::of("sqlite");
    for name in SCANS {
        assert!(statements.remove(name).is_some(), "there is no statement {name}");
    }
    for (name, statement) in &statements {
        let explain = AssertSqlSafe(format!("explain query plan {statement}"));
        let steps: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(explain).fetch_all(&mut session).await.unwrap();
        let plan = steps.iter().map(|step| step.3.as_str()).collect::<Vec<_>>().join("\n");
        // The only scan is that of the parameter.
        for step in plan.lines().filter(|step| step.starts_with("SCAN")) {
            assert!(step.contains("VIRTUAL TABLE"), "{name}:\n{plan}");
        }
        let is_by_due_time = matches!(name.as_str(), "claim_due" | "cap_due_times");
        assert_eq!(plan.contains("deliveries_due"), is_by_due_time, "{name}:\n{plan}");
        assert!(!is_by_due_time || !plan.contains("TEMP B-TREE"), "{name} sorts:\n{plan}");
        let is_bounded = plan.contains("deliveries_due (source=? AND due_at");
        assert_eq!(is_bounded, is_by_due_time, "{name}:\n{plan}");
    }
}

#[tokio::test]
async fn a_summary_reads_tables_by_their_indexes_only() {
    assert_steps(
        "summary",
        &[
            ("SEARCH deliveries USING INDEX deliveries_dead (source=?)", 1),
            ("SEARCH deliveries USING INDEX deliveries_due (source=? AND due_at>?)", 2),
            ("SEARCH newest USING PRIMARY KEY (event_id=? AND attempt=?)", 1),
            ("SEARCH attempts USING PRIMARY KEY (event_id=?)", 1),
        ],
    )
    .await;
}

#[tokio::test]
async fn sources_with_work_are_found_by_steps_in_both_indexes() {
    assert_steps(
        "sources_named",
        &[
            ("SEARCH deliveries USING INDEX deliveries_due", 1),
            ("SEARCH deliveries USING INDEX deliveries_due (source>?)", 1),
            ("SEARCH deliveries USING INDEX deliveries_dead", 1),
            ("SEARCH deliveries USING INDEX deliveries_dead (source>?)", 1),
        ],
    )
    .await;
}

/// The plan of a statement must have these steps, each this number of times, and read no large table
/// in another way.
async fn assert_steps(statement: &str, steps: &[(&str, usize)]) {
    let db = Db::sqlite().await;
    let mut session = session(&db).await;
    let statement = &statements::of("sqlite")[statement];
    let explain = AssertSqlSafe(format!("explain query plan {statement}"));
    let plan: Vec<(i64, i64, i64, String)> =
        sqlx::query_as(explain).fetch_all(&mut session).await.unwrap();
    let plan = plan.iter().map(|step| step.3.as_str()).collect::<Vec<_>>().join("\n");
    for (step, times) in steps {
        let found = plan.lines().filter(|line| line.replace("COVERING ", "") == *step).count();
        assert_eq!(found, *times, "{step} in\n{plan}");
    }
    for table in ["deliveries", "attempts", "newest", "events"] {
        assert!(!plan.contains(&format!("SCAN {table}")), "{plan}");
    }
}

#[tokio::test]
async fn a_key_without_a_source_is_looked_up_in_each_source() {
    let db = Db::sqlite().await;
    let mut session = session(&db).await;
    for name in ["list", "letters", "stored_sources"] {
        let statement = &statements::of("sqlite")[name];
        let explain = AssertSqlSafe(format!("explain query plan {statement}"));
        let steps: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(explain).fetch_all(&mut session).await.unwrap();
        let plan = steps.iter().map(|step| step.3.as_str()).collect::<Vec<_>>().join("\n");
        let mut steps = vec![
            "SEARCH events USING COVERING INDEX sqlite_autoindex_events_2",
            "SEARCH events USING COVERING INDEX sqlite_autoindex_events_2 (source>?)",
        ];
        if name != "stored_sources" {
            steps.push("SEARCH event USING INDEX sqlite_autoindex_events_2 (source=? AND idempotency_key=?)");
        }
        for step in steps {
            assert_eq!(plan.lines().filter(|line| *line == step).count(), 1, "{step} in\n{plan}");
        }
        assert!(!plan.contains("SCAN event"), "{name}:\n{plan}");
    }
}

#[tokio::test]
async fn tables_check_the_types_of_values_and_are_stored_in_the_order_of_their_keys() {
    let db = Db::sqlite().await;
    let tables = "select count(*) from pragma_table_list where schema = 'main' and name in
        ('events', 'deliveries', 'attempts', 'actions', 'paused_sources')";
    assert_eq!(db.number(&format!("{tables} and strict")).await, 5);
    assert_eq!(db.number(&format!("{tables} and wr and name <> 'events'")).await, 4);
}

#[tokio::test]
async fn commits_are_flushed_and_readers_do_not_wait() {
    let db = Db::sqlite().await;
    let mut session = session(&db).await;
    let pragma = async |session: &mut SqliteConnection, name: &str| -> String {
        let pragma = AssertSqlSafe(format!("select cast({name} as text) from pragma_{name}"));
        sqlx::query_scalar(pragma).fetch_one(session).await.unwrap()
    };
    assert_eq!(pragma(&mut session, "journal_mode").await, "wal");
    assert_eq!(pragma(&mut session, "synchronous").await, "2", "FULL");
    assert_eq!(
        pragma(&mut session, "temp_store").await,
        "2",
        "memory: no files except the database and its log"
    );
    let event = event("a");
    db.store.accept(vec![event.clone()]).await.unwrap();
    sqlx::raw_sql("begin immediate").execute(&mut session).await.unwrap();
    let started = Instant::now();
    assert_eq!(db.found(event.id).await.status, Status::Queued);
    assert!(started.elapsed() < Duration::from_secs(1));
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_empties_the_log_even_if_another_connection_is_open() {
    let db = Db::sqlite().await;
    let opened = db.open();
    let log = db.folder.as_ref().unwrap().path().join("surehook.db-wal");
    let other = session(&db).await;
    opened.store().accept(events(0..3)).await.unwrap();
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    opened.close().await;
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_backup_with_damaged_rows_is_refused() {
    let db = Db::sqlite().await;
    db.store.accept(events(0..1)).await.unwrap();
    let backup = db.folder.as_ref().unwrap().path().join("backup.db");
    // The row now has a null in a column that must not be null.
    db.execute(
        "pragma writable_schema = on;
         update sqlite_schema set sql = replace(sql, 'erased_at integer', 'erased_at integer not null') where name = 'events'",
    )
    .await;
    let refused = db.open().backup(&backup).await.unwrap_err().to_string();
    assert!(refused.contains("NULL value in events.erased_at"), "{refused}");
    assert!(!backup.exists());
}

#[tokio::test]
async fn a_locked_file_is_a_conflict_in_time() {
    let db = Db::sqlite().await;
    let mut other = session(&db).await;
    sqlx::raw_sql("begin immediate").execute(&mut other).await.unwrap();
    let answer = db.store.accept(events(0..3)).await;
    assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    assert_eq!(db.store.accept(events(0..3)).await, Ok(vec![Stored::Inserted; 3]));
    assert_eq!(db.store.claim(vec![demand("orders", 9)]).await.unwrap().claimed.len(), 3);
}

#[tokio::test]
async fn a_failed_statement_rolls_back_its_whole_transaction() {
    let db = Db::sqlite().await;
    // The deliveries of a batch are inserted after its events.
    db.execute(
        "create trigger refuse before insert on deliveries begin select raise(abort, 'refused'); end",
    )
    .await;
    let answer = db.store.accept(events(0..3)).await;
    assert!(matches!(answer, Err(StoreError::Rejected(_))), "{answer:?}");
    assert_eq!(db.count("events").await, 0);
    db.execute("drop trigger refuse").await;
    assert_eq!(db.store.accept(events(0..3)).await, Ok(vec![Stored::Inserted; 3]));
}

#[tokio::test]
async fn an_event_in_a_file_that_was_moved_before_its_commit_is_not_acknowledged() {
    let db = Db::sqlite().await;
    db.store.accept(events(0..1)).await.unwrap();
    let folder = db.folder.as_ref().unwrap().path();
    // The call has checked the place of the file, and then waits for its transaction.
    let moves =
        async { std::fs::rename(folder.join("surehook.db"), folder.join("moved.db")).unwrap() };
    let (answer, ()) = futures::join!(db.store.accept(events(1..2)), moves);
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
}

#[tokio::test]
async fn an_error_of_the_commit_leaves_the_outcome_unknown() {
    let db = Db::sqlite().await;
    let mut other = session(&db).await;
    // A constraint that SQLite checks at the commit.
    let script = "create table others (id integer primary key);
        create table refers (id integer references others (id) deferrable initially deferred);
        create trigger refers after insert on events begin insert into refers values (1); end";
    sqlx::raw_sql(script).execute(&mut other).await.unwrap();
    let answer = db.store.accept(events(0..1)).await;
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
    sqlx::raw_sql("drop trigger refers").execute(&mut other).await.unwrap();
    assert_eq!(db.store.accept(events(0..1)).await, Ok(vec![Stored::Inserted]));
}

#[tokio::test]
async fn a_replay_is_committed_with_a_page_of_its_own() {
    let db = Db::sqlite().await;
    let log = db.folder.as_ref().unwrap().path().join("surehook.db-wal");
    let size = || std::fs::metadata(&log).unwrap().len();
    let event = event("a");
    db.store.accept(vec![event.clone()]).await.unwrap();
    db.store.pause(event.source.clone(), true).await.unwrap();
    // Each commit is flushed (`commits_are_flushed_and_readers_do_not_wait`). A commit that
    // writes nothing is not a commit.
    let before = size();
    assert!(matches!(
        db.store.accept(vec![event.clone()]).await.unwrap()[..],
        [Stored::Existing { .. }]
    ));
    let replayed = size();
    assert!(replayed > before, "a replay must write, otherwise nothing is flushed");
    assert_eq!(db.store.pause(event.source.clone(), true).await, Ok(false));
    assert!(size() > replayed, "a second pause must write, otherwise nothing is flushed");
}

/// Until such a reader ends, SQLite cannot write the log again from its start.
#[tokio::test]
async fn a_log_that_a_reader_keeps_from_being_emptied_is_noticed() {
    let db = Db::sqlite().await;
    let mut reader = session(&db).await;
    let mut open = reader.begin().await.unwrap();
    let read: i64 =
        sqlx::query_scalar("select count(*) from events").fetch_one(&mut *open).await.unwrap();
    assert_eq!(read, 0);
    let mut writer = session(&db).await;
    let write = async |writer: &mut SqliteConnection| {
        sqlx::query("create table if not exists filler (bytes blob)")
            .execute(&mut *writer)
            .await
            .unwrap();
        for _ in 0..5 {
            sqlx::query("insert into filler select zeroblob(67108864)")
                .execute(&mut *writer)
                .await
                .unwrap();
            sqlx::query("delete from filler").execute(&mut *writer).await.unwrap();
        }
    };
    assert_eq!(db.store.overgrown_log(), None);
    write(&mut writer).await;
    let size = db.store.overgrown_log();
    assert!(size.is_some_and(|bytes| bytes > 5 * 67_108_864), "{size:?}");

    open.rollback().await.unwrap();
    write(&mut writer).await;
    assert_eq!(db.store.overgrown_log(), None, "the log is short again");
}
