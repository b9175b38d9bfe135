//! `/ready` reports what the intake last learned about the database. Queries of operators do not
//! affect it.

use bytes::Bytes;
use sqlx::Connection;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::database::{Database, connect};
use tests::http::Client;
use tests::postgres::{Cluster, Settings, folder_for_the_server};
use tests::program::Service;
use tests::small_disk::SmallDisk;
use tests::{on_each_database, wait};

on_each_database!(many_operator_queries_leave_the_process_ready);

/// No server listens at this destination.
const SOURCE: &str = "[sources.github]\ndestination = \"http://127.0.0.1:9/hooks\"\n";

async fn many_operator_queries_leave_the_process_ready(database: Database) {
    const OPERATORS: usize = 300;
    let service = Service::start(&database.url(), SOURCE).await;
    database.execute(many_events(&database)).await;
    let client = Client::default();
    let begun = Instant::now();
    let lists = (0..OPERATORS).map(|_| {
        let (client, url) = (client.clone(), service.url("/events?status_code=599&limit=100"));
        tokio::spawn(async move {
            while begun.elapsed() < Duration::from_secs(8) {
                // The response does not matter here.
                drop(client.get(&url).await);
            }
        })
    });
    let lists = futures::future::join_all(lists.collect::<Vec<_>>());
    let mut asked = 0;
    let watch = async {
        loop {
            let (status_code, detail) = ready(&client, &service).await;
            assert_eq!(status_code, 200, "after {asked} responses: {detail}");
            asked += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        biased;
        _ = lists => {}
        () = watch => {}
    }
    assert!(asked > 5, "the queries ended too soon");
}

/// SQL that inserts events. None of them matches the search.
fn many_events(database: &Database) -> &'static str {
    match database {
        Database::Postgres(_) => {
            "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
             select ('01930000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'github', 'key-' || n, decode(repeat('ab', 32), 'hex'), now(), '', 'body'
             from generate_series(1, 20000) as n"
        }
        Database::Sqlite(_) => {
            "with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 20000)
             insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
             select unhex('019300000000700080' || printf('%014x', n)), 'github', 'key-' || n, zeroblob(32), 1764374400000000, x'', x'00'
             from numbers"
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sqlite_disk_makes_the_process_unready() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let database = Database::Sqlite(TempDir::new_in(disk.path()).expect("an empty disk has space"));
    unready_until_there_is_room(&disk, &database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_postgresql_disk_makes_the_process_unready() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let cluster = Cluster::start(Settings::default());
    let place = folder_for_the_server(&disk.path().join("tables"));
    cluster.execute(&format!("create tablespace small location '{}'", place.display())).await;
    cluster.execute("create database small tablespace small").await;
    unready_until_there_is_room(&disk, &Database::Postgres(cluster.url("small"))).await;
}

async fn unready_until_there_is_room(disk: &SmallDisk, database: &Database) {
    let service = Service::start(&database.url(), SOURCE).await;
    let (client, begun) = (Client::default(), Instant::now());
    while post(&client, &service, 100 << 10).await == 202 {
        assert!(begun.elapsed() < Duration::from_mins(1), "the disk does not fill up");
    }
    for _ in 0..5 {
        assert_eq!(post(&client, &service, 100 << 10).await, 503);
        let (status_code, detail) = ready(&client, &service).await;
        assert_eq!((status_code, detail.as_str()), (503, CANNOT_STORE));
    }
    assert!(service.log().contains("not ready: new events cannot be stored"), "{}", service.log());
    disk.grow_to(512);
    // No post is sent while the process is not ready, because a load balancer follows `/ready`.
    service.ready().await;
    assert_eq!(post(&client, &service, 100 << 10).await, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_insert_privilege_makes_the_process_unready() {
    let database = Database::postgres().await;
    drop(Service::start(&database.url(), SOURCE).await);
    database.execute("create role clerk login; grant select, insert, update, delete on all tables in schema public to clerk").await;
    let url = database.url().replacen("//postgres@", "//clerk@", 1);
    let (service, client) = (Service::start(&url, SOURCE).await, Client::default());
    assert_eq!(post(&client, &service, 1).await, 202);

    database.execute("revoke insert on events from clerk").await;
    assert_eq!(post(&client, &service, 1).await, 503);
    assert_eq!(ready(&client, &service).await, (503, CANNOT_STORE.to_owned()));
    let another = Service::begin(&url, SOURCE).await;
    assert_eq!(
        ready(&client, &another).await,
        (503, CANNOT_STORE.to_owned()),
        "the state of a process that has stored nothing yet"
    );

    database.execute("grant insert on events to clerk").await;
    service.ready().await;
    another.ready().await;
    assert_eq!(post(&client, &service, 1).await, 202);
    assert_eq!(
        database.fetch::<(i64,)>("select count(*) from events").await,
        [(2,)],
        "the probes left rows behind"
    );
    assert_eq!(database.fetch::<(i64,)>("select count(*) from deliveries").await, [(2,)]);
    // Only the intake needs to insert, so a worker starts.
    database.execute("revoke insert on events from clerk").await;
    Service::start(&url, &format!("role = \"worker\"\n{SOURCE}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_waiting_for_a_lost_standby_make_the_process_unready() {
    let cluster = Cluster::start(Settings::default());
    let database = Database::Postgres(cluster.create_database().await);
    let (service, client) = (Service::start(&database.url(), SOURCE).await, Client::default());
    assert_eq!(post(&client, &service, 1).await, 202);
    cluster.commits_wait_for("unknown").await;
    wait::until("a commit to wait", || async {
        let status_code = post(&client, &service, 1).await;
        if status_code == 503 { Ok(()) } else { Err(status_code.to_string()) }
    })
    .await;
    assert_eq!(ready(&client, &service).await, (503, CANNOT_STORE.to_owned()));
    cluster.commits_wait_for_none().await;
    service.ready().await;
    assert_eq!(post(&client, &service, 1).await, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_rejected_row_or_locked_key_leaves_the_process_ready() {
    let database = Database::postgres().await;
    let (service, client) = (Service::start(&database.url(), SOURCE).await, Client::default());
    database
        .execute("alter table events add constraint harmless check (octet_length(body) <> 666)")
        .await;
    for _ in 0..3 {
        assert_eq!(post(&client, &service, 666).await, 503);
        assert_eq!(ready(&client, &service).await.0, 200);
    }

    // A key that another transaction is inserting.
    let mut connection = connect(&database.url()).await;
    let mut transaction = connection.begin().await.expect("a transaction begins");
    let insert = "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
                  select gen_random_uuid(), 'github', 'held', decode(repeat('ab', 32), 'hex'), now(), '', ''";
    sqlx::query(insert).execute(&mut *transaction).await.expect("the row can be inserted");
    for _ in 0..3 {
        assert_eq!(post_as(&client, &service, "held", 1).await, 503);
        assert_eq!(ready(&client, &service).await.0, 200);
    }
    transaction.rollback().await.expect("the insert is rolled back");
    assert_eq!(post_as(&client, &service, "held", 1).await, 202);
}

const CANNOT_STORE: &str = "Not ready: new events cannot be stored; the log says why.";

/// The status code and the detail of `/ready`.
async fn ready(client: &Client, service: &Service) -> (u16, String) {
    let answer = client.get(&service.url("/ready")).await.expect("a response");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    (answer.status_code, body["detail"].as_str().unwrap_or_default().to_owned())
}

/// Posts a new event of this size.
async fn post(client: &Client, service: &Service, bytes: usize) -> u16 {
    post_as(client, service, &uuid::Uuid::new_v4().to_string(), bytes).await
}

async fn post_as(client: &Client, service: &Service, key: &str, bytes: usize) -> u16 {
    // Pseudo-random bytes, which the database cannot compress.
    let mut random = fastrand::Rng::with_seed(
        key.bytes().fold(7, |seed, byte| seed.rotate_left(5) ^ u64::from(byte)),
    );
    let body: Bytes = std::iter::repeat_with(|| random.u8(..)).take(bytes).collect();
    let answer = client
        .post(&service.url("/webhooks/github"), &[("idempotency-key", key)], body)
        .await
        .expect("a response");
    answer.status_code
}
