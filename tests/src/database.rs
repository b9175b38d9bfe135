//! A database of its own for each test: a SQLite file in a temporary folder, or a fresh database on the private
//! PostgreSQL server that the tests of one process share.

use crate::postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

/// A database that no other test uses.
#[derive(Debug)]
pub enum Database {
    /// A file that is not there yet, in a folder that goes when this is dropped.
    Sqlite(TempDir),
    /// The URL of an empty database, which goes with its server.
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

    /// A new one of the same kind.
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

    /// As the configuration's `database` has it, for a process of this name: PostgreSQL knows it by the role that it
    /// logs in as.
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
                let mut connection = PgConnection::connect(url).await.expect("the test's server is reachable");
                sqlx::raw_sql(AssertSqlSafe(role)).execute(&mut connection).await.expect("a role can be made");
                url.replacen("//postgres@", &format!("//{process}@"), 1)
            }
        }
    }

    /// As the configuration's `database` has it.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", folder.path().join("surehook.db").display()),
            Self::Postgres(url) => url.clone(),
        }
    }
}
