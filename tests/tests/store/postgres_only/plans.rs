//! The plans of the statements on a large table, in the states in which statistics mislead: analysed when full,
//! vacuumed while empty or nearly so and filled again, with and without its pages.

use crate::db::{Db, demand, source};
use sqlx::postgres::PgArguments;
use sqlx::query::QueryScalar;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Postgres};
use std::time::{Duration, Instant};
use surehook::search::Path;
use surehook::store::postgres::{options, sql};
use uuid::Uuid;

/// A claim of 256 takes some milliseconds. A plan that reads the table takes seconds.
const FAST: Duration = Duration::from_millis(400);

const FILL_EVENTS: &str = "insert into events
    select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'orders', 'key-' || n, sha256(''), now(), '', 'body'
    from generate_series(1, 600000) n";

/// The first 300,000 are due, the others are not, and are half of a source of which nothing is due.
const FILL_DELIVERIES: &str = "insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
    select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, case when n <= 450000 then 'orders' else 'quiet' end, 'queued', 0, 0, 0,
        case when n <= 300000 then now() - n * interval '1 ms' else now() + interval '1 day' end
    from generate_series(1, 600000) n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_stay_index_probes_whatever_the_statistics_say() {
    let db = Db::postgres().await;
    // The states below are to last while they are looked at.
    db.execute("alter table events set (autovacuum_enabled = off); alter table deliveries set (autovacuum_enabled = off)").await;
    let mut session = options(&db.url).unwrap().connect().await.unwrap();

    // Some executions on the empty table first: a generic plan would be made of them, and stay.
    db.execute("vacuum analyze events").await;
    db.execute("vacuum analyze deliveries").await;
    for _ in 0..6 {
        assert!(db.store.claim(vec![demand("orders", 256)]).await.unwrap().claimed.is_empty());
        explain_claim(&mut session).await;
    }
    db.execute(FILL_EVENTS).await;
    db.execute(FILL_DELIVERIES).await;
    assert_plans(&db, &mut session, "vacuumed while empty").await;

    db.execute("analyze events, deliveries").await;
    assert_plans(&db, &mut session, "analysed when full").await;

    db.execute("delete from deliveries").await;
    db.execute("vacuum (truncate false, analyze) deliveries").await;
    assert_eq!(db.number("select (reltuples = 0 and relpages > 0)::int::bigint from pg_class where relname = 'deliveries'").await, 1);
    db.execute(FILL_DELIVERIES).await;
    assert_plans(&db, &mut session, "vacuumed while empty, with its pages").await;

    // Fewer rows than a batch has: to read them all looks cheaper than to look for each of the batch.
    db.execute("delete from deliveries where event_id > '00000000-0000-7000-8000-00000000001e'").await;
    db.execute("vacuum (truncate false, analyze) deliveries").await;
    assert_eq!(db.number("select reltuples::bigint from pg_class where relname = 'deliveries'").await, 30);
    db.execute("delete from deliveries").await;
    db.execute(FILL_DELIVERIES).await;
    assert_plans(&db, &mut session, "vacuumed while nearly empty, with its pages").await;
}

async fn assert_plans(db: &Db, session: &mut PgConnection, state: &str) {
    // The same prepared statement on one session, past the sixth execution.
    for execution in 1..=8 {
        let (plan, took) = explain_claim(session).await;
        // Both columns bound the scan: else it would read on through all that is not due.
        let bounds = plan.lines().skip_while(|line| !line.contains("Index Scan using deliveries_due")).nth(1).unwrap_or_default();
        let both = "Index Cond: ((source = demand.source) AND (due_at >= demand.due_from) AND (due_at <= statement_timestamp()))";
        assert!(bounds.trim() == both, "{state}, execution {execution}:\n{plan}");
        assert!(plan.contains("deliveries_pkey") && plan.contains("events_pkey"), "{state}, execution {execution}:\n{plan}");
        assert_probes(&plan, state);
        assert!(took < FAST, "{state}, execution {execution}: {took:?}\n{plan}");
    }
    for execution in 1..=8 {
        let started = Instant::now();
        let claimed = db.store.claim(vec![demand("orders", 256), demand("quiet", 256)]).await.unwrap().claimed.len();
        assert_eq!(claimed, 256);
        assert!(started.elapsed() < FAST, "{state}, claim {execution}: {:?}", started.elapsed());
    }
    for plan in [
        explain_settle(session).await,
        explain_existing(session).await,
        explain_find(session).await,
        explain_prune(session).await,
        plan(session, explained("costs", sql::REDRIVE_DELIVERED).bind(ids()[0])).await,
        plan(session, explained("costs", sql::ERASE).bind(Some(ids()[0])).bind(500i64).bind(0i64)).await,
    ] {
        assert_probes(&plan, state);
    }
    for path in [Path::Key, Path::DeadLetters, Path::Owed, Path::Events] {
        assert_probes(&explain_search(session, sql::LIST, path).await, &format!("{state}, list, {path:?}"));
        if path != Path::Events {
            assert_probes(&explain_search(session, sql::REDRIVE_ALL, path).await, &format!("{state}, redrive all, {path:?}"));
        }
    }
    let started = Instant::now();
    let records = db.store.sources(vec![source("orders"), source("quiet")], 1000).await.unwrap();
    assert_eq!(records.len(), 2);
    assert!(started.elapsed() < FAST, "{state}, sources: {:?}", started.elapsed());
    assert_probes(&explain_sources(session).await, &format!("{state}, sources"));
}

fn assert_probes(plan: &str, state: &str) {
    // The sources that are paused are a few rows, and are read as they come.
    let lines: Vec<&str> = plan.lines().filter(|line| !line.contains("paused_sources")).collect();
    for wrong in ["Seq Scan", "Hash Join", "Merge Join", "Bitmap", "JIT"] {
        assert!(!lines.iter().any(|line| line.contains(wrong)), "{state}: {wrong} in\n{plan}");
    }
    // An index that is read without a condition is a scan of its table by another name.
    for pair in lines.windows(2).filter(|pair| pair[0].contains("Index Scan") || pair[0].contains("Index Only Scan")) {
        assert!(pair[1].contains("Index Cond"), "{state}: {} in\n{plan}", pair[0].trim());
    }
}

fn explained(options: &str, statement: &str) -> QueryScalar<'static, Postgres, String, PgArguments> {
    sqlx::query_scalar(AssertSqlSafe(format!("explain ({options}) {statement}")))
}

async fn plan(session: &mut PgConnection, query: QueryScalar<'_, Postgres, String, PgArguments>) -> String {
    query.fetch_all(session).await.unwrap().join("\n")
}

/// The plan of a claim that is executed, and how long it took.
async fn explain_claim(session: &mut PgConnection) -> (String, Duration) {
    let query = explained("analyze", sql::CLAIM)
        .bind(vec!["orders", "quiet"])
        .bind(vec![256i64, 256])
        .bind(vec![60_000_000i64; 2])
        .bind(vec![20i64; 2])
        .bind(vec![0i64; 2]);
    let started = Instant::now();
    (plan(session, query).await, started.elapsed())
}

fn ids() -> Vec<Uuid> {
    (1..=256u128).map(|n| Uuid::from_u128(0x7000_8000_0000_0000_0000 + n * 1000)).collect()
}

async fn explain_settle(session: &mut PgConnection) -> String {
    let query = explained("costs", sql::SETTLE)
        .bind(ids())
        .bind(vec![1i64; 256])
        .bind(vec!["delivered"; 256])
        .bind(vec![0i64; 256])
        .bind(vec![None::<&str>; 256])
        .bind(vec![0i64; 256])
        .bind(vec![0i64; 256])
        .bind(vec!["delivered"; 256])
        .bind(vec![200i32; 256])
        .bind(vec![None::<&str>; 256])
        .bind(vec![b"".as_slice(); 256]);
    plan(session, query).await
}

async fn explain_existing(session: &mut PgConnection) -> String {
    let keys: Vec<String> = (1..=256).map(|n| format!("key-{n}")).collect();
    plan(session, explained("costs", sql::ACCEPT_EXISTING).bind(vec!["orders"; 256]).bind(keys)).await
}

async fn explain_find(session: &mut PgConnection) -> String {
    plan(session, explained("costs", sql::FIND).bind(ids()[0])).await
}

async fn explain_search(session: &mut PgConnection, statement: &str, path: Path) -> String {
    let path = match path {
        Path::Key => "key",
        Path::DeadLetters => "dead_letters",
        Path::Owed => "owed",
        Path::Events => "events",
    };
    let mut query = explained("costs", statement)
        .bind(path)
        .bind(Some("orders"))
        .bind((path == "key").then_some("key-5"))
        .bind(None::<&str>)
        .bind(None::<&str>)
        .bind(None::<i32>)
        .bind(Uuid::nil())
        .bind(Uuid::max())
        .bind(50i64)
        .bind(10_000i64);
    if statement == sql::REDRIVE_ALL {
        query = query.bind(false);
    }
    plan(session, query).await
}

async fn explain_sources(session: &mut PgConnection) -> String {
    plan(session, explained("costs", sql::SOURCES).bind(vec!["orders"]).bind(1000i64)).await
}

async fn explain_prune(session: &mut PgConnection) -> String {
    plan(session, explained("costs", sql::PRUNE).bind(Some(ids()[0])).bind(500i64).bind(0i64).bind(0i64)).await
}
