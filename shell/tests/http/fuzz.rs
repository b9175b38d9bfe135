//! Random requests: every response is JSON, and none is a server error.

use crate::world::{Setup, World, json};
use bytes::Bytes;
use http_body_util::Full;
use proptest::prelude::*;

fn path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        Just(String::from("webhooks")),
        Just(String::from("events")),
        Just(String::from("plain")),
        Just(String::from("redrive")),
        Just(String::from("discard")),
        Just(String::from("health")),
        Just(String::from("0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e")),
        "(%[0-9a-fA-F]{2}|[!$&-.0-9:;=@A-Z_a-z~]){0,12}",
    ];
    proptest::collection::vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/")))
}

proptest! {
    #[test]
    fn every_request_gets_a_json_response_and_no_server_error(
        method in "(GET|POST|HEAD|PUT|DELETE|OPTIONS|PATCH|[A-Z]{1,10})", path in path(),
        key in proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20..=0x7eu8, 0x80..=0xffu8], 0..300),
        keys in 0..3usize, body in proptest::collection::vec(any::<u8>(), 0..1200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let world = World::start(Setup::default());
            let mut request = http::Request::builder().method(&*method).uri(&path).header("host", "test");
            for _ in 0..keys {
                request = request.header("idempotency-key", http::HeaderValue::from_bytes(&key).unwrap());
            }
            let response = world.answer(request.body(Full::new(Bytes::from(body))).unwrap()).await;
            assert!(response.status().as_u16() < 500, "{response:?}");
            let answer = json(&response);
            if response.status().is_success() {
                assert_eq!(response.headers()["content-type"], "application/json");
            } else {
                assert_eq!(response.headers()["content-type"], "application/problem+json");
                assert_eq!(answer["status"], response.status().as_u16());
            }
            assert_eq!(world.store.stored().len(), usize::from(response.status() == 202), "an event is stored if and only if it is accepted");
        });
    }
}
