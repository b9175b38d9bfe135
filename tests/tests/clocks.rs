//! Time zones that are not UTC, and a process whose clock is wrong: PostgreSQL's clock is the only one that counts, and
//! it is told in UTC.

use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;
use std::time::Duration;
use tests::database::Database;
use tests::postgres::Cluster;
use tests::producer::{Load, Progress, produce};
use tests::program::{Environment, Service};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, verdicts};

on_each_database!(a_process_in_another_time_zone_shows_utc_and_keeps_its_schedule);

const LOAD: Load = Load { sources: &["github", "stripe", "shopify"], posts: 300, duplicates: 30, connections: 8 };

async fn a_process_in_another_time_zone_shows_utc_and_keeps_its_schedule(database: Database) {
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
async fn a_process_whose_clock_is_five_minutes_fast_keeps_leases_and_schedules() {
    with_a_wrong_clock("+5m").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_clock_is_five_minutes_slow_keeps_leases_and_schedules() {
    with_a_wrong_clock("-5m").await;
}

/// The library that makes a process's wall clock wrong, where the packages of Debian, Fedora and Alpine put it.
fn faketime() -> PathBuf {
    let places = ["/usr/lib64/faketime", "/usr/lib/faketime"].map(PathBuf::from);
    let of_debian = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path().join("faketime"));
    let found = places.into_iter().chain(of_debian).map(|folder| folder.join("libfaketime.so.1")).find(|path| path.is_file());
    found.expect("libfaketime is not here: `make tools` installs it")
}

/// Two processes, one of which is wrong about the time, share the work.
async fn with_a_wrong_clock(by: &'static str) {
    let library: &'static str = String::leak(faketime().display().to_string());
    let variables = Box::new([("FAKETIME", by), ("LD_PRELOAD", library), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
    let environment: Environment = Box::leak(variables);
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(refuses_a_third).await;
    let right = run.service(&configuration(&sink)).await;
    let wrong = run.service_in(environment, &configuration(&sink)).await;
    let log = wrong.log();
    let line: serde_json::Value = log.lines().next().and_then(|line| serde_json::from_str(line).ok()).expect("it logs as JSON");
    let logged: Timestamp = line["timestamp"].as_str().and_then(|text| text.parse().ok()).expect("a log line bears its time");
    let off = logged.duration_since(Timestamp::now()).abs();
    assert!(off > SignedDuration::from_secs(280), "its clock was to be {by} wrong, and is {off:?} off");

    let targets = vec![right.target(), wrong.target()];
    let sent = produce(run.clone(), targets, LOAD, Progress::default()).await;
    for shown in verdicts::until_delivered(&wrong, &sent).await {
        are_times_of_now(&shown);
    }
    let judged = run.judge().await;
    let processes: std::collections::BTreeSet<&str> = judged.committed().map(|(_, committed)| committed.process.as_str()).collect();
    assert_eq!(processes.len(), 2, "both took part");
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

/// Runs a load, and holds every time that is shown and every delivery to what they would be anywhere.
async fn changes_nothing(run: &Recording, sink: &Sink, service: &Service) {
    let sent = produce(run.clone(), vec![service.target()], LOAD, Progress::default()).await;
    for shown in verdicts::until_delivered(service, &sent).await {
        are_times_of_now(&shown);
    }
    run.judge().await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

/// Holds each time that is shown of an event to the right one, and to be written in UTC.
fn are_times_of_now(shown: &serde_json::Value) {
    let attempts = shown["history"].as_array().expect("a history");
    let times = [&shown["received_at"], &shown["settled_at"]].into_iter().chain(attempts.iter().map(|attempt| &attempt["started_at"]));
    for time in times {
        let text = time.as_str().unwrap_or_else(|| panic!("a time is missing: {shown}"));
        assert!(text.ends_with('Z'), "{text} is not in UTC");
        let off = text.parse::<Timestamp>().expect("RFC 3339").duration_since(Timestamp::now()).abs();
        assert!(off < SignedDuration::from_secs(60), "{text} is {off:?} off: {shown}");
    }
}

fn refuses_a_third(received: &tests::sink::Received) -> Answer {
    Answer::refusing_a_third_at_first(received).after(Duration::from_millis(5))
}

fn configuration(sink: &Sink) -> String {
    format!("[defaults]\ninitial_delay = \"500ms\"\nmax_delay = \"1s\"\n{}", sink.three_sources())
}
