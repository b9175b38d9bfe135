//! The baseline: what the database achieves without the service, in the same run. It measures
//! single-row inserts by pgbench, and inserts of 100 rows at a time. Each inserts what the intake
//! inserts, an event of the same size with the same keys, but no delivery.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};
use tests::database::connect;
use tests::postgres::{Cluster, program};

const TABLE: &str = "
    drop table if exists bare;
    create table bare (
        id uuid primary key, source text not null, idempotency_key text not null, fingerprint bytea not null,
        received_at timestamptz not null, headers bytea not null, body bytea not null, unique (source, idempotency_key)
    )";

/// About the size of the load generator's headers, in bytes.
const HEADERS: usize = 350;

/// Every transaction inserts the same event with another key. The bytes are sent each time.
const SCRIPT: &str = r"
\set a random(1, 1000000000000000)
insert into bare values (
    gen_random_uuid(), 's0', 'key-' || :a || '-' || :client_id, sha256(convert_to(:a::text, 'UTF8')), now(),
    convert_to(:headers, 'UTF8'), convert_to(:body, 'UTF8'));
";

/// The results of pgbench.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inserts {
    /// Rows a second.
    pub(crate) rate: f64,
    /// Mean time of an insert, in milliseconds.
    pub(crate) latency_ms: f64,
}

/// Single-row inserts by this number of clients.
pub(crate) async fn single_rows(
    cluster: &Cluster,
    url: &str,
    clients: usize,
    time: Duration,
) -> Inserts {
    let said = pgbench(cluster, url, clients, time, &[]).await;
    let figure = |name: &str| -> f64 {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name}: {said}"));
        line.split_whitespace()
            .next()
            .and_then(|figure| figure.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {said}"))
    };
    Inserts { rate: figure("tps = "), latency_ms: figure("latency average = ") }
}

/// The p99 of the time of a single-row insert at this many inserts a second, in milliseconds. As for
/// the posts, the time starts when the insert was due.
pub(crate) async fn insert_p99_ms(
    cluster: &Cluster,
    url: &str,
    clients: usize,
    rate: f64,
    time: Duration,
) -> f64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prefix = folder.path().join("log");
    let arguments = [
        format!("--rate={rate}"),
        "--log".to_owned(),
        format!("--log-prefix={}", prefix.display()),
    ];
    pgbench(cluster, url, clients, time, &arguments).await;
    let mut micros = Vec::new();
    for file in std::fs::read_dir(folder.path()).expect("the folder is there") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("a log");
        micros.extend(text.lines().map(|line| -> u64 {
            let time = line.split(' ').nth(2).expect("the third column is the time");
            time.parse().expect("a number of microseconds")
        }));
    }
    micros.sort_unstable();
    micros[micros.len() * 99 / 100] as f64 / 1e3
}

/// What pgbench prints.
async fn pgbench(
    cluster: &Cluster,
    url: &str,
    clients: usize,
    time: Duration,
    arguments: &[String],
) -> String {
    prepare(url).await;
    let mut script = tempfile::NamedTempFile::new().expect("a temporary file");
    script.write_all(SCRIPT.as_bytes()).expect("room for a script");
    let text = |length| String::from_utf8(tests::load::body(length)).expect("letters and digits");
    let output = Command::new(program("pgbench"))
        .args(["--no-vacuum", "--protocol=prepared", "--host=127.0.0.1", "--username=postgres"])
        .arg(format!("--port={}", cluster.port()))
        .arg(format!("--client={clients}"))
        .arg(format!("--jobs={}", clients.min(2)))
        .arg(format!("--time={}", time.as_secs()))
        .arg(format!("--define=headers={}", text(HEADERS)))
        .arg(format!("--define=body={}", text(1024)))
        .args(arguments)
        .arg("--file")
        .arg(script.path())
        .arg(url.rsplit('/').next().expect("a URL names a database"))
        .output()
        .expect("pgbench runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "pgbench: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Rows a second, with 100 rows in each insert, on four connections.
pub(crate) async fn hundreds(url: &str, time: Duration) -> f64 {
    const ROWS: usize = 100;
    prepare(url).await;
    let begun = Instant::now();
    let connections = (0..4).map(|number| {
        let url = url.to_owned();
        tokio::spawn(async move {
            let mut connection = connect(&url).await;
            let (headers, body) = (tests::load::body(HEADERS), tests::load::body(1024));
            let mut rows = 0_usize;
            while begun.elapsed() < time {
                let keys: Vec<String> = (0..ROWS).map(|row| format!("key-{number}-{:012}", rows + row)).collect();
                sqlx::query(
                    "insert into bare
                     select gen_random_uuid(), 's0', new.key, sha256(convert_to(new.key, 'UTF8')), now(), new.headers, new.body
                     from unnest($1::text[], $2::bytea[], $3::bytea[]) as new (key, headers, body)",
                )
                .bind(keys)
                .bind(vec![headers.as_slice(); ROWS])
                .bind(vec![body.as_slice(); ROWS])
                .execute(&mut connection)
                .await
                .expect("rows can be inserted");
                rows += ROWS;
            }
            rows
        })
    });
    let mut rows = 0;
    for connection in connections.collect::<Vec<_>>() {
        rows += connection.await.expect("no panic");
    }
    rows as f64 / begun.elapsed().as_secs_f64()
}

async fn prepare(url: &str) {
    sqlx::raw_sql(TABLE).execute(&mut connect(url).await).await.expect("a table can be made");
    sqlx::raw_sql("checkpoint")
        .execute(&mut connect(url).await)
        .await
        .expect("a checkpoint can be made");
}
