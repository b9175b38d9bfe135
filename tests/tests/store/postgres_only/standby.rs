//! A primary whose commits wait for a missing standby: every answer waits for the standby too, a
//! cancelled wait is not a success, and abandoned calls do not accumulate sessions at the server.

use crate::db::{Db, demand, event, events, settlement, source};
use sqlx::{Connection, PgConnection};
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;
use surehook::ports::StoreError;
use surehook_core::admission::Stored;
use surehook_core::event::Outcome;
use tests::postgres::{Cluster, Settings};
use tests::wait;
use tokio::time::timeout;
use uuid::Uuid;

/// The maximum number of sessions of a process at the server, as documented for operators.
const MOST_SESSIONS: i64 = 14;

async fn database(cluster: &Cluster) -> Db {
    let db = Db::postgres_at(cluster.create_database().await);
    db.open().migrate().await.unwrap();
    db
}

/// The result of a query of the server's own state.
async fn number(cluster: &Cluster, query: &'static str) -> i64 {
    let mut connection = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
    let number = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    number
}

const WAITING: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
const SESSIONS: &str = "select count(*) from pg_stat_activity where application_name = 'surehook'";

/// From now on commits wait for a missing standby. The server applies the setting some time after
/// the call, so a commit is tried until it waits, and then terminated.
async fn commits_hang(cluster: &Cluster) {
    cluster.commits_wait_for("nobody").await;
    let mut watching = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
    loop {
        let mut trying = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
        let pid: i32 =
            sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut trying).await.unwrap();
        let hangs = timeout(
            Duration::from_millis(100),
            sqlx::raw_sql("create table tried (); drop table tried").execute(&mut trying),
        )
        .await;
        let waited = "select exists (select from pg_stat_activity where pid = $1 and wait_event = 'SyncRep')";
        let waited: bool =
            sqlx::query_scalar(waited).bind(pid).fetch_one(&mut watching).await.unwrap();
        let _: bool = sqlx::query_scalar("select pg_terminate_backend($1, 30000)")
            .bind(pid)
            .fetch_one(&mut watching)
            .await
            .unwrap();
        if hangs.is_err() && waited {
            return;
        }
    }
}

/// Makes a call, and cancels the wait of its commit as soon as it waits.
async fn cancelled<T>(cluster: &Cluster, call: impl Future<Output = T>) -> T {
    let cancelling = async {
        wait::until("a commit to wait for the standby", || async {
            let waiting = number(cluster, WAITING).await;
            if waiting > 0 { Ok(()) } else { Err(format!("{waiting} sessions wait")) }
        })
        .await;
        cluster
            .execute(
                "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'",
            )
            .await;
    };
    tokio::join!(call, cancelling).0
}

fn assert_unknown<T: Debug>(call: &str, answer: &Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{call}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_wait_for_the_standby_is_cancelled_is_unknown() {
    let cluster = Cluster::start(Settings::default());
    let db = database(&cluster).await;
    let (new, replayed) = (event("new"), event("replayed"));
    db.store.accept(vec![replayed.clone()]).await.unwrap();
    let claim = db.claimed("claimed").await;
    commits_hang(&cluster).await;

    assert_unknown("accept", &cancelled(&cluster, db.store.accept(vec![new.clone()])).await);
    assert_unknown("replay", &cancelled(&cluster, db.store.accept(vec![replayed.clone()])).await);
    assert_unknown(
        "replay of the cancelled accept",
        &cancelled(&cluster, db.store.accept(vec![new.clone()])).await,
    );
    assert_unknown(
        "settle",
        &cancelled(&cluster, db.store.settle(vec![settlement(&claim, Outcome::Delivered)])).await,
    );
    assert_unknown("claim", &cancelled(&cluster, db.store.claim(vec![demand("orders", 1)])).await);
    assert_unknown("pause", &cancelled(&cluster, db.store.pause(source("orders"), true)).await);
    assert_unknown("resume", &cancelled(&cluster, db.store.pause(source("orders"), false)).await);
    assert_unknown("probe", &cancelled(&cluster, db.store.probe(event("probe"))).await);

    cluster.commits_wait_for_none().await;
    let answers = db.store.accept(vec![new]).await.unwrap();
    assert!(
        matches!(answers[..], [Stored::Existing { .. }]),
        "the cancelled accept must be committed: {answers:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_waits_for_the_standby_too() {
    let cluster = Cluster::start(Settings::default());
    let db = database(&cluster).await;
    let there = event("there");
    db.store.accept(vec![there.clone()]).await.unwrap();
    db.store.pause(source("paused"), true).await.unwrap();
    commits_hang(&cluster).await;

    let soon = Duration::from_secs(1);
    let replay = timeout(soon, db.store.accept(vec![there.clone()])).await;
    assert!(replay.is_err(), "a replay: {replay:?}");
    let paused = timeout(soon, db.store.pause(source("paused"), true)).await;
    assert!(paused.is_err(), "a second pause: {paused:?}");
    let resumed = timeout(soon, db.store.pause(source("other"), false)).await;
    assert!(resumed.is_err(), "a second resume: {resumed:?}");
    assert_eq!(
        db.another().find(there.id).await.unwrap().map(|event| event.id),
        Some(there.id),
        "a read must not wait"
    );
    cluster.commits_wait_for_none().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_calls_hold_their_connections_until_the_server_ends_them() {
    let cluster = Cluster::start(Settings::default());
    let db = database(&cluster).await;
    db.store.accept(events(0..20)).await.unwrap();
    commits_hang(&cluster).await;
    for round in 0..20 {
        let time_limit = Duration::from_millis(100);
        let accepted =
            timeout(time_limit, db.store.accept(vec![event(&format!("given-up-{round}"))])).await;
        assert!(!matches!(accepted, Ok(Ok(_))), "{accepted:?}");
        let _ = timeout(time_limit, db.store.claim(vec![demand("orders", 1)])).await;
        let _ = timeout(time_limit, db.store.pause(source(&format!("source-{round}")), true)).await;
        let sessions = number(&cluster, SESSIONS).await;
        assert!(sessions <= MOST_SESSIONS, "{sessions} sessions after {} calls", (round + 1) * 3);
    }
    wait::until("a call that is refused with its reason", || async {
        match timeout(
            Duration::from_secs(3),
            db.store.accept(vec![event(&Uuid::new_v4().to_string())]),
        )
        .await
        {
            Ok(Err(StoreError::Unavailable(why))) if why.contains("by abandoned calls") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let sessions = number(&cluster, SESSIONS).await;
    assert!(sessions <= MOST_SESSIONS, "{sessions} sessions");
    assert!(number(&cluster, WAITING).await > 0, "the waits must not be cancelled");

    cluster.commits_wait_for_none().await;
    wait::until("the connections to be free again", || async {
        let in_use: usize = db.store.connections().iter().map(|pool| pool.in_use).sum();
        if in_use == 0 { Ok(()) } else { Err(format!("{in_use} are in use")) }
    })
    .await;
    assert_eq!(db.store.accept(vec![event("one-more")]).await, Ok(vec![Stored::Inserted]));
    assert_eq!(
        db.count("events").await,
        20 + 5 + 1,
        "only the calls that the intake's five connections had sent must be stored"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_free_again_when_its_session_has_ended() {
    let cluster = Cluster::start(Settings::default());
    let db = database(&cluster).await;
    for round in 0..20 {
        let cut = async {
            cluster.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'surehook'").await;
        };
        let (_, ()) = tokio::join!(db.store.accept(vec![event(&format!("cut-{round}"))]), cut);
    }
    wait::until("the connections to be free again", || async {
        let in_use: usize = db.store.connections().iter().map(|pool| pool.in_use).sum();
        if in_use == 0 { Ok(()) } else { Err(format!("{in_use} are in use")) }
    })
    .await;
    // The idle connection may have been cut too, which is detected when it is used.
    wait::until("an event to be stored", || async {
        db.store.accept(vec![event("after")]).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}
