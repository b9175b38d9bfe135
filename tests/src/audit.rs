//! What the database really did: triggers record every change to a delivery's row, in the
//! transaction that makes it. So a history of the real program has as much detail about rows as one
//! of a simulation, and changes that were rolled back are not in it.
//!
//! The time of a change is the time of its statement, which the store's SQL uses too. It is
//! committed a moment later.

use crate::database::Database;
use jiff::Timestamp;
use sqlx::FromRow;
use std::collections::BTreeSet;
use std::time::Duration;
use surehook_core::event::{DeliveryState, Outcome, Reason, Status};
use surehook_core::id::{EventId, Fence};
use surehook_model::database::DeliveryRow;
use surehook_model::history::{Change, Committed};
use uuid::Uuid;

const POSTGRES: &str = include_str!("audit/postgres.sql");
const SQLITE: &str = include_str!("audit/sqlite.sql");

/// The name of the only process that uses a SQLite database.
pub const SQLITE_PROCESS: &str = "service-1";

/// Installs the triggers in a database that has its schema.
///
/// # Panics
///
/// If that fails.
pub async fn install(database: &Database) {
    let script = match database {
        Database::Postgres(_) => POSTGRES.to_owned(),
        Database::Sqlite(_) => SQLITE.replace("$process", SQLITE_PROCESS),
    };
    database.execute(&script).await;
}

/// Every committed change with its time, in the order in which the statements wrote them. The rows
/// that a readiness probe inserts and deletes in one transaction are left out: they belong to no
/// producer.
///
/// # Panics
///
/// If the database cannot be read.
pub async fn read(database: &Database) -> Vec<(Timestamp, Committed)> {
    let rows: Vec<Row> =
        database.fetch("select * from audit where source <> 'probe' order by n").await;
    let mut pruned = BTreeSet::new();
    // A dead letter's row and its event are deleted together, and are one change.
    let mut is_new = |committed: &Committed| {
        committed.change != Change::Pruned || pruned.insert(committed.event)
    };
    rows.into_iter().flat_map(Row::committed).filter(|(_, committed)| is_new(committed)).collect()
}

/// The status of each event that has not ended.
///
/// # Panics
///
/// If the database cannot be read.
pub async fn statuses(database: &Database) -> Vec<String> {
    let rows: Vec<(String,)> =
        database.fetch("select status from deliveries where status <> 'dead_lettered'").await;
    rows.into_iter().map(|(status,)| status).collect()
}

/// The ids of all events.
///
/// # Panics
///
/// If the database cannot be read.
pub async fn events(database: &Database) -> Vec<EventId> {
    let rows: Vec<(Uuid,)> = database.fetch("select id from events order by id").await;
    rows.into_iter().map(|(id,)| EventId::from_uuid(id)).collect()
}

#[derive(FromRow)]
struct Row {
    at_us: i64,
    process: String,
    event_id: Uuid,
    pruned: bool,
    before_status: Option<String>,
    before_attempt: Option<i64>,
    before_budget_from: Option<i64>,
    before_fence: Option<i64>,
    before_reason: Option<String>,
    before_due_us: Option<i64>,
    after_status: Option<String>,
    after_attempt: Option<i64>,
    after_budget_from: Option<i64>,
    after_fence: Option<i64>,
    after_reason: Option<String>,
    after_due_us: Option<i64>,
}

impl Row {
    /// The change that this row records. Two changes if the event was claimed on insert.
    fn committed(self) -> Vec<(Timestamp, Committed)> {
        let db_time = time(self.at_us);
        let before = row(
            self.before_status,
            self.before_attempt,
            self.before_budget_from,
            self.before_fence,
            self.before_reason,
            self.before_due_us,
        );
        let after = row(
            self.after_status,
            self.after_attempt,
            self.after_budget_from,
            self.after_fence,
            self.after_reason,
            self.after_due_us,
        );
        let change = if self.pruned {
            Change::Pruned
        } else {
            change(db_time, before.as_ref(), after.as_ref())
        };
        let event = EventId::from_uuid(self.event_id);
        let process = &self.process;
        let committed = |change, before, after| {
            (
                db_time,
                Committed {
                    event,
                    db_time,
                    sent: None,
                    began: None,
                    process: process.clone(),
                    change,
                    before,
                    after,
                },
            )
        };
        match after {
            Some(claimed)
                if change == Change::Accepted && claimed.delivery.status == Status::Processing =>
            {
                let accepted = Some(DeliveryRow {
                    delivery: DeliveryState::accepted(),
                    due_at: Some(db_time),
                });
                vec![
                    committed(Change::Accepted, None, accepted),
                    committed(Change::Claimed, accepted, after),
                ]
            }
            _ => vec![committed(change, before, after)],
        }
    }
}

fn row(
    status: Option<String>,
    attempt: Option<i64>,
    budget_from: Option<i64>,
    fence: Option<i64>,
    reason: Option<String>,
    due_us: Option<i64>,
) -> Option<DeliveryRow> {
    let number = |value: Option<i64>| {
        u32::try_from(value.expect("a row has all of its columns")).expect("attempts are small")
    };
    let status = Status::from_name(&status?).expect("the table holds known statuses only");
    let delivery = DeliveryState {
        status,
        attempt: number(attempt),
        budget_from: number(budget_from),
        fence: Fence(
            fence.and_then(|fence| u64::try_from(fence).ok()).expect("a fence is not negative"),
        ),
        reason: reason
            .map(|reason| Reason::from_name(&reason).expect("the table holds known reasons only")),
    };
    Some(DeliveryRow { delivery, due_at: due_us.map(time) })
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).expect("the time is in the range of `Timestamp`")
}

/// The kind of a change. The rows do not contain it, so it is derived from the state diagram of an
/// event.
fn change(at: Timestamp, before: Option<&DeliveryRow>, after: Option<&DeliveryRow>) -> Change {
    let Some(before) = before else {
        // A new event has no attempts. A delivered event that is redriven has attempts, and its
        // fence is derived from them.
        let is_redriven = after.is_some_and(|row| {
            row.delivery.attempt > 0
                && row.delivery == DeliveryState::redelivered(row.delivery.attempt).0
        });
        return if is_redriven { Change::Redriven { of_many: false } } else { Change::Accepted };
    };
    let (row, was) = (before.delivery, before.delivery.status);
    let settled = |outcome| Change::Settled { fence: row.fence, attempt: row.attempt, outcome };
    let Some(after) = after else {
        return if was == Status::DeadLettered {
            Change::Pruned
        } else {
            settled(Outcome::Delivered)
        };
    };
    let is = after.delivery.status;
    match (was, is, after.delivery.reason) {
        _ if after.delivery == row => Change::Capped,
        (_, Status::DeadLettered, Some(Reason::Discarded)) => Change::Discarded,
        (_, Status::Processing, _) | (_, Status::DeadLettered, Some(Reason::Lost)) => {
            Change::Claimed
        }
        (Status::DeadLettered, ..) => Change::Redriven { of_many: false },
        (_, Status::DeadLettered, Some(reason)) => settled(Outcome::DeadLetter(reason)),
        _ if after.delivery.attempt < row.attempt => settled(Outcome::Release),
        _ if after.delivery.budget_from > row.budget_from => settled(Outcome::CutOff),
        _ => {
            let wait = after
                .due_at
                .and_then(|due| Duration::try_from(due.duration_since(at)).ok())
                .unwrap_or_default();
            settled(Outcome::Retry { after: wait })
        }
    }
}
