//! Which of a producer's headers go on to the downstream. Their values are never looked at, and never changed.

use alloc::collections::BTreeSet;
use alloc::string::String;

/// Headers that speak of one connection or one request, not of the event (RFC 9110 §7.6.1 and what is rebuilt for
/// each delivery).
const NOT_FORWARDED: [&str; 16] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    EVENT_ID_HEADER,
    SOURCE_HEADER,
    ATTEMPT_HEADER,
];

/// Headers that let their bearer in. Neither stored nor forwarded unless the source says so.
const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];

/// Bears the event's id in every delivery: the downstream's own idempotency key.
pub const EVENT_ID_HEADER: &str = "surehook-event-id";
/// Bears the source's name in every delivery.
pub const SOURCE_HEADER: &str = "surehook-source";
/// Bears the number of the attempt in every delivery, from 1.
pub const ATTEMPT_HEADER: &str = "surehook-attempt";

/// The rule for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    named_by_connection: BTreeSet<String>,
    forward_credentials: bool,
}

impl Forwarding {
    /// The rule for a request with these `Connection` header values, for a source that does or does not forward
    /// credentials.
    #[must_use]
    pub fn new<'a>(connection: impl Iterator<Item = &'a [u8]>, forward_credentials: bool) -> Self {
        let named_by_connection = connection
            .flat_map(|value| value.split(|&byte| byte == b','))
            .filter_map(|token| core::str::from_utf8(token.trim_ascii()).ok())
            .map(str::to_ascii_lowercase)
            .collect();
        Self { named_by_connection, forward_credentials }
    }

    /// Whether the header of this name goes on. `name` is in lower case.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        !NOT_FORWARDED.contains(&name)
            && !self.named_by_connection.contains(name)
            && (self.forward_credentials || !CREDENTIALS.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_speaks_of_the_connection_stays_behind() {
        let rule = Forwarding::new([&b"close, X-Hop"[..], b"x-other"].into_iter(), false);
        for name in ["connection", "transfer-encoding", "host", "content-length", "x-hop", "x-other", "surehook-event-id"] {
            assert!(!rule.allows(name), "{name}");
        }
        for name in ["content-type", "x-hub-signature-256", "user-agent", "accept", "content-encoding", "traceparent"] {
            assert!(rule.allows(name), "{name}");
        }
    }

    #[test]
    fn credentials_go_on_only_where_the_source_says_so() {
        for name in CREDENTIALS {
            assert!(!Forwarding::new(core::iter::empty(), false).allows(name));
            assert!(Forwarding::new(core::iter::empty(), true).allows(name));
        }
    }
}
