//! A session with a server, and what becomes of it when its call is given up.
//!
//! A commit that waits for a standby hangs for as long as the standby is away. Nobody may cancel it: that would make the
//! row visible although no standby has it. So a call that is given up leaves its session behind, and the server has it
//! until the commit is over, even if the connection is cut. Its place in the lane stays taken for so long; otherwise new
//! sessions would pile up at the server. The server itself is asked which of them it still has.

use super::servers::Servers;
use super::sql;
use crate::store::lane::Connect;
use futures::{FutureExt, select_biased};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, FromRow};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// How soon the server is asked after a call was given up, and how often at last.
const FIRST_QUESTION_AFTER: Duration = Duration::from_millis(20);
const QUESTION_EVERY: Duration = Duration::from_secs(1);

/// How long the answer to such a question is waited for, and for the connection on which it is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// A connection, and which session of its server it is.
#[derive(Debug)]
pub(in crate::store) struct Session {
    pub(super) connection: PgConnection,
    /// `None` if the server does not tell.
    identity: Option<Identity>,
}

/// One session of a server: its server process, and when that was started, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
struct Identity {
    pid: i64,
    started: i64,
}

/// What a server knows of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It has it.
    Lives,
    /// It has it no more.
    Ended,
    /// It cannot be asked.
    Unknown,
}

impl Session {
    /// The session behind a new connection.
    pub(super) async fn new(mut connection: PgConnection) -> Result<Self, sqlx::Error> {
        let identity =
            sqlx::query_as(sql::SESSION).persistent(false).fetch_optional(&mut connection).await;
        let identity = match identity {
            // It is not PostgreSQL itself, and has no such list.
            Err(sqlx::Error::Database(_)) => None,
            other => other?,
        };
        Ok(Self { connection, identity })
    }

    /// Waits until the server has ended this session, or another server has taken its place.
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
    /// What the server that is used now knows of a session. All who ask share one connection.
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

/// Waits for the server's reply to whatever was sent, for as long as it takes, and closes the connection.
async fn close(mut connection: PgConnection) {
    loop {
        match connection.ping().await {
            Ok(()) => break,
            // The reply to the call that was given up. What comes after it is still to be read.
            Err(sqlx::Error::Database(_)) => {}
            // The connection is cut.
            Err(_) => return,
        }
    }
    let _ = connection.close().await;
}
