//! Which of a producer's headers are forwarded to the downstream, and which headers of a downstream's
//! response to a relayed request go back. The values of forwarded headers are neither read nor
//! changed. Only the values of `Connection` are read. [`query`] is the same for the query.
//!
//! Names are compared in the form that the downstream may see. CGI, WSGI and Rack map both
//! `Surehook-Source` and `Surehook_Source` to the variable `HTTP_SUREHOOK_SOURCE`. Some servers do
//! the same with every character that is neither a letter nor a digit. So all such characters are
//! equal here.

pub mod query;

use alloc::borrow::Cow;
use alloc::collections::BTreeSet;
use alloc::string::String;

/// Headers that describe one connection or one request and not the event (RFC 9110 §7.6.1), and
/// headers that each delivery sets itself.
const NOT_FORWARDED: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    // Becomes `HTTP_PROXY`, which HTTP clients of a CGI program use as their proxy (CVE-2016-5385).
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The prefix of Surehook's own headers. A downstream may trust them, so a producer's headers with
/// this prefix are dropped.
const OURS: &str = "surehook-";

/// Headers that carry credentials. They are neither stored nor forwarded unless the source is
/// configured to do so.
const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];

/// Carries the event's id in every delivery. A downstream can use it as its idempotency key.
pub const EVENT_ID_HEADER: &str = "surehook-event-id";
/// Carries the source's name in every delivery.
pub const SOURCE_HEADER: &str = "surehook-source";
/// Carries the number of the attempt in every delivery, from 1.
pub const ATTEMPT_HEADER: &str = "surehook-attempt";

/// Carries the time at which the event was stored in every delivery, as RFC 3339. It is the same at
/// each attempt.
pub const RECEIVED_AT_HEADER: &str = "surehook-received-at";

/// Decides which headers of one request or response are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    named_by_connection: BTreeSet<String>,
    forward_credentials: bool,
}

impl Forwarding {
    /// Creates the rule for a request with these values of `Connection`. `forward_credentials` is a
    /// setting of the source.
    #[must_use]
    pub fn new<'a>(connection: impl Iterator<Item = &'a [u8]>, forward_credentials: bool) -> Self {
        let named_by_connection = connection
            .flat_map(|value| value.split(|&byte| byte == b','))
            .filter_map(|token| core::str::from_utf8(token.trim_ascii()).ok())
            .map(|token| as_seen(&token.to_ascii_lowercase()).into_owned())
            .collect();
        Self { named_by_connection, forward_credentials }
    }

    /// The rule for a response with these values of `Connection`, which goes back to a producer.
    #[must_use]
    pub fn of_response<'a>(connection: impl Iterator<Item = &'a [u8]>) -> Self {
        Self::new(connection, true)
    }

    /// Whether the header `name` is forwarded. `name` must be in lower case.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        let name = as_seen(name);
        !name.starts_with(OURS)
            && !NOT_FORWARDED.contains(&name.as_ref())
            && !self.named_by_connection.contains(name.as_ref())
            && (self.forward_credentials || !CREDENTIALS.contains(&name.as_ref()))
    }
}

/// Why a configuration cannot set a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSettable {
    /// It concerns one connection.
    Connection,
    /// Each request sets it itself.
    OfEachRequest,
    /// It is one of Surehook's own.
    Own,
    /// It becomes `HTTP_PROXY` in a CGI program.
    Proxy,
}

/// Whether a configuration can set the header `name` for all requests to a destination. `name` must be
/// in lower case.
///
/// # Errors
///
/// Why it cannot.
pub fn settable(name: &str) -> Result<(), NotSettable> {
    let name = as_seen(name);
    match name.as_ref() {
        name if name.starts_with(OURS) => Err(NotSettable::Own),
        "host" | "content-length" => Err(NotSettable::OfEachRequest),
        "proxy" => Err(NotSettable::Proxy),
        name if NOT_FORWARDED.contains(&name) => Err(NotSettable::Connection),
        _ => Ok(()),
    }
}

/// Whether a downstream may take two names for the same. Both must be in lower case.
#[must_use]
pub fn is_same(one: &str, other: &str) -> bool {
    as_seen(one) == as_seen(other)
}

/// A lower-case name as the downstream may see it: each character that is neither a letter nor a
/// digit becomes `-`.
fn as_seen(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_headers_are_not_forwarded() {
        let rule = Forwarding::new([&b"close, X-Hop"[..], b"x-other"].into_iter(), false);
        for name in [
            "connection",
            "transfer-encoding",
            "host",
            "content-length",
            "x-hop",
            "x-other",
            "surehook-event-id",
        ] {
            assert!(!rule.allows(name), "{name}");
        }
        for name in [
            "content-type",
            "x-hub-signature-256",
            "user-agent",
            "accept",
            "content-encoding",
            "traceparent",
        ] {
            assert!(rule.allows(name), "{name}");
        }
    }

    #[test]
    fn producers_cannot_forge_surehook_headers_in_any_spelling() {
        let rule = Forwarding::new(core::iter::empty(), true);
        for name in [
            EVENT_ID_HEADER,
            SOURCE_HEADER,
            ATTEMPT_HEADER,
            RECEIVED_AT_HEADER,
            "surehook-",
            "content-length",
            "proxy",
        ] {
            for separator in ["-", "_", ".", "~"] {
                let spelled = name.replace('-', separator);
                assert!(!rule.allows(&spelled), "{spelled}");
            }
        }
        for name in ["x-surehook-source", "surehooks", "x-proxy", "x_request_id", "content_type"] {
            assert!(rule.allows(name), "{name}");
        }
    }

    #[test]
    fn connection_headers_are_dropped_in_every_spelling() {
        let rule = Forwarding::new([&b"X-Hop, y_hop"[..]].into_iter(), true);
        for name in ["x-hop", "x_hop", "y-hop", "y_hop", "transfer_encoding", "keep_alive"] {
            assert!(!rule.allows(name), "{name}");
        }
    }

    #[test]
    fn only_headers_that_are_forwarded_can_be_set() {
        for (name, why) in [
            ("transfer-encoding", NotSettable::Connection),
            ("keep_alive", NotSettable::Connection),
            ("host", NotSettable::OfEachRequest),
            ("content_length", NotSettable::OfEachRequest),
            ("surehook_event_id", NotSettable::Own),
            ("surehook-anything", NotSettable::Own),
            ("proxy", NotSettable::Proxy),
        ] {
            assert_eq!(settable(name), Err(why), "{name}");
        }
        let rule = Forwarding::new(core::iter::empty(), true);
        for name in ["authorization", "cookie", "x-token", "content-type", "surehooks", "x-host"] {
            assert_eq!(settable(name), Ok(()), "{name}");
        }
        for name in NOT_FORWARDED {
            assert!(settable(name).is_err() && !rule.allows(name), "{name}");
        }
    }

    #[test]
    fn names_that_a_downstream_may_confuse_are_the_same() {
        assert!(is_same("x-token", "x_token") && is_same("x.token", "x~token"));
        assert!(!is_same("x-token", "x-tokens") && !is_same("x-token", "xtoken"));
    }

    #[test]
    fn credentials_are_forwarded_only_if_the_source_allows_it() {
        for name in CREDENTIALS {
            assert!(!Forwarding::new(core::iter::empty(), false).allows(name));
            assert!(Forwarding::new(core::iter::empty(), true).allows(name));
        }
    }
}
