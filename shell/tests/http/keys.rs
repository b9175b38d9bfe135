//! Where a request has its idempotency key. The rule itself is tested in core.

use crate::world::{Setup, World, assert_problem, header, json};
use bytes::Bytes;
use http::Response;
use surehook::intake::Limits;

fn world(idempotency_key: &'static [&'static str]) -> World {
    World::start(Setup { idempotency_key, ..Setup::default() })
}

async fn posted(world: &World, query: &str, body: &str) -> Response<Bytes> {
    let path = format!("/webhooks/plain{query}");
    // The media type is wrong for each of the bodies.
    let headers = [("content-type", "image/png")];
    world.request("POST", &path, &headers, body.as_bytes()).await
}

fn detail(response: &Response<Bytes>) -> String {
    json(response)["detail"].as_str().unwrap().to_owned()
}

fn stored(world: &World) -> Vec<String> {
    world.store.stored().iter().map(|event| event.key.to_string()).collect()
}

#[tokio::test]
async fn a_key_in_the_body_or_the_query_identifies_the_event() {
    for (place, query, body, key) in [
        (&["json:/id"][..], "", r#"{"type": "charge", "id": "evt_1"}"#, "evt_1"),
        (&["form:MessageSid"], "", "Body=a+b&MessageSid=SM1", "SM1"),
        (&["query:id"], "?a=b&id=q%2F1", "", "q/1"),
        (&["json:/event+json:/n"], "", r#"{"event": "paid+", "n": 7}"#, "paid%2B+7"),
        (&["header:x-id", "json:/id", "form:id"], "", "id=f", "f"),
    ] {
        let world = world(place);
        let first = posted(&world, query, body).await;
        assert_eq!((first.status().as_u16(), stored(&world)), (202, vec![key.to_owned()]));
        let again = posted(&world, query, body).await;
        assert_eq!(header(again.headers(), "idempotent-replayed"), Some("true"), "{place:?}");
        assert_eq!(json(&again)["event_id"], json(&first)["event_id"]);
        assert_eq!(stored(&world).len(), 1, "{place:?}");
    }
}

#[tokio::test]
async fn another_body_with_the_same_member_is_refused() {
    let world = world(&["json:/id"]);
    assert_eq!(posted(&world, "", r#"{"id": 1}"#).await.status(), 202);
    assert_problem(&posted(&world, "", r#"{"id": 1, "n": 2}"#).await, 422, "key-reused");
}

#[tokio::test]
async fn the_hash_of_the_body_makes_equal_bodies_one_event() {
    let world = world(&["body"]);
    let first = posted(&world, "", "abc").await;
    let again = posted(&world, "", "abc").await;
    assert_eq!(json(&again)["event_id"], json(&first)["event_id"]);
    assert_eq!(posted(&world, "", "abd").await.status(), 202);
    let keys = stored(&world);
    // The SHA-256 of "abc" (FIPS 180-4).
    assert_eq!(keys[0], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(keys.len(), 2);
}

#[tokio::test]
async fn with_the_place_request_every_request_is_a_new_event() {
    let world = world(&["json:/id", "request"]);
    for body in ["firing", "firing", r#"{"id": "a"}"#] {
        let response = posted(&world, "", body).await;
        assert_eq!(
            (response.status().as_u16(), header(response.headers(), "idempotent-replayed")),
            (202, None)
        );
    }
    let events = world.store.stored();
    for event in &events[..2] {
        assert_eq!(event.key.as_str(), event.id.to_string(), "the key is the id of the event");
    }
    assert_ne!(events[0].key, events[1].key);
    assert_eq!(events[2].key.as_str(), "a");
}

#[tokio::test]
async fn a_missing_key_names_every_place() {
    let world = world(&["header:X-Id", "query:id", "json:/id+json:/b", "form:id"]);
    let no_json = posted(&world, "?ID=1", "no JSON").await;
    assert_problem(&no_json, 400, "key-missing");
    assert_eq!(
        detail(&no_json),
        "The idempotency key is missing: no such header (`header:X-Id`); no such query parameter (`query:id`); \
         the body is not JSON (`json:/id` of `json:/id+json:/b`); the body is not a form (`form:id`)."
    );
    let no_member = posted(&world, "", r#"{"id": 1}"#).await;
    assert!(detail(&no_member).contains("no such JSON member (`json:/b` of"), "{no_member:?}");
    assert_eq!(stored(&world), [""; 0]);
}

#[tokio::test]
async fn an_invalid_key_names_its_place_and_is_not_shown() {
    let world = world(&["json:/id", "form:id"]);
    for (body, told) in [
        (
            r#"{"id": null}"#,
            "In `json:/id`, the idempotency key is null; send a string or an integer.",
        ),
        (
            r#"{"id": {"a": 1}}"#,
            "In `json:/id`, the idempotency key is an object; send a string or an integer.",
        ),
        (
            r#"{"id": ""}"#,
            "In `json:/id`, the idempotency key is empty; send 1 to 255 visible ASCII characters.",
        ),
        ("id=a&id=a", "In `form:id`, the idempotency key occurs more than once; send exactly one."),
        (
            r#"{"id": "secret word"}"#,
            "In `json:/id`, the idempotency key contains the byte 0x20 at position 6; only visible ASCII characters are allowed.",
        ),
    ] {
        let response = posted(&world, "", body).await;
        assert_problem(&response, 400, "key-invalid");
        assert_eq!(detail(&response), told);
    }
    assert_eq!(stored(&world), [""; 0]);
}

#[tokio::test]
async fn a_key_in_the_body_is_looked_up_after_the_limits_of_the_body() {
    let too_large = [("content-length", "9999")];
    for (places, status, slug) in [
        (&["query:id"][..], 400, "key-missing"),
        (&["header:X-Id", "query:id"], 400, "key-missing"),
        (&["json:/id"], 413, "body-too-large"),
        (&["header:X-Id", "json:/id"], 413, "body-too-large"),
        (&["header:X-Id+body"], 413, "body-too-large"),
        (&["request"], 413, "body-too-large"),
    ] {
        let response = world(places).request("POST", "/webhooks/plain", &too_large, b"").await;
        assert_problem(&response, status, slug);
    }
    // An invalid header is refused early even if the body could be looked into.
    let invalid = [("content-length", "9999"), ("x-id", "a b")];
    let world = world(&["header:X-Id", "json:/id"]);
    let response = world.request("POST", "/webhooks/plain", &invalid, b"").await;
    assert_problem(&response, 400, "key-invalid");
}

#[tokio::test]
async fn deeply_nested_json_is_refused_without_a_deep_stack() {
    let limits =
        Limits { max_queued: 10, max_queued_bytes: 8 << 20, max_request: 2 << 20, sources: 3 };
    let setup =
        Setup { limits, max_body: 2 << 20, idempotency_key: &["json:/id"], ..Setup::default() };
    let world = World::start(setup);
    let deep = "[".repeat(1 << 20);
    assert_problem(&posted(&world, "", &deep).await, 400, "key-missing");
    let closed = format!("{{\"a\": {}{}, \"id\": 1}}", "[".repeat(1 << 19), "]".repeat(1 << 19));
    assert_eq!(posted(&world, "", &closed).await.status(), 202);
}

#[tokio::test]
async fn a_key_that_is_shown_selects_its_event_only() {
    let world = world(&["json:/id"]);
    let bodies = [r#"{"id":"a"}"#, r#"{"id":"\"a\""}"#, r#"{"id":"\"a"}"#];
    for (body, key) in bodies.into_iter().zip(["a", "%22a%22", "%22a"]) {
        let event = json(&posted(&world, "", body).await)["event_id"].take();
        for path in ["/events?", "/events?source=plain&"] {
            let listed = json(&world.get(&format!("{path}key={key}")).await);
            let ids: Vec<_> = listed["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| &event["event_id"])
                .collect();
            assert_eq!(ids, [&event], "{path}{key}: {listed}");
        }
    }
}
