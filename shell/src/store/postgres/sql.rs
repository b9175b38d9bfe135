//! The statements of the store. The header of each file says what bounds the statement, which index
//! it uses and what it locks. Public, so that tests can check the plans.

use sqlx::migrate::Migrator;

/// Inserts a batch of new events.
pub const ACCEPT: &str = include_str!("accept.sql");
pub const PROBE_BEGIN: &str = include_str!("probe_begin.sql");
/// Rolls back what a probe inserted, and commits.
pub const PROBE_END: &str = include_str!("probe_end.sql");
/// Reads the events that an insert conflicted with.
pub const ACCEPT_EXISTING: &str = include_str!("accept_existing.sql");
pub const CLAIM: &str = include_str!("claim.sql");
/// Settles claims whose events were delivered.
pub const SETTLE_DELIVERED: &str = include_str!("settle_delivered.sql");
/// Settles claims whose events were not delivered.
pub const SETTLE_UNDELIVERED: &str = include_str!("settle_undelivered.sql");
/// Reads one event, its attempts and its actions.
pub const FIND: &str = include_str!("find.sql");
/// Reads the request of one event, without its body.
pub const REQUEST: &str = include_str!("request.sql");
/// Reads the body of one event.
pub const BODY: &str = include_str!("body.sql");
/// Queues one dead letter again.
pub const REDRIVE: &str = include_str!("redrive.sql");
/// Queues one delivered event again.
pub const REDRIVE_DELIVERED: &str = include_str!("redrive_delivered.sql");
/// Groups the failures of events that are not delivered.
pub const SUMMARY: &str = include_str!("summary.sql");
/// Reads a page of events.
pub const LIST: &str = include_str!("list.sql");
/// Queues a page of dead letters again.
pub const REDRIVE_ALL: &str = include_str!("redrive_all.sql");
/// Discards one event.
pub const DISCARD: &str = include_str!("discard.sql");
/// Discards a page of events.
pub const DISCARD_ALL: &str = include_str!("discard_all.sql");
/// Reads the work of each source.
pub const SOURCES: &str = include_str!("sources.sql");
/// Reads the sources of all stored events.
pub const STORED_SOURCES: &str = include_str!("stored_sources.sql");
pub const PAUSE: &str = include_str!("pause.sql");
pub const RESUME: &str = include_str!("resume.sql");
/// Reads the status of one event.
pub const STATUS: &str = include_str!("status.sql");
/// Deletes events whose retention has ended.
pub const PRUNE: &str = include_str!("prune.sql");
/// Erases the payloads of delivered events whose retention has ended.
pub const ERASE: &str = include_str!("erase.sql");
/// Caps due times that are beyond their horizon.
pub const CAP_DUE_TIMES: &str = include_str!("cap_due_times.sql");
/// Reads the role and the timeline of a server.
pub const STANDING: &str = include_str!("standing.sql");
/// Reads the role of a server that does not report its timeline.
pub const STANDING_ONLY: &str = include_str!("standing_only.sql");
/// Reads the identity of this session.
pub const SESSION: &str = include_str!("session.sql");
/// Reads whether the startup parameters of this session had an effect.
pub const SESSION_MARK: &str = include_str!("session_mark.sql");
/// Whether this session is outside of any transaction.
pub const IS_OUTSIDE: &str = include_str!("is_outside.sql");
/// Whether the server still has a session.
pub const SESSION_LIVES: &str = include_str!("session_lives.sql");
/// Reads what holds the oldest snapshot of the server.
pub const OLDEST_SNAPSHOT: &str = include_str!("oldest_snapshot.sql");
/// Reads the sessions that block a session.
pub const BLOCKERS: &str = include_str!("blockers.sql");
/// Reads the applied migrations.
pub const SCHEMA: &str = include_str!("schema.sql");
/// Creates the table of the applied migrations.
pub const MIGRATIONS_TABLE: &str = include_str!("migrations_table.sql");
/// Records an applied migration.
pub const MIGRATION_DONE: &str = include_str!("migration_done.sql");

/// Reads where a first migration creates its tables.
pub const PLACE: &str = include_str!("place.sql");

/// The commands of a migration. Each ends with a semicolon at the end of a line.
pub fn commands(migration: &str) -> impl Iterator<Item = &str> {
    migration.split_inclusive(";\n").filter(|command| !command.trim().is_empty())
}

/// The migrations that create the schema for these statements.
#[must_use]
pub fn migrator() -> Migrator {
    sqlx::migrate!("../migrations/postgres")
}
