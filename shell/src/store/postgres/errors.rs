//! What an error of PostgreSQL, or of the connection to it, means for a store call.
//!
//! Each call is one statement in its own transaction. So if the server reports an ERROR, the
//! transaction was rolled back. After every other failure of a sent statement (a FATAL error, a
//! broken connection, an unreadable reply), it is unknown whether the transaction was committed.
//! Through a pooler the commit is a separate statement, and only its failure leaves that unknown.

use crate::ports::StoreError;
use crate::store::pool::TakeError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

#[derive(Debug)]
pub(super) struct Failure {
    /// What the failure means for the caller.
    pub(super) error: StoreError,
    /// Whether the connection can be used for another call.
    pub(super) usable: bool,
    /// The violated constraint, if any.
    pub(super) constraint: Option<String>,
    /// Whether a table is missing.
    pub(super) is_table_missing: bool,
}

impl Failure {
    fn new(error: StoreError, usable: bool) -> Self {
        Self { error, usable, constraint: None, is_table_missing: false }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// For an error before the statement was sent: nothing was done.
pub(super) fn not_taken(error: &TakeError) -> Failure {
    let why = match error {
        TakeError::Busy { limit, abandoned: 0 } => {
            format!("all {limit} connections of this pool are in use")
        }
        TakeError::Busy { limit, abandoned } => format!(
            "all {limit} connections of this pool are in use, {abandoned} of them by abandoned calls that the server has not ended"
        ),
        TakeError::Connect(why) => why.clone(),
    };
    Failure::new(StoreError::Unavailable(why), false)
}

/// For an error while the statement was sent, or after it.
pub(super) fn failed(error: &sqlx::Error) -> Failure {
    let why = describe(error);
    if let sqlx::Error::Encode(_) = error {
        return Failure::new(StoreError::Rejected(why), false);
    }
    let Some(reported) = reported(error) else {
        return Failure::new(StoreError::Unknown(why), false);
    };
    let aborted = matches!(reported.severity(), PgSeverity::Error);
    let (kind, usable) =
        if aborted { meaning(reported.code()) } else { (StoreError::Unknown as MakeError, false) };
    Failure {
        error: kind(why),
        usable,
        constraint: reported.constraint().map(Into::into),
        is_table_missing: reported.code() == "42P01",
    }
}

/// For an error before the commit of a transaction was sent: nothing was committed.
pub(super) fn before_commit(error: &sqlx::Error) -> Failure {
    let failure = failed(error);
    match failure.error {
        StoreError::Unknown(why) => Failure { error: StoreError::Unavailable(why), ..failure },
        _ => failure,
    }
}

/// For a result from a server that was replaced by another one during the call.
pub(super) fn outdated() -> Failure {
    let why = "the server was replaced by another one during the call";
    Failure::new(StoreError::Unknown(why.into()), false)
}

/// For a statement that succeeded, while the server sent a warning during its commit. The
/// transaction is committed on the primary, but the wait for the standby may have been cancelled.
pub(super) fn warned_at_commit() -> Failure {
    let why = "the server sent a warning during the commit: the wait for a standby was probably cancelled";
    Failure::new(StoreError::Unknown(why.into()), true)
}

/// For a statement after which the session is inside a transaction that this program did not begin.
/// That transaction probably ends with the connection, in one way or the other.
pub(super) fn kept_open() -> Failure {
    let why = "the pooler began a transaction before the statement, and has not ended it";
    Failure::new(StoreError::Unknown(why.into()), false)
}

/// For a reply that did not arrive in time.
pub(super) fn no_reply(within: std::time::Duration) -> Failure {
    Failure::new(StoreError::Unknown(format!("no reply within {within:?}")), false)
}

/// Whether a new try to connect or to migrate may succeed: the server is unreachable, starting,
/// full or busy.
pub(super) fn is_passing(error: &sqlx::Error) -> bool {
    match reported(error) {
        Some(reported) => {
            matches!(reported.code().get(..2), Some("08" | "40" | "53" | "57"))
                || reported.code() == "55P03"
        }
        None => {
            matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_))
        }
    }
}

/// Whether the lock timeout ended the statement, because another session held the lock.
pub(super) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    reported(error).is_some_and(|reported| reported.code() == "55P03")
}

/// Whether a pooler refused a startup parameter. It then has not connected to the server.
pub(super) fn is_startup_parameter_refused(error: &sqlx::Error) -> bool {
    // Protocol violation. PgBouncer's message is "unsupported startup parameter: …".
    reported(error).is_some_and(|reported| {
        reported.code() == "08P01" && reported.message().contains("startup parameter")
    })
}

/// Whether the server refused a connection because it, the database or the role is at its limit of
/// connections. `described` is the text of [`describe`].
pub(super) fn is_full(described: &str) -> bool {
    described.contains("(SQLSTATE 53300)")
}

/// Whether the server refused the password. `described` is the text of [`describe`].
pub(super) fn is_password_refused(described: &str) -> bool {
    described.contains("(SQLSTATE 28P01)")
}

/// Whether the server has no such function or column, or withholds it from this role.
pub(super) fn is_withheld(error: &sqlx::Error) -> bool {
    // Insufficient privilege, undefined function, feature not supported.
    reported(error).is_some_and(|reported| matches!(reported.code(), "42501" | "42883" | "0A000"))
}

/// Describes an error without passwords and row data: only by the server's primary message, never
/// by its detail.
pub(super) fn describe(error: &sqlx::Error) -> String {
    match reported(error) {
        Some(reported) => format!("{} (SQLSTATE {})", reported.message(), reported.code()),
        None => error.to_string(),
    }
}

fn reported(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
}

type MakeError = fn(String) -> StoreError;

/// What an ERROR with this SQLSTATE means, and whether the connection can be used for another call.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn meaning(code: &str) -> (MakeError, bool) {
    match code {
        // Serialization failure, deadlock, lock not available.
        "40001" | "40P01" | "55P03" => (StoreError::Conflict, true),
        // Query canceled: the statement timed out.
        "57014" => (StoreError::Unavailable, true),
        // Read-only transaction: the server is a standby, or a primary that has become one. A new
        // connection may reach the primary.
        "25006" => (StoreError::Unavailable, false),
        // The data exceeds a limit or violates a constraint.
        _ if matches!(code.get(..2), Some("22" | "23" | "54")) => (StoreError::Rejected, true),
        // Insufficient resources.
        _ if code.starts_with("53") => (StoreError::Unavailable, true),
        // The schema is not this program's (a table or a column is missing, a prepared statement is
        // stale, a privilege is missing). A new connection prepares its statements anew.
        _ if matches!(code.get(..2), Some("0A" | "26" | "28" | "3D" | "3F" | "42")) => {
            (StoreError::Unavailable, false)
        }
        _ => (StoreError::Unknown, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: &str) -> StoreError {
        meaning(code).0(String::new())
    }

    #[test]
    fn each_sqlstate_maps_to_its_store_error() {
        let text = String::new;
        for code in ["40001", "40P01", "55P03"] {
            assert_eq!(kind(code), StoreError::Conflict(text()), "{code}");
        }
        for code in ["22001", "22P05", "23505", "23514", "54000"] {
            assert_eq!(kind(code), StoreError::Rejected(text()), "{code}");
        }
        for code in
            ["57014", "25006", "53100", "53300", "3D000", "42P01", "42501", "0A000", "26000"]
        {
            assert_eq!(kind(code), StoreError::Unavailable(text()), "{code}");
        }
        for code in ["XX000", "58030", "08006", "57P01", "", "?"] {
            assert_eq!(kind(code), StoreError::Unknown(text()), "{code}");
        }
    }

    #[test]
    fn a_broken_connection_leaves_the_outcome_unknown() {
        let broken = failed(&sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()));
        assert!(matches!(broken.error, StoreError::Unknown(_)) && !broken.usable);
        assert!(matches!(failed(&sqlx::Error::Protocol("?".into())).error, StoreError::Unknown(_)));
    }
}
