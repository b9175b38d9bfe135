//! The stores behind [`Store`]: PostgreSQL and SQLite, and how one is opened from a database's URL.
//!
//! Both keep the transitions of [`surehook_core::event::Delivery`] and commit each of them whole. PostgreSQL does
//! them in SQL, a batch in one statement, for several processes at once. SQLite has one writer, which reads the rows,
//! asks the core, and writes what it answers.
//!
//! Opening connects to nothing: a program may start before its database.

mod lane;
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
    /// PostgreSQL.
    Postgres(Arc<PostgresStore>),
    /// SQLite.
    Sqlite(Arc<SqliteStore>),
}

/// Opens the store that a URL names: `postgres://…`, `postgresql://…` or `sqlite:PATH`. Nothing is connected to.
///
/// Must be called, and the store be used, inside a tokio runtime.
///
/// # Errors
///
/// [`OpenError`] if the URL names no database that could be opened. It never holds the URL, which may have a password.
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
    /// The store as the loops use it.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Postgres(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Sqlite(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// Brings the database to the schema that this program needs. Several processes may do so at once.
    ///
    /// A SQLite database that is not there is made; a PostgreSQL database has to be there.
    ///
    /// # Errors
    ///
    /// [`MigrateError`]. After [`MigrateError::Unreachable`] it is worth trying again.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        match self {
            Self::Postgres(store) => store.migrate().await,
            Self::Sqlite(store) => store.migrate().await,
        }
    }

    /// Makes this process the one that serves the database, for as long as it lives. PostgreSQL is for many processes, and
    /// this does nothing. Of a SQLite database it also finds what would keep the process from using the file. To be
    /// called before anything else; with `create`, a SQLite file that is missing is created, empty.
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

    /// Completes once the database was found to be damaged, with what is known of that. A process that goes on would
    /// answer every producer to come back later, for nothing. Never completes for PostgreSQL, which sees to its files.
    pub async fn damage(&self) -> String {
        match self {
            Self::Postgres(_) => std::future::pending().await,
            Self::Sqlite(store) => store.damage().await,
        }
    }

    /// Leaves a SQLite database as one file, with no write-ahead log beside it. Nothing may use the store after this.
    pub async fn close(&self) {
        match self {
            Self::Postgres(_) => {}
            Self::Sqlite(store) => store.close().await,
        }
    }

    /// Writes a copy of a SQLite database to a new file, whether a process serves the database or not. The copy is of one
    /// moment, and is checked.
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

    /// Puts a copy of a SQLite database in the database's place, and answers where the database is now that was there
    /// before, if there was one. No process may serve the database meanwhile.
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
    /// PostgreSQL has tools of its own.
    #[error(
        "surehook backs up and restores SQLite databases only; use pg_dump and pg_restore, or pg_basebackup, for PostgreSQL"
    )]
    Postgres,
    /// The files of a SQLite database.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// A database's URL cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the database's URL cannot be used: {0}")]
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
    async fn a_url_says_which_store_is_meant() {
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
    fn another_kind_of_database_is_refused() {
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
    fn a_database_that_forgets_is_refused() {
        let in_memory = "a database in memory forgets";
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
    fn an_unknown_parameter_is_refused_by_its_name_alone() {
        let message = refusal("postgres://localhost/surehook?sslmod=require");
        assert!(message.contains("`sslmod`"), "{message}");
        assert!(!refusal("postgres://localhost/surehook?passwort=hunter2").contains("hunter2"));
    }

    #[test]
    fn a_refused_url_does_not_tell_its_password() {
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
