//! PostgreSQL behind PgBouncer, which gives each transaction another session of the server and
//! refuses the startup parameters that it does not know. The promises are the same as without it,
//! and nothing outlives a transaction.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use std::collections::BTreeSet;
use surehook::store::postgres::sql::migrator;
use tests::http::Client;
use tests::postgres::pgbouncer::{self, Mode, Pooler};
use tests::postgres::{Cluster, Settings, Stop, shared};
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::trial;
use uuid::Uuid;

/// Fewer than a single process has connections.
const SESSIONS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_share_three_sessions_in_transaction_mode() {
    every_promise_is_kept(Mode::Transaction, SESSIONS).await;
}

/// Each connection of a process has its own session for as long as it is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_share_a_pooler_in_session_mode() {
    every_promise_is_kept(Mode::Session, 60).await;
}

async fn every_promise_is_kept(mode: Mode, sessions: usize) {
    let url = shared().create_database().await;
    let pgbouncer = pgbouncer::start(shared(), mode, sessions, "").await;
    let trial = trial::run(&pgbouncer.through(&url)).await;
    assert!(trial.is_pooled, "{trial:?}");
    assert_eq!((trial.posts, trial.delivered, trial.lost), (1_500, 1_350, 0), "{trial:?}");
    let all: Vec<i64> = migrator().iter().map(|migration| migration.version).collect();
    assert_eq!(applied(&url).await, all, "each migration is applied once, in order");
    if mode == Mode::Transaction {
        nothing_is_left(&pgbouncer, &url).await;
    }
}

/// The applied migrations.
async fn applied(url: &str) -> Vec<i64> {
    let mut direct = PgConnection::connect(url).await.expect("the server is reachable");
    let applied = sqlx::query_scalar("select version from _sqlx_migrations order by installed_on");
    applied.fetch_all(&mut direct).await.expect("the database is migrated")
}

/// What the program has set, prepared or locked in the sessions of the server is gone.
async fn nothing_is_left(pgbouncer: &Pooler, url: &str) {
    let through: PgConnectOptions = pgbouncer.through(url).parse().expect("a URL");
    let mut through = through.extra_float_digits(None).connect().await.expect("it listens");
    // One after the other, each in whatever session the pooler gives.
    for _ in 0..2 * SESSIONS {
        for (question, answer) in [
            ("show statement_timeout", "0"),
            ("show lock_timeout", "0"),
            ("show enable_seqscan", "on"),
            ("show search_path", "\"$user\", public"),
            ("select count(*)::text from pg_prepared_statements", "0"),
            ("select count(*)::text from pg_locks where locktype = 'advisory'", "0"),
        ] {
            let row = sqlx::raw_sql(question).fetch_one(&mut through).await.expect("an answer");
            let found: String = sqlx::Row::get(&row, 0);
            assert_eq!(found, answer, "{question}");
        }
    }
}

/// A role for which commits need not wait for the disk, as some providers set it. A crash would lose
/// the events of the last fraction of a second, if the program did not set it otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_setting_of_the_role_makes_an_acknowledged_event_less_durable() {
    for mode in [None, Some(Mode::Session), Some(Mode::Transaction)] {
        let cluster = Cluster::start(Settings {
            more: vec![("wal_writer_delay", "10s".into())],
            ..Settings::default()
        });
        let url = cluster.create_database().await;
        cluster.execute("alter role postgres set synchronous_commit = off").await;
        let pooler = match mode {
            Some(mode) => Some(pgbouncer::start(&cluster, mode, 20, "").await),
            None => None,
        };
        let through = pooler.as_ref().map_or_else(|| url.clone(), |pooler| pooler.through(&url));
        let acknowledged = acknowledged_before_crashes(&cluster, &through).await;
        let mut direct = PgConnection::connect(&url).await.expect("the server is reachable");
        let stored: Vec<Uuid> = sqlx::query_scalar("select id from events")
            .fetch_all(&mut direct)
            .await
            .expect("a list");
        let lost = acknowledged.difference(&stored.into_iter().collect()).count();
        assert_eq!(lost, 0, "of {} acknowledged events, {mode:?}", acknowledged.len());
    }
}

/// The events that are acknowledged before each of four crashes of the server.
async fn acknowledged_before_crashes(cluster: &Cluster, url: &str) -> BTreeSet<Uuid> {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let service = Service::start(url, &configuration(&sink)).await;
    let mut acknowledged = BTreeSet::new();
    for crash in 0..4 {
        for number in 0..10 {
            let keys: Vec<_> = (0..8).map(|key| format!("{crash}-{number}-{key}")).collect();
            let posts = keys.iter().map(|key| accepted(&service, key));
            acknowledged.extend(futures::future::join_all(posts).await);
        }
        tokio::task::block_in_place(|| {
            cluster.stop(Stop::Kill);
            cluster.resume();
        });
    }
    acknowledged
}

/// A schema of the URL's own is found in each transaction, although the pooler does not know
/// `search_path`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_urls_own_settings_hold_through_a_pooler() {
    let url = shared().create_database().await;
    let mut direct = PgConnection::connect(&url).await.expect("the server is reachable");
    for schema in ["orders", "refunds"] {
        let create = AssertSqlSafe(format!("create schema {schema}"));
        sqlx::raw_sql(create).execute(&mut direct).await.expect("a schema is created");
    }
    let pgbouncer = pgbouncer::start(shared(), Mode::Transaction, 1, "").await;
    let sink = Sink::start(|_| Answer::status(200)).await;
    let mut stored = Vec::new();
    for schema in ["orders", "refunds"] {
        let url = format!("{}?options=-c%20search_path%3D{schema}", pgbouncer.through(&url));
        let service = Service::start(&url, &configuration(&sink)).await;
        stored.push((schema, post(&service, "same-key").await.expect("it is stored"), service));
    }
    for (schema, event, _) in &stored {
        let query = AssertSqlSafe(format!("select id from {schema}.events"));
        let found: Vec<Uuid> =
            sqlx::query_scalar(query).fetch_all(&mut direct).await.expect("the schema has a table");
        assert_eq!(found, [*event], "{schema}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_denies_the_pooler_is_refused_with_the_reason() {
    let url = shared().create_database().await;
    let ignoring = "ignore_startup_parameters = options";
    let pgbouncer = pgbouncer::start(shared(), Mode::Transaction, SESSIONS, ignoring).await;
    let sink = Sink::start(|_| Answer::status(200)).await;
    let denied = format!("{}?pooler=none", pgbouncer.through(&url));
    let service = Service::begin(&denied, &configuration(&sink)).await;
    service.logs("remove `pooler=none` from the database URL").await;
    drop(service);

    let found_out = Service::start(&pgbouncer.through(&url), &configuration(&sink)).await;
    assert!(found_out.log().contains("database reached through a pooler"));
}

/// Posts until it is accepted. Between a crash and the next connection, posts are refused.
async fn accepted(service: &Service, key: &str) -> Uuid {
    tests::wait::until("the post to be accepted", || async {
        post(service, key).await.ok_or_else(|| service.log())
    })
    .await
}

async fn post(service: &Service, key: &str) -> Option<Uuid> {
    let headers = [("idempotency-key", key)];
    let url = service.url("/webhooks/github");
    let answer = Client::default().post(&url, &headers, b"{}".to_vec()).await.ok()?;
    (answer.status_code == 202).then(|| {
        answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id")
    })
}

fn configuration(sink: &Sink) -> String {
    sink.three_impatient_sources("2s", "")
}
