//! What retention, readiness and the reload of a configuration call.

use super::{Micros, PostgresStore, REPLY_TIMEOUT, decode, errors, sql};
use crate::ports::{
    Connections, Erased, MaintenanceStore, NewEvent, Pruned, Retention, SnapshotHolder, StoreCall,
    StoreError,
};
use crate::store::pool::detached;
use crate::store::rows;
use crate::store::schema::{self, Applied};
use futures::FutureExt;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{FromRow, Postgres, Row};
use std::time::Duration;
use surehook_core::due::Bound;
use surehook_core::id::EventId;
use surehook_core::retention::Reached;
use tokio::time::timeout;
use uuid::Uuid;

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
        let store = self.clone();
        detached(async move { store.answers().await }).boxed()
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        let store = self.clone();
        detached(async move { store.insert_and_take_back(&event).await }).boxed()
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

impl PostgresStore {
    async fn answers(&self) -> Result<(), StoreError> {
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
        let (row, reached) = self.step(query, limit, retention.delivered).await?;
        Ok(Pruned {
            deleted: rows::unsigned(row.changed),
            dead_lettered: rows::unsigned(row.dead_lettered),
            discarded: rows::unsigned(row.discarded),
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

    /// Runs one step of retention, which changes no delivered event received within the last `kept`. Returns
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
    #[sqlx(default)]
    discarded: i64,
}
