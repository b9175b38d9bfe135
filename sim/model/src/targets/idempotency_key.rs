//! An idempotency key read from a header's bytes: what is taken is a key, both spellings are one key, and every key that
//! may be sent is taken.

use surehook_core::key::{IdempotencyKey, MAX_KEY_BYTES};

/// Reads `data` as a header's value.
///
/// # Panics
///
/// If a key is taken, refused or read against the rule.
pub fn run(data: &[u8]) {
    match IdempotencyKey::parse(data) {
        Ok(key) => taken(data, key.as_str()),
        Err(error) => {
            assert!(!is_key(data) || data[0] == b'"', "a key was refused: {error}");
            assert!(!error.to_string().is_empty());
        }
    }
    // Any bytes have a key in them: it is taken in either spelling.
    let inner: Vec<u8> =
        data.iter().copied().filter(u8::is_ascii_graphic).take(MAX_KEY_BYTES).collect();
    if is_key(&inner) {
        let text = std::str::from_utf8(&inner).expect("visible ASCII");
        let parsed = IdempotencyKey::parse(quoted(text).as_bytes()).expect("a quoted key is a key");
        assert_eq!(parsed.as_str(), text);
        if inner[0] != b'"' {
            assert_eq!(IdempotencyKey::parse(&inner).expect("a raw key is a key"), parsed);
        }
    }
}

/// A key has one raw and one quoted spelling; the value was one of them.
fn taken(value: &[u8], key: &str) {
    assert!(is_key(key.as_bytes()), "{key:?} was taken");
    if value[0] == b'"' {
        assert_eq!(value, quoted(key).as_bytes(), "{key:?} was read from another key");
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
