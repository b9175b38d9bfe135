//! Migrates a database to this program's schema.
//!
//! Each migration is one transaction, which first takes the migration lock. So nothing outlives a
//! transaction, and this also works through a pooler that gives each transaction another session.

use super::errors::{describe, is_lock_timeout, is_passing};
use super::give_way::giving_way;
use super::servers::Servers;
use super::session::Session;
use super::sql;
use crate::store::schema::{self, Applied, MigrateError};
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, FromRow, Postgres};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Settings of a migration's transaction. A migration may run for long, but waits for a lock only
/// briefly. See [`super::give_way`].
const SETTINGS: &str = "set local statement_timeout = 0; set local lock_timeout = '200ms'; set local idle_in_transaction_session_timeout = 0";

/// Key of the advisory lock that lets one process at a time migrate a database: "surehook" in
/// ASCII.
const LOCK: i64 = 0x7375_7265_686f_6f6b;

/// How long a process waits while another one migrates.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Interval between two tries to take the migration lock.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Timeout for opening the connection of a migration.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What one transaction of a migration achieved.
enum Step {
    /// No migration is missing.
    Current,
    Applied,
    /// Another process holds the migration lock.
    Locked,
}

/// Migrates the database to this program's schema. See [`crate::store::OpenStore::migrate`].
pub(super) async fn migrate(servers: &Arc<Servers>) -> Result<(), MigrateError> {
    // Every connection error counts as temporary (no server, no database, no such role): an
    // operator may be about to correct it.
    let (mut session, _) =
        servers.find(Instant::now() + CONNECT_TIMEOUT).await.map_err(MigrateError::Unreachable)?;
    let migrated = migrate_on(servers, &mut session).await;
    if migrated.is_err() {
        servers.lost();
    }
    // The server rolls back a transaction that is still open, even if closing fails here.
    session.close().await;
    migrated
}

async fn migrate_on(servers: &Servers, session: &mut Session) -> Result<(), MigrateError> {
    let migrator = sql::migrator();
    // A current database is not written to, because this role may not be allowed to write.
    let exists = sqlx::query("select to_regclass($1) is not null").bind(schema::TABLE);
    let exists = session.read::<(bool,)>(exists).await.map_err(|error| explain(&error))?;
    if exists.first().is_some_and(|(exists,)| *exists) {
        let applied = session.read(sqlx::query(sql::SCHEMA)).await;
        let applied: Vec<Applied> = applied.map_err(|error| explain(&error))?;
        if !schema::compare(&applied, &migrator).needs_migration()? {
            return Ok(());
        }
    }
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match step(servers, session, &migrator).await? {
            Step::Current => return Ok(()),
            Step::Applied => {}
            Step::Locked if Instant::now() > deadline => {
                return Err(MigrateError::Unreachable(
                    "another process is still migrating it".into(),
                ));
            }
            Step::Locked => sleep(TRY_EVERY).await,
        }
    }
}

/// Applies the first missing migration.
async fn step(
    servers: &Servers,
    session: &mut Session,
    migrator: &Migrator,
) -> Result<Step, MigrateError> {
    session.begin(SETTINGS).await.map_err(|error| explain(&error))?;
    let lock = sqlx::query("select pg_try_advisory_xact_lock($1)").bind(LOCK);
    let (is_locked,): (bool,) = row(session, lock).await?;
    let missing = if is_locked { missing(session, migrator).await? } else { None };
    let Some(migration) = missing else {
        session.roll_back().await.map_err(|error| explain(&error))?;
        return Ok(if is_locked { Step::Current } else { Step::Locked });
    };
    let (pid,): (i32,) = row(session, sqlx::query("select pg_backend_pid()")).await?;
    giving_way(servers, pid, apply(session, migration)).await?;
    session.commit().await.map_err(|error| explain(&error))?;
    Ok(Step::Applied)
}

/// The first migration that is missing. Another process may have applied some of them since.
async fn missing<'m>(
    session: &mut Session,
    migrator: &'m Migrator,
) -> Result<Option<&'m Migration>, MigrateError> {
    let exists = sqlx::query("select to_regclass($1) is not null").bind(schema::TABLE);
    let (exists,): (bool,) = row(session, exists).await?;
    let applied: Vec<Applied> =
        if exists { rows(session, sqlx::query(sql::SCHEMA)).await? } else { Vec::new() };
    if applied.is_empty() {
        place(session).await?;
    }
    if !schema::compare(&applied, migrator).needs_migration()? {
        return Ok(None);
    }
    Ok(migrator.iter().find(|known| applied.iter().all(|done| done.version != known.version)))
}

/// Applies and records a migration. The transaction keeps the migration lock even if this fails.
async fn apply(session: &mut Session, migration: &Migration) -> Result<(), MigrateError> {
    let begun = Instant::now();
    let connection = &mut session.connection;
    let applied = async {
        sqlx::raw_sql("savepoint migration").execute(&mut *connection).await?;
        sqlx::raw_sql(sql::MIGRATIONS_TABLE).execute(&mut *connection).await?;
        for command in sql::commands(migration.sql.as_str()) {
            sqlx::raw_sql(AssertSqlSafe(command)).execute(&mut *connection).await?;
        }
        let done = sqlx::query(sql::MIGRATION_DONE)
            .bind(migration.version)
            .bind(&*migration.description)
            .bind(&*migration.checksum)
            .bind(i64::try_from(begun.elapsed().as_nanos()).unwrap_or(i64::MAX));
        done.persistent(false).execute(&mut *connection).await
    };
    let Err(error) = applied.await else { return Ok(()) };
    let _ = sqlx::raw_sql("rollback to savepoint migration").execute(connection).await;
    Err(match explain(&error) {
        MigrateError::Failed(why) => {
            MigrateError::Failed(format!("migration {}: {why}", migration.version))
        }
        passing => passing,
    })
}

/// Checks that a first migration can create its tables, so that an error says what to do.
async fn place(session: &mut Session) -> Result<(), MigrateError> {
    let query = sqlx::query(sql::PLACE).bind(schema::TABLES.as_slice());
    let (role, place, may_create, tables): (String, Option<String>, bool, Vec<String>) =
        row(session, query).await?;
    let Some(place) = place else {
        return Err(MigrateError::Failed(format!(
            "the role {role} can use no schema of its `search_path`; an administrator can run `create schema surehook authorization {role}; alter role {role} set search_path = surehook`"
        )));
    };
    schema::refuse_foreign_tables(&tables)?;
    if may_create {
        return Ok(());
    }
    Err(MigrateError::Failed(format!(
        "the role {role} may not create tables in the schema {place}; an administrator can run `grant create on schema {place} to {role}`"
    )))
}

async fn row<T: for<'r> FromRow<'r, PgRow>>(
    session: &mut Session,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<T, MigrateError> {
    let row = query.persistent(false).fetch_one(&mut session.connection).await;
    row.and_then(|row| T::from_row(&row)).map_err(|error| explain(&error))
}

async fn rows<T: for<'r> FromRow<'r, PgRow>>(
    session: &mut Session,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<T>, MigrateError> {
    let rows = query.persistent(false).fetch_all(&mut session.connection).await;
    let rows = rows.and_then(|rows| rows.iter().map(T::from_row).collect());
    rows.map_err(|error: sqlx::Error| explain(&error))
}

fn explain(error: &sqlx::Error) -> MigrateError {
    let why = describe(error);
    if is_lock_timeout(error) {
        MigrateError::GaveWay(why)
    } else if is_passing(error) {
        MigrateError::Unreachable(why)
    } else {
        MigrateError::Failed(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_can_run_in_a_transaction() {
        for migration in sql::migrator().iter() {
            assert!(!migration.no_tx, "migration {}", migration.version);
        }
    }
}
