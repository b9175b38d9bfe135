//! What intake and worker call: accept, claim and settle.

use super::{ACCEPT_ROUNDS, Micros, PostgresStore, decode, errors, sql};
use crate::ports::{Clock, EventStore, NewEvent, StoreCall, StoreError};
use crate::store::rows;
use futures::FutureExt;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{FromRow, Postgres, Row};
use std::collections::{HashMap, HashSet};
use surehook_core::admission::Stored;
use surehook_core::cursor::DueTime;
use surehook_core::event::Outcome;
use surehook_core::id::{BudgetAttempt, EventId, Fence};
use surehook_core::worker::claims::{Claim, Claims, DeadLettered, Demand, HeldBack, Settlement};
use uuid::Uuid;

impl EventStore for PostgresStore {
    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        async move { if batch.is_empty() { Ok(Vec::new()) } else { self.accept_batch(&batch).await } }.boxed()
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        async move {
            if demands.is_empty() { Ok(Claims::default()) } else { self.claim_due(&demands).await }
        }
        .boxed()
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        async move { if batch.is_empty() { Ok(Vec::new()) } else { self.settle_batch(batch).await } }.boxed()
    }
}

impl PostgresStore {
    async fn accept_batch(&self, batch: &[NewEvent]) -> Result<Vec<Stored>, StoreError> {
        let mut stored: Vec<Option<Stored>> = vec![None; batch.len()];
        let mut open: Vec<usize> = (0..batch.len()).collect();
        open.sort_by(|&a, &b| {
            (&batch[a].source, &batch[a].key).cmp(&(&batch[b].source, &batch[b].key))
        });
        let mut is_part_committed = false;
        for _ in 0..ACCEPT_ROUNDS {
            let mut inserted = self
                .insert(batch, &open)
                .await
                .map_err(|error| in_doubt(error, is_part_committed))?;
            is_part_committed |= !inserted.is_empty();
            open.retain(|&index| {
                stored[index] = inserted.remove(&batch[index].id.as_uuid());
                stored[index].is_none()
            });
            if !open.is_empty() {
                let existing = self
                    .existing(batch, &open)
                    .await
                    .map_err(|error| in_doubt(error, is_part_committed))?;
                for (index, found) in existing {
                    stored[index] = Some(found);
                }
                open.retain(|&index| stored[index].is_none());
            }
            if open.is_empty() {
                return Ok(stored.into_iter().flatten().collect());
            }
        }
        Err(in_doubt(
            StoreError::Conflict(
                "events with the same idempotency keys are inserted and deleted repeatedly".into(),
            ),
            is_part_committed,
        ))
    }

    /// Inserts the chosen events whose keys are new. Returns the id of each inserted event, and
    /// whether it was claimed.
    async fn insert(
        &self,
        batch: &[NewEvent],
        chosen: &[usize],
    ) -> Result<HashMap<Uuid, Stored>, StoreError> {
        let (to_claim, leases): (Vec<Uuid>, Vec<Micros>) = chosen
            .iter()
            .filter_map(|&index| {
                Some((batch[index].id.as_uuid(), rows::micros(batch[index].lease?)))
            })
            .unzip();
        let mut tries_left = 3;
        loop {
            tries_left -= 1;
            let query = accepting(batch, chosen, &to_claim, &leases);
            match self.execute(&self.intake, query).await {
                Ok(rows) => {
                    let new: Vec<(Uuid, bool, Micros)> = decode(&rows)?;
                    return new
                        .into_iter()
                        .map(|(id, claimed, received_us)| {
                            let received_at = rows::timestamp(received_us)?;
                            let stored = if claimed {
                                Stored::Claimed { received_at }
                            } else {
                                Stored::Inserted
                            };
                            Ok((id, stored))
                        })
                        .collect();
                }
                // Either another event has this id, or an earlier try of this same event was
                // inserting it at this moment and has committed since. In the second case the next
                // try finds the key.
                Err(failure)
                    if failure.constraint.as_deref() == Some("events_pkey") && tries_left > 0 => {}
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Reads the stored events that have the keys of the chosen ones.
    async fn existing(
        &self,
        batch: &[NewEvent],
        chosen: &[usize],
    ) -> Result<Vec<(usize, Stored)>, StoreError> {
        let query = sqlx::query(sql::ACCEPT_EXISTING)
            .bind(column(batch, chosen, |event| event.source.as_str()))
            .bind(column(batch, chosen, |event| event.key.as_str()));
        let rows: Vec<rows::ExistingRow> = decode(&self.execute(&self.intake, query).await?)?;
        rows.into_iter()
            .map(|row| {
                let index = usize::try_from(row.position - 1)
                    .ok()
                    .and_then(|at| chosen.get(at))
                    .copied()
                    .ok_or_else(|| rows::unreadable("position"))?;
                Ok((index, row.stored()?))
            })
            .collect()
    }

    async fn claim_due(&self, demands: &[Demand]) -> Result<Claims, StoreError> {
        let from: Vec<Micros> = {
            let (mut cursors, now) = (self.cursors(), self.clock.now());
            demands
                .iter()
                // No event is due before 1970.
                .map(|demand| cursors.start(now, &demand.source).map_or(0, DueTime::micros))
                .collect()
        };
        let query = sqlx::query(sql::CLAIM)
            .bind(demands.iter().map(|demand| demand.source.as_str()).collect::<Vec<_>>())
            .bind(demands.iter().map(|demand| i64::from(demand.limit)).collect::<Vec<_>>())
            .bind(demands.iter().map(|demand| rows::micros(demand.lease)).collect::<Vec<_>>())
            .bind(demands.iter().map(|demand| i64::from(demand.max_attempts)).collect::<Vec<_>>())
            .bind(from)
            .bind(
                demands
                    .iter()
                    .map(|demand| i64::try_from(demand.bytes).unwrap_or(i64::MAX))
                    .collect::<Vec<_>>(),
            );
        let mut rows = Vec::new();
        self.execute_by_row(&self.worker, query, |row| rows.push(ClaimedRow::from_row(&row)))
            .await?;
        let mut claims = Claims::default();
        let (mut cursors, now) = (self.cursors(), self.clock.now());
        for demand in demands {
            cursors.returned(now, &demand.source);
        }
        for row in rows {
            let row = row.map_err(|error| errors::failed(&error).error)?;
            let demand = usize::try_from(row.position - 1)
                .ok()
                .and_then(|at| demands.get(at))
                .ok_or_else(|| rows::unreadable("position"))?;
            if let Some(size) = row.held_back {
                let size = usize::try_from(size).map_err(|_| rows::unreadable("size"))?;
                claims.held_back.push(HeldBack { source: demand.source.clone(), size });
                continue;
            }
            cursors.claimed(&demand.source, DueTime::from_micros(row.due_us));
            let (event, source) = (EventId::from_uuid(row.event_id), demand.source.clone());
            let (attempt, budget_from) =
                (rows::attempt(row.attempt)?, rows::attempt(row.budget_from)?);
            let fence = Fence(rows::fence(row.fence)?);
            if let Some(reason) = row.reason {
                let reason = rows::reason(&reason)?;
                claims.dead_lettered.push(DeadLettered { event, source, attempt, reason });
            } else if let (Some(query), Some(headers), Some(body), Some(received_us)) =
                (row.query, row.headers, row.body, row.received_us)
            {
                let age = rows::age(row.age_us.unwrap_or_default());
                claims.claimed.push(Claim {
                    event,
                    source,
                    fence,
                    attempt,
                    in_budget: BudgetAttempt(attempt.saturating_sub(budget_from)),
                    age,
                    received_at: rows::timestamp(received_us)?,
                    query: query.into(),
                    headers: headers.into(),
                    body: body.into(),
                });
            } else {
                // No delivery settles this claim. The event is claimed again after each lease,
                // until it is dead-lettered as lost.
                tracing::error!(event_id = %event, %source, attempt, "event not deliverable: its row in `events` is missing; restore it from a backup");
            }
        }
        Ok(claims)
    }

    /// Settles a batch. Returns the events whose settlement was refused.
    async fn settle_batch(&self, mut batch: Vec<Settlement>) -> Result<Vec<EventId>, StoreError> {
        // If a batch settles one claim twice, the first settlement counts and the second is
        // refused.
        batch.sort_by_key(|settlement| (settlement.event, settlement.fence));
        let mut refused = Vec::new();
        batch.dedup_by(|second, first| {
            let is_again = (second.event, second.fence) == (first.event, first.fence);
            if is_again {
                refused.push(second.event);
            }
            is_again
        });
        let (delivered, undelivered): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|settlement| settlement.outcome == Outcome::Delivered);
        let mut is_part_committed = false;
        if !delivered.is_empty() {
            let query = settling(sql::SETTLE_DELIVERED, &delivered);
            refused.extend(self.settle_once(query, &delivered).await?);
            is_part_committed = true;
        }
        if !undelivered.is_empty() {
            let outcomes = || undelivered.iter().map(|settlement| outcome(settlement.outcome));
            let query = settling(sql::SETTLE_UNDELIVERED, &undelivered)
                .bind(outcomes().map(|(name, _, _)| name).collect::<Vec<_>>())
                .bind(outcomes().map(|(_, after, _)| after).collect::<Vec<_>>())
                .bind(outcomes().map(|(_, _, reason)| reason).collect::<Vec<_>>());
            let stale = self.settle_once(query, &undelivered).await;
            refused.extend(stale.map_err(|error| in_doubt(error, is_part_committed))?);
        }
        Ok(refused)
    }

    /// Runs a statement that settles `batch`, which is in the order of events and fences. Returns the
    /// events whose settlement was refused.
    async fn settle_once(
        &self,
        query: Query<'_, Postgres, PgArguments>,
        batch: &[Settlement],
    ) -> Result<Vec<EventId>, StoreError> {
        let rows = self.execute(&self.worker, query).await?;
        // A batch can have an event under two fences. At most one of them is the row's fence.
        let mut held: HashSet<Uuid> = HashSet::with_capacity(rows.len());
        for row in &rows {
            held.insert(row.try_get(0).map_err(|error| errors::failed(&error).error)?);
        }
        let events = batch.iter().map(|settlement| settlement.event);
        Ok(events.filter(|event| !held.remove(&event.as_uuid())).collect())
    }
}

/// The statement that inserts the chosen events whose keys are new.
pub(super) fn accepting<'q>(
    batch: &'q [NewEvent],
    chosen: &[usize],
    to_claim: &'q [Uuid],
    leases: &'q [Micros],
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql::ACCEPT)
        .bind(column(batch, chosen, |event| event.id.as_uuid()))
        .bind(column(batch, chosen, |event| event.source.as_str()))
        .bind(column(batch, chosen, |event| event.key.as_str()))
        .bind(column(batch, chosen, |event| event.fingerprint.as_bytes().as_slice()))
        .bind(column(batch, chosen, |event| event.query.as_ref()))
        .bind(column(batch, chosen, |event| event.headers.as_ref()))
        .bind(column(batch, chosen, |event| event.body.as_ref()))
        .bind(to_claim)
        .bind(leases)
}

/// Makes the outcome unknown if a part of the batch was committed before the error.
fn in_doubt(error: StoreError, is_part_committed: bool) -> StoreError {
    if is_part_committed {
        StoreError::Unknown(format!("a part of the batch was committed; then {error}"))
    } else {
        error
    }
}

fn column<'a, T>(
    batch: &'a [NewEvent],
    chosen: &[usize],
    value: impl Fn(&'a NewEvent) -> T,
) -> Vec<T> {
    chosen.iter().map(|&index| value(&batch[index])).collect()
}

/// A statement with the eight parameters that both statements of a settlement have.
fn settling(
    statement: &'static str,
    batch: &[Settlement],
) -> Query<'static, Postgres, PgArguments> {
    let records: Vec<_> = batch.iter().map(Settlement::entry).collect();
    let records = || records.iter().map(Option::as_ref);
    sqlx::query(statement)
        .bind(batch.iter().map(|settlement| settlement.event.as_uuid()).collect::<Vec<_>>())
        .bind(batch.iter().map(|settlement| rows::count(settlement.fence.0)).collect::<Vec<_>>())
        .bind(records().map(|record| Some(rows::micros(record?.ended_ago))).collect::<Vec<_>>())
        .bind(records().map(|record| Some(rows::micros(record?.took))).collect::<Vec<_>>())
        .bind(records().map(|record| Some(record?.verdict.as_str())).collect::<Vec<_>>())
        .bind(records().map(|record| record?.status_code.map(i32::from)).collect::<Vec<_>>())
        .bind(records().map(|record| Some(record?.error?.as_str())).collect::<Vec<_>>())
        .bind(records().map(|record| Some(record?.excerpt.as_ref())).collect::<Vec<_>>())
}

/// An outcome as `settle_undelivered.sql` expects it: name, delay in microseconds, reason.
fn outcome(outcome: Outcome) -> (&'static str, i64, Option<&'static str>) {
    match outcome {
        Outcome::Delivered => ("delivered", 0, None),
        Outcome::Retry { after } => ("retry", rows::micros(after), None),
        Outcome::DeadLetter(reason) => ("dead_letter", 0, Some(reason.as_str())),
        Outcome::Release => ("release", 0, None),
        Outcome::CutOff => ("cut_off", 0, None),
    }
}

#[derive(FromRow)]
struct ClaimedRow {
    event_id: Uuid,
    due_us: Micros,
    position: i64,
    attempt: i64,
    budget_from: i64,
    fence: i64,
    /// Why the event was dead-lettered; `None` if it was claimed.
    reason: Option<String>,
    query: Option<Vec<u8>>,
    headers: Option<Vec<u8>>,
    body: Option<Vec<u8>>,
    age_us: Option<Micros>,
    received_us: Option<Micros>,
    /// Size in bytes of an event that was not claimed because it did not fit.
    held_back: Option<i64>,
}
