//! The store's statements, each in a file that says what it is bounded by and what it locks. Public so that their
//! plans can be checked.

use sqlx::migrate::Migrator;

/// Inserts a batch of events.
pub const ACCEPT: &str = include_str!("accept.sql");
/// Begins a probe.
pub const PROBE_BEGIN: &str = include_str!("probe_begin.sql");
/// Takes back what a probe inserted, and commits.
pub const PROBE_END: &str = include_str!("probe_end.sql");
/// Reads the events that an insert found in its way.
pub const ACCEPT_EXISTING: &str = include_str!("accept_existing.sql");
/// Claims due events.
pub const CLAIM: &str = include_str!("claim.sql");
/// Settles a batch of claims.
pub const SETTLE: &str = include_str!("settle.sql");
/// Reads one event and its attempts.
pub const FIND: &str = include_str!("find.sql");
/// Sends a dead letter back to queued.
pub const REDRIVE: &str = include_str!("redrive.sql");
/// Sends a delivered event back to queued.
pub const REDRIVE_DELIVERED: &str = include_str!("redrive_delivered.sql");
/// A page of events.
pub const LIST: &str = include_str!("list.sql");
/// Sends dead letters back to queued.
pub const REDRIVE_ALL: &str = include_str!("redrive_all.sql");
/// The work of each source.
pub const SOURCES: &str = include_str!("sources.sql");
/// Pauses a source.
pub const PAUSE: &str = include_str!("pause.sql");
/// Resumes a source.
pub const RESUME: &str = include_str!("resume.sql");
/// Where one event stands.
pub const STATUS: &str = include_str!("status.sql");
/// Deletes what ended before its retention.
pub const PRUNE: &str = include_str!("prune.sql");
/// Erases the payloads of what was delivered before their retention.
pub const ERASE: &str = include_str!("erase.sql");
/// What a server is, and how far its history has come.
pub const STANDING: &str = include_str!("standing.sql");
/// Which session this is.
pub const SESSION: &str = include_str!("session.sql");
/// Whether the server still has a session.
pub const SESSION_LIVES: &str = include_str!("session_lives.sql");
/// For whom a session waits.
pub const BLOCKERS: &str = include_str!("blockers.sql");
/// The migrations that were applied.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The migrations that make the schema that these statements need.
#[must_use]
pub fn migrator() -> Migrator {
    sqlx::migrate!("../migrations/postgres")
}
