//! The store on PostgreSQL, for any number of processes.
//!
//! Each call is one statement that commits by itself. So a dropped call leaves no transaction open:
//! the server commits the statement or rolls it back. `accept` and the redrive of one event may
//! need more statements, to read the rows that the first one did not change. A probe is one
//! transaction of several statements. Through a pooler, each call is such a transaction: see
//! `pooler.rs`.
//!
//! The SQL files say which locks each statement takes, and why they cannot deadlock.

mod connect;
mod errors;
mod give_way;
mod lanes;
mod migrate;
mod notices;
mod parameters;
mod pooler;
mod probe;
mod servers;
mod session;
pub mod sql;
mod tls;

pub use connect::{Plans, options};
pub use servers::{Servers, shown};

use crate::clock::TokioClock;
use crate::ports::{
    Clock, Connections, Discarded, Erased, EventStore, FoundBody, MaintenanceStore, NewEvent,
    OperatorStore, Pruned, Redriven, Retention, SnapshotHolder, StoreCall, StoreError,
};
use crate::search::{
    DiscardedPage, EventFilter, EventPage, EventRecord, FailureSummary, PageSize, Path,
    RedrivenPage, RequestRecord, SourceRecord, Span, SummaryFilter, SummarySize, dead_letter_looks,
};
use crate::store::OpenError;
use crate::store::pool::Pool;
use crate::store::rows::{self, BodyRow, FoundRow, GroupRow, RequestRow, SourceRow};
use crate::store::schema::{self, Applied, MigrateError};
use errors::Failure;
use futures::future::poll_fn;
use futures::{FutureExt, StreamExt};
use lanes::Lanes;
use servers::Sessions;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Either, Executor, FromRow, Postgres, Row};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::admission::Stored;
use surehook_core::cursor::{CursorSettings, Cursors, DueTime};
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, Outcome, RedrivenBy, Status};
use surehook_core::id::{BudgetAttempt, EventId, Fence};
use surehook_core::retention::Reached;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claim, Claims, DeadLettered, Demand, HeldBack, Settlement};
use tokio::sync::Notify;
use tokio::time::timeout;
use uuid::Uuid;

/// Connections of each pool. Separate pools keep one kind of work from using up the connections of
/// another. A separate connection queries the sessions of abandoned calls, so a process has at most
/// 14.
const INTAKE_CONNECTIONS: usize = 5;
const WORKER_CONNECTIONS: usize = 4;
const OPERATOR_CONNECTIONS: usize = 2;
const RETENTION_CONNECTIONS: usize = 1;
const READINESS_CONNECTIONS: usize = 1;

/// How long a call waits for the server's reply. This is longer than the session's statement
/// timeout, so it ends only calls whose connection is lost or whose commit hangs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(8);

/// How many rounds `accept` tries if a key existed at the insert and was deleted before the read. A
/// redrive of one event has the same limit.
const ACCEPT_ROUNDS: usize = 5;

/// Microseconds since 1970, or a number of microseconds, as the database stores them.
type Micros = i64;

pub struct PostgresStore {
    servers: Arc<Servers>,
    intake: Arc<Pool<Sessions>>,
    worker: Arc<Pool<Sessions>>,
    operator: Arc<Pool<Sessions>>,
    retention: Arc<Pool<Sessions>>,
    readiness: Arc<Pool<Sessions>>,
    /// Where the claims of each source start, and the clock that they are counted with.
    cursors: Mutex<Cursors>,
    clock: TokioClock,
    /// Notified when a call finds that a table is missing.
    lost_schema: Notify,
}

impl PostgresStore {
    /// A store on the database that the URL names. It connects at first use.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the URL cannot be parsed.
    pub fn new(url: &str) -> Result<Self, OpenError> {
        Self::with_cursors(url, CursorSettings::default())
    }

    /// As [`Self::new`], with other rules for where claims start. A test that moves rows back by hand
    /// needs claims that start at the front.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn with_cursors(url: &str, cursors: CursorSettings) -> Result<Self, OpenError> {
        let servers = Arc::new(Servers::parse(url)?);
        servers.log_ignored();
        let lanes = Arc::new(Lanes::default());
        let pool = |limit, plans| Pool::new(Sessions::new(&servers, plans, &lanes), limit);
        let store = Self {
            intake: pool(INTAKE_CONNECTIONS, Plans::Generic),
            worker: pool(WORKER_CONNECTIONS, Plans::Generic),
            operator: pool(OPERATOR_CONNECTIONS, Plans::Custom),
            retention: pool(RETENTION_CONNECTIONS, Plans::Custom),
            readiness: pool(READINESS_CONNECTIONS, Plans::Custom),
            cursors: Mutex::new(Cursors::new(cursors)),
            clock: TokioClock::new(),
            lost_schema: Notify::new(),
            servers: Arc::clone(&servers),
        };
        lanes.set(store.pools().map(|(_, pool)| pool));
        Ok(store)
    }

    fn cursors(&self) -> MutexGuard<'_, Cursors> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Migrates the database to this program's schema. See [`crate::store::OpenStore::migrate`].
    ///
    /// # Errors
    ///
    /// [`MigrateError`].
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        migrate::migrate(&self.servers).await
    }

    /// Completes when a call has found that a table is missing.
    pub async fn lost_schema(&self) {
        self.lost_schema.notified().await;
    }

    /// Each pool with its name in metrics.
    fn pools(&self) -> [(&'static str, &Arc<Pool<Sessions>>); 5] {
        [
            ("intake", &self.intake),
            ("worker", &self.worker),
            ("operator", &self.operator),
            ("retention", &self.retention),
            ("readiness", &self.readiness),
        ]
    }

    /// Executes one statement to its end. Its transaction ends with it.
    async fn execute(
        &self,
        pool: &Arc<Pool<Sessions>>,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Failure> {
        let mut rows = Vec::new();
        self.execute_by_row(pool, query, |row| rows.push(row)).await?;
        Ok(rows)
    }

    /// Like [`Self::execute`], but passes on each row as it arrives, so that its bytes are not held
    /// twice.
    async fn execute_by_row(
        &self,
        pool: &Arc<Pool<Sessions>>,
        query: Query<'_, Postgres, PgArguments>,
        mut each: impl FnMut(PgRow) + Send,
    ) -> Result<(), Failure> {
        let mut connection = pool.take().await.map_err(|error| errors::not_taken(&error))?;
        let failure = match timeout(REPLY_TIMEOUT, connection.run(query, &mut each)).await {
            Ok(Ok(_)) if connection.is_outdated() => errors::outdated(),
            Ok(Ok(true)) => errors::warned_at_commit(),
            Ok(Ok(false)) => {
                connection.keep();
                return Ok(());
            }
            Ok(Err(failure)) => failure,
            Err(_) => errors::no_reply(REPLY_TIMEOUT),
        };
        if failure.is_table_missing {
            self.lost_schema.notify_one();
        }
        if failure.usable {
            connection.keep();
        } else {
            self.server_is_lost();
        }
        Err(failure)
    }

    /// The server or the network broke a connection, or the server accepts no writes any more. The
    /// other connections are useless too, and the next call looks for the right server again.
    fn server_is_lost(&self) {
        self.servers.lost();
        for (_, pool) in self.pools() {
            pool.forget_idle();
        }
    }

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

    /// Redrives an event that must have the status `end`, with the statement for that status.
    async fn redrive_one(
        &self,
        event: EventId,
        end: Status,
        statement: impl Fn() -> Query<'static, Postgres, PgArguments>,
    ) -> Result<Redriven, StoreError> {
        // The event can reach that status between the two statements. Then another round can
        // succeed.
        for _ in 0..ACCEPT_ROUNDS {
            if !self.execute(&self.operator, statement()).await?.is_empty() {
                return Ok(Redriven::Queued);
            }
            let rows = self
                .execute(&self.operator, sqlx::query(sql::STATUS).bind(event.as_uuid()))
                .await?;
            let Some(row) = rows.first() else { return Ok(Redriven::NotFound) };
            let name: String = row.try_get(0).map_err(|error| errors::failed(&error).error)?;
            let status = rows::status(&name)?;
            if status != end {
                return Ok(Redriven::WrongStatus(status));
            }
            if row.try_get("erased").map_err(|error| errors::failed(&error).error)? {
                return Ok(Redriven::Erased);
            }
        }
        Err(StoreError::Conflict("the event ends and is redriven repeatedly".into()))
    }

    async fn list_page(
        &self,
        filter: &EventFilter,
        span: Span,
        size: PageSize,
    ) -> Result<EventPage, StoreError> {
        let query = searched(sql::LIST, filter.path(), filter, span, size);
        let rows = self.execute(&self.operator, query).await?;
        let broken = |error: sqlx::Error| errors::failed(&error).error;
        let first = rows.first().ok_or_else(|| rows::unreadable("result"))?;
        let looked =
            (first.try_get("looked").map_err(broken)?, first.try_get("last").map_err(broken)?);
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            if let Some(id) = row.try_get("id").map_err(broken)? {
                found.push((id, FoundRow::from_row(row).map_err(broken)?));
            }
        }
        rows::event_page(size, found, looked)
    }

    async fn failure_summary(
        &self,
        filter: &SummaryFilter,
        size: SummarySize,
    ) -> Result<FailureSummary, StoreError> {
        let query = sqlx::query(sql::SUMMARY)
            .bind(filter.source.as_ref().map(SourceName::as_str))
            .bind(rows::since(filter))
            .bind(i64::from(size.looks))
            .bind(i64::from(size.groups) + 1);
        let rows = self.execute(&self.operator, query).await?;
        let broken = |error: sqlx::Error| errors::failed(&error).error;
        let first = rows.first().ok_or_else(|| rows::unreadable("result"))?;
        let partial: Vec<String> = first.try_get("partial").map_err(broken)?;
        let mut groups = Vec::with_capacity(rows.len());
        for row in &rows {
            if row.try_get::<Option<Uuid>, _>("example").map_err(broken)?.is_some() {
                groups.push(GroupRow::from_row(row).map_err(broken)?.group()?);
            }
        }
        Ok(FailureSummary::new(groups, partial, size.groups))
    }

    async fn redrive_page(
        &self,
        filter: &EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> Result<RedrivenPage, StoreError> {
        let query = searched(sql::REDRIVE_ALL, filter.path(), filter, span, size).bind(dry_run);
        let rows: Vec<RedrivenRow> = decode(&self.execute(&self.operator, query).await?)?;
        let row = rows.first().ok_or_else(|| rows::unreadable("result"))?;
        let count = |count: i64| usize::try_from(count).map_err(|_| rows::unreadable("count"));
        let meant = (count(row.meant)?, row.last_meant.map(EventId::from_uuid));
        let next = rows::next(size, meant, (row.looked, row.last.map(EventId::from_uuid)));
        Ok(RedrivenPage {
            redriven: u32::try_from(row.redriven).map_err(|_| rows::unreadable("count"))?,
            next,
        })
    }

    async fn discard_one(
        &self,
        event: EventId,
        scope: DiscardScope,
    ) -> Result<Discarded, StoreError> {
        let takes_waiting = scope == DiscardScope::Unclaimed;
        // The event can come into the scope between the two statements. Then another round can
        // succeed.
        for _ in 0..ACCEPT_ROUNDS {
            let query = sqlx::query(sql::DISCARD).bind(event.as_uuid()).bind(takes_waiting);
            if !self.execute(&self.operator, query).await?.is_empty() {
                return Ok(Discarded::Now);
            }
            let query = sqlx::query(sql::STATUS).bind(event.as_uuid());
            let rows = self.execute(&self.operator, query).await?;
            let Some(row) = rows.first() else { return Ok(Discarded::NotFound) };
            let broken = |error: sqlx::Error| errors::failed(&error).error;
            let status = rows::status(row.try_get("status").map_err(broken)?)?;
            match status {
                _ if row.try_get("discarded").map_err(broken)? => return Ok(Discarded::Before),
                Status::DeadLettered => {}
                Status::Queued | Status::Retrying if takes_waiting => {}
                Status::Queued | Status::Retrying | Status::Processing | Status::Delivered => {
                    return Ok(Discarded::WrongStatus(status));
                }
            }
        }
        Err(StoreError::Conflict("the event is claimed or redriven repeatedly".into()))
    }

    async fn discard_page(
        &self,
        filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> Result<DiscardedPage, StoreError> {
        let (path, filter) = filter.for_discard(scope);
        let query = searched(sql::DISCARD_ALL, path, &filter, span, size).bind(dry_run);
        let rows: Vec<DiscardedRow> = decode(&self.execute(&self.operator, query).await?)?;
        let row = rows.into_iter().next().ok_or_else(|| rows::unreadable("result"))?;
        let meant = usize::try_from(row.meant).map_err(|_| rows::unreadable("count"))?;
        let meant = (meant, row.last_meant.map(EventId::from_uuid));
        let next = rows::next(size, meant, (row.looked, row.last.map(EventId::from_uuid)));
        Ok(DiscardedPage::new(row.discarded, next))
    }

    async fn source_records(
        &self,
        names: &[SourceName],
        count_to: u32,
    ) -> Result<Vec<SourceRecord>, StoreError> {
        let query = sqlx::query(sql::SOURCES)
            .bind(names.iter().map(SourceName::as_str).collect::<Vec<_>>())
            .bind(i64::from(count_to))
            .bind(i64::from(dead_letter_looks(count_to)));
        let rows = self.execute(&self.operator, query).await?;
        let records = decode::<SourceRow>(&rows)?.into_iter().zip(&rows).map(|(work, row)| {
            let source = row.try_get("source").map_err(|error| errors::failed(&error).error)?;
            work.record(source)
        });
        let mut records = records.collect::<Result<Vec<_>, StoreError>>()?;
        records.sort_by(|one, other| one.source.cmp(&other.source));
        Ok(records)
    }

    async fn erase_step(
        &self,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> Result<Erased, StoreError> {
        let query = sqlx::query(sql::ERASE)
            .bind(after.map(EventId::as_uuid))
            .bind(i64::from(limit))
            .bind(rows::micros(kept));
        let (row, reached) = self.step(query, limit, kept).await?;
        Ok(Erased { erased: rows::unsigned(row.changed), reached })
    }

    async fn prune_step(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> Result<Pruned, StoreError> {
        let query = sqlx::query(sql::PRUNE)
            .bind(after.map(EventId::as_uuid))
            .bind(i64::from(limit))
            .bind(rows::micros(retention.delivered))
            .bind(rows::micros(retention.dead_lettered));
        let kept = retention.delivered.min(retention.dead_lettered);
        let (row, reached) = self.step(query, limit, kept).await?;
        Ok(Pruned {
            deleted: rows::unsigned(row.changed),
            dead_lettered: rows::unsigned(row.dead_lettered),
            reached,
        })
    }

    async fn cap_step(&self, bounds: &[Bound], limit: u32) -> Result<u64, StoreError> {
        let micros = |of: fn(&Bound) -> Duration| -> Vec<Micros> {
            bounds.iter().map(|bound| rows::micros(of(bound))).collect()
        };
        let query = sqlx::query(sql::CAP_DUE_TIMES)
            .bind(bounds.iter().map(|bound| bound.source.as_str()).collect::<Vec<_>>())
            .bind(micros(|bound| bound.horizon))
            .bind(micros(|bound| bound.lease))
            .bind(i64::from(limit));
        let rows: Vec<(i64,)> = decode(&self.execute(&self.retention, query).await?)?;
        let (capped,) = rows.first().ok_or_else(|| rows::unreadable("result"))?;
        u64::try_from(*capped).map_err(|_| rows::unreadable("count"))
    }

    /// Runs one step of retention, which changes no event received within the last `kept`. Returns
    /// its row, and where it ended.
    async fn step(
        &self,
        query: Query<'_, Postgres, PgArguments>,
        limit: u32,
        kept: Duration,
    ) -> Result<(StepRow, Reached), StoreError> {
        let mut rows: Vec<StepRow> = decode(&self.execute(&self.retention, query).await?)?;
        let row = rows.pop().ok_or_else(|| rows::unreadable("result"))?;
        let scanned = usize::try_from(row.scanned).unwrap_or(0);
        let kept_since = row.now_us.saturating_sub(rows::micros(kept)).div_euclid(1000);
        let reached = Reached::new(row.last.map(EventId::from_uuid), scanned, limit, kept_since);
        Ok((row, reached))
    }
}

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

impl OperatorStore for PostgresStore {
    fn find(&self, event: EventId) -> StoreCall<'_, Option<EventRecord>> {
        async move {
            let rows =
                self.execute(&self.operator, sqlx::query(sql::FIND).bind(event.as_uuid())).await?;
            rows::event_record(event, decode::<FoundRow>(&rows)?)
        }
        .boxed()
    }

    fn request(&self, event: EventId) -> StoreCall<'_, Option<RequestRecord>> {
        async move {
            let query = sqlx::query(sql::REQUEST).bind(event.as_uuid());
            let rows: Vec<RequestRow> = decode(&self.execute(&self.operator, query).await?)?;
            rows.into_iter().next().map(RequestRow::record).transpose()
        }
        .boxed()
    }

    fn body(&self, event: EventId) -> StoreCall<'_, FoundBody> {
        async move {
            let query = sqlx::query(sql::BODY).bind(event.as_uuid());
            let mut found = None;
            self.execute_by_row(&self.operator, query, |row| found = Some(BodyRow::from_row(&row)))
                .await?;
            let row = found.transpose().map_err(|error| errors::failed(&error).error)?;
            Ok(rows::found_body(row))
        }
        .boxed()
    }

    fn redrive(&self, event: EventId, by: RedrivenBy) -> StoreCall<'_, Redriven> {
        let statement =
            move || sqlx::query(sql::REDRIVE).bind(event.as_uuid()).bind(by.action().as_str());
        self.redrive_one(event, Status::DeadLettered, statement).boxed()
    }

    fn redrive_delivered(&self, event: EventId) -> StoreCall<'_, Redriven> {
        let statement = move || sqlx::query(sql::REDRIVE_DELIVERED).bind(event.as_uuid());
        self.redrive_one(event, Status::Delivered, statement).boxed()
    }

    fn list(&self, filter: EventFilter, span: Span, size: PageSize) -> StoreCall<'_, EventPage> {
        async move { self.list_page(&filter, span, size).await }.boxed()
    }

    fn summary(&self, filter: SummaryFilter, size: SummarySize) -> StoreCall<'_, FailureSummary> {
        async move { self.failure_summary(&filter, size).await }.boxed()
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, RedrivenPage> {
        async move { self.redrive_page(&filter.of_dead_letters(), span, size, dry_run).await }
            .boxed()
    }

    fn discard(&self, event: EventId, scope: DiscardScope) -> StoreCall<'_, Discarded> {
        self.discard_one(event, scope).boxed()
    }

    fn discard_all(
        &self,
        filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, DiscardedPage> {
        self.discard_page(filter, scope, span, size, dry_run).boxed()
    }

    fn sources(&self, names: Vec<SourceName>, count_to: u32) -> StoreCall<'_, Vec<SourceRecord>> {
        async move { self.source_records(&names, count_to).await }.boxed()
    }

    fn stored_sources(&self) -> StoreCall<'_, Vec<String>> {
        async move {
            let rows = self.execute(&self.operator, sqlx::query(sql::STORED_SOURCES)).await?;
            Ok(decode::<(String,)>(&rows)?.into_iter().map(|(source,)| source).collect())
        }
        .boxed()
    }

    fn pause(&self, source: SourceName, paused: bool) -> StoreCall<'_, bool> {
        async move {
            let statement = if paused { sql::PAUSE } else { sql::RESUME };
            let changed =
                self.execute(&self.operator, sqlx::query(statement).bind(source.as_str())).await?;
            Ok(decode::<(Option<String>,)>(&changed)?.iter().any(|(source,)| source.is_some()))
        }
        .boxed()
    }
}

impl MaintenanceStore for PostgresStore {
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        self.prune_step(retention, after, limit).boxed()
    }

    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased> {
        self.erase_step(kept, after, limit).boxed()
    }

    fn cap_due_times(&self, bounds: Vec<Bound>, limit: u32) -> StoreCall<'_, u64> {
        async move { self.cap_step(&bounds, limit).await }.boxed()
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        async move {
            let rows = self.execute(&self.readiness, sqlx::query(sql::SCHEMA)).await?;
            schema::compare(&decode::<Applied>(&rows)?, &sql::migrator()).ready()?;
            let is_read_only = rows.iter().any(|row| row.try_get("read_only").unwrap_or(true));
            if is_read_only {
                self.server_is_lost();
                Err(StoreError::Unavailable("it is read-only".into()))
            } else {
                Ok(())
            }
        }
        .boxed()
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        async move { self.insert_and_take_back(&event).await }.boxed()
    }

    fn oldest_snapshot(&self, least: Duration) -> StoreCall<'_, Option<SnapshotHolder>> {
        async move {
            let mut connection =
                self.retention.take().await.map_err(|error| errors::not_taken(&error))?;
            let query = sqlx::query(sql::OLDEST_SNAPSHOT).bind(rows::micros(least));
            let asked = timeout(REPLY_TIMEOUT, connection.read::<HolderRow>(query)).await;
            // A server may not have these lists, or withhold them. So an error says nothing about
            // the other connections or the schema.
            let rows = asked
                .map_err(|_| errors::no_reply(REPLY_TIMEOUT))?
                .map_err(|error| errors::before_commit(&error))?;
            connection.keep();
            Ok(rows.into_iter().next().map(HolderRow::holder))
        }
        .boxed()
    }

    fn database(&self) -> Option<&'static str> {
        Some(if self.servers.is_pooled() { "postgresql-pooled" } else { "postgresql" })
    }

    fn connections(&self) -> Vec<Connections> {
        self.pools().map(|(name, pool)| pool.in_use(name)).into()
    }
}

/// The statement that inserts the chosen events whose keys are new.
fn accepting<'q>(
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

/// Runs one statement to its end and passes on each row as it arrives. Returns whether the server
/// sent a warning after the rows, that is, during the commit.
async fn run(
    connection: &mut PgConnection,
    query: Query<'_, Postgres, PgArguments>,
    each: &mut (impl FnMut(PgRow) + Send),
) -> Result<bool, sqlx::Error> {
    let mut steps = connection.fetch_many(query);
    let (mut is_executed, mut warned) = (false, false);
    loop {
        // The poll that returns the end of the statement reads no further. So a warning in a later
        // poll belongs to the commit.
        let step = poll_fn(|context| {
            let (polled, in_this_poll) = notices::watch(|| steps.poll_next_unpin(context));
            warned |= is_executed && in_this_poll;
            polled
        });
        match step.await {
            Some(Ok(Either::Left(_))) => is_executed = true,
            Some(Ok(Either::Right(row))) => each(row),
            Some(Err(error)) => return Err(error),
            None => return Ok(warned),
        }
    }
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

/// A statement that takes the ten parameters of `list.sql`.
fn searched<'q>(
    statement: &'static str,
    path: Path,
    filter: &'q EventFilter,
    span: Span,
    size: PageSize,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(statement)
        .bind(rows::path(path))
        .bind(filter.source.as_ref().map(SourceName::as_str))
        .bind(filter.key.as_ref().map(|key| key.as_str()))
        .bind(filter.status.map(Status::as_str))
        .bind(filter.reason.map(|reason| reason.as_str()))
        .bind(filter.status_code.map(i32::from))
        .bind(span.from.as_uuid())
        .bind(span.until.as_uuid())
        .bind(i64::from(size.events))
        .bind(i64::from(size.looks))
}

/// Decodes the rows of a completed statement. If that fails, its changes are committed all the
/// same.
fn decode<'r, T: FromRow<'r, PgRow>>(rows: &'r [PgRow]) -> Result<Vec<T>, StoreError> {
    rows.iter().map(|row| T::from_row(row).map_err(|error| errors::failed(&error).error)).collect()
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

#[derive(FromRow)]
struct RedrivenRow {
    looked: i64,
    last: Option<Uuid>,
    meant: i64,
    last_meant: Option<Uuid>,
    redriven: i64,
}

#[derive(FromRow)]
struct DiscardedRow {
    looked: i64,
    last: Option<Uuid>,
    meant: i64,
    last_meant: Option<Uuid>,
    /// The source of each discarded event.
    discarded: Vec<String>,
}

#[derive(FromRow)]
struct HolderRow {
    name: String,
    role: Option<String>,
    state: Option<String>,
    pid: Option<i64>,
    held_for: Option<i64>,
}

impl HolderRow {
    fn holder(self) -> SnapshotHolder {
        let Self { name, role, state, pid, held_for } = self;
        let held_for = held_for.map(|seconds| Duration::from_secs(seconds.max(0).unsigned_abs()));
        SnapshotHolder { name, role, state, pid, held_for }
    }
}

#[derive(FromRow)]
struct StepRow {
    scanned: i64,
    last: Option<Uuid>,
    now_us: i64,
    changed: i64,
    /// How many of the changed events were dead letters. Erasing changes none.
    #[sqlx(default)]
    dead_lettered: i64,
}
