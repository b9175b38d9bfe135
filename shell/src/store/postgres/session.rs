//! A session at a server, and what happens to it when its call is abandoned.
//!
//! A commit that waits for a standby hangs as long as the standby is away. It must not be
//! cancelled: that would make the row visible although no standby has it. So an abandoned call
//! leaves its session behind, and the server keeps it until the commit ends, even if the connection
//! is cut. Until then the session keeps its slot in the pool. Otherwise sessions would accumulate
//! at the server. The server is queried for the sessions that it still has.

use super::servers::Servers;
use super::sql;
use futures::{FutureExt, select_biased};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, FromRow};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Interval between the queries for an abandoned session: the first value at the start, then
/// doubled up to the second.
const FIRST_QUESTION_AFTER: Duration = Duration::from_millis(20);
const QUESTION_EVERY: Duration = Duration::from_secs(1);

/// Timeout of such a query, including the time to open its connection.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// A connection, and the identity of its session at the server.
#[derive(Debug)]
pub(in crate::store) struct Session {
    pub(super) connection: PgConnection,
    /// `None` if the server does not report it.
    identity: Option<Identity>,
}

/// Identifies a session at a server: its server process, and the start of that process in
/// microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
struct Identity {
    pid: i64,
    started: i64,
}

/// Whether a server still has a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The server still has it.
    Lives,
    /// The server has ended it.
    Ended,
    /// The server could not be queried.
    Unknown,
}

impl Session {
    /// Reads the identity of a new connection's session.
    pub(super) async fn new(mut connection: PgConnection) -> Result<Self, sqlx::Error> {
        let identity =
            sqlx::query_as(sql::SESSION).persistent(false).fetch_optional(&mut connection).await;
        let identity = match identity {
            // The server is not PostgreSQL itself, and has no list of sessions.
            Err(sqlx::Error::Database(_)) => None,
            other => other?,
        };
        Ok(Self { connection, identity })
    }

    /// Waits until the server has ended this session, or another server has replaced it.
    pub(super) async fn ended(self, servers: Arc<Servers>, generation: u64) {
        let Self { connection, identity } = self;
        let mut closed = pin!(close(connection).fuse());
        let Some(identity) = identity else { return closed.await };
        let mut wait = FIRST_QUESTION_AFTER;
        loop {
            select_biased! {
                () = closed => {}
                () = pin!(sleep(wait).fuse()) => {}
            }
            if servers.generation() > generation || servers.fate(identity).await == Fate::Ended {
                return;
            }
            wait = (wait * 2).min(QUESTION_EVERY);
        }
    }
}

impl Servers {
    /// Queries the current server for a session. All callers share one connection.
    async fn fate(self: &Arc<Self>, session: Identity) -> Fate {
        let mut asking = self.asking.lock().await;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let answer = timeout_at(deadline, async {
            let connection = match asking.take() {
                Some(connection) => asking.insert(connection),
                None => asking.insert(self.find(deadline).await.ok()?.0),
            };
            let question = sqlx::query_scalar::<_, bool>(sql::SESSION_LIVES)
                .bind(session.pid)
                .bind(session.started);
            question.fetch_one(connection).await.ok()
        });
        let fate = answer
            .await
            .ok()
            .flatten()
            .map_or(Fate::Unknown, |lives| if lives { Fate::Lives } else { Fate::Ended });
        if fate == Fate::Unknown {
            *asking = None;
        }
        fate
    }
}

/// Waits for the server's reply to the abandoned call, without a time limit, and closes the
/// connection.
async fn close(mut connection: PgConnection) {
    loop {
        match connection.ping().await {
            Ok(()) => break,
            // The reply to the abandoned call. What follows it has still to be read.
            Err(sqlx::Error::Database(_)) => {}
            // The connection is cut.
            Err(_) => return,
        }
    }
    let _ = connection.close().await;
}
