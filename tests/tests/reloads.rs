//! A reload (SIGHUP) refuses no webhook and interrupts no delivery. With a mistake in the file, nothing
//! changes.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Post, try_once};
use tests::program::{Service, Target};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, wait};
use tokio::time::{MissedTickBehavior, interval, sleep};

const RELOADS: usize = 10;
/// The posters. Each sends 20 webhooks a second: half of them on connections that it keeps, the others
/// on new ones.
const POSTERS: usize = 10;
const EVERY: Duration = Duration::from_millis(50);
/// The time between two reloads.
const PAUSE: Duration = Duration::from_millis(300);

on_each_database!(
    reloads_refuse_no_webhook_and_interrupt_no_delivery,
    a_reload_replaces_sources_policies_and_limits,
);

async fn reloads_refuse_no_webhook_and_interrupt_no_delivery(database: Database) {
    let run = Recording::begin(database).await;
    let slow = Duration::from_secs(2);
    let sink = run
        .sink(move |received| {
            let answer = Answer::status(200);
            if received.path == "/slow" { answer.after(slow) } else { answer }
        })
        .await;
    let service = run.service(&under_load(&sink, 0)).await;
    let (over, posted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let posters = futures::future::join_all((0..POSTERS).map(|poster| {
        let (run, target, over, posted) = (&run, service.target(), &over, &posted);
        async move { post_until(run, &target, poster, over, posted).await }
    }));
    let reloading = async {
        for n in 1..=RELOADS {
            // A delivery is in flight during each reload.
            accepted(&run, &service.target(), "slow", &format!("slow-{n}")).await;
            let lines = service.reload(&under_load(&sink, n)).await;
            let [line] = &lines[..] else { panic!("{lines:?}") };
            let told = ["message", "added", "removed", "changed"].map(|name| &line[name]);
            let (new, old) = (format!("new-{n}"), format!("new-{}", n - 1));
            let expected = ["configuration reloaded", &new, &old, "orders, slow"];
            assert_eq!(told, expected.map(|text| Box::leak(Box::new(Value::from(text))) as &Value));
            accepted(&run, &service.target(), &new, "first").await;
            sleep(PAUSE).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    futures::future::join(posters, reloading).await;
    let all = posted.load(Ordering::Relaxed) + 2 * RELOADS;
    println!("{all} webhooks were posted and accepted during {RELOADS} reloads");
    assert!(posted.load(Ordering::Relaxed) > RELOADS * POSTERS, "{all} webhooks");

    let judged = run.judge().await;
    assert_eq!(judged.events.len(), all);
    let repeated: Vec<_> =
        judged.events.values().filter(|event| event.history.len() != 1).collect();
    assert!(repeated.is_empty(), "a reload cost attempts: {repeated:?}");
    assert!(sink.taken().values().all(|times| *times == 1), "an event was delivered twice");
}

async fn post_until(
    run: &Recording,
    target: &Target,
    poster: usize,
    over: &AtomicBool,
    posted: &AtomicUsize,
) {
    let kept = Client::default();
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0.. {
        pace.tick().await;
        if over.load(Ordering::Relaxed) {
            return;
        }
        let client = if n % 2 == 0 { kept.clone() } else { Client::default() };
        accepted_by(run, &client, target, "orders", &format!("{poster}-{n}")).await;
        posted.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accepted(run: &Recording, target: &Target, source: &str, key: &str) {
    accepted_by(run, &Client::default(), target, source, key).await;
}

async fn accepted_by(run: &Recording, client: &Client, target: &Target, source: &str, key: &str) {
    let post = Post { producer: "producer", source, key, body: "{}".into() };
    match try_once(run, client, target, &post).await {
        Ok(Ok(_)) => {}
        refused => panic!("webhook {key} was refused: {refused:?}"),
    }
}

/// The `n`th configuration: each one has other policies, a new source, and lacks that of the one before.
fn under_load(sink: &Sink, n: usize) -> String {
    format!(
        r#"
        [defaults]
        timeout = "5s"
        initial_delay = "50ms"
        max_delay = "200ms"
        concurrency = 16
        max_attempts = {}
        [sources.orders]
        destination = "{}"
        [sources.slow]
        destination = "{}"
        [sources.new-{n}]
        destination = "{}"
        "#,
        n + 20,
        sink.url("/orders"),
        sink.url("/slow"),
        sink.url("/new"),
    )
}

async fn a_reload_replaces_sources_policies_and_limits(database: Database) {
    let (before, after) =
        (Sink::start(|_| Answer::status(503)).await, Sink::start(|_| Answer::status(200)).await);
    let first = format!(
        "[defaults]\nbreaker_failures = 0\ninitial_delay = \"100ms\"\nmax_delay = \"100ms\"\n\
         [sources.orders]\ndestination = \"{0}\"\n[sources.gone]\ndestination = \"{0}\"\n",
        before.url("/hook")
    );
    let service = Service::start(&database.url(), &first).await;
    let stays = post(&service, "orders", "{}").await.expect("the source is configured");
    let waits = post(&service, "gone", "{}").await.expect("the source is configured");
    before.reaches(4).await;

    let second =
        format!("listen_backlog = 1\n[sources.orders]\ndestination = \"{}\"\n", after.url("/hook"));
    let lines = service.reload(&second).await;
    let refused = "configuration not reloaded; the process continues with the old one";
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&line["message"], &line["level"]), (&refused.into(), &"ERROR".into()));
    let error = line["error"].as_str().expect("a text");
    assert!(error.contains("surehook.toml:4:1: `listen_backlog`"), "{error}");
    let more = before.count() + 2;
    before.reaches(more).await;

    let second = format!(
        "drain_timeout = \"3s\"\nrole = \"intake\"\n[intake]\nidle_timeout = \"5s\"\nmax_body = \"8B\"\n\
         [sources.orders]\ndestination = \"{0}\"\n[sources.new]\ndestination = \"{0}\"\n",
        after.url("/hook")
    );
    let lines = service.reload(&second).await;
    let [done, restart] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(done["message"], "configuration reloaded");
    assert_eq!(restart["settings"], "role, intake.idle_timeout");

    let delivered = post(&service, "new", "{}").await.expect("the source is new");
    for event in [&stays, &delivered] {
        has_status(&service, event, "delivered").await;
    }
    assert_eq!(post(&service, "gone", "{}").await, Err(404));
    assert_eq!(post(&service, "orders", "a long body").await, Err(413));
    // The event of the removed source waits, and is sent nowhere.
    sleep(Duration::from_millis(500)).await;
    let count = before.count();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(before.count(), count, "an event of a removed source was sent");
    has_status(&service, &waits, "retrying").await;
    let metrics = Client::default().get(&service.url("/metrics")).await.expect("a response");
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let series = |name: &str, source: &str| {
        text.lines().any(|line| line.starts_with(name) && line.contains(&format!("\"{source}\"")))
    };
    assert!(series("surehook_webhooks_total", "new") && series("surehook_breaker_state", "new"));
    assert!(!series("surehook_breaker_state", "gone"), "{text}");

    // The source comes back, and its event is delivered.
    let third = format!("{second}[sources.gone]\ndestination = \"{}\"\n", after.url("/hook"));
    assert_eq!(service.reload(&third).await.len(), 2);
    has_status(&service, &waits, "delivered").await;
    let taken: BTreeSet<String> = after.taken().keys().map(ToString::to_string).collect();
    assert_eq!(taken, BTreeSet::from([stays, waits, delivered]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_during_the_shutdown_is_refused_with_its_reason() {
    let sink = Sink::start(|_| Answer::never()).await;
    let configuration =
        format!("drain_timeout = \"2s\"\n[sources.orders]\ndestination = \"{}\"\n", sink.url("/"));
    let database = Database::sqlite();
    let mut service = Service::start(&database.url(), &configuration).await;
    post(&service, "orders", "{}").await.expect("the source is configured");
    sink.reaches(1).await;
    service.signal(Signal::SIGTERM);
    service.logs("shutting down").await;
    service.signal(Signal::SIGHUP);
    let status = service.wait(wait::TIMEOUT).await;
    assert_eq!(status.code(), Some(0), "{}", service.log());
    let told = "configuration not reloaded: the process is shutting down";
    assert!(service.log().contains(told), "{}", service.log());
    assert!(!service.log().contains("configuration reloaded"), "{}", service.log());
}

/// Posts an event. Returns its id, or the status code of the refusal.
async fn post(service: &Service, source: &str, body: &'static str) -> Result<String, u16> {
    let headers = [("idempotency-key", "key")];
    let url = service.url(&format!("/webhooks/{source}"));
    let answer = Client::default().post(&url, &headers, body).await.expect("a response");
    match answer.json()["event_id"].as_str() {
        Some(event) if answer.status_code == 202 => Ok(event.to_owned()),
        _ => Err(answer.status_code),
    }
}

async fn has_status(service: &Service, event: &str, status: &str) {
    let url = service.url(&format!("/events/{event}"));
    wait::until("the status of the event", || async {
        let shown = Client::default().get(&url).await?.json();
        if shown["status"] == status { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
}
