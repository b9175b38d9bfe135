//! The contents of all tables of events, every column, with virtual times.

use crate::db::{Db, Raw};
use sqlx::{AssertSqlSafe, FromRow, PgPool, SqlitePool};
use surehook_model::database::Database;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    events: Vec<EventRow>,
    deliveries: Vec<DeliveryRow>,
    attempts: Vec<AttemptRow>,
    actions: Vec<ActionRow>,
}

#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
struct EventRow {
    id: Uuid,
    source: String,
    idempotency_key: String,
    fingerprint: Vec<u8>,
    received_at: i64,
    query: Vec<u8>,
    headers: Vec<u8>,
    body: Vec<u8>,
    erased_at: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
struct DeliveryRow {
    event_id: Uuid,
    source: String,
    status: String,
    attempt: i64,
    budget_from: i64,
    fence: i64,
    due_at: Option<i64>,
    ended_at: Option<i64>,
    reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
struct AttemptRow {
    event_id: Uuid,
    attempt: i64,
    ended_at: i64,
    took_us: Option<i64>,
    verdict: String,
    status_code: Option<i64>,
    error: Option<String>,
    excerpt: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
struct ActionRow {
    event_id: Uuid,
    fence: i64,
    at: i64,
    attempt: i64,
    action: String,
}

/// The statements that read the tables.
struct Statements {
    events: String,
    deliveries: String,
    attempts: String,
    actions: String,
}

impl Picture {
    pub(super) async fn of(db: &Db, ahead: i64) -> Self {
        let time = |column: &str| match db.raw {
            Raw::Postgres(_) => {
                format!("(extract(epoch from {column}) * 1000000)::bigint - {ahead} as {column}")
            }
            Raw::Sqlite(_) | Raw::Memory(_) => format!("{column} - {ahead} as {column}"),
        };
        let events = format!(
            "select id, source, idempotency_key, fingerprint, {}, query, headers, body, {} from events order by id",
            time("received_at"),
            time("erased_at")
        );
        let deliveries = format!(
            "select event_id, source, status, attempt, budget_from, fence, {}, {},
                case when discarded_fence = fence then 'discarded' else reason end as reason
             from deliveries order by event_id",
            time("due_at"),
            time("ended_at")
        );
        let attempts = format!(
            "select event_id, attempt, {}, took_us, verdict, cast(status_code as bigint) as status_code, error, excerpt
             from attempts order by event_id, attempt",
            time("ended_at")
        );
        let actions = format!(
            "select event_id, fence, {}, attempt, action from actions order by event_id, fence",
            time("at")
        );
        let statements = Statements { events, deliveries, attempts, actions };
        match &db.raw {
            Raw::Postgres(pool) => Self::of_postgres(pool, statements).await,
            Raw::Sqlite(pool) => Self::of_sqlite(pool, statements).await,
            Raw::Memory(memory) => memory.transact(|tables, _| Self::of_model(tables, ahead)),
        }
    }

    async fn of_postgres(pool: &PgPool, statements: Statements) -> Self {
        let Statements { events, deliveries, attempts, actions } = statements;
        Self {
            events: sqlx::query_as(AssertSqlSafe(events)).fetch_all(pool).await.unwrap(),
            deliveries: sqlx::query_as(AssertSqlSafe(deliveries)).fetch_all(pool).await.unwrap(),
            attempts: sqlx::query_as(AssertSqlSafe(attempts)).fetch_all(pool).await.unwrap(),
            actions: sqlx::query_as(AssertSqlSafe(actions)).fetch_all(pool).await.unwrap(),
        }
    }

    async fn of_sqlite(pool: &SqlitePool, statements: Statements) -> Self {
        let Statements { events, deliveries, attempts, actions } = statements;
        Self {
            events: sqlx::query_as(AssertSqlSafe(events)).fetch_all(pool).await.unwrap(),
            deliveries: sqlx::query_as(AssertSqlSafe(deliveries)).fetch_all(pool).await.unwrap(),
            attempts: sqlx::query_as(AssertSqlSafe(attempts)).fetch_all(pool).await.unwrap(),
            actions: sqlx::query_as(AssertSqlSafe(actions)).fetch_all(pool).await.unwrap(),
        }
    }

    fn of_model(tables: &Database, ahead: i64) -> Self {
        let events = tables.events.values().map(|row| EventRow {
            id: row.event.id.as_uuid(),
            source: row.event.source.to_string(),
            idempotency_key: row.event.key.to_string(),
            fingerprint: row.event.fingerprint.as_bytes().to_vec(),
            received_at: row.received_at.as_microsecond() - ahead,
            query: row.event.query.to_vec(),
            headers: row.event.headers.to_vec(),
            body: row.event.body.to_vec(),
            erased_at: row.erased_at.map(|at| at.as_microsecond() - ahead),
        });
        let deliveries = tables.deliveries.iter().map(|(event, row)| DeliveryRow {
            event_id: event.as_uuid(),
            source: tables
                .events
                .get(event)
                .map(|row| row.event.source.to_string())
                .unwrap_or_default(),
            status: row.delivery.status.as_str().to_owned(),
            attempt: row.delivery.attempt.into(),
            budget_from: row.delivery.budget_from.into(),
            fence: row.delivery.fence.0.try_into().unwrap(),
            due_at: row.due_at.map(|at| at.as_microsecond() - ahead),
            ended_at: tables.ended.get(event).map(|at| at.as_microsecond() - ahead),
            reason: row.delivery.reason.map(|reason| reason.as_str().to_owned()),
        });
        let attempts = tables.attempts.iter().map(|((event, attempt), entry)| AttemptRow {
            event_id: event.as_uuid(),
            attempt: (*attempt).into(),
            ended_at: entry.ended_at.as_microsecond() - ahead,
            took_us: entry.took.map(|took| took.as_micros().try_into().unwrap()),
            verdict: entry.verdict.as_str().to_owned(),
            status_code: entry.status_code.map(i64::from),
            error: entry.error.clone(),
            excerpt: entry.excerpt.to_vec(),
        });
        let actions = tables.actions.iter().map(|((event, fence), entry)| ActionRow {
            event_id: event.as_uuid(),
            fence: fence.0.try_into().unwrap(),
            at: entry.at.as_microsecond() - ahead,
            attempt: entry.attempt.into(),
            action: entry.action.as_str().to_owned(),
        });
        Self {
            events: events.collect(),
            deliveries: deliveries.collect(),
            attempts: attempts.collect(),
            actions: actions.collect(),
        }
    }
}
