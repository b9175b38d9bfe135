//! The idempotency key: the producer's identifier of an event, by which a retry is recognised. Where
//! it is in a request is in [`places`].

pub mod places;
pub mod pointer;

use alloc::sync::Arc;
use core::fmt;

/// The maximum length of a key in bytes, without the quotes of the structured-field form.
pub const MAX_KEY_BYTES: usize = 255;

/// The producer's identifier of one event, unique within a source: 1 to 255 bytes of visible ASCII.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// Parses a header's value: raw (`abc`), or a quoted structured-field string (`"abc"`).
    ///
    /// Both forms are the same key. The quoted form is that of
    /// `draft-ietf-httpapi-idempotency-key-header`, with the syntax of RFC 9651 §3.3.3. Nearly
    /// every producer sends the raw form.
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
    /// [`KeyError`], with a message for the producer.
    pub fn parse(value: &[u8]) -> Result<Self, KeyError> {
        match value.first() {
            None => Err(KeyError::Empty),
            Some(b'"') => Self::exact(&unquoted(value)?),
            Some(_) => Self::exact(value),
        }
    }

    /// The key that these bytes are, with the quotes that may be a part of it.
    ///
    /// ```
    /// use surehook_core::key::IdempotencyKey;
    ///
    /// assert_eq!(IdempotencyKey::exact(b"\"a\"").unwrap().as_str(), "\"a\"");
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    pub fn exact(key: &[u8]) -> Result<Self, KeyError> {
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

/// The characters of a structured-field string (RFC 9651 §4.2.5). The value starts with a quote.
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

/// Why a value is not an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The value is empty, or there is nothing between the quotes.
    #[error("the idempotency key is empty; send 1 to 255 visible ASCII characters")]
    Empty,
    /// The key is longer than [`MAX_KEY_BYTES`].
    #[error("the idempotency key is {bytes} bytes long; at most 255 are allowed")]
    TooLong {
        /// The length in bytes, without quotes.
        bytes: usize,
    },
    /// The key contains a space, a control character or a byte above 0x7E.
    #[error(
        "the idempotency key contains the byte 0x{byte:02x} at position {at}; only visible ASCII characters are allowed"
    )]
    NotVisibleAscii {
        /// The first invalid byte.
        byte: u8,
        /// Its position in the key, from 0.
        at: usize,
    },
    /// The key starts with a quote but has no closing quote.
    #[error("the idempotency key starts with a quote but has no closing quote")]
    NoClosingQuote,
    /// Something follows the closing quote. Structured-field parameters are not supported.
    #[error("the idempotency key continues after its closing quote; parameters are not supported")]
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
    fn raw_and_quoted_forms_are_the_same_key() {
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
    fn each_fault_has_a_separate_error() {
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
        fn every_accepted_key_is_short_and_visible(value in proptest::collection::vec(any::<u8>(), 0..300)) {
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
