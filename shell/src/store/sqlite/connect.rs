//! How this program opens a SQLite database, and how it migrates one.

use super::errors::{self, is_passing};
use super::file::DatabaseFile;
use super::sql;
use crate::store::OpenError;
use crate::store::pool::{ACQUIRE_TIMEOUT, Connect};
use crate::store::schema::{self, Applied, MigrateError};
use futures::future::BoxFuture;
use reqwest::Url;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a statement waits for a transaction of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How many rows of a result are buffered before the statement waits for its reader. The result of
/// a claim has no more rows than this.
const ROWS: usize = 1024;

/// A checkpoint that has emptied the log truncates it to this size.
const JOURNAL_SIZE_LIMIT_BYTES: &str = "67108864";

/// How long opening is retried while another process holds the file. The switch to the write-ahead
/// log needs exclusive access, and does not wait for it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The options of each connection of the store. They do not create a missing database: only `hold`
/// and `migrate` do.
///
/// # Errors
///
/// [`OpenError`] if the URL cannot be parsed or names no file.
pub fn options(url: &str) -> Result<SqliteConnectOptions, OpenError> {
    let refused =
        |why: &str| Err(OpenError(format!("{why}: write for example `sqlite:surehook.db`")));
    let rest = url.strip_prefix("sqlite:").unwrap_or(url);
    let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    if path.trim_start_matches('/').is_empty() {
        return refused("the SQLite database has no path");
    }
    let options = match SqliteConnectOptions::from_str(url) {
        Ok(options) => options,
        Err(error) => return refused(&format!("not a SQLite database ({error})")),
    };
    // The path as SQLite reads it, not as it is written: all of it may be percent-encoded.
    let file = options.get_filename().to_string_lossy();
    let parameters = Url::parse(&format!("sqlite:?{}", parameters.replace('#', "%23")));
    let forgets = |(name, value): (Cow<'_, str>, Cow<'_, str>)| {
        matches!((&*name, &*value), ("mode", "memory") | ("vfs", "memdb"))
    };
    if path.contains(":memory:")
        || file.contains(":memory:")
        || parameters.is_ok_and(|all| all.query_pairs().any(forgets))
    {
        return refused("an in-memory database loses acknowledged events");
    }
    // SQLite treats such a name as a URI with its own parameters, including those above.
    if file.starts_with("file:") {
        return refused("the SQLite database is named by a `file:` URI and not by its path");
    }
    Ok(options
        // The driver would log slow statements whole. The calls are measured and logged elsewhere.
        .disable_statement_logging()
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .row_buffer_size(ROWS)
        .busy_timeout(BUSY_TIMEOUT)
        // SQLite keeps its statement journal in memory (the pages that one batch changes). By
        // default it is a temporary file, created anew for each batch. Sorting uses memory, too.
        // All of it is bounded.
        .pragma("temp_store", "memory")
        .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT_BYTES))
}

/// Opens the connections of one pool.
pub(super) struct Opener {
    pub(super) options: SqliteConnectOptions,
    pub(super) file: Arc<DatabaseFile>,
}

impl Connect for Opener {
    type Connection = SqliteConnection;

    async fn connect(&self, deadline: Instant) -> Result<(SqliteConnection, u64), String> {
        let opening = self.file.opening()?;
        let opened = timeout_at(deadline, ConnectOptions::connect(&self.options)).await;
        let connection = opened
            .map_err(|_| "opening the file timed out".to_owned())?
            .map_err(|error| errors::message(&error))?;
        opening.done()?;
        Ok((connection, 0))
    }

    async fn ping(connection: &mut SqliteConnection) -> bool {
        connection.ping().await.is_ok()
    }

    async fn close(connection: SqliteConnection) {
        let _ = connection.close().await;
    }

    /// A connection to a file has no session at a server.
    fn end(&self, _: SqliteConnection, _: u64) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// The connections to a replaced file stay open, because that file has the acknowledged events.
    fn generation(&self) -> u64 {
        0
    }
}

/// Migrates the database to this program's schema. See [`crate::store::OpenStore::migrate`].
///
/// All migrations run in one IMMEDIATE transaction. If several processes try at once, one of them
/// migrates, and the others find it done.
pub(super) async fn migrate(
    options: &SqliteConnectOptions,
    file: &DatabaseFile,
) -> Result<(), MigrateError> {
    file.create().map_err(|error| MigrateError::Failed(error.to_string()))?;
    let mut connection = open(options).await?;
    let migrated = migrate_on(&mut connection).await;
    // Closing releases the file's locks and rolls back an uncommitted transaction.
    let _ = connection.close().await;
    migrated
}

/// Opens a connection. Retries errors that may be temporary, for example while another process
/// holds the file.
pub(super) async fn open(options: &SqliteConnectOptions) -> Result<SqliteConnection, MigrateError> {
    let deadline = Instant::now() + OPEN_TIMEOUT;
    loop {
        match ConnectOptions::connect(options).await {
            Ok(connection) => return Ok(connection),
            Err(error) if is_passing(&error) && Instant::now() < deadline => {
                sleep(ACQUIRE_TIMEOUT / 50).await;
            }
            Err(error) => return Err(explain(&error)),
        }
    }
}

async fn migrate_on(connection: &mut SqliteConnection) -> Result<(), MigrateError> {
    let mut transaction =
        connection.begin_with("begin immediate").await.map_err(|error| explain(&error))?;
    let exists =
        sqlx::query_scalar::<_, bool>("select count(*) > 0 from sqlite_schema where name = ?1")
            .bind(schema::TABLE);
    let exists = exists.fetch_one(&mut *transaction).await.map_err(|error| explain(&error))?;
    let applied = if exists {
        sqlx::query_as::<_, Applied>(sql::SCHEMA)
            .fetch_all(&mut *transaction)
            .await
            .map_err(|error| explain(&error))?
    } else {
        Vec::new()
    };
    if applied.is_empty() {
        let tables = sqlx::query_scalar::<_, String>("select name from sqlite_schema");
        let tables = tables.fetch_all(&mut *transaction).await.map_err(|error| explain(&error))?;
        let foreign = |name: &String| schema::TABLES.contains(&name.as_str());
        schema::refuse_foreign_tables(&tables.into_iter().filter(foreign).collect::<Vec<_>>())?;
    }
    let migrator = sql::migrator();
    if schema::compare(&applied, &migrator).needs_migration()? {
        // Inside this transaction, each migration is a savepoint.
        schema::apply_missing(&mut *transaction, &applied, &migrator, explain).await?;
    }
    transaction.commit().await.map_err(|error| explain(&error))
}

fn explain(error: &sqlx::Error) -> MigrateError {
    let why = errors::message(error);
    if is_passing(error) { MigrateError::Unreachable(why) } else { MigrateError::Failed(why) }
}
