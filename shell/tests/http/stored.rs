//! The stored request of an event, and its body.

use crate::world::{DESTINATION, Setup, World, assert_problem, header, json, name};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::service::Service;
use serde_json::json;
use std::pin::pin;
use std::sync::Arc;
use surehook_core::admission::Fingerprint;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_model::scenario::Call;

const BODY: &[u8] = b"\0\xff {\"a\":1}\r\n\x1b[2J";

/// Posts an event to the source `github`, which stores credentials too.
async fn posted(world: &World) -> EventId {
    let headers = [
        ("x-github-delivery", "k1"),
        ("content-type", "application/json"),
        ("authorization", "Bearer t"),
        ("x-sig", "one"),
        ("x-sig", "two"),
    ];
    let response = world.request("POST", "/webhooks/github?a=1&sig='x'", &headers, BODY).await;
    json(&response)["event_id"].as_str().unwrap().parse().unwrap()
}

fn erase(world: &World, id: EventId) {
    world.store.put(id, Status::Delivered, vec![]);
    world.store.database.transact(|tables, now| tables.erase_one(now, id));
}

#[tokio::test]
async fn the_stored_request_has_each_part_but_the_body() {
    let world = World::start(Setup::default());
    let id = posted(&world).await;
    let response = world.get(&format!("/events/{id}/request")).await;
    assert_eq!(
        json(&response),
        json!({
            "event_id": id.to_string(), "source": "github", "destination": DESTINATION,
            "received_at": "1970-01-01T00:00:00.000000Z", "erased_at": null,
            "sha256": Fingerprint::of(BODY).to_string(), "method": "POST", "query": "a=1&sig='x'",
            "content_type": "application/json", "size": BODY.len(),
            "headers": [
                {"name": "x-github-delivery", "value": "k1"},
                {"name": "content-type", "value": "application/json"},
                {"name": "authorization", "value": "Bearer t"},
                {"name": "x-sig", "value": "one"},
                {"name": "x-sig", "value": "two"},
            ],
        })
    );
    world.store.database.transact(|tables, _| {
        tables.events.get_mut(&id).unwrap().event.source = name("gone");
    });
    let response = world.get(&format!("/events/{id}/request")).await;
    assert_eq!(json(&response)["destination"], json!(null));
}

#[tokio::test]
async fn a_body_is_sent_byte_for_byte_as_a_file() {
    let world = World::start(Setup::default());
    let id = posted(&world).await;
    let response = world.get(&format!("/events/{id}/body")).await;
    assert_eq!((response.status().as_u16(), &response.body()[..]), (200, BODY));
    let of = |name| header(response.headers(), name);
    assert_eq!(
        (of("content-type"), of("x-content-type-options")),
        (Some("application/octet-stream"), Some("nosniff"))
    );
    assert_eq!(of("content-disposition"), Some(&*format!("attachment; filename=\"{id}\"")));
    drop(response);

    let empty = world.post("empty", b"").await;
    let id = json(&empty)["event_id"].as_str().unwrap().to_owned();
    let response = world.get(&format!("/events/{id}/body")).await;
    assert_eq!((response.status().as_u16(), response.body().len()), (200, 0));
}

#[tokio::test]
async fn an_erased_payload_is_not_shown_as_an_empty_one() {
    let world = World::start(Setup::default());
    let id = posted(&world).await;
    erase(&world, id);
    assert_problem(&world.get(&format!("/events/{id}/body")).await, 409, "payload-erased");
    let shown = json(&world.get(&format!("/events/{id}/request")).await);
    assert_eq!(shown["erased_at"], "1970-01-01T00:00:00.000000Z");
    assert_eq!(shown["sha256"], Fingerprint::of(BODY).to_string());
    for erased in ["method", "query", "headers", "content_type", "size"] {
        assert!(shown.get(erased).is_none(), "{erased} is in {shown}");
    }
}

#[tokio::test]
async fn stored_headers_that_cannot_be_read_are_an_error() {
    let world = World::start(Setup::default());
    let id = posted(&world).await;
    world.store.database.transact(|tables, _| {
        tables.events.get_mut(&id).unwrap().event.headers = "no colon".into();
    });
    assert_problem(&world.get(&format!("/events/{id}/request")).await, 500, "internal");
}

/// The response to a reader that has not read its body yet.
async fn unread(world: &World, path: &str) -> warp::reply::Response {
    let app = Arc::clone(&world.app);
    let service = surehook::http::service(app, world.route_set, world.access.clone());
    let request = Request::get(path).header("host", "test");
    service.call(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn one_body_is_in_memory_until_it_is_sent() {
    let world = World::start(Setup::default());
    let path = format!("/events/{}/body", posted(&world).await);
    let reads = || world.store.calls(Call::Find);
    let held = unread(&world, &path).await;
    let mut second = pin!(world.get(&path));
    assert!(futures::poll!(&mut second).is_pending());
    assert_eq!(reads(), 1, "the second body is read only when the first one is gone");
    drop(held);
    assert_eq!(second.await.status(), 200);
    assert_eq!(reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_read_ends_the_wait_of_the_next_one() {
    let world = World::start(Setup::default());
    let path = format!("/events/{}/body", posted(&world).await);
    let _held = unread(&world, &path).await;
    assert_problem(&world.get(&path).await, 503, "overloaded");
}
