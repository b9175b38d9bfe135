//! An idempotency key in a header value: an accepted value contains a valid key, the raw and the
//! quoted spelling are equal, and every valid key is accepted.

use surehook_core::key::{IdempotencyKey, MAX_KEY_BYTES};

/// Reads `data` as a header's value.
///
/// # Panics
///
/// If a value is accepted, rejected or parsed against the rule.
pub fn run(data: &[u8]) {
    match IdempotencyKey::parse(data) {
        Ok(key) => taken(data, key.as_str()),
        Err(error) => {
            assert!(!is_key(data) || data[0] == b'"', "a valid key was rejected: {error}");
            assert!(!error.to_string().is_empty());
        }
    }
    // A valid key can be made of any bytes. It must be accepted in both spellings.
    let inner: Vec<u8> =
        data.iter().copied().filter(u8::is_ascii_graphic).take(MAX_KEY_BYTES).collect();
    if is_key(&inner) {
        let text = std::str::from_utf8(&inner).expect("visible ASCII is UTF-8");
        let parsed = IdempotencyKey::parse(quoted(text).as_bytes()).expect("a quoted key is valid");
        assert_eq!(parsed.as_str(), text);
        if inner[0] != b'"' {
            assert_eq!(IdempotencyKey::parse(&inner).expect("a raw key is valid"), parsed);
        }
    }
}

/// Checks that an accepted value is the raw or the quoted spelling of its key.
fn taken(value: &[u8], key: &str) {
    assert!(is_key(key.as_bytes()), "the invalid key {key:?} was accepted");
    if value[0] == b'"' {
        assert_eq!(
            value,
            quoted(key).as_bytes(),
            "{key:?} was parsed from the spelling of another key"
        );
    } else {
        assert_eq!(value, key.as_bytes());
    }
}

fn is_key(bytes: &[u8]) -> bool {
    (1..=MAX_KEY_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

fn quoted(key: &str) -> String {
    format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
}
