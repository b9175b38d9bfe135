//! What each writing call does inside its transactions: it reads rows, calls `core`, and writes the
//! result. The transitions are those of [`surehook_core::event::DeliveryState`], so this store cannot
//! deviate from them.

use super::transaction::{self, Broken};
use super::{Failure, Now, searched, sql};
use crate::ports::{Discarded, Erased, NewEvent, Pruned, Redriven, Retention, StoreError};
use crate::search::{ChangedPage, EventFilter, PageSize, Path, Span};
use crate::store::rows;
use futures::FutureExt;
use jiff::Timestamp;
use serde_json::json;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, FromRow, Row, Sqlite};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use surehook_core::admission::Stored;
use surehook_core::due::Bound;
use surehook_core::event::{
    self, Action, DeliveryState, DiscardScope, Due, Illegal, RedrivenBy, Status,
};
use surehook_core::id::{Attempt, EventId, Fence};
use surehook_core::retention::Reached;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{Claim, Claims, DeadLettered, Demand, HeldBack, Settlement};
use uuid::Uuid;

/// A time in microseconds since 1970.
type Micros = i64;

/// Inserts the events with new keys as one script. If keys exist already, their events are then
/// handled in a second transaction.
pub(super) async fn accept(
    writer: &mut SqliteConnection,
    batch: Vec<NewEvent>,
) -> Result<Vec<Stored>, Broken> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let inserted = insert_new(writer, &batch).await?;
    let others: Vec<NewEvent> =
        batch.iter().filter(|event| !inserted.contains_key(&event.id)).cloned().collect();
    let mut seen_to = if others.is_empty() {
        Vec::new().into_iter()
    } else {
        let stored = transaction::whole(writer, move |connection, now| {
            accept_others(connection, now, others).boxed()
        })
        .await;
        stored
            .map_err(|broken| if inserted.is_empty() { broken } else { in_doubt(broken) })?
            .into_iter()
    };
    Ok(batch
        .iter()
        .filter_map(|event| inserted.get(&event.id).copied().or_else(|| seen_to.next()))
        .collect())
}

/// Makes the outcome unknown, because a part of the batch is committed.
fn in_doubt(Broken { error, has_ended }: Broken) -> Broken {
    Broken {
        error: StoreError::Unknown(format!("a part of the batch was committed; then {error}")),
        has_ended,
    }
}

/// Inserts the events whose keys are new. Returns the id of each inserted event, and whether it was
/// claimed.
async fn insert_new(
    writer: &mut SqliteConnection,
    batch: &[NewEvent],
) -> Result<HashMap<EventId, Stored>, Broken> {
    let now = Now::read();
    let received_at = rows::timestamp(now.wall).map_err(|error| untouched(error.into()))?;
    let arguments = new_rows(batch.iter(), now).map_err(untouched)?;
    let done = match transaction::commit(writer, sql::ACCEPT_NEW, arguments).await {
        Ok(done) => done,
        // The id exists: another event has it, or this same event from an earlier try. Nothing is
        // stored.
        Err(Broken { error: StoreError::Rejected(_), has_ended: true }) => {
            return Ok(HashMap::new());
        }
        Err(broken) => return Err(broken),
    };
    // The first statement is BEGIN.
    let inserted =
        done.statements.get(1).ok_or_else(|| untouched(rows::unreadable("result").into()))?;
    let (count, last) = (inserted.rows_affected(), inserted.last_insert_rowid());
    let paused = done
        .rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()
        .map_err(|error| in_doubt(untouched(error.into())))?;
    let all = batch.iter().map(|event| (event.id, new(event, &paused, received_at)));
    if count == batch.len() as u64 {
        return Ok(all.collect());
    }
    if count == 0 {
        return Ok(HashMap::new());
    }
    let ids = sqlx::query_scalar(sql::ACCEPT_INSERTED)
        .bind(last.saturating_sub_unsigned(count))
        .bind(last)
        .fetch_all(writer)
        .await;
    let ids: Vec<Uuid> = ids.map_err(|error| in_doubt(untouched(error.into())))?;
    let ids: HashSet<EventId> = ids.into_iter().map(EventId::from_uuid).collect();
    Ok(all.filter(|(id, _)| ids.contains(id)).collect())
}

/// Inserts an event and deletes it, in one transaction.
pub(super) async fn probe(writer: &mut SqliteConnection, event: NewEvent) -> Result<(), Broken> {
    let arguments = new_rows([&event].into_iter(), Now::read()).map_err(untouched)?;
    transaction::commit(writer, sql::PROBE, arguments).await.map(drop)
}

/// The result for a new event that was stored at `received_at`, given the paused sources.
fn new(event: &NewEvent, paused: &HashSet<String>, received_at: Timestamp) -> Stored {
    if event.lease.is_some() && !paused.contains(event.source.as_str()) {
        Stored::Claimed { received_at }
    } else {
        Stored::Inserted
    }
}

/// Handles events whose keys may exist: reads the existing ones, and inserts the others.
async fn accept_others(
    connection: &mut SqliteConnection,
    now: Now,
    batch: Vec<NewEvent>,
) -> Result<Vec<Stored>, Failure> {
    let keys: Vec<_> =
        batch.iter().map(|event| (event.source.as_str(), event.key.as_str())).collect();
    let mut stored: Vec<Option<Stored>> = vec![None; batch.len()];
    let existing: Vec<rows::ExistingRow> =
        fetch(connection, sqlx::query_as(sql::ACCEPT_EXISTING).bind(array(&keys)?)).await?;
    if !existing.is_empty() {
        execute(connection, sqlx::query(sql::FLUSH)).await?;
    }
    for row in existing {
        let found = row.stored()?;
        let slot = usize::try_from(row.position)
            .ok()
            .and_then(|at| stored.get_mut(at))
            .ok_or_else(|| rows::unreadable("position"))?;
        *slot = Some(found);
    }
    let paused = fetch::<(String,)>(connection, sqlx::query_as(sql::PAUSED))
        .await?
        .into_iter()
        .map(|(source,)| source)
        .collect();
    let received_at = rows::timestamp(now.wall)?;
    // If two events have the same key, the first is new, and the second finds it stored.
    let mut firsts: HashMap<(&str, &str), &NewEvent> = HashMap::new();
    let mut missing = Vec::new();
    for ((event, key), slot) in
        batch.iter().zip(&keys).zip(&mut stored).filter(|(_, slot)| slot.is_none())
    {
        let first = *firsts.entry(*key).or_insert(event);
        if !std::ptr::eq(first, event) {
            let status = if new(first, &paused, received_at).is_claimed() {
                Status::Processing
            } else {
                Status::Queued
            };
            *slot = Some(Stored::Existing { id: first.id, fingerprint: first.fingerprint, status });
            continue;
        }
        missing.push(event);
        *slot = Some(new(event, &paused, received_at));
    }
    if !missing.is_empty() {
        let arguments = new_rows(missing.into_iter(), now)?;
        execute(connection, sqlx::query_with(sql::ACCEPT_EVENTS, arguments.clone())).await?;
        execute(connection, sqlx::query_with(sql::ACCEPT_DELIVERIES, arguments)).await?;
    }
    Ok(stored.into_iter().flatten().collect())
}

/// The parameters of the statements that insert new events.
fn new_rows<'a>(
    events: impl Iterator<Item = &'a NewEvent>,
    now: Now,
) -> Result<SqliteArguments, Failure> {
    let (mut rows, mut bytes) = (Vec::new(), Vec::new());
    for event in events {
        let (headers, body) = (event.headers.len(), event.body.len());
        let lease = event.lease.map(rows::micros);
        rows.push((
            hex(event.id),
            event.source.as_str(),
            event.key.as_str(),
            bytes.len(),
            headers,
            body,
            lease,
            event.query.len(),
        ));
        bytes.extend_from_slice(event.fingerprint.as_bytes());
        bytes.extend_from_slice(&event.headers);
        bytes.extend_from_slice(&event.body);
        bytes.extend_from_slice(&event.query);
    }
    let mut arguments = SqliteArguments::default();
    arguments.add(array(&rows)?).map_err(sqlx::Error::Encode)?;
    arguments.add(bytes).map_err(sqlx::Error::Encode)?;
    arguments.add(now.wall).map_err(sqlx::Error::Encode)?;
    arguments.add(now.due).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

pub(super) async fn claim(
    writer: &mut SqliteConnection,
    demands: Vec<Demand>,
) -> Result<Claims, Broken> {
    let now = Now::read();
    let (mut claims, mut changes) = (Claims::default(), Changes::default());
    for (nth, demand) in demands.iter().enumerate() {
        let parameters = due_of(demand, now.due).map_err(untouched)?;
        let due = if nth == 0 {
            transaction::begin(writer, sql::CLAIM_BEGIN, parameters).await?.rows
        } else {
            match sqlx::query_with(sql::CLAIM_DUE, parameters).fetch_all(&mut *writer).await {
                Ok(due) => due,
                Err(error) => {
                    return Err(transaction::rolled_back(
                        writer,
                        Failure::from(error).before_commit(),
                    )
                    .await);
                }
            }
        };
        if let Err(failure) = take(demand, &due, now, &mut claims, &mut changes) {
            return Err(transaction::rolled_back(writer, failure.before_commit()).await);
        }
    }
    if demands.is_empty() {
        return Ok(claims);
    }
    let ids: Vec<_> = claims.claimed.iter().map(|claim| hex(claim.event)).collect();
    let arguments = match changes.parameters(&ids) {
        Ok(arguments) => arguments,
        Err(failure) => return Err(transaction::rolled_back(writer, failure.before_commit()).await),
    };
    let found = transaction::commit(writer, sql::CLAIM_END, arguments).await?.rows;
    claims.claimed = with_bytes(found, now.wall, claims.claimed).map_err(untouched)?;
    Ok(claims)
}

fn due_of(demand: &Demand, now: Micros) -> Result<SqliteArguments, Failure> {
    let mut arguments = SqliteArguments::default();
    arguments.add(demand.source.as_str().to_owned()).map_err(sqlx::Error::Encode)?;
    arguments.add(now).map_err(sqlx::Error::Encode)?;
    arguments.add(i64::from(demand.limit)).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

/// Applies a claim to the due rows of one source.
fn take(
    demand: &Demand,
    due: &[SqliteRow],
    now: Now,
    claims: &mut Claims,
    changes: &mut Changes,
) -> Result<(), Failure> {
    let mut left = demand.bytes;
    for row in due {
        let size = row
            .try_get::<Option<i64>, _>("size")?
            .map_or(Ok(0), usize::try_from)
            .map_err(|_| rows::unreadable("size"))?;
        let row = DeliveryRow::from_row(row)?;
        let event = EventId::from_uuid(row.event_id);
        let claimed = row
            .delivery()?
            .claim(demand.lease, demand.max_attempts)
            .map_err(|_| rows::unreadable("due time"))?;
        let delivery = claimed.delivery;
        let size = if delivery.status == Status::DeadLettered { 0 } else { size };
        if size > left {
            claims.held_back.push(HeldBack { source: demand.source.clone(), size });
            break;
        }
        left -= size;
        if let Some(lost) = claimed.lost {
            changes.lost(event, lost, now);
        }
        changes.put(event, delivery, claimed.due, now);
        let (source, attempt) = (demand.source.clone(), delivery.attempt);
        if let Some(reason) = delivery.reason {
            claims.dead_lettered.push(DeadLettered { event, source, attempt, reason });
        } else {
            let (fence, in_budget) = (delivery.fence, delivery.in_budget());
            let (query, headers, body) = Default::default();
            claims.claimed.push(Claim {
                event,
                source,
                fence,
                attempt,
                in_budget,
                age: Duration::ZERO,
                received_at: Timestamp::UNIX_EPOCH,
                query,
                headers,
                body,
            });
        }
    }
    Ok(())
}

/// Adds queries, headers, bodies, ages and times of receipt to the claims. Each row is dropped after its bytes are copied, so
/// that they are not all held twice.
fn with_bytes(
    found: Vec<SqliteRow>,
    now: Micros,
    claimed: Vec<Claim>,
) -> Result<Vec<Claim>, Failure> {
    let mut claimed: Vec<Option<Claim>> = claimed.into_iter().map(Some).collect();
    let mut filled = Vec::with_capacity(claimed.len());
    let mut found =
        found.into_iter().map(|row| BytesRow::from_row(&row)).collect::<Result<Vec<_>, _>>()?;
    found.sort_by_key(|row| row.position);
    for row in found {
        let claim = usize::try_from(row.position)
            .ok()
            .and_then(|at| claimed.get_mut(at))
            .and_then(Option::take);
        let claim = claim.ok_or_else(|| rows::unreadable("position"))?;
        let age = rows::age(now.saturating_sub(row.received_at));
        filled.push(Claim {
            age,
            received_at: rows::timestamp(row.received_at)?,
            query: row.query.into(),
            headers: row.headers.into(),
            body: row.body.into(),
            ..claim
        });
    }
    for claim in claimed.into_iter().flatten() {
        // No delivery settles this claim. The event is claimed again after each lease, until it is
        // dead-lettered as lost.
        tracing::error!(event_id = %claim.event, source = %claim.source, attempt = claim.attempt, "event not deliverable: its row in `events` is missing; restore it from a backup");
    }
    Ok(filled)
}

pub(super) async fn settle(
    writer: &mut SqliteConnection,
    batch: Vec<Settlement>,
) -> Result<Vec<EventId>, Broken> {
    let ids: Vec<_> = batch.iter().map(|settlement| hex(settlement.event)).collect();
    let mut parameters = SqliteArguments::default();
    array(&ids)
        .and_then(|ids| Ok(parameters.add(ids).map_err(sqlx::Error::Encode)?))
        .map_err(untouched)?;
    let first = (sql::SETTLE_BEGIN, parameters);
    transaction::decided(writer, first, sql::SETTLE_END, |read| {
        let (refused, changes) = settled(&batch, read, Now::read())?;
        Ok((refused, changes.parameters(&[])?))
    })
    .await
}

/// Applies a batch of settlements to their rows. Returns the refused events, and the changes to
/// write.
fn settled(
    batch: &[Settlement],
    read: &[SqliteRow],
    now: Now,
) -> Result<(Vec<EventId>, Changes), Failure> {
    let mut deliveries = HashMap::with_capacity(read.len());
    for row in read {
        let row = DeliveryRow::from_row(row)?;
        deliveries.insert(EventId::from_uuid(row.event_id), row.delivery()?);
    }
    let (mut refused, mut changes) = (Vec::new(), Changes::default());
    for settlement in batch {
        let event = settlement.event;
        let before = deliveries.get(&event).copied();
        let settled = before.ok_or(Illegal::Stale).and_then(|row| {
            row.settle(settlement.fence, settlement.outcome).map(|after| (row, after))
        });
        let Ok((before, (delivery, due))) = settled else {
            refused.push(event);
            continue;
        };
        if let Some(record) = settlement.entry() {
            changes.attempts.push(json!([
                hex(event),
                before.attempt,
                now.wall.saturating_sub(rows::micros(record.ended_ago)),
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
    Ok((refused, changes))
}

/// For an error outside of a transaction.
fn untouched(failure: Failure) -> Broken {
    Broken { error: failure.before_commit(), has_ended: true }
}

pub(super) async fn redrive(
    connection: &mut SqliteConnection,
    now: Now,
    event: EventId,
    by: RedrivenBy,
) -> Result<Redriven, Failure> {
    let read: Vec<DeliveryRow> =
        fetch(connection, sqlx::query_as(sql::DELIVERIES_READ).bind(array(&[hex(event)])?)).await?;
    let Some(row) = read.first() else {
        return Ok(standing(connection, event)
            .await?
            .map_or(Redriven::NotFound, |(status, _)| Redriven::WrongStatus(status)));
    };
    let before = row.delivery()?;
    let Ok((delivery, due)) = before.redrive() else {
        return Ok(Redriven::WrongStatus(before.status));
    };
    let mut changes = Changes::default();
    changes.put(event, delivery, due, now);
    changes.act(event, by.action(), delivery, now);
    changes.write(connection).await?;
    Ok(Redriven::Queued)
}

pub(super) async fn redrive_delivered(
    connection: &mut SqliteConnection,
    now: Now,
    event: EventId,
) -> Result<Redriven, Failure> {
    match standing(connection, event).await? {
        None => return Ok(Redriven::NotFound),
        Some((Status::Delivered, false)) => {}
        Some((Status::Delivered, true)) => return Ok(Redriven::Erased),
        Some((other, _)) => return Ok(Redriven::WrongStatus(other)),
    }
    let last: Vec<(Option<i64>,)> =
        fetch(connection, sqlx::query_as(sql::LAST_ATTEMPT).bind(event.as_uuid())).await?;
    let last = last.first().and_then(|(attempt,)| *attempt).map_or(Ok(0), rows::attempt)?;
    let (delivery, _) = DeliveryState::redelivered(last);
    let (attempt, fence) = (i64::from(delivery.attempt), rows::count(delivery.fence.0));
    let insert = sqlx::query(sql::REDRIVE_DELIVERED)
        .bind(event.as_uuid())
        .bind(now.due)
        .bind(attempt)
        .bind(fence);
    execute(connection, insert).await?;
    let mut changes = Changes::default();
    changes.act(event, Action::Redriven, delivery, now);
    changes.write(connection).await?;
    Ok(Redriven::Queued)
}

/// The status of an event, and whether its payload was erased. `None` if there is no such event.
async fn standing(
    connection: &mut SqliteConnection,
    event: EventId,
) -> Result<Option<(Status, bool)>, Failure> {
    let found: Vec<(String, bool)> =
        fetch(connection, sqlx::query_as(sql::STATUS).bind(event.as_uuid())).await?;
    Ok(found
        .first()
        .map(|(name, erased)| Ok::<_, StoreError>((rows::status(name)?, *erased)))
        .transpose()?)
}

pub(super) async fn redrive_all(
    connection: &mut SqliteConnection,
    now: Now,
    filter: EventFilter,
    span: Span,
    size: PageSize,
    dry_run: bool,
) -> Result<ChangedPage, Failure> {
    let query = searched(sql::LETTERS, filter.path(), &filter, span, size);
    let rows = query.fetch_all(&mut *connection).await?;
    let first = rows.first().ok_or_else(|| rows::unreadable("result"))?;
    let looked = (
        first.try_get("looked")?,
        first.try_get::<Option<Uuid>, _>("last")?.map(EventId::from_uuid),
    );
    let (mut changes, mut sources, mut last) = (Changes::default(), Vec::new(), None);
    for row in &rows {
        if row.try_get::<Option<Uuid>, _>("event_id")?.is_some() {
            let letter = DeliveryRow::from_row(row)?;
            let event = EventId::from_uuid(letter.event_id);
            let (delivery, due) =
                letter.delivery()?.redrive().map_err(|_| rows::unreadable("status"))?;
            changes.put(event, delivery, due, now);
            changes.act(event, Action::Redriven, delivery, now);
            sources.push(row.try_get("source")?);
            last = Some(event);
        }
    }
    if !dry_run {
        changes.write(connection).await?;
    }
    let next = rows::next(size, (sources.len(), last), looked);
    Ok(ChangedPage::new(sources, next))
}

pub(super) async fn discard(
    connection: &mut SqliteConnection,
    now: Now,
    event: EventId,
    scope: DiscardScope,
) -> Result<Discarded, Failure> {
    let read = sqlx::query(sql::DISCARD_READ).bind(event.as_uuid()).bind(now.due);
    let Some(row) = read.fetch_optional(&mut *connection).await? else {
        return Ok(standing(connection, event)
            .await?
            .map_or(Discarded::NotFound, |(status, _)| Discarded::WrongStatus(status)));
    };
    let before = DeliveryRow::from_row(&row)?.delivery()?;
    let discarded = match before.discard(scope, row.try_get("is_due")?) {
        Ok(discarded) => discarded,
        Err(Illegal::AlreadyDiscarded) => return Ok(Discarded::Before),
        Err(Illegal::Ended | Illegal::Stale | Illegal::NotDeadLettered | Illegal::Unended) => {
            return Ok(Discarded::WrongStatus(before.status));
        }
    };
    let mut changes = Changes::default();
    changes.discard(event, discarded, now);
    changes.write(connection).await?;
    Ok(Discarded::Now)
}

/// Discards the events that match. The filter has a status if waiting events are not in the scope.
pub(super) async fn discard_all(
    connection: &mut SqliteConnection,
    now: Now,
    path: Path,
    filter: EventFilter,
    span: Span,
    size: PageSize,
    dry_run: bool,
) -> Result<ChangedPage, Failure> {
    let scope = DiscardScope::of_source(filter.status.is_some());
    let query = searched(sql::DISCARD_SCAN, path, &filter, span, size).bind(now.due);
    let rows = query.fetch_all(&mut *connection).await?;
    let first = rows.first().ok_or_else(|| rows::unreadable("result"))?;
    let looked = (
        first.try_get("looked")?,
        first.try_get::<Option<Uuid>, _>("last")?.map(EventId::from_uuid),
    );
    let (mut changes, mut sources, mut last) = (Changes::default(), Vec::new(), None);
    for row in &rows {
        if row.try_get::<Option<Uuid>, _>("event_id")?.is_some() {
            let read = DeliveryRow::from_row(row)?;
            let event = EventId::from_uuid(read.event_id);
            let discarded = read
                .delivery()?
                .discard(scope, row.try_get("is_due")?)
                .map_err(|_| rows::unreadable("status"))?;
            changes.discard(event, discarded, now);
            sources.push(row.try_get("source")?);
            last = Some(event);
        }
    }
    if !dry_run {
        changes.write(connection).await?;
    }
    let next = rows::next(size, (sources.len(), last), looked);
    Ok(ChangedPage::new(sources, next))
}

pub(super) async fn prune(
    writer: &mut SqliteConnection,
    retention: Retention,
    after: Option<EventId>,
    limit: u32,
) -> Result<Pruned, Broken> {
    let now = Now::read().wall;
    let expired = |kept| now.saturating_sub(rows::micros(kept));
    let parameters = prune_parameters(
        after,
        limit,
        [expired(retention.delivered), expired(retention.dead_lettered)],
    )
    .map_err(untouched)?;
    let first = (sql::PRUNE_BEGIN, parameters);
    transaction::decided(writer, first, sql::PRUNE_END, |read| {
        let scanned = read.iter().map(ScannedRow::from_row).collect::<Result<Vec<_>, _>>()?;
        let over: Vec<_> = scanned.iter().filter(|row| row.over).collect();
        let owed: Vec<_> = over.iter().copied().filter(|row| row.owed).collect();
        let discarded = owed.iter().filter(|row| row.discarded).count();
        let mut parameters = SqliteArguments::default();
        for rows in [&owed, &over] {
            parameters.add(ids(rows)?).map_err(sqlx::Error::Encode)?;
        }
        let pruned = Pruned {
            deleted: over.len() as u64,
            dead_lettered: (owed.len() - discarded) as u64,
            discarded: discarded as u64,
            reached: reached(&scanned, limit, now, retention.delivered),
        };
        Ok((pruned, parameters))
    })
    .await
}

fn prune_parameters(
    after: Option<EventId>,
    limit: u32,
    expired: [Micros; 2],
) -> Result<SqliteArguments, Failure> {
    let mut arguments = SqliteArguments::default();
    arguments.add(after.map(EventId::as_uuid)).map_err(sqlx::Error::Encode)?;
    arguments.add(i64::from(limit)).map_err(sqlx::Error::Encode)?;
    for time in expired {
        arguments.add(time).map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

pub(super) async fn erase(
    connection: &mut SqliteConnection,
    now: Now,
    kept: Duration,
    after: Option<EventId>,
    limit: u32,
) -> Result<Erased, Failure> {
    let scan = sqlx::query_as(sql::ERASE_SCAN)
        .bind(after.map(EventId::as_uuid))
        .bind(i64::from(limit))
        .bind(now.wall.saturating_sub(rows::micros(kept)));
    let scanned: Vec<ScannedRow> = fetch(connection, scan).await?;
    let over: Vec<_> = scanned.iter().filter(|row| row.over).collect();
    if !over.is_empty() {
        execute(connection, sqlx::query(sql::ERASE_EVENTS).bind(ids(&over)?).bind(now.wall))
            .await?;
    }
    Ok(Erased { erased: over.len() as u64, reached: reached(&scanned, limit, now.wall, kept) })
}

pub(super) async fn cap_due_times(
    connection: &mut SqliteConnection,
    now: Now,
    bounds: Vec<Bound>,
    limit: u32,
) -> Result<u64, Failure> {
    let later = |duration| now.due.saturating_add(rows::micros(duration));
    let bounds: Vec<_> = bounds
        .iter()
        .map(|bound| json!([bound.source.as_str(), later(bound.horizon), later(bound.lease)]))
        .collect();
    let query = sqlx::query(sql::CAP_DUE_TIMES).bind(array(&bounds)?).bind(i64::from(limit));
    Ok(query.execute(connection).await?.rows_affected())
}

/// The ids of rows, as one parameter.
fn ids(rows: &[&ScannedRow]) -> Result<Arc<str>, Failure> {
    array(&rows.iter().map(|row| hex(EventId::from_uuid(row.id))).collect::<Vec<_>>())
}

/// Where a step of retention ended that changes no delivered event received within the last `kept`.
fn reached(scanned: &[ScannedRow], limit: u32, now: Micros, kept: Duration) -> Reached {
    let kept_since = now.saturating_sub(rows::micros(kept)).div_euclid(1000);
    Reached::new(
        scanned.last().map(|row| EventId::from_uuid(row.id)),
        scanned.len(),
        limit,
        kept_since,
    )
}

/// What a call has to write. If an event is put twice, the last version is written.
#[derive(Default)]
struct Changes {
    rows: Vec<serde_json::Value>,
    delivered: Vec<String>,
    attempts: Vec<serde_json::Value>,
    discarded: Vec<serde_json::Value>,
    actions: Vec<serde_json::Value>,
}

impl Changes {
    /// Sets the row of `event` to `delivery`, with the due time `due`.
    fn put(&mut self, event: EventId, delivery: DeliveryState, due: Due, now: Now) {
        if delivery.status == Status::Delivered {
            self.delivered.push(hex(event));
            return;
        }
        let due_at = match due {
            Due::After(duration) => Some(now.due.saturating_add(rows::micros(duration))),
            Due::Never => None,
        };
        let ended_at = due_at.is_none().then_some(now.wall);
        let reason = delivery.reason.map(|reason| reason.as_str());
        let (attempt, budget_from, fence) =
            (delivery.attempt, delivery.budget_from, rows::count(delivery.fence.0));
        self.rows.push(json!([
            hex(event),
            delivery.status.as_str(),
            attempt,
            budget_from,
            fence,
            due_at,
            ended_at,
            reason
        ]));
    }

    /// Records an attempt that was lost.
    fn lost(&mut self, event: EventId, attempt: Attempt, now: Now) {
        let verdict = Verdict::Lost.as_str();
        self.attempts.push(json!([hex(event), attempt, now.wall, null, verdict, null, null, ""]));
    }

    /// Discards an event.
    fn discard(&mut self, event: EventId, discarded: event::Discarded, now: Now) {
        if let Some(lost) = discarded.lost {
            self.lost(event, lost, now);
        }
        let ended_at = discarded.ends_now.then_some(now.wall);
        self.discarded.push(json!([hex(event), rows::count(discarded.delivery.fence.0), ended_at]));
        self.act(event, Action::Discarded, discarded.delivery, now);
    }

    /// Records an action that made `delivery` the row of `event`.
    fn act(&mut self, event: EventId, action: Action, delivery: DeliveryState, now: Now) {
        let (fence, attempt) = (rows::count(delivery.fence.0), delivery.attempt);
        self.actions.push(json!([hex(event), fence, now.wall, attempt, action.as_str()]));
    }

    async fn write(self, connection: &mut SqliteConnection) -> Result<(), Failure> {
        let query = sqlx::query_with(sql::TRANSITIONS, self.parameters(&[])?);
        execute(connection, query).await?;
        if !self.discarded.is_empty() {
            let discarded = array(&self.discarded)?;
            execute(connection, sqlx::query(sql::DISCARD_WRITE).bind(discarded)).await?;
        }
        if !self.actions.is_empty() {
            let actions = array(&self.actions)?;
            execute(connection, sqlx::query(sql::ACTIONS_WRITE).bind(actions)).await?;
        }
        Ok(())
    }

    /// The parameters of the scripts that write these changes. `claimed` are the events whose
    /// queries, headers and bodies are read.
    fn parameters(&self, claimed: &[String]) -> Result<SqliteArguments, Failure> {
        let mut arguments = SqliteArguments::default();
        for list in
            [array(&self.delivered)?, array(&self.attempts)?, array(&self.rows)?, array(claimed)?]
        {
            arguments.add(list).map_err(sqlx::Error::Encode)?;
        }
        Ok(arguments)
    }
}

async fn fetch<T>(
    connection: &mut SqliteConnection,
    query: sqlx::query::QueryAs<'_, Sqlite, T, SqliteArguments>,
) -> Result<Vec<T>, Failure>
where
    T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
{
    Ok(query.fetch_all(connection).await?)
}

async fn execute(
    connection: &mut SqliteConnection,
    query: sqlx::query::Query<'_, Sqlite, SqliteArguments>,
) -> Result<(), Failure> {
    query.execute(connection).await?;
    Ok(())
}

/// Encodes many rows as one parameter, a JSON array.
pub(super) fn array(values: &(impl serde::Serialize + ?Sized)) -> Result<Arc<str>, Failure> {
    let text = serde_json::to_string(values).map_err(|error| sqlx::Error::Encode(error.into()))?;
    Ok(text.into())
}

fn hex(event: EventId) -> String {
    event.as_uuid().simple().to_string()
}

fn hex_bytes(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

#[derive(FromRow)]
struct BytesRow {
    position: i64,
    query: Vec<u8>,
    headers: Vec<u8>,
    body: Vec<u8>,
    received_at: Micros,
}

#[derive(FromRow)]
struct ScannedRow {
    id: Uuid,
    over: bool,
    /// Whether the event is not delivered. Erasing does not ask.
    #[sqlx(default)]
    owed: bool,
    #[sqlx(default)]
    discarded: bool,
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
    fn delivery(&self) -> Result<DeliveryState, Failure> {
        let attempt: Attempt = rows::attempt(self.attempt)?;
        Ok(DeliveryState {
            status: rows::status(&self.status)?,
            attempt,
            budget_from: rows::attempt(self.budget_from)?,
            fence: Fence(rows::fence(self.fence)?),
            reason: self.reason.as_deref().map(rows::reason).transpose()?,
        })
    }
}
