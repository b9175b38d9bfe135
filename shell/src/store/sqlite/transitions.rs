//! What each writing call does inside its transaction. Reads rows, asks the core, writes what it answers: the
//! transitions are [`surehook_core::event::Delivery`]'s own, so there is nothing here that could differ from them.

use super::{Failure, searched, sql};
use crate::ports::{Erased, NewEvent, Pruned, Redriven, Retention, StoreError};
use crate::search::{EventFilter, PageSize, RedrivenPage, Span};
use crate::store::rows;
use serde_json::json;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{FromRow, Row, Sqlite};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::event::{Delivery, Due, Illegal, Status};
use surehook_core::id::{Attempt, EventId, Fence};
use surehook_core::verdict::Verdict;
use surehook_core::worker::exchange::{Buried, Claim, Claims, Demand, Settlement};
use uuid::Uuid;

/// A time: microseconds since 1970.
type Micros = i64;

pub(super) async fn accept(connection: &mut SqliteConnection, now: Micros, batch: Vec<NewEvent>) -> Result<Vec<Stored>, Failure> {
    let keys: Vec<_> = batch.iter().map(|event| (event.source.as_str(), event.key.as_str())).collect();
    let mut stored: Vec<Option<Stored>> = vec![None; batch.len()];
    let existing: Vec<rows::ExistingRow> = fetch(connection, sqlx::query_as(sql::ACCEPT_EXISTING).bind(array(&keys)?)).await?;
    for row in existing {
        let found = row.stored()?;
        let slot = usize::try_from(row.position).ok().and_then(|at| stored.get_mut(at)).ok_or_else(|| rows::unreadable("position"))?;
        *slot = Some(found);
    }
    // Of two events with one key the first is new, and the second finds it there.
    let mut firsts: HashMap<(&str, &str), &NewEvent> = HashMap::new();
    let mut new_rows = Vec::new();
    let mut bytes = Vec::with_capacity(batch.iter().map(|event| event.size() + Fingerprint::of(b"").as_bytes().len()).sum());
    for ((event, key), slot) in batch.iter().zip(&keys).zip(&mut stored).filter(|(_, slot)| slot.is_none()) {
        let first = *firsts.entry(*key).or_insert(event);
        if !std::ptr::eq(first, event) {
            *slot = Some(Stored::Existing { id: first.id, fingerprint: first.fingerprint, status: Status::Queued });
            continue;
        }
        new_rows.push((hex(event.id), key.0, key.1, bytes.len(), event.headers.len(), event.body.len()));
        bytes.extend_from_slice(event.fingerprint.as_bytes());
        bytes.extend_from_slice(&event.headers);
        bytes.extend_from_slice(&event.body);
        *slot = Some(Stored::Inserted);
    }
    if !new_rows.is_empty() {
        let new_rows = array(&new_rows)?;
        execute(connection, sqlx::query(sql::ACCEPT_EVENTS).bind(Arc::clone(&new_rows)).bind(bytes).bind(now)).await?;
        execute(connection, sqlx::query(sql::ACCEPT_DELIVERIES).bind(new_rows).bind(now)).await?;
    }
    Ok(stored.into_iter().flatten().collect())
}

pub(super) async fn claim(connection: &mut SqliteConnection, now: Micros, demands: Vec<Demand>) -> Result<Claims, Failure> {
    let (mut claims, mut changes) = (Claims::default(), Changes::default());
    for demand in demands {
        let due = sqlx::query_as(sql::CLAIM_DUE).bind(demand.source.as_str()).bind(now).bind(i64::from(demand.limit));
        for row in fetch::<DeliveryRow>(connection, due).await? {
            let event = EventId::from_uuid(row.event_id);
            let claimed = row.delivery()?.claim(demand.lease, demand.max_attempts).map_err(|_| rows::unreadable("due time"))?;
            let delivery = claimed.delivery;
            if let Some(lost) = claimed.lost {
                changes.attempts.push(json!([hex(event), lost, now, null, Verdict::Lost.as_str(), null, null, ""]));
            }
            changes.put(event, delivery, claimed.due, now);
            let (source, attempt) = (demand.source.clone(), delivery.attempt);
            if delivery.status == Status::DeadLettered {
                claims.buried.push(Buried { event, source, attempt });
            } else {
                let (fence, nth) = (delivery.fence, delivery.used());
                let (headers, body) = Default::default();
                claims.claimed.push(Claim { event, source, fence, attempt, nth, age: Duration::ZERO, headers, body });
            }
        }
    }
    changes.write(connection).await?;
    claims.claimed = with_bytes(connection, now, claims.claimed).await?;
    Ok(claims)
}

/// Fills in the bytes of what was claimed, and how old it is.
async fn with_bytes(connection: &mut SqliteConnection, now: Micros, claimed: Vec<Claim>) -> Result<Vec<Claim>, Failure> {
    if claimed.is_empty() {
        return Ok(claimed);
    }
    let ids: Vec<_> = claimed.iter().map(|claim| hex(claim.event)).collect();
    let mut claimed: Vec<Option<Claim>> = claimed.into_iter().map(Some).collect();
    let mut filled = Vec::with_capacity(claimed.len());
    let mut found: Vec<BytesRow> = fetch(connection, sqlx::query_as(sql::CLAIM_BYTES).bind(array(&ids)?)).await?;
    found.sort_by_key(|row| row.position);
    for row in found {
        let claim = usize::try_from(row.position).ok().and_then(|at| claimed.get_mut(at)).and_then(Option::take);
        let claim = claim.ok_or_else(|| rows::unreadable("position"))?;
        let age = rows::age(now.saturating_sub(row.received_at));
        filled.push(Claim { age, headers: row.headers.into(), body: row.body.into(), ..claim });
    }
    for claim in claimed.into_iter().flatten() {
        // Its lease runs out again and again, until it is dead-lettered as lost.
        tracing::error!(event_id = %claim.event, source = %claim.source, attempt = claim.attempt, "the event is owed, but its bytes are gone: it cannot be delivered");
    }
    Ok(filled)
}

pub(super) async fn settle(connection: &mut SqliteConnection, now: Micros, batch: Vec<Settlement>) -> Result<Vec<EventId>, Failure> {
    let ids: Vec<_> = batch.iter().map(|settlement| hex(settlement.event)).collect();
    let read: Vec<DeliveryRow> = fetch(connection, sqlx::query_as(sql::DELIVERIES_READ).bind(array(&ids)?)).await?;
    let mut deliveries = HashMap::with_capacity(read.len());
    for row in read {
        deliveries.insert(EventId::from_uuid(row.event_id), row.delivery()?);
    }
    let (mut refused, mut changes) = (Vec::new(), Changes::default());
    for settlement in &batch {
        let event = settlement.event;
        let before = deliveries.get(&event).copied();
        let settled =
            before.ok_or(Illegal::Stale).and_then(|row| row.settle(settlement.fence, settlement.outcome).map(|after| (row, after)));
        let Ok((before, (delivery, due))) = settled else {
            refused.push(event);
            continue;
        };
        if let Some(record) = settlement.entry() {
            changes.attempts.push(json!([
                hex(event),
                before.attempt,
                now.saturating_sub(rows::micros(record.ended_ago)),
                rows::micros(record.took),
                record.verdict.as_str(),
                record.status_code,
                record.error.map(|error| error.as_str()),
                hex_bytes(&record.excerpt),
            ]));
        }
        changes.put(event, delivery, due, now);
        deliveries.insert(event, delivery);
    }
    changes.write(connection).await?;
    Ok(refused)
}

pub(super) async fn redrive(connection: &mut SqliteConnection, now: Micros, event: EventId) -> Result<Redriven, Failure> {
    let read: Vec<DeliveryRow> = fetch(connection, sqlx::query_as(sql::DELIVERIES_READ).bind(array(&[hex(event)])?)).await?;
    let Some(row) = read.first() else {
        return Ok(standing(connection, event).await?.map_or(Redriven::NotFound, |(status, _)| Redriven::StandsElsewhere(status)));
    };
    let before = row.delivery()?;
    let Ok((delivery, due)) = before.redrive() else {
        return Ok(Redriven::StandsElsewhere(before.status));
    };
    let mut changes = Changes::default();
    changes.put(event, delivery, due, now);
    changes.write(connection).await?;
    Ok(Redriven::Queued)
}

pub(super) async fn redrive_delivered(connection: &mut SqliteConnection, now: Micros, event: EventId) -> Result<Redriven, Failure> {
    match standing(connection, event).await? {
        None => return Ok(Redriven::NotFound),
        Some((Status::Delivered, false)) => {}
        Some((Status::Delivered, true)) => return Ok(Redriven::Erased),
        Some((other, _)) => return Ok(Redriven::StandsElsewhere(other)),
    }
    let last: Vec<(Option<i64>,)> = fetch(connection, sqlx::query_as(sql::LAST_ATTEMPT).bind(event.as_uuid())).await?;
    let last = last.first().and_then(|(attempt,)| *attempt).map_or(Ok(0), rows::attempt)?;
    let (delivery, _) = Delivery::redelivered(last);
    let (attempt, fence) = (i64::from(delivery.attempt), rows::count(delivery.fence.0));
    let insert = sqlx::query(sql::REDRIVE_DELIVERED).bind(event.as_uuid()).bind(now).bind(attempt).bind(fence);
    execute(connection, insert).await?;
    Ok(Redriven::Queued)
}

/// Where an event stands, and whether its payload was erased; `None` if it is not there.
async fn standing(connection: &mut SqliteConnection, event: EventId) -> Result<Option<(Status, bool)>, Failure> {
    let found: Vec<(String, bool)> = fetch(connection, sqlx::query_as(sql::STATUS).bind(event.as_uuid())).await?;
    Ok(found.first().map(|(name, erased)| Ok::<_, StoreError>((rows::status(name)?, *erased))).transpose()?)
}

pub(super) async fn redrive_all(
    connection: &mut SqliteConnection,
    now: Micros,
    filter: EventFilter,
    span: Span,
    size: PageSize,
    dry_run: bool,
) -> Result<RedrivenPage, Failure> {
    let rows = searched(sql::LETTERS, &filter, span, size).fetch_all(&mut *connection).await?;
    let first = rows.first().ok_or_else(|| rows::unreadable("result"))?;
    let looked = (first.try_get("looked")?, first.try_get::<Option<Uuid>, _>("last")?.map(EventId::from_uuid));
    let (mut changes, mut letters) = (Changes::default(), Vec::with_capacity(rows.len()));
    for row in &rows {
        if row.try_get::<Option<Uuid>, _>("event_id")?.is_some() {
            let letter = DeliveryRow::from_row(row)?;
            let event = EventId::from_uuid(letter.event_id);
            let (delivery, due) = letter.delivery()?.redrive().map_err(|_| rows::unreadable("status"))?;
            changes.put(event, delivery, due, now);
            letters.push(event);
        }
    }
    if !dry_run {
        changes.write(connection).await?;
    }
    let redriven = u32::try_from(letters.len()).map_err(|_| rows::unreadable("count"))?;
    Ok(RedrivenPage { redriven, next: rows::next(size, (letters.len(), letters.last().copied()), looked) })
}

pub(super) async fn prune(
    connection: &mut SqliteConnection,
    now: Micros,
    retention: Retention,
    after: Option<EventId>,
    limit: u32,
) -> Result<Pruned, Failure> {
    let scan = sqlx::query_as(sql::PRUNE_SCAN)
        .bind(after.map(EventId::as_uuid))
        .bind(i64::from(limit))
        .bind(now.saturating_sub(rows::micros(retention.delivered)))
        .bind(now.saturating_sub(rows::micros(retention.dead_lettered)));
    let scanned: Vec<ScannedRow> = fetch(connection, scan).await?;
    let over: Vec<_> = scanned.iter().filter(|row| row.over).map(|row| hex(EventId::from_uuid(row.id))).collect();
    if !over.is_empty() {
        let ids = array(&over)?;
        for statement in [sql::DELIVERIES_DELETE, sql::PRUNE_ATTEMPTS, sql::PRUNE_EVENTS] {
            execute(connection, sqlx::query(statement).bind(Arc::clone(&ids))).await?;
        }
    }
    Ok(Pruned { deleted: over.len() as u64, next: goes_on(&scanned, limit) })
}

pub(super) async fn erase(
    connection: &mut SqliteConnection,
    now: Micros,
    kept: Duration,
    after: Option<EventId>,
    limit: u32,
) -> Result<Erased, Failure> {
    let scan = sqlx::query_as(sql::ERASE_SCAN)
        .bind(after.map(EventId::as_uuid))
        .bind(i64::from(limit))
        .bind(now.saturating_sub(rows::micros(kept)));
    let scanned: Vec<ScannedRow> = fetch(connection, scan).await?;
    let over: Vec<_> = scanned.iter().filter(|row| row.over).map(|row| hex(EventId::from_uuid(row.id))).collect();
    if !over.is_empty() {
        execute(connection, sqlx::query(sql::ERASE_EVENTS).bind(array(&over)?).bind(now)).await?;
    }
    Ok(Erased { erased: over.len() as u64, next: goes_on(&scanned, limit) })
}

/// Where the next step of retention goes on.
fn goes_on(scanned: &[ScannedRow], limit: u32) -> Option<EventId> {
    let is_full = u32::try_from(scanned.len()).is_ok_and(|scanned| scanned >= limit);
    scanned.last().filter(|row| is_full && row.old).map(|row| EventId::from_uuid(row.id))
}

/// What a call has to write. An event that is put twice is written as it was put last.
#[derive(Default)]
struct Changes {
    rows: Vec<serde_json::Value>,
    delivered: Vec<String>,
    attempts: Vec<serde_json::Value>,
}

impl Changes {
    /// The row of `event` is now `delivery`, and due so.
    fn put(&mut self, event: EventId, delivery: Delivery, due: Due, now: Micros) {
        if delivery.status == Status::Delivered {
            self.delivered.push(hex(event));
            return;
        }
        let due_at = match due {
            Due::After(duration) => Some(now.saturating_add(rows::micros(duration))),
            Due::Never => None,
        };
        let ended_at = due_at.is_none().then_some(now);
        let reason = delivery.reason.map(|reason| reason.as_str());
        let (attempt, budget_from, fence) = (delivery.attempt, delivery.budget_from, rows::count(delivery.fence.0));
        self.rows.push(json!([hex(event), delivery.status.as_str(), attempt, budget_from, fence, due_at, ended_at, reason]));
    }

    async fn write(self, connection: &mut SqliteConnection) -> Result<(), Failure> {
        if !self.attempts.is_empty() {
            execute(connection, sqlx::query(sql::ATTEMPTS_WRITE).bind(array(&self.attempts)?)).await?;
        }
        if !self.rows.is_empty() {
            execute(connection, sqlx::query(sql::DELIVERIES_WRITE).bind(array(&self.rows)?)).await?;
        }
        if !self.delivered.is_empty() {
            execute(connection, sqlx::query(sql::DELIVERIES_DELETE).bind(array(&self.delivered)?)).await?;
        }
        Ok(())
    }
}

async fn fetch<T>(connection: &mut SqliteConnection, query: sqlx::query::QueryAs<'_, Sqlite, T, SqliteArguments>) -> Result<Vec<T>, Failure>
where
    T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
{
    Ok(query.fetch_all(connection).await?)
}

async fn execute(connection: &mut SqliteConnection, query: sqlx::query::Query<'_, Sqlite, SqliteArguments>) -> Result<(), Failure> {
    query.execute(connection).await?;
    Ok(())
}

/// A parameter that stands for many rows.
pub(super) fn array(values: &(impl serde::Serialize + ?Sized)) -> Result<Arc<str>, Failure> {
    let text = serde_json::to_string(values).map_err(|error| sqlx::Error::Encode(error.into()))?;
    Ok(text.into())
}

fn hex(event: EventId) -> String {
    event.as_uuid().simple().to_string()
}

fn hex_bytes(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).map(char::from).collect()
}

#[derive(FromRow)]
struct BytesRow {
    position: i64,
    headers: Vec<u8>,
    body: Vec<u8>,
    received_at: Micros,
}

#[derive(FromRow)]
struct ScannedRow {
    id: Uuid,
    old: bool,
    over: bool,
}

#[derive(FromRow)]
struct DeliveryRow {
    event_id: Uuid,
    status: String,
    attempt: i64,
    budget_from: i64,
    fence: i64,
    reason: Option<String>,
}

impl DeliveryRow {
    fn delivery(&self) -> Result<Delivery, Failure> {
        let attempt: Attempt = rows::attempt(self.attempt)?;
        Ok(Delivery {
            status: rows::status(&self.status)?,
            attempt,
            budget_from: rows::attempt(self.budget_from)?,
            fence: Fence(rows::fence(self.fence)?),
            reason: self.reason.as_deref().map(rows::reason).transpose()?,
        })
    }
}
