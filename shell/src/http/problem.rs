//! The error responses of the HTTP interface, as `application/problem+json` (RFC 9457).
//!
//! Not here: the errors that hyper answers before a request exists. A malformed request gets a
//! `400` without a body, and headers that are too large get a `431` without a body.

use crate::visible;
use serde::Serialize;
use surehook_core::id::EventId;
use warp::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::{Reply, Response};

/// The media type of every error response.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// How long clients should wait before they retry after a `503`, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $status:ident, $slug:literal, $title:literal;)*) => {
        /// The kinds of problems. Clients may rely on the type and the status code of each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ProblemKind {
            $($(#[$doc])* $kind,)*
        }

        impl ProblemKind {
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status,)* }
            }

            /// The last part of its URN.
            #[must_use]
            pub fn slug(self) -> &'static str {
                match self { $(Self::$kind => $slug,)* }
            }

            /// The stable URN that clients compare. It is a name, not an address to fetch.
            #[must_use]
            pub fn urn(self) -> &'static str {
                match self { $(Self::$kind => concat!("urn:surehook:problem:", $slug),)* }
            }

            /// A short description, the same for each occurrence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)* }
            }
        }
    };
}

kinds! {
    /// No route has this path.
    UnknownRoute = NOT_FOUND, "unknown-route", "Unknown path";
    /// The route exists, but not with this method; `Allow` lists its methods.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed";
    /// This process accepts no webhooks: its role is `worker`.
    NoIntake = NOT_FOUND, "no-intake", "This process accepts no webhooks";
    /// The request has no `Host`, more than one, or an invalid one.
    HostInvalid = BAD_REQUEST, "host-invalid", "The Host header is missing or invalid";
    /// The body has a transfer coding other than `chunked`.
    TransferCoding = NOT_IMPLEMENTED, "transfer-coding", "The transfer coding is not supported";
    /// On an operator route: the listener does not serve operators under the host of the request.
    ForeignHost = FORBIDDEN, "foreign-host", "The host is not allowed on operator routes";
    /// On an operator route: a page of another site sent the request.
    CrossSite = FORBIDDEN, "cross-site", "A page of another site sent the request";
    /// No source of this name is configured.
    UnknownSource = NOT_FOUND, "unknown-source", "Unknown source";
    /// No place of the source's idempotency key is present.
    KeyMissing = BAD_REQUEST, "key-missing", "The idempotency key is missing";
    /// A place of the idempotency key is present, and does not contain exactly one valid key.
    KeyInvalid = BAD_REQUEST, "key-invalid", "The idempotency key is not valid";
    /// The key belongs to an event with another body.
    KeyReused = UNPROCESSABLE_ENTITY, "key-reused", "The idempotency key was used for another body";
    /// The body is larger than `max_body` of the source, whether its length was declared or not.
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large";
    /// The request did not arrive in time.
    TooSlow = REQUEST_TIMEOUT, "too-slow", "The request did not arrive in time";
    /// The body ended early, or its chunks are malformed. Nothing was stored.
    BodyIncomplete = BAD_REQUEST, "body-incomplete", "The body is incomplete or malformed";
    /// The database refuses to store this event. The status is `503`, although a retry helps only
    /// after an operator has fixed the cause: until then the event is safest with its producer.
    NotStorable = SERVICE_UNAVAILABLE, "not-storable", "The event could not be stored";
    /// The limit of waiting requests, or of their bytes, is reached.
    Overloaded = SERVICE_UNAVAILABLE, "overloaded", "Too many requests are waiting";
    /// On `/ready`: the process is draining. On a webhook: the process ended before it could store it.
    ShuttingDown = SERVICE_UNAVAILABLE, "shutting-down", "The process is shutting down";
    /// The database is not available. The request had no effect.
    DatabaseUnavailable = SERVICE_UNAVAILABLE, "database-unavailable", "The database is not available";
    /// The database did not respond in time. The request may have taken effect.
    DatabaseTimeout = SERVICE_UNAVAILABLE, "database-timeout", "The database did not respond in time";
    /// A relayed request got no complete response from the destination, or one that cannot be passed
    /// back. It may have reached the destination.
    RelayFailed = BAD_GATEWAY, "relay-failed", "The request could not be relayed";
    /// The destination did not respond to a relayed request in time.
    RelayTimeout = GATEWAY_TIMEOUT, "relay-timeout", "The destination did not respond in time";
    /// A loop of this process has ended.
    LoopEnded = SERVICE_UNAVAILABLE, "loop-ended", "A loop of the process has ended";
    /// The id in the path is not an event id.
    BadEventId = BAD_REQUEST, "bad-event-id", "The event id is not valid";
    /// A query parameter is unknown or has an invalid value.
    BadQuery = BAD_REQUEST, "bad-query", "The query is not valid";
    /// No event has this id, or it was pruned.
    UnknownEvent = NOT_FOUND, "unknown-event", "Unknown event";
    /// Only a dead-lettered event can be redriven.
    NotDeadLettered = CONFLICT, "not-dead-lettered", "The event is not dead-lettered";
    /// Only a delivered event can be redriven with `delivered=true`.
    NotDelivered = CONFLICT, "not-delivered", "The event is not delivered";
    /// Only a dead letter is discarded, or an event that waits for a source that is not configured.
    NotDiscardable = CONFLICT, "not-discardable", "The event cannot be discarded";
    /// The query, the headers and the body of the event were erased.
    PayloadErased = CONFLICT, "payload-erased", "The headers and body of the event were erased";
    /// A bug or an unexpected error in this program.
    Internal = INTERNAL_SERVER_ERROR, "internal", "Internal error";
}

impl ProblemKind {
    /// A problem of this kind. `detail` tells the client what happened and what to do. It never
    /// contains a body, a header value, SQL or a stack trace.
    pub fn with(self, detail: impl Into<String>) -> Problem {
        Problem { kind: self, detail: detail.into(), event_id: None, allow: None }
    }

    /// Whether a post to the route of a configured source can have this problem.
    pub(crate) fn is_of_webhooks(self) -> bool {
        match self {
            Self::KeyMissing
            | Self::KeyInvalid
            | Self::KeyReused
            | Self::BodyTooLarge
            | Self::TooSlow
            | Self::BodyIncomplete
            | Self::NotStorable
            | Self::Overloaded
            | Self::ShuttingDown
            | Self::DatabaseUnavailable
            | Self::DatabaseTimeout
            | Self::RelayFailed
            | Self::RelayTimeout
            | Self::LoopEnded
            | Self::MethodNotAllowed
            | Self::HostInvalid
            | Self::TransferCoding
            | Self::Internal => true,
            Self::UnknownRoute
            | Self::NoIntake
            | Self::ForeignHost
            | Self::CrossSite
            | Self::UnknownSource
            | Self::BadEventId
            | Self::BadQuery
            | Self::UnknownEvent
            | Self::NotDeadLettered
            | Self::NotDelivered
            | Self::NotDiscardable
            | Self::PayloadErased => false,
        }
    }

    /// Whether the connection closes after the response: the rest of the request's body will not be
    /// read, or the process is shutting down.
    fn ends_connection(self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge
                | Self::TooSlow
                | Self::BodyIncomplete
                | Self::ShuttingDown
                | Self::HostInvalid
                | Self::TransferCoding
        )
    }
}

/// One error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemKind,
    /// What happened to this request, and what to do.
    pub detail: String,
    /// The event that the problem is about, if the request does not name it.
    pub event_id: Option<EventId>,
    allow: Option<String>,
}

impl Problem {
    /// The route exists, but not with this method. `allow` lists its methods.
    #[must_use]
    pub fn method_not_allowed(allow: String) -> Self {
        let mut problem =
            ProblemKind::MethodNotAllowed.with(format!("This path supports {allow}."));
        problem.allow = Some(allow);
        problem
    }

    /// The same problem, with the event that it is about.
    #[must_use]
    pub fn about(self, event: EventId) -> Self {
        Self { event_id: Some(event), ..self }
    }

    /// The JSON body of the response.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "serializing text and numbers cannot fail")]
    pub fn to_json(&self) -> Vec<u8> {
        let document = Document {
            r#type: self.kind.urn(),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            event_id: self.event_id.as_ref().map(ToString::to_string),
        };
        visible::json(&document).expect("text and numbers can be serialized").into_bytes()
    }
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
}

impl Reply for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(self.to_json().into());
        *response.status_mut() = self.kind.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(Ok(allow)) = self.allow.map(HeaderValue::try_from) {
            headers.insert(ALLOW, allow);
        }
        if self.kind.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        if self.kind.ends_connection() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_kinds_share_a_type() {
        let urns: BTreeSet<&str> = ProblemKind::ALL.iter().map(|kind| kind.urn()).collect();
        assert_eq!(urns.len(), ProblemKind::ALL.len());
        assert!(
            urns.iter()
                .all(|urn| urn.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-' | b':'))),
            "{urns:?}"
        );
    }

    #[test]
    fn only_503_responses_have_retry_after() {
        for kind in ProblemKind::ALL {
            let response = kind.with("…").into_response();
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                kind.status().as_u16() == 503,
                "{kind:?}"
            );
        }
    }
}
