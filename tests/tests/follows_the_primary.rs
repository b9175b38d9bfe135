//! A URL with several PostgreSQL servers. The program uses the one that accepts writes. When it
//! fails, the standby takes over, and no acknowledged event is missing. Servers are skipped if they
//! are read-only, do not respond, or have been replaced.

use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::http::Client;
use tests::postgres::{Cluster, Settings, Stop};
use tests::producer::{Load, Post, Progress, produce, try_once};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::Answer;
use tests::{verdicts, wait};

const LOAD: Load = Load {
    sources: &["github", "stripe", "shopify"],
    posts: 6_000,
    duplicates: 600,
    connections: 32,
};

/// The longest time to a response, whatever the database does: two seconds, plus one for a busy
/// machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_the_old_primary_is_never_used_again() {
    let old = Cluster::start(Settings::default());
    let new = old.standby("standby", Settings::default());
    old.commits_wait_for("standby").await;
    let created = old.create_database().await;
    let name = created.rsplit_once('/').expect("a URL names its database").1;
    let run = Recording::begin(several([old.port(), new.port()], name)).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let services = [
        run.service(&sink.three_impatient_sources("500ms", "")).await,
        run.service(&sink.three_impatient_sources("500ms", "")).await,
    ];
    let targets = services.iter().map(Service::target).collect();
    let progress = Progress::default();
    let producers = tokio::spawn(produce(run.clone(), targets, LOAD, progress.clone()));
    sink.reaches(100).await;
    progress.reaches(LOAD.posts / 6).await;

    let failover = async {
        tokio::task::block_in_place(|| old.stop(Stop::Kill));
        new.promote().await;
        assert!(
            progress.answered() < LOAD.posts / 2,
            "half of the load was answered before the failover"
        );
        let promoted = Instant::now();
        progress.reaches(progress.answered() + 1).await;
        assert!(
            promoted.elapsed() < Duration::from_secs(10),
            "the first event was accepted {:?} after the promotion",
            promoted.elapsed()
        );
    };
    run.while_database_is("failing over", failover).await;
    progress.reaches(LOAD.posts / 3).await;

    // The old primary starts again at its old address, and does not know that it was replaced.
    tokio::task::block_in_place(|| old.resume());
    old.commits_wait_for_none().await;
    old.execute("create table it_can_be_written_to ()").await;
    let changes = changes(&old.url(name)).await;
    assert!(changes > 0, "the old primary had no changes");
    let losing_connections = async {
        while progress.answered() < LOAD.posts * 2 / 3 {
            new.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename like 'service-%'").await;
            progress.reaches(progress.answered() + LOAD.posts / 20).await;
        }
        // Now the old primary is the only server that would accept writes.
        tokio::task::block_in_place(|| new.stop(Stop::Fast));
        for service in &services {
            not_ready(service).await;
        }
        let answered = progress.answered();
        let posts = posts_during(&run, &services[0], Duration::from_secs(2)).await;
        assert!(
            posts.iter().all(|status| *status == 503),
            "only the old primary was running, and posts were answered {posts:?}"
        );
        assert!(answered < LOAD.posts, "the load ended before the new primary was stopped");
        tokio::task::block_in_place(|| new.resume());
    };
    run.while_database_is("losing its connections while the old primary runs", losing_connections)
        .await;

    let sent = producers.await.expect("every post is accepted eventually");
    assert_eq!(
        self::changes(&old.url(name)).await,
        changes,
        "the old primary was changed after it was replaced"
    );
    verdicts::all_taken(&sink, &sent).await;
    for service in &services {
        let log = service.log();
        assert!(
            log.contains(
                "refused as an old primary: its timeline is 1, and another server has timeline 2"
            ),
            "{log}"
        );
    }
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_read_only_servers_are_skipped() {
    let primary = Cluster::start(Settings::default());
    let standby = primary.standby("standby", Settings::default());
    // The kernel accepts its connections, but no server responds.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let silent_port = silent.local_addr().expect("a listener has an address").port();
    let created = primary.create_database().await;
    let name = created.rsplit_once('/').expect("a URL names its database").1;
    let run = Recording::begin(several([silent_port, standby.port(), primary.port()], name)).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&sink.three_impatient_sources("500ms", "")).await;
    assert_eq!(post(&run, &service, "at-first").await, 202);

    let away = async {
        tokio::task::block_in_place(|| primary.stop(Stop::Fast));
        not_ready(&service).await;
        let posts = posts_during(&run, &service, Duration::from_secs(1)).await;
        assert!(
            posts.iter().all(|status| *status == 503),
            "only a standby was running, and posts were answered {posts:?}"
        );
        tokio::task::block_in_place(|| primary.resume());
    };
    run.while_database_is("away except for a standby", away).await;
    service.ready().await;
    assert_eq!(post(&run, &service, "after-the-outage").await, 202);
    let told = format!(
        "127.0.0.1:{silent_port}: no answer in time; 127.0.0.1:{}: it is a standby; 127.0.0.1:",
        standby.port()
    );
    assert!(
        service.log().contains(&told),
        "the log does not name each server with its reason: {told}\n{}",
        service.log()
    );

    // Its sessions stay connected, and the server becomes read-only from one statement to the next.
    let read_only = async {
        primary.execute("alter system set default_transaction_read_only = on").await;
        primary.execute("select pg_reload_conf()").await;
        not_ready(&service).await;
        let posts = posts_during(&run, &service, Duration::from_secs(1)).await;
        assert!(
            posts.iter().all(|status| *status == 503),
            "the primary was read-only, and posts were answered {posts:?}"
        );
        primary.execute("alter system reset default_transaction_read_only").await;
        primary.execute("select pg_reload_conf()").await;
    };
    run.while_database_is("read-only", read_only).await;
    service.ready().await;
    assert_eq!(post(&run, &service, "after-it-was-read-only").await, 202);
    assert!(
        service.log().contains(&format!("127.0.0.1:{}: it is set to read-only", primary.port())),
        "{}",
        service.log()
    );
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

fn several<const N: usize>(ports: [u16; N], database: &str) -> Database {
    let hosts = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
    Database::Postgres(format!(
        "postgres://postgres@{hosts}/{database}?target_session_attrs=read-write"
    ))
}

/// The number of changes of delivery rows on this server.
async fn changes(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("the old primary is reachable");
    sqlx::query_scalar("select count(*) from audit")
        .fetch_one(&mut connection)
        .await
        .expect("the changes can be counted")
}

async fn not_ready(service: &Service) {
    let (client, url) = (Client::default(), service.url("/ready"));
    wait::until("the program not to be ready", || async {
        let answer = client.get(&url).await?;
        if answer.status_code == 503 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

async fn posts_during(run: &Recording, service: &Service, time: Duration) -> Vec<u16> {
    let begun = Instant::now();
    let mut answers = Vec::new();
    while begun.elapsed() < time {
        answers.push(post(run, service, &format!("away-{}", answers.len())).await);
    }
    answers
}

/// The status code of the response to one post.
async fn post(run: &Recording, service: &Service, key: &str) -> u16 {
    let post = Post { producer: "producer", source: "github", key, body: key.to_owned().into() };
    match try_once(run, &Client::default(), &service.target(), &post).await.expect("a response") {
        Ok(_) => 202,
        Err(answer) => answer.status_code,
    }
}
