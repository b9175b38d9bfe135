//! The idempotency key of any request, in any list of places: the result is that of a second lookup
//! that builds everything in memory. The documents and pointers are those of the data, and others
//! that are generated from it.

use arbitrary::{Result, Unstructured};
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use surehook_core::admission::Fingerprint;
use surehook_core::id::EventId;
use surehook_core::key::places::{
    Entry, Head, KeyPlaces, LookupError, MAX_PLACES, Place, PlacesError, Received,
};
use surehook_core::key::{IdempotencyKey, MAX_KEY_BYTES};
use uuid::Uuid;

/// The only header of a request.
const HEADER: &str = "X-Id";
const ID: EventId = EventId::from_uuid(Uuid::from_u128(0x0199_c2f0));

/// A setting, and a request in which the key is looked up.
#[derive(Debug)]
struct Case<'d> {
    /// The entries of the setting.
    setting: Vec<String>,
    /// The values of [`HEADER`].
    headers: Vec<&'d [u8]>,
    query: &'d str,
    body: Vec<u8>,
}

/// Reads the lines of `data`: the entries, separated by spaces; the values of a header, separated by
/// tabs; the query; and the body, which can have several lines. Then generates another case.
///
/// # Panics
///
/// If a key is found, missing or refused against the rule.
pub fn run(data: &[u8]) {
    if let Some(case) = written(data) {
        check(&case);
    }
    if let Ok(case) = generated(&mut Unstructured::new(data)) {
        check(&case);
    }
}

fn written(data: &[u8]) -> Option<Case<'_>> {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let setting = std::str::from_utf8(lines.next()?).ok()?;
    let headers = lines.next().unwrap_or_default();
    Some(Case {
        setting: setting.split(' ').map(str::to_owned).collect(),
        headers: if headers.is_empty() {
            Vec::new()
        } else {
            headers.split(|byte| *byte == b'\t').collect()
        },
        query: std::str::from_utf8(lines.next().unwrap_or_default()).ok()?,
        body: lines.next().unwrap_or_default().to_vec(),
    })
}

/// The names of members, each in two spellings.
const NAMES: [[&str; 2]; 6] = [
    [r#""id""#, r#""\u0069d""#],
    [r#""0""#, r#""\u0030""#],
    [r#""""#, r#""a""#],
    [r#""/""#, r#""\/""#],
    [r#""~1""#, r#""\u007e1""#],
    [r#""ü""#, r#""\u00fc""#],
];
const STEPS: [&str; 8] = ["id", "0", "1", "", "a", "~1", "~01", "ü"];
const LEAVES: [&str; 14] = [
    "null",
    "true",
    "0",
    "-0",
    "7.0",
    "1e2",
    "12345678901234567890123",
    r#""""#,
    r#""a+b""#,
    r#""100%""#,
    r#""\"q\"""#,
    r#""\u0061""#,
    r#""two words""#,
    r#""é""#,
];

/// A JSON document, and pointers into it.
fn generated<'d>(u: &mut Unstructured<'d>) -> Result<Case<'d>> {
    let mut setting = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        let mut pointers = Vec::new();
        for _ in 0..u.int_in_range(1..=2)? {
            let mut pointer = String::from("json:");
            for _ in 0..u.int_in_range(0..=3)? {
                pointer = format!("{pointer}/{}", u.choose(&STEPS)?);
            }
            pointers.push(pointer);
        }
        setting.push(pointers.join("+"));
    }
    Ok(Case { setting, headers: Vec::new(), query: "", body: document(u, 4)?.into_bytes() })
}

fn document(u: &mut Unstructured<'_>, depth: u32) -> Result<String> {
    let space = *u.choose(&["", "", " ", "\n\t"])?;
    let kind = if depth == 0 { 0 } else { u.int_in_range(0..=3)? };
    let value = match kind {
        0 => (*u.choose(&LEAVES)?).to_owned(),
        1 => {
            let items: Result<Vec<_>> =
                (0..u.int_in_range(0..=3)?).map(|_| document(u, depth - 1)).collect();
            format!("[{}]", items?.join(","))
        }
        _ => {
            let mut members = Vec::new();
            for _ in 0..u.int_in_range(0..=4)? {
                let spellings = u.choose(&NAMES)?;
                let name = u.choose(spellings)?;
                members.push(format!("{space}{name}{space}:{}", document(u, depth - 1)?));
            }
            format!("{{{}}}", members.join(","))
        }
    };
    Ok(format!("{space}{value}{space}"))
}

fn check(case: &Case<'_>) {
    let mut entries = Vec::new();
    for text in &case.setting {
        match Entry::parse(text) {
            Ok(entry) => {
                assert_eq!(entry.to_string(), *text, "an entry is shown differently");
                entries.push(entry);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
    let Some(places) = list(&entries) else { return };
    let head = Head {
        header: |name: &str| {
            let is_sent = name.eq_ignore_ascii_case(HEADER);
            case.headers.iter().copied().filter(move |_| is_sent)
        },
        query: case.query,
    };
    let received = Received { body: &case.body, fingerprint: Fingerprint::of(&case.body), id: ID };
    let found = places.find(&head, received);
    match places.find_in_head(&head) {
        Ok(Some(early)) => assert_eq!(found.as_ref(), Ok(&early), "the body changed the key"),
        Err(early) => assert_eq!(found.as_ref(), Err(&early), "the body changed the refusal"),
        Ok(None) => assert!(
            entries.iter().flat_map(Entry::places).any(|place| !is_in_head(place)),
            "the body decides, although no place is in it"
        ),
    }
    if let Ok(key) = &found {
        assert!(is_key(key.as_str()), "the invalid key {key:?} was found");
    }
    let Some(expected) = expected(case, &entries) else { return };
    match (&found, &expected) {
        (Ok(key), Expected::Key(expected)) => assert_eq!(key.as_str(), expected),
        (Err(LookupError::Missing(absent)), Expected::Missing) => {
            let looked: Vec<&str> = absent.iter().map(|absent| absent.entry.as_str()).collect();
            assert_eq!(looked, case.setting, "the error must name each place");
        }
        (Err(LookupError::Invalid { place, .. }), Expected::Invalid(expected)) => {
            assert_eq!(place, expected);
        }
        _ => panic!("{found:?} instead of {expected:?} for {case:?}"),
    }
}

/// The list, if it is valid.
fn list(entries: &[Entry]) -> Option<KeyPlaces> {
    let count: usize = entries.iter().map(|entry| entry.places().len()).sum();
    let always = |entry: &Entry| {
        entry.places().iter().all(|place| matches!(place, Place::Body | Place::Request))
    };
    let is_ended_early = entries.iter().rev().skip(1).any(always);
    match KeyPlaces::new(entries.to_vec()) {
        Ok(places) => {
            assert!(count <= MAX_PLACES && !is_ended_early, "{places} was accepted");
            Some(places)
        }
        Err(PlacesError::Empty) => panic!("the list has {count} places"),
        Err(PlacesError::TooMany) => {
            assert!(count > MAX_PLACES, "{count} places were refused");
            None
        }
        Err(PlacesError::Unreachable { .. }) => {
            assert!(is_ended_early, "{entries:?} was refused");
            None
        }
    }
}

fn is_in_head(place: &Place) -> bool {
    matches!(place, Place::Header(_) | Place::Query(_))
}

fn is_key(text: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[derive(Debug)]
enum Expected {
    Key(String),
    Missing,
    /// The place with the invalid value.
    Invalid(String),
}

/// What a place contains.
enum Seen {
    Absent,
    Invalid,
    Key(String),
}

impl Seen {
    fn of(text: String) -> Self {
        if is_key(&text) { Self::Key(text) } else { Self::Invalid }
    }

    fn only(mut values: Vec<String>) -> Self {
        match values.len() {
            0 => Self::Absent,
            1 => Self::of(values.remove(0)),
            _ => Self::Invalid,
        }
    }
}

/// The result of the second lookup. `None`: a document that serde_json cannot build.
fn expected(case: &Case<'_>, entries: &[Entry]) -> Option<Expected> {
    'entries: for entry in entries {
        let (mut keys, mut invalid) = (Vec::new(), None);
        for place in entry.places() {
            match seen(case, place)? {
                Seen::Absent => continue 'entries,
                Seen::Invalid => invalid = invalid.or(Some(place.to_string())),
                Seen::Key(key) => keys.push(key),
            }
        }
        if let Some(place) = invalid {
            return Some(Expected::Invalid(place));
        }
        if let [key] = &keys[..] {
            return Some(Expected::Key(key.clone()));
        }
        let escaped = |character: char| match character {
            '+' => "%2B".to_owned(),
            '%' => "%25".to_owned(),
            other => other.to_string(),
        };
        let keys: Vec<String> = keys.iter().map(|key| key.chars().map(escaped).collect()).collect();
        let key = keys.join("+");
        return Some(if is_key(&key) {
            Expected::Key(key)
        } else {
            Expected::Invalid(entry.to_string())
        });
    }
    Some(Expected::Missing)
}

fn seen(case: &Case<'_>, place: &Place) -> Option<Seen> {
    const OF_URL: &str = "-._~:/?#[]@!$&'()*+,;=%";
    Some(match place {
        Place::Header(name) if !name.eq_ignore_ascii_case(HEADER) => Seen::Absent,
        Place::Header(_) => match case.headers[..] {
            [] => Seen::Absent,
            [value] => IdempotencyKey::parse(value)
                .map_or(Seen::Invalid, |key| Seen::Key(key.as_str().to_owned())),
            _ => Seen::Invalid,
        },
        Place::Query(name) => Seen::only(fields(case.query.as_bytes(), name)),
        Place::Form(name) => {
            let body = String::from_utf8_lossy(&case.body);
            if body.chars().all(|c| c.is_ascii_alphanumeric() || OF_URL.contains(c)) {
                Seen::only(fields(&case.body, name))
            } else {
                Seen::Absent
            }
        }
        Place::Json(pointer) => json(&case.body, pointer.as_str())?,
        Place::Body => {
            let digest = *Fingerprint::of(&case.body).as_bytes();
            Seen::Key(digest.iter().map(|byte| format!("{byte:02x}")).collect())
        }
        Place::Request => Seen::Key(ID.to_string()),
    })
}

/// The values of a field, by the rules of the URL standard.
fn fields(text: &[u8], name: &str) -> Vec<String> {
    let pairs = text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (decoded(&pair[..end]), decoded(pair.get(end + 1..).unwrap_or_default()))
    });
    pairs.filter(|(other, _)| other == name).map(|(_, value)| value).collect()
}

fn decoded(text: &[u8]) -> String {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(&byte) = text.get(at) {
        let escape =
            text.get(at + 1..at + 3).and_then(|hexes| Some((hex(hexes[0])?, hex(hexes[1])?)));
        match (byte, escape) {
            (b'%', Some((high, low))) => {
                bytes.push(high << 4 | low);
                at += 3;
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a document has at a pointer. `None`: serde_json cannot build it, because a number is too
/// large, an escape is half of a character, or it is nested too deeply.
fn json(body: &[u8], pointer: &str) -> Option<Seen> {
    let Ok(text) = std::str::from_utf8(body) else { return Some(Seen::Absent) };
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Some(Seen::Absent);
    }
    let built: Value = serde_json::from_str(text).ok()?;
    let value = built.pointer(pointer);
    let mut raw = Some(text.trim_matches([' ', '\n', '\r', '\t']));
    for step in pointer.split('/').skip(1) {
        raw = raw.and_then(|raw| inside(raw, &step.replace("~1", "/").replace("~0", "~")));
    }
    assert_eq!(
        value,
        raw.map(|raw| serde_json::from_str::<Value>(raw).expect("a part of a document is one"))
            .as_ref(),
        "serde_json's own pointer finds another value"
    );
    Some(match (value, raw) {
        (Some(Value::String(text)), _) => Seen::of(text.clone()),
        (Some(Value::Number(_)), Some(digits)) if !digits.contains(['.', 'e', 'E']) => {
            Seen::of(digits.to_owned())
        }
        (Some(_), _) => Seen::Invalid,
        (None, _) => Seen::Absent,
    })
}

/// The text of a member or an item.
fn inside<'d>(raw: &'d str, step: &str) -> Option<&'d str> {
    if raw.starts_with('{') {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(raw).ok()?;
        members.get(step).map(|raw| raw.get())
    } else if raw.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
        let index: usize = step.parse().ok()?;
        items.get(index).filter(|_| index.to_string() == step).map(|raw| raw.get())
    } else {
        None
    }
}
