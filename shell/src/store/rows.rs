//! Converts between the types of `core` and the columns of both databases: durations, times, names,
//! and the rows of an event's history.

use crate::ports::{FoundBody, StoreError};
use crate::search::{
    ActionEntry, AttemptEntry, EventPage, EventRecord, FailureGroup, PageSize, Path, RequestRecord,
    SourceRecord, SummaryFilter,
};
use jiff::Timestamp;
use sqlx::types::Uuid;
use std::time::Duration;
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::event::{Action, Reason, Status};
use surehook_core::id::{Attempt, EventId};
use surehook_core::verdict::Verdict;

/// The longest duration that a store adds to a time: a hundred years. Longer ones are cut to it, so
/// that no time leaves the calendar, or the range in which a double counts microseconds.
const LONGEST_US: i64 = 100 * 365 * 24 * 3600 * 1_000_000;

/// A duration in microseconds. It is rounded up, so that a lease or a delay is never too short.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1000))
        .map_or(LONGEST_US, |micros| micros.min(LONGEST_US))
}

/// The elapsed time. Zero if the clock was set back.
pub(super) fn age(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A count for a 64-bit column. Larger values are cut to the maximum.
pub(super) fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count that a statement returned.
pub(super) fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// A row has a value that this program cannot read: another program or a person wrote it. The
/// outcome is unknown, because the statement that read the row may also have written, and is
/// committed.
pub(super) fn unreadable(what: &str) -> StoreError {
    StoreError::Unknown(format!("a row has a {what} that this program cannot read"))
}

pub(super) fn status(name: &str) -> Result<Status, StoreError> {
    Status::from_name(name).ok_or_else(|| unreadable("status"))
}

pub(super) fn reason(name: &str) -> Result<Reason, StoreError> {
    Reason::from_name(name).ok_or_else(|| unreadable("reason"))
}

pub(super) fn attempt(number: i64) -> Result<Attempt, StoreError> {
    Attempt::try_from(number).map_err(|_| unreadable("number of an attempt"))
}

pub(super) fn fence(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| unreadable("fence"))
}

pub(super) fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, StoreError> {
    bytes.try_into().map(Fingerprint::from_bytes).map_err(|_| unreadable("fingerprint"))
}

fn status_code(number: Option<i64>) -> Result<Option<u16>, StoreError> {
    number.map(u16::try_from).transpose().map_err(|_| unreadable("status code"))
}

/// The earliest time of a summary, in microseconds since 1970. No attempt ended before that.
pub(super) fn since(filter: &SummaryFilter) -> Option<i64> {
    filter.since.map(|since| since.as_microsecond().max(0))
}

/// A time in microseconds since 1970.
pub(super) fn timestamp(micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|_| unreadable("time"))
}

/// A stored event that has the key of a new one.
#[derive(sqlx::FromRow)]
pub(super) struct ExistingRow {
    /// Position of the new event in the lookup: from 1 on PostgreSQL, from 0 on SQLite.
    pub(super) position: i64,
    id: Uuid,
    fingerprint: Vec<u8>,
    status: String,
}

impl ExistingRow {
    /// The answer for the intake.
    pub(super) fn stored(&self) -> Result<Stored, StoreError> {
        let (fingerprint, status) = (fingerprint(&self.fingerprint)?, status(&self.status)?);
        Ok(Stored::Existing { id: EventId::from_uuid(self.id), fingerprint, status })
    }
}

/// One row of `find.sql`: the event with one of its attempts, or one of its actions. A row of `list.sql`
/// has no columns for actions. Times are in microseconds since 1970.
#[derive(sqlx::FromRow)]
pub(super) struct FoundRow {
    source: String,
    idempotency_key: String,
    received_at: i64,
    status: Option<String>,
    attempt: Option<i64>,
    budget_from: Option<i64>,
    due_at: Option<i64>,
    ended_at: Option<i64>,
    reason: Option<String>,
    tried_attempt: Option<i64>,
    tried_ended_at: Option<i64>,
    tried_took_us: Option<i64>,
    tried_verdict: Option<String>,
    tried_status_code: Option<i64>,
    tried_error: Option<String>,
    tried_excerpt: Option<Vec<u8>>,
    #[sqlx(default)]
    acted_at: Option<i64>,
    #[sqlx(default)]
    acted_attempt: Option<i64>,
    #[sqlx(default)]
    action: Option<String>,
}

impl FoundRow {
    /// Converts the due time to wall-clock time. The wall clock is `by` microseconds ahead of the
    /// scale of due times.
    pub(super) fn due_later(self, by: i64) -> Self {
        Self { due_at: self.due_at.map(|due_at| due_at.saturating_add(by)), ..self }
    }
}

/// Combines the rows of one event. `None` if there are none.
pub(super) fn event_record(
    id: EventId,
    rows: Vec<FoundRow>,
) -> Result<Option<EventRecord>, StoreError> {
    let history =
        rows.iter().filter_map(|row| row.entry().transpose()).collect::<Result<Vec<_>, _>>()?;
    let actions =
        rows.iter().filter_map(|row| row.action().transpose()).collect::<Result<Vec<_>, _>>()?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let last = history.last();
    let status = row.status.as_deref().map_or(Ok(Status::Delivered), status)?;
    let is_waiting = matches!(status, Status::Queued | Status::Retrying);
    Ok(Some(EventRecord {
        id,
        received_at: timestamp(row.received_at)?,
        status,
        attempt: row
            .attempt
            .map(attempt)
            .transpose()?
            .or(last.map(|entry| entry.attempt))
            .unwrap_or(0),
        budget_from: row.budget_from.map(attempt).transpose()?,
        next_attempt_at: row.due_at.filter(|_| is_waiting).map(timestamp).transpose()?,
        settled_at: match status {
            Status::Delivered => {
                Some(last.map_or(timestamp(row.received_at)?, |entry| entry.ended_at))
            }
            Status::Queued | Status::Processing | Status::Retrying | Status::DeadLettered => {
                row.ended_at.map(timestamp).transpose()?
            }
        },
        reason: row.reason.as_deref().map(reason).transpose()?,
        source: row.source,
        key: row.idempotency_key,
        history,
        actions,
    }))
}

/// The name of a path, as `list.sql` expects it.
pub(super) fn path(path: Path) -> &'static str {
    match path {
        Path::Key => "key",
        Path::DeadLetters => "dead_letters",
        Path::Owed => "owed",
        Path::Events => "events",
    }
}

/// The event after which the next page continues. If the page is full, it is the last event shown.
/// Otherwise it is the last event that was looked at, if more may follow. `shown` and `looked` are
/// each a count and the last event.
pub(super) fn next(
    size: PageSize,
    shown: (usize, Option<EventId>),
    looked: (i64, Option<EventId>),
) -> Option<EventId> {
    let is_full = |count: usize| count >= usize::try_from(size.events).unwrap_or(usize::MAX);
    if is_full(shown.0) { shown.1 } else { looked.1.filter(|_| looked.0 >= i64::from(size.looks)) }
}

/// Builds a page from its rows of `list.sql`. `looked` is the number of events that were looked at,
/// and the last of them.
pub(super) fn event_page(
    size: PageSize,
    rows: Vec<(Uuid, FoundRow)>,
    looked: (i64, Option<Uuid>),
) -> Result<EventPage, StoreError> {
    let mut events = Vec::with_capacity(rows.len());
    for (id, row) in rows {
        events.extend(event_record(EventId::from_uuid(id), vec![row])?);
    }
    let next = next(
        size,
        (events.len(), events.last().map(|event| event.id)),
        (looked.0, looked.1.map(EventId::from_uuid)),
    );
    Ok(EventPage { events, next })
}

/// The row of `request.sql`. Times are in microseconds since 1970.
#[derive(sqlx::FromRow)]
pub(super) struct RequestRow {
    source: String,
    received_at: i64,
    erased_at: Option<i64>,
    fingerprint: Vec<u8>,
    query: Vec<u8>,
    headers: Vec<u8>,
    body_bytes: i64,
}

impl RequestRow {
    pub(super) fn record(self) -> Result<RequestRecord, StoreError> {
        Ok(RequestRecord {
            source: self.source,
            received_at: timestamp(self.received_at)?,
            erased_at: self.erased_at.map(timestamp).transpose()?,
            fingerprint: fingerprint(&self.fingerprint)?,
            query: self.query.into(),
            headers: self.headers.into(),
            body_bytes: u64::try_from(self.body_bytes).map_err(|_| unreadable("size"))?,
        })
    }
}

/// The row of `body.sql`.
#[derive(sqlx::FromRow)]
pub(super) struct BodyRow {
    body: Vec<u8>,
    is_erased: bool,
}

/// The body in the row of an event, if there is a row.
pub(super) fn found_body(row: Option<BodyRow>) -> FoundBody {
    match row {
        None => FoundBody::NotFound,
        Some(BodyRow { is_erased: true, .. }) => FoundBody::Erased,
        Some(BodyRow { body, is_erased: false }) => FoundBody::Found(body.into()),
    }
}

/// One row of `summary.sql`. Times are in microseconds since 1970.
#[derive(sqlx::FromRow)]
pub(super) struct GroupRow {
    source: String,
    verdict: String,
    status_code: Option<i64>,
    error: Option<String>,
    beginning: Vec<u8>,
    events: i64,
    dead_lettered: i64,
    first_at: i64,
    last_at: i64,
    example: Uuid,
}

impl GroupRow {
    pub(super) fn group(self) -> Result<FailureGroup, StoreError> {
        let number = |count: i64| u32::try_from(count).map_err(|_| unreadable("count"));
        Ok(FailureGroup {
            verdict: Verdict::from_name(&self.verdict).ok_or_else(|| unreadable("verdict"))?,
            status_code: status_code(self.status_code)?,
            events: number(self.events)?,
            dead_lettered: number(self.dead_lettered)?,
            first: timestamp(self.first_at)?,
            last: timestamp(self.last_at)?,
            example: EventId::from_uuid(self.example),
            source: self.source,
            error: self.error,
            beginning: self.beginning.into(),
        })
    }
}

/// The row of one source, from `sources.sql` or `source_work.sql`.
#[derive(sqlx::FromRow)]
pub(super) struct SourceRow {
    queued: i64,
    processing: i64,
    retrying: i64,
    dead_lettered: i64,
    is_partial: bool,
    behind_us: Option<i64>,
    paused_at: Option<i64>,
}

impl SourceRow {
    pub(super) fn record(&self, source: String) -> Result<SourceRecord, StoreError> {
        let number = |count: i64| u32::try_from(count).map_err(|_| unreadable("count"));
        Ok(SourceRecord {
            source,
            queued: number(self.queued)?,
            processing: number(self.processing)?,
            retrying: number(self.retrying)?,
            dead_lettered: number(self.dead_lettered)?,
            is_partial: self.is_partial,
            behind: self.behind_us.map(age),
            paused_since: self.paused_at.map(timestamp).transpose()?,
        })
    }
}

impl FoundRow {
    fn entry(&self) -> Result<Option<AttemptEntry>, StoreError> {
        let (Some(number), Some(ended_at), Some(verdict)) =
            (self.tried_attempt, self.tried_ended_at, &self.tried_verdict)
        else {
            return Ok(None);
        };
        Ok(Some(AttemptEntry {
            attempt: attempt(number)?,
            ended_at: timestamp(ended_at)?,
            took: self
                .tried_took_us
                .map(|took| u64::try_from(took).map(Duration::from_micros))
                .transpose()
                .map_err(|_| unreadable("duration"))?,
            verdict: Verdict::from_name(verdict).ok_or_else(|| unreadable("verdict"))?,
            status_code: status_code(self.tried_status_code)?,
            error: self.tried_error.clone(),
            excerpt: self.tried_excerpt.clone().unwrap_or_default().into(),
        }))
    }

    fn action(&self) -> Result<Option<ActionEntry>, StoreError> {
        let (Some(name), Some(at), Some(number)) =
            (&self.action, self.acted_at, self.acted_attempt)
        else {
            return Ok(None);
        };
        Ok(Some(ActionEntry {
            action: Action::from_name(name).ok_or_else(|| unreadable("action"))?,
            at: timestamp(at)?,
            attempt: attempt(number)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_up_and_limited_to_a_century() {
        assert_eq!(micros(Duration::ZERO), 0);
        assert_eq!(micros(Duration::from_nanos(1)), 1);
        assert_eq!(micros(Duration::from_micros(7)), 7);
        assert_eq!(micros(Duration::MAX), LONGEST_US);
    }
}
