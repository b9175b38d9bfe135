//! Time zones other than UTC, and processes whose clock is wrong. With PostgreSQL, only the
//! database's clock counts, and times are shown in UTC. With SQLite, the wall clock may step
//! without an effect on due times. A database's clock that is set back by hours neither delays
//! retries nor keeps leases.

use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use surehook_core::due::PASS_PAUSE;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::postgres::Cluster;
use tests::producer::{Load, Progress, produce};
use tests::program::{Environment, Service};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, verdicts, wait};
use uuid::Uuid;

/// The lease of a source with a timeout of 5 s.
const LEASE: Duration = Duration::from_secs(15);

on_each_database!(a_process_in_another_time_zone_changes_nothing);

const LOAD: Load =
    Load { sources: &["github", "stripe", "shopify"], posts: 300, duplicates: 30, connections: 8 };

async fn a_process_in_another_time_zone_changes_nothing(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run.sink(refuses_a_third).await;
    let service = run.service_in(&[("TZ", "Asia/Kathmandu")], &configuration(&sink)).await;
    changes_nothing(&run, &sink, &service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_another_time_zone_changes_nothing() {
    let cluster: &Cluster = tests::postgres::shared();
    let url = cluster.create_database().await;
    let name = url.rsplit('/').next().expect("a URL names its database");
    cluster.execute(&format!("alter database {name} set timezone to 'Pacific/Apia'")).await;
    cluster.execute(&format!("alter database {name} set datestyle to 'SQL, DMY'")).await;
    let run = Recording::begin(Database::Postgres(url)).await;
    let sink = run.sink(refuses_a_third).await;
    let service = run.service(&configuration(&sink)).await;
    changes_nothing(&run, &sink, &service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_clock_five_minutes_fast_keeps_leases_and_schedules() {
    with_a_wrong_clock("+5m").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_clock_five_minutes_slow_keeps_leases_and_schedules() {
    with_a_wrong_clock("-5m").await;
}

/// The path of libfaketime, which changes the wall clock of a process, as the packages of Debian,
/// Fedora and Alpine install it.
fn faketime() -> PathBuf {
    let places = ["/usr/lib64/faketime", "/usr/lib/faketime"].map(PathBuf::from);
    let of_debian = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("faketime"));
    let found = places
        .into_iter()
        .chain(of_debian)
        .map(|folder| folder.join("libfaketime.so.1"))
        .find(|path| path.is_file());
    found.expect("libfaketime is not installed; `make tools` installs it")
}

/// Two processes share the work. The wall clock of one of them is wrong.
async fn with_a_wrong_clock(by: &'static str) {
    let library: &'static str = String::leak(faketime().display().to_string());
    let variables = Box::new([
        ("FAKETIME", by),
        ("LD_PRELOAD", library),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]);
    let environment: Environment = Box::leak(variables);
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(refuses_a_third).await;
    let right = run.service(&configuration(&sink)).await;
    let wrong = run.service_in(environment, &configuration(&sink)).await;
    let log = wrong.log();
    let line: serde_json::Value = log
        .lines()
        .next()
        .and_then(|line| serde_json::from_str(line).ok())
        .expect("the log is JSON");
    let logged: Timestamp = line["timestamp"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("a log line has a timestamp");
    let off = logged.duration_since(Timestamp::now()).abs();
    assert!(
        off > SignedDuration::from_secs(280),
        "the clock must be {by} wrong, but is {off:?} off"
    );

    let targets = vec![right.target(), wrong.target()];
    let sent = produce(run.clone(), targets, LOAD, Progress::default()).await;
    for shown in verdicts::until_delivered(&wrong, &sent).await {
        are_times_of_now(&shown);
    }
    let judged = run.judge().await;
    let processes: std::collections::BTreeSet<&str> =
        judged.committed().map(|(_, committed)| committed.process.as_str()).collect();
    assert_eq!(processes.len(), 2, "not exactly two processes took part in the work");
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

/// Runs a load, and asserts that timestamps and deliveries are the same as without the change.
async fn changes_nothing(run: &Recording, sink: &Sink, service: &Service) {
    let sent = produce(run.clone(), vec![service.target()], LOAD, Progress::default()).await;
    for shown in verdicts::until_delivered(service, &sent).await {
        are_times_of_now(&shown);
    }
    run.judge().await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_back_delays_no_retry_on_sqlite() {
    let world =
        Stepped::start(|received| Answer::status(if received.attempt == 1 { 503 } else { 200 }))
            .await;
    let event = world.post().await;
    world.is(event, "retrying").await;

    world.step("-2h");

    wait::until("the retry", || async { world.was_tried(event, 2) }).await;
    let again = world.post().await;
    wait::until("another event's retry", || async { world.was_tried(again, 2) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_forward_repeats_no_delivery_on_sqlite() {
    let world = Stepped::start(|_| Answer::status(200).after(Duration::from_secs(4))).await;
    let event = world.post().await;
    wait::until("the delivery", || async { world.was_tried(event, 1) }).await;

    world.step("+2h");

    let again = world.post().await;
    world.is(event, "delivered").await;
    assert_eq!((world.sink.of(event).len(), world.sink.of(again).len()), (1, 1));
}

/// Due times on SQLite continue from the wall clock's time when a process starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_back_across_a_restart_delays_no_retry_on_sqlite() {
    let mut world = Stepped::start(hangs_once_then_fails_once()).await;
    let held = world.post().await;
    wait::until("the delivery", || async { world.was_tried(held, 1) }).await;
    let failed = world.post().await;
    world.is(failed, "retrying").await;
    world.service.kill();

    world.step("-2h");
    world.service.restart().await;

    world.is_tried_after_a_pass(failed).await;
    world.is_tried_after_a_pass(held).await;
    world.warned_once();
}

/// Moving all due times ahead has the effect of setting the server's clock back. The delivery in
/// flight lasts longer than a pause between two passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_clock_that_is_set_back_delays_and_repeats_nothing() {
    let database = Database::postgres().await;
    let (url, clock) = (database.url(), TempDir::new().expect("a temporary folder"));
    let world = Stepped::on(&url, clock, &[], |received| match received.attempt {
        1 if received.source == "slow" => Answer::status(200).after(Duration::from_secs(35)),
        1 => Answer::status(503),
        _ => Answer::status(200),
    })
    .await;
    let held = world.post_to("slow").await;
    wait::until("the delivery", || async { world.was_tried(held, 1) }).await;
    let failed = world.post().await;
    world.is(failed, "retrying").await;

    database
        .execute(
            "update deliveries set due_at = due_at + interval '2 hours' where due_at is not null",
        )
        .await;

    world.is_tried_after_a_pass(failed).await;
    world.is(held, "delivered").await;
    assert_eq!(world.sink.of(held).len(), 1, "an event in flight was sent again");
    world.warned_once();
}

/// The first event hangs at its first attempt, and the others fail.
fn hangs_once_then_fails_once() -> impl Fn(&tests::sink::Received) -> Answer + Send + Sync {
    let hangs = AtomicBool::new(true);
    move |received| {
        if received.attempt > 1 {
            Answer::status(200)
        } else if hangs.swap(false, Ordering::Relaxed) {
            Answer::never()
        } else {
            Answer::status(503)
        }
    }
}

/// A process whose wall clock can be set.
struct Stepped {
    service: Service,
    sink: Sink,
    clock: TempDir,
}

impl Stepped {
    /// On SQLite.
    async fn start(
        behaviour: impl Fn(&tests::sink::Received) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let clock = TempDir::new().expect("a temporary folder");
        let file: &'static str = String::leak(clock.path().join("offset").display().to_string());
        std::fs::write(file, "+0").expect("the folder can be written to");
        let library: &'static str = String::leak(faketime().display().to_string());
        let variables = Box::new([
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1"),
            ("LD_PRELOAD", library),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]);
        let database = format!("sqlite:{}", clock.path().join("surehook.db").display());
        Self::on(&database, clock, Box::leak(variables), behaviour).await
    }

    async fn on(
        database: &str,
        clock: TempDir,
        environment: Environment,
        behaviour: impl Fn(&tests::sink::Received) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let sink = Sink::start(behaviour).await;
        let mut configuration =
            String::from("[defaults]\ninitial_delay = \"5s\"\nmax_delay = \"5s\"\n");
        for (source, timeout) in [("github", "5s"), ("slow", "40s")] {
            let destination = sink.url(&format!("/{source}"));
            configuration += &format!(
                "[sources.{source}]\ndestination = \"{destination}\"\ntimeout = \"{timeout}\"\n"
            );
        }
        let service = Service::start_in(environment, database, &configuration).await;
        Self { service, sink, clock }
    }

    /// Sets the offset of the clock.
    fn step(&self, off: &str) {
        std::fs::write(self.clock.path().join("offset"), off)
            .expect("the folder can be written to");
    }

    /// The log names the clock, once.
    fn warned_once(&self) {
        let log = self.service.log();
        let warned = log
            .matches("due times were too far ahead: the clock of the database was set back")
            .count();
        assert_eq!(warned, 1, "{log}");
    }

    /// Waits for the second attempt: for a pass over the due times, and a lease.
    async fn is_tried_after_a_pass(&self, event: Uuid) {
        let longest = PASS_PAUSE + LEASE + Duration::from_secs(5);
        wait::within(longest, "the next attempt", || async { self.was_tried(event, 2) }).await;
    }

    async fn post(&self) -> Uuid {
        self.post_to("github").await
    }

    async fn post_to(&self, source: &str) -> Uuid {
        let key = Uuid::now_v7().to_string();
        let answer = Client::default()
            .post(
                &self.service.url(&format!("/webhooks/{source}")),
                &[("idempotency-key", &key)],
                "{}",
            )
            .await;
        let answer = answer.expect("a response");
        assert_eq!(answer.status_code, 202, "{answer:?}");
        answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id")
    }

    /// Waits until an event has this status.
    async fn is(&self, event: Uuid, status: &str) {
        let url = self.service.url(&format!("/events/{event}"));
        wait::until("the event's status", || async {
            let shown = Client::default().get(&url).await?;
            if shown.json()["status"] == status { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
    }

    fn was_tried(&self, event: Uuid, times: usize) -> Result<(), String> {
        let tried = self.sink.of(event).len();
        if tried >= times { Ok(()) } else { Err(format!("tried {tried} times")) }
    }
}

/// Asserts that each timestamp of an event is in UTC and less than a minute away from now.
fn are_times_of_now(shown: &serde_json::Value) {
    let attempts = shown["history"].as_array().expect("a history");
    let times = [&shown["received_at"], &shown["settled_at"]]
        .into_iter()
        .chain(attempts.iter().map(|attempt| &attempt["started_at"]));
    for time in times {
        let text = time.as_str().unwrap_or_else(|| panic!("a time is missing: {shown}"));
        assert!(text.ends_with('Z'), "{text} is not in UTC");
        let off =
            text.parse::<Timestamp>().expect("RFC 3339").duration_since(Timestamp::now()).abs();
        assert!(off < SignedDuration::from_secs(60), "{text} is {off:?} off: {shown}");
    }
}

fn refuses_a_third(received: &tests::sink::Received) -> Answer {
    Answer::refusing_a_third_at_first(received).after(Duration::from_millis(5))
}

fn configuration(sink: &Sink) -> String {
    format!("[defaults]\ninitial_delay = \"500ms\"\nmax_delay = \"1s\"\n{}", sink.three_sources())
}
