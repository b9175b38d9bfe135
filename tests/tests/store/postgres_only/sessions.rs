//! Settings that hold in each session, regardless of the database's settings, and errors for
//! databases that refuse connections or writes.

use crate::db::{Db, demand, event};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use std::collections::BTreeSet;
use std::time::Duration;
use surehook::ports::StoreError;
use surehook::store::{self, MigrateError};
use surehook_core::event::Outcome;

async fn setting(connection: &mut PgConnection, name: &str) -> String {
    sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn session_settings_override_the_settings_of_the_database() {
    let db = Db::postgres().await;
    let name = db.url.rsplit('/').next().unwrap();
    for set in [
        "synchronous_commit = off",
        "default_transaction_isolation = serializable",
        "statement_timeout = 1",
        "plan_cache_mode = force_generic_plan",
        "jit = on",
        "timezone = 'Pacific/Apia'",
        "datestyle = 'SQL, DMY'",
    ] {
        tests::postgres::shared().execute(&format!("alter database {name} set {set}")).await;
    }
    let url = format!("{}?options=-c%20synchronous_commit%3Doff", db.url);
    let mut session = store::postgres::options(&url).unwrap().connect().await.unwrap();
    for (name, value) in [
        ("synchronous_commit", "on"),
        ("transaction_isolation", "read committed"),
        ("statement_timeout", "5s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "5s"),
        ("plan_cache_mode", "force_custom_plan"),
        ("jit", "off"),
        ("TimeZone", "UTC"),
        ("DateStyle", "ISO, MDY"),
        ("application_name", "surehook"),
    ] {
        assert_eq!(setting(&mut session, name).await, value, "{name}");
    }
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_session_has_the_application_name_of_its_url() {
    let db = Db::postgres().await;
    let mut session = store::postgres::options(&format!("{}?application_name=eu-1", db.url))
        .unwrap()
        .connect()
        .await
        .unwrap();
    assert_eq!(setting(&mut session, "application_name").await, "eu-1");
    session.close().await.unwrap();
}

#[tokio::test]
async fn the_session_time_zone_changes_no_time() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    let settlement =
        crate::db::settlement(&claim, Outcome::Retry { after: Duration::from_secs(1000) });
    db.store.settle(vec![settlement]).await.unwrap();
    // The driver requests UTC in each session. The statements do not rely on it.
    let mut session = PgConnection::connect(&db.url).await.unwrap();
    let mut found = BTreeSet::new();
    for zone in ["UTC", "Asia/Kathmandu", "Pacific/Apia"] {
        sqlx::raw_sql(AssertSqlSafe(format!("set timezone to '{zone}'")))
            .execute(&mut session)
            .await
            .unwrap();
        let find = AssertSqlSafe(format!(
            "select found::text from ({}) as found",
            store::postgres::sql::FIND
        ));
        let rows: Vec<String> = sqlx::query_scalar(find)
            .bind(claim.event.as_uuid())
            .fetch_all(&mut session)
            .await
            .unwrap();
        assert_eq!(rows.len(), 1, "one row for the event and its only attempt");
        found.insert(rows);
    }
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!((990..=1000).contains(&db.fence_and_due(claim.event).await.1.unwrap()));
}

#[tokio::test]
async fn a_read_only_database_is_unavailable() {
    let db = Db::postgres().await;
    db.store.accept(vec![event("a")]).await.unwrap();
    let name = db.url.rsplit('/').next().unwrap();
    tests::postgres::shared()
        .execute(&format!("alter database {name} set default_transaction_read_only = on"))
        .await;
    let store = db.another();
    for answer in [
        store.ping().await,
        store.accept(vec![event("b")]).await.map(|_| ()),
        store.claim(vec![demand("orders", 1)]).await.map(|_| ()),
    ] {
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    tests::postgres::shared()
        .execute(&format!("alter database {name} reset default_transaction_read_only"))
        .await;
    store.ping().await.unwrap();
    assert_eq!(
        store.accept(vec![event("b")]).await.map(|stored| stored.len()),
        Ok(1),
        "a session that cannot write must not be reused"
    );
}

#[tokio::test]
async fn no_error_contains_the_password() {
    let cluster = tests::postgres::shared();
    for url in [
        format!("postgres://postgres:hunter2@127.0.0.1:{}/nowhere", cluster.port()),
        format!("postgres://nobody:hunter2@127.0.0.1:{}/postgres", cluster.port()),
        "postgres://postgres:hunter2@127.0.0.1:1/postgres".to_owned(),
        format!(
            "postgres://postgres:hunter2@127.0.0.1:{}/postgres?sslmode=require",
            cluster.port()
        ),
    ] {
        let opened = store::open(&url).unwrap();
        let (ping, migrate) =
            (opened.store().ping().await.unwrap_err(), opened.migrate().await.unwrap_err());
        assert!(matches!(ping, StoreError::Unavailable(_)), "{ping:?}");
        assert!(matches!(migrate, MigrateError::Unreachable(_)), "{migrate:?}");
        for told in
            [ping.to_string(), format!("{ping:?}"), migrate.to_string(), format!("{migrate:?}")]
        {
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
