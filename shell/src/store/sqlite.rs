//! The store on SQLite: one file, for one process.
//!
//! There is one writer. A call that writes takes it, and works in an IMMEDIATE transaction in a
//! separate task: if the call is dropped, the transaction still ends. Calls that read have their
//! own connections. With the write-ahead log they neither wait for the writer nor block it. `serve`
//! refuses a file that another process serves.
//!
//! The time is this process's, read after the writer was taken, on two scales: see `Now`.

mod connect;
mod copy;
mod errors;
mod file;
pub mod sql;
mod transaction;
mod transitions;

pub use connect::options;
pub use copy::CopyError;
pub use file::FileError;

use crate::ports::{
    Connections, Discarded, Erased, EventStore, FoundBody, MaintenanceStore, NewEvent,
    OperatorStore, Pruned, Redriven, Retention, StoreCall, StoreError,
};
use crate::search::{
    ChangedPage, EventFilter, EventPage, EventRecord, FailureSummary, PageSize, RequestRecord,
    SourceRecord, Span, SummaryFilter, SummarySize, dead_letter_looks,
};
use crate::store::OpenError;
use crate::store::pool::{ACQUIRE_TIMEOUT, Pool, detached};
use crate::store::rows::{self, BodyRow, FoundRow, GroupRow, RequestRow, SourceRow};
use crate::store::schema::{self, Applied, MigrateError};
use connect::Opener;
use file::{DatabaseFile, with_suffix};
use futures::FutureExt;
use futures::future::BoxFuture;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection};
use sqlx::types::Uuid;
use sqlx::{FromRow, Row, Sqlite};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use surehook_core::admission::Stored;
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, RedrivenBy, Status};
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use transaction::Broken;

const READERS: usize = 4;

/// How long a shutdown waits for the write-ahead log to be emptied.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A larger log was not emptied for a long time. After each checkpoint that no reader prevents, the
/// log is written again from its start. Until the next one it grows by 4 MiB and one transaction.
const OVERGROWN_LOG_BYTES: u64 = 256 << 20;

/// Its clones are the same store.
#[derive(Clone)]
pub struct SqliteStore {
    options: SqliteConnectOptions,
    file: Arc<DatabaseFile>,
    writer: Arc<Pool<Opener>>,
    readers: Arc<Pool<Opener>>,
    /// Lets one operator request at a time wait for the writer. The writer's queue is fair, and
    /// operators must not fill it.
    operator: Arc<Semaphore>,
}

impl SqliteStore {
    /// A store on the file that the URL names. The file is opened at first use.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the URL cannot be parsed or names no file.
    pub fn new(url: &str) -> Result<Self, OpenError> {
        let options = options(url)?;
        let file = Arc::new(DatabaseFile::new(options.get_filename()));
        let opener = |options| Opener { options, file: Arc::clone(&file) };
        let readers = Pool::new(opener(options.clone().pragma("query_only", "on")), READERS);
        Ok(Self {
            writer: Pool::new(opener(options.clone()), 1),
            readers,
            operator: Arc::new(Semaphore::new(1)),
            options,
            file,
        })
    }

    /// Makes this process the only one that serves the database. See
    /// [`crate::store::OpenStore::hold`].
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn hold(&self, create: bool) -> Result<(), FileError> {
        self.file.hold(create)
    }

    /// Completes when SQLite has found the file to be damaged. Returns SQLite's message.
    pub async fn damage(&self) -> String {
        self.file.damage().await
    }

    /// Empties the write-ahead log into the database file and closes the connections, so that the
    /// file alone is the database. If this takes longer than `CLOSE_TIMEOUT`, the rest is left to
    /// the next start.
    pub async fn close(&self) {
        let closing = async {
            self.readers.close().await;
            // Also if the file was moved: SQLite would apply the rest of the log to another file
            // that is at the path by then.
            let emptied = match self.writer.take().await {
                Ok(mut writer) => {
                    let emptied = empty_log(&mut writer).await;
                    writer.keep();
                    emptied
                }
                Err(error) => Err(errors::not_taken(&error).to_string()),
            };
            if let Err(error) = emptied {
                tracing::warn!(%error, "write-ahead log not emptied at shutdown; copy the `-wal` file together with the database file");
            }
            // Closing the last connection deletes the log at the path, which may belong to another
            // database.
            if self.file.in_place().is_ok() {
                self.writer.close().await;
            }
        };
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!(
                "closing the database timed out; copy the `-wal` file together with the database file"
            );
        }
    }

    /// Migrates the database to this program's schema. See [`crate::store::OpenStore::migrate`].
    ///
    /// # Errors
    ///
    /// [`MigrateError`].
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        connect::migrate(&self.options, &self.file).await
    }

    /// Writes a copy of the database to a new file. See [`crate::store::OpenStore::backup`].
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub async fn backup(&self, to: &Path) -> Result<(), CopyError> {
        copy::backup(&self.options, to).await
    }

    /// Replaces the database with a copy of a backup. See [`crate::store::OpenStore::restore`].
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub async fn restore(&self, from: &Path) -> Result<Option<PathBuf>, CopyError> {
        copy::restore(&self.options, &self.file, from).await
    }

    /// Runs `work` on a reader, which does not wait for the writer.
    async fn read<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, Failure>>
            + Send
            + 'static,
    {
        let read = async {
            let mut reader =
                self.readers.take().await.map_err(|error| errors::not_taken(&error))?;
            let read = work(&mut reader).await.map_err(Failure::before_commit)?;
            reader.keep();
            Ok(read)
        };
        self.watched(read.await)
    }

    /// Runs `work` in a transaction, which ends even if this future is dropped.
    async fn write<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection, Now) -> BoxFuture<'c, Result<T, Failure>>
            + Send
            + 'static,
    {
        self.with_writer(move |writer| transaction::whole(writer, work).boxed()).await
    }

    /// Like [`Self::write`], for an operator.
    async fn operate<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection, Now) -> BoxFuture<'c, Result<T, Failure>>
            + Send
            + 'static,
    {
        let turn = timeout(ACQUIRE_TIMEOUT, self.operator.acquire()).await;
        let _turn = turn.map_err(|_| {
            StoreError::Unavailable("the writer is busy with other operators' requests".into())
        })?;
        self.write(work).await
    }

    /// Runs `work` on the writer to its end, even if this future is dropped. The connection is
    /// reused only if all transactions of `work` have ended, by commit or rollback.
    async fn with_writer<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, Broken>>
            + Send
            + 'static,
    {
        let mut writer = match self.writer.take().await {
            Ok(writer) => writer,
            Err(error) => return self.watched(Err(errors::not_taken(&error))),
        };
        let worked = detached(async move {
            let result = work(&mut writer).await;
            if result.as_ref().map_or_else(|broken| broken.has_ended, |_| true) {
                writer.keep();
            }
            result.map_err(|broken| broken.error)
        });
        self.watched(worked.await)
    }

    /// Reports damage of the file if the call failed because of it.
    fn watched<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| {
            if errors::is_damage(error) {
                self.file.damaged(&error.to_string());
            }
        })
    }
}

/// Moves the write-ahead log into the database file, and truncates it.
///
/// # Errors
///
/// Why the log still has content: SQLite's message, or another connection.
async fn empty_log(writer: &mut SqliteConnection) -> Result<(), String> {
    let checkpoint: Result<(bool, i64, i64), _> =
        sqlx::query_as("pragma wal_checkpoint(truncate)").fetch_one(writer).await;
    match checkpoint {
        Ok((false, _, _)) => Ok(()),
        Ok((true, _, _)) => Err("another connection is still using it".to_owned()),
        Err(error) => Err(errors::message(&error)),
    }
}

/// A statement that takes the ten parameters of `list.sql`.
fn searched<'q>(
    statement: &'static str,
    path: crate::search::Path,
    filter: &'q EventFilter,
    span: Span,
    size: PageSize,
) -> Query<'q, Sqlite, SqliteArguments> {
    sqlx::query(statement)
        .bind(rows::path(path))
        .bind(filter.source.as_ref().map(SourceName::as_str))
        .bind(filter.key.as_ref().map(|key| key.as_str()))
        .bind(filter.status.map(Status::as_str))
        .bind(filter.reason.map(|reason| reason.as_str()))
        .bind(filter.status_code.map(i64::from))
        .bind(span.from.as_uuid())
        .bind(span.until.as_uuid())
        .bind(i64::from(size.events))
        .bind(i64::from(size.looks))
}

/// Why the work in a transaction was abandoned.
enum Failure {
    Statement(sqlx::Error),
    Store(StoreError),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    fn before_commit(self) -> StoreError {
        match self {
            Self::Statement(error) => errors::statement(&error),
            Self::Store(error) => error,
        }
    }
}

/// Clocks that differ by less than this, in microseconds, count as equal.
const ONE_TIME_US: u64 = 1_000;

/// The current time, in microseconds since 1970.
///
/// A wall clock can be set. A retry or the end of a lease must not depend on it. If the clock is
/// set back, they would come hours late. If it is set forward, all leases would end at once, and
/// events would be sent twice. So due times have their own scale: it starts at the wall clock's
/// time when the process starts, and then follows the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// By the wall clock of this machine, which is the database's clock. For times that are
    /// recorded or shown, and for retention.
    wall: i64,
    /// On the scale of due times.
    due: i64,
}

impl Now {
    fn read() -> Self {
        static START: OnceLock<(i64, Instant)> = OnceLock::new();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        let (start, began) = START.get_or_init(|| (wall, Instant::now()));
        let passed = i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX);
        let due = start.saturating_add(passed);
        // Readings of two clocks differ by some microseconds. Unless the wall clock was set, both
        // values are equal.
        Self { wall: if wall.abs_diff(due) < ONE_TIME_US { due } else { wall }, due }
    }

    /// How far the wall clock is ahead of the scale of due times, in microseconds.
    fn ahead(self) -> i64 {
        self.wall.saturating_sub(self.due)
    }
}

impl EventStore for SqliteStore {
    /// There is one writer, so a second batch would only wait.
    fn accepts_at_once(&self) -> usize {
        1
    }

    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        async move {
            self.file.in_place().map_err(StoreError::Unavailable)?;
            let stored =
                self.with_writer(move |writer| transitions::accept(writer, batch).boxed()).await?;
            // The batch is committed, but possibly to a file that is lost when this process ends.
            self.file.in_place().map_err(StoreError::Unknown)?;
            Ok(stored)
        }
        .boxed()
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        self.with_writer(move |writer| transitions::claim(writer, demands).boxed()).boxed()
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        self.with_writer(move |writer| transitions::settle(writer, batch).boxed()).boxed()
    }
}

impl OperatorStore for SqliteStore {
    fn find(&self, event: EventId) -> StoreCall<'_, Option<EventRecord>> {
        self.read(move |connection| {
            async move {
                let query = sqlx::query_as::<_, FoundRow>(sql::FIND).bind(event.as_uuid());
                let found = query
                    .fetch_all(connection)
                    .await?
                    .into_iter()
                    .map(|row| row.due_later(Now::read().ahead()))
                    .collect();
                Ok(rows::event_record(event, found)?)
            }
            .boxed()
        })
        .boxed()
    }

    fn request(&self, event: EventId) -> StoreCall<'_, Option<RequestRecord>> {
        self.read(move |connection| {
            async move {
                let query = sqlx::query_as::<_, RequestRow>(sql::REQUEST).bind(event.as_uuid());
                let row = query.fetch_optional(connection).await?;
                Ok(row.map(RequestRow::record).transpose()?)
            }
            .boxed()
        })
        .boxed()
    }

    fn body(&self, event: EventId) -> StoreCall<'_, FoundBody> {
        self.read(move |connection| {
            async move {
                let query = sqlx::query_as::<_, BodyRow>(sql::BODY).bind(event.as_uuid());
                Ok(rows::found_body(query.fetch_optional(connection).await?))
            }
            .boxed()
        })
        .boxed()
    }

    fn redrive(&self, event: EventId, by: RedrivenBy) -> StoreCall<'_, Redriven> {
        self.operate(move |connection, now| {
            transitions::redrive(connection, now, event, by).boxed()
        })
        .boxed()
    }

    fn redrive_delivered(&self, event: EventId) -> StoreCall<'_, Redriven> {
        self.operate(move |connection, now| {
            transitions::redrive_delivered(connection, now, event).boxed()
        })
        .boxed()
    }

    fn list(&self, filter: EventFilter, span: Span, size: PageSize) -> StoreCall<'_, EventPage> {
        self.read(move |connection| {
            async move {
                let query = searched(sql::LIST, filter.path(), &filter, span, size);
                let rows = query.fetch_all(connection).await?;
                let first = rows.first().ok_or_else(|| rows::unreadable("result"))?;
                let looked = (first.try_get("looked")?, first.try_get("last")?);
                let (mut found, ahead) = (Vec::with_capacity(rows.len()), Now::read().ahead());
                for row in &rows {
                    if let Some(id) = row.try_get("id")? {
                        found.push((id, FoundRow::from_row(row)?.due_later(ahead)));
                    }
                }
                Ok(rows::event_page(size, found, looked)?)
            }
            .boxed()
        })
        .boxed()
    }

    fn summary(&self, filter: SummaryFilter, size: SummarySize) -> StoreCall<'_, FailureSummary> {
        self.read(move |connection| {
            async move {
                let names: Vec<String> = match &filter.source {
                    Some(source) => vec![source.to_string()],
                    None => {
                        let named = sqlx::query_scalar(sql::SOURCES_NAMED).bind("[]");
                        named.fetch_all(&mut *connection).await?
                    }
                };
                let (mut groups, mut partial) = (Vec::new(), Vec::new());
                for name in names {
                    let query = sqlx::query(sql::SUMMARY)
                        .bind(&name)
                        .bind(rows::since(&filter))
                        .bind(i64::from(size.looks))
                        .bind(i64::from(size.groups) + 1);
                    let rows = query.fetch_all(&mut *connection).await?;
                    let first = rows.first().ok_or_else(|| rows::unreadable("result"))?;
                    if first.try_get("is_partial")? {
                        partial.push(name);
                    }
                    for row in &rows {
                        if row.try_get::<Option<Uuid>, _>("example")?.is_some() {
                            groups.push(GroupRow::from_row(row)?.group()?);
                        }
                    }
                }
                Ok(FailureSummary::new(groups, partial, size.groups))
            }
            .boxed()
        })
        .boxed()
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        self.operate(move |connection, now| {
            transitions::redrive_all(connection, now, filter.of_dead_letters(), span, size, dry_run)
                .boxed()
        })
        .boxed()
    }

    fn discard(&self, event: EventId, scope: DiscardScope) -> StoreCall<'_, Discarded> {
        self.operate(move |connection, now| {
            transitions::discard(connection, now, event, scope).boxed()
        })
        .boxed()
    }

    fn discard_all(
        &self,
        filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        self.operate(move |connection, now| {
            let (path, filter) = filter.for_discard(scope);
            transitions::discard_all(connection, now, path, filter, span, size, dry_run).boxed()
        })
        .boxed()
    }

    fn sources(&self, names: Vec<SourceName>, count_to: u32) -> StoreCall<'_, Vec<SourceRecord>> {
        self.read(move |connection| {
            async move {
                let names =
                    transitions::array(&names.iter().map(SourceName::as_str).collect::<Vec<_>>())?;
                let mut names: Vec<String> = sqlx::query_scalar(sql::SOURCES_NAMED)
                    .bind(names)
                    .fetch_all(&mut *connection)
                    .await?;
                names.sort();
                let now = Now::read().due;
                let mut records = Vec::with_capacity(names.len());
                for name in names {
                    let work = sqlx::query_as::<_, SourceRow>(sql::SOURCE_WORK)
                        .bind(&name)
                        .bind(now)
                        .bind(i64::from(count_to))
                        .bind(i64::from(dead_letter_looks(count_to)));
                    records.push(work.fetch_one(&mut *connection).await?.record(name)?);
                }
                Ok(records)
            }
            .boxed()
        })
        .boxed()
    }

    fn stored_sources(&self) -> StoreCall<'_, Vec<String>> {
        self.read(|connection| {
            async move {
                Ok(sqlx::query_scalar(sql::STORED_SOURCES).fetch_all(&mut *connection).await?)
            }
            .boxed()
        })
        .boxed()
    }

    fn pause(&self, source: SourceName, paused: bool) -> StoreCall<'_, bool> {
        self.operate(move |connection, now| {
            async move {
                let query = if paused {
                    sqlx::query(sql::PAUSE).bind(source.as_str()).bind(now.wall)
                } else {
                    sqlx::query(sql::RESUME).bind(source.as_str())
                };
                let is_changed = query.execute(&mut *connection).await?.rows_affected() > 0;
                if !is_changed {
                    // The answer comes from existing rows, which may not be flushed to disk yet.
                    sqlx::query(sql::FLUSH).execute(connection).await?;
                }
                Ok(is_changed)
            }
            .boxed()
        })
        .boxed()
    }
}

impl MaintenanceStore for SqliteStore {
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        self.with_writer(move |writer| transitions::prune(writer, retention, after, limit).boxed())
            .boxed()
    }

    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased> {
        self.write(move |connection, now| {
            transitions::erase(connection, now, kept, after, limit).boxed()
        })
        .boxed()
    }

    fn cap_due_times(&self, bounds: Vec<Bound>, limit: u32) -> StoreCall<'_, u64> {
        self.write(move |connection, now| {
            transitions::cap_due_times(connection, now, bounds, limit).boxed()
        })
        .boxed()
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        let store = self.clone();
        detached(async move {
            store.file.in_place().map_err(StoreError::Unavailable)?;
            // If an IMMEDIATE transaction can begin, the database is writable.
            let pinged = store.write(|connection, _| {
                async move {
                    let applied =
                        sqlx::query_as::<_, Applied>(sql::SCHEMA).fetch_all(connection).await?;
                    Ok(schema::compare(&applied, &sql::migrator()).ready()?)
                }
                .boxed()
            });
            pinged.await
        })
        .boxed()
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        let store = self.clone();
        let probe = async move {
            store.with_writer(move |writer| transitions::probe(writer, event).boxed()).await
        };
        detached(probe).boxed()
    }

    fn overgrown_log(&self) -> Option<u64> {
        // SQLite keeps it beside the file that a link names.
        let file = self.file.path().canonicalize().ok()?;
        let log = with_suffix(&file, "-wal").metadata().ok()?.len();
        (log > OVERGROWN_LOG_BYTES).then_some(log)
    }

    fn database(&self) -> Option<&'static str> {
        Some("sqlite")
    }

    fn connections(&self) -> Vec<Connections> {
        vec![self.writer.in_use("writer"), self.readers.in_use("reader")]
    }
}
