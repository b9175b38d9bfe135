//! `make databases` runs this once for each database and pooler. It prints one row of a table.
//!
//! `databases NAME URL` runs a trial on the empty database of a URL. `databases NAME direct` starts
//! its own PostgreSQL server, with the programs on the path. `databases NAME session [LINE ...]` and
//! `databases NAME transaction [LINE ...]` also start a PgBouncer before it, with these further lines
//! of configuration. `databases NAME raw PROGRAM` and `databases NAME streaming PROGRAM` start a
//! Pgpool.

use std::path::Path;
use std::process::ExitCode;
use tests::postgres::pgbouncer::{self, Mode};
use tests::postgres::pgpool::{self, Clustering};
use tests::postgres::{Cluster, Settings};
use tests::trial::{self, Trial};

/// Fewer than a single process has connections.
const SESSIONS_IN_TRANSACTION_MODE: usize = 3;

/// Three processes with all their connections.
const SESSIONS_IN_SESSION_MODE: usize = 60;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, way, more @ ..] = &*arguments else {
        eprintln!("usage: databases NAME URL|direct|session|transaction|raw|streaming [...]");
        return ExitCode::FAILURE;
    };
    if way.contains("://") {
        print(name, trial::run(way).await);
        return ExitCode::SUCCESS;
    }
    let cluster = Cluster::start(Settings::default());
    let url = cluster.create_database().await;
    let pooler = match (&**way, more) {
        ("direct", []) => None,
        ("session", lines) => {
            let lines = lines.join("\n");
            let sessions = SESSIONS_IN_SESSION_MODE;
            Some(pgbouncer::start(&cluster, Mode::Session, sessions, &lines).await)
        }
        ("transaction", lines) => {
            let lines = lines.join("\n");
            let sessions = SESSIONS_IN_TRANSACTION_MODE;
            Some(pgbouncer::start(&cluster, Mode::Transaction, sessions, &lines).await)
        }
        ("raw", [program]) => {
            Some(pgpool::start(&cluster, Clustering::Raw, Path::new(program)).await)
        }
        ("streaming", [program]) => {
            Some(pgpool::start(&cluster, Clustering::Streaming, Path::new(program)).await)
        }
        _ => {
            eprintln!("unknown arguments; see the head of tests/examples/databases.rs");
            return ExitCode::FAILURE;
        }
    };
    let url = pooler.as_ref().map_or_else(|| url.clone(), |pooler| pooler.through(&url));
    print(name, trial::run(&url).await);
    ExitCode::SUCCESS
}

fn print(name: &str, trial: Trial) {
    let Trial { posts, delivered, lost, repeated, kills, first_starts, is_pooled } = trial;
    let found = if is_pooled { "pooled" } else { "direct" };
    println!(
        "| {name} | {found} | {posts} | {delivered} | {lost} | {repeated} | {kills} | {first_starts} |"
    );
}
