//! The idempotency key: what a producer sends so that a retry is recognised as the same event.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

/// The longest key, in bytes, without the quotes of the structured-field form.
pub const MAX_KEY_BYTES: usize = 255;

/// A producer's name for one event, unique within a source: 1 to 255 bytes of visible ASCII.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// Reads a header's value, raw (`abc`) or as a quoted structured-field string (`"abc"`).
    ///
    /// Both spell the same key. The quoted form is the one of `draft-ietf-httpapi-idempotency-key-header`, which
    /// takes its syntax from RFC 9651 §3.3.3; nearly every producer sends the raw one.
    ///
    /// ```
    /// use surehook_core::key::IdempotencyKey;
    ///
    /// assert_eq!(IdempotencyKey::parse(b"order-1"), IdempotencyKey::parse(b"\"order-1\""));
    /// assert!(IdempotencyKey::parse(b"two words").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// Says what is wrong with the value, in words for the producer.
    pub fn parse(value: &[u8]) -> Result<Self, KeyError> {
        match value.first() {
            None => Err(KeyError::Empty),
            Some(b'"') => Self::checked(&unquoted(value)?),
            Some(_) => Self::checked(value),
        }
    }

    fn checked(key: &[u8]) -> Result<Self, KeyError> {
        if key.is_empty() {
            return Err(KeyError::Empty);
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLong { bytes: key.len() });
        }
        if let Some(at) = key.iter().position(|byte| !byte.is_ascii_graphic()) {
            return Err(KeyError::NotVisibleAscii { byte: key[at], at });
        }
        let text = core::str::from_utf8(key).map_err(|error| KeyError::NotVisibleAscii {
            byte: key[error.valid_up_to()],
            at: error.valid_up_to(),
        })?;
        Ok(Self(Arc::from(text)))
    }

    /// The key without quotes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The characters of a structured-field string (RFC 9651 §4.2.5), which starts with the quote that was seen.
fn unquoted(value: &[u8]) -> Result<alloc::vec::Vec<u8>, KeyError> {
    let mut key = alloc::vec::Vec::with_capacity(value.len());
    let mut rest = value[1..].iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' if rest.as_slice().is_empty() => return Ok(key),
            b'"' => return Err(KeyError::AfterClosingQuote),
            b'\\' => match rest.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(escaped),
                _ => return Err(KeyError::BadEscape),
            },
            _ => key.push(byte),
        }
    }
    Err(KeyError::NoClosingQuote)
}

/// Why a header's value is not an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no header with a key.
    #[error("the header `{header}` with the idempotency key is missing")]
    Missing {
        /// The header in which this source's key is looked for.
        header: String,
    },
    /// The header is there more than once.
    #[error(
        "the header `{header}` with the idempotency key is there more than once; send exactly one"
    )]
    Repeated {
        /// The header in which this source's key is looked for.
        header: String,
    },
    /// There is not one character between the quotes, or no value at all.
    #[error("the idempotency key is empty; send 1 to 255 visible ASCII characters")]
    Empty,
    /// More than [`MAX_KEY_BYTES`].
    #[error("the idempotency key is {bytes} bytes long; at most 255 are allowed")]
    TooLong {
        /// The length as sent, without quotes.
        bytes: usize,
    },
    /// A space, a control character or a byte above 0x7E.
    #[error(
        "the idempotency key has the byte 0x{byte:02x} at position {at}; only visible ASCII characters are allowed"
    )]
    NotVisibleAscii {
        /// The first byte that is not allowed.
        byte: u8,
        /// Its position in the key, from 0.
        at: usize,
    },
    /// A quote opens the key and none ends it.
    #[error("the idempotency key starts with a quote that is never closed")]
    NoClosingQuote,
    /// Something follows the closing quote: structured-field parameters are not understood.
    #[error("the idempotency key goes on after its closing quote")]
    AfterClosingQuote,
    /// A backslash is followed by something other than a quote or a backslash.
    #[error(
        "the quoted idempotency key has a backslash that escapes neither a quote nor a backslash"
    )]
    BadEscape,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(value: &str) -> Result<IdempotencyKey, KeyError> {
        IdempotencyKey::parse(value.as_bytes())
    }

    #[test]
    fn raw_and_quoted_are_one_key() {
        assert_eq!(key("abc"), key("\"abc\""));
        assert_eq!(alloc::string::ToString::to_string(&key("\"abc\"").unwrap()), "abc");
        assert_eq!(key(r#""a\"b\\c""#).unwrap().as_str(), r#"a"b\c"#);
    }

    #[test]
    fn the_length_is_counted_without_quotes() {
        let longest = "k".repeat(MAX_KEY_BYTES);
        assert!(key(&longest).is_ok());
        assert!(key(&alloc::format!("\"{longest}\"")).is_ok());
        assert_eq!(key(&alloc::format!("{longest}k")), Err(KeyError::TooLong { bytes: 256 }));
    }

    #[test]
    fn each_fault_is_told_apart() {
        assert_eq!(key(""), Err(KeyError::Empty));
        assert_eq!(key("\"\""), Err(KeyError::Empty));
        assert_eq!(key("a b"), Err(KeyError::NotVisibleAscii { byte: b' ', at: 1 }));
        assert_eq!(key("\"a b\""), Err(KeyError::NotVisibleAscii { byte: b' ', at: 1 }));
        assert_eq!(
            IdempotencyKey::parse(b"caf\xe9"),
            Err(KeyError::NotVisibleAscii { byte: 0xe9, at: 3 })
        );
        assert_eq!(key("\"abc"), Err(KeyError::NoClosingQuote));
        assert_eq!(key("\""), Err(KeyError::NoClosingQuote));
        assert_eq!(key("\"abc\";p=1"), Err(KeyError::AfterClosingQuote));
        assert_eq!(key(r#""a\n""#), Err(KeyError::BadEscape));
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_short_and_visible(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(key) = IdempotencyKey::parse(&value) {
                prop_assert!((1..=MAX_KEY_BYTES).contains(&key.as_str().len()));
                prop_assert!(key.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }

        #[test]
        fn quoting_a_visible_key_does_not_change_it(text in "[!-~]{1,255}") {
            let quoted = alloc::format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let parsed = key(&quoted).unwrap();
            prop_assert_eq!(parsed.as_str(), text.as_str());
            if !text.starts_with('"') {
                prop_assert_eq!(key(&text).unwrap(), parsed);
            }
        }
    }
}
