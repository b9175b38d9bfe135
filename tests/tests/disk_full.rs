//! The database's disk is full: posts are answered with `503`, and the process stays alive. When
//! there is space again, the work resumes, and no acknowledged event is missing.
//!
//! Only root can mount the small disks that these tests fill.

use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::postgres::{Cluster, Settings, Stop};
use tests::producer::{Post, try_once};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::Answer;
use tests::small_disk::SmallDisk;
use tests::wait;

const BODY_BYTES: usize = 100 << 10;
const MEBIBYTES_THAT_ARE_ENOUGH: u32 = 512;

/// Refusals take longer than usual: the database tries to write to the full disk, and its recovery
/// may try again.
const ANSWERED_WITHIN: Duration = Duration::from_millis(2_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sqlite_disk_causes_503_until_there_is_space() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let run = Recording::begin(Database::Sqlite(
        TempDir::new_in(disk.path()).expect("an empty disk has space"),
    ))
    .await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service = run.service(&sink.three_impatient_sources("500ms", "")).await;
    run.while_database_is(
        "full",
        fill_and_grow(&run, &service, || disk.grow_to(MEBIBYTES_THAT_ARE_ENOUGH)),
    )
    .await;
    goes_on(&run, &service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_postgresql_table_disk_causes_503_until_there_is_space() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let cluster = Cluster::start(Settings::default());
    let place = tests::postgres::folder_for_the_server(&disk.path().join("tables"));
    cluster.execute(&format!("create tablespace small location '{}'", place.display())).await;
    cluster.execute("create database small tablespace small").await;
    let run = Recording::begin(Database::Postgres(cluster.url("small"))).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service = run.service(&sink.three_impatient_sources("500ms", "")).await;
    run.while_database_is(
        "full",
        fill_and_grow(&run, &service, || disk.grow_to(MEBIBYTES_THAT_ARE_ENOUGH)),
    )
    .await;
    goes_on(&run, &service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_postgresql_wal_disk_causes_503_until_there_is_space() {
    let Some(disk) = SmallDisk::mount(56) else { return };
    let wal = Some(tests::postgres::folder_for_the_server(&disk.path().join("log")));
    let cluster = Cluster::start(Settings { wal, ..Settings::default() });
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service = run.service(&sink.three_impatient_sources("500ms", "")).await;
    // Without space for its WAL, PostgreSQL itself stops.
    let make_room = || {
        disk.grow_to(MEBIBYTES_THAT_ARE_ENOUGH);
        cluster.stop(Stop::Kill);
        cluster.resume();
    };
    run.while_database_is("full", fill_and_grow(&run, &service, make_room)).await;
    goes_on(&run, &service).await;
}

/// Posts until the disk is full and ten posts were refused. Then makes space.
async fn fill_and_grow(run: &Recording, service: &Service, make_room: impl FnOnce()) {
    const REFUSALS: usize = 10;
    let (mut accepted, mut refused, begun) = (0, 0, Instant::now());
    while refused < REFUSALS {
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "the disk does not fill up: {accepted} accepted, {refused} refused"
        );
        match post(run, service, &format!("key-{accepted}-{refused}")).await {
            202 => accepted += 1,
            503 => refused += 1,
            other => panic!("the response on a full disk was {other}"),
        }
    }
    assert!(accepted > 10, "the disk was full from the start");
    let health = Client::default().get(&service.url("/health")).await.expect("the process runs");
    assert_eq!(health.status_code, 200, "a process whose database has no space stays alive");
    make_room();
}

/// Asserts that a post is accepted within ten seconds, and that every accepted event ends.
async fn goes_on(run: &Recording, service: &Service) {
    wait::within(Duration::from_secs(10), "a post to be accepted", || async {
        let number = run.elapsed().as_nanos();
        match post(run, service, &format!("after-{number}")).await {
            202 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    run.judge().await;
}

async fn post(run: &Recording, service: &Service, key: &str) -> u16 {
    let mut body = key.as_bytes().to_vec();
    // Pseudo-random bytes, which the database cannot compress.
    let mut state = key
        .bytes()
        .fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| state.rotate_left(7) ^ u64::from(byte));
    body.resize_with(BODY_BYTES, || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    let post = Post { producer: "producer", source: "github", key, body: body.into() };
    let asked = Instant::now();
    let answer = try_once(run, &Client::default(), &service.target(), &post)
        .await
        .expect("every post gets a response");
    assert!(asked.elapsed() < ANSWERED_WITHIN, "answered after {:?}", asked.elapsed());
    answer.map_or_else(|answer| answer.status_code, |_| 202)
}
