//! The plans of the statements on a large table, in states with misleading statistics: analysed
//! when full; vacuumed while empty or nearly empty and filled again, with and without its pages;
//! and with many combinations of misleading numbers for the tables and for their indexes.

use crate::db::{Db, demand, source};
use crate::statements;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryScalar;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Either, Executor, PgConnection, Postgres, SqlSafeStr, Statement,
    TypeInfo,
};
use std::time::{Duration, Instant};
use surehook::search::{EventFilter, PageSize, Path, Span};
use surehook::store::postgres::{Plans, options, sql};
use surehook_core::key::IdempotencyKey;
use uuid::Uuid;

/// A claim of 256 events takes a few milliseconds. A plan that reads the table takes seconds.
const FAST: Duration = Duration::from_millis(400);

const FILL_EVENTS: &str = "insert into events
    select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'orders', 'key-' || n, sha256(''), now(), '', 'body'
    from generate_series(1, 600000) n";

/// The first 300,000 are due. The others are not, and half of them belong to a source without due
/// events.
const FILL_DELIVERIES: &str = "insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
    select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, case when n <= 450000 then 'orders' else 'quiet' end, 'queued', 0, 0, 0,
        case when n <= 300000 then now() - n * interval '1 ms' else now() + interval '1 day' end
    from generate_series(1, 600000) n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_stay_index_probes_with_misleading_statistics() {
    let db = Db::postgres().await;
    // Autovacuum would change the states below while they are tested.
    db.execute("alter table events set (autovacuum_enabled = off); alter table deliveries set (autovacuum_enabled = off)").await;
    let mut session = session(&db).await;

    // First some executions on the empty table, because a generic plan would be made and kept after
    // them.
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

    db.execute("reindex table deliveries").await;
    db.execute("alter table deliveries add column extra bigint").await;
    assert_plans(&db, &mut session, "with rebuilt indexes and a new column").await;

    db.execute("delete from deliveries").await;
    let state = "emptied after the plan was made for a full table";
    for _ in 0..2 {
        assert!(db.store.claim(vec![demand("orders", 256)]).await.unwrap().claimed.is_empty());
        assert_probes(&explain_claim(&mut session).await.0, state);
    }
    let (_, took) = explain_claim(&mut session).await;
    assert!(took < FAST, "{state}: {took:?}");

    db.execute("alter table deliveries drop column extra").await;
    db.execute("vacuum (truncate false, analyze) deliveries").await;
    assert_eq!(db.number("select (reltuples = 0 and relpages > 0)::int::bigint from pg_class where relname = 'deliveries'").await, 1);
    db.execute(FILL_DELIVERIES).await;
    assert_plans(&db, &mut session, "vacuumed while empty, with its pages").await;

    // The queue was empty when it was vacuumed, so the index has a count of zero entries too. Then
    // an outage left 200,000 due.
    db.execute("delete from deliveries").await;
    db.execute("vacuum (truncate false, index_cleanup on) deliveries").await;
    let counted = "select count(*) from pg_class where relname in ('deliveries', 'deliveries_pkey', 'deliveries_due') and reltuples = 0 and relpages > 0";
    assert_eq!(db.number(counted).await, 3);
    db.execute(&FILL_DELIVERIES.replace("600000", "200000")).await;
    assert_plans(&db, &mut session, "vacuumed while only dead rows were left, then 200,000 due")
        .await;

    // Fewer rows than a batch has, so a full scan looks cheaper than an index probe for each row of
    // the batch.
    db.execute("delete from deliveries where event_id > '00000000-0000-7000-8000-00000000001e'")
        .await;
    db.execute("vacuum (truncate false, analyze) deliveries").await;
    assert_eq!(
        db.number("select reltuples::bigint from pg_class where relname = 'deliveries'").await,
        30
    );
    db.execute("delete from deliveries").await;
    db.execute(FILL_DELIVERIES).await;
    assert_plans(&db, &mut session, "vacuumed while nearly empty, with its pages").await;
}

/// A session as the store opens it for the statements that are planned once.
async fn session(db: &Db) -> PgConnection {
    let mut session = options(&db.url).unwrap().connect().await.unwrap();
    Plans::Generic.apply(&mut session).await.unwrap();
    session
}

/// The values for `reltuples` and `relpages`.
const NUMBERS: [u32; 5] = [0, 1, 2, 1000, 1_000_000];

/// The tables with the indexes that statements read.
const RELATIONS: [&str; 9] = [
    "events",
    "events_pkey",
    "events_key",
    "deliveries",
    "deliveries_pkey",
    "deliveries_due",
    "deliveries_dead",
    "attempts_pkey",
    "actions_pkey",
];

/// The number of states drawn for each relation separately, in addition to the combinations in
/// which all tables have the same numbers, and all indexes have the same.
const DRAWN_STATES: usize = 200;

/// States that need no rights beyond those of the program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_are_index_probes_when_empty_and_when_filled() {
    let db = Db::postgres_directly().await;
    let mut session = session(&db).await;
    let analyse = "analyze events; analyze deliveries; analyze attempts; analyze actions";
    assert_all_probes(&mut session, "empty").await;
    db.execute(analyse).await;
    assert_all_probes(&mut session, "empty, analysed").await;
    fill(&db, 6).await;
    assert_all_probes(&mut session, "filled").await;
    db.execute(analyse).await;
    assert_all_probes(&mut session, "filled, analysed").await;
}

/// Only a superuser may write these numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_stay_index_probes_with_any_numbers_in_the_catalog() {
    let db = Db::postgres_directly().await;
    db.execute("alter table events set (autovacuum_enabled = off); alter table deliveries set (autovacuum_enabled = off)").await;
    fill(&db, 60).await;
    let mut session = session(&db).await;

    for tuples in NUMBERS {
        for pages in NUMBERS {
            set_numbers(
                &db,
                "relname in ('events', 'deliveries', 'attempts', 'actions')",
                tuples,
                pages,
            )
            .await;
            for index_tuples in NUMBERS {
                for index_pages in NUMBERS {
                    set_numbers(
                        &db,
                        "relname ~ '^(events|deliveries|attempts|actions)_'",
                        index_tuples,
                        index_pages,
                    )
                    .await;
                    let state = format!(
                        "tables ({tuples} rows, {pages} pages), indexes ({index_tuples} rows, {index_pages} pages)"
                    );
                    assert_all_probes(&mut session, &state).await;
                }
            }
        }
    }
    let mut random = fastrand::Rng::with_seed(18);
    let mut draw = || NUMBERS[random.usize(..NUMBERS.len())];
    for _ in 0..DRAWN_STATES {
        let mut state = String::new();
        for relation in RELATIONS {
            let (tuples, pages) = (draw(), draw());
            set_numbers(&db, &format!("relname = '{relation}'"), tuples, pages).await;
            state += &format!("{relation} ({tuples} rows, {pages} pages) ");
        }
        assert_all_probes(&mut session, &state).await;
    }
}

/// Thousands of events: half of them are due, and a quarter belongs to a source without due events.
async fn fill(db: &Db, thousands: u32) {
    let scaled = |statement: &str| {
        ["600000", "450000", "300000"].iter().fold(statement.to_owned(), |statement, number| {
            let rows: u32 = number.parse().unwrap();
            statement.replace(number, &(rows / 600 * thousands).to_string())
        })
    };
    db.execute(&scaled(FILL_EVENTS)).await;
    db.execute(&scaled(FILL_DELIVERIES)).await;
}

/// Other schemas may have tables with the same names.
async fn set_numbers(db: &Db, relations: &str, tuples: u32, pages: u32) {
    db.execute(&format!(
        "update pg_class set reltuples = {tuples}, relpages = {pages}
         where relnamespace = current_schema()::regnamespace and {relations}"
    ))
    .await;
}

async fn assert_all_probes(session: &mut PgConnection, state: &str) {
    for (statement, plan) in plans(session).await {
        assert_probes(&plan, &format!("{state}, {statement}"));
    }
}

async fn assert_plans(db: &Db, session: &mut PgConnection, state: &str) {
    // The same prepared statement in one session, beyond the sixth execution.
    for execution in 1..=8 {
        let (plan, took) = explain_claim(session).await;
        // Both columns must bound the scan. Otherwise it would read all rows that are not due.
        let bounds = plan
            .lines()
            .skip_while(|line| !line.contains("Index Scan using deliveries_due"))
            .nth(1)
            .unwrap_or_default();
        let both = "Index Cond: ((source = demand.source) AND (due_at >= demand.due_from) AND (due_at <= statement_timestamp()))";
        assert!(bounds.trim() == both, "{state}, execution {execution}:\n{plan}");
        assert!(
            plan.contains("deliveries_pkey") && plan.contains("events_pkey"),
            "{state}, execution {execution}:\n{plan}"
        );
        assert_probes(&plan, state);
        assert!(took < FAST, "{state}, execution {execution}: {took:?}\n{plan}");
    }
    for execution in 1..=8 {
        let started = Instant::now();
        let claimed = db
            .store
            .claim(vec![demand("orders", 256), demand("quiet", 256)])
            .await
            .unwrap()
            .claimed
            .len();
        assert_eq!(claimed, 256);
        assert!(started.elapsed() < FAST, "{state}, claim {execution}: {:?}", started.elapsed());
    }
    assert_all_probes(session, state).await;
    let started = Instant::now();
    let records = db.store.sources(vec![source("orders"), source("quiet")], 1000).await.unwrap();
    assert_eq!(records.len(), 2);
    assert!(started.elapsed() < FAST, "{state}, sources: {:?}", started.elapsed());
    let key = Some(IdempotencyKey::parse(b"key-5").unwrap());
    let filter = EventFilter { key, ..EventFilter::default() };
    let size = PageSize { events: 50, looks: 5000 };
    let started = Instant::now();
    assert_eq!(db.store.list(filter, Span::ALL, size).await.unwrap().events.len(), 1);
    assert!(started.elapsed() < FAST, "{state}, key without a source: {:?}", started.elapsed());
}

fn assert_probes(plan: &str, state: &str) {
    assert_nothing_is_read_again(plan, state);
    // The paused sources are a few rows, and may be read in full.
    let lines: Vec<&str> = plan.lines().filter(|line| !line.contains("paused_sources")).collect();
    for wrong in ["Seq Scan", "Hash Join", "Merge Join", "Bitmap", "JIT"] {
        assert!(!lines.iter().any(|line| line.contains(wrong)), "{state}: {wrong} in\n{plan}");
    }
    // An index scan without a condition is a full scan of the table, unless a limit takes its first
    // entries as they are.
    let mut above = "";
    for (at, line) in lines.iter().enumerate() {
        if line.contains("Index Scan") || line.contains("Index Only Scan") {
            let below = lines.get(at + 1).unwrap_or(&"");
            let is_limited = above.contains("Limit  (") && !below.contains("Filter");
            assert!(
                below.contains("Index Cond") || is_limited,
                "{state}: {} in\n{plan}",
                line.trim()
            );
            let by_source = ["deliveries_due", "deliveries_dead"];
            let is_by_source = by_source.iter().any(|index| line.contains(&format!("{index} ")));
            let starts_with_source =
                ["(source ", "((source "].map(|start| format!("Index Cond: {start}"));
            assert!(
                !is_by_source
                    || !below.contains("Index Cond")
                    || starts_with_source.iter().any(|start| below.contains(start)),
                "{state}: the index does not begin with the source, in\n{plan}"
            );
        }
        above = line;
    }
}

/// The inner side of a nested loop is executed once for each row of the outer one. If it reads a whole
/// batch, the time grows with the square of the batch.
fn assert_nothing_is_read_again(plan: &str, state: &str) {
    let lines: Vec<&str> = plan.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("Nested Loop")) {
        let below = &lines[at + 1..];
        let below = below.iter().take_while(|other| depth(other) > depth(line));
        let below: Vec<&str> = below.copied().collect();
        let outer = below.iter().position(|line| line.trim_start().starts_with("->"));
        let outer = outer.expect("a nested loop has two inputs");
        let inner = below.iter().skip(outer + 1).position(|line| {
            line.trim_start().starts_with("->") && depth(line) == depth(below[outer])
        });
        let inner = outer + 1 + inner.expect("a nested loop has two inputs");
        let reads_all = ["CTE Scan", "Materialize", "Function Scan"];
        // These have one row.
        let is_single =
            ["Result  (", "Aggregate  ("].iter().any(|node| below[outer].contains(node));
        assert!(
            is_single
                || !reads_all.iter().any(|node| below[inner].contains(node))
                    && !below.get(inner + 1).is_some_and(|condition| condition.contains("= ANY (")),
            "{state}: {} for each row in\n{plan}",
            below[inner].trim()
        );
    }
}

fn explained(
    options: &str,
    statement: &str,
) -> QueryScalar<'static, Postgres, String, PgArguments> {
    sqlx::query_scalar(AssertSqlSafe(format!("explain ({options}) {statement}")))
}

async fn plan(
    session: &mut PgConnection,
    query: QueryScalar<'_, Postgres, String, PgArguments>,
) -> String {
    query.fetch_all(session).await.unwrap().join("\n")
}

/// Statements that look no rows up: they read the state of the server, or the few applied
/// migrations.
const WITHOUT_ROWS: [&str; 14] = [
    "blockers",
    "is_outside",
    "migration_done",
    "migrations_table",
    "oldest_snapshot",
    "place",
    "probe_begin",
    "probe_end",
    "schema",
    "session",
    "session_lives",
    "session_mark",
    "standing",
    "standing_only",
];

/// The statements of the intake and of the worker, whose plans are made once.
const PLANNED_ONCE: [&str; 5] =
    ["accept", "accept_existing", "claim", "settle_delivered", "settle_undelivered"];

/// The plan of each statement that looks rows up, with the statement's name. No statement is
/// executed.
async fn plans(session: &mut PgConnection) -> Vec<(String, String)> {
    let mut statements = statements::of("postgres");
    for name in WITHOUT_ROWS {
        assert!(statements.remove(name).is_some(), "there is no statement {name}");
    }
    let mut plans = Vec::new();
    for name in ["list", "redrive_all", "discard_all"] {
        let statement = statements.remove(name).expect("the statement has a file");
        for path in [Path::Key, Path::DeadLetters, Path::Owed, Path::Events] {
            if name == "list" || path != Path::Events {
                let plan = explain_search(session, &statement, path, Some("orders")).await;
                plans.push((format!("{name}, {path:?}"), plan));
            }
        }
        let plan = explain_search(session, &statement, Path::Key, None).await;
        assert_each_source_is_probed(&plan);
        plans.push((format!("{name}, Key without a source"), plan));
    }
    for (name, statement) in statements {
        if PLANNED_ONCE.contains(&name.as_str()) {
            let plan = generic_plan(session, &statement).await;
            plans.push((format!("{name}, generic plan"), plan));
        }
        let plan = explain(session, &statement).await;
        if name == "cap_due_times" {
            assert_both_columns_bound(&plan);
        }
        // Otherwise a search for sources with work would pass over all dead letters of a source.
        let has_dead_letters = plan.contains("due_at IS NOT NULL");
        assert!(!has_dead_letters, "the index of due times has dead letters, in {name}:\n{plan}");
        plans.push((name, plan));
    }
    plans
}

/// The plan without parameters. It does not depend on the values, so all of them are null.
async fn generic_plan(session: &mut PgConnection, statement: &str) -> String {
    let parameters = (1..=32).take_while(|n| statement.contains(&format!("${n}"))).count();
    let nulls = vec!["null"; parameters].join(", ");
    session.execute(AssertSqlSafe(format!("prepare planned_once as {statement}"))).await.unwrap();
    let explained =
        sqlx::query_scalar(AssertSqlSafe(format!("explain (costs) execute planned_once({nulls})")))
            .persistent(false);
    let plan: Vec<String> = explained.fetch_all(&mut *session).await.unwrap();
    session.execute("deallocate planned_once").await.unwrap();
    plan.join("\n")
}

/// The plan of a statement. An array has 256 values, as a batch has.
async fn explain(session: &mut PgConnection, statement: &str) -> String {
    let prepared = session.prepare(AssertSqlSafe(statement).into_sql_str()).await.unwrap();
    let Some(Either::Left(types)) = prepared.parameters() else { panic!("no types: {statement}") };
    let mut query = explained("costs", statement);
    for parameter in types {
        query = match parameter.name() {
            "UUID" => query.bind(ids()[0]),
            "UUID[]" => query.bind(ids()),
            "TEXT" => query.bind("orders"),
            "TEXT[]" => query.bind(vec!["orders"; 256]),
            "BYTEA[]" => query.bind(vec![b"".as_slice(); 256]),
            "INT4[]" => query.bind(vec![200i32; 256]),
            "INT8" => query.bind(500i64),
            "INT8[]" => query.bind(vec![60_000_000i64; 256]),
            "BOOL" => query.bind(true),
            "BOOL[]" => query.bind(vec![true; 256]),
            other => panic!("give a value of the type {other} here, for:\n{statement}"),
        };
    }
    plan(session, query).await
}

/// Both columns of the index must bound the scan of capped due times. Otherwise it would read all
/// rows of the source.
fn assert_both_columns_bound(plan: &str) {
    let lines: Vec<&str> = plan.lines().map(str::trim).collect();
    let both = ".source) AND (due_at > (statement_timestamp()";
    let is_bounded = |pair: &[&str]| {
        pair[0].contains("Index Scan using deliveries_due")
            && pair[1].starts_with("Index Cond: ((source = bound")
            && pair[1].contains(both)
    };
    assert!(lines.windows(2).any(is_bounded), "{plan}");
    assert!(!plan.contains("Sort"), "the index has the order of due times:\n{plan}");
}

/// A key without a source costs two probes of the unique index for each source: one finds the source,
/// and one the event.
fn assert_each_source_is_probed(plan: &str) {
    let conditions: Vec<&str> = plan
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.contains("CTE looked"))
        .filter(|line| line.starts_with("Index Cond: ((source = "))
        .collect();
    assert!(
        conditions.iter().any(|line| line.contains("AND (idempotency_key = 'key-5'")),
        "{plan}"
    );
    assert!(plan.contains("Index Cond: (source > stored"), "{plan}");
    assert!(!plan.contains("Filter: (idempotency_key"), "{plan}");
}

fn claim(options: &str) -> QueryScalar<'static, Postgres, String, PgArguments> {
    explained(options, sql::CLAIM)
        .bind(vec!["orders", "quiet"])
        .bind(vec![256i64, 256])
        .bind(vec![60_000_000i64; 2])
        .bind(vec![20i64; 2])
        .bind(vec![0i64; 2])
        .bind(vec![1_000_000i64; 2])
}

/// The plan of a claim that is executed, and its duration.
async fn explain_claim(session: &mut PgConnection) -> (String, Duration) {
    let started = Instant::now();
    (plan(session, claim("analyze")).await, started.elapsed())
}

fn ids() -> Vec<Uuid> {
    (1..=256u128).map(|n| Uuid::from_u128(0x7000_8000_0000_0000_0000 + n * 1000)).collect()
}

async fn explain_search(
    session: &mut PgConnection,
    statement: &str,
    path: Path,
    source: Option<&str>,
) -> String {
    let path = match path {
        Path::Key => "key",
        Path::DeadLetters => "dead_letters",
        Path::Owed => "owed",
        Path::Events => "events",
    };
    let mut query = explained("costs", statement)
        .bind(path)
        .bind(source)
        .bind((path == "key").then_some("key-5"))
        .bind(None::<&str>)
        .bind(None::<&str>)
        .bind(None::<i32>)
        .bind(Uuid::nil())
        .bind(Uuid::max())
        .bind(50i64)
        .bind(10_000i64);
    if statement.contains("$11") {
        // Whether the statement only counts.
        query = query.bind(false);
    }
    plan(session, query).await
}
