//! The database changes while the program runs: its schema is dropped, or the password of its role
//! is replaced.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use tests::database::Database;
use tests::http::Client;
use tests::postgres::{Cluster, Settings, Stop, shared};
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::wait;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_vanished_is_migrated_again() {
    let database = Database::Postgres(shared().create_database().await);
    let sink = Sink::start(|_| Answer::status(200)).await;
    let service = Service::start(&database.url(), &sink.three_sources()).await;
    is_delivered(&service, &sink, "before", 1).await;

    database.execute("drop schema public cascade; create schema public").await;

    is_delivered(&service, &sink, "after", 2).await;
    assert!(service.log().contains("a table of the database is missing"), "{}", service.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_vanished_stays_so_if_the_program_does_not_migrate() {
    let database = Database::Postgres(shared().create_database().await);
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!("migrate_on_start = false\n{}", sink.three_sources());
    drop(Service::start(&database.url(), &sink.three_sources()).await);
    let service = Service::start(&database.url(), &configuration).await;
    database.execute("drop schema public cascade; create schema public").await;
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    let tables: Vec<(i64,)> =
        database.fetch("select count(*)::bigint from pg_tables where schemaname = 'public'").await;
    assert_eq!(tables, [(0,)]);
    let ready = Client::default().get(&service.url("/ready")).await.expect("an answer");
    assert_eq!(ready.status_code, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_password_is_read_again() {
    let cluster = Cluster::start(Settings::default());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rules = folder.path().join("hba.conf");
    let only = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    fs::write(&rules, only).expect("the file can be written");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let url = cluster.create_database().await;
    let name = url.rsplit('/').next().expect("a URL names its database");
    for statement in [
        "create role app login superuser password 'first'".to_owned(),
        format!("alter system set hba_file = '{}'", rules.display()),
    ] {
        cluster.execute(&statement).await;
    }
    tokio::task::block_in_place(|| {
        cluster.stop(Stop::Fast);
        cluster.resume();
    });
    let passwords = folder.path().join("passwords");
    let write = |password: &str| {
        fs::write(&passwords, format!("127.0.0.1:*:*:app:{password}\n")).expect("it is ours");
        fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).expect("it is ours");
    };
    write("first");
    let sink = Sink::start(|_| Answer::status(200)).await;
    let url = format!("postgres://app@127.0.0.1:{}/{name}", cluster.port());
    let passfile: &str = passwords.to_str().expect("a path is text").to_owned().leak();
    let environment = Box::leak(Box::new([("PGPASSFILE", passfile)]));
    let service = Service::start_in(environment, &url, &sink.three_sources()).await;
    is_delivered(&service, &sink, "before", 1).await;

    write("second");
    cluster.execute("alter role app password 'second'").await;
    cluster
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
        .await;

    is_delivered(&service, &sink, "after", 2).await;
}

async fn is_delivered(service: &Service, sink: &Sink, key: &str, delivered: usize) {
    let client = Client::default();
    wait::until("the post to be accepted", || async {
        let url = service.url("/webhooks/github");
        let answer = client.post(&url, &[("idempotency-key", key)], "{}").await?;
        if answer.status_code == 202 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    sink.reaches(delivered).await;
}
