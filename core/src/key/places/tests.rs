//! Tests of the places and of the lookup.

use super::*;
use crate::admission::Fingerprint;
use crate::id::EventId;
use crate::key::pointer::Kind;
use crate::key::{IdempotencyKey, KeyError, MAX_KEY_BYTES};
use alloc::format;
use alloc::string::ToString;
use proptest::prelude::*;
use uuid::Uuid;

const ID: EventId = EventId::from_uuid(Uuid::from_u128(7));

fn places(entries: &[&str]) -> KeyPlaces {
    KeyPlaces::new(entries.iter().map(|entry| Entry::parse(entry).unwrap()).collect()).unwrap()
}

/// A request to look up keys in.
#[derive(Clone, Copy, Default)]
struct Request<'r> {
    headers: &'r [(&'r str, &'r str)],
    query: &'r str,
    body: &'r [u8],
}

impl<'r> Request<'r> {
    fn head(&self) -> Head<'r, impl Fn(&str) -> alloc::vec::IntoIter<&'r [u8]>> {
        let headers = self.headers;
        let header = move |name: &str| {
            let values = headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
            values.map(|(_, value)| value.as_bytes()).collect::<Vec<_>>().into_iter()
        };
        Head { header, query: self.query }
    }

    fn find_all(&self, entries: &[&str]) -> Result<String, LookupError> {
        let fingerprint = Fingerprint::of(self.body);
        let received = Received { body: self.body, fingerprint, id: ID };
        places(entries).find(&self.head(), received).map(|key| key.to_string())
    }

    #[track_caller]
    fn has(&self, entry: &str, key: &str) {
        assert_eq!(self.find_all(&[entry]), Ok(key.to_string()), "{entry}");
    }

    #[track_caller]
    fn lacks(&self, entry: &str, absence: Absence) {
        let absent = Absent { entry: entry.to_string(), part: None, absence };
        assert_eq!(self.find_all(&[entry]), Err(LookupError::Missing(vec![absent])));
    }

    #[track_caller]
    fn refuses(&self, entry: &str, fault: Fault) {
        let place = entry.to_string();
        assert_eq!(self.find_all(&[entry]), Err(LookupError::Invalid { place, fault }));
    }
}

fn body(body: &str) -> Request<'_> {
    Request { body: body.as_bytes(), ..Request::default() }
}

#[test]
fn every_place_is_parsed_and_shown_as_written() {
    for entry in [
        "header:X-GitHub-Delivery",
        "header:Surehook-Event-Id",
        "json:",
        "json:/id",
        "json:/a~1b/~0/0",
        "json:/data/a: b",
        "form:id",
        "query:id",
        "body",
        "request",
        "header:X-WC-Webhook-Delivery-ID+body",
        "json:/a+json:/b+query:c",
        "json:/a++b+form:++",
    ] {
        assert_eq!(Entry::parse(entry).unwrap().to_string(), entry);
    }
    let [Place::Json(pointer), Place::Form(field)] =
        &Entry::parse("json:/a++b+form:++").unwrap().0[..]
    else {
        panic!("`++` is a plus sign in a name");
    };
    assert_eq!((pointer.as_str(), field.as_str()), ("/a+b", "+"));
    assert_eq!(
        places(&["header:X-Id", "json:/a+json:/b", "body"]).to_string(),
        "header:X-Id, else json:/a+json:/b, else body"
    );
    assert_eq!(KeyPlaces::default(), places(&["header:Idempotency-Key"]));
}

#[test]
fn a_text_that_is_no_place_is_refused_with_its_fault() {
    let fault = |text: &str| Entry::parse(text).unwrap_err();
    for text in ["", "X-GitHub-Delivery", "Header:X", "body:", "request:1", "json", "a:b", " body"]
    {
        assert_eq!(fault(text), PlaceError { part: text.into(), fault: PlaceFault::Unknown });
    }
    for (text, part, expected) in [
        ("header:", "header:", PlaceFault::NoHeaderName),
        ("header:a b", "header:a b", PlaceFault::NoHeaderName),
        ("body+header:ü", "header:ü", PlaceFault::NoHeaderName),
        ("header:Authorization", "header:Authorization", PlaceFault::ForbiddenHeader),
        ("header:X-A+header:host", "header:host", PlaceFault::ForbiddenHeader),
        ("header:Surehook-Attempt", "header:Surehook-Attempt", PlaceFault::ForbiddenHeader),
        ("json:id", "json:id", PlaceFault::Pointer(PointerError::NoSlash)),
        ("json:/a~", "json:/a~", PlaceFault::Pointer(PointerError::BadEscape)),
        ("form:", "form:", PlaceFault::NoName),
        ("query:", "query:", PlaceFault::NoName),
        ("json:/a+", "", PlaceFault::Unknown),
        ("json:/a+/b", "/b", PlaceFault::Unknown),
        ("json:/a+request", "json:/a+request", PlaceFault::JoinedRequest),
    ] {
        assert_eq!(fault(text), PlaceError { part: part.into(), fault: expected });
    }
    let longest = format!("form:{}", "f".repeat(MAX_PLACE_BYTES - "form:".len()));
    assert!(Entry::parse(&longest).is_ok());
    assert_eq!(fault(&format!("{longest}f")).fault, PlaceFault::TooLong);
}

#[test]
fn a_list_is_short_and_each_of_its_entries_can_be_reached() {
    let list = |entries: &[&str]| {
        KeyPlaces::new(entries.iter().map(|entry| Entry::parse(entry).unwrap()).collect())
    };
    assert_eq!(list(&[]), Err(PlacesError::Empty));
    for always in ["body", "request"] {
        assert!(list(&["json:/id", always]).is_ok());
        let entry = always.to_string();
        assert_eq!(list(&[always, "json:/id"]), Err(PlacesError::Unreachable { entry }));
    }
    assert!(list(&["json:/id+body", "request"]).is_ok());
    assert!(list(&[&["form:a"; MAX_PLACES].join("+")]).is_ok());
    assert_eq!(list(&["form:b", &["form:a"; MAX_PLACES].join("+")]), Err(PlacesError::TooMany));
}

#[test]
fn a_key_is_found_in_each_place() {
    let request = Request {
        headers: &[("x-id", "\"h\"")],
        query: "a=1&id=q%2B1&b",
        body: b"{\"id\": \"evt_1\", \"n\": 12345678901234567890123}",
    };
    request.has("header:X-Id", "h");
    request.has("query:id", "q+1");
    request.has("json:/id", "evt_1");
    request.has("json:/n", "12345678901234567890123");
    body("payload=%7B%7D&id=a%26b").has("form:id", "a&b");
    body("42").has("json:", "42");
    // The SHA-256 of the empty text and of "abc" (FIPS 180-4).
    body("").has("body", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    body("abc").has("body", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    request.has("request", "00000000-0000-0000-0000-000000000007");
}

#[test]
fn the_quotes_of_a_structured_field_are_removed_in_headers_only() {
    Request { headers: &[("x-id", "\"a\\\"b\"")], ..Request::default() }.has("header:X-Id", "a\"b");
    body("{\"id\": \"\\\"a\\\"\"}").has("json:/id", "\"a\"");
    body("id=%22a%22").has("form:id", "\"a\"");
}

#[test]
fn an_absent_place_says_why() {
    let request = Request { headers: &[("x-id", "h")], query: "id=q", body: b"{\"id\": 1}" };
    request.lacks("header:X-Other", Absence::Header);
    request.lacks("query:other", Absence::Parameter);
    request.lacks("query:ID", Absence::Parameter);
    request.lacks("json:/other", Absence::Member);
    request.lacks("json:/id/a", Absence::Member);
    request.lacks("form:id", Absence::NotForm);
    body("a=1").lacks("form:id", Absence::Field);
    body("").lacks("form:id", Absence::Field);
    body("id=1").lacks("json:/id", Absence::NotJson);
    // A text within JSON or XML that looks like a field is none.
    body(r#"{"text":"a&id=1"}"#).lacks("form:id", Absence::NotForm);
    body("<a>b&id=1</a>").lacks("form:id", Absence::NotForm);
}

#[test]
fn a_body_in_another_encoding_is_not_json() {
    body("\u{feff}{\"id\": 1}").lacks("json:/id", Absence::NotJson);
    let utf_16: Vec<u8> = "{\"id\": 1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [
        &utf_16[..],
        &[&[0xff, 0xfe], &utf_16[..]].concat(),
        b"{\"id\": \"caf\xe9\"}",
        b"{\"id\": \"a\", \"text\": \"caf\xe9\"}",
    ] {
        Request { body: bytes, ..Request::default() }.lacks("json:/id", Absence::NotJson);
    }
    let nested = vec![b'['; 1 << 20];
    Request { body: &nested, ..Request::default() }.lacks("json:/id", Absence::NotJson);
}

#[test]
fn a_value_that_is_no_key_is_refused_with_its_place() {
    for (value, kind) in [
        ("null", Kind::Null),
        ("true", Kind::Boolean),
        ("1.5", Kind::Fraction),
        ("1e2", Kind::Fraction),
        ("[1]", Kind::Array),
        ("{\"id\": 1}", Kind::Object),
        (r#""\udead""#, Kind::LoneSurrogate),
    ] {
        body(&format!("{{\"id\": {value}}}")).refuses("json:/id", Fault::Kind(kind));
    }
    let text = |text: &str| format!("{{\"id\": \"{text}\"}}");
    let key = Fault::Key;
    body(&text("")).refuses("json:/id", key(KeyError::Empty));
    body(&text(&"k".repeat(256))).refuses("json:/id", key(KeyError::TooLong { bytes: 256 }));
    let e_acute = KeyError::NotVisibleAscii { byte: 0xc3, at: 3 };
    body(&text("café")).refuses("json:/id", key(e_acute.clone()));
    body(&text("caf\\u00e9")).refuses("json:/id", key(e_acute));
    let space = KeyError::NotVisibleAscii { byte: b' ', at: 1 };
    body(&text("a b")).refuses("json:/id", key(space.clone()));
    body("id=a+b").refuses("form:id", key(space));
    body("id=").refuses("form:id", key(KeyError::Empty));
    body("id").refuses("form:id", key(KeyError::Empty));
    body(&format!("{{\"id\": {}}}", "9".repeat(255))).has("json:/id", &"9".repeat(255));
    body(&format!("{{\"id\": {}}}", "9".repeat(256)))
        .refuses("json:/id", key(KeyError::TooLong { bytes: 256 }));
}

#[test]
fn a_repeated_header_parameter_or_field_is_refused() {
    let request = Request {
        headers: &[("X-Id", "a"), ("x-id", "a")],
        query: "id=1&id=1",
        body: b"id=1&%69d=1",
    };
    for entry in ["header:X-Id", "query:id", "form:id"] {
        request.refuses(entry, Fault::Repeated);
    }
    body(r#"{"id": "a", "id": "b"}"#).has("json:/id", "b");
}

#[test]
fn places_are_tried_in_order() {
    let entries = ["header:X-Id", "json:/a+json:/b", "json:/a"];
    let with_header = Request { headers: &[("x-id", "h")], ..body(r#"{"a": 1, "b": 2}"#) };
    assert_eq!(with_header.find_all(&entries).unwrap(), "h");
    assert_eq!(body(r#"{"a": 1, "b": 2}"#).find_all(&entries).unwrap(), "1+2");
    assert_eq!(body(r#"{"a": 1}"#).find_all(&entries).unwrap(), "1");
    assert_eq!(
        body(r#"{"b": 2}"#).find_all(&entries).unwrap_err().to_string(),
        "the idempotency key is missing: no such header (`header:X-Id`); \
         no such JSON member (`json:/a` of `json:/a+json:/b`); no such JSON member (`json:/a`)"
    );
    // An invalid value ends the search. A joined place is invalid only if all of it is present.
    let error = body(r#"{"a": null, "b": 2}"#).find_all(&entries).unwrap_err();
    assert_eq!(
        error.to_string(),
        "in `json:/a`, the idempotency key is null; send a string or an integer"
    );
    let fallback = ["json:/a+json:/b", "body"];
    assert_eq!(body(r#"{"a": null}"#).find_all(&fallback).unwrap().len(), 64);
}

#[test]
fn a_joined_key_is_readable_and_at_most_as_long_as_any_other() {
    let request =
        Request { headers: &[("x-id", "h")], query: "q=50%25", body: b"{\"a\": \"1+1\"}" };
    request.has("header:X-Id+json:/a+query:q", "h+1%2B1+50%25");
    let long = format!("{{\"a\": \"{}\"}}", "k".repeat(MAX_KEY_BYTES - 1));
    body(&long).refuses("json:/a+json:/a", Fault::Key(KeyError::TooLong { bytes: 509 }));
}

#[test]
fn only_a_request_that_the_body_cannot_change_is_decided_by_its_head() {
    let with = Request { headers: &[("x-id", "h")], query: "id=q", ..Request::default() };
    let without = Request::default();
    let early = |request: Request<'_>, entries: &[&str]| {
        places(entries).find_in_head(&request.head()).map(|key| key.map(|key| key.to_string()))
    };
    assert_eq!(early(with, &["header:X-Id"]), Ok(Some("h".into())));
    assert_eq!(early(with, &["header:X-Other", "query:id"]), Ok(Some("q".into())));
    assert_eq!(early(with, &["header:X-Id", "json:/id"]), Ok(Some("h".into())));
    assert_eq!(early(with, &["json:/id", "header:X-Id"]), Ok(None));
    assert_eq!(early(with, &["header:X-Id+body"]), Ok(None));
    assert_eq!(early(with, &["request"]), Ok(None));
    assert_eq!(early(without, &["header:X-Id", "json:/id"]), Ok(None));
    assert!(matches!(early(without, &["header:X-Id", "query:id"]), Err(LookupError::Missing(_))));
    let invalid = Request { headers: &[("x-id", "a b")], ..without };
    assert!(matches!(
        early(invalid, &["header:X-Id", "json:/id"]),
        Err(LookupError::Invalid { .. })
    ));
}

/// A JSON object with the members `0`, `1`, ….
fn object(values: &[String]) -> String {
    let members = values.iter().enumerate();
    let members: Vec<String> = members
        .map(|(n, value)| format!("\"{n}\":{}", serde_json::to_string(value).unwrap()))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Values that are equal if an escape is left out.
fn value() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["a", "+", "%", "%2B", "%25", "%252B"])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn different_values_are_joined_to_different_keys(
        (one, other) in proptest::collection::vec((value(), proptest::option::of(value())), 1..4)
            .prop_map(|pairs| -> (Vec<String>, Vec<String>) {
                // The lists differ in some of their values.
                let pair = |(one, other): (&str, Option<&str>)| {
                    (String::from(one), String::from(other.unwrap_or(one)))
                };
                pairs.into_iter().map(pair).unzip()
            })
    ) {
        let entry = (0..one.len()).map(|n| format!("json:/{n}")).collect::<Vec<_>>().join("+");
        let key = |values: &[String]| body(&object(values)).find_all(&[&entry]).unwrap();
        prop_assert_eq!(one == other, key(&one) == key(&other));
    }

    #[test]
    fn a_plus_sign_in_a_value_is_no_separator(a in "[!-~]{1,9}", b in "[!-~]{1,9}", c in "[!-~]{1,9}") {
        let key = |one: String, other: String| {
            body(&object(&[one, other])).find_all(&["json:/0+json:/1"]).unwrap()
        };
        prop_assert_ne!(key(format!("{a}+{b}"), c.clone()), key(a, format!("{b}+{c}")));
    }

    #[test]
    fn a_value_that_is_alone_is_the_key_unchanged(value in "[!-~]{1,255}") {
        body(&object(core::slice::from_ref(&value))).has("json:/0", &value);
        let encoded: String =
            form_urlencoded::Serializer::new(String::new()).append_pair("id", &value).finish();
        body(&encoded).has("form:id", &value);
        Request { query: &encoded, ..Request::default() }.has("query:id", &value);
    }

    #[test]
    fn every_key_that_is_found_is_valid(
        headers in proptest::collection::vec("[ -~]{0,5}", 0..3),
        query in "[id=&%+a-c]{0,12}",
        text in prop_oneof!["[id=&%+a-c]{0,12}", "\\{\"id\": ?[\"a-c0-9{}\\[\\]nul]{0,8}\\}", ".{0,20}"],
        entry in proptest::sample::select(vec![
            "header:X-Id", "query:id", "form:id", "json:/id", "body", "json:/id+query:id", "header:X-Id+form:id",
        ]),
    ) {
        let headers: Vec<(&str, &str)> = headers.iter().map(|value| ("x-id", value.as_str())).collect();
        let request = Request { headers: &headers, query: &query, body: text.as_bytes() };
        match request.find_all(&[entry]) {
            Ok(key) => {
                let checked = IdempotencyKey::exact(key.as_bytes()).unwrap();
                prop_assert_eq!(checked.as_str(), key);
            }
            Err(LookupError::Missing(absent)) => prop_assert_eq!(&absent[0].entry, entry),
            Err(LookupError::Invalid { place, .. }) => prop_assert!(entry.contains(&place)),
        }
    }

    #[test]
    fn a_place_is_shown_as_it_is_parsed(name in "[ -~ü]{1,20}") {
        for kind in ["form:", "query:", "json:/"] {
            let name = if kind == "json:/" { name.replace('~', "~0") } else { name.clone() };
            let written = format!("{kind}{}", name.replace('+', "++"));
            let entry = Entry::parse(&written).unwrap();
            prop_assert_eq!(entry.to_string(), written.clone());
            prop_assert_eq!(Entry::parse(&format!("{written}+body")).unwrap().places().len(), 2);
        }
    }
}
