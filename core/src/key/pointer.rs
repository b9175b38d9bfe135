//! A JSON pointer (RFC 6901), and the value that it points at. The document is read once and never
//! built in memory: only the members on the pointer's path are compared, and everything else is
//! skipped.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The maximum number of members in a pointer. The reader is on the stack once for each of them. The
/// rest of a document can be nested to any depth: it is skipped without recursion.
pub const MAX_LEVELS: usize = 32;

/// A place in a JSON document, such as `/data/0/id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    path: Vec<Step>,
}

/// One part of a pointer: the name of a member, and its index if it is an item of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    name: String,
    index: Option<usize>,
}

impl Pointer {
    /// Parses a pointer. The empty one points at the whole document.
    ///
    /// # Errors
    ///
    /// [`PointerError`], with what to write.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        let mut steps = text.split('/');
        if !steps.next().is_none_or(str::is_empty) {
            return Err(PointerError::NoSlash);
        }
        let path: Vec<Step> = steps.map(Step::parse).collect::<Result<_, _>>()?;
        if path.len() > MAX_LEVELS {
            return Err(PointerError::TooDeep);
        }
        Ok(Self { text: text.into(), path })
    }

    /// The pointer as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Finds the value in a document. If a member is repeated, the last one counts, as for the
    /// parsers of nearly every downstream.
    ///
    /// # Errors
    ///
    /// [`NotJson`] if the document is not one JSON text in UTF-8. Numbers and escapes outside of
    /// the pointer's path are checked for their syntax only.
    pub fn find<'d>(&self, document: &'d [u8]) -> Result<Option<Found<'d>>, NotJson> {
        let document = core::str::from_utf8(document).map_err(|_| NotJson)?;
        let mut reader = serde_json::Deserializer::from_str(document);
        let raw = Follow(&self.path).deserialize(&mut reader).map_err(|_| NotJson)?;
        reader.end().map_err(|_| NotJson)?;
        Ok(raw.map(Found::of))
    }
}

impl Step {
    fn parse(text: &str) -> Result<Self, PointerError> {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once('~') {
            if !after.starts_with(['0', '1']) {
                return Err(PointerError::BadEscape);
            }
            rest = after;
        }
        // An index has no sign and no leading zero.
        let is_index = text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'));
        Ok(Self {
            name: text.replace("~1", "/").replace("~0", "~"),
            index: if is_index { text.parse().ok() } else { None },
        })
    }
}

/// Why a text is not a JSON pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// It does not begin with a slash.
    #[error("is not a JSON pointer: begin it with `/`, such as `json:/id`")]
    NoSlash,
    /// A tilde is not part of an escape.
    #[error("is not a JSON pointer: write `~0` for `~`, and `~1` for a `/` in a name")]
    BadEscape,
    /// It has more than [`MAX_LEVELS`] members.
    #[error("has more than 32 levels")]
    TooDeep,
}

/// The document is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

/// A value in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'d> {
    /// A string.
    Text(Cow<'d, str>),
    /// An integer, in the digits of the document.
    Integer(&'d str),
    /// A value that cannot be a key.
    Other(Kind),
}

impl<'d> Found<'d> {
    /// Reads a valid JSON value.
    fn of(raw: &'d str) -> Self {
        match raw.as_bytes() {
            [b'"', text @ .., b'"'] if !text.contains(&b'\\') => {
                Self::Text(Cow::Borrowed(&raw[1..raw.len() - 1]))
            }
            [b'"', ..] => serde_json::from_str(raw)
                .map_or(Self::Other(Kind::LoneSurrogate), |text: String| Self::Text(text.into())),
            [b'n', ..] => Self::Other(Kind::Null),
            [b't' | b'f', ..] => Self::Other(Kind::Boolean),
            [b'[', ..] => Self::Other(Kind::Array),
            [b'{', ..] => Self::Other(Kind::Object),
            number if number.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'-')) => {
                Self::Integer(raw)
            }
            _ => Self::Other(Kind::Fraction),
        }
    }
}

/// The kind of a JSON value that cannot be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`.
    Null,
    /// `true` or `false`.
    Boolean,
    /// A number with a fraction or an exponent.
    Fraction,
    /// An array.
    Array,
    /// An object.
    Object,
    /// A string with an escape that is half of a character, such as `\ud800`.
    LoneSurrogate,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Fraction => "a number with a fraction or an exponent",
            Self::Array => "an array",
            Self::Object => "an object",
            Self::LoneSurrogate => "a string with an invalid escape",
        })
    }
}

/// Reads one value: follows the rest of a pointer into it. The result is the text of the value that
/// the pointer points at.
struct Follow<'p>(&'p [Step]);

impl<'d> DeserializeSeed<'d> for Follow<'_> {
    type Value = Option<&'d str>;

    fn deserialize<D: Deserializer<'d>>(self, value: D) -> Result<Self::Value, D::Error> {
        match self.0 {
            [] => <&RawValue>::deserialize(value).map(|raw| Some(raw.get())),
            [next, rest @ ..] => value.deserialize_any(Inside { next, rest }),
        }
    }
}

/// Looks for `next` in an array or an object. Other values contain nothing.
struct Inside<'p> {
    next: &'p Step,
    rest: &'p [Step],
}

impl<'d> Visitor<'d> for Inside<'_> {
    type Value = Option<&'d str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'d>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_next) = members.next_key_seed(Is(&self.next.name))? {
            if is_next {
                found = members.next_value_seed(Follow(self.rest))?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        for index in 0.. {
            let is_there = if self.next.index == Some(index) {
                let item = items.next_element_seed(Follow(self.rest))?;
                found = item.flatten();
                item.is_some()
            } else {
                items.next_element::<IgnoredAny>()?.is_some()
            };
            if !is_there {
                break;
            }
        }
        Ok(found)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Compares a member's name.
struct Is<'p>(&'p str);

impl<'d> DeserializeSeed<'d> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'d>>(self, name: D) -> Result<bool, D::Error> {
        // Not read as a string: a name with half of a character would be an error.
        let name = <&RawValue>::deserialize(name)?;
        Ok(matches!(Found::of(name.get()), Found::Text(name) if name == self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};
    use proptest::prelude::*;
    use serde_json::Value;

    fn find<'d>(pointer: &str, document: &'d str) -> Result<Option<Found<'d>>, NotJson> {
        Pointer::parse(pointer).unwrap().find(document.as_bytes())
    }

    fn text(text: &str) -> Result<Option<Found<'_>>, NotJson> {
        Ok(Some(Found::Text(text.into())))
    }

    #[test]
    fn the_examples_of_rfc_6901_are_found() {
        let document = r#"{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4,
            "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}"#;
        assert_eq!(find("", document), Ok(Some(Found::Other(Kind::Object))));
        assert_eq!(find("/foo", document), Ok(Some(Found::Other(Kind::Array))));
        assert_eq!(find("/foo/0", document), text("bar"));
        for (n, pointer) in ["/", "/a~1b", "/c%d", "/e^f", "/g|h", "/i\\j", "/k\"l", "/ ", "/m~0n"]
            .iter()
            .enumerate()
        {
            assert_eq!(
                find(pointer, document),
                Ok(Some(Found::Integer(&format!("{n}")))),
                "{pointer}"
            );
        }
        for pointer in
            ["/foo/2", "/foo/00", "/foo/-", "/foo/+1", "/foo/", "/bar", "/foo/0/x", "//x"]
        {
            assert_eq!(find(pointer, document), Ok(None), "{pointer}");
        }
    }

    #[test]
    fn the_last_of_repeated_members_counts() {
        assert_eq!(find("/id", r#"{"id": "a", "id": "b"}"#), text("b"));
        assert_eq!(find("/id", r#"{"id": "a", "\u0069d": "b"}"#), text("b"));
        assert_eq!(find("/a/id", r#"{"a": {"id": "a"}, "a": {"id": "b"}}"#), text("b"));
        assert_eq!(find("/a/id", r#"{"a": {"id": "a"}, "a": 1}"#), Ok(None));
    }

    #[test]
    fn an_integer_keeps_its_digits() {
        for digits in ["0", "-0", "-7", &"9".repeat(200)] {
            assert_eq!(
                find("/id", &format!(r#"{{"id": {digits} }}"#)),
                Ok(Some(Found::Integer(digits)))
            );
        }
        for (value, kind) in [
            ("null", Kind::Null),
            ("true", Kind::Boolean),
            ("false", Kind::Boolean),
            ("1.0", Kind::Fraction),
            ("1e3", Kind::Fraction),
            ("1E-999", Kind::Fraction),
            ("[\"a\"]", Kind::Array),
            ("{}", Kind::Object),
            (r#""\ud800""#, Kind::LoneSurrogate),
        ] {
            let document = format!(r#"{{"id":{value}}}"#);
            assert_eq!(find("/id", &document), Ok(Some(Found::Other(kind))), "{value}");
        }
    }

    #[test]
    fn half_a_character_elsewhere_changes_nothing() {
        for document in [
            r#"{"\ud83d":1,"id":"a"}"#,
            r#"{"id":"a","\ud83d":{}}"#,
            r#"{"x":"\ud83d","id":"a"}"#,
            r#"{"\u0069d":"a","x":["\ud83d"]}"#,
        ] {
            assert_eq!(find("/id", document), text("a"), "{document}");
        }
    }

    #[test]
    fn a_text_that_is_not_json_has_no_values() {
        for document in [
            "",
            "id",
            "{",
            r#"{"id":"a"}x"#,
            r#"{"id":"a"} {}"#,
            r#"{"id":"a",}"#,
            r#"{"id":01}"#,
            "\u{feff}{\"id\":\"a\"}",
            "{\"id\":\"a\nb\"}",
            "{\"id\":\"a\",\"x\ny\":1}",
            r#"{"id":"a","\x":1}"#,
            "{\"id\":\"a\",\"x\":\"\0\"}",
            "{\"id\":\"a\",\"x\":NaN}",
        ] {
            assert_eq!(find("/id", document), Err(NotJson), "{document}");
        }
        let pointer = Pointer::parse("/id").unwrap();
        let not_utf_8: [&[u8]; 3] =
            [b"{\"id\":\"\xff\"}", b"{\"id\":\"a\",\"x\":\"\xff\"}", b"\xff\xfe{\0}\0"];
        for document in not_utf_8 {
            assert_eq!(pointer.find(document), Err(NotJson));
        }
    }

    #[test]
    fn depth_outside_of_the_path_is_not_limited_by_the_stack() {
        let deep = 1 << 20;
        let nested = format!(r#"{{"a":{}{},"id":"a"}}"#, "[".repeat(deep), "]".repeat(deep));
        assert_eq!(find("/id", &nested), text("a"));
        for open in ["[", "{\"id\":"] {
            assert_eq!(find("/id", &open.repeat(deep)), Err(NotJson));
        }
        let path = "/0".repeat(MAX_LEVELS);
        let nested = format!("{}\"a\"{}", "[".repeat(MAX_LEVELS), "]".repeat(MAX_LEVELS));
        assert_eq!(find(&path, &nested), text("a"));
        assert_eq!(Pointer::parse(&format!("{path}/0")), Err(PointerError::TooDeep));
    }

    #[test]
    fn a_text_that_is_no_pointer_is_refused() {
        for text in ["id", "id/", "a/b"] {
            assert_eq!(Pointer::parse(text), Err(PointerError::NoSlash), "{text}");
        }
        for text in ["/~", "/~2", "/a~/b", "/~~0"] {
            assert_eq!(Pointer::parse(text), Err(PointerError::BadEscape), "{text}");
        }
        assert_eq!(find("/~01", r#"{"~1": "a", "/": "b"}"#), text("a"));
    }

    /// Names of members, and spellings of them in JSON.
    const NAMES: [(&str, &str); 9] = [
        ("a", r#""a""#),
        ("a", r#""\u0061""#),
        ("b", r#""b""#),
        ("0", r#""0""#),
        ("1", r#""1""#),
        ("", r#""""#),
        ("~", r#""~""#),
        ("/", r#""\/""#),
        ("ü", r#""ü""#),
    ];

    fn space() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec!["", "", "", " ", "\n\t", "\r"])
    }

    /// A JSON text with repeated members, any spelling, and white space.
    fn document() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            proptest::sample::select(vec!["null", "true", "false", "-0", "[]", "{}"])
                .prop_map(String::from),
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
            "-?[1-9][0-9]{0,200}",
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
            "[a-c]{0,3}".prop_map(|text| format!("\"{text}\"")),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let item = (space(), inner, space())
                .prop_map(|(a, value, b)| format!("{a}{value}{b}"))
                .boxed();
            let member = (space(), proptest::sample::select(NAMES.to_vec()), space(), item.clone())
                .prop_map(|(a, (_, name), b, value)| format!("{a}{name}{b}:{value}"));
            prop_oneof![
                proptest::collection::vec(item, 0..5)
                    .prop_map(|items| format!("[{}]", items.join(","))),
                proptest::collection::vec(member, 0..5)
                    .prop_map(|members| format!("{{{}}}", members.join(","))),
            ]
        })
    }

    fn pointer() -> impl Strategy<Value = String> {
        let step = prop_oneof![
            3 => proptest::sample::select(NAMES.to_vec())
                .prop_map(|(name, _)| name.replace('~', "~0").replace('/', "~1")),
            1 => proptest::sample::select(vec!["2", "-", "00", "01"]).prop_map(String::from),
        ];
        proptest::collection::vec(step, 0..5)
            .prop_map(|steps| steps.iter().map(|step| format!("/{step}")).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn every_value_is_that_of_a_parsed_document(document in document(), pointer in pointer()) {
            let parsed: Value = serde_json::from_str(&document).unwrap();
            let found = find(&pointer, &document).unwrap();
            match (parsed.pointer(&pointer), found) {
                (None, None) => {}
                (Some(Value::String(text)), Some(Found::Text(found))) => prop_assert_eq!(text, &found),
                (Some(value @ Value::Number(_)), Some(Found::Integer(digits))) => {
                    prop_assert_eq!(value, &serde_json::from_str::<Value>(digits).unwrap());
                    prop_assert!(!digits.contains(['.', 'e', 'E']));
                }
                (Some(Value::Number(number)), Some(Found::Other(Kind::Fraction))) => {
                    prop_assert!(number.is_f64());
                }
                (Some(Value::Null), Some(Found::Other(Kind::Null)))
                | (Some(Value::Bool(_)), Some(Found::Other(Kind::Boolean)))
                | (Some(Value::Array(_)), Some(Found::Other(Kind::Array)))
                | (Some(Value::Object(_)), Some(Found::Other(Kind::Object))) => {}
                (parsed, found) => prop_assert!(false, "{:?} instead of {:?}", found, parsed),
            }
        }

        #[test]
        fn an_encoded_name_points_at_its_member(name in any::<String>()) {
            let document = format!("{{{}:\"a\"}}", serde_json::to_string(&name).unwrap());
            let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
            prop_assert_eq!(find(&pointer, &document), text("a"));
        }
    }
}
