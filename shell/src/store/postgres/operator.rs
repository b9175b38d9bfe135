//! What operators call.

use super::{ACCEPT_ROUNDS, PostgresStore, decode, errors, sql};
use crate::ports::{Discarded, FoundBody, OperatorStore, Redriven, StoreCall, StoreError};
use crate::search::{
    ChangedPage, EventFilter, EventPage, EventRecord, FailureSummary, PageSize, Path,
    RequestRecord, SourceRecord, Span, SummaryFilter, SummarySize, dead_letter_looks,
};
use crate::store::rows::{self, BodyRow, FoundRow, GroupRow, RequestRow, SourceRow};
use futures::FutureExt;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{FromRow, Postgres, Row};
use surehook_core::event::{DiscardScope, RedrivenBy, Status};
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use uuid::Uuid;

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
    ) -> StoreCall<'_, ChangedPage> {
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
    ) -> StoreCall<'_, ChangedPage> {
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

impl PostgresStore {
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
    ) -> Result<ChangedPage, StoreError> {
        let query = searched(sql::REDRIVE_ALL, filter.path(), filter, span, size).bind(dry_run);
        changed(&self.execute(&self.operator, query).await?, size)
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
    ) -> Result<ChangedPage, StoreError> {
        let (path, filter) = filter.for_discard(scope);
        let query = searched(sql::DISCARD_ALL, path, &filter, span, size).bind(dry_run);
        changed(&self.execute(&self.operator, query).await?, size)
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

#[derive(FromRow)]
struct ChangedRow {
    looked: i64,
    last: Option<Uuid>,
    meant: i64,
    last_meant: Option<Uuid>,
    /// The source of each event that was changed.
    changed: Vec<String>,
}

/// The page of one step of a redrive or a discard of many events.
fn changed(rows: &[sqlx::postgres::PgRow], size: PageSize) -> Result<ChangedPage, StoreError> {
    let rows: Vec<ChangedRow> = decode(rows)?;
    let row = rows.into_iter().next().ok_or_else(|| rows::unreadable("result"))?;
    let meant = usize::try_from(row.meant).map_err(|_| rows::unreadable("count"))?;
    let meant = (meant, row.last_meant.map(EventId::from_uuid));
    let next = rows::next(size, meant, (row.looked, row.last.map(EventId::from_uuid)));
    Ok(ChangedPage::new(row.changed, next))
}
