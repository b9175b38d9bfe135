//! The resources used by a piece of work: CPU time of the service and of the database, statements,
//! commits, write-ahead log, memory. Also the speed of the disk at that moment.

use std::fs::File;
use std::io::{Seek, Write};
use std::time::{Duration, Instant};
use tests::database::connect;
use tests::postgres::Cluster;
use tests::program::Service;

/// The counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    service_cpu: Duration,
    database_cpu: Duration,
    statements: f64,
    commits: f64,
    wal_bytes: f64,
}

/// The differences between two readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) time: Duration,
    /// CPU time of the service divided by the elapsed time.
    pub(crate) service_cores: f64,
    /// CPU time of the database divided by the elapsed time; 0 if the database is not a server.
    pub(crate) database_cores: f64,
    /// Statements, without those of the gauge itself.
    pub(crate) statements: f64,
    pub(crate) commits: f64,
    /// Bytes of write-ahead log.
    pub(crate) wal_bytes: f64,
}

/// The sources of the counters.
pub(crate) struct Gauge<'a> {
    pub(crate) services: &'a [Service],
    pub(crate) postgres: Option<(&'a Cluster, &'a str)>,
}

impl Gauge<'_> {
    pub(crate) async fn read(&self) -> Reading {
        let (mut statements, mut commits, mut wal_bytes, mut database_cpu) =
            (0.0, 0.0, 0.0, Duration::ZERO);
        if let Some((cluster, url)) = self.postgres {
            (statements, commits, wal_bytes) = sqlx::query_as(
                "select
                    (select coalesce(sum(calls), 0)::float8 from pg_stat_statements
                     where query not like '%pg_stat_statements%' and query not like '%pg_catalog%'),
                    (select xact_commit::float8 from pg_stat_database where datname = current_database()),
                    (select wal_bytes::float8 from pg_stat_wal)",
            )
            .fetch_one(&mut connect(url).await)
            .await
            .expect("the counters can be read");
            database_cpu = cluster.cpu();
        }
        let service_cpu = self.services.iter().map(|service| service.usage().cpu).sum();
        Reading { at: Instant::now(), service_cpu, database_cpu, statements, commits, wal_bytes }
    }

    /// The use of resources since a reading.
    pub(crate) async fn since(&self, before: Reading) -> Spent {
        // The server's sessions report their statistics at most a second late, or when they become
        // idle.
        let time = before.at.elapsed();
        if self.postgres.is_some() {
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let now = self.read().await;
        let cores =
            |now: Duration, before: Duration| (now - before).as_secs_f64() / time.as_secs_f64();
        Spent {
            time,
            service_cores: cores(now.service_cpu, before.service_cpu),
            database_cores: cores(now.database_cpu, before.database_cpu),
            statements: now.statements - before.statements,
            commits: now.commits - before.commits,
            wal_bytes: now.wal_bytes - before.wal_bytes,
        }
    }

    /// The resident memory of the process that has the most, in MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        let resident =
            self.services.iter().map(|service| service.usage().resident_bytes).max().unwrap_or(0);
        resident as f64 / f64::from(1 << 20)
    }
}

/// Sequential flushes of 8 KiB a second, on the file system of temporary files, where the databases
/// are.
pub(crate) fn flushes() -> f64 {
    let mut file: File = tempfile::tempfile().expect("a temporary file");
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_millis(300) {
        file.rewind()
            .and_then(|()| file.write_all(&[1; 8192]))
            .and_then(|()| file.sync_data())
            .expect("a file can be flushed");
        count += 1;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}
