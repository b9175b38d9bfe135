//! What a producer receives after its event was stored.

use crate::sockets::{LIMITS, Server, head};
use crate::world::{Setup, World, assert_problem, header, json};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde_json::json;
use surehook::http::{Acknowledgement, Content};
use surehook_core::event::Status;

fn world(status: u16, content: Content) -> World {
    let status = StatusCode::from_u16(status).unwrap();
    let acknowledgement = Acknowledgement { status, content };
    World::start(Setup { acknowledgement, ..Setup::default() })
}

fn fixed(content_type: Option<&'static str>, body: &'static str) -> Content {
    let content_type = content_type.map(HeaderValue::from_static);
    Content::Fixed { content_type, body: Bytes::from_static(body.as_bytes()) }
}

#[tokio::test]
async fn an_acknowledgement_names_its_event_in_a_header() {
    let world = World::start(Setup::default());
    for replayed in [None, Some("true")] {
        let response = world.post("k1", b"body").await;
        assert_eq!(header(response.headers(), "idempotent-replayed"), replayed);
        let id = world.store.stored()[0].id.to_string();
        assert_eq!(header(response.headers(), "surehook-event-id"), Some(&*id));
        assert_eq!(json(&response)["event_id"], id);
    }
    let refused = world.post("k1", b"another").await;
    assert_problem(&refused, 422, "key-reused");
    assert_eq!(header(refused.headers(), "surehook-event-id"), None);
}

#[tokio::test]
async fn new_events_and_replays_get_the_answer_of_their_source() {
    for (status, content, media_type, body) in [
        (200, fixed(Some("text/plain"), "[accepted]"), Some("text/plain"), "[accepted]"),
        (
            202,
            fixed(Some("text/xml; charset=utf-8"), "<ok/>"),
            Some("text/xml; charset=utf-8"),
            "<ok/>",
        ),
        (299, fixed(None, "ok"), None, "ok"),
        (200, fixed(None, ""), None, ""),
        (204, fixed(None, ""), None, ""),
    ] {
        let world = world(status, content);
        for replayed in [None, Some("true")] {
            let response = world.post("k1", b"body").await;
            assert_eq!(response.status(), status);
            assert_eq!(header(response.headers(), "content-type"), media_type, "{status}");
            assert_eq!(response.body(), body);
            assert_eq!(header(response.headers(), "idempotent-replayed"), replayed);
            let id = world.store.stored()[0].id.to_string();
            assert_eq!(header(response.headers(), "surehook-event-id"), Some(&*id));
        }
        assert_eq!(world.store.stored().len(), 1);
    }
}

#[tokio::test]
async fn another_status_keeps_the_json_with_the_current_status() {
    let world = world(200, Content::Standing);
    let response = world.post("k1", b"body").await;
    assert_eq!(response.status(), 200);
    let id = world.store.stored()[0].id;
    assert_eq!(json(&response), json!({"event_id": id.to_string(), "status": "queued"}));
    world.store.put(id, Status::Delivered, vec![]);
    let again = world.post("k1", b"body").await;
    assert_eq!(json(&again), json!({"event_id": id.to_string(), "status": "delivered"}));
}

#[tokio::test]
async fn refusals_do_not_depend_on_the_answer_of_the_source() {
    let world = world(200, fixed(Some("text/plain"), "[accepted]"));
    assert_problem(&world.post("", b"").await, 400, "key-invalid");
    assert_problem(&world.post("k1", &[0; 2000]).await, 413, "body-too-large");
    assert_eq!(world.post("k1", b"body").await.status(), 200);
    assert_problem(&world.post("k1", b"another").await, 422, "key-reused");
}

#[tokio::test]
async fn a_connection_is_usable_after_an_answer_without_a_body() {
    for status in [204, 205] {
        let world = world(status, fixed(None, ""));
        let server = Server::start(&world, LIMITS).await;
        let mut client = server.client().await;
        for key in ["k1", "k2"] {
            client.send(head(key, "content-length: 1\r\n") + "x").await;
            let response = client.response().await;
            assert_eq!(response.status(), status);
            let no_length = if status == 204 { None } else { Some("0") };
            assert_eq!(header(response.headers(), "content-length"), no_length);
        }
        assert_eq!(world.store.stored().len(), 2);
    }
}
