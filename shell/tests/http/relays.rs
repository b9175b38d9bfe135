//! Requests that are relayed to the destination, and not stored.

use crate::world::{Mode, Setup, World, assert_problem, header, json};
use bytes::Bytes;
use futures::FutureExt;
use http::Response;
use std::time::Duration;
use surehook::http::RELAYED_AT_ONCE;
use surehook::intake::Limits;
use surehook::ports::{MAX_RELAYED_BODY, RelayFailed};
use surehook_core::key::pointer::Pointer;
use surehook_core::relay::{Method, Part, Rule};
use surehook_core::verdict::DeliveryError;

/// `GET`, and each kind of part.
fn rules() -> Vec<Rule> {
    let part = |part, equals: Option<&str>| Rule::Part { part, equals: equals.map(str::to_owned) };
    vec![
        Rule::Method(Method::Get),
        part(Part::Header("X-Hook-Secret".to_owned()), None),
        part(Part::Query("validationToken".to_owned()), None),
        part(Part::Json(Pointer::parse("/type").unwrap()), Some("url_verification")),
    ]
}

fn world() -> World {
    let world = World::start(Setup { relay: rules(), ..Setup::default() });
    world.destination.answers(Ok(Response::new(Bytes::from_static(b"challenge"))));
    world
}

const HANDSHAKE: &[u8] = b"{\"type\":\"url_verification\"}";

#[tokio::test]
async fn a_relayed_request_is_answered_by_the_destination_and_not_stored() {
    let world = world();
    let long = [("x-hook-secret", "s")];
    for (method, path, headers, body) in [
        ("GET", "/webhooks/plain?hub.challenge=1", &[][..], &b""[..]),
        ("POST", "/webhooks/plain", &long, b"body"),
        ("POST", "/webhooks/plain?validationToken=t", &[], b""),
        ("POST", "/webhooks/plain?a='b'&%20", &[], HANDSHAKE),
    ] {
        let response = world.request(method, path, headers, body).await;
        assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"challenge"[..]));
        assert_eq!(header(response.headers(), "surehook-event-id"), None);
        let (source, request) = world.destination.requests().pop().unwrap();
        let query = path.split_once('?').map_or("", |(_, query)| query);
        assert_eq!((&*source, request.method.as_str()), ("plain", method));
        assert_eq!((&request.query[..], &request.body[..]), (query.as_bytes(), body));
    }
    assert_eq!(world.destination.requests().len(), 4);
    assert_eq!(world.store.stored().len(), 0);
}

#[tokio::test]
async fn other_requests_of_the_source_are_events() {
    let world = world();
    for (key, body) in [("k1", &b"{\"type\":\"event\"}"[..]), ("k2", b"not JSON")] {
        assert_eq!(world.post(key, body).await.status(), 202);
    }
    let without_key = world.request("POST", "/webhooks/plain", &[], b"{}").await;
    assert_problem(&without_key, 400, "key-missing");
    let other = world.request("POST", "/webhooks/restamp", &[], HANDSHAKE).await;
    assert_problem(&other, 400, "key-missing");
    assert_eq!((world.store.stored().len(), world.destination.requests().len()), (2, 0));
}

#[tokio::test]
async fn a_relayed_request_has_the_headers_of_a_delivery() {
    let world = world();
    let headers = [
        ("x-hook-secret", "a"),
        ("x-hook-secret", "b"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("authorization", "Bearer t"),
        ("surehook-event-id", "forged"),
        ("x-kept", "1"),
    ];
    world.request("POST", "/webhooks/plain", &headers, b"body").await;
    let (_, request) = world.destination.requests().pop().unwrap();
    let mut names: Vec<_> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    names.sort_unstable();
    assert_eq!(names, [("x-hook-secret", &b"a"[..]), ("x-hook-secret", b"b"), ("x-kept", b"1")]);
}

#[tokio::test]
async fn the_response_to_a_relayed_request_has_any_status_and_cannot_act_as_a_page_of_surehook() {
    let world = world();
    for status in [204, 302, 404, 500] {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = status.try_into().unwrap();
        response.headers_mut().insert("x-hook-secret", "s".parse().unwrap());
        world.destination.answers(Ok(response));
        let response = world.get("/webhooks/plain").await;
        assert_eq!(response.status(), status);
        assert_eq!(header(response.headers(), "x-hook-secret"), Some("s"));
        for (name, value) in [
            ("content-security-policy", "sandbox; default-src 'none'"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(header(response.headers(), name), Some(value));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_relayed_request_keeps_its_memory_until_the_destination_has_answered() {
    let limits =
        Limits { max_queued: 100, max_queued_bytes: 100_000, max_request: 80_000, sources: 1 };
    let world = World::start(Setup {
        relay: rules(),
        relay_timeout: Duration::from_secs(30),
        limits,
        max_body: 80_000,
        ..Setup::default()
    });
    let mut relayed = std::pin::pin!(world.request(
        "POST",
        "/webhooks/plain",
        &[("x-hook-secret", "s")],
        &[b'.'; 60_000]
    ));
    assert!(futures::poll!(&mut relayed).is_pending());
    // Later than the time after which a request that is still being read may be cancelled.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_problem(&world.post("k", &[b'.'; 60_000]).await, 503, "overloaded");
}

#[tokio::test]
async fn a_larger_body_than_a_handshake_needs_is_not_relayed() {
    let setup = Setup { relay: rules(), max_body: 2 * MAX_RELAYED_BODY, ..Setup::default() };
    let world = World::start(setup);
    world.destination.answers(Ok(Response::new(Bytes::from_static(b"challenge"))));
    let by_head = [("x-hook-secret", "s")];
    let padded = |most: usize| {
        let mut body = HANDSHAKE.to_vec();
        body.resize(most, b' ');
        body
    };
    for headers in [&by_head[..], &[("idempotency-key", "k")]] {
        let send =
            async |size| world.request("POST", "/webhooks/plain", headers, &padded(size)).await;
        assert_eq!(send(MAX_RELAYED_BODY).await.status(), 200);
        assert_problem(&send(MAX_RELAYED_BODY + 1).await, 413, "body-too-large");
    }
    assert_eq!(world.destination.requests().len(), 2);
    assert_eq!(world.post("k", &[b'.'; MAX_RELAYED_BODY + 1]).await.status(), 202);
    assert_eq!(world.store.stored().len(), 1);
}

#[tokio::test]
async fn methods_that_are_not_relayed_are_refused() {
    let world = world();
    for method in ["HEAD", "OPTIONS", "PUT", "DELETE"] {
        let response =
            world.request(method, "/webhooks/plain", &[("x-hook-secret", "s")], b"").await;
        assert_eq!(response.status(), 405, "{method}");
        assert_eq!(header(response.headers(), "allow"), Some("POST, GET"));
    }
    let other = world.get("/webhooks/restamp").await;
    assert_eq!((other.status().as_u16(), header(other.headers(), "allow")), (405, Some("POST")));
    assert_eq!(world.destination.requests().len(), 0);
}

#[tokio::test]
async fn a_failed_relay_is_a_502_and_stores_nothing() {
    let world = world();
    for error in [
        RelayFailed::NoResponse(DeliveryError::ConnectionRefused),
        RelayFailed::NoResource,
        RelayFailed::Unsendable,
        RelayFailed::TooLarge,
    ] {
        world.destination.answers(Err(error));
        let response = world.request("POST", "/webhooks/plain", &[], HANDSHAKE).await;
        assert_problem(&response, 502, "relay-failed");
        let detail = json(&response)["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&error.to_string()), "{detail}");
    }
    assert_eq!(world.store.stored().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_relay_without_a_response_is_a_504_after_its_timeout() {
    let timeout = Duration::from_secs(3);
    let world = World::start(Setup { relay: rules(), relay_timeout: timeout, ..Setup::default() });
    let begun = tokio::time::Instant::now();
    let response = world.get("/webhooks/plain").await;
    assert_problem(&response, 504, "relay-timeout");
    assert!((timeout..timeout * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_source_relays_only_a_few_requests_at_once_and_still_accepts_events() {
    let world = World::start(Setup { relay: rules(), ..Setup::default() });
    let mut waiting: Vec<_> =
        (0..RELAYED_AT_ONCE).map(|_| Box::pin(world.get("/webhooks/plain"))).collect();
    for request in &mut waiting {
        assert!(request.now_or_never().is_none());
    }
    assert_problem(&world.get("/webhooks/plain").await, 502, "relay-failed");
    assert_eq!(world.destination.requests().len(), RELAYED_AT_ONCE);
    assert_eq!(world.post("k1", b"body").await.status(), 202);
    // A producer that hangs up frees its slot.
    waiting.pop();
    world.destination.answers(Ok(Response::new(Bytes::new())));
    assert_eq!(world.get("/webhooks/plain").await.status(), 200);
}

#[tokio::test]
async fn a_relay_needs_no_database() {
    let world = world();
    world.store.set(Mode::Unavailable);
    assert_eq!(world.get("/webhooks/plain").await.status(), 200);
}

#[tokio::test]
async fn relayed_requests_obey_the_limits_of_bodies() {
    let world = World::start(Setup { relay: rules(), max_body: 100, ..Setup::default() });
    let response =
        world.request("POST", "/webhooks/plain", &[("x-hook-secret", "s")], &[b'x'; 101]).await;
    assert_problem(&response, 413, "body-too-large");
    assert_eq!(world.destination.requests().len(), 0);
}

#[tokio::test]
async fn a_process_that_only_delivers_relays_nothing() {
    let world = World::start(Setup { relay: rules(), takes_webhooks: false, ..Setup::default() });
    world.destination.answers(Ok(Response::new(Bytes::new())));
    assert_problem(&world.get("/webhooks/plain").await, 404, "no-intake");
    assert_eq!(world.destination.requests().len(), 0);
}

#[tokio::test]
async fn relayed_requests_are_counted_by_source_and_status() {
    let world = world();
    for _ in 0..2 {
        world.get("/webhooks/plain").await;
    }
    world.destination.answers(Err(RelayFailed::TooLarge));
    world.get("/webhooks/plain").await;
    let metrics = world.get("/metrics").await;
    let text = String::from_utf8(metrics.body().to_vec()).unwrap();
    for line in [
        "surehook_relayed_total{source=\"plain\",status=\"200\"} 2",
        "surehook_relayed_total{source=\"plain\",status=\"502\"} 1",
        "surehook_webhooks_refused_total{problem=\"relay-failed\",source=\"plain\"} 1",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is missing:\n{text}");
    }
    let mut webhooks = text.lines().filter(|line| line.starts_with("surehook_webhooks_total{"));
    assert!(webhooks.all(|line| line.ends_with(" 0")), "{text}");
}
