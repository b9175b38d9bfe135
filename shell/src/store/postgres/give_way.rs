//! Migrations give way. A migration that waits for a table's lock stands in a queue, and every statement that comes after
//! it waits behind it: beside a backup, whose locks last for hours, it would stop the intake of the processes that still
//! run. So it waits for a moment only, and pauses before the next try. What it waited for is told, for only whoever runs
//! the other session can end it.

use super::servers::Servers;
use super::sql;
use crate::store::schema::MigrateError;
use futures::FutureExt;
use futures::future::{self, Either};
use sqlx::FromRow;
use sqlx::postgres::PgConnection;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The pause after a try that gave way. With [`super::connect`]'s lock time-out a migration holds others up for less than
/// a tenth of the time. The pause is made under the lock that lets one process migrate at a time, so that several
/// processes together do not try more often than one.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the connection on which the blockers are asked for may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the server is asked for whom the migration waits.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A session that holds a lock that the migration needs.
#[derive(Debug, FromRow)]
struct Blocker {
    pid: i64,
    name: Option<String>,
    role: Option<String>,
    state: Option<String>,
    open_for: Option<i64>,
}

/// Lets a migration try, which is run by the session of this process id. Where it gives way, the error says for whom, and
/// comes after a pause.
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

/// Looks for whom the session waits, until it is dropped or cannot look any more. The last that were seen are kept.
async fn look(mut asking: PgConnection, pid: i32, seen: &mut Vec<Blocker>) {
    while let Ok(blockers) =
        sqlx::query_as::<_, Blocker>(sql::BLOCKERS).bind(pid).fetch_all(&mut asking).await
    {
        if !blockers.is_empty() {
            *seen = blockers;
        }
        sleep(LOOK_EVERY).await;
    }
}

fn told(blockers: &[Blocker]) -> String {
    if blockers.is_empty() {
        return "who holds it could not be seen in that time".into();
    }
    let each = blockers.iter().map(|Blocker { pid, name, role, state, open_for }| {
        let (name, role) =
            (name.as_deref().unwrap_or("unnamed"), role.as_deref().unwrap_or("unknown"));
        let state = state.as_deref().unwrap_or("in an unknown state");
        let open_for = open_for
            .map_or(String::new(), |seconds| format!(", its transaction open for {seconds} s"));
        format!("`{name}` (server process {pid}, role `{role}`, {state}{open_for})")
    });
    format!("it waits for {}", each.collect::<Vec<_>>().join(", "))
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
            "it waits for `pg_dump` (server process 7, role `backup`, active, its transaction open for 90 s), \
             `unnamed` (server process 8, role `unknown`, in an unknown state)"
        );
    }
}
