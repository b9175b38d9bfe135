//! The query of a request that looks for events, read strictly: what is not known is refused, so that a filter with a
//! slip of the pen never means more events than were meant.

use super::problem::{Kind, Problem};
use crate::search::{EventFilter, PageSize, Span};
use jiff::Timestamp;
use serde::Deserialize;
use surehook_core::event::{Reason, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;

/// So many events are on a page unless the query says otherwise.
pub const DEFAULT_LIMIT: u32 = 50;
/// So many events are on a page at the most.
pub const MAX_LIMIT: u32 = 500;
/// So many events are looked at for a page at the most.
pub const MAX_LOOKS: u32 = 5_000;

/// The query as it is written. Each parameter may be given once.
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

/// What a query asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Which events.
    pub filter: EventFilter,
    /// The times between which they were received, by their ids.
    pub span: Span,
    /// The last event that the page before looked at.
    pub after: Option<EventId>,
    /// The page's bounds.
    pub size: PageSize,
    /// Whether nothing is to be changed; `None` if nothing was said of it.
    pub dry_run: Option<bool>,
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    ///
    /// [`Kind::BadQuery`], which names the parameter.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let written: Written =
            serde_urlencoded::from_str(text).map_err(|error| refused(&error.to_string()))?;
        let filter = EventFilter {
            source: written
                .source
                .map(|name| SourceName::parse(&name))
                .transpose()
                .map_err(|error| refused(&format!("`source`: {error}")))?,
            key: written
                .key
                .map(|key| IdempotencyKey::parse(key.as_bytes()))
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
        let limit = written.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(refused(&format!("`limit` is from 1 to {MAX_LIMIT}")));
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

/// The query of one event's redrive: whether a delivered event is meant, and not a dead letter.
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

fn one_of<T>(
    name: &str,
    written: Option<String>,
    read: impl Fn(&str) -> Option<T>,
    all: &[&str],
) -> Result<Option<T>, Problem> {
    let Some(written) = written else { return Ok(None) };
    read(&written)
        .map(Some)
        .ok_or_else(|| refused(&format!("`{name}` is one of {}", all.join(", "))))
}

/// The least id of a time.
fn first_at(name: &str, written: &str) -> Result<EventId, Problem> {
    let time: Timestamp = written.parse().map_err(|_| {
        refused(&format!("`{name}` is a time in RFC 3339, like 2026-11-25T00:00:00Z"))
    })?;
    Ok(EventId::first_at(u64::try_from(time.as_millisecond()).unwrap_or(0)))
}

fn refused(why: &str) -> Problem {
    Kind::BadQuery.with(format!("The query is refused: {why}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which_events_and_how_many() {
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
    fn a_redrive_means_what_was_delivered_only_if_it_says_so() {
        assert_eq!(delivered(""), Ok(false));
        assert_eq!(delivered("delivered=false"), Ok(false));
        assert_eq!(delivered("delivered=true"), Ok(true));
        for (text, told) in [
            ("delivered", "not `true` or `false`"),
            ("dry_run=true", "unknown field"),
            ("delivered=true&delivered=true", "duplicate"),
        ] {
            let problem = delivered(text).unwrap_err();
            assert_eq!(problem.kind, Kind::BadQuery);
            assert!(problem.detail.contains(told), "{text}: {}", problem.detail);
        }
    }

    #[test]
    fn an_empty_query_asks_for_the_first_page_of_all() {
        let query = Query::parse("").unwrap();
        assert_eq!(
            (query.filter, query.span, query.after),
            (EventFilter::default(), Span::ALL, None)
        );
        assert_eq!(query.size, PageSize { events: DEFAULT_LIMIT, looks: DEFAULT_LIMIT });
    }

    #[test]
    fn a_query_with_a_mistake_is_refused_by_the_parameters_name() {
        for (text, told) in [
            ("sorce=github", "unknown field `sorce`"),
            ("source=git%20hub", "`source`: `git hub` cannot name a source"),
            ("source=a&source=b", "duplicate field `source`"),
            (
                "status=done",
                "`status` is one of queued, processing, retrying, delivered, dead_lettered",
            ),
            ("reason=why", "`reason` is one of permanent, exhausted, lost"),
            ("status_code=teapot", "invalid digit"),
            ("since=yesterday", "`since` is a time in RFC 3339"),
            ("until=2026-11-25", "`until` is a time in RFC 3339"),
            ("after=0199", "`after`: an event id is a UUID"),
            ("limit=0", "`limit` is from 1 to 500"),
            ("limit=501", "`limit` is from 1 to 500"),
            ("dry_run=perhaps", "provided string was not `true` or `false`"),
            ("key=", "`key`: "),
        ] {
            let problem = Query::parse(text).unwrap_err();
            assert_eq!(problem.kind, Kind::BadQuery);
            assert!(problem.detail.contains(told), "{text}: {}", problem.detail);
        }
    }
}
