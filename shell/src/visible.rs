//! Text from outside, made safe for a terminal.
//!
//! A response body, a header or a service's response can contain characters that control a terminal
//! (control characters, including C1) or that change how the surrounding text reads (bidirectional
//! overrides, zero-width characters). They are shown as escapes.

use serde::Serialize;
use std::fmt::Write;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// The text on one line. Each unsafe character is an escape such as `\n` or `\u{202e}`.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for one in text.chars() {
        if is_harmless(one) { shown.push(one) } else { shown.extend(one.escape_default()) }
    }
    shown
}

/// As [`escaped`], but keeps line feeds.
#[must_use]
pub fn lines(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

/// A value as JSON in which unsafe characters are escaped. It is the same value for a JSON parser.
///
/// # Errors
///
/// The value has no JSON form, for example a map whose keys are not text.
pub fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(value).map(escaped_json)
}

/// As [`json`], with line breaks and indentation.
///
/// # Errors
///
/// As [`json`].
pub fn pretty_json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(value).map(escaped_json)
}

/// serde_json escapes only what JSON requires: quotes, backslashes, and control characters below
/// the space. Other unsafe characters occur only in strings, where JSON has an escape for them.
fn escaped_json(json: String) -> String {
    if json.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')) {
        return json;
    }
    let mut shown = String::with_capacity(json.len());
    for one in json.chars() {
        if one == '\n' || is_harmless(one) {
            shown.push(one);
        } else {
            for unit in one.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
    }
    shown
}

/// A word in single quotes, as a shell reads it.
#[must_use]
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn is_harmless(one: char) -> bool {
    use GeneralCategory as Category;
    matches!(one, ' '..='~')
        || !matches!(
            one.general_category(),
            Category::Control
                | Category::Format
                | Category::LineSeparator
                | Category::ParagraphSeparator
                | Category::PrivateUse
                | Category::Surrogate
                | Category::Unassigned
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// ESC, CSI as one character (C1), DEL, bidirectional overrides and isolates, zero-width
    /// characters, a tag.
    const HARMFUL: &str =
        "\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}";

    #[test]
    fn control_and_format_characters_are_escaped() {
        assert_eq!(escaped("a\nb"), "a\\nb");
        assert_eq!(
            escaped(HARMFUL),
            "\\u{1b}[2J\\u{9b}31m\\u{7f}\\u{202e}\\u{2066}\\u{200b}\\u{feff}\\u{2028}\\u{e0041}"
        );
        assert_eq!(escaped("Größe 5 × 3 … 東京 🙂"), "Größe 5 × 3 … 東京 🙂");
        assert_eq!(lines("a\nb\u{9b}\n"), "a\nb\\u{9b}\n");
    }

    #[test]
    fn escaped_json_has_the_same_value_and_no_unsafe_characters() {
        let value = serde_json::json!({ HARMFUL: [HARMFUL, "東京"] });
        let shown = json(&value).unwrap();
        assert!(
            shown.contains("\\u001b[2J\\u009b31m\\u007f\\u202e")
                && shown.contains("\\udb40\\udc41")
                && shown.contains("東京"),
            "{shown}"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert_eq!(lines(&pretty_json(&value).unwrap()), pretty_json(&value).unwrap());
    }

    proptest! {
        #[test]
        fn no_text_keeps_unsafe_characters(text in any::<String>()) {
            prop_assert!(escaped(&text).chars().all(is_harmless));
            prop_assert!(lines(&text).chars().all(|one| one == '\n' || is_harmless(one)));
            let shown = json(&text).unwrap();
            prop_assert!(shown.chars().all(is_harmless));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }
}
