//! Migrations give way to other sessions.
//!
//! A migration that waits for a table's lock blocks every later statement on that table. Beside a
//! backup, which holds its locks for hours, it would stop the intake of the processes that still
//! run. So it waits for a lock only briefly, and pauses before the next try. The error names the
//! blocking sessions, because only their owner can end them.

use super::servers::Servers;
use super::session::Session;
use super::sql;
use crate::store::schema::MigrateError;
use futures::FutureExt;
use futures::future::{self, Either};
use sqlx::FromRow;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The pause after a try that gave way. With the lock timeout of [`super::migrate`], a migration
/// blocks others for less than a tenth of the time. The migration lock is held during the pause, so
/// several processes together try no more often than one.
const PAUSE: Duration = Duration::from_secs(2);

/// Timeout for opening the connection that queries the blocking sessions.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the blocking sessions are queried.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A session that holds a lock which the migration needs.
#[derive(Debug, FromRow)]
struct Blocker {
    pid: i64,
    name: Option<String>,
    role: Option<String>,
    state: Option<String>,
    open_for: Option<i64>,
}

/// Runs one try of a migration. `pid` is the server process of its session. If the try gives way,
/// this function pauses and then returns an error that names the blocking sessions.
pub(super) async fn giving_way<T>(
    servers: &Servers,
    pid: i32,
    migrating: impl Future<Output = Result<T, MigrateError>> + Send,
) -> Result<T, MigrateError> {
    let (asking, _) = match servers.find(Instant::now() + CONNECT_TIMEOUT).await {
        Ok(connected) => connected,
        Err(why) => return Err(MigrateError::Unreachable(why)),
    };
    let mut seen = Vec::new();
    let migrated = {
        let looking = pin!(look(asking, pid, &mut seen).fuse());
        match future::select(pin!(migrating), looking).await {
            Either::Left((migrated, _)) => migrated,
            Either::Right(((), migrating)) => migrating.await,
        }
    };
    match migrated {
        Err(MigrateError::GaveWay(why)) => {
            let error = MigrateError::GaveWay(format!("{why}; {}", told(&seen)));
            sleep(PAUSE).await;
            Err(error)
        }
        other => other,
    }
}

/// Queries the sessions that block the session `pid`, until this future is dropped or a query
/// fails. `seen` keeps the last result that was not empty.
async fn look(mut asking: Session, pid: i32, seen: &mut Vec<Blocker>) {
    while let Ok(blockers) = asking.read(sqlx::query(sql::BLOCKERS).bind(pid)).await {
        if !blockers.is_empty() {
            *seen = blockers;
        }
        sleep(LOOK_EVERY).await;
    }
}

fn told(blockers: &[Blocker]) -> String {
    if blockers.is_empty() {
        return "the blocking session was not found in time".into();
    }
    let each = blockers.iter().map(|Blocker { pid, name, role, state, open_for }| {
        let (name, role) =
            (name.as_deref().unwrap_or("unnamed"), role.as_deref().unwrap_or("unknown"));
        let state = state.as_deref().unwrap_or("in an unknown state");
        let open_for =
            open_for.map_or(String::new(), |seconds| format!(", transaction open for {seconds} s"));
        format!("`{name}` (server process {pid}, role `{role}`, {state}{open_for})")
    });
    format!("blocked by {}", each.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocker_is_named_with_its_process_and_its_age() {
        let backup = Blocker {
            pid: 7,
            name: Some("pg_dump".into()),
            role: Some("backup".into()),
            state: Some("active".into()),
            open_for: Some(90),
        };
        let hidden = Blocker { pid: 8, name: None, role: None, state: None, open_for: None };
        assert_eq!(
            told(&[backup, hidden]),
            "blocked by `pg_dump` (server process 7, role `backup`, active, transaction open for 90 s), \
             `unnamed` (server process 8, role `unknown`, in an unknown state)"
        );
    }
}
