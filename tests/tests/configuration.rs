//! Mistakes of operators and problems of their environment: an invalid configuration, a database
//! that is unavailable, and a database with a different schema version.

use sqlx::{Connection, PgConnection, SqliteConnection};
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Instant;
use surehook_core::admission::Fingerprint;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::postgres::{Cluster, Settings, Stop};
use tests::program::{Service, run};
use tests::sink::{Answer, Sink};
use tests::{on_each_database, wait};

on_each_database!(
    migrating_twice_changes_nothing,
    a_database_with_a_newer_schema_is_refused,
    without_migrate_on_start_the_program_waits_for_the_migration,
    each_source_acknowledges_as_it_is_configured,
    the_largest_body_of_one_source_fits_beside_other_sources,
);

const SOURCE: &str = "[sources.github]\ndestination = \"http://127.0.0.1:9/hooks\"\n";

#[test]
fn check_and_serve_refuse_a_mistake_and_name_its_line() {
    let cases = [
        (format!("{SOURCE}timout = \"1s\"\n"), "surehook.toml:3:1: `sources.github.timout`"),
        (format!("{SOURCE}timeout = \"soon\"\n"), "surehook.toml:3:11: `sources.github.timeout`"),
        (
            "[sources.github]\ndestination = \"ftp://example.com\"\n".to_owned(),
            "surehook.toml:2:15: `sources.github.destination`",
        ),
        (format!("{SOURCE}{SOURCE}"), "surehook.toml:3:"),
        (format!("{SOURCE}lease = \"1s\"\n"), "surehook.toml:3:1: `sources.github.lease`"),
        (format!("listen = \"everywhere\"\n{SOURCE}"), "surehook.toml:1:10: `listen`"),
        ("log = \"human\"\n".to_owned(), "surehook.toml: `sources`"),
        (format!("{SOURCE}[intake\n"), "surehook.toml:3:"),
    ];
    for (text, message) in cases {
        let folder = folder_with(&text);
        for command in ["check", "serve"] {
            let output = run(folder.path(), [command, "--config", "surehook.toml"]);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{command} with:\n{text}");
            assert!(
                error.contains(message),
                "{command} does not report {message:?} for\n{text}but:\n{error}"
            );
            assert!(!error.contains("panicked"), "{error}");
        }
        assert_eq!(
            fs::read_dir(folder.path()).expect("the folder exists").count(),
            1,
            "a file was created: {text}"
        );
    }
}

#[test]
fn an_unusable_listen_address_is_reported_with_its_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("it listens").to_string();
    // 192.0.2.1 is reserved for documentation (RFC 5737), so no interface has it.
    for (address, reason) in [
        (taken.as_str(), "another process listens there"),
        ("192.0.2.1:8080", "no interface of this machine"),
    ] {
        let folder = folder_with(SOURCE);
        let output = run(folder.path(), ["serve", "--listen", address]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(reason)
                && error.contains("`listen`")
                && !error.contains("is another process there?"),
            "{error}"
        );
    }
}

#[test]
fn check_reports_all_mistakes_at_once_and_accepts_valid_files() {
    let folder = folder_with(
        "listen = 8080\n[sources.github]\ndestination = \"mailto:me\"\nconcurrency = 0\n",
    );
    let output = run(folder.path(), ["check"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    for place in ["surehook.toml:1:", "surehook.toml:3:", "surehook.toml:4:"] {
        assert!(error.contains(place), "{place} is missing in:\n{error}");
    }

    let folder = folder_with(SOURCE);
    let output = run(folder.path(), ["check"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!folder.path().join("surehook.db").exists(), "`check` created a database");
    let output = run(folder.path(), ["check", "--config", "elsewhere.toml"]);
    assert!(
        !output.status.success()
            && String::from_utf8_lossy(&output.stderr).contains("elsewhere.toml"),
        "{output:?}"
    );
}

#[test]
fn the_example_configuration_is_valid() {
    let folder = folder_with(include_str!("../../surehook.example.toml"));
    let output = run(folder.path(), ["check"]);
    assert!(output.status.success(), "{output:?}");
}

async fn migrating_twice_changes_nothing(database: Database) {
    let folder = folder_with(&format!("database = \"{}\"\n{SOURCE}", database.url()));
    for time in ["first", "second"] {
        let output = run(folder.path(), ["migrate"]);
        assert!(output.status.success(), "the {time} time: {output:?}");
    }
    let sink = Sink::start(|_| Answer::status(200)).await;
    let service = Service::start(&database.url(), &source(&sink)).await;
    delivers(&service, &sink, "after-both").await;
}

async fn a_database_with_a_newer_schema_is_refused(database: Database) {
    let folder = folder_with(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"{}\"\n{SOURCE}",
        database.url()
    ));
    assert!(run(folder.path(), ["migrate"]).status.success());
    pretend_a_newer_migration(&database).await;

    for command in ["serve", "migrate"] {
        let output = run(folder.path(), [command, "--config", "surehook.toml"]);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {told}");
        assert!(told.contains("newer") && !told.contains("panicked"), "{command}: {told}");
    }
}

async fn without_migrate_on_start_the_program_waits_for_the_migration(database: Database) {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let service =
        Service::begin(&database.url(), &format!("migrate_on_start = false\n{}", source(&sink)))
            .await;
    is_alive_and_takes_nothing(&service).await;

    let folder = folder_with(&format!("database = \"{}\"\n{SOURCE}", database.url()));
    assert!(run(folder.path(), ["migrate"]).status.success());

    service.ready().await;
    delivers(&service, &sink, "k").await;
}

async fn each_source_acknowledges_as_it_is_configured(database: Database) {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let sources = [
        ("plain", "", 202, "application/json", None),
        ("linear", "answer = { status = 200 }", 200, "application/json", None),
        (
            "adyen",
            "answer = { status = 200, content_type = \"text/html\", body = \"[accepted]\" }",
            200,
            "text/html",
            Some("[accepted]"),
        ),
        ("silent", "answer = { status = 204 }", 204, "", Some("")),
    ];
    let configuration: String = sources
        .iter()
        .map(|(name, line, ..)| {
            format!("[sources.{name}]\ndestination = \"{}\"\n{line}\n", sink.url("/"))
        })
        .collect();
    let service = Service::start(&database.url(), &configuration).await;
    for (name, _, status, content_type, body) in sources {
        let mut ids = Vec::new();
        for replayed in ["", "true"] {
            let url = service.url(&format!("/webhooks/{name}"));
            let headers = [("idempotency-key", "k")];
            let answer = Client::default().post(&url, &headers, "event").await.expect("a response");
            assert_eq!(answer.status_code, status, "{name}: {answer:?}");
            assert_eq!(answer.header("content-type"), content_type, "{name}");
            assert_eq!(answer.header("idempotent-replayed"), replayed, "{name}");
            let id = answer.header("surehook-event-id").to_owned();
            match body {
                Some(body) => assert_eq!(answer.body, body, "{name}"),
                None => assert_eq!(answer.json()["event_id"], id, "{name}"),
            }
            ids.push(id);
        }
        assert_eq!(ids[0], ids[1], "{name}");
        let event = ids[0].parse().expect("an event id");
        wait::until("the delivery", || async {
            sink.of(event).pop().ok_or_else(|| "not received".to_owned())
        })
        .await;
    }
    assert_eq!(sink.count(), sources.len());
}

/// Each source has a reserved part of the memory for requests. The rest must have room for the
/// largest body that any source accepts, and for its headers.
async fn the_largest_body_of_one_source_fits_beside_other_sources(database: Database) {
    const LARGEST: usize = 4_000_000;
    let sink = Sink::start(|_| Answer::status(200)).await;
    let sources: String = ["a", "b", "c", "github"]
        .map(|name| format!("[sources.{name}]\ndestination = \"{}\"\n", sink.url("/")))
        .concat();
    let configuration = format!(
        "[intake]\nmax_body = \"1KiB\"\nmax_queued_bytes = {LARGEST}\n{sources}max_body = {LARGEST}\n",
    );
    let service = Service::start(&database.url(), &configuration).await;
    let post = async |source: &str, length: usize| {
        let url = service.url(&format!("/webhooks/{source}"));
        let headers = [("idempotency-key", "k"), ("x-long", &"h".repeat(20_000))];
        Client::default().post(&url, &headers, "x".repeat(length)).await.expect("a response")
    };
    let sent = Fingerprint::of("x".repeat(LARGEST).as_bytes());
    let answer = post("github", LARGEST).await;
    assert_eq!(answer.status_code, 202, "{answer:?}");
    let event = answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    wait::until("the delivery", || async {
        match &sink.of(event)[..] {
            [delivery] if delivery.body_sha256 == *sent.as_bytes() => Ok(()),
            other => Err(format!("{} deliveries", other.len())),
        }
    })
    .await;
    for (source, length, status) in
        [("github", LARGEST + 1, 413), ("a", 1025, 413), ("a", 1024, 202)]
    {
        assert_eq!(post(source, length).await.status_code, status, "{length} bytes to {source}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_waits_for_a_stopped_postgresql_server() {
    let cluster = Cluster::start(Settings::default());
    let url = cluster.create_database().await;
    cluster.stop(Stop::Fast);
    let sink = Sink::start(|_| Answer::status(200)).await;
    let service = Service::begin(&url, &source(&sink)).await;
    is_alive_and_takes_nothing(&service).await;

    cluster.resume();
    service.ready().await;
    delivers(&service, &sink, "k").await;

    // The server fails again, while the program runs.
    cluster.stop(Stop::Kill);
    is_alive_and_takes_nothing(&service).await;
    cluster.resume();
    service.ready().await;
    delivers(&service, &sink, "k2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_of_an_unreachable_database_is_tried_once_a_second() {
    let begun = Instant::now();
    // No server listens on this port.
    let service = Service::begin("postgres://surehook@127.0.0.1:1/none", SOURCE).await;
    let tries = || service.log().matches("not ready: the database cannot be").count() as u64;
    wait::until("four tries", || async { if tries() >= 4 { Ok(()) } else { Err(service.log()) } })
        .await;
    // Two at the start, and one after each second.
    let (made, passed) = (tries(), begun.elapsed());
    assert!(made <= 2 + passed.as_secs(), "{made} tries in {passed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_waits_for_a_missing_postgresql_database() {
    let cluster = tests::postgres::shared();
    let sink = Sink::start(|_| Answer::status(200)).await;
    let service = Service::begin(&cluster.url("made_later"), &source(&sink)).await;
    is_alive_and_takes_nothing(&service).await;

    cluster.execute("create database made_later").await;

    service.ready().await;
    delivers(&service, &sink, "k").await;
}

/// Asserts that the program without its database is alive and not ready, and answers producers with
/// 503 and `Retry-After`.
async fn is_alive_and_takes_nothing(service: &Service) {
    let client = Client::default();
    let answer = client.get(&service.url("/health")).await.expect("the program responds");
    assert_eq!(answer.status_code, 200, "{answer:?}");
    wait::until("the program not to be ready", || async {
        let answer = client.get(&service.url("/ready")).await?;
        if answer.status_code == 503 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let answer = client
        .post(&service.url("/webhooks/github"), &[("idempotency-key", "too-early")], "{}")
        .await
        .expect("a response");
    assert_eq!(answer.status_code, 503, "{answer:?}");
    assert!(answer.problem().starts_with("urn:surehook:problem:database-"), "{answer:?}");
    assert!(
        answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0),
        "{answer:?}"
    );
}

/// Asserts that a post is accepted as a new event and delivered.
async fn delivers(service: &Service, sink: &Sink, key: &str) {
    let answer = Client::default()
        .post(&service.url("/webhooks/github"), &[("idempotency-key", key)], "{}")
        .await
        .expect("a response");
    assert_eq!((answer.status_code, answer.header("idempotent-replayed")), (202, ""), "{answer:?}");
    let event =
        answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id");
    wait::until("the delivery", || async {
        if sink.of(event).len() == 1 { Ok(()) } else { Err("not received".to_owned()) }
    })
    .await;
}

fn source(sink: &Sink) -> String {
    format!("[sources.github]\ndestination = \"{}\"\n", sink.url("/github"))
}

fn folder_with(configuration: &str) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join(Path::new("surehook.toml")), configuration)
        .expect("the folder can be written to");
    folder
}

fn told(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

async fn pretend_a_newer_migration(database: &Database) {
    const INSERT: &str = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (99999999, 'later', true, $1, 0)";
    match database {
        Database::Sqlite(_) => {
            let mut connection = SqliteConnection::connect(&database.url())
                .await
                .expect("the database is reachable");
            sqlx::query(INSERT)
                .bind(&b"later"[..])
                .execute(&mut connection)
                .await
                .expect("the table of migrations exists");
            connection.close().await.expect("the connection can be closed");
        }
        Database::Postgres(url) => {
            let mut connection =
                PgConnection::connect(url).await.expect("the database is reachable");
            sqlx::query(INSERT)
                .bind(&b"later"[..])
                .execute(&mut connection)
                .await
                .expect("the table of migrations exists");
            connection.close().await.expect("the connection can be closed");
        }
    }
}
