//! The routes for operators: list and show events, group failures, show the work of each source,
//! redrive, discard, pause and resume.

use super::query::{self, MAX_LOOKS, Query};
use super::view::{EventView, ListedEvent, SourceView, SummaryView};
use super::{Answer, App, database_timeout, database_unavailable};
use crate::http::problem::{Problem, ProblemKind};
use crate::logs::millis;
use crate::ports::{Discarded, Redriven, StoreCall, StoreError};
use crate::search::{EventRecord, PageSize, SourceRecord, Span, SummarySize, dead_letter_looks};
use futures::{FutureExt, select_biased};
use http::StatusCode;
use serde::Serialize;
use std::time::Duration;
use surehook_core::event::{DiscardScope, Reason, RedrivenBy, Status};
use surehook_core::id::EventId;
use surehook_core::source::SourceName;

/// Timeout of a database call for an operator's request.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of each count of a source: due events, events that are due later, and dead letters.
pub(super) const COUNT_TO: u32 = 1000;

/// The most events that a summary examines, unless there are more sources than a third of it.
const SUMMARY_LOOKS: u32 = 6000;
/// The most groups of a summary.
const SUMMARY_GROUPS: u32 = 100;

#[derive(Serialize)]
struct Page {
    events: Vec<ListedEvent>,
    next: Option<String>,
}

#[derive(Serialize)]
struct RedrivenOne {
    event_id: String,
    status: &'static str,
    not_delivering: Option<Vec<NotDelivering>>,
}

#[derive(Serialize)]
struct RedrivenMany {
    redriven: u32,
    dry_run: bool,
    next: Option<String>,
    not_delivering: Option<Vec<NotDelivering>>,
}

/// A source of which no event is delivered now, so that its redriven events wait.
#[derive(Serialize)]
struct NotDelivering {
    source: String,
    /// `not_configured` or `paused`.
    why: &'static str,
}

#[derive(Serialize)]
struct DiscardedOne {
    event_id: String,
    status: &'static str,
    reason: &'static str,
}

#[derive(Serialize)]
struct DiscardedMany {
    discarded: u32,
    dry_run: bool,
    next: Option<String>,
}

#[derive(Serialize)]
struct Sources {
    /// Whether this process delivers events. If not, it has no circuit breakers.
    delivers: bool,
    sources: Vec<SourceView>,
}

#[derive(Serialize)]
struct Paused<'a> {
    source: &'a str,
    paused: bool,
    /// Deliveries of events that were claimed before the pause end within this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries_end_within_ms: Option<u64>,
}

impl App {
    /// A page of events, newest first.
    pub(super) async fn list(&self, query: &str) -> Result<Answer, Problem> {
        let Query { filter, span, after, size, dry_run } = Query::parse(query)?;
        if dry_run.is_some() {
            return Err(ProblemKind::BadQuery
                .with("Invalid query: `dry_run` is only for a redrive or a discard."));
        }
        self.known(filter.source.as_ref()).await?;
        let span = Span { until: after.map_or(span.until, |after| span.until.min(after)), ..span };
        let page = self.with_timeout("list", self.operators.list(filter, span, size)).await?;
        let configured = self.configured();
        let shown = |event: EventRecord| {
            let policy =
                configured.sources.get(event.source.as_str()).map(|source| source.max_attempts);
            ListedEvent::new(event, policy)
        };
        let page = Page {
            events: page.events.into_iter().map(shown).collect(),
            next: page.next.as_ref().map(EventId::to_string),
        };
        Answer::json(StatusCode::OK, None, &page)
    }

    /// The failures of undelivered events, in groups.
    pub(super) async fn summary(&self, query: &str) -> Result<Answer, Problem> {
        let filter = query::summary(query)?;
        self.known(filter.source.as_ref()).await?;
        let sources = match &filter.source {
            Some(_) => 1,
            None => u32::try_from(self.configured().sources.len()).unwrap_or(u32::MAX).max(1),
        };
        // A store looks in three places for each source.
        let looks = (SUMMARY_LOOKS / 3 / sources).max(1);
        let size = SummarySize { looks, groups: SUMMARY_GROUPS };
        let summary = self.with_timeout("summary", self.operators.summary(filter, size)).await?;
        Answer::json(StatusCode::OK, None, &SummaryView::new(summary))
    }

    /// One event.
    pub(super) async fn show(&self, id: &str) -> Result<Answer, Problem> {
        let id = event_id(id)?;
        let record = self
            .with_timeout("find", self.operators.find(id))
            .await?
            .ok_or_else(|| unknown_event(id))?;
        let policy =
            self.configured().sources.get(record.source.as_str()).map(|source| source.max_attempts);
        Answer::json(StatusCode::OK, Some(id), &EventView::new(record, policy))
    }

    /// Queues one event again.
    pub(super) async fn redrive(&self, id: &str, query: &str) -> Result<Answer, Problem> {
        let id = event_id(id)?;
        let is_of_delivered = query::delivered(query)?;
        let (name, call) = if is_of_delivered {
            ("redrive_delivered", self.operators.redrive_delivered(id))
        } else {
            ("redrive", self.operators.redrive(id, RedrivenBy::Operator))
        };
        match self.with_timeout(name, call).await? {
            Redriven::Queued => {}
            Redriven::NotFound => return Err(unknown_event(id)),
            Redriven::Erased => {
                return Err(ProblemKind::PayloadErased
                    .with("The event's payload was erased after `retention.delivered_payload`, so it cannot be sent again."));
            }
            Redriven::WrongStatus(status) => {
                let status = status.as_str();
                return Err(if is_of_delivered {
                    ProblemKind::NotDelivered.with(format!(
                        "The event is {status}. With `delivered=true`, only a delivered event is redriven."
                    ))
                } else {
                    ProblemKind::NotDeadLettered.with(format!(
                        "The event is {status}. Only a dead letter is redriven, or a delivered event with `delivered=true`."
                    ))
                });
            }
        }
        tracing::info!(event_id = %id, delivered = is_of_delivered, "redriven by an operator");
        // If the source cannot be read now, polling finds the event.
        let found = self.with_timeout("find", self.operators.find(id)).await.ok().flatten();
        let not_delivering = match found {
            Some(record) => {
                self.wake(&[&record.source]);
                self.not_delivering(&[&record.source]).await
            }
            None => None,
        };
        let (event_id, status) = (id.to_string(), Status::Queued.as_str());
        let answer = RedrivenOne { event_id, status, not_delivering };
        Answer::json(StatusCode::OK, Some(id), &answer)
    }

    /// Wakes the worker: events of these sources are due.
    fn wake(&self, sources: &[&String]) {
        let configured = self.configured();
        let known = |name: &&String| configured.sources.get_key_value(name.as_str());
        self.doorbell.ring(sources.iter().filter_map(known).map(|(name, _)| name.clone()));
    }

    /// Those of these sources of which no event is delivered now, because this process does not know
    /// them or they are paused. `None` if the database does not say.
    async fn not_delivering(&self, sources: &[&String]) -> Option<Vec<NotDelivering>> {
        if sources.is_empty() {
            return Some(Vec::new());
        }
        let call = self.operators.sources(Vec::new(), 1);
        let records = self.with_timeout("sources", call).await.ok()?;
        let configured = self.configured();
        let is_meant = |record: &SourceRecord| sources.contains(&&record.source);
        let of_record = |record: SourceRecord| {
            let why = if !configured.sources.contains_key(record.source.as_str()) {
                "not_configured"
            } else if record.paused_since.is_some() {
                "paused"
            } else {
                return None;
            };
            Some(NotDelivering { source: record.source, why })
        };
        Some(records.into_iter().filter(is_meant).filter_map(of_record).collect())
    }

    /// One step of a redrive of all matching dead letters, oldest first.
    pub(super) async fn redrive_all(&self, query: &str) -> Result<Answer, Problem> {
        let Query { filter, span, after, size, dry_run } = Query::parse(query)?;
        if filter.status.is_some() {
            return Err(ProblemKind::BadQuery.with(
                "Invalid query: a redrive has no `status`, because it selects dead letters only.",
            ));
        }
        self.known(filter.source.as_ref()).await?;
        let dry_run = dry_run.unwrap_or(false);
        let span = Span {
            from: after.map_or(span.from, |after| span.from.max(after.successor())),
            ..span
        };
        let filter = filter.of_dead_letters();
        // Some dead letters on the path can be discarded ones, which do not match.
        let looks = if filter.is_the_path_alone() {
            dead_letter_looks(size.events).min(MAX_LOOKS)
        } else {
            MAX_LOOKS
        };
        let size = PageSize { looks, ..size };
        let redriven = self.operators.redrive_all(filter.clone(), span, size, dry_run);
        let page = self.with_timeout("redrive_all", redriven).await?;
        let redriven = page.count();
        let sources: Vec<&String> = page.changed.keys().collect();
        if redriven > 0 && !dry_run {
            let source = filter.source.as_ref().map(tracing::field::display);
            tracing::info!(
                redriven,
                source,
                reason = filter.reason.map(|reason| reason.as_str()),
                "redriven by an operator"
            );
            self.wake(&sources);
        }
        let not_delivering = self.not_delivering(&sources).await;
        let next = page.next.as_ref().map(EventId::to_string);
        let answer = RedrivenMany { redriven, dry_run, next, not_delivering };
        Answer::json(StatusCode::OK, None, &answer)
    }

    /// Discards one event.
    pub(super) async fn discard(&self, id: &str) -> Result<Answer, Problem> {
        let id = event_id(id)?;
        // The source of an event never changes.
        let record = self
            .with_timeout("find", self.operators.find(id))
            .await?
            .ok_or_else(|| unknown_event(id))?;
        let is_configured = self.configured().sources.contains_key(record.source.as_str());
        let call = self.operators.discard(id, DiscardScope::of_source(is_configured));
        match self.with_timeout("discard", call).await? {
            Discarded::Now => {
                tracing::info!(event_id = %id, source = record.source, "discarded by an operator");
                self.metrics.discarded(&record.source, 1);
            }
            Discarded::Before => {}
            Discarded::NotFound => return Err(unknown_event(id)),
            Discarded::WrongStatus(status) => {
                let why = match status {
                    Status::Delivered | Status::DeadLettered => {
                        "Only a dead letter is discarded, or an event that waits for a source that is not configured."
                    }
                    Status::Processing if !is_configured => {
                        "A worker may be delivering it: send the request again after its lease has ended."
                    }
                    Status::Queued | Status::Processing | Status::Retrying => {
                        "Its source is configured, so it will be delivered or dead-lettered. It can be discarded after that, or after its source is removed from the configuration."
                    }
                };
                return Err(ProblemKind::NotDiscardable
                    .with(format!("The event is {}. {why}", status.as_str())));
            }
        }
        let (status, reason) = (Status::DeadLettered.as_str(), Reason::Discarded.as_str());
        let event_id = id.to_string();
        Answer::json(StatusCode::OK, Some(id), &DiscardedOne { event_id, status, reason })
    }

    /// One step of a discard of all matching events, oldest first.
    pub(super) async fn discard_all(&self, query: &str) -> Result<Answer, Problem> {
        let Query { filter, span, after, size, dry_run } = Query::parse(query)?;
        if filter.status.is_some() {
            return Err(ProblemKind::BadQuery.with(
                "Invalid query: a discard has no `status`. It selects dead letters, and waiting events if `source` names a source that is not configured.",
            ));
        }
        self.known(filter.source.as_ref()).await?;
        let dry_run = dry_run.unwrap_or(false);
        let is_configured = filter
            .source
            .as_ref()
            .is_none_or(|source| self.configured().sources.contains_key(source));
        let scope = DiscardScope::of_source(is_configured);
        let span = Span {
            from: after.map_or(span.from, |after| span.from.max(after.successor())),
            ..span
        };
        let size = PageSize { looks: MAX_LOOKS, ..size };
        let discard = self.operators.discard_all(filter.clone(), scope, span, size, dry_run);
        let page = self.with_timeout("discard_all", discard).await?;
        let discarded = page.count();
        if discarded > 0 && !dry_run {
            for (source, count) in &page.changed {
                self.metrics.discarded(source, *count);
            }
            let source = filter.source.as_ref().map(tracing::field::display);
            tracing::info!(
                discarded,
                source,
                reason = filter.reason.map(|reason| reason.as_str()),
                "discarded by an operator"
            );
        }
        let next = page.next.as_ref().map(EventId::to_string);
        Answer::json(StatusCode::OK, None, &DiscardedMany { discarded, dry_run, next })
    }

    /// The work of every source.
    pub(super) async fn source_list(&self) -> Result<Answer, Problem> {
        let names = self.configured().sources.keys().cloned().collect();
        let records = self.with_timeout("sources", self.operators.sources(names, COUNT_TO)).await?;
        let configured = self.configured();
        let sources = records.into_iter().map(|record| {
            let source = configured.sources.get(record.source.as_str());
            let standing = self.metrics.standing(&record.source).filter(|_| self.delivers);
            SourceView::new(
                record,
                source.map(|source| source.retries_last),
                standing.map(|standing| (standing, self.clock.now())),
            )
        });
        Answer::json(
            StatusCode::OK,
            None,
            &Sources { delivers: self.delivers, sources: sources.collect() },
        )
    }

    /// Pauses or resumes a source. A source that is no longer configured can only be resumed.
    pub(super) async fn pause(&self, source: &str, paused: bool) -> Result<Answer, Problem> {
        let configured = self.configured();
        let unknown = || {
            let configured = configured.sources.keys().map(SourceName::as_str).collect();
            ProblemKind::UnknownSource.with(format!(
                "No source of this name is configured or paused: {}.",
                query::no_source(source, configured)
            ))
        };
        let name = SourceName::parse(source)
            .map_err(|error| ProblemKind::UnknownSource.with(format!("{error}.")))?;
        let is_configured = configured.sources.contains_key(&name);
        if paused && !is_configured {
            return Err(unknown());
        }
        let is_changed =
            self.with_timeout("pause", self.operators.pause(name.clone(), paused)).await?;
        if !is_changed && !is_configured {
            return Err(unknown());
        }
        if is_changed {
            tracing::info!(source = %name, paused, "paused or resumed by an operator");
        }
        if !paused {
            self.doorbell.ring([name.clone()]);
        }
        let lease = configured.sources.get(&name).filter(|_| paused).map(|source| source.lease);
        let deliveries_end_within_ms = lease.map(millis);
        Answer::json(
            StatusCode::OK,
            None,
            &Paused { source: name.as_str(), paused, deliveries_end_within_ms },
        )
    }

    /// Refuses a source that is not configured and has no stored event, because a misspelt name would
    /// look like a source without events.
    async fn known(&self, source: Option<&SourceName>) -> Result<(), Problem> {
        let configured = self.configured();
        let Some(source) = source.filter(|source| !configured.sources.contains_key(*source)) else {
            return Ok(());
        };
        let stored = self.with_timeout("stored_sources", self.operators.stored_sources()).await?;
        if stored.iter().any(|name| name == source.as_str()) {
            return Ok(());
        }
        let known = stored.iter().map(String::as_str);
        let known = known.chain(configured.sources.keys().map(SourceName::as_str)).collect();
        Err(query::refused(&query::no_source(source.as_str(), known)))
    }

    /// Waits for a database call of an operator's request, as [`Self::timed`] does.
    pub(super) async fn with_timeout<T>(
        &self,
        name: &'static str,
        call: StoreCall<'_, T>,
    ) -> Result<T, Problem> {
        self.timed(name, call).await.map_err(|error| match error {
            CallError::Failed(error) => {
                tracing::warn!(%error, "an operator's request failed");
                Problem::from(error)
            }
            CallError::TimedOut => database_timeout(),
        })
    }

    /// Waits for a database call, with a timeout of [`OPERATOR_TIMEOUT`], and measures it. `name`
    /// is its label in the metrics.
    pub(super) async fn timed<T>(
        &self,
        name: &'static str,
        call: StoreCall<'_, T>,
    ) -> Result<T, CallError> {
        let late = self.clock.sleep_until(self.clock.now() + OPERATOR_TIMEOUT);
        let call = self.metrics.measured(&*self.clock, name, call);
        let mut call = std::pin::pin!(call.fuse());
        select_biased! {
            answer = call => answer.map_err(CallError::Failed),
            () = late.fuse() => Err(CallError::TimedOut),
        }
    }
}

/// Why a database call has no result.
pub(super) enum CallError {
    Failed(StoreError),
    /// No result arrived in time. The transaction may have been committed.
    TimedOut,
}

pub(super) fn event_id(text: &str) -> Result<EventId, Problem> {
    text.parse().map_err(|error: surehook_core::id::NotAnEventId| {
        ProblemKind::BadEventId.with(format!("{error}."))
    })
}

pub(super) fn unknown_event(id: EventId) -> Problem {
    ProblemKind::UnknownEvent
        .with(format!("There is no event {id}, or its retention has ended and it was deleted."))
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Conflict(_) => database_unavailable(),
            StoreError::Unknown(_) => database_timeout(),
            StoreError::Rejected(_) => ProblemKind::Internal
                .with("The database refused the request. The log of the process has the cause."),
        }
    }
}
