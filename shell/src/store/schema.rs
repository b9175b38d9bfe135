//! Whether a database has the schema that this program needs, and why a migration failed. Both
//! databases share this. How their migrations run is elsewhere.

use crate::ports::StoreError;
use sqlx::migrate::{Migrate, Migrator};

/// The table in which sqlx records the applied migrations.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// The tables that the migrations create.
pub(super) const TABLES: [&str; 5] =
    ["events", "deliveries", "attempts", "paused_sources", "actions"];

/// What to do if another program uses the same place.
const ANOTHER_PLACE: &str = "use another database or another schema for Surehook";

/// Why a database could not be migrated to this program's schema. No migration is half applied:
/// each one is committed completely or not at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// The database is unreachable, or another process holds it. A new try may succeed.
    #[error("the database cannot be migrated now: {0}")]
    Unreachable(String),
    /// Other sessions hold locks that the migration needs. The migration was cancelled to let them
    /// continue, and can be tried again.
    #[error("the database cannot be migrated now, because other sessions hold locks: {0}")]
    GaveWay(String),
    /// A newer program has migrated the database.
    #[error(
        "the database has schema {found}, which is newer than this program's schema {known}: run a newer surehook"
    )]
    Newer {
        /// The newest migration that was applied to the database.
        found: i64,
        /// The newest migration that this program knows.
        known: i64,
    },
    /// The schema was not created by this program, or a migration failed.
    #[error("the database cannot be migrated: {0}")]
    Failed(String),
}

/// A migration that was applied to a database.
#[derive(sqlx::FromRow)]
pub(super) struct Applied {
    pub(super) version: i64,
    pub(super) checksum: Vec<u8>,
    pub(super) success: bool,
}

/// How the schema of a database compares with the one that this program needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Schema {
    /// All known migrations are applied, and no others.
    Current,
    /// Migrations are missing.
    Older,
    /// A newer program has migrated the database.
    Newer { found: i64, known: i64 },
    /// The schema was not created by this program.
    Foreign(String),
}

/// Compares the applied migrations with those that this program knows.
pub(super) fn compare(applied: &[Applied], migrator: &Migrator) -> Schema {
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    let is_known = |done: &Applied| {
        migrator.iter().any(|migration| {
            migration.version == done.version && *migration.checksum == *done.checksum
        })
    };
    if !applied.is_empty() && !applied.iter().any(is_known) {
        return Schema::Foreign(format!(
            "the table `{TABLE}` belongs to another program; {ANOTHER_PLACE}"
        ));
    }
    if let Some(found) =
        applied.iter().map(|migration| migration.version).max().filter(|&found| found > known)
    {
        return Schema::Newer { found, known };
    }
    for done in applied {
        match migrator.iter().find(|migration| migration.version == done.version) {
            None => {
                return Schema::Foreign(format!(
                    "migration {} is unknown to this program",
                    done.version
                ));
            }
            Some(_) if !done.success => {
                return Schema::Foreign(format!("migration {} is incomplete", done.version));
            }
            Some(migration) if *migration.checksum != *done.checksum => {
                return Schema::Foreign(format!(
                    "migration {} differs from this program's",
                    done.version
                ));
            }
            Some(_) => {}
        }
    }
    if applied.len() < migrator.iter().count() { Schema::Older } else { Schema::Current }
}

/// Refuses a first migration if some of its tables exist already.
pub(super) fn refuse_foreign_tables(found: &[String]) -> Result<(), MigrateError> {
    if found.is_empty() {
        return Ok(());
    }
    Err(MigrateError::Failed(format!(
        "the table `{}` exists and was not created by Surehook; {ANOTHER_PLACE}",
        found.join("`, `")
    )))
}

/// Applies the missing migrations. The caller ensures that no other process can migrate at the same
/// time. `explain` translates a database error.
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
    /// Checks that the store can work with this schema.
    pub(super) fn ready(self) -> Result<(), StoreError> {
        match self {
            Self::Current => Ok(()),
            Self::Older => Err(StoreError::Unavailable(
                "its schema is older than this program's; run `surehook migrate`".into(),
            )),
            Self::Newer { found, known } => {
                Err(StoreError::Unavailable(MigrateError::Newer { found, known }.to_string()))
            }
            Self::Foreign(why) => {
                Err(StoreError::Unavailable(MigrateError::Failed(why).to_string()))
            }
        }
    }

    /// Whether migrations are missing. Fails if the database must not be migrated.
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
    fn a_schema_with_exactly_the_known_migrations_is_current() {
        let migrator = migrator();
        assert_eq!(compare(&applied(&migrator), &migrator), Schema::Current);
        assert_eq!(compare(&[], &migrator), Schema::Older);
    }

    #[test]
    fn an_unknown_migration_makes_the_schema_newer_or_foreign() {
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
    fn migrations_of_another_program_are_foreign_and_not_newer() {
        let migrator = migrator();
        let of_another = |version| Applied { version, checksum: vec![7; 48], success: true };
        for applied in [vec![of_another(1)], vec![of_another(20_240_101_120_000)]] {
            let Schema::Foreign(why) = compare(&applied, &migrator) else { panic!("not foreign") };
            assert!(why.contains("belongs to another program"), "{why}");
        }
    }

    #[test]
    fn a_changed_or_incomplete_migration_makes_the_schema_foreign() {
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
