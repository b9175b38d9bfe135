//! A rolling upgrade during a backup. The migration of the new version needs a lock that conflicts
//! with the locks of the backup, which can last for hours. Processes of the old version continue to
//! work, and the log says what the migration waits for.

use sqlx::{Connection, PgConnection, raw_sql};
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::program::{Service, run};
use tests::sink::{Answer, Sink};

const FIRST_SCHEMA: &str = include_str!("../fixtures/first_schema/postgres.sql");

/// The pause after each try of a migration. A try blocks inserts for 200 ms, so it blocks them for
/// less than a tenth of the time.
const PAUSE: Duration = Duration::from_secs(2);

/// How a process of the first version stores an event. After its lock timeout it refuses the
/// producer.
const OLD_SESSION: &str = "set lock_timeout = '2s'; set statement_timeout = '5s'";
const OLD_INSERT: &str =
    "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
    values (gen_random_uuid(), 'orders', gen_random_uuid()::text, sha256(''), now(), '', '')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_gives_way_to_a_backup_and_logs_it() {
    let database = Database::postgres().await;
    database.execute(FIRST_SCHEMA).await;
    let url = database.url();
    let mut backup = PgConnection::connect(&format!("{url}?application_name=pg_dump"))
        .await
        .expect("the server runs");
    raw_sql("begin; lock table events, deliveries, attempts in access share mode")
        .execute(&mut backup)
        .await
        .expect("the backup takes its locks");
    let sink = Sink::start(|_| Answer::status(200)).await;
    // The fixture's events are older than the default retention, and none of them is delivered.
    let configuration = format!("[sources.orders]\ndestination = \"{}\"\n", sink.url("/orders"));

    let begun = Instant::now();
    let service = Service::begin(&url, &configuration).await;
    let tries = || u32::try_from(service.log().matches("migration gave way").count()).unwrap_or(0);

    let mut old = PgConnection::connect(&url).await.expect("the server runs");
    raw_sql(OLD_SESSION)
        .execute(&mut old)
        .await
        .expect("the session of an old process is configured");
    let mut stored = 0;
    // Long enough for a retry of the migration.
    while begun.elapsed() < Duration::from_secs(10) || tries() < 2 {
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "the migration was not retried:\n{}",
            service.log()
        );
        let refused = raw_sql(OLD_INSERT).execute(&mut old).await.err();
        assert!(
            refused.is_none(),
            "after {:?} and {stored} events, an insert of an old process failed: {refused:?}",
            begun.elapsed()
        );
        stored += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (tries, passed) = (tries(), begun.elapsed());
    assert!(tries * PAUSE <= passed, "{tries} tries in {passed:?}");
    let log = service.log();
    assert!(
        log.contains("blocked by `pg_dump` (server process"),
        "the log does not name the session that the migration waits for:\n{log}"
    );

    // The command gives way, too, until the backup ends.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_owned();
    let command = tokio::task::spawn_blocking(move || run(&path, ["migrate", "--database", &url]));
    raw_sql("commit").execute(&mut backup).await.expect("the backup ends");
    service.ready().await;
    let output = command.await.expect("the command ran");
    assert!(output.status.success(), "{output:?}");
}
