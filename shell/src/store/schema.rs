//! Whether a database has the schema that this program needs, and why bringing it there failed. The same for both
//! kinds of database; how the migrations are run is not.

use crate::ports::StoreError;
use sqlx::migrate::{Migrate, Migrator};

/// The name of the table in which sqlx keeps what was applied.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// Why a database could not be brought to this program's schema. Nothing is half done: each migration is committed
/// whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// The database cannot be reached now, or another process holds it. Trying again may help.
    #[error("the database cannot be migrated now: {0}")]
    Unreachable(String),
    /// Other sessions hold locks that a migration needs. It gave way to them, and can be tried again.
    #[error("the database cannot be migrated now, and the migration gave way: {0}")]
    GaveWay(String),
    /// The database was migrated by a newer program.
    #[error(
        "the database has schema {found}, which is newer than this program's schema {known}: run a newer surehook"
    )]
    Newer {
        /// The newest migration that was applied to the database.
        found: i64,
        /// The newest migration that this program knows.
        known: i64,
    },
    /// The database's schema is not the work of this program, or a migration failed.
    #[error("the database cannot be migrated: {0}")]
    Failed(String),
}

/// One migration that was applied to a database.
#[derive(sqlx::FromRow)]
pub(super) struct Applied {
    pub(super) version: i64,
    pub(super) checksum: Vec<u8>,
    pub(super) success: bool,
}

/// How a database's schema compares with the one that this program needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Schema {
    /// They are the same.
    Current,
    /// Migrations are missing.
    Older,
    /// A newer program has migrated it.
    Newer { found: i64, known: i64 },
    /// It is not the work of this program.
    Foreign(String),
}

/// Compares what was applied with what this program knows.
pub(super) fn compare(applied: &[Applied], migrator: &Migrator) -> Schema {
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    if let Some(found) =
        applied.iter().map(|migration| migration.version).max().filter(|&found| found > known)
    {
        return Schema::Newer { found, known };
    }
    for done in applied {
        match migrator.iter().find(|migration| migration.version == done.version) {
            None => {
                return Schema::Foreign(format!(
                    "migration {} is not one of surehook's",
                    done.version
                ));
            }
            Some(_) if !done.success => {
                return Schema::Foreign(format!("migration {} was not finished", done.version));
            }
            Some(migration) if *migration.checksum != *done.checksum => {
                return Schema::Foreign(format!(
                    "migration {} is not the one that this program has",
                    done.version
                ));
            }
            Some(_) => {}
        }
    }
    if applied.len() < migrator.iter().count() { Schema::Older } else { Schema::Current }
}

/// Applies the migrations that are missing, on a connection that no other process's migration can get in the way of.
/// `explain` tells what an error of the database means.
pub(super) async fn apply_missing<C: Migrate>(
    connection: &mut C,
    applied: &[Applied],
    migrator: &Migrator,
    explain: fn(&sqlx::Error) -> MigrateError,
) -> Result<(), MigrateError> {
    connection.ensure_migrations_table(TABLE).await.map_err(|error| failed(&error, explain))?;
    for migration in migrator
        .iter()
        .filter(|migration| applied.iter().all(|done| done.version != migration.version))
    {
        connection.apply(TABLE, migration).await.map_err(|error| failed(&error, explain))?;
    }
    Ok(())
}

fn failed(
    error: &sqlx::migrate::MigrateError,
    explain: fn(&sqlx::Error) -> MigrateError,
) -> MigrateError {
    use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
    let (Execute(cause) | ExecuteMigration(cause, _)) = error else {
        return MigrateError::Failed(error.to_string());
    };
    match explain(cause) {
        MigrateError::Failed(_) => MigrateError::Failed(error.to_string()),
        passing @ (MigrateError::Unreachable(_)
        | MigrateError::GaveWay(_)
        | MigrateError::Newer { .. }) => passing,
    }
}

impl Schema {
    /// Whether the store can work on it.
    pub(super) fn ready(self) -> Result<(), StoreError> {
        match self {
            Self::Current => Ok(()),
            Self::Older => Err(StoreError::Unavailable(
                "its schema is older than this program's: run `surehook migrate`".into(),
            )),
            Self::Newer { found, known } => {
                Err(StoreError::Unavailable(MigrateError::Newer { found, known }.to_string()))
            }
            Self::Foreign(why) => {
                Err(StoreError::Unavailable(MigrateError::Failed(why).to_string()))
            }
        }
    }

    /// Whether there is anything to migrate, if it may be migrated at all.
    pub(super) fn needs_migration(self) -> Result<bool, MigrateError> {
        match self {
            Self::Current => Ok(false),
            Self::Older => Ok(true),
            Self::Newer { found, known } => Err(MigrateError::Newer { found, known }),
            Self::Foreign(why) => Err(MigrateError::Failed(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrator() -> Migrator {
        sqlx::migrate!("../migrations/sqlite")
    }

    fn applied(migrator: &Migrator) -> Vec<Applied> {
        migrator
            .iter()
            .map(|done| Applied {
                version: done.version,
                checksum: done.checksum.to_vec(),
                success: true,
            })
            .collect()
    }

    #[test]
    fn all_migrations_and_no_other_are_current() {
        let migrator = migrator();
        assert_eq!(compare(&applied(&migrator), &migrator), Schema::Current);
        assert_eq!(compare(&[], &migrator), Schema::Older);
    }

    #[test]
    fn a_migration_that_is_not_known_is_newer_or_foreign() {
        let migrator = migrator();
        let with = |version| {
            let mut applied = applied(&migrator);
            applied.push(Applied { version, checksum: vec![], success: true });
            compare(&applied, &migrator)
        };
        let known = migrator.iter().map(|migration| migration.version).max().unwrap();
        assert_eq!(with(known + 1), Schema::Newer { found: known + 1, known });
        assert!(matches!(with(0), Schema::Foreign(_)));
    }

    #[test]
    fn a_migration_that_was_changed_or_not_finished_is_foreign() {
        let migrator = migrator();
        let changed = |change: fn(&mut Applied)| {
            let mut applied = applied(&migrator);
            change(&mut applied[0]);
            compare(&applied, &migrator)
        };
        assert!(matches!(changed(|done| done.checksum[0] ^= 1), Schema::Foreign(_)));
        assert!(matches!(changed(|done| done.success = false), Schema::Foreign(_)));
    }
}
