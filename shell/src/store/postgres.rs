//! The store on PostgreSQL, for any number of processes.
//!
//! Each call is one statement that commits by itself. So a dropped call leaves no transaction open:
//! the server commits the statement or rolls it back. `accept` and the redrive of one event may
//! need more statements, to read the rows that the first one did not change. A probe is one
//! transaction of several statements. Through a pooler, each call is such a transaction: see
//! `pooler.rs`.
//!
//! The SQL files say which locks each statement takes, and why they cannot deadlock.
//!
//! This file has the pools, and how a statement runs. The calls of the three ports are in `events.rs`,
//! `operator.rs` and `maintenance.rs`.

mod connect;
mod errors;
mod events;
mod give_way;
mod lanes;
mod maintenance;
mod migrate;
mod notices;
mod operator;
mod parameters;
mod pooler;
mod probe;
mod servers;
mod session;
pub mod sql;
mod tls;

pub use connect::{Plans, options};
pub use servers::{Servers, shown};

use crate::clock::TokioClock;
use crate::ports::StoreError;
use crate::store::OpenError;
use crate::store::pool::Pool;
use crate::store::schema::MigrateError;
use errors::Failure;
use futures::StreamExt;
use futures::future::poll_fn;
use lanes::Lanes;
use servers::Sessions;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Either, Executor, FromRow, Postgres};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::cursor::{CursorSettings, Cursors};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Connections of each pool. Separate pools keep one kind of work from using up the connections of
/// another. A separate connection queries the sessions of abandoned calls, so a process has at most
/// 14.
const INTAKE_CONNECTIONS: usize = 5;
const WORKER_CONNECTIONS: usize = 4;
const OPERATOR_CONNECTIONS: usize = 2;
const RETENTION_CONNECTIONS: usize = 1;
const READINESS_CONNECTIONS: usize = 1;

/// How long a call waits for the server's reply. This is longer than the session's statement
/// timeout, so it ends only calls whose connection is lost or whose commit hangs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(8);

/// How many rounds `accept` tries if a key existed at the insert and was deleted before the read. A
/// redrive of one event has the same limit.
const ACCEPT_ROUNDS: usize = 5;

/// Microseconds since 1970, or a number of microseconds, as the database stores them.
type Micros = i64;

/// Its clones are the same store.
#[derive(Clone)]
pub struct PostgresStore {
    servers: Arc<Servers>,
    intake: Arc<Pool<Sessions>>,
    worker: Arc<Pool<Sessions>>,
    operator: Arc<Pool<Sessions>>,
    retention: Arc<Pool<Sessions>>,
    readiness: Arc<Pool<Sessions>>,
    /// Where the claims of each source start, and the clock that they are counted with.
    cursors: Arc<Mutex<Cursors>>,
    clock: TokioClock,
    /// Notified when a call finds that a table is missing.
    lost_schema: Arc<Notify>,
}

impl PostgresStore {
    /// A store on the database that the URL names. It connects at first use.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the URL cannot be parsed.
    pub fn new(url: &str) -> Result<Self, OpenError> {
        Self::with_cursors(url, CursorSettings::default())
    }

    /// As [`Self::new`], with other rules for where claims start. A test that moves rows back by hand
    /// needs claims that start at the front.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn with_cursors(url: &str, cursors: CursorSettings) -> Result<Self, OpenError> {
        let servers = Arc::new(Servers::parse(url)?);
        servers.log_ignored();
        let lanes = Arc::new(Lanes::default());
        let pool = |limit, plans| Pool::new(Sessions::new(&servers, plans, &lanes), limit);
        let store = Self {
            intake: pool(INTAKE_CONNECTIONS, Plans::Generic),
            worker: pool(WORKER_CONNECTIONS, Plans::Generic),
            operator: pool(OPERATOR_CONNECTIONS, Plans::Custom),
            retention: pool(RETENTION_CONNECTIONS, Plans::Custom),
            readiness: pool(READINESS_CONNECTIONS, Plans::Custom),
            cursors: Arc::new(Mutex::new(Cursors::new(cursors))),
            clock: TokioClock::new(),
            lost_schema: Arc::default(),
            servers: Arc::clone(&servers),
        };
        lanes.set(store.pools().map(|(_, pool)| pool));
        Ok(store)
    }

    fn cursors(&self) -> MutexGuard<'_, Cursors> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Migrates the database to this program's schema. See [`crate::store::OpenStore::migrate`].
    ///
    /// # Errors
    ///
    /// [`MigrateError`].
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        migrate::migrate(&self.servers).await
    }

    /// Completes when a call has found that a table is missing.
    pub async fn lost_schema(&self) {
        self.lost_schema.notified().await;
    }

    /// Each pool with its name in metrics.
    fn pools(&self) -> [(&'static str, &Arc<Pool<Sessions>>); 5] {
        [
            ("intake", &self.intake),
            ("worker", &self.worker),
            ("operator", &self.operator),
            ("retention", &self.retention),
            ("readiness", &self.readiness),
        ]
    }

    /// Executes one statement to its end. Its transaction ends with it.
    async fn execute(
        &self,
        pool: &Arc<Pool<Sessions>>,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Failure> {
        let mut rows = Vec::new();
        self.execute_by_row(pool, query, |row| rows.push(row)).await?;
        Ok(rows)
    }

    /// Like [`Self::execute`], but passes on each row as it arrives, so that its bytes are not held
    /// twice.
    async fn execute_by_row(
        &self,
        pool: &Arc<Pool<Sessions>>,
        query: Query<'_, Postgres, PgArguments>,
        mut each: impl FnMut(PgRow) + Send,
    ) -> Result<(), Failure> {
        let mut connection = pool.take().await.map_err(|error| errors::not_taken(&error))?;
        let failure = match timeout(REPLY_TIMEOUT, connection.run(query, &mut each)).await {
            Ok(Ok(_)) if connection.is_outdated() => errors::outdated(),
            Ok(Ok(true)) => errors::warned_at_commit(),
            Ok(Ok(false)) => {
                connection.keep();
                return Ok(());
            }
            Ok(Err(failure)) => failure,
            Err(_) => errors::no_reply(REPLY_TIMEOUT),
        };
        if failure.is_table_missing {
            self.lost_schema.notify_one();
        }
        if failure.usable {
            connection.keep();
        } else {
            self.server_is_lost();
        }
        Err(failure)
    }

    /// The server or the network broke a connection, or the server accepts no writes any more. The
    /// other connections are useless too, and the next call looks for the right server again.
    fn server_is_lost(&self) {
        self.servers.lost();
        for (_, pool) in self.pools() {
            pool.forget_idle();
        }
    }
}

/// Runs one statement to its end and passes on each row as it arrives. Returns whether the server
/// sent a warning after the rows, that is, during the commit.
async fn run(
    connection: &mut PgConnection,
    query: Query<'_, Postgres, PgArguments>,
    each: &mut (impl FnMut(PgRow) + Send),
) -> Result<bool, sqlx::Error> {
    let mut steps = connection.fetch_many(query);
    let (mut is_executed, mut warned) = (false, false);
    loop {
        // The poll that returns the end of the statement reads no further. So a warning in a later
        // poll belongs to the commit.
        let step = poll_fn(|context| {
            let (polled, in_this_poll) = notices::watch(|| steps.poll_next_unpin(context));
            warned |= is_executed && in_this_poll;
            polled
        });
        match step.await {
            Some(Ok(Either::Left(_))) => is_executed = true,
            Some(Ok(Either::Right(row))) => each(row),
            Some(Err(error)) => return Err(error),
            None => return Ok(warned),
        }
    }
}

/// Decodes the rows of a completed statement. If that fails, its changes are committed all the
/// same.
fn decode<'r, T: FromRow<'r, PgRow>>(rows: &'r [PgRow]) -> Result<Vec<T>, StoreError> {
    rows.iter().map(|row| T::from_row(row).map_err(|error| errors::failed(&error).error)).collect()
}
