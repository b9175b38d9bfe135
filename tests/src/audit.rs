//! What the database itself did: triggers write down every change to a delivery's row, in the very transaction that
//! makes it. So a history from the real world says as much about rows as one from a simulation, and what was rolled
//! back is not in it.
//!
//! The time of a change is its statement's, which is also the time that the store's SQL goes by. It is committed a
//! moment later.

use crate::database::Database;
use jiff::Timestamp;
use sqlx::FromRow;
use std::collections::BTreeSet;
use std::time::Duration;
use surehook_core::event::{Delivery, Outcome, Reason, Status};
use surehook_core::id::{EventId, Fence};
use surehook_model::database::DeliveryRow;
use surehook_model::history::{Change, Committed};
use uuid::Uuid;

const POSTGRES: &str = include_str!("audit/postgres.sql");
const SQLITE: &str = include_str!("audit/sqlite.sql");

/// The name of the one process that a SQLite database has.
pub const SQLITE_PROCESS: &str = "service-1";

/// Puts the triggers into a database that has its schema.
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

/// Every change that was committed, in the order in which the statements wrote it, with its time. The rows that a readiness
/// probe inserts and deletes in one transaction are left out: they belong to no producer.
///
/// # Panics
///
/// If the database cannot be read.
pub async fn read(database: &Database) -> Vec<(Timestamp, Committed)> {
    let rows: Vec<Row> =
        database.fetch("select * from audit where source <> 'probe' order by n").await;
    let mut pruned = BTreeSet::new();
    // A dead letter's row and its event go together, and are one change.
    let mut is_new = |committed: &Committed| {
        committed.change != Change::Pruned || pruned.insert(committed.event)
    };
    rows.into_iter().flat_map(Row::committed).filter(|(_, committed)| is_new(committed)).collect()
}

/// Where each event stands that has not ended.
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
    /// The change that it stands for; or two, if the event was claimed in the moment in which it was stored.
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
                let accepted =
                    Some(DeliveryRow { delivery: Delivery::accepted(), due_at: Some(db_time) });
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
    let delivery = Delivery {
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
    Timestamp::from_microsecond(micros).expect("a time of this century")
}

/// What kind of change it was. The rows do not say; the design's drawing of an event's life does.
fn change(at: Timestamp, before: Option<&DeliveryRow>, after: Option<&DeliveryRow>) -> Change {
    let Some(before) = before else {
        // A new event has no attempts; what was delivered, and is sent once more, has, and is fenced off by them.
        let is_redriven = after.is_some_and(|row| {
            row.delivery.attempt > 0
                && row.delivery == Delivery::redelivered(row.delivery.attempt).0
        });
        return if is_redriven { Change::Redriven } else { Change::Accepted };
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
        (_, Status::Processing, _) | (_, Status::DeadLettered, Some(Reason::Lost)) => {
            Change::Claimed
        }
        (Status::DeadLettered, ..) => Change::Redriven,
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
