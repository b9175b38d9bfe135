//! The database that `make conformance` examines. It is given by a URL, is not started here, and
//! nothing is assumed of its role but that it can create schemas. Each test has its own schema.

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable with the URL of the database.
pub const DATABASE: &str = "CONFORMANCE_DATABASE";

/// The variable with a URL of the same database that leads directly to the server, if the first
/// leads to a pooler.
pub const DIRECT: &str = "CONFORMANCE_DIRECT";

/// How the names of all schemas begin.
pub const PREFIX: &str = "surehook_conformance_";

/// A new schema.
#[derive(Clone, Debug)]
pub struct Schema {
    /// The URL for the program.
    pub url: String,
    /// The URL for the test itself.
    pub direct: String,
}

impl Schema {
    /// Creates a schema in the database that the environment names, if it names one.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub async fn create() -> Option<Self> {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let database = std::env::var(DATABASE).ok()?;
        let direct = std::env::var(DIRECT).unwrap_or_else(|_| database.clone());
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}_{number}", std::process::id());
        execute(&direct, &format!("create schema {name}")).await;
        Some(Self { url: within(&database, &name), direct: within(&direct, &name) })
    }
}

/// Drops the schemas that earlier runs and this one have created.
///
/// # Panics
///
/// If that fails.
pub async fn drop_all(direct: &str) {
    let mut connection = PgConnection::connect(direct).await.expect("the database is reachable");
    let query = "select nspname::text from pg_namespace where starts_with(nspname::text, $1)";
    let names: Vec<String> = sqlx::query_scalar(query)
        .bind(PREFIX)
        .fetch_all(&mut connection)
        .await
        .expect("the schemas can be listed");
    for name in names {
        execute(direct, &format!("drop schema {name} cascade")).await;
    }
}

/// What can be examined of the plans of statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plans {
    /// Nothing: the server does not explain a statement as PostgreSQL does.
    CannotBeRead,
    /// The plans in states that any role can make.
    Read,
    /// Also the plans with any numbers in the system catalogs, which a superuser can write.
    ReadWithAnyNumbers,
}

/// What can be examined of the plans at this server. It does not depend on the server's name: other
/// engines give themselves PostgreSQL's.
///
/// # Panics
///
/// If the server cannot be reached.
pub async fn plans(direct: &str) -> Plans {
    let mut connection = PgConnection::connect(direct).await.expect("the database is reachable");
    let probe = "set enable_seqscan = off; set enable_bitmapscan = off";
    let settings = sqlx::raw_sql(probe).execute(&mut connection).await;
    let explained = "explain (costs) select relkind from pg_class where oid = 1";
    let plan = sqlx::query_scalar::<_, String>(explained).fetch_all(&mut connection).await;
    let is_readable = settings.is_ok()
        && plan.is_ok_and(|lines| {
            lines.iter().any(|line| line.contains("Index Scan using") && line.contains("(cost="))
                && lines.iter().any(|line| line.trim().starts_with("Index Cond: (oid = "))
        });
    if !is_readable {
        return Plans::CannotBeRead;
    }
    let is_superuser = "select rolsuper from pg_roles where rolname = current_user";
    match sqlx::query_scalar(is_superuser).fetch_one(&mut connection).await {
        Ok(true) => Plans::ReadWithAnyNumbers,
        _ => Plans::Read,
    }
}

async fn execute(url: &str, statement: &str) {
    let mut connection = PgConnection::connect(url).await.expect("the database is reachable");
    let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await;
    done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    let _ = connection.close().await;
}

fn within(url: &str, schema: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}options=-c%20search_path%3D{schema}")
}
