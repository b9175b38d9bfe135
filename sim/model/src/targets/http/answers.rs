//! Parses what a client received as a client would, and compares it with what the client sent and
//! what is stored.

use super::watched::Posted;
use super::{LENIENT_BODY, LENIENT_MEDIA_TYPE, MAX_BODY, MAX_QUEUED_BYTES, Manner};
use crate::database::Database;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Method, StatusCode, Version};
use serde_json::Value;
use std::collections::BTreeSet;
use surehook::headers::{MAX_HEADERS, decode};
use surehook::http::REPLAYED_HEADER;
use surehook::http::problem::{MEDIA_TYPE, ProblemKind};
use surehook::metrics;
use surehook_core::event::Status;
use surehook_core::forwarding::EVENT_ID_HEADER;
use surehook_core::key::IdempotencyKey;

/// A parsed response.
struct Answer<'d> {
    status: StatusCode,
    headers: Vec<(String, &'d [u8])>,
    body: &'d [u8],
}

/// Checks all responses. `before` is the number of events at the start.
pub(super) fn check(
    manner: Manner,
    received: &[u8],
    requests: &[Posted],
    tables: &Database,
    before: usize,
) {
    let mut rest = received;
    let mut accepted = BTreeSet::new();
    let mut answered = 0;
    while !rest.is_empty() {
        let request = requests.get(answered);
        let (answer, after) =
            Answer::read(rest, request.is_some_and(|request| request.head.method == Method::HEAD));
        rest = after;
        if answer.status.is_informational() {
            continue;
        }
        answered += 1;
        match request {
            None => {
                by_the_server_itself(&answer);
                assert!(
                    rest.is_empty(),
                    "a response after the server's last one: {:?}",
                    String::from_utf8_lossy(rest)
                );
            }
            Some(request) => accepted.extend(answer.check(manner, request, tables)),
        }
    }
    let unanswered = requests.get(answered..).unwrap_or_default();
    assert!(unanswered.len() <= 1, "several requests have no response: {unanswered:?}");
    // A client that closes its side before its request is complete may have hung up. After a
    // complete request it gets a response.
    assert!(
        unanswered.iter().all(|request| !request.whole),
        "a complete request has no response: {unanswered:?}"
    );
    let new = tables.events.len() - before;
    assert_eq!(
        new,
        accepted.len(),
        "the number of new events differs from that of responses for new events"
    );
}

/// hyper answers input that is not HTTP with an empty response.
fn by_the_server_itself(answer: &Answer<'_>) {
    assert!(
        matches!(answer.status.as_u16(), 400 | 414 | 431 | 501 | 505),
        "status {} without a request",
        answer.status
    );
    assert!(answer.body.is_empty());
}

impl<'d> Answer<'d> {
    /// Parses the first response. Returns the remaining bytes too.
    fn read(received: &'d [u8], to_head: bool) -> (Self, &'d [u8]) {
        let shown = || String::from_utf8_lossy(received).into_owned();
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(received) {
            Ok(httparse::Status::Complete(length)) => length,
            other => panic!("not an HTTP response, {other:?}: {:?}", shown()),
        };
        let status = StatusCode::from_u16(response.code.expect("the head is complete"))
            .expect("the status code is valid");
        let headers = response
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), header.value))
            .collect();
        let mut answer = Self { status, headers, body: &[] };
        let after = &received[length..];
        if status.is_informational() {
            return (answer, after);
        }
        let declared = answer
            .header("content-length")
            .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        let declared: usize = declared
            .unwrap_or_else(|| panic!("a response without `content-length`: {:?}", shown()));
        let (body, after) =
            after.split_at_checked(if to_head { 0 } else { declared }).unwrap_or_else(|| {
                panic!("the body is shorter than its `content-length`: {:?}", shown())
            });
        answer.body = body;
        (answer, after)
    }

    /// The value of a header, which must not be repeated.
    fn header(&self, name: &str) -> Option<&'d [u8]> {
        let mut values =
            self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| *value);
        let value = values.next();
        assert!(values.next().is_none(), "the response has `{name}` twice");
        value
    }

    /// Checks a response to a request. Returns the event's id if the response says that it is new.
    fn check(&self, manner: Manner, request: &Posted, tables: &Database) -> Option<String> {
        let (status, head) = (self.status, &request.head);
        let refused_coding = status == StatusCode::NOT_IMPLEMENTED && coded(head);
        assert!(
            !status.is_server_error()
                || status == StatusCode::SERVICE_UNAVAILABLE
                || refused_coding,
            "status {status} for {head:?}"
        );
        let acknowledged_id = self.header(EVENT_ID_HEADER).map(|id| {
            std::str::from_utf8(id).expect("the id in an acknowledgement is text").to_owned()
        });
        assert!(
            !manner.draining || self.header("connection") == Some(b"close"),
            "a draining process keeps a connection open"
        );
        let kind = self.header("content-type").expect("every response has a content type");
        if head.method == Method::HEAD {
            return None;
        }
        // The responses of `/metrics` and of the route for bodies are not JSON.
        if kind == metrics::MEDIA_TYPE.as_bytes() {
            assert_eq!(
                (status, head.uri.path().trim_end_matches('/')),
                (StatusCode::OK, "/metrics")
            );
            let text = std::str::from_utf8(self.body).expect("metrics are UTF-8");
            assert!(
                text.lines().all(|line| line.starts_with("surehook_") || line.starts_with("# ")),
                "{text}"
            );
            return None;
        }
        if kind == b"application/octet-stream" {
            self.stored_body(head, tables);
            return None;
        }
        let is_lenient = path_of_webhook(head) == Some("lenient");
        if let Some(id) = acknowledged_id.as_ref().filter(|_| is_lenient) {
            assert_eq!(
                (status, kind, self.body),
                (StatusCode::OK, LENIENT_MEDIA_TYPE.as_bytes(), LENIENT_BODY)
            );
            return self.new_event(id, request, tables);
        }
        let body: Value =
            serde_json::from_slice(self.body).unwrap_or_else(|error| panic!("not JSON: {error}"));
        if status.is_success() {
            assert_eq!(kind, b"application/json");
        } else {
            assert_eq!(kind, MEDIA_TYPE.as_bytes());
            self.problem(&body);
        }
        assert_eq!(status == StatusCode::ACCEPTED, acknowledged_id.is_some());
        let Some(id) = acknowledged_id else {
            turned_away(status, manner, request, tables);
            return None;
        };
        assert_eq!(body["event_id"].as_str(), Some(&*id));
        let told = body["status"].as_str().expect("a `202` has a status");
        // The strict source redrives on a replay, and new events do not end in this test.
        assert!(
            Status::from_name(told).is_some_and(|status| status != Status::DeadLettered),
            "{body}"
        );
        self.new_event(&id, request, tables)
    }

    /// A body is sent as it is stored.
    fn stored_body(&self, head: &Parts, tables: &Database) {
        let path = head.uri.path().trim_end_matches('/');
        let id = path.strip_prefix("/events/").and_then(|rest| rest.strip_suffix("/body"));
        let id = id.unwrap_or_else(|| panic!("{path} is not the route of a body"));
        let stored = &tables.events[&id.parse().expect("the event id is valid")];
        assert_eq!((self.status, self.body), (StatusCode::OK, &stored.event.body[..]));
    }

    /// Checks an acknowledgement. Returns the event's id if it says that the event is new.
    fn new_event(&self, id: &str, request: &Posted, tables: &Database) -> Option<String> {
        let replayed = self.header(REPLAYED_HEADER.as_str()).is_some();
        acknowledged(id, replayed, request, tables);
        (!replayed).then(|| id.to_owned())
    }

    /// The body must follow RFC 9457 and be of a documented kind.
    fn problem(&self, body: &Value) {
        let status = self.status;
        let kind = ProblemKind::ALL
            .iter()
            .find(|kind| body["type"] == kind.urn())
            .unwrap_or_else(|| panic!("an undocumented problem type: {body}"));
        assert_eq!(
            (kind.status(), &body["title"], &body["status"]),
            (status, &Value::from(kind.title()), &Value::from(status.as_u16()))
        );
        assert!(body["detail"].as_str().is_some_and(|detail| detail.ends_with('.')), "{body}");
        assert_eq!(self.header("allow").is_some(), status == StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(self.header("retry-after").is_some(), status == StatusCode::SERVICE_UNAVAILABLE);
    }
}

/// A refusal must have a cause in the request. Otherwise a server that refuses everything would
/// keep every other promise.
fn turned_away(status: StatusCode, manner: Manner, request: &Posted, tables: &Database) {
    let (head, body) = (&request.head, &request.body);
    let Some(source) = path_of_webhook(head) else { return };
    let Some(header) = key_header(source) else { return };
    let mut keys = head.headers.get_all(header).iter();
    let (Some(Ok(key)), None) =
        (keys.next().map(|key| IdempotencyKey::parse(key.as_bytes())), keys.next())
    else {
        return;
    };
    if manner.only_delivers || head.method != Method::POST {
        return;
    }
    let declared = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let headers: usize = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len())
        .sum();
    let mut events = tables.events.values().map(|row| &row.event);
    let first = events.find(|event| event.source.as_str() == source && event.key == key);
    let right = match status {
        StatusCode::BAD_REQUEST => !request.whole || !names_its_host(head),
        StatusCode::NOT_IMPLEMENTED => coded(head),
        StatusCode::PAYLOAD_TOO_LARGE => {
            body.len() > MAX_BODY || declared.is_some_and(|bytes| bytes > MAX_BODY as u64)
        }
        StatusCode::UNPROCESSABLE_ENTITY => {
            source == "strict" && first.is_some_and(|first| first.body != body)
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            let query = head.uri.query().unwrap_or_default().len();
            query + headers + "\r\n".len() + MAX_BODY > MAX_QUEUED_BYTES
        }
        _ => false,
    };
    assert!(right, "status {status} for a webhook without a cause for it: {request:?}");
}

/// The source in the path of a webhook.
fn path_of_webhook(head: &Parts) -> Option<&str> {
    let path = head.uri.path().strip_prefix("/webhooks/")?;
    Some(path.strip_suffix('/').unwrap_or(path))
}

/// Whether a request has exactly one plain `host` header, or needs none.
fn names_its_host(head: &Parts) -> bool {
    let hosts: Vec<_> = head.headers.get_all(HOST).iter().collect();
    let plain = |host: &[u8]| {
        !host.is_empty()
            && host.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte))
    };
    match hosts[..] {
        [] => head.version < Version::HTTP_11,
        [host] => plain(host.as_bytes()),
        _ => false,
    }
}

/// Whether a body has a transfer coding other than `chunked`.
fn coded(head: &Parts) -> bool {
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.next().is_some()
}

/// The header with the key of a source, if that source exists.
fn key_header(source: &str) -> Option<&'static str> {
    match source {
        "strict" => Some("idempotency-key"),
        "lenient" => Some("x-github-delivery"),
        _ => None,
    }
}

/// An acknowledgement is allowed only for a webhook that was posted completely and is stored unchanged.
fn acknowledged(id: &str, replayed: bool, request: &Posted, tables: &Database) {
    let head = &request.head;
    assert!(
        head.method == Method::POST && head.version <= Version::HTTP_11 && request.whole,
        "accepted, but not a complete POST: {request:?}"
    );
    assert!(
        head.headers.get_all(HOST).iter().count() == 1 || head.version < Version::HTTP_11,
        "accepted without exactly one host: {request:?}"
    );
    let codings = head
        .headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let codings = codings.map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty());
    assert!(
        codings.filter(|coding| !coding.eq_ignore_ascii_case(b"chunked")).count() == 0,
        "stored with a transfer coding: {request:?}"
    );
    let stored = &tables
        .events
        .get(&id.parse().expect("the event id is valid"))
        .unwrap_or_else(|| panic!("{id} is not stored"))
        .event;
    let path = head
        .uri
        .path()
        .strip_prefix("/webhooks/")
        .expect("the route is that of webhooks")
        .trim_end_matches('/');
    assert_eq!(stored.source.as_str(), path, "the event is stored for a different source");
    let lenient = path == "lenient";
    let keys: Vec<_> =
        head.headers.get_all(key_header(path).expect("the source exists")).iter().collect();
    assert!(
        matches!(keys[..], [key] if IdempotencyKey::parse(key.as_bytes()).as_ref() == Ok(&stored.key)),
        "the key {keys:?} is stored as {}",
        stored.key
    );
    if !(replayed && lenient) {
        assert_eq!(
            stored.body.as_ref(),
            request.body,
            "the stored body differs from the posted one"
        );
    }
    if !replayed {
        let posted = head.uri.query().filter(|_| !lenient).unwrap_or_default();
        assert_eq!(stored.query, posted, "the stored query differs from the posted one");
        let kept = decode(&stored.headers).expect("stored headers are readable");
        for name in kept.keys() {
            assert!(
                kept.get_all(name).iter().eq(head.headers.get_all(name)),
                "`{name}` is stored as {:?}",
                kept.get_all(name)
            );
        }
        // The producer's own headers are stored, except those that `Connection` names.
        let hops: Vec<_> = head
            .headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .collect();
        for name in head.headers.keys().filter(|name| name.as_str().starts_with("x-")) {
            let hop =
                hops.iter().any(|hop| seen_as_one(hop.trim_ascii(), name.as_str().as_bytes()));
            assert_ne!(
                kept.contains_key(name),
                hop,
                "`{name}` must be stored exactly if `Connection` does not name it"
            );
        }
        for name in [CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE] {
            assert!(!kept.contains_key(&name), "`{name}` is stored");
        }
        let credentials = kept.contains_key("authorization") || kept.contains_key("cookie");
        assert!(lenient || !credentials, "credentials are stored");
    }
}

/// Whether a downstream may treat two header names as equal. Some compare only letters and digits.
fn seen_as_one(one: &[u8], other: &[u8]) -> bool {
    let equal = |(a, b): (&u8, &u8)| {
        a.eq_ignore_ascii_case(b) || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric())
    };
    one.len() == other.len() && one.iter().zip(other).all(equal)
}
