//! Restarts of the server.

use crate::db::{Db, LEASE, demand, event, events};
use futures::future::join_all;
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};
use surehook::ports::{Store, StoreError};
use surehook_core::admission::Stored;
use surehook_core::event::Status;
use tests::postgres::{Cluster, Settings, Stop};
use tests::wait;

async fn database(cluster: &Cluster) -> Db {
    let db = Db::postgres_at(cluster.create_database().await);
    db.open().migrate().await.unwrap();
    db
}

/// Uses all connections of the intake at once, so that each exists and is idle afterwards.
async fn warm_up(store: &dyn Store, round: u32) {
    let accepts =
        (0..12).map(|n| store.accept(events(round * 1000 + n * 10..round * 1000 + n * 10 + 5)));
    for accepted in join_all(accepts).await {
        accepted.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_fails_calls_fast_and_works_after_its_restart() {
    let cluster = Cluster::start(Settings::default());
    let db = database(&cluster).await;
    for (round, stop) in (1..).zip([Stop::Fast, Stop::Immediate, Stop::Kill]) {
        warm_up(&*db.store, round).await;
        cluster.stop(stop);
        let started = Instant::now();
        let answer = db.store.accept(vec![event("while-it-is-away")]).await;
        assert!(
            matches!(answer, Err(StoreError::Unavailable(_) | StoreError::Unknown(_))),
            "{answer:?}"
        );
        let answer = db.store.accept(vec![event("while-it-is-away")]).await;
        assert!(
            matches!(answer, Err(StoreError::Unavailable(_))),
            "the idle connections must be closed: {answer:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        cluster.resume();
        warm_up(&*db.store, round + 100).await;
        let event = event(&format!("after-{round}"));
        assert_eq!(db.store.accept(vec![event.clone()]).await, Ok(vec![Stored::Inserted]));
        assert_eq!(db.found(event.id).await.status, Status::Queued);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unnoticed_restart_costs_at_most_one_failure() {
    let cluster = Cluster::start(Settings::default());
    let db = database(&cluster).await;
    warm_up(&*db.store, 1).await;
    cluster.stop(Stop::Fast);
    cluster.resume();
    let first = db.store.accept(vec![event("first")]).await;
    assert!(!matches!(first, Err(StoreError::Rejected(_) | StoreError::Conflict(_))), "{first:?}");
    for key in 0..6 {
        assert_eq!(
            db.store.accept(vec![event(&format!("next-{key}"))]).await,
            Ok(vec![Stored::Inserted]),
            "no other stale connection is used"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_that_the_server_ended_cost_at_most_one_failure() {
    let db = Db::postgres().await;
    for round in 0..3 {
        warm_up(&*db.store, round).await;
        let ended = db
            .number(
                "select count(pg_terminate_backend(pid, 30000)) from pg_stat_activity
                 where application_name = 'surehook' and datname = current_database()",
            )
            .await;
        assert!(ended > 1, "{ended} connections were idle");
        let mut failed = Vec::new();
        for n in 0..7 {
            failed.extend(db.store.accept(vec![event(&format!("{round}-{n}"))]).await.err());
        }
        assert!(failed.len() <= 1, "{failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_events_and_claims_survive_a_killed_server() {
    let cluster = Cluster::start(Settings { fsync: true, ..Settings::default() });
    let db = database(&cluster).await;
    let batch = events(0..50);
    assert_eq!(db.store.accept(batch.clone()).await, Ok(vec![Stored::Inserted; 50]));
    let claimed = db.store.claim(vec![demand("orders", 10)]).await.unwrap().claimed;
    cluster.stop(Stop::Kill);
    cluster.resume();
    let store = db.another();
    for event in &batch {
        assert!(store.find(event.id).await.unwrap().is_some());
    }
    for claim in &claimed {
        db.make_due(claim.event, LEASE).await;
    }
    let again = store.claim(vec![demand("orders", 100)]).await.unwrap().claimed;
    assert_eq!(again.len(), 50);
    assert_eq!(
        again.iter().filter(|claim| claim.attempt == 2).count(),
        10,
        "the claims must be committed too"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_alone_find_the_server_that_accepts_writes() {
    let old = Cluster::start(Settings::default());
    let new = old.standby("standby", Settings::default());
    // So the standby has the schema when it is promoted.
    old.commits_wait_for("standby").await;
    let created = old.create_database().await;
    let name = created.rsplit_once('/').unwrap().1;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", old.port(), new.port());
    let opened = surehook::store::open(&format!("postgres://postgres@{hosts}/{name}")).unwrap();
    opened.migrate().await.unwrap();
    let store = opened.store();
    assert_eq!(store.ping().await, Ok(()));

    // The old primary keeps its connections, and accepts no more writes.
    old.execute("alter system set default_transaction_read_only = on").await;
    old.execute("select pg_reload_conf()").await;
    new.promote().await;

    wait::until("a ping to reach the new primary", || async {
        store.ping().await.map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_of_the_new_primary_rules_out_the_old_one() {
    // A standby cannot be copied without full pages in the log.
    let settings =
        Settings { more: vec![("full_page_writes", "on".to_owned())], ..Settings::default() };
    let old = Cluster::start(settings.clone());
    let created = old.create_database().await;
    surehook::store::open(&created).unwrap().migrate().await.unwrap();
    let new = old.standby("new", settings.clone());
    let standby = new.standby("standby", settings);
    new.promote().await;
    wait::until("the standby to replay the new timeline", || async {
        // The standby flushes its log when it replays this.
        new.execute("create table dropped (); drop table dropped").await;
        let mut session = PgConnection::connect(&standby.url("postgres")).await.unwrap();
        let replayed = "select min_recovery_end_timeline from pg_control_recovery()";
        let replayed: i32 = sqlx::query_scalar(replayed).fetch_one(&mut session).await.unwrap();
        if replayed == 2 { Ok(()) } else { Err(format!("it is on timeline {replayed}")) }
    })
    .await;

    let name = created.rsplit_once('/').unwrap().1;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", old.port(), standby.port());
    let url = format!("postgres://postgres@{hosts}/{name}");
    let answer = surehook::store::open(&url).unwrap().store().accept(vec![event("a")]).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_accepts_no_writes_is_not_used() {
    let cluster = Cluster::start(Settings::default());
    let standby = cluster.standby("standby", Settings::default());
    let read_only = cluster.create_database().await;
    let name = read_only.rsplit_once('/').unwrap().1;
    // A managed database withholds a function from its users.
    let withhold = "revoke execute on function pg_control_system() from public";
    for url in [cluster.url("postgres"), read_only.clone()] {
        Db::postgres_at(url).execute(withhold).await;
    }
    cluster.execute("create role managed login").await;
    let set = format!("alter database {name} set default_transaction_read_only = on");
    cluster.execute(&set).await;
    for (url, wanted, why) in [
        (standby.url("postgres"), "primary", "it is a standby"),
        (read_only, "read-write", "it is set to read-only"),
    ] {
        for role in ["postgres", "managed"] {
            let url = url.replacen("//postgres@", &format!("//{role}@"), 1);
            let url = format!("{url}?target_session_attrs={wanted}");
            let store = surehook::store::open(&url).unwrap().store();
            // The standby replays the changes some time after they were made.
            wait::until(why, || async {
                match store.ping().await {
                    Err(StoreError::Unavailable(told)) if told.contains(why) => Ok(()),
                    other => Err(format!("{role}: {other:?}")),
                }
            })
            .await;
        }
    }
}
