//! The store's statements, each in a file that says what it is bounded by. Public so that their plans can be checked.
//!
//! What makes a batch of the busy calls is run in one go: each errand to the connection's thread, and the way back, costs
//! as much as many rows. The statements of one such script share their parameters; one that does not begin with the first
//! writes `$3` and not `?3`, for SQLite takes the latter to have two more before it.

use sqlx::migrate::Migrator;

/// Reads the events that are there under the keys of a batch.
pub const ACCEPT_EXISTING: &str = include_str!("accept_existing.sql");
/// Makes the commit of a transaction that only reads flush the log.
pub const FLUSH: &str = include_str!("flush.sql");
/// Inserts events.
pub const ACCEPT_EVENTS: &str = include_str!("accept_events.sql");
/// The ids of events by their row numbers.
pub const ACCEPT_INSERTED: &str = include_str!("accept_inserted.sql");
/// Inserts the deliveries that are owed for them.
pub const ACCEPT_DELIVERIES: &str = include_str!("accept_deliveries.sql");
/// The sources that are paused.
pub const PAUSED: &str = include_str!("paused.sql");
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
/// Several statements, run one after another in one go.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// The statements.
    pub text: &'static str,
    /// So many statements come before its COMMIT, which is the last. Unless one is, nothing is known of the others.
    pub before_commit: usize,
}

/// Begins a transaction.
pub const BEGIN: &str = "begin immediate";
/// Ends one.
pub const COMMIT: Script = Script { text: "commit", before_commit: 0 };
/// A whole transaction: inserts those events of a batch whose keys are new, and answers the sources that are paused.
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
/// A whole transaction: inserts one event and takes it back. Its pages are written, so the commit needs as much room on the
/// disk as that of an event.
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
/// Begins a transaction with what is due of one source.
pub const CLAIM_BEGIN: &str = concat!("begin immediate;\n", include_str!("claim_due.sql"));
/// Writes what a claim made of its rows, answers the bytes of those that were claimed, and commits.
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
/// Begins a transaction with the rows that are to be settled.
pub const SETTLE_BEGIN: &str = concat!("begin immediate;\n", include_str!("deliveries_read.sql"));
/// Writes rows as they are after their transitions, with their attempts, and deletes those of what was delivered.
pub const TRANSITIONS: &str = concat!(
    include_str!("attempts_write.sql"),
    ";\n",
    include_str!("deliveries_write.sql"),
    ";\n",
    include_str!("deliveries_delete.sql")
);
/// The same, and commits.
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
/// The migrations that were applied.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The migrations that make the schema that these statements need.
#[must_use]
pub fn migrator() -> Migrator {
    sqlx::migrate!("../migrations/sqlite")
}
