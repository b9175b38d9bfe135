//! A session at a server, how it runs statements, and what happens to it when its call is abandoned.
//!
//! A commit that waits for a standby hangs as long as the standby is away. It must not be
//! cancelled: that would make the row visible although no standby has it. So an abandoned call
//! leaves its session behind, and the server keeps it until the commit ends, even if the connection
//! is cut. Until then the session keeps its slot in the pool. Otherwise sessions would accumulate
//! at the server. The server is queried for the sessions that it still has.

use super::errors::{self, Failure};
use super::notices::watched;
use super::pooler::DIRECT;
use super::servers::Servers;
use super::{connect::Plans, run, sql};
use futures::{FutureExt, select_biased};
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, FromRow, Postgres, Row};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Interval between the queries for an abandoned session: the first value at the start, then
/// doubled up to the second.
const FIRST_QUESTION_AFTER: Duration = Duration::from_millis(20);
const QUESTION_EVERY: Duration = Duration::from_secs(1);

/// Timeout of such a query, including the time to open its connection.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// A connection, and what its statements run in.
#[derive(Debug)]
pub(in crate::store) struct Session {
    pub(super) connection: PgConnection,
    /// The statements that begin each transaction, if there is a pooler. See [`super::pooler`].
    begin: Option<Arc<str>>,
    /// `None` if the server does not report it.
    identity: Option<Identity>,
    /// Whether each statement of a direct session is known to be committed when it has ended.
    commits: bool,
    plans: Plans,
    /// Set if this session is inside a transaction that it did not begin.
    keeps_open: Arc<AtomicBool>,
}

/// Identifies what must have ended at the server before a slot is free. For a direct session: its
/// server process, and the start of that process. For a pooled one: the server process of its last
/// transaction, and the start of that transaction. Starts are in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
pub(super) struct Identity {
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
    /// A session on a new connection that was opened with the startup parameters of a direct
    /// session. `None` if they have no effect.
    pub(super) async fn direct(
        mut connection: PgConnection,
        keeps_open: Arc<AtomicBool>,
    ) -> Result<Option<Self>, sqlx::Error> {
        let identity = sqlx::raw_sql(sql::SESSION).fetch_optional(&mut connection).await;
        let (identity, mark) = match identity {
            // The server is not PostgreSQL itself, and has no list of sessions.
            Err(sqlx::Error::Database(_)) => {
                let row = sqlx::raw_sql(sql::SESSION_MARK).fetch_one(&mut connection).await?;
                (None, row.try_get("mark")?)
            }
            other => match other? {
                Some(row) => (Some(Identity::from_row(&row)?), row.try_get("mark")?),
                None => (None, None),
            },
        };
        let mark: Option<String> = mark;
        let is_direct = mark.as_deref() == Some(DIRECT);
        let session = Self { identity, keeps_open, ..Self::new(connection, None) };
        Ok(is_direct.then_some(session))
    }

    /// A session through a pooler.
    pub(super) fn pooled(connection: PgConnection, begin: Arc<str>) -> Self {
        Self::new(connection, Some(begin))
    }

    fn new(connection: PgConnection, begin: Option<Arc<str>>) -> Self {
        let (plans, keeps_open) = (Plans::Custom, Arc::default());
        Self { connection, begin, identity: None, commits: false, plans, keeps_open }
    }

    /// Whether each call is a transaction of several statements.
    pub(super) fn is_pooled(&self) -> bool {
        self.begin.is_some()
    }

    /// Sets how the statements of this session are planned. Pooled sessions plan each statement
    /// anew.
    pub(super) async fn plan(&mut self, plans: Plans) -> Result<(), sqlx::Error> {
        self.plans = plans;
        if self.is_pooled() { Ok(()) } else { plans.apply(&mut self.connection).await }
    }

    /// Begins a transaction. It has the settings of every session, and then those of `more`, a list
    /// of statements.
    pub(super) async fn begin(&mut self, more: &str) -> Result<(), sqlx::Error> {
        let Some(begin) = &self.begin else {
            let text = AssertSqlSafe(format!("begin; {more}"));
            return sqlx::raw_sql(text).execute(&mut self.connection).await.map(|_| ());
        };
        let text = AssertSqlSafe(format!("{begin}; {more}"));
        let rows = sqlx::raw_sql(text).fetch_all(&mut self.connection).await?;
        self.identity = rows.first().map(Identity::from_row).transpose()?;
        Ok(())
    }

    /// Commits. Returns whether the server sent a warning during that.
    pub(super) async fn commit(&mut self) -> Result<bool, sqlx::Error> {
        let (committed, warned) =
            watched(sqlx::raw_sql("commit").execute(&mut self.connection)).await;
        committed.map(|_| warned)
    }

    /// Rolls the transaction back.
    pub(super) async fn roll_back(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("rollback").execute(&mut self.connection).await.map(|_| ())
    }

    /// Runs one statement in its own transaction to its end, and passes on each row as it arrives.
    /// Returns whether the server sent a warning during the commit.
    ///
    /// A direct session checks afterwards that the statement is committed, because a pooler may have
    /// begun a transaction before it. The sessions of the intake and of the worker check only their
    /// first statement: such a pooler looks at the form of a statement, and theirs have one form.
    pub(super) async fn run(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
        each: &mut (impl FnMut(PgRow) + Send),
    ) -> Result<bool, Failure> {
        if !self.is_pooled() {
            let ran = run(&mut self.connection, query, each).await;
            let warned = ran.map_err(|error| errors::failed(&error))?;
            if !self.commits {
                self.check_that_it_commits().await?;
            }
            return Ok(warned);
        }
        self.begin("").await.map_err(|error| errors::before_commit(&error))?;
        if let Err(error) = run(&mut self.connection, query.persistent(false), each).await {
            let mut failure = errors::before_commit(&error);
            failure.usable = failure.usable && self.roll_back().await.is_ok();
            return Err(failure);
        }
        self.commit().await.map_err(|error| errors::failed(&error))
    }

    async fn check_that_it_commits(&mut self) -> Result<(), Failure> {
        let asked = sqlx::raw_sql(sql::IS_OUTSIDE).fetch_one(&mut self.connection).await;
        let is_outside = asked.and_then(|row| row.try_get::<bool, _>("is_outside"));
        if is_outside.map_err(|error| errors::failed(&error))? {
            self.commits = self.plans == Plans::Generic;
            return Ok(());
        }
        self.keeps_open.store(true, Ordering::Relaxed);
        tracing::warn!(
            "the pooler of the database kept a transaction open; from now on every call is a transaction of several statements"
        );
        Err(errors::kept_open())
    }

    /// Runs one statement that only reads, and returns its rows.
    pub(super) async fn read<T: for<'r> FromRow<'r, PgRow>>(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<T>, sqlx::Error> {
        let is_pooled = self.is_pooled();
        if is_pooled {
            self.begin("").await?;
        }
        let rows = query.persistent(!is_pooled).fetch_all(&mut self.connection).await;
        if is_pooled {
            // After an error as well, so that the session can be used for another statement.
            self.roll_back().await?;
        }
        rows?.iter().map(T::from_row).collect()
    }

    /// Whether the other end of the connection answers.
    pub(super) async fn ping(&mut self) -> bool {
        self.connection.ping().await.is_ok()
    }

    /// Closes the connection. An error here needs no reaction.
    pub(super) async fn close(self) {
        let _ = self.connection.close().await;
    }

    /// Waits until the server has ended this session, or another server has replaced it.
    pub(super) async fn ended(self, servers: Arc<Servers>, generation: u64) {
        let Self { connection, identity, .. } = self;
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
            let asked = match asking.take() {
                Some(asked) => asking.insert(asked),
                None => asking.insert(self.find(deadline).await.ok()?.0),
            };
            let question = sqlx::query(sql::SESSION_LIVES).bind(session.pid).bind(session.started);
            asked.read::<(bool,)>(question).await.ok()?.pop()
        });
        let fate = answer
            .await
            .ok()
            .flatten()
            .map_or(Fate::Unknown, |(lives,)| if lives { Fate::Lives } else { Fate::Ended });
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
