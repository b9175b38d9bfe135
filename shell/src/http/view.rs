//! The JSON representation of events (single and in lists), of their requests and of sources.
//!
//! Times are RFC 3339 in UTC with microseconds, by the database's clock; null if there is none.

use crate::headers::{self, Unreadable};
use crate::metrics::Standing;
use crate::search::{
    ActionEntry, AttemptEntry, BEGINNING_BYTES, EventRecord, FailureGroup, FailureSummary,
    RequestRecord, SourceRecord,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;
use surehook_core::id::EventId;
use surehook_core::time::Instant;
use surehook_core::verdict::MAX_EXCERPT_BYTES;

/// One event with all its attempts and actions.
#[derive(Debug, Serialize)]
pub struct EventView {
    #[serde(flatten)]
    event: Event,
    history: Vec<AttemptView>,
    actions: Vec<ActionView>,
}

/// One event in a list, with its newest attempt.
#[derive(Debug, Serialize)]
pub struct ListedEvent {
    #[serde(flatten)]
    event: Event,
    last_attempt: Option<AttemptView>,
}

#[derive(Debug, Serialize)]
struct Event {
    event_id: String,
    source: String,
    idempotency_key: String,
    status: &'static str,
    attempts: u32,
    max_attempts: Option<u32>,
    received_at: String,
    next_attempt_at: Option<String>,
    settled_at: Option<String>,
    reason: Option<&'static str>,
}

/// The stored request of one event, without its body.
#[derive(Debug, Serialize)]
pub struct RequestView {
    event_id: String,
    source: String,
    /// Of the source, without secrets; null if the source is not configured.
    destination: Option<String>,
    received_at: String,
    /// SHA-256 of the body, in hexadecimal.
    sha256: String,
    /// When retention erased the rest of this view; null if it is stored.
    erased_at: Option<String>,
    #[serde(flatten)]
    payload: Option<PayloadView>,
}

/// What retention can erase.
#[derive(Debug, Serialize)]
struct PayloadView {
    method: &'static str,
    query: String,
    /// In their order, also repeated ones.
    headers: Vec<HeaderView>,
    content_type: Option<String>,
    size: u64,
}

#[derive(Debug, Serialize)]
struct HeaderView {
    name: String,
    value: String,
    /// Present, and true, only if `value` is base64 because it is not text.
    #[serde(skip_serializing_if = "is_false")]
    value_base64: bool,
}

impl RequestView {
    /// The view of the request of an event. `destination` is that of its source, if the source is
    /// configured.
    ///
    /// # Errors
    ///
    /// [`Unreadable`].
    pub fn new(
        id: EventId,
        record: RequestRecord,
        destination: Option<String>,
    ) -> Result<Self, Unreadable> {
        let payload = match record.erased_at {
            Some(_) => None,
            None => Some(PayloadView::new(&record)?),
        };
        Ok(Self {
            event_id: id.to_string(),
            source: record.source,
            destination,
            received_at: rfc3339(record.received_at),
            sha256: record.fingerprint.to_string(),
            erased_at: record.erased_at.map(rfc3339),
            payload,
        })
    }
}

impl PayloadView {
    fn new(record: &RequestRecord) -> Result<Self, Unreadable> {
        let headers = headers::decode(&record.headers)?;
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Ok(Self {
            // Requests with other methods are relayed, and not stored.
            method: "POST",
            // The query of a request is text. Only another program can have stored anything else.
            query: String::from_utf8_lossy(&record.query).into_owned(),
            content_type: headers.get(CONTENT_TYPE).map(text),
            headers: headers.iter().map(HeaderView::new).collect(),
            size: record.body_bytes,
        })
    }
}

impl HeaderView {
    fn new((name, value): (&HeaderName, &HeaderValue)) -> Self {
        let (value, value_base64) = match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => (text.to_owned(), false),
            Err(_) => (STANDARD.encode(value.as_bytes()), true),
        };
        Self { name: name.to_string(), value, value_base64 }
    }
}

/// The failures of undelivered events, in groups.
#[derive(Debug, Serialize)]
pub struct SummaryView {
    groups: Vec<GroupView>,
    more_groups: bool,
    /// The sources of which not all events were examined.
    partial: Vec<String>,
}

#[derive(Debug, Serialize)]
struct GroupView {
    source: String,
    verdict: &'static str,
    status_code: Option<u16>,
    error: Option<String>,
    /// The beginning of the excerpt.
    excerpt: String,
    /// Present, and true, only if `excerpt` is base64 because the response was not text.
    #[serde(skip_serializing_if = "is_false")]
    excerpt_base64: bool,
    events: u32,
    dead_lettered: u32,
    /// Whether the counts are lower bounds.
    at_least: bool,
    first_at: String,
    last_at: String,
    example: String,
}

impl SummaryView {
    #[must_use]
    pub fn new(summary: FailureSummary) -> Self {
        let FailureSummary { groups, has_more, partial } = summary;
        let groups = groups.into_iter().map(|group| GroupView::new(group, &partial)).collect();
        Self { groups, more_groups: has_more, partial }
    }
}

impl GroupView {
    fn new(group: FailureGroup, partial: &[String]) -> Self {
        let (excerpt, excerpt_base64) = text_or_base64(&group.beginning, BEGINNING_BYTES);
        Self {
            at_least: partial.contains(&group.source),
            source: group.source,
            verdict: group.verdict.as_str(),
            status_code: group.status_code,
            error: group.error,
            excerpt,
            excerpt_base64,
            events: group.events,
            dead_lettered: group.dead_lettered,
            first_at: rfc3339(group.first),
            last_at: rfc3339(group.last),
            example: group.example.to_string(),
        }
    }
}

/// The work of one source.
#[derive(Debug, Serialize)]
pub struct SourceView {
    source: String,
    configured: bool,
    paused_since: Option<String>,
    behind_seconds: Option<f64>,
    queued: u32,
    processing: u32,
    retrying: u32,
    dead_lettered: u32,
    /// Whether the counts are lower bounds.
    at_least: bool,
    retries_last_seconds: Option<RetriesLast>,
    this_process: Option<Here>,
}

/// How long the retries of an event take if each attempt fails, without the deliveries.
#[derive(Debug, Serialize)]
struct RetriesLast {
    shortest: f64,
    longest: f64,
}

/// What this process knows about a source since the process started.
#[derive(Debug, Serialize)]
struct Here {
    breaker: &'static str,
    last_success_seconds_ago: Option<f64>,
    last_failure_seconds_ago: Option<f64>,
}

impl SourceView {
    /// The view of a source. `retries_last` comes from this process's configuration; `None` if the
    /// source is not configured. `here` is what this process knows of the source now; `None` if it
    /// does not deliver it.
    #[must_use]
    pub fn new(
        record: SourceRecord,
        retries_last: Option<(Duration, Duration)>,
        here: Option<(Standing, Instant)>,
    ) -> Self {
        let ago =
            |now: Instant, at: Option<Instant>| at.map(|at| milliseconds(now.since(at)) / 1000.0);
        Self {
            source: record.source,
            configured: retries_last.is_some(),
            paused_since: record.paused_since.map(rfc3339),
            behind_seconds: record.behind.map(|behind| milliseconds(behind) / 1000.0),
            queued: record.queued,
            processing: record.processing,
            retrying: record.retrying,
            dead_lettered: record.dead_lettered,
            at_least: record.is_partial,
            retries_last_seconds: retries_last.map(|(shortest, longest)| RetriesLast {
                shortest: milliseconds(shortest) / 1000.0,
                longest: milliseconds(longest) / 1000.0,
            }),
            this_process: here.map(|(standing, now)| Here {
                breaker: standing.breaker.as_str(),
                last_success_seconds_ago: ago(now, standing.last_success),
                last_failure_seconds_ago: ago(now, standing.last_failure),
            }),
        }
    }
}

#[derive(Debug, Serialize)]
struct AttemptView {
    attempt: u32,
    started_at: Option<String>,
    duration_ms: Option<f64>,
    verdict: &'static str,
    status_code: Option<u16>,
    error: Option<String>,
    excerpt: String,
    /// Present, and true, only if `excerpt` is base64 because the response was not text.
    #[serde(skip_serializing_if = "is_false")]
    excerpt_base64: bool,
}

/// A redrive or a discard.
#[derive(Debug, Serialize)]
struct ActionView {
    action: &'static str,
    at: String,
    /// The number of attempts that were started before it.
    attempts: u32,
}

impl EventView {
    /// The view of an event whose source now allows `policy_max_attempts`; `None` if the source is
    /// not configured.
    #[must_use]
    pub fn new(mut record: EventRecord, policy_max_attempts: Option<u32>) -> Self {
        let history = std::mem::take(&mut record.history);
        let actions = std::mem::take(&mut record.actions);
        Self {
            event: Event::new(record, policy_max_attempts),
            history: history.into_iter().map(AttemptView::new).collect(),
            actions: actions.into_iter().map(ActionView::new).collect(),
        }
    }
}

impl ListedEvent {
    /// The view of an event whose history contains only its newest attempt; `policy_max_attempts`
    /// as in [`EventView::new`].
    #[must_use]
    pub fn new(mut record: EventRecord, policy_max_attempts: Option<u32>) -> Self {
        let last_attempt = record.history.pop().map(AttemptView::new);
        Self { event: Event::new(record, policy_max_attempts), last_attempt }
    }
}

impl Event {
    fn new(record: EventRecord, policy_max_attempts: Option<u32>) -> Self {
        Self {
            event_id: record.id.to_string(),
            source: record.source,
            idempotency_key: record.key,
            status: record.status.as_str(),
            attempts: record.attempt,
            max_attempts: policy_max_attempts
                .map(|attempts| record.budget_from.unwrap_or(0).saturating_add(attempts)),
            received_at: rfc3339(record.received_at),
            next_attempt_at: record.next_attempt_at.map(rfc3339),
            settled_at: record.settled_at.map(rfc3339),
            reason: record.reason.map(|reason| reason.as_str()),
        }
    }
}

impl AttemptView {
    fn new(entry: AttemptEntry) -> Self {
        let (excerpt, excerpt_base64) = text_or_base64(&entry.excerpt, MAX_EXCERPT_BYTES);
        Self {
            attempt: entry.attempt,
            started_at: entry
                .took
                .and_then(|took| entry.ended_at.checked_sub(took).ok())
                .map(rfc3339),
            duration_ms: entry.took.map(milliseconds),
            verdict: entry.verdict.as_str(),
            status_code: entry.status_code,
            error: entry.error,
            excerpt,
            excerpt_base64,
        }
    }
}

impl ActionView {
    fn new(entry: ActionEntry) -> Self {
        let ActionEntry { action, at, attempt } = entry;
        Self { action: action.as_str(), at: rfc3339(at), attempts: attempt }
    }
}

/// A time as it is shown and sent: RFC 3339 in UTC, with microseconds.
#[must_use]
pub fn rfc3339(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Milliseconds with a resolution of one microsecond.
fn milliseconds(took: Duration) -> f64 {
    took.as_micros() as f64 / 1000.0
}

/// Text unchanged, anything else in base64. An excerpt that was truncated after `most` bytes, inside a
/// character, is the text before that character.
fn text_or_base64(excerpt: &[u8], most: usize) -> (String, bool) {
    match std::str::from_utf8(excerpt) {
        Ok(text) => (text.to_owned(), false),
        Err(error) if error.error_len().is_none() && excerpt.len() >= most => {
            (String::from_utf8_lossy(&excerpt[..error.valid_up_to()]).into_owned(), false)
        }
        Err(_) => (STANDARD.encode(excerpt), true),
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::json;
    use surehook_core::admission::Fingerprint;
    use surehook_core::event::{Action, Reason, Status};
    use surehook_core::verdict::Verdict;

    fn record() -> EventRecord {
        EventRecord {
            id: "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e".parse::<EventId>().unwrap(),
            source: "github".into(),
            key: "72d3162e".into(),
            received_at: "2026-11-25T00:00:00.123456Z".parse().unwrap(),
            status: Status::Retrying,
            attempt: 1,
            budget_from: Some(0),
            next_attempt_at: Some("2026-11-25T00:00:05.6Z".parse().unwrap()),
            settled_at: None,
            reason: None,
            history: vec![AttemptEntry {
                attempt: 1,
                ended_at: "2026-11-25T00:00:00.5Z".parse().unwrap(),
                took: Some(Duration::from_micros(12_400)),
                verdict: Verdict::Transient,
                status_code: Some(503),
                error: None,
                excerpt: Bytes::from_static(b"try later"),
            }],
            actions: vec![],
        }
    }

    fn shown(record: EventRecord, policy_max_attempts: Option<u32>) -> serde_json::Value {
        serde_json::to_value(EventView::new(record, policy_max_attempts)).unwrap()
    }

    #[test]
    fn an_event_is_shown_as_documented() {
        assert_eq!(
            shown(record(), Some(20)),
            json!({
                "event_id": "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e", "source": "github", "idempotency_key": "72d3162e",
                "status": "retrying", "attempts": 1, "max_attempts": 20,
                "received_at": "2026-11-25T00:00:00.123456Z", "next_attempt_at": "2026-11-25T00:00:05.600000Z",
                "settled_at": null, "reason": null,
                "history": [{
                    "attempt": 1, "started_at": "2026-11-25T00:00:00.487600Z", "duration_ms": 12.4,
                    "verdict": "transient", "status_code": 503, "error": null, "excerpt": "try later",
                }],
                "actions": [],
            })
        );
    }

    fn request() -> RequestRecord {
        RequestRecord {
            source: "github".into(),
            received_at: "2026-11-25T00:00:00.123456Z".parse().unwrap(),
            erased_at: None,
            fingerprint: Fingerprint::of(b"{}"),
            query: Bytes::from_static(b"a=1&a='2'"),
            headers: Bytes::from_static(
                b"content-type: application/json\r\nx-b: 2\r\nx-b: \xff\r\nx-a: \xc3\xa9\r\n\r\n",
            ),
            body_bytes: 2,
        }
    }

    fn shown_request(record: RequestRecord) -> serde_json::Value {
        let destination = Some("https://app.example/".to_owned());
        let id = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e".parse().unwrap();
        serde_json::to_value(RequestView::new(id, record, destination).unwrap()).unwrap()
    }

    #[test]
    fn a_request_is_shown_with_each_header_in_its_order() {
        let mut expected = json!({
            "event_id": "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e", "source": "github",
            "destination": "https://app.example/", "received_at": "2026-11-25T00:00:00.123456Z",
            "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "erased_at": null, "method": "POST", "query": "a=1&a='2'", "content_type": "application/json", "size": 2,
            "headers": [
                {"name": "content-type", "value": "application/json"},
                {"name": "x-b", "value": "2"},
                {"name": "x-b", "value": "/w==", "value_base64": true},
                {"name": "x-a", "value": "é"},
            ],
        });
        assert_eq!(shown_request(request()), expected);

        let erased_at = Some("2026-11-26T00:00:00Z".parse().unwrap());
        let erased = RequestRecord { erased_at, query: Bytes::new(), ..request() };
        expected["erased_at"] = json!("2026-11-26T00:00:00.000000Z");
        for erased in ["method", "query", "content_type", "size", "headers"] {
            expected.as_object_mut().unwrap().remove(erased);
        }
        assert_eq!(shown_request(erased), expected);
    }

    #[test]
    fn groups_of_failures_are_shown_with_the_sources_that_were_not_examined_completely() {
        let group = |source: &str, beginning: &'static [u8]| FailureGroup {
            source: source.to_owned(),
            verdict: Verdict::Permanent,
            status_code: Some(422),
            error: None,
            beginning: Bytes::from_static(beginning),
            events: 600,
            dead_lettered: 599,
            first: "2026-11-25T00:00:00.5Z".parse().unwrap(),
            last: "2026-11-25T00:10:00.5Z".parse().unwrap(),
            example: "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e".parse().unwrap(),
        };
        // Cut after 40 bytes, inside a character.
        let cut = "unknown field `größe`, line 1, offseté".as_bytes();
        let groups = vec![group("orders", &cut[..BEGINNING_BYTES]), group("github", b"\xff")];
        let partial = vec!["orders".to_owned(), "quiet".to_owned()];
        let summary = FailureSummary { groups, has_more: true, partial };
        let shown = serde_json::to_value(SummaryView::new(summary)).unwrap();
        assert_eq!(
            (&shown["more_groups"], &shown["partial"]),
            (&json!(true), &json!(["orders", "quiet"]))
        );
        assert_eq!(
            shown["groups"][0],
            json!({
                "source": "orders", "verdict": "permanent", "status_code": 422, "error": null,
                "excerpt": "unknown field `größe`, line 1, offset", "events": 600, "dead_lettered": 599, "at_least": true,
                "first_at": "2026-11-25T00:00:00.500000Z", "last_at": "2026-11-25T00:10:00.500000Z",
                "example": "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e",
            })
        );
        let other = &shown["groups"][1];
        assert_eq!((&other["excerpt"], &other["excerpt_base64"]), (&json!("/w=="), &json!(true)));
        assert_eq!(other["at_least"], false);
    }

    #[test]
    fn headers_that_another_program_changed_are_not_shown() {
        let record = RequestRecord { headers: Bytes::from_static(b"no colon"), ..request() };
        let id = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e".parse().unwrap();
        assert!(RequestView::new(id, record, None).is_err());
    }

    #[test]
    fn a_lost_attempt_has_neither_start_nor_duration() {
        let mut record = record();
        record.status = Status::DeadLettered;
        record.reason = Some(Reason::Lost);
        record.history[0] = AttemptEntry {
            took: None,
            verdict: Verdict::Lost,
            status_code: None,
            error: None,
            excerpt: Bytes::new(),
            ..record.history[0].clone()
        };
        let shown = shown(record, Some(1));
        assert_eq!(shown["reason"], "lost");
        let expected = json!({
            "attempt": 1, "started_at": null, "duration_ms": null, "verdict": "lost", "status_code": null, "error": null, "excerpt": "",
        });
        assert_eq!(shown["history"][0], expected);
    }

    #[test]
    fn each_action_is_shown_with_its_time_and_the_attempts_before_it() {
        let action = |action, attempt| ActionEntry {
            action,
            at: "2026-11-25T00:00:01.5Z".parse().unwrap(),
            attempt,
        };
        let actions = vec![
            action(Action::Discarded, 0),
            action(Action::RedrivenByReplay, 0),
            action(Action::Redriven, 3),
        ];
        let shown = shown(EventRecord { actions, ..record() }, None);
        let at = "2026-11-25T00:00:01.500000Z";
        assert_eq!(
            shown["actions"],
            json!([
                {"action": "discarded", "at": at, "attempts": 0},
                {"action": "redriven_by_replay", "at": at, "attempts": 0},
                {"action": "redriven", "at": at, "attempts": 3},
            ])
        );
    }

    #[test]
    fn max_attempts_counts_the_current_retry_budget() {
        let with = |budget_from, policy| {
            shown(EventRecord { budget_from, ..record() }, policy)["max_attempts"].clone()
        };
        assert_eq!(with(Some(7), Some(20)), 27);
        assert_eq!(with(Some(u32::MAX), Some(20)), u32::MAX);
        assert_eq!(with(None, Some(20)), 20, "a delivered event has no budget");
        assert_eq!(
            with(Some(7), None),
            serde_json::Value::Null,
            "the source is no longer configured"
        );
    }

    #[test]
    fn an_excerpt_that_is_not_text_is_marked_as_base64() {
        let mut cut = "é".repeat(600).into_bytes();
        cut.insert(0, b'a');
        cut.truncate(MAX_EXCERPT_BYTES);
        assert_eq!(text_or_base64(b"caf\xc3\xa9", MAX_EXCERPT_BYTES), ("café".into(), false));
        assert_eq!(
            text_or_base64(&cut, MAX_EXCERPT_BYTES),
            (format!("a{}", "é".repeat(511)), false),
            "truncated inside a character"
        );
        assert_eq!(
            text_or_base64(b"caf\xc3", MAX_EXCERPT_BYTES),
            ("Y2Fmww==".into(), true),
            "too short to be truncated by surehook"
        );
        assert_eq!(text_or_base64(&[0xff, 0x00], MAX_EXCERPT_BYTES), ("/wA=".into(), true));

        let mut record = record();
        record.history[0].excerpt = Bytes::from_static(&[0xff, 0x00]);
        assert_eq!(shown(record, None)["history"][0]["excerpt_base64"], true);
    }
}
