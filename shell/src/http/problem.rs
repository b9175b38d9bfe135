//! Every error that the HTTP surface answers, as `application/problem+json` (RFC 9457).
//!
//! Not here: what hyper refuses before a request exists (a malformed one gets a bare 400, too large a header section
//! a bare 431).

use crate::visible;
use serde::Serialize;
use warp::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::{Reply, Response};

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// When a producer that was turned away may come back, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $status:ident, $slug:literal, $title:literal;)*) => {
        /// Every kind of problem that there is. Clients may rely on its type and status code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its status code.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status,)* }
            }

            /// Its name, the last part of its URN.
            #[must_use]
            pub fn slug(self) -> &'static str {
                match self { $(Self::$kind => $slug,)* }
            }

            /// What a client compares: a stable URN. It is a name, and not an address to fetch.
            #[must_use]
            pub fn urn(self) -> &'static str {
                match self { $(Self::$kind => concat!("urn:surehook:problem:", $slug),)* }
            }

            /// The kind in a few words, the same for each occurrence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)* }
            }
        }
    };
}

kinds! {
    /// No route has this path.
    UnknownRoute = NOT_FOUND, "unknown-route", "There is nothing at this path";
    /// The route has other methods; `Allow` names them.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method-not-allowed", "The method is not allowed here";
    /// This process takes no webhooks: its role is `worker`.
    NoIntake = NOT_FOUND, "no-intake", "This process takes no webhooks";
    /// The request has no `Host`, more than one, or one that is none.
    HostInvalid = BAD_REQUEST, "host-invalid", "The request does not say which host it is for";
    /// The body has a transfer coding other than `chunked`.
    TransferCoding = NOT_IMPLEMENTED, "transfer-coding", "The transfer coding is not supported";
    /// On an operators' route: the request is for a host by which operators do not reach this listener.
    ForeignHost = FORBIDDEN, "foreign-host", "Operators do not come by this host";
    /// On an operators' route: a page of another site sent the request.
    CrossSite = FORBIDDEN, "cross-site", "A page of another site sent the request";
    /// No source of this name is configured.
    UnknownSource = NOT_FOUND, "unknown-source", "There is no such source";
    /// The header with the idempotency key is not there.
    KeyMissing = BAD_REQUEST, "key-missing", "The idempotency key is missing";
    /// The header is there and is not one idempotency key.
    KeyInvalid = BAD_REQUEST, "key-invalid", "The idempotency key is not valid";
    /// The key belongs to an event with another body.
    KeyReused = UNPROCESSABLE_ENTITY, "key-reused", "The idempotency key was used for another body";
    /// The body is larger than `max_body`, whether its length was declared or not.
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large";
    /// The request did not arrive in time.
    TooSlow = REQUEST_TIMEOUT, "too-slow", "The request came too slowly";
    /// The body ended before its end, or its chunks are malformed. Nothing was stored.
    BodyIncomplete = BAD_REQUEST, "body-incomplete", "The body could not be read to its end";
    /// The database refuses this very event. A `503` although coming back helps only once an operator has seen to it:
    /// until then the event is safest with its producer.
    NotStorable = SERVICE_UNAVAILABLE, "not-storable", "The event could not be stored";
    /// As many requests, or bytes, are waiting as the configuration allows.
    Overloaded = SERVICE_UNAVAILABLE, "overloaded", "Too many requests are waiting";
    /// The process is shutting down.
    ShuttingDown = SERVICE_UNAVAILABLE, "shutting-down", "The process is shutting down";
    /// The database did nothing.
    DatabaseUnavailable = SERVICE_UNAVAILABLE, "database-unavailable", "The database is not available";
    /// The database did not answer in time; what was asked may have been done.
    DatabaseTimeout = SERVICE_UNAVAILABLE, "database-timeout", "The database did not answer in time";
    /// A loop of this process has ended.
    LoopEnded = SERVICE_UNAVAILABLE, "loop-ended", "The process does not work";
    /// The path's id is not an event id.
    BadEventId = BAD_REQUEST, "bad-event-id", "This is not an event id";
    /// A parameter of the query is unknown, or has a value that it cannot have.
    BadQuery = BAD_REQUEST, "bad-query", "The query cannot be answered";
    /// There is no event of this id, or it was pruned.
    UnknownEvent = NOT_FOUND, "unknown-event", "There is no such event";
    /// Only a dead-lettered event can be redriven.
    NotDeadLettered = CONFLICT, "not-dead-lettered", "The event is not dead-lettered";
    /// Only a delivered event can be delivered once more.
    NotDelivered = CONFLICT, "not-delivered", "The event is not delivered";
    /// The body and the headers of the event are not there any more.
    PayloadErased = CONFLICT, "payload-erased", "The event's payload was erased";
    /// A fault of this program.
    Internal = INTERNAL_SERVER_ERROR, "internal", "The request could not be answered";
}

impl Kind {
    /// A problem of this kind. `detail` tells the client what happened and what to do; it never quotes a body, a
    /// header's value, SQL or a stack.
    pub fn with(self, detail: impl Into<String>) -> Problem {
        Problem { kind: self, detail: detail.into(), allow: None }
    }

    /// Whether the connection cannot serve another request: the rest of this one's body is not going to be read, or
    /// the process wants to be rid of it.
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

/// One problem, ready to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of problem.
    pub kind: Kind,
    /// What happened to this request, and what to do.
    pub detail: String,
    allow: Option<&'static str>,
}

impl Problem {
    /// The route is there, the method is not; `allow` names those that are.
    #[must_use]
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let mut problem = Kind::MethodNotAllowed.with(format!("This path answers {allow}."));
        problem.allow = Some(allow);
        problem
    }

    /// The problem as it is sent.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "what is expected cannot fail")]
    pub fn to_json(&self) -> Vec<u8> {
        let document = Document {
            r#type: self.kind.urn(),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
        };
        visible::json(&document).expect("a problem is text and numbers").into_bytes()
    }
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Reply for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(self.to_json().into());
        *response.status_mut() = self.kind.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
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
        let urns: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.urn()).collect();
        assert_eq!(urns.len(), Kind::ALL.len());
        assert!(
            urns.iter()
                .all(|urn| urn.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-' | b':'))),
            "{urns:?}"
        );
    }

    #[test]
    fn whoever_is_turned_away_for_a_while_is_told_when_to_come_back() {
        for kind in Kind::ALL {
            let response = kind.with("…").into_response();
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                kind.status().as_u16() == 503,
                "{kind:?}"
            );
        }
    }
}
