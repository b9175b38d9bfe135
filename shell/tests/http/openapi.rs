//! The document at `/openapi.json` describes exactly what the program does, and agrees with the
//! README.
//!
//! Every response that [`World::answer`] returns is checked against the document there.

use crate::world::{Setup, World, document};
use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;
use surehook::http::problem::ProblemKind;
use surehook::http::{OPENAPI, Route};
use surehook::search::AttemptEntry;
use surehook_core::event::{Action, Reason, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::verdict::{DeliveryError, Verdict};

const README: &str = include_str!("../../../README.md");
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY"];

#[test]
fn the_document_and_the_readme_list_exactly_the_served_routes() {
    let methods = |route: &Route| -> BTreeSet<String> {
        route.methods().split(", ").map(str::to_owned).collect()
    };
    let served: BTreeMap<&str, BTreeSet<String>> =
        Route::ALL.iter().map(|route| (route.path(), methods(route))).collect();
    assert_eq!(served, document().paths().into_iter().collect());

    let rows = README
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(route, _)| route));
    let told: BTreeSet<String> = rows
        .filter(|row| row.starts_with("GET /") || row.starts_with("POST /"))
        .map(str::to_owned)
        .collect();
    let operations = document().paths().into_iter().flat_map(|(path, methods)| {
        let methods = methods.into_iter().filter(|method| method != "HEAD");
        methods.map(move |method| format!("{method} {path}")).collect::<Vec<_>>()
    });
    assert_eq!(told, operations.collect());
}

#[tokio::test]
async fn the_document_lists_exactly_the_allowed_methods_of_each_route() {
    let world = World::start(Setup::default());
    let id = world.accepted("k1").await.to_string();
    for (path, described) in document().paths() {
        let path = path.replace("{source}", "plain").replace("{id}", &id);
        let mut answered = BTreeSet::new();
        for method in METHODS {
            let response = world.request(method, &path, &[("idempotency-key", method)], b"").await;
            if response.status() != 405 {
                answered.insert(method.to_owned());
                continue;
            }
            let allow = response.headers()["allow"].to_str().unwrap();
            assert_eq!(
                allow.split(", ").map(str::to_owned).collect::<BTreeSet<_>>(),
                described,
                "{method} {path}"
            );
        }
        assert_eq!(answered, described, "{path}");
    }
}

#[tokio::test]
async fn every_role_serves_the_document_unchanged() {
    for takes_webhooks in [true, false] {
        let world = World::start(Setup { takes_webhooks, ..Setup::default() });
        let response = world.get("/openapi.json").await;
        assert_eq!((response.status().as_u16(), &response.body()[..]), (200, OPENAPI));
        assert_eq!(response.headers()["content-type"], "application/json");
    }
    assert_eq!(document().at("/openapi"), "3.1.0");
    assert_eq!(document().at("/info/version"), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_document_has_every_problem_under_its_status_code() {
    let mut described = BTreeMap::new();
    for (name, schema) in document().at("/components/schemas").as_object().unwrap() {
        if let Some(slug) = name.strip_prefix("problem.") {
            let of = |member: &str| schema["properties"][member]["const"].clone();
            assert_eq!(of("type"), format!("urn:surehook:problem:{slug}"));
            described.insert(of("type").as_str().unwrap().to_owned(), (of("status"), of("title")));
        }
    }
    let kinds = ProblemKind::ALL
        .iter()
        .map(|kind| (kind.urn().to_owned(), (kind.status().as_u16().into(), kind.title().into())));
    assert_eq!(described, kinds.collect());

    // The pairs of problem and status code, in the operations' own responses and in the shared
    // ones.
    let mut listed: BTreeSet<(String, u64)> = BTreeSet::new();
    let operations = document()
        .at("/paths")
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap().values());
    for (status_code, response) in
        operations.filter_map(|operation| operation["responses"].as_object()).flatten()
    {
        let problems = references(response).into_iter().filter(|name| name.contains("/problem."));
        listed.extend(problems.map(|name| (name, status_code.parse().unwrap())));
    }
    for response in document().at("/components/responses").as_object().unwrap().values() {
        for name in references(response).into_iter().filter(|name| name.contains("/problem.")) {
            let status_code = document().at(&name["#".len()..])["properties"]["status"]["const"]
                .as_u64()
                .unwrap();
            listed.insert((name, status_code));
        }
    }
    let expected = ProblemKind::ALL.iter().map(|kind| {
        (
            kind.urn().replace("urn:surehook:problem:", "#/components/schemas/problem."),
            u64::from(kind.status().as_u16()),
        )
    });
    assert_eq!(listed, expected.collect());
}

#[test]
fn the_readme_lists_every_problem_with_its_status_code() {
    let table = README
        .split("`urn:surehook:problem:` and one of:")
        .nth(1)
        .expect("the README lists the problems");
    let rows = table
        .lines()
        .map(str::trim)
        .skip_while(|line| line.is_empty())
        .take_while(|line| line.starts_with('|'))
        .skip(2);
    let mut told = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        told.extend(
            cells[1]
                .split_whitespace()
                .map(|slug| (slug.trim_matches('`').to_owned(), cells[0].parse::<u16>().unwrap())),
        );
    }
    let kinds = ProblemKind::ALL
        .iter()
        .map(|kind| (kind.urn().replace("urn:surehook:problem:", ""), kind.status().as_u16()));
    assert_eq!(told, kinds.collect());
}

#[test]
fn the_example_event_in_the_readme_matches_the_schema() {
    let block = README
        .split("```json\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the README shows an event");
    document().assert_is("Event", &serde_json::from_str(block).expect("the example is JSON"));
}

#[test]
fn the_document_lists_every_status_reason_action_verdict_and_delivery_error() {
    let names = |schema: &str| document().at(&format!("/components/schemas/{schema}/enum")).clone();
    assert_eq!(names("Status"), Value::from(Status::ALL.map(Status::as_str).to_vec()));
    assert_eq!(names("Reason"), Value::from(Reason::ALL.map(Reason::as_str).to_vec()));
    let actions = document().at("/components/schemas/Action/properties/action/enum");
    assert_eq!(*actions, Value::from(Action::ALL.map(Action::as_str).to_vec()));
    assert_eq!(names("Verdict"), Value::from(Verdict::ALL.map(Verdict::as_str).to_vec()));
    assert_eq!(
        names("DeliveryError"),
        Value::from(DeliveryError::ALL.map(DeliveryError::as_str).to_vec())
    );
}

#[test]
fn every_reference_resolves_and_every_component_is_used() {
    let whole: Value = serde_json::from_slice(OPENAPI).unwrap();
    let referred: BTreeSet<String> = references(&whole).into_iter().collect();
    let components = document().at("/components").as_object().unwrap();
    let parts: BTreeSet<String> = components
        .iter()
        .flat_map(|(kind, parts)| {
            parts.as_object().unwrap().keys().map(move |name| format!("#/components/{kind}/{name}"))
        })
        .collect();
    // No operation refers to these two responses. The document's description names them instead.
    let described = document().at("/info/description").as_str().unwrap();
    let unlisted =
        ["#/components/responses/MethodNotAllowed", "#/components/responses/UnknownRoute"];
    assert!(unlisted.iter().all(|name| described.contains(name)), "{described}");
    assert_eq!(
        referred.into_iter().chain(unlisted.map(str::to_owned)).collect::<BTreeSet<_>>(),
        parts
    );

    let mut operations = BTreeSet::new();
    let mut links = BTreeSet::new();
    for operation in document()
        .at("/paths")
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
    {
        if let Some(name) = operation["operationId"].as_str() {
            assert!(operations.insert(name.to_owned()), "operation id {name} is used twice");
        }
        let responses =
            operation["responses"].as_object().into_iter().flatten().map(|(_, response)| response);
        links.extend(
            responses
                .filter_map(|response| response["links"].as_object())
                .flatten()
                .map(|(_, link)| link["operationId"].as_str().unwrap().to_owned()),
        );
    }
    assert!(!links.is_empty() && links.is_subset(&operations), "{links:?}");
}

/// Every `$ref` in a part of the document.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(key, value)| match value.as_str() {
                Some(reference) if key == "$ref" => vec![reference.to_owned()],
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => vec![],
    }
}

#[tokio::test]
async fn an_event_of_each_status_and_attempt_matches_the_document() {
    let world = World::start(Setup::default());
    for (number, status) in Status::ALL.into_iter().enumerate() {
        let id = world.accepted(&format!("k{number}")).await;
        world.store.put(id, status, attempts());
        let response = world.get(&format!("/events/{id}")).await;
        assert_eq!(response.status(), 200);
        let again = world.post(&format!("k{number}"), b"body").await;
        assert_eq!(again.headers()["idempotent-replayed"], "true");
    }
}

/// Attempts with every verdict and every error.
fn attempts() -> Vec<AttemptEntry> {
    let attempt =
        |attempt, verdict, status_code, error: Option<DeliveryError>, excerpt: &'static [u8]| {
            AttemptEntry {
                attempt,
                ended_at: Timestamp::UNIX_EPOCH,
                took: (verdict != Verdict::Lost).then_some(Duration::from_micros(1234)),
                verdict,
                status_code,
                error: error.map(|error| error.to_string()),
                excerpt: Bytes::from_static(excerpt),
            }
        };
    let mut attempts = vec![
        attempt(1, Verdict::Lost, None, None, b""),
        attempt(2, Verdict::Transient, Some(503), None, b"try later"),
        attempt(3, Verdict::Permanent, Some(422), None, b"\xff\x00"),
        attempt(4, Verdict::Delivered, Some(999), None, b""),
    ];
    let errors = (5..).zip(DeliveryError::ALL);
    attempts
        .extend(errors.map(|(n, error)| attempt(n, Verdict::Transient, None, Some(error), b"")));
    attempts
}

/// Whether the document's schema of a parameter accepts this value.
fn takes(parameter: &'static str, value: &str) -> bool {
    static SCHEMAS: LazyLock<BTreeMap<&str, jsonschema::Validator>> = LazyLock::new(|| {
        let pointers = [
            ("key", "/paths/~1webhooks~1{source}/post/parameters/0/schema"),
            ("id", "/paths/~1events~1{id}/parameters/0/schema"),
            ("source", "/components/schemas/SourceName"),
        ];
        pointers
            .map(|(name, pointer)| {
                (name, jsonschema::validator_for(document().at(pointer)).unwrap())
            })
            .into()
    });
    SCHEMAS[parameter].is_valid(&Value::from(value))
}

proptest! {
    #[test]
    fn the_key_schema_accepts_exactly_the_valid_keys(
        key in prop_oneof![r"[ -~]{0,6}", r#""?[a"\\]{0,8}"?"#, "[!-~]{250,258}", r#""[a-z]{253,257}""#, r"\PC{0,4}"],
    ) {
        prop_assert_eq!(takes("key", &key), IdempotencyKey::parse(key.as_bytes()).is_ok());
    }

    #[test]
    fn the_source_schema_accepts_exactly_the_valid_names(name in prop_oneof!["[A-Za-z0-9_-]{0,66}", r"\PC{0,4}"]) {
        prop_assert_eq!(takes("source", &name), SourceName::parse(&name).is_ok());
    }

    #[test]
    fn the_id_schema_accepts_exactly_the_valid_ids(
        id in prop_oneof!["[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}", "[0-9a-g]{8}(-[0-9a-f]{3,5}){3}-[0-9a-f]{12}", "[{}0-9a-f-]{32,38}"],
    ) {
        prop_assert_eq!(takes("id", &id), id.parse::<EventId>().is_ok());
    }
}
