//! A separate database for each test: a SQLite file in a temporary folder, or a fresh database on
//! the private PostgreSQL server that the tests of one process share.

use crate::postgres;
use sqlx::postgres::PgRow;
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, FromRow, PgConnection, SqliteConnection};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// A database that no other test uses.
#[derive(Debug)]
pub enum Database {
    /// A file that does not exist yet, in a folder that is deleted when this is dropped.
    Sqlite(TempDir),
    /// The URL of a database, which is deleted with its server. It can name several servers, as in
    /// the program's configuration.
    Postgres(String),
}

impl Database {
    /// A new SQLite database.
    ///
    /// # Panics
    ///
    /// If there is no room for a temporary folder.
    #[must_use]
    pub fn sqlite() -> Self {
        Self::Sqlite(TempDir::new().expect("a temporary folder"))
    }

    /// A new PostgreSQL database.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub async fn postgres() -> Self {
        Self::Postgres(postgres::shared().create_database().await)
    }

    /// A new database of the same kind.
    ///
    /// # Panics
    ///
    /// As [`Self::sqlite`] or [`Self::postgres`].
    pub async fn another(&self) -> Self {
        match self {
            Self::Sqlite(_) => Self::sqlite(),
            Self::Postgres(_) => Self::postgres().await,
        }
    }

    /// The configuration's `database` for a process of this name. PostgreSQL identifies the process
    /// by the role that it logs in as.
    ///
    /// # Panics
    ///
    /// If the role cannot be made.
    pub async fn url_of(&self, process: &str) -> String {
        match self {
            Self::Sqlite(_) => self.url(),
            Self::Postgres(url) => {
                let role = format!(
                    "do $$ begin create role \"{process}\" superuser login;
                     exception when duplicate_object or unique_violation then null; end $$"
                );
                self.execute(&role).await;
                url.replacen("//postgres@", &format!("//{process}@"), 1)
            }
        }
    }

    /// Executes statements directly, without the program.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub async fn execute(&self, statements: &str) {
        let script = sqlx::raw_sql(AssertSqlSafe(statements));
        let done = match self {
            Self::Postgres(url) => script.execute(&mut connect(url).await).await.map(drop),
            Self::Sqlite(_) => script.execute(&mut self.open_file().await).await.map(drop),
        };
        done.unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// Every row of a query's result, read directly, without the program.
    ///
    /// # Panics
    ///
    /// If it fails, or a row is of another form.
    pub async fn fetch<T>(&self, query: &'static str) -> Vec<T>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        let rows = match self {
            Self::Postgres(url) => sqlx::query_as(query).fetch_all(&mut connect(url).await).await,
            Self::Sqlite(_) => sqlx::query_as(query).fetch_all(&mut self.open_file().await).await,
        };
        rows.unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    async fn open_file(&self) -> SqliteConnection {
        let options: SqliteConnectOptions = self.url().parse().expect("the test's own URL");
        options
            .create_if_missing(true)
            .busy_timeout(Duration::from_secs(10))
            .connect()
            .await
            .expect("the file can be opened")
    }

    /// The value of the configuration's `database`.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => {
                format!("sqlite:{}", folder.path().join("surehook.db").display())
            }
            Self::Postgres(url) => url.clone(),
        }
    }
}

/// A server that has not answered within this time is treated as silent.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Connects to the server that a URL names. If it names several, connects to the primary; if there
/// are several primaries, to the one that was promoted last.
///
/// # Panics
///
/// If there is no primary.
pub async fn connect(url: &str) -> PgConnection {
    let (before, rest) = url.split_once('@').expect("a test's URL has a user");
    let (hosts, rest) = rest.split_once('/').expect("a test's URL has a database");
    let database = rest.split_once('?').map_or(rest, |(database, _)| database);
    let mut primaries = Vec::new();
    let mut errors = Vec::new();
    for host in hosts.split(',') {
        let primary = async {
            let mut connection =
                PgConnection::connect(&format!("{before}@{host}/{database}")).await?;
            let timeline: Option<String> = sqlx::query_scalar(
                "select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) end",
            )
            .fetch_one(&mut connection)
            .await?;
            Ok::<_, sqlx::Error>(timeline.map(|timeline| (timeline, connection)))
        };
        match timeout(ANSWERS_WITHIN, primary).await {
            Ok(Ok(primary)) => primaries.extend(primary),
            Ok(Err(error)) => errors.push(format!("{host}: {error}")),
            Err(_) => errors.push(format!("{host}: no answer")),
        }
    }
    let newest = primaries.into_iter().max_by(|(one, _), (other, _)| one.cmp(other));
    newest.unwrap_or_else(|| panic!("no primary of the test is reachable: {errors:?}")).1
}
