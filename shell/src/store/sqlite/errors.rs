//! What an error of SQLite means for a store call.
//!
//! Nothing is done before COMMIT: a statement's error rolls the transaction back, or closes the
//! connection, which has the same effect. After an error of COMMIT the outcome is unknown, unless
//! SQLite says that the transaction is still open.

use crate::ports::StoreError;
use crate::store::pool::TakeError;

/// The primary result codes that are distinguished. <https://www.sqlite.org/rescode.html>
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const TOO_BIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const RANGE: i32 = 25;
const NOTADB: i32 = 26;

/// Start of a message that means damage of the file. What SQLite reads from such a file is wrong,
/// and waiting does not help.
const DAMAGED: &str = "the database file is damaged, or is not a SQLite database";

/// Codes that concern the database, and not the data that it was given: ERROR (a table is missing),
/// PERM, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, CANTOPEN, PROTOCOL, SCHEMA, NOLFS, AUTH,
/// NOTADB.
const DATABASE: [i32; 13] = [1, 3, 7, 8, 9, 10, 11, 14, 15, 17, 22, 23, 26];

/// For an error before anything was done.
pub(super) fn not_taken(error: &TakeError) -> StoreError {
    match error {
        TakeError::Busy { limit, .. } => StoreError::Unavailable(match limit {
            1 => "the writer is busy".into(),
            limit => format!("all {limit} readers are in use"),
        }),
        TakeError::Connect(why) => StoreError::Unavailable(why.clone()),
    }
}

/// For an error before COMMIT.
pub(super) fn statement(error: &sqlx::Error) -> StoreError {
    let why = message(error);
    match primary_code(error) {
        Some(BUSY | LOCKED) => StoreError::Conflict(why),
        Some(TOO_BIG | CONSTRAINT | MISMATCH | RANGE) => StoreError::Rejected(why),
        Some(code) if code == FULL || DATABASE.contains(&code) => StoreError::Unavailable(why),
        Some(_) | None => StoreError::Unknown(why),
    }
}

/// For an error of COMMIT.
pub(super) fn commit(error: &sqlx::Error) -> StoreError {
    let why = message(error);
    match primary_code(error) {
        Some(BUSY | LOCKED) => StoreError::Conflict(why),
        Some(_) | None => StoreError::Unknown(why),
    }
}

/// Whether a new try to open or to migrate may succeed: another process holds the file, or its disk
/// is full or fails.
pub(super) fn is_passing(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(BUSY | LOCKED | FULL | IOERR))
}

/// SQLite's message. It starts with [`DAMAGED`] if it means damage.
pub(super) fn message(error: &sqlx::Error) -> String {
    if matches!(primary_code(error), Some(CORRUPT | NOTADB)) {
        format!("{DAMAGED} ({error})")
    } else {
        error.to_string()
    }
}

/// Whether a call failed because the file is damaged.
pub(super) fn is_damage(error: &StoreError) -> bool {
    let (StoreError::Unavailable(why)
    | StoreError::Conflict(why)
    | StoreError::Rejected(why)
    | StoreError::Unknown(why)) = error;
    why.contains(DAMAGED)
}

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}
