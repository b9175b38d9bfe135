//! The headers of a delivery: the forwarded ones in their stored form, and Surehook's own.
//!
//! The stored form is the header section of an HTTP/1.1 message (`name: value` lines). A person can
//! read it in the database, and a library can parse it. Values are bytes and are restored exactly.

use crate::http::view::rfc3339;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use surehook_core::forwarding::{
    ATTEMPT_HEADER, EVENT_ID_HEADER, Forwarding, RECEIVED_AT_HEADER, SOURCE_HEADER,
};
use surehook_core::source::SourceName;
use surehook_core::worker::claims::Claim;

/// Maximum number of headers of one event: the number that the server accepts in one request.
pub const MAX_HEADERS: usize = 100;

/// Encodes the headers that are forwarded to the downstream. Repeated headers keep their order.
#[must_use]
pub fn encode(headers: &HeaderMap, forwarding: &Forwarding) -> Bytes {
    let mut encoded = BytesMut::with_capacity(512);
    for (name, value) in headers.iter().filter(|(name, _)| forwarding.allows(name.as_str())) {
        encoded.put_slice(name.as_str().as_bytes());
        encoded.put_slice(b": ");
        encoded.put_slice(value.as_bytes());
        encoded.put_slice(b"\r\n");
    }
    encoded.put_slice(b"\r\n");
    encoded.freeze()
}

/// The headers that are forwarded. Repeated headers keep their order.
#[must_use]
pub fn forwarded(headers: &HeaderMap, forwarding: &Forwarding) -> HeaderMap {
    let allowed = headers.iter().filter(|(name, _)| forwarding.allows(name.as_str()));
    allowed.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Decodes the output of [`encode`].
///
/// # Errors
///
/// [`Unreadable`] if the bytes are not a header section, because the row was changed outside of
/// Surehook.
pub fn decode(encoded: &[u8]) -> Result<HeaderMap, Unreadable> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(encoded, &mut slots)
    else {
        return Err(Unreadable);
    };
    let mut headers = HeaderMap::with_capacity(parsed.len());
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| Unreadable)?;
        headers.append(name, HeaderValue::from_bytes(header.value).map_err(|_| Unreadable)?);
    }
    Ok(headers)
}

/// The headers that every delivery of this claim carries in addition.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "these values are always valid in a header")]
pub fn own(claim: &Claim) -> [(HeaderName, HeaderValue); 4] {
    [
        (EVENT_ID_HEADER, claim.event.to_string()),
        (SOURCE_HEADER, claim.source.to_string()),
        (ATTEMPT_HEADER, claim.attempt.to_string()),
        (RECEIVED_AT_HEADER, rfc3339(claim.received_at)),
    ]
    .map(|(name, value)| {
        let value = HeaderValue::from_str(&value)
            .expect("ids, source names, numbers and times are visible ASCII");
        (HeaderName::from_static(name), value)
    })
}

/// The header with the name of the source.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "a source name is always valid in a header")]
pub fn source(source: &SourceName) -> (HeaderName, HeaderValue) {
    let value = HeaderValue::from_str(source.as_str()).expect("source names are visible ASCII");
    (HeaderName::from_static(SOURCE_HEADER), value)
}

/// The stored headers of an event are not a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored headers are not an HTTP header section")]
pub struct Unreadable;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Forwarding {
        Forwarding::new(std::iter::empty(), true)
    }

    #[test]
    fn no_headers_encode_to_an_empty_section() {
        assert_eq!(decode(&encode(&HeaderMap::new(), &all())), Ok(HeaderMap::new()));
    }

    #[test]
    fn headers_that_are_not_forwarded_are_not_stored() {
        let headers: HeaderMap = [("host", "h"), ("cookie", "c"), ("x-a", "1")]
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .into_iter()
            .collect();
        assert_eq!(
            &encode(&headers, &Forwarding::new(std::iter::empty(), false))[..],
            b"x-a: 1\r\n\r\n"
        );
    }

    #[test]
    fn bytes_that_are_no_header_section_are_refused() {
        for bytes in [&b""[..], b"x-a: 1", b"no colon\r\n\r\n", b"x-a: \x01\r\n\r\n"] {
            assert_eq!(decode(bytes), Err(Unreadable), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn header_values_survive_encoding_and_decoding(
            entries in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", proptest::collection::vec(prop_oneof![0x21..=0x7eu8, 0x80..=0xffu8], 0..40)), 0..MAX_HEADERS)
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &entries {
                let name = HeaderName::from_bytes(format!("x-{name}").as_bytes()).unwrap();
                headers.append(name, HeaderValue::from_bytes(value).unwrap());
            }
            prop_assert_eq!(decode(&encode(&headers, &all())), Ok(headers));
        }
    }
}
