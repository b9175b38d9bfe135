//! How this program connects to PostgreSQL, and how it migrates a database.

use super::errors::{describe, is_lock_timeout, is_passing};
use super::give_way::giving_way;
use super::servers::Servers;
use super::sql;
use crate::store::OpenError;
use crate::store::schema::{self, Applied, MigrateError};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Settings of each session. They override those of the server, the database and the role. They
/// also follow the URL's own options, and the later value wins.
///
/// Plans: every statement of the store is a bounded set of index probes. With good statistics the
/// planner would choose such a plan, but those of a queue are never good: the table was empty when
/// it was analysed, or full. So plans without index probes are switched off. If the planner
/// overestimates the cost, the JIT compiles for longer than the plan runs. See also [`Plans`].
///
/// Warnings must be sent: one of them says that the wait for a standby was cancelled. See
/// [`super::notices`].
///
/// Keepalives: if the network forgets a connection, its session must end at the server, because the
/// session holds a slot of the pool until then. The server's default takes two hours. These take a
/// minute and a half.
const SESSION: [(&str, &str); 16] = [
    ("synchronous_commit", "on"),
    ("client_min_messages", "warning"),
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "5s"),
    ("lock_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("plan_cache_mode", "force_custom_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("tcp_keepalives_idle", "60"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

/// Settings of a migration's session. A migration may run for long, but waits for a lock only
/// briefly. See [`super::give_way`].
const MIGRATION: &str = "set statement_timeout = 0; set lock_timeout = '200ms'; set idle_in_transaction_session_timeout = 0";

/// Key of the advisory lock that lets one process at a time migrate a database: "surehook" in
/// ASCII.
const MIGRATION_LOCK: i64 = 0x7375_7265_686f_6f6b;

/// How long a process waits while another one migrates.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(1);

/// Timeout for opening the connection of a migration.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The required form of a URL, for error messages.
pub(super) const FORM: &str =
    "it is not of the form `postgres://user:password@host:port/database?parameter=value`";

/// How the statements of a session are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plans {
    /// Anew for each execution. The statements of operators and of retention choose an index by
    /// their parameters.
    Custom,
    /// Once, without the parameters. PostgreSQL makes a new plan when it learns new statistics or
    /// the schema changes. The form of the statements of the intake and of the worker leaves no
    /// choice to the planner, and planning them would take longer than a third of their time.
    Generic,
}

impl Plans {
    /// Sets a new session, which was opened with [`options`].
    ///
    /// # Errors
    ///
    /// The server refused, or the connection is lost.
    pub async fn apply(self, session: &mut PgConnection) -> Result<(), sqlx::Error> {
        match self {
            Self::Custom => Ok(()),
            Self::Generic => {
                let set = sqlx::raw_sql("set plan_cache_mode = force_generic_plan");
                set.execute(session).await.map(|_| ())
            }
        }
    }
}

/// The options of the store's sessions with one server: those of the URL, and the settings that the
/// store needs.
///
/// # Errors
///
/// [`OpenError`] if the URL cannot be parsed.
pub fn options(url: &str) -> Result<PgConnectOptions, OpenError> {
    let options = PgConnectOptions::from_str(url).map_err(|_| OpenError(FORM.into()))?;
    let options = if options.get_application_name().is_none() {
        options.application_name("surehook")
    } else {
        options
    };
    // The driver would log slow statements whole. The calls are measured and logged elsewhere.
    Ok(options.options(SESSION).disable_statement_logging())
}

/// Migrates the database to this program's schema. See [`crate::store::OpenStore::migrate`].
///
/// The migration lock is polled, because a session that waits for a lock holds a snapshot. A
/// migration that builds an index concurrently would wait for that snapshot forever. The lock
/// belongs to the session: when the connection is closed, or dropped with this future, the server
/// releases it and rolls back uncommitted changes.
pub(super) async fn migrate(servers: &Arc<Servers>) -> Result<(), MigrateError> {
    // Every connection error counts as temporary (no server, no database, no such role): an
    // operator may be about to correct it.
    let (mut connection, _) =
        servers.find(Instant::now() + CONNECT_TIMEOUT).await.map_err(MigrateError::Unreachable)?;
    let migrated = match sqlx::raw_sql(MIGRATION).execute(&mut connection).await {
        Ok(_) => migrate_on(servers, &mut connection).await,
        Err(error) => Err(explain(&error)),
    };
    if migrated.is_err() {
        servers.lost();
    }
    // The server releases the lock when the connection ends, even if closing it fails here.
    let _ = connection.close().await;
    migrated
}

async fn migrate_on(servers: &Servers, connection: &mut PgConnection) -> Result<(), MigrateError> {
    let migrator = sql::migrator();
    // A current database is not written to, because this role may not be allowed to write.
    if !schema::compare(&applied(connection).await?, &migrator).needs_migration()? {
        return Ok(());
    }
    let deadline = Instant::now() + MIGRATION_TIMEOUT;
    while !lock(connection).await? {
        if Instant::now() > deadline {
            return Err(MigrateError::Unreachable("another process is still migrating it".into()));
        }
        sleep(Duration::from_millis(50)).await;
    }
    // Another process may have migrated it while this one waited for the lock.
    let applied = applied(connection).await?;
    if applied.is_empty() {
        place(connection).await?;
    }
    if schema::compare(&applied, &migrator).needs_migration()? {
        let pid = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| explain(&error))?;
        giving_way(servers, pid, schema::apply_missing(connection, &applied, &migrator, explain))
            .await?;
    }
    Ok(())
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>, MigrateError> {
    let exists =
        sqlx::query_scalar::<_, bool>("select to_regclass($1) is not null").bind(schema::TABLE);
    if !exists.fetch_one(&mut *connection).await.map_err(|error| explain(&error))? {
        return Ok(Vec::new());
    }
    sqlx::query_as::<_, Applied>(sql::SCHEMA)
        .fetch_all(connection)
        .await
        .map_err(|error| explain(&error))
}

/// Checks that a first migration can create its tables, so that an error says what to do.
async fn place(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let query = sqlx::query_as(sql::PLACE).bind(schema::TABLES.as_slice());
    let (role, place, may_create, tables): (String, Option<String>, bool, Vec<String>) =
        query.fetch_one(connection).await.map_err(|error| explain(&error))?;
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

async fn lock(connection: &mut PgConnection) -> Result<bool, MigrateError> {
    let locked = sqlx::query_scalar("select pg_try_advisory_lock($1)")
        .bind(MIGRATION_LOCK)
        .fetch_one(connection)
        .await;
    locked.map_err(|error| explain(&error))
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
