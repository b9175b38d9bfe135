//! Where one database machine is not enough: a URL with several servers. The one that takes writes is used, the standby
//! takes over when it dies, and nothing that was acknowledged is missing. Servers that cannot be written to, that do not
//! answer, or that have been replaced are passed over.

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

/// A post is answered within this time, whatever the database does: two seconds, and one for what a busy machine adds.
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
        assert!(progress.answered() < LOAD.posts / 2, "the load was half over before the failover");
        let promoted = Instant::now();
        progress.reaches(progress.answered() + 1).await;
        assert!(
            promoted.elapsed() < Duration::from_secs(10),
            "the first event after {:?}",
            promoted.elapsed()
        );
    };
    run.while_database_is("failing over", failover).await;
    progress.reaches(LOAD.posts / 3).await;

    // The old primary comes back where it was, and knows nothing of its successor.
    tokio::task::block_in_place(|| old.resume());
    old.commits_wait_for_none().await;
    old.execute("create table it_can_be_written_to ()").await;
    let changes = changes(&old.url(name)).await;
    assert!(changes > 0, "the old primary had done nothing");
    let losing_connections = async {
        while progress.answered() < LOAD.posts * 2 / 3 {
            new.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename like 'service-%'").await;
            progress.reaches(progress.answered() + LOAD.posts / 20).await;
        }
        // Now it is the only one that could be written to.
        tokio::task::block_in_place(|| new.stop(Stop::Fast));
        for service in &services {
            not_ready(service).await;
        }
        let answered = progress.answered();
        let posts = posts_during(&run, &services[0], Duration::from_secs(2)).await;
        assert!(
            posts.iter().all(|status| *status == 503),
            "only the old primary was there, and posts were answered {posts:?}"
        );
        assert!(answered < LOAD.posts, "the load was over before the new primary was away");
        tokio::task::block_in_place(|| new.resume());
    };
    run.while_database_is(
        "losing its connections, with the old primary beside it",
        losing_connections,
    )
    .await;

    let sent = producers.await.expect("every post is accepted at last");
    assert_eq!(
        self::changes(&old.url(name)).await,
        changes,
        "something was done on the old primary after it was replaced"
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
    // The kernel takes its connections, and nobody ever answers.
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
            "only a standby was there, and posts were answered {posts:?}"
        );
        tokio::task::block_in_place(|| primary.resume());
    };
    run.while_database_is("away but for a standby", away).await;
    service.ready().await;
    assert_eq!(post(&run, &service, "after-the-outage").await, 202);
    let told = format!(
        "127.0.0.1:{silent_port}: no answer in time; 127.0.0.1:{}: it is a standby; 127.0.0.1:",
        standby.port()
    );
    assert!(
        service.log().contains(&told),
        "each server is named with its reason: {told}\n{}",
        service.log()
    );

    // Its sessions live on, and find it read-only from one statement to the next.
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

/// How often a delivery's row was changed on this server.
async fn changes(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("the old primary is there");
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

/// The status of the answer to one post.
async fn post(run: &Recording, service: &Service, key: &str) -> u16 {
    let post = Post { producer: "producer", source: "github", key, body: key.to_owned().into() };
    match try_once(run, &Client::default(), &service.target(), &post).await.expect("an answer") {
        Ok(_) => 202,
        Err(answer) => answer.status_code,
    }
}
