//! Settings that hold in each session, regardless of the database's settings, and errors for
//! databases that refuse connections or writes.

use crate::db::{Db, demand, event};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use surehook::ports::StoreError;
use surehook::store::postgres::sql;
use surehook::store::{self, MigrateError};
use surehook_core::event::Outcome;
use tests::wait;

/// The schema of the first version, which must be migrated.
const FIRST_SCHEMA: &str = include_str!("../../../fixtures/first_schema/postgres.sql");

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
        ("client_min_messages", "warning"),
        ("plan_cache_mode", "force_custom_plan"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("jit", "off"),
        ("max_parallel_workers_per_gather", "0"),
        ("tcp_keepalives_idle", "60"),
        ("tcp_keepalives_interval", "10"),
        ("tcp_keepalives_count", "3"),
        ("TimeZone", "UTC"),
        ("DateStyle", "ISO, MDY"),
        ("application_name", "surehook"),
    ] {
        assert_eq!(setting(&mut session, name).await, value, "{name}");
    }
    store::postgres::Plans::Generic.apply(&mut session).await.unwrap();
    assert_eq!(setting(&mut session, "plan_cache_mode").await, "force_generic_plan");
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_role_that_may_create_no_tables_is_told_what_to_grant() {
    let db = Db::postgres().await;
    let name = db.url.rsplit('/').next().unwrap();
    let role = format!("no-tables-{name}");
    let cluster = tests::postgres::shared();
    let empty = cluster.create_database().await;
    cluster.execute(&format!("create role \"{role}\" login")).await;
    for (search_path, told) in [
        ("public", format!("run `grant create on schema public to \"{role}\"`")),
        ("nowhere", format!("run `create schema surehook authorization \"{role}\"; alter role")),
    ] {
        let url = empty.replacen("//postgres@", &format!("//{role}@"), 1);
        let url = format!("{url}?options[search_path]={search_path}");
        let refused = store::open(&url).unwrap().migrate().await.unwrap_err();
        assert!(matches!(&refused, MigrateError::Failed(why) if why.contains(&told)), "{refused}");
    }
}

#[tokio::test]
async fn tables_are_created_in_the_first_schema_of_the_search_path() {
    let cluster = tests::postgres::shared();
    let db = Db::postgres_at(cluster.create_database().await);
    let role = format!("usage-{}", db.url.rsplit('/').next().unwrap());
    for statement in [
        "create table public.events (); create schema \"Taken\"; create table \"Taken\".events ()",
        "create schema \"Mine\"; create schema \"Locked\"",
        &format!("create role \"{role}\" login; grant usage on schema \"Locked\" to \"{role}\""),
    ] {
        db.execute(statement).await;
    }
    let migrated = async |role: &str, schema: &str| {
        let url = db.url.replacen("//postgres@", &format!("//{role}@"), 1);
        let url = format!("{url}?options[search_path]=%22{schema}%22,public");
        store::open(&url).unwrap().migrate().await.map_err(|refused| refused.to_string())
    };
    let taken = migrated("postgres", "Taken").await.unwrap_err();
    assert!(taken.contains("the table `events` exists"), "{taken}");
    let locked = migrated(&role, "Locked").await.unwrap_err();
    let told = format!("run `grant create on schema \"Locked\" to \"{role}\"`");
    assert!(locked.contains(&told), "{locked}");
    assert_eq!(migrated("postgres", "Mine").await, Ok(()));
    let tables =
        "select count(*) from pg_tables where schemaname = 'Mine' and tablename = 'actions'";
    assert_eq!(db.number(tables).await, 1);
}

#[tokio::test]
async fn a_server_that_withholds_its_timeline_is_used() {
    let db = Db::postgres().await;
    let role = format!("managed-{}", db.url.rsplit('/').next().unwrap());
    for statement in [
        format!("create role \"{role}\" login"),
        format!("grant select on all tables in schema public to \"{role}\""),
        "revoke execute on function pg_control_system() from public".to_owned(),
    ] {
        db.execute(&statement).await;
    }
    let url = db.url.replacen("//postgres@", &format!("//{role}@"), 1);
    let store = store::open(&format!("{url}?target_session_attrs=primary")).unwrap().store();
    store.ping().await.unwrap();
}

#[test]
fn the_driver_logs_no_statements() {
    for options in [
        format!("{:?}", store::postgres::options("postgres://a/b").unwrap()),
        format!("{:?}", store::sqlite::options("sqlite:a.db").unwrap()),
    ] {
        assert!(
            options.contains("statements_level: Off")
                && options.contains("slow_statements_level: Off"),
            "{options}"
        );
    }
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
async fn a_session_is_identified_by_its_process_and_its_start() {
    let db = Db::postgres().await;
    let older = PgConnection::connect(&db.url).await.unwrap();
    let mut session = PgConnection::connect(&db.url).await.unwrap();
    let (pid, started, _): (i64, i64, Option<String>) =
        sqlx::query_as(sql::SESSION).fetch_one(&mut session).await.unwrap();
    let own: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut session).await.unwrap();
    assert_eq!(pid, i64::from(own));
    older.close().await.unwrap();
    // The system reuses process ids.
    for (pid, started, lives) in
        [(pid, started, true), (pid, started - 1, false), (i64::from(i32::MAX), started, false)]
    {
        let question = sqlx::query_scalar::<_, bool>(sql::SESSION_LIVES).bind(pid).bind(started);
        assert_eq!(question.fetch_one(&mut session).await.unwrap(), lives, "{pid}, {started}");
    }
}

/// A pooled session is identified by its transaction, because each has another session of the server.
#[tokio::test]
async fn a_transaction_is_identified_by_its_process_and_its_start() {
    let db = Db::postgres().await;
    let mut other = PgConnection::connect(&db.url).await.unwrap();
    let mut session = PgConnection::connect(&db.url).await.unwrap();
    sqlx::raw_sql("begin").execute(&mut session).await.unwrap();
    let identity = "select pg_backend_pid()::bigint, (extract(epoch from now()) * 1000000)::bigint";
    let (pid, started): (i64, i64) =
        sqlx::query_as(identity).fetch_one(&mut session).await.unwrap();
    for (ending, lives) in [("select 1", true), ("commit", false), ("begin", false)] {
        sqlx::raw_sql(ending).execute(&mut session).await.unwrap();
        let question = sqlx::query_scalar::<_, bool>(sql::SESSION_LIVES).bind(pid).bind(started);
        assert_eq!(question.fetch_one(&mut other).await.unwrap(), lives, "after {ending}");
    }
}

#[tokio::test]
async fn what_holds_an_old_snapshot_is_named() {
    let db = Db::postgres().await;
    let options: sqlx::postgres::PgConnectOptions = db.url.parse().unwrap();
    let mut forgotten = options.application_name("forgotten").connect().await.unwrap();
    let holder = async |least| db.store.oldest_snapshot(least).await.unwrap();
    let begin = "begin isolation level repeatable read; select count(*) from events";
    sqlx::raw_sql(begin).execute(&mut forgotten).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;

    let found = holder(Duration::from_secs(1)).await.unwrap();
    assert_eq!((&*found.name, found.state.as_deref()), ("forgotten", Some("idle in transaction")));
    assert_eq!(holder(Duration::from_mins(5)).await, None, "it is not old yet");

    sqlx::raw_sql("commit").execute(&mut forgotten).await.unwrap();
    let found = holder(Duration::from_secs(1)).await;
    assert!(found.is_none_or(|found| found.name != "forgotten"));
}

#[tokio::test]
async fn a_server_that_withholds_what_holds_a_snapshot_loses_no_connection() {
    let db = Db::postgres().await;
    let role = format!("managed-{}", db.url.rsplit('/').next().unwrap());
    for statement in [
        format!("create role \"{role}\" login"),
        format!("grant select on all tables in schema public to \"{role}\""),
        "revoke select on pg_prepared_xacts from public".to_owned(),
    ] {
        db.execute(&statement).await;
    }
    let url = db.url.replacen("//postgres@", &format!("//{role}@"), 1);
    let store = store::open(&url).unwrap().store();
    let mut direct = PgConnection::connect(&db.url).await.unwrap();
    let mut sessions = async || -> Vec<i32> {
        let query = "select pid from pg_stat_activity where usename = $1 order by pid";
        sqlx::query_scalar(query).bind(&role).fetch_all(&mut direct).await.unwrap()
    };
    store.ping().await.unwrap();
    let before = sessions().await;

    let answer = store.oldest_snapshot(Duration::ZERO).await;

    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    store.ping().await.unwrap();
    assert_eq!(before.len(), 1);
    let after = sessions().await;
    assert!(before.iter().all(|pid| after.contains(pid)), "{before:?} became {after:?}");
}

#[tokio::test]
async fn blocking_sessions_are_listed_with_the_longest_transaction_first() {
    let db = Db::postgres().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let mut session = PgConnection::connect(&db.url).await.unwrap();
        let pid: i32 =
            sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut session).await.unwrap();
        sessions.push((pid, session));
    }
    let (waiting, mut waiter) = sessions.pop().unwrap();
    // In both orders, because the server lists its sessions in its own order.
    for order in [[0, 1], [1, 0]] {
        let mut expected = Vec::new();
        for index in order {
            let (pid, session) = &mut sessions[index];
            sqlx::raw_sql("begin; lock table events in access share mode")
                .execute(session)
                .await
                .unwrap();
            expected.push(i64::from(*pid));
        }
        let lock = tokio::spawn(async move {
            sqlx::raw_sql("begin; lock table events; rollback").execute(&mut waiter).await.unwrap();
            waiter
        });
        let waits = format!(
            "select count(*) from pg_stat_activity where pid = {waiting} and wait_event_type = 'Lock'"
        );
        wait::until("a session to wait for the table", || async {
            if db.number(&waits).await == 1 { Ok(()) } else { Err("it does not wait".to_owned()) }
        })
        .await;
        let mut asking = PgConnection::connect(&db.url).await.unwrap();
        let blockers =
            sqlx::query(sql::BLOCKERS).bind(waiting).fetch_all(&mut asking).await.unwrap();
        let pids: Vec<i64> = blockers.iter().map(|row| row.get("pid")).collect();
        assert_eq!(pids, expected);
        let names: Vec<Option<String>> = blockers.iter().map(|row| row.get("name")).collect();
        assert_eq!(names, [None, None], "a session without a name has none, not an empty one");
        for (_, session) in &mut sessions {
            sqlx::raw_sql("commit").execute(session).await.unwrap();
        }
        waiter = lock.await.unwrap();
    }
}

#[tokio::test]
async fn a_migration_may_take_longer_than_the_statements_of_the_store() {
    let db = Db::postgres_at(tests::postgres::shared().create_database().await);
    db.execute(
        "create function nap() returns event_trigger language plpgsql as $$
         begin
             if to_regclass('deliveries_dead') is null then
                 perform pg_sleep(5.5);
                 if current_setting('idle_in_transaction_session_timeout') <> '0' then
                     raise 'the process may be stopped for a time between two statements';
                 end if;
             end if;
         end $$;
         create event trigger nap on ddl_command_end when tag in ('CREATE INDEX') execute function nap()",
    )
    .await;
    db.open().migrate().await.unwrap();
    db.store.ping().await.unwrap();
}

#[tokio::test]
async fn a_migration_that_gave_way_pauses_before_its_next_try() {
    let db = Db::postgres_at(tests::postgres::shared().create_database().await);
    db.execute(FIRST_SCHEMA).await;
    let mut backup = PgConnection::connect(&db.url).await.unwrap();
    let locks = "begin; lock table events, deliveries, attempts in access share mode";
    sqlx::raw_sql(locks).execute(&mut backup).await.unwrap();
    let begun = Instant::now();
    let answer = db.open().migrate().await;
    let took = begun.elapsed();
    assert!(matches!(answer, Err(MigrateError::GaveWay(_))), "{answer:?}");
    assert!(took >= Duration::from_secs(2), "the next try could begin after {took:?}");
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
