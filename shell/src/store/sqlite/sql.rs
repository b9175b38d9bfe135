//! The store's statements, each in a file that says what it is bounded by. Public so that their plans can be checked.

use sqlx::migrate::Migrator;

/// Reads the events that are there under the keys of a batch.
pub const ACCEPT_EXISTING: &str = include_str!("accept_existing.sql");
/// Inserts events.
pub const ACCEPT_EVENTS: &str = include_str!("accept_events.sql");
/// Inserts the deliveries that are owed for them.
pub const ACCEPT_DELIVERIES: &str = include_str!("accept_deliveries.sql");
/// Reads what is due.
pub const CLAIM_DUE: &str = include_str!("claim_due.sql");
/// Reads the bytes of what was claimed.
pub const CLAIM_BYTES: &str = include_str!("claim_bytes.sql");
/// Reads rows of deliveries.
pub const DELIVERIES_READ: &str = include_str!("deliveries_read.sql");
/// Writes rows of deliveries.
pub const DELIVERIES_WRITE: &str = include_str!("deliveries_write.sql");
/// Deletes rows of deliveries.
pub const DELIVERIES_DELETE: &str = include_str!("deliveries_delete.sql");
/// Appends attempts.
pub const ATTEMPTS_WRITE: &str = include_str!("attempts_write.sql");
/// Queues a delivered event once more.
pub const REDRIVE_DELIVERED: &str = include_str!("redrive_delivered.sql");
/// The newest attempt of one event.
pub const LAST_ATTEMPT: &str = include_str!("last_attempt.sql");
/// Reads one event and its attempts.
pub const FIND: &str = include_str!("find.sql");
/// A page of events.
pub const LIST: &str = include_str!("list.sql");
/// A page of dead letters.
pub const LETTERS: &str = include_str!("letters.sql");
/// The sources that there are.
pub const SOURCES_NAMED: &str = include_str!("sources_named.sql");
/// The work of one source.
pub const SOURCE_WORK: &str = include_str!("source_work.sql");
/// Pauses a source.
pub const PAUSE: &str = include_str!("pause.sql");
/// Resumes a source.
pub const RESUME: &str = include_str!("resume.sql");
/// Where one event stands.
pub const STATUS: &str = include_str!("status.sql");
/// Judges what may be pruned.
pub const PRUNE_SCAN: &str = include_str!("prune_scan.sql");
/// Deletes the attempts of events that are pruned.
pub const PRUNE_ATTEMPTS: &str = include_str!("prune_attempts.sql");
/// Deletes events that are pruned.
pub const PRUNE_EVENTS: &str = include_str!("prune_events.sql");
/// Judges what may be erased.
pub const ERASE_SCAN: &str = include_str!("erase_scan.sql");
/// Erases payloads.
pub const ERASE_EVENTS: &str = include_str!("erase_events.sql");
/// The migrations that were applied.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The migrations that make the schema that these statements need.
#[must_use]
pub fn migrator() -> Migrator {
    sqlx::migrate!("../migrations/sqlite")
}
