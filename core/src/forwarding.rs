//! Which of a producer's headers go on to the downstream. Their values are never looked at, and never changed.
//!
//! Names are compared as the downstream may see them. CGI, WSGI and Rack turn `Surehook-Source` and `Surehook_Source` into
//! one variable, `HTTP_SUREHOOK_SOURCE`, and some servers do that with any character that is neither a letter nor a
//! digit. So all these characters are equal here.

use alloc::borrow::Cow;
use alloc::collections::BTreeSet;
use alloc::string::String;

/// Headers that speak of one connection or one request, not of the event (RFC 9110 §7.6.1 and what is rebuilt for
/// each delivery).
const NOT_FORWARDED: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    // Becomes `HTTP_PROXY`, which HTTP clients of a CGI program take for their proxy (CVE-2016-5385).
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Begins the names of the headers that are ours. A downstream may believe them, so no producer's goes on.
const OURS: &str = "surehook-";

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
            .map(|token| as_seen(&token.to_ascii_lowercase()).into_owned())
            .collect();
        Self { named_by_connection, forward_credentials }
    }

    /// Whether the header of this name goes on. `name` is in lower case.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        let name = as_seen(name);
        !name.starts_with(OURS)
            && !NOT_FORWARDED.contains(&name.as_ref())
            && !self.named_by_connection.contains(name.as_ref())
            && (self.forward_credentials || !CREDENTIALS.contains(&name.as_ref()))
    }
}

/// A name in lower case as the downstream may see it: with `-` for each character that is neither a letter nor a digit.
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
    fn what_speaks_of_the_connection_stays_behind() {
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
    fn no_producer_can_send_a_header_that_a_downstream_takes_for_ours() {
        let rule = Forwarding::new(core::iter::empty(), true);
        for name in [
            EVENT_ID_HEADER,
            SOURCE_HEADER,
            ATTEMPT_HEADER,
            "surehook-received-at",
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
    fn a_header_of_the_connection_stays_behind_in_every_spelling() {
        let rule = Forwarding::new([&b"X-Hop, y_hop"[..]].into_iter(), true);
        for name in ["x-hop", "x_hop", "y-hop", "y_hop", "transfer_encoding", "keep_alive"] {
            assert!(!rule.allows(name), "{name}");
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
