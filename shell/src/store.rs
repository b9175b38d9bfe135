//! The stores behind the ports of [`Store`]: PostgreSQL and SQLite, and how a store is opened from a
//! database URL.
//!
//! Both implement the transitions of [`surehook_core::event::DeliveryState`] and commit each of them
//! atomically. PostgreSQL makes them in SQL, one statement for a batch, for several processes at
//! once. SQLite has one writer, which reads the rows, calls `core`, and writes the result.
//!
//! Opening a store does not connect, so a program can start before its database.

mod pool;
pub mod postgres;
mod rows;
mod schema;
pub mod sqlite;

pub use postgres::PostgresStore;
pub use schema::MigrateError;
pub use sqlite::{CopyError, FileError, SqliteStore};

use crate::ports::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store of either kind.
#[derive(Clone)]
pub enum OpenStore {
    Postgres(Arc<PostgresStore>),
    Sqlite(Arc<SqliteStore>),
}

/// Opens the store that a URL names: `postgres://…`, `postgresql://…` or `sqlite:PATH`. Does not
/// connect.
///
/// This function and the store must be used inside a tokio runtime.
///
/// # Errors
///
/// [`OpenError`] if the URL does not name a supported database. It never contains the URL, which
/// may have a password.
pub fn open(url: &str) -> Result<OpenStore, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => {
            Ok(OpenStore::Postgres(Arc::new(PostgresStore::new(url)?)))
        }
        Some("sqlite") => Ok(OpenStore::Sqlite(Arc::new(SqliteStore::new(url)?))),
        _ => Err(OpenError("it must start with `postgres://` or `sqlite:`".into())),
    }
}

impl OpenStore {
    /// The store as a trait object, as the loops use it.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Postgres(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Sqlite(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// Migrates the database to the schema that this program needs. Several processes may do so at
    /// once.
    ///
    /// A missing SQLite database is created. A PostgreSQL database must exist.
    ///
    /// # Errors
    ///
    /// [`MigrateError`]. After [`MigrateError::Unreachable`] a new try may succeed.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        match self {
            Self::Postgres(store) => store.migrate().await,
            Self::Sqlite(store) => store.migrate().await,
        }
    }

    /// Makes this process the only one that serves a SQLite database, until it ends. Also checks
    /// that the process can use the file. Call this before anything else. With `create`, a missing
    /// SQLite file is created, empty. Does nothing for PostgreSQL, which serves many processes.
    ///
    /// # Errors
    ///
    /// [`FileError`]. Waiting does not help.
    pub fn hold(&self, create: bool) -> Result<(), FileError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(store) => store.hold(create),
        }
    }

    /// Completes when SQLite has found its database to be damaged. Returns what is known about the
    /// damage. The process should then end: otherwise it would answer every producer with a
    /// temporary error, and retries could not succeed. Never completes for PostgreSQL, which
    /// manages its own files.
    pub async fn damage(&self) -> String {
        match self {
            Self::Postgres(_) => std::future::pending().await,
            Self::Sqlite(store) => store.damage().await,
        }
    }

    /// Completes when a call has found that a table of a PostgreSQL database is missing: its schema
    /// was dropped, or the database was created anew. Never completes for SQLite, whose file is
    /// checked in another way.
    pub async fn lost_schema(&self) {
        match self {
            Self::Postgres(store) => store.lost_schema().await,
            Self::Sqlite(_) => std::future::pending().await,
        }
    }

    /// Closes a SQLite database so that it is one file, without a write-ahead log beside it. The
    /// store must not be used afterwards.
    pub async fn close(&self) {
        match self {
            Self::Postgres(_) => {}
            Self::Sqlite(store) => store.close().await,
        }
    }

    /// Writes a copy of a SQLite database to a new file, even while a process serves the database.
    /// The copy is of one point in time, and is checked.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn backup(&self, to: &Path) -> Result<(), BackupError> {
        match self {
            Self::Postgres(_) => Err(BackupError::Postgres),
            Self::Sqlite(store) => Ok(store.backup(to).await?),
        }
    }

    /// Replaces a SQLite database with a copy of a backup. Returns the new path of the old
    /// database, if there was one. No process may serve the database during this.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn restore(&self, from: &Path) -> Result<Option<PathBuf>, BackupError> {
        match self {
            Self::Postgres(_) => Err(BackupError::Postgres),
            Self::Sqlite(store) => Ok(store.restore(from).await?),
        }
    }
}

/// Why a database was not backed up or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// PostgreSQL has its own tools.
    #[error(
        "surehook backs up and restores SQLite databases only; use pg_dump and pg_restore, or pg_basebackup, for PostgreSQL"
    )]
    Postgres,
    /// A SQLite database could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// A database URL cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the database URL cannot be used: {0}")]
pub struct OpenError(pub(crate) String);

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        match open(url) {
            Ok(_) => panic!("{url} was opened"),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn the_scheme_of_a_url_selects_the_store() {
        assert!(matches!(
            open("postgres://user:secret@localhost/surehook"),
            Ok(OpenStore::Postgres(_))
        ));
        assert!(matches!(
            open("postgresql:///surehook?host=/run/postgresql&sslmode=disable"),
            Ok(OpenStore::Postgres(_))
        ));
        assert!(matches!(open("sqlite:surehook.db"), Ok(OpenStore::Sqlite(_))));
        assert!(matches!(open("sqlite:///var/lib/surehook.db"), Ok(OpenStore::Sqlite(_))));
    }

    #[test]
    fn an_unsupported_database_is_refused() {
        for url in [
            "mysql://localhost/surehook",
            "surehook.db",
            "",
            "/var/lib/surehook.db",
            "http://localhost",
        ] {
            assert!(refusal(url).contains("must start with `postgres://` or `sqlite:`"), "{url}");
        }
    }

    #[test]
    fn a_sqlite_url_without_a_durable_file_is_refused() {
        let in_memory = "an in-memory database loses";
        for (url, told) in [
            ("sqlite::memory:", in_memory),
            ("sqlite://:memory:", in_memory),
            ("sqlite:%3Amemory%3A", in_memory),
            ("sqlite:surehook.db?mode=%6Demory", in_memory),
            ("sqlite:surehook.db?vfs=memdb", in_memory),
            ("sqlite:file:surehook.db%3Fmode=memory", "by a `file:` URI"),
            ("sqlite:", "has no path"),
            ("sqlite://", "has no path"),
        ] {
            assert!(refusal(url).contains(told), "{url}: {}", refusal(url));
        }
    }

    #[test]
    fn an_unknown_parameter_is_named_without_its_value() {
        let message = refusal("postgres://localhost/surehook?sslmod=require");
        assert!(message.contains("`sslmod`"), "{message}");
        assert!(!refusal("postgres://localhost/surehook?passwort=hunter2").contains("hunter2"));
    }

    #[test]
    fn an_error_about_a_url_does_not_contain_its_password() {
        for url in [
            "postgres://user:hunter2@host:port/surehook",
            "postgres://user:hunter2@[::1/surehook",
            "postgres://user:hunter2@host:99999/surehook",
            "postgres://user:hunter2@host/db?sslmode=nonsense",
            "postgres://user:hunter2@host/db?port=hunter2",
            "mysql://user:hunter2@host/db",
            "postgres://user:12/hunter2@host/db",
            "postgres://user:1?hunter2=1@host/db",
            "postgres://user:1#hunter2@host/db",
            "postgres://user:hunter2@hunter2@host/?db",
            "hunter2",
        ] {
            assert!(!refusal(url).contains("hunter2"), "{url}: {}", refusal(url));
        }
    }
}
