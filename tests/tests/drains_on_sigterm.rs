//! Graceful shutdown: the program finishes the deliveries in flight, releases the other events,
//! exits with 0, and continues its work after a restart.

use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use surehook_core::event::Outcome;
use surehook_model::history::Change;
use tempfile::TempDir;
use tests::database::{Database, connect};
use tests::http::Client;
use tests::producer::{Load, Post, Progress, produce, try_once};
use tests::program::{Process, free_address};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, verdicts, wait};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

on_each_database!(
    sigterm_under_load_loses_and_repeats_nothing,
    sigint_drains_like_sigterm,
    the_drain_waits_for_slow_downstreams,
    a_delivery_that_outlasts_the_drain_is_cut_off_and_retried,
    a_second_signal_ends_the_drain_at_once,
    a_different_second_signal_also_ends_the_drain,
    more_signals_do_not_prolong_a_drain,
    webhooks_are_accepted_until_the_listener_closes_and_delivered_after_the_restart,
    the_listener_stays_open_for_the_shutdown_grace,
);

async fn sigterm_under_load_loses_and_repeats_nothing(database: Database) {
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: 3_000,
        duplicates: 300,
        connections: 64,
    };
    // Slow enough that some deliveries are always in flight.
    stopped_in_the_middle(database, Signal::SIGTERM, load, Duration::from_millis(20)).await;
}

async fn sigint_drains_like_sigterm(database: Database) {
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: 900,
        duplicates: 90,
        connections: 16,
    };
    stopped_in_the_middle(database, Signal::SIGINT, load, Duration::from_millis(20)).await;
}

async fn the_drain_waits_for_slow_downstreams(database: Database) {
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: 400,
        duplicates: 40,
        connections: 16,
    };
    stopped_in_the_middle(database, Signal::SIGTERM, load, Duration::from_secs(1)).await;
}

async fn stopped_in_the_middle(
    database: Database,
    signal: Signal,
    load: Load,
    answer_after: Duration,
) {
    let run = Recording::begin(database).await;
    let sink = run
        .sink(move |received| Answer::refusing_a_third_at_first(received).after(answer_after))
        .await;
    let mut service = run.service(&configuration(&sink, "10s")).await;
    let progress = Progress::default();
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], load, progress.clone()));
    sink.reaches(40).await;
    progress.reaches(load.posts / 3).await;

    // The process accepts webhooks until its deliveries have ended.
    assert!(progress.answered() < load.posts, "the load ended before the signal");
    let begun = Instant::now();
    service.signal(signal);
    let status = service.wait(Duration::from_secs(15)).await;

    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it drained for {:?}", begun.elapsed());
    let received = sink.received();
    assert!(
        received.iter().all(|received| received.answered.is_some()),
        "a delivery in flight was aborted"
    );

    service.restart().await;
    let sent = producers.await.expect("every post is accepted eventually");
    verdicts::all_taken(&sink, &sent).await;
    let lost = verdicts::all_delivered_and_explained(&service, &sink, &sent).await;
    assert!(lost.is_empty(), "a graceful shutdown lost attempts: {lost:?}");
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
    let judged = run.judge().await;
    let sent: usize = judged.events.values().map(|event| event.history.len()).sum();
    assert_eq!(sent, sink.count(), "an attempt was counted without a request");
}

async fn a_delivery_that_outlasts_the_drain_is_cut_off_and_retried(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| Answer::never()).await;
    let mut service = run.service(&configuration(&sink, "400ms")).await;
    let client = Client::default();
    let post = Post { producer: "producer", source: "github", key: "slow", body: "{}".into() };
    let accepted = try_once(&run, &client, &service.target(), &post)
        .await
        .expect("a response")
        .expect("a 202");
    let event = accepted.event.as_uuid();
    sink.reaches(1).await;

    let begun = Instant::now();
    service.signal(Signal::SIGTERM);
    let status = service.wait(Duration::from_secs(10)).await;

    assert_eq!(status.code(), Some(0), "{status}");
    let took = begun.elapsed();
    assert!(
        took > Duration::from_millis(300) && took < Duration::from_secs(5),
        "it drained for {took:?}"
    );

    sink.behave(|_| Answer::status(200));
    service.restart().await;
    let shown = wait::until("the event to be delivered", || async {
        let shown = verdicts::shown(&client, &service, event).await;
        if shown["status"] == "delivered" { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(shown["history"][0]["error"], "cut off by shutdown", "{shown}");
    assert_eq!(shown["history"][1]["verdict"], "delivered", "{shown}");
    assert_eq!(sink.of(event).iter().map(|received| received.attempt).collect::<Vec<_>>(), [1, 2]);
    let judged = run.judge().await;
    let cut_off = judged.committed().find(|(_, committed)| {
        matches!(committed.change, Change::Settled { outcome: Outcome::CutOff, .. })
    });
    let (_, cut_off) = cut_off.expect("the delivery was settled as cut off");
    let due_at = cut_off.after.and_then(|row| row.due_at).expect("the event is due again");
    // The trigger that records the change may read the clock slightly earlier or later. A lease
    // lasts more than ten seconds.
    assert!(
        due_at < cut_off.db_time + Duration::from_secs(1),
        "the event is claimable only when its lease ends, not at once"
    );
}

async fn a_second_signal_ends_the_drain_at_once(database: Database) {
    signalled_again(database, Signal::SIGTERM, Signal::SIGTERM).await;
}

async fn a_different_second_signal_also_ends_the_drain(database: Database) {
    signalled_again(database, Signal::SIGINT, Signal::SIGTERM).await;
}

/// Only one incomplete request keeps the process from ending.
async fn more_signals_do_not_prolong_a_drain(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let mut service = run.service(&configuration(&sink, "30s")).await;
    let mut stream = TcpStream::connect(service.address()).await.expect("the process listens");
    let head = "POST /webhooks/github HTTP/1.1\r\nHost: a\r\nIdempotency-Key: half\r\nContent-Length: 100\r\n\r\nhalf of";
    stream.write_all(head.as_bytes()).await.expect("the process reads");
    // The process answers this on a later connection, so it has had time to read the incomplete
    // request.
    service.ready().await;

    let begun = Instant::now();
    let ended = loop {
        service.signal(Signal::SIGTERM);
        if let Some(status) = service.ended_within(Duration::from_millis(200)).await {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "each signal prolonged the drain");
    };
    assert_eq!(ended.code(), Some(0), "{ended}");
    let took = begun.elapsed();
    assert!(
        took > Duration::from_millis(500) && took < Duration::from_secs(5),
        "it drained for {took:?}"
    );
    run.judge().await;
}

/// A delivery that hangs makes the drain last.
async fn webhooks_are_accepted_until_the_listener_closes_and_delivered_after_the_restart(
    database: Database,
) {
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| Answer::never()).await;
    let mut service = run.service(&configuration(&sink, "4s")).await;
    let (client, target) = (Client::default(), service.target());
    let post = |key: String| {
        let (run, client, target) = (&run, &client, &target);
        async move {
            let post =
                Post { producer: "producer", source: "github", key: &key, body: "{}".into() };
            try_once(run, client, target, &post).await.expect("a response").expect("a 202")
        }
    };
    post("hung".to_owned()).await;
    sink.reaches(1).await;

    service.signal(Signal::SIGTERM);
    is_draining(&service).await;
    for n in 0..50 {
        post(format!("during-the-drain-{n}")).await;
    }
    assert_eq!(sink.count(), 1, "a draining process delivered an event that it accepted");
    let status = service.wait(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{status}");

    sink.behave(|_| Answer::status(200));
    let begun = Instant::now();
    service.restart().await;
    let judged = run.judge().await;
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "the events became claimable only when a lease ended, not at once"
    );
    assert_eq!(judged.events.len(), 51);
    let attempts: usize = judged.events.values().map(|event| event.history.len()).sum();
    assert_eq!(attempts, 52, "only the delivery that hung needed another attempt");
}

async fn the_listener_stays_open_for_the_shutdown_grace(database: Database) {
    const GRACE: Duration = Duration::from_secs(2);
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let configuration = format!("shutdown_grace = \"{GRACE:?}\"\n{}", configuration(&sink, "10s"));
    let mut service = run.service(&configuration).await;
    let begun = Instant::now();
    service.signal(Signal::SIGTERM);
    is_draining(&service).await;
    let mut accepted = 0;
    while TcpStream::connect(service.address()).await.is_ok() {
        let (key, body) = (format!("during-the-grace-{accepted}"), "{}".into());
        let post = Post { producer: "producer", source: "github", key: &key, body };
        // The listener can close between the two connections.
        let Ok(answer) = try_once(&run, &Client::default(), &service.target(), &post).await else {
            break;
        };
        answer.expect("a 202");
        accepted += 1;
    }
    let took = begun.elapsed();
    let status = service.wait(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took >= GRACE, "the listener closed after {took:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "it ended after {:?}", begun.elapsed());
    service.restart().await;
    let stored = run.judge().await.events.len();
    assert!(accepted > 0 && stored >= accepted, "{accepted} accepted, {stored} stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_during_the_migration_ends_the_process_at_once() {
    let database = Database::postgres().await;
    // Another process migrates, and this one waits for it.
    let mut other = connect(&database.url()).await;
    sqlx::query("select pg_advisory_lock(x'73757265686f6f6b'::bigint)")
        .execute(&mut other)
        .await
        .expect("the lock is free");
    let folder = TempDir::new().expect("a temporary folder");
    let configuration = format!(
        "database = \"{}\"\nlisten = \"{}\"\n[sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n",
        database.url(),
        free_address()
    );
    std::fs::write(folder.path().join("surehook.toml"), configuration).expect("a file");
    let mut process = Process::start(folder.path(), ["serve", "--config", "surehook.toml"]);
    // Its session has asked for the lock.
    wait::until("the migration", || async {
        let sessions: Vec<(i64,)> = database
            .fetch("select count(*) from pg_stat_activity where query like '%pg_try_advisory_xact_lock%' and datname = current_database() and pid <> pg_backend_pid()")
            .await;
        if sessions[0].0 > 0 { Ok(()) } else { Err(process.log()) }
    })
    .await;
    process.signal(Signal::SIGTERM);
    let status = process.wait(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0), "{}", process.log());
}

async fn is_draining(service: &tests::program::Service) {
    let (client, url) = (Client::default(), service.url("/ready"));
    wait::until("the process not to be ready", || async {
        let answer = client.get(&url).await?;
        let is_draining =
            answer.status_code == 503 && answer.problem() == "urn:surehook:problem:shutting-down";
        if is_draining { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

async fn signalled_again(database: Database, first: Signal, second: Signal) {
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| Answer::never()).await;
    let mut service = run.service(&configuration(&sink, "30s")).await;
    let post = Post { producer: "producer", source: "github", key: "slow", body: "{}".into() };
    try_once(&run, &Client::default(), &service.target(), &post)
        .await
        .expect("a response")
        .expect("a 202");
    sink.reaches(1).await;

    service.signal(first);
    service.logs("shutting down").await;
    let begun = Instant::now();
    service.signal(second);
    let status = service.wait(Duration::from_secs(10)).await;

    assert_eq!(status.code(), Some(0), "{status}");
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "it continued to drain for {:?}",
        begun.elapsed()
    );
    sink.behave(|_| Answer::status(200));
    let begun = Instant::now();
    service.restart().await;
    let judged = run.judge().await;
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "the event became claimable only when its lease ended, not at once"
    );
    let event = judged.events.values().next().expect("one event was posted");
    assert_eq!(
        event.history[0].error.as_deref(),
        Some("cut off by shutdown"),
        "the delivery in flight was not settled as cut off"
    );
    assert_eq!(event.history.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_post_and_repeats_no_delivery() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(|_| Answer::status(200).after(Duration::from_millis(20))).await;
    let configuration = configuration(&sink, "10s");
    let mut services = Vec::new();
    for _ in 0..3 {
        services.push(run.service(&configuration).await);
    }
    let targets = services.iter().map(tests::program::Service::target).collect();
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: 6_000,
        duplicates: 600,
        connections: 32,
    };
    let progress = Progress::default();
    let producers = tokio::spawn(produce(run.clone(), targets, load, progress.clone()));
    for (turn, service) in services.iter_mut().enumerate() {
        progress.reaches(load.posts * (turn + 1) / 5).await;
        service.signal(Signal::SIGTERM);
        let status = service.wait(Duration::from_secs(15)).await;
        assert_eq!(status.code(), Some(0), "{status}");
        service.restart().await;
    }

    let sent = producers.await.expect("no post is refused, and each is accepted eventually");
    let judged = run.judge().await;
    assert_eq!(judged.events.len(), sent.len());
    assert!(
        judged.events.values().all(|event| event.history.len() == 1),
        "an event needed more than one attempt"
    );
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
    assert_eq!(sink.count(), sent.len(), "an event was sent twice");
}

fn configuration(sink: &Sink, drain_timeout: &str) -> String {
    format!(
        r#"
        drain_timeout = "{drain_timeout}"
        [defaults]
        initial_delay = "50ms"
        max_delay = "200ms"
        {}
        "#,
        sink.three_sources()
    )
}
