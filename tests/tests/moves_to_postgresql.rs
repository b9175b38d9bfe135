//! The move from SQLite to PostgreSQL, as `docs/operations.md` describes it, under load: no webhook is
//! refused, no event is lost, and only what the producer sent on both sides is delivered twice.
//!
//! With `SUREHOOK_SOAK` set to any duration, the old database has 10,000 events to deliver.

use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::program::{Service, run};
use tests::sink::{Answer, Sink};
use tests::{soak, wait};
use tokio::sync::RwLock;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

/// Posts per second during the move.
const RATE: u64 = 200;
/// How many events the producer sends again after the switch, because it missed the response.
const SENT_AGAIN: usize = 20;
const SHORT_BACKLOG: usize = 500;
const LONG_BACKLOG: usize = 10_000;
const ENDS_WITHIN: Duration = Duration::from_mins(1);

/// The service to which the proxy sends webhooks. A post holds the lock, so the change waits for posts
/// that are on their way, as a proxy's old workers do.
type Upstream = Arc<RwLock<String>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_webhook_is_refused_or_lost_during_a_move_to_postgresql() {
    let backlog = soak::either(SHORT_BACKLOG, LONG_BACKLOG);
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!("[sources.orders]\ndestination = \"{}\"\n", sink.url("/orders"));
    let (sqlite, postgres) = (Database::sqlite(), Database::postgres().await);

    // The old database has a backlog: its source is paused.
    let mut old = Service::start(&sqlite.url(), &configuration).await;
    command(&old, "pause orders", 0).await;
    let upstream: Upstream = Arc::new(RwLock::new(old.url("")));
    let mut accepted = Vec::new();
    for n in 0..backlog {
        accepted.push(post(&upstream, format!("backlog-{n}")).await);
    }

    let is_over = Arc::new(AtomicBool::new(false));
    let producer = tokio::spawn(produce(Arc::clone(&upstream), Arc::clone(&is_over)));
    let new = Service::start(&postgres.url(), &configuration).await;
    *upstream.write().await = new.url("");
    old.signal(Signal::SIGTERM);
    assert_eq!(old.wait(ENDS_WITHIN).await.code(), Some(0));
    old.restart_as("worker").await;

    // Producers send again what the old database has: these are new events.
    let mut again = Vec::new();
    for (key, first) in &accepted[..SENT_AGAIN] {
        let (_, second) = post(&upstream, key.clone()).await;
        assert_ne!(second, *first, "the databases do not share keys");
        again.push((key.clone(), second));
    }

    let paused = command(&old, "sources --undelivered", 3).await;
    assert!(paused.contains("orders") && paused.contains("paused since"), "{paused}");
    command(&old, "resume orders", 0).await;
    nothing_left(&old).await;
    old.signal(Signal::SIGTERM);
    assert_eq!(old.wait(ENDS_WITHIN).await.code(), Some(0));
    is_over.store(true, Ordering::Relaxed);
    accepted.extend(producer.await.expect("no post was refused"));
    nothing_left(&new).await;

    accepted.extend(again.iter().cloned());
    let ids: BTreeSet<Uuid> = accepted.iter().map(|(_, event)| *event).collect();
    assert_eq!(ids.len(), accepted.len(), "an id was given twice");
    let taken = sink.taken();
    let lost: Vec<&Uuid> = ids.iter().filter(|event| !taken.contains_key(event)).collect();
    assert!(lost.is_empty(), "{} of {} events are lost: {lost:?}", lost.len(), ids.len());
    let twice: Vec<_> = taken.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "events were delivered more than once: {twice:?}");
    assert_eq!(taken.len(), ids.len(), "the destination received an event that was not accepted");
    // Each key that was delivered twice was sent on both sides.
    let mut by_key: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, _) in &accepted {
        *by_key.entry(key).or_default() += 1;
    }
    let doubled: BTreeSet<&str> =
        by_key.into_iter().filter(|(_, events)| *events > 1).map(|(key, _)| key).collect();
    assert_eq!(doubled, again.iter().map(|(key, _)| key.as_str()).collect());
}

/// Posts at [`RATE`] until the move is over.
async fn produce(upstream: Upstream, is_over: Arc<AtomicBool>) -> Vec<(String, Uuid)> {
    let mut due = interval(Duration::from_micros(1_000_000 / RATE));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut posts = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        due.tick().await;
        posts.push(tokio::spawn(post_owned(
            Arc::clone(&upstream),
            format!("moved-{}", posts.len()),
        )));
    }
    let mut accepted = Vec::new();
    for post in posts {
        accepted.push(post.await.expect("a post was refused"));
    }
    accepted
}

async fn post_owned(upstream: Upstream, key: String) -> (String, Uuid) {
    post(&upstream, key).await
}

/// Posts an event, which must be accepted at the first try.
async fn post(upstream: &RwLock<String>, key: String) -> (String, Uuid) {
    let upstream = upstream.read().await;
    let url = format!("{}/webhooks/orders", *upstream);
    let headers = [("idempotency-key", key.as_str())];
    let answer = Client::default().post(&url, &headers, "an event").await.expect("a response");
    assert_eq!(answer.status_code, 202, "{key}: {answer:?}");
    let event = answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    (key, event)
}

/// Runs a command against a service. It must end with this exit code.
async fn command(service: &Service, line: &str, code: i32) -> String {
    let (line, folder) = (format!("{line} --url {}", service.url("")), TempDir::new());
    let folder = folder.expect("a temporary folder");
    let output =
        tokio::task::spawn_blocking(move || run(folder.path(), line.split_whitespace())).await;
    let output = output.expect("the program ran");
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until the database has nothing left to deliver, as a script does.
async fn nothing_left(service: &Service) {
    wait::within(Duration::from_mins(5), "nothing to be left undelivered", || async {
        let line = format!("sources --undelivered --url {}", service.url(""));
        let folder = TempDir::new().expect("a temporary folder");
        let output =
            tokio::task::spawn_blocking(move || run(folder.path(), line.split_whitespace())).await;
        let output = output.expect("the program ran");
        match output.status.code() {
            Some(0) => {
                assert_eq!(String::from_utf8_lossy(&output.stdout), "no undelivered events\n");
                Ok(())
            }
            Some(3) => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
            _ => panic!("{output:?}"),
        }
    })
    .await;
}
