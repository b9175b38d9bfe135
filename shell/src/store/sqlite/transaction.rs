//! Transactions of the writer. The busy ones run as one or two scripts: see [`super::sql`].

use super::sql::{self, Script};
use super::{Failure, Now, errors};
use crate::ports::StoreError;
use futures::StreamExt;
use futures::future::BoxFuture;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteQueryResult, SqliteRow};
use sqlx::{Either, Executor};

/// Why a transaction failed, or may have failed.
pub(super) struct Broken {
    pub(super) error: StoreError,
    /// Whether it has ended. If not, its connection must be closed, which rolls it back.
    pub(super) has_ended: bool,
}

/// The results of a script.
#[derive(Default)]
pub(super) struct Done {
    /// The result of each statement, in their order.
    pub(super) statements: Vec<SqliteQueryResult>,
    /// The rows of all statements, one statement after another.
    pub(super) rows: Vec<SqliteRow>,
}

/// Begins a transaction with a script whose first statement is BEGIN.
pub(super) async fn begin(
    connection: &mut SqliteConnection,
    script: &'static str,
    arguments: SqliteArguments,
) -> Result<Done, Broken> {
    match run(connection, script, arguments).await {
        (done, None) => Ok(done),
        (done, Some(error)) if done.statements.is_empty() => {
            Err(Broken { error: errors::statement(&error), has_ended: false })
        }
        (_, Some(error)) => Err(rolled_back(connection, errors::statement(&error)).await),
    }
}

/// Ends a transaction with a script whose last statement is COMMIT.
pub(super) async fn commit(
    connection: &mut SqliteConnection,
    script: Script,
    arguments: SqliteArguments,
) -> Result<Done, Broken> {
    match run(connection, script.text, arguments).await {
        (done, None) => Ok(done),
        (done, Some(error)) if done.statements.len() == script.before_commit => {
            Err(Broken { error: errors::commit(&error), has_ended: false })
        }
        (_, Some(error)) => Err(rolled_back(connection, errors::statement(&error)).await),
    }
}

/// Runs `work` in a transaction, one statement at a time.
pub(super) async fn whole<T, W>(connection: &mut SqliteConnection, work: W) -> Result<T, Broken>
where
    W: for<'c> FnOnce(&'c mut SqliteConnection, Now) -> BoxFuture<'c, Result<T, Failure>>,
{
    begin(connection, sql::BEGIN, SqliteArguments::default()).await?;
    match work(connection, Now::read()).await {
        Ok(done) => {
            commit(connection, sql::COMMIT, SqliteArguments::default()).await?;
            Ok(done)
        }
        Err(failure) => Err(rolled_back(connection, failure.before_commit()).await),
    }
}

/// Runs a transaction of two scripts. The first begins it and reads rows. From these, `decide` makes
/// the result, and the parameters of the second script, which writes and commits.
pub(super) async fn decided<T>(
    connection: &mut SqliteConnection,
    first: (&'static str, SqliteArguments),
    second: Script,
    decide: impl FnOnce(&[SqliteRow]) -> Result<(T, SqliteArguments), Failure>,
) -> Result<T, Broken> {
    let read = begin(connection, first.0, first.1).await?.rows;
    match decide(&read) {
        Ok((decided, parameters)) => {
            commit(connection, second, parameters).await?;
            Ok(decided)
        }
        Err(failure) => Err(rolled_back(connection, failure.before_commit()).await),
    }
}

/// Rolls a transaction back because of `error`.
pub(super) async fn rolled_back(connection: &mut SqliteConnection, error: StoreError) -> Broken {
    Broken { error, has_ended: connection.execute("rollback").await.is_ok() }
}

/// Runs the statements of a script until one fails.
async fn run(
    connection: &mut SqliteConnection,
    script: &'static str,
    arguments: SqliteArguments,
) -> (Done, Option<sqlx::Error>) {
    let mut done = Done::default();
    let mut steps = connection.fetch_many(sqlx::query_with(script, arguments));
    while let Some(step) = steps.next().await {
        match step {
            Ok(Either::Left(statement)) => done.statements.push(statement),
            Ok(Either::Right(row)) => done.rows.push(row),
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}
