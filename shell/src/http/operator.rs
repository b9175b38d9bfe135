//! The routes for operators: list events, show the work of each source, redrive, pause and resume.

use super::query::{MAX_LOOKS, Query};
use super::view::{ListedEvent, SourceView};
use super::{Answer, App};
use crate::http::problem::{Problem, ProblemKind};
use crate::metrics;
use crate::search::{EventRecord, PageSize, Span};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use std::collections::BTreeSet;
use surehook_core::id::EventId;
use surehook_core::source::SourceName;

/// Limit of each count of a source: due events, events that are due later, and dead letters.
const COUNT_TO: u32 = 1000;

#[derive(Serialize)]
struct Page {
    events: Vec<ListedEvent>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Redriven {
    redriven: u32,
    dry_run: bool,
    next: Option<String>,
}

#[derive(Serialize)]
struct Sources {
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
            return Err(
                ProblemKind::BadQuery.with("Invalid query: `dry_run` is only for a redrive.")
            );
        }
        let span = Span { until: after.map_or(span.until, |after| span.until.min(after)), ..span };
        let page = self.patiently("list", self.operators.list(filter, span, size)).await?;
        let shown = |event: EventRecord| {
            let policy = self.sources.get(event.source.as_str()).map(|source| source.max_attempts);
            ListedEvent::new(event, policy)
        };
        let page = Page {
            events: page.events.into_iter().map(shown).collect(),
            next: page.next.as_ref().map(EventId::to_string),
        };
        Answer::json(StatusCode::OK, None, &page)
    }

    /// One step of a redrive of all matching dead letters, oldest first.
    pub(super) async fn redrive_all(&self, query: &str) -> Result<Answer, Problem> {
        let Query { filter, span, after, size, dry_run } = Query::parse(query)?;
        if filter.status.is_some() {
            return Err(ProblemKind::BadQuery.with(
                "Invalid query: a redrive has no `status`, because it selects dead letters only.",
            ));
        }
        let dry_run = dry_run.unwrap_or(false);
        let sources: BTreeSet<SourceName> = match &filter.source {
            Some(source) => self
                .sources
                .get_key_value(source)
                .map(|(source, _)| source.clone())
                .into_iter()
                .collect(),
            None => self.sources.keys().cloned().collect(),
        };
        let span = Span {
            from: after.map_or(span.from, |after| span.from.max(after.successor())),
            ..span
        };
        let filter = filter.of_dead_letters();
        let looks = if filter.is_the_path_alone() { size.events } else { MAX_LOOKS };
        let size = PageSize { looks, ..size };
        let redriven = self.operators.redrive_all(filter.clone(), span, size, dry_run);
        let page = self.patiently("redrive_all", redriven).await?;
        if page.redriven > 0 && !dry_run {
            let source = filter.source.as_ref().map(tracing::field::display);
            tracing::info!(
                redriven = page.redriven,
                source,
                reason = filter.reason.map(|reason| reason.as_str()),
                "redriven by an operator"
            );
            self.doorbell.ring(sources);
        }
        let next = page.next.as_ref().map(EventId::to_string);
        Answer::json(StatusCode::OK, None, &Redriven { redriven: page.redriven, dry_run, next })
    }

    /// The work of every source.
    pub(super) async fn source_list(&self) -> Result<Answer, Problem> {
        let names = self.sources.keys().cloned().collect();
        let records = self.patiently("sources", self.operators.sources(names, COUNT_TO)).await?;
        let sources = records.into_iter().map(|record| {
            let is_configured = self.sources.contains_key(record.source.as_str());
            let standing = self.metrics.standing(&record.source).filter(|_| self.delivers);
            SourceView::new(
                record,
                is_configured,
                standing.map(|standing| (standing, self.clock.now())),
            )
        });
        Answer::json(StatusCode::OK, None, &Sources { sources: sources.collect() })
    }

    /// The metrics as text. If the database fails or does not respond in time, its metrics are left
    /// out.
    pub(super) async fn metrics(&self) -> Answer {
        let names = self.sources.keys().cloned().collect();
        let work = self.patiently("sources", self.operators.sources(names, COUNT_TO)).await.ok();
        let text = self.metrics.text(
            work.as_deref(),
            &self.health.loops(),
            &self.maintenance.connections(),
        );
        let mut answer = Answer::written(StatusCode::OK, None, text);
        answer
            .response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE));
        answer
    }

    /// Pauses or resumes a source. A source that is no longer configured can only be resumed.
    pub(super) async fn pause(&self, source: &str, paused: bool) -> Result<Answer, Problem> {
        let unknown =
            || ProblemKind::UnknownSource.with("No source of this name is configured or paused.");
        let name = SourceName::parse(source).map_err(|_| unknown())?;
        let is_configured = self.sources.contains_key(&name);
        if paused && !is_configured {
            return Err(unknown());
        }
        let is_changed =
            self.patiently("pause", self.operators.pause(name.clone(), paused)).await?;
        if !is_changed && !is_configured {
            return Err(unknown());
        }
        if is_changed {
            tracing::info!(source = %name, paused, "paused or resumed by an operator");
        }
        if !paused {
            self.doorbell.ring([name.clone()]);
        }
        let lease = self.sources.get(&name).filter(|_| paused).map(|source| source.lease);
        let deliveries_end_within_ms =
            lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        Answer::json(
            StatusCode::OK,
            None,
            &Paused { source: name.as_str(), paused, deliveries_end_within_ms },
        )
    }
}
