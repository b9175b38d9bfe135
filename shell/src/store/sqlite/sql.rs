//! The statements of the store. The header of each file says what bounds the statement and which
//! index it uses. Public, so that tests can check the plans.
//!
//! The busy calls run the statements of a batch as one script: a round trip to the connection's
//! thread costs as much as many rows. The statements of a script share their parameters. A
//! statement that does not begin with the first parameter writes `$3` and not `?3`, because for
//! `?3` SQLite assumes two parameters before it.
//!
//! A batch of rows is a JSON array of arrays. `jsonb_each` reads it in SQLite's binary form. With
//! `json_each`, each row would be written as text and parsed again for each of its columns.

use sqlx::migrate::Migrator;

/// Reads the stored events that have the keys of a batch.
pub const ACCEPT_EXISTING: &str = include_str!("accept_existing.sql");
/// Makes the commit of a transaction that only reads flush the log.
pub const FLUSH: &str = include_str!("flush.sql");
/// Inserts new events.
pub const ACCEPT_EVENTS: &str = include_str!("accept_events.sql");
/// Reads the ids of the events in a range of row numbers.
pub const ACCEPT_INSERTED: &str = include_str!("accept_inserted.sql");
/// Inserts the deliveries of new events.
pub const ACCEPT_DELIVERIES: &str = include_str!("accept_deliveries.sql");
/// Reads the paused sources.
pub const PAUSED: &str = include_str!("paused.sql");
/// Reads the due rows of one source.
pub const CLAIM_DUE: &str = include_str!("claim_due.sql");
/// Reads the queries, headers and bodies of claimed events.
pub const CLAIM_BYTES: &str = include_str!("claim_bytes.sql");
pub const DELIVERIES_READ: &str = include_str!("deliveries_read.sql");
pub const DELIVERIES_WRITE: &str = include_str!("deliveries_write.sql");
pub const DELIVERIES_DELETE: &str = include_str!("deliveries_delete.sql");
pub const ATTEMPTS_WRITE: &str = include_str!("attempts_write.sql");
/// Records redrives and discards.
pub const ACTIONS_WRITE: &str = include_str!("actions_write.sql");
/// Queues one delivered event again.
pub const REDRIVE_DELIVERED: &str = include_str!("redrive_delivered.sql");
/// Reads the number of an event's newest attempt.
pub const LAST_ATTEMPT: &str = include_str!("last_attempt.sql");
/// Reads one event, its attempts and its actions.
pub const FIND: &str = include_str!("find.sql");
/// Reads the request of one event, without its body.
pub const REQUEST: &str = include_str!("request.sql");
/// Reads the body of one event.
pub const BODY: &str = include_str!("body.sql");
/// Groups the failures of events that are not delivered.
pub const SUMMARY: &str = include_str!("summary.sql");
/// Reads a page of events.
pub const LIST: &str = include_str!("list.sql");
/// Reads a page of dead letters, to redrive them.
pub const LETTERS: &str = include_str!("letters.sql");
/// Reads one row, to discard it.
pub const DISCARD_READ: &str = include_str!("discard_read.sql");
/// Reads a page of events, to discard them.
pub const DISCARD_SCAN: &str = include_str!("discard_scan.sql");
pub const DISCARD_WRITE: &str = include_str!("discard_write.sql");
/// Reads the names of the sources that are configured, have work or are paused.
pub const SOURCES_NAMED: &str = include_str!("sources_named.sql");
/// Reads the work of one source.
pub const SOURCE_WORK: &str = include_str!("source_work.sql");
/// Reads the sources of all stored events.
pub const STORED_SOURCES: &str = include_str!("stored_sources.sql");
pub const PAUSE: &str = include_str!("pause.sql");
pub const RESUME: &str = include_str!("resume.sql");
/// Reads the status of one event.
pub const STATUS: &str = include_str!("status.sql");
/// Finds the events whose payloads can be erased.
pub const ERASE_SCAN: &str = include_str!("erase_scan.sql");
pub const ERASE_EVENTS: &str = include_str!("erase_events.sql");
/// Caps due times that are beyond their horizon.
pub const CAP_DUE_TIMES: &str = include_str!("cap_due_times.sql");
/// Several statements that run in one round trip to the connection's thread.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub text: &'static str,
    /// How many statements come before COMMIT, which is the last one. If exactly this many
    /// succeeded before an error, COMMIT has failed. Otherwise nothing was committed.
    pub before_commit: usize,
}

pub const BEGIN: &str = "begin immediate";
pub const COMMIT: Script = Script { text: "commit", before_commit: 0 };
/// A complete transaction: inserts the events of a batch whose keys are new, and reads the paused
/// sources.
pub const ACCEPT_NEW: Script = Script {
    text: concat!(
        "begin immediate;\n",
        include_str!("accept_events.sql"),
        "on conflict (source, idempotency_key) do nothing;\n",
        include_str!("accept_deliveries.sql"),
        ";\n",
        include_str!("paused.sql"),
        ";\ncommit"
    ),
    before_commit: 4,
};
/// A complete transaction: inserts one event and deletes it. Its pages are written, so the commit
/// needs as much disk space as that of an event.
pub const PROBE: Script = Script {
    text: concat!(
        "begin immediate;\n",
        include_str!("accept_events.sql"),
        ";\n",
        include_str!("accept_deliveries.sql"),
        ";\n",
        include_str!("probe_deliveries.sql"),
        ";\n",
        include_str!("probe_events.sql"),
        ";\ncommit"
    ),
    before_commit: 5,
};
/// Begins a transaction and reads the due rows of one source.
pub const CLAIM_BEGIN: &str = concat!("begin immediate;\n", include_str!("claim_due.sql"));
/// Writes the changed rows of a claim, reads the queries, headers and bodies of the claimed events,
/// and commits.
pub const CLAIM_END: Script = Script {
    text: concat!(
        include_str!("attempts_write.sql"),
        ";\n",
        include_str!("deliveries_write.sql"),
        ";\n",
        include_str!("claim_bytes.sql"),
        ";\ncommit"
    ),
    before_commit: 3,
};
/// Begins a transaction and reads the rows that are to be settled.
pub const SETTLE_BEGIN: &str = concat!("begin immediate;\n", include_str!("deliveries_read.sql"));
/// Writes rows and attempts after their transitions, and deletes the rows of delivered events.
pub const TRANSITIONS: &str = concat!(
    include_str!("attempts_write.sql"),
    ";\n",
    include_str!("deliveries_write.sql"),
    ";\n",
    include_str!("deliveries_delete.sql")
);
/// Begins a transaction and finds the events that can be deleted.
pub const PRUNE_BEGIN: &str = concat!("begin immediate;\n", include_str!("prune_scan.sql"));
/// Deletes events with all their rows, and commits.
pub const PRUNE_END: Script = Script {
    text: concat!(
        include_str!("deliveries_delete.sql"),
        ";\n",
        include_str!("prune_attempts.sql"),
        ";\n",
        include_str!("prune_actions.sql"),
        ";\n",
        include_str!("prune_events.sql"),
        ";\ncommit"
    ),
    before_commit: 4,
};
/// The statements of [`TRANSITIONS`], and COMMIT.
pub const SETTLE_END: Script = Script {
    text: concat!(
        include_str!("attempts_write.sql"),
        ";\n",
        include_str!("deliveries_write.sql"),
        ";\n",
        include_str!("deliveries_delete.sql"),
        ";\ncommit"
    ),
    before_commit: 3,
};
/// Reads the applied migrations.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The migrations that create the schema for these statements.
#[must_use]
pub fn migrator() -> Migrator {
    sqlx::migrate!("../migrations/sqlite")
}
