//! The query parameters of requests that select events. Unknown parameters are refused, so that a
//! misspelt filter never selects more events than intended.

use super::problem::{Problem, ProblemKind};
use crate::search::{EventFilter, PageSize, Span, SummaryFilter};
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::BTreeSet;
use surehook_core::event::{Reason, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;

/// The number of events on a page if the query sets no `limit`.
pub const DEFAULT_LIMIT: u32 = 50;
/// The largest `limit`.
pub const MAX_LIMIT: u32 = 500;
/// The most events that one page examines.
pub const MAX_LOOKS: u32 = 5_000;

/// The most names of sources that an error lists.
const NAMES: usize = 20;

/// The parameters as text. Each may be given once.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    source: Option<String>,
    key: Option<String>,
    status: Option<String>,
    reason: Option<String>,
    status_code: Option<u16>,
    since: Option<String>,
    until: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
    dry_run: Option<bool>,
}

/// A parsed query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub filter: EventFilter,
    /// The time range in which they were received, as ids.
    pub span: Span,
    /// The last event that the previous page examined.
    pub after: Option<EventId>,
    pub size: PageSize,
    /// Whether to count only; `None` if the query does not say.
    pub dry_run: Option<bool>,
}

impl Query {
    /// Parses a query.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::BadQuery`], with the name of the parameter.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let written: Written =
            serde_urlencoded::from_str(text).map_err(|error| refused(&error.to_string()))?;
        let filter = EventFilter {
            source: source(written.source)?,
            key: written
                .key
                .map(|key| IdempotencyKey::exact(key.as_bytes()))
                .transpose()
                .map_err(|error| refused(&format!("`key`: {error}")))?,
            status: one_of(
                "status",
                written.status,
                Status::from_name,
                &Status::ALL.map(Status::as_str),
            )?,
            reason: one_of(
                "reason",
                written.reason,
                Reason::from_name,
                &Reason::ALL.map(Reason::as_str),
            )?,
            status_code: written.status_code,
        };
        if filter.status_code.is_some_and(|code| !(100..=999).contains(&code)) {
            return Err(refused("`status_code` must be from 100 to 999"));
        }
        let limit = written.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(refused(&format!("`limit` must be from 1 to {MAX_LIMIT}")));
        }
        let looks = if filter.is_the_path_alone() { limit } else { MAX_LOOKS };
        let span = Span {
            from: written.since.map_or(Ok(EventId::MIN), |time| first_at("since", &time))?,
            until: written.until.map_or(Ok(EventId::MAX), |time| first_at("until", &time))?,
        };
        let after = written
            .after
            .map(|id| id.parse())
            .transpose()
            .map_err(|error| refused(&format!("`after`: {error}")))?;
        Ok(Self {
            filter,
            span,
            after,
            size: PageSize { events: limit, looks },
            dry_run: written.dry_run,
        })
    }
}

/// Parses the query of a redrive of one event: whether it redrives a delivered event instead of a
/// dead letter.
pub(super) fn delivered(text: &str) -> Result<bool, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        #[serde(default)]
        delivered: bool,
    }
    let written: Written =
        serde_urlencoded::from_str(text).map_err(|error| refused(&error.to_string()))?;
    Ok(written.delivered)
}

/// Parses the query of a summary.
pub(super) fn summary(text: &str) -> Result<SummaryFilter, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        source: Option<String>,
        since: Option<String>,
    }
    let written: Written =
        serde_urlencoded::from_str(text).map_err(|error| refused(&error.to_string()))?;
    Ok(SummaryFilter {
        source: source(written.source)?,
        since: written.since.map(|text| time("since", &text)).transpose()?,
    })
}

fn source(written: Option<String>) -> Result<Option<SourceName>, Problem> {
    let parsed = written.map(|name| SourceName::parse(&name)).transpose();
    parsed.map_err(|error| refused(&format!("`source`: {error}")))
}

fn one_of<T>(
    name: &str,
    written: Option<String>,
    read: impl Fn(&str) -> Option<T>,
    all: &[&str],
) -> Result<Option<T>, Problem> {
    let Some(written) = written else { return Ok(None) };
    read(&written)
        .map(Some)
        .ok_or_else(|| refused(&format!("`{name}` must be one of {}", all.join(", "))))
}

/// The smallest id of this time.
fn first_at(name: &str, written: &str) -> Result<EventId, Problem> {
    let time = time(name, written)?;
    Ok(EventId::first_at(u64::try_from(time.as_millisecond()).unwrap_or(0)))
}

fn time(name: &str, written: &str) -> Result<Timestamp, Problem> {
    written.parse().map_err(|_| {
        refused(&format!("`{name}` must be a time in RFC 3339, such as 2026-11-25T00:00:00Z"))
    })
}

/// Says that there is no source of this name, and which there are.
pub(super) fn no_source(name: &str, known: BTreeSet<&str>) -> String {
    let mut names: Vec<&str> = known.into_iter().collect();
    let more = names.len().saturating_sub(NAMES);
    if more > 0 {
        names.sort_by_key(|known| strsim::osa_distance(known, name));
        names.truncate(NAMES);
    }
    let names = names.join(", ");
    match (names.is_empty(), more) {
        (true, _) => format!("there is no source `{name}`, and no other one"),
        (false, 0) => format!("there is no source `{name}`: the sources are {names}"),
        (false, _) => format!(
            "there is no source `{name}`: the sources with the most similar names are {names}, and there are {more} more"
        ),
    }
}

pub(super) fn refused(why: &str) -> Problem {
    ProblemKind::BadQuery.with(format!("Invalid query: {why}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_of_a_query_is_parsed() {
        let id: EventId = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e".parse().unwrap();
        let text = "source=github&key=a%20b%2Bc&status=retrying&reason=lost&status_code=503&since=2026-11-25T00:00:00Z\
                    &until=2026-11-26T00:00:00%2B01:00&after=0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e&limit=7&dry_run=true";
        let query = Query::parse(&text.replace("a%20b%2Bc", "a%2Bc")).unwrap();
        let filter = EventFilter {
            source: Some(SourceName::parse("github").unwrap()),
            key: Some(IdempotencyKey::parse(b"a+c").unwrap()),
            status: Some(Status::Retrying),
            reason: Some(Reason::Lost),
            status_code: Some(503),
        };
        assert_eq!(query.filter, filter);
        assert_eq!(query.span.from, EventId::first_at(1_795_564_800_000));
        assert_eq!(query.span.until, EventId::first_at(1_795_647_600_000));
        assert_eq!(
            (query.after, query.size, query.dry_run),
            (Some(id), PageSize { events: 7, looks: MAX_LOOKS }, Some(true))
        );
    }

    #[test]
    fn a_redrive_selects_a_delivered_event_only_on_request() {
        assert_eq!(delivered(""), Ok(false));
        assert_eq!(delivered("delivered=false"), Ok(false));
        assert_eq!(delivered("delivered=true"), Ok(true));
        for (text, told) in [
            ("delivered", "not `true` or `false`"),
            ("dry_run=true", "unknown field"),
            ("delivered=true&delivered=true", "duplicate"),
        ] {
            let problem = delivered(text).unwrap_err();
            assert_eq!(problem.kind, ProblemKind::BadQuery);
            assert!(problem.detail.contains(told), "{text}: {}", problem.detail);
        }
    }

    #[test]
    fn the_query_of_a_summary_has_a_source_and_a_time() {
        let all = SummaryFilter { source: None, since: None };
        assert_eq!(summary(""), Ok(all));
        let some = SummaryFilter {
            source: Some(SourceName::parse("github").unwrap()),
            since: Some("2026-11-25T00:00:00Z".parse().unwrap()),
        };
        assert_eq!(summary("source=github&since=2026-11-25T01:00:00%2B01:00"), Ok(some));
        for (text, told) in [
            ("sorce=github", "unknown field `sorce`"),
            ("source=git%20hub", "`source`: "),
            ("since=yesterday", "`since` must be a time in RFC 3339"),
        ] {
            let problem = summary(text).unwrap_err();
            assert_eq!(problem.kind, ProblemKind::BadQuery);
            assert!(problem.detail.contains(told), "{text}: {}", problem.detail);
        }
    }

    #[test]
    fn an_unknown_source_is_refused_with_the_names_there_are() {
        let said = |name: &str, known: &[&str]| no_source(name, known.iter().copied().collect());
        assert_eq!(said("a", &[]), "there is no source `a`, and no other one");
        assert_eq!(
            said("ordrs", &["quiet", "orders"]),
            "there is no source `ordrs`: the sources are orders, quiet"
        );
        let many: Vec<String> = (0..1000).map(|n| format!("tenant-{n:03}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let told = said("tenant-07", &many);
        assert!(told.contains("names are tenant-007, tenant-017, tenant-027"), "{told}");
        assert!(told.ends_with("and there are 980 more") && told.len() < 500, "{told}");
    }

    #[test]
    fn an_empty_query_selects_the_first_page_of_all_events() {
        let query = Query::parse("").unwrap();
        assert_eq!(
            (query.filter, query.span, query.after),
            (EventFilter::default(), Span::ALL, None)
        );
        assert_eq!(query.size, PageSize { events: DEFAULT_LIMIT, looks: DEFAULT_LIMIT });
    }

    #[test]
    fn an_invalid_query_is_refused_with_the_parameters_name() {
        for (text, told) in [
            ("sorce=github", "unknown field `sorce`"),
            ("source=git%20hub", "`source`: `git hub` cannot name a source"),
            ("source=a&source=b", "duplicate field `source`"),
            (
                "status=done",
                "`status` must be one of queued, processing, retrying, delivered, dead_lettered",
            ),
            ("reason=why", "`reason` must be one of permanent, exhausted, lost"),
            ("status_code=teapot", "invalid digit"),
            ("status_code=99", "`status_code` must be from 100 to 999"),
            ("since=yesterday", "`since` must be a time in RFC 3339"),
            ("until=2026-11-25", "`until` must be a time in RFC 3339"),
            ("after=0199", "`after`: an event id is a UUID"),
            ("limit=0", "`limit` must be from 1 to 500"),
            ("limit=501", "`limit` must be from 1 to 500"),
            ("dry_run=perhaps", "provided string was not `true` or `false`"),
            ("key=", "`key`: "),
        ] {
            let problem = Query::parse(text).unwrap_err();
            assert_eq!(problem.kind, ProblemKind::BadQuery);
            assert!(problem.detail.contains(told), "{text}: {}", problem.detail);
        }
    }
}
