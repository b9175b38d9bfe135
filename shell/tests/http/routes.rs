//! The responses of each route.

use crate::world::{
    Mode, NOT_FOR_OPERATORS, Setup, World, assert_problem, header, json, name, request_for,
};
use bytes::Bytes;
use futures::FutureExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use surehook::health::Loop;
use surehook::http::problem::ProblemKind;
use surehook::http::query::MAX_LOOKS;
use surehook::http::view::rfc3339;
use surehook::http::{Route, RouteSet};
use surehook::ids::SystemIds;
use surehook::intake::Limits;
use surehook::ports::{Ids, NewEvent, OperatorStore};
use surehook::search::AttemptEntry;
use surehook::version::{COMMIT, VERSION};
use surehook_core::breaker::Breaker;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::verdict::Verdict;
use tokio::time::Instant;

#[tokio::test]
async fn a_new_event_is_stored_before_it_is_accepted() {
    let world = World::start(Setup::default());
    let response = world.post("k1", b"\0\xff body").await;
    assert_eq!(response.status(), 202);
    assert_eq!(header(response.headers(), "content-type"), Some("application/json"));
    assert_eq!(header(response.headers(), "idempotent-replayed"), None);
    let stored = world.store.stored();
    assert_eq!(json(&response), json!({"event_id": stored[0].id.to_string(), "status": "queued"}));
    assert_eq!(
        (stored.len(), stored[0].key.as_str(), &stored[0].body[..]),
        (1, "k1", &b"\0\xff body"[..])
    );
    assert_eq!(world.app.doorbell.heard().await, [name("plain")]);
}

#[tokio::test]
async fn the_same_key_and_body_is_a_replay_with_the_current_status() {
    let world = World::start(Setup::default());
    let id = world.delivered("k1").await;
    let again = world.post("k1", b"body").await;
    assert_eq!(again.status(), 202);
    assert_eq!(header(again.headers(), "idempotent-replayed"), Some("true"));
    assert_eq!(json(&again), json!({"event_id": id.to_string(), "status": "delivered"}));
    assert_eq!(world.store.stored().len(), 1);
}

#[tokio::test]
async fn a_reused_key_with_another_body_is_refused_unless_first_wins() {
    let world = World::start(Setup::default());
    let first = world.accepted("k1").await.to_string();
    let refused = world.post("k1", b"another").await;
    assert_problem(&refused, 422, "key-reused");
    let problem = json(&refused);
    assert_eq!(problem["event_id"], first);
    assert!(problem["detail"].as_str().unwrap().contains(&first), "{problem}");
    for (body, replayed) in [(&b"first"[..], None), (b"second", Some("true"))] {
        let response =
            world.request("POST", "/webhooks/restamp", &[("idempotency-key", "k1")], body).await;
        assert_eq!(
            (response.status().as_u16(), header(response.headers(), "idempotent-replayed")),
            (202, replayed)
        );
    }
    assert_eq!(world.store.stored().len(), 2);
}

#[tokio::test]
async fn raw_and_quoted_keys_are_equal_and_scoped_to_their_source() {
    let world = World::start(Setup::default());
    world.accepted("k1").await;
    assert_eq!(
        header(world.post("\"k1\"", b"body").await.headers(), "idempotent-replayed"),
        Some("true")
    );
    let elsewhere =
        world.request("POST", "/webhooks/github", &[("X-GitHub-Delivery", "k1")], b"body").await;
    assert_eq!(
        (elsewhere.status().as_u16(), header(elsewhere.headers(), "idempotent-replayed")),
        (202, None)
    );
}

#[tokio::test]
async fn a_missing_or_invalid_key_is_refused_and_nothing_is_stored() {
    let world = World::start(Setup::default());
    let missing =
        world.request("POST", "/webhooks/github", &[("idempotency-key", "k1")], b"").await;
    assert_problem(&missing, 400, "key-missing");
    assert!(
        json(&missing)["detail"].as_str().unwrap().contains("x-github-delivery"),
        "{missing:?}"
    );
    for bad in ["", "a b", "\"open", "\"a\";p=1", "caf\u{e9}", "a\tb", &"k".repeat(256)] {
        assert_problem(&world.post(bad, b"").await, 400, "key-invalid");
    }
    let twice = world
        .request(
            "POST",
            "/webhooks/plain",
            &[("idempotency-key", "a"), ("Idempotency-Key", "a")],
            b"",
        )
        .await;
    assert_problem(&twice, 400, "key-invalid");
    assert_eq!(world.store.stored(), []);
}

#[tokio::test]
async fn every_spelling_of_an_unknown_source_is_404() {
    let world = World::start(Setup::default());
    let long = "n".repeat(5000);
    for source in [
        "nobody",
        "Plain",
        "%70lain",
        "%00",
        "plain%00",
        "%ff",
        "%",
        "%2e%2e",
        "pl+ain",
        "plain;v=1",
        &long,
    ] {
        assert_problem(
            &world
                .request("POST", &format!("/webhooks/{source}"), &[("idempotency-key", "k")], b"")
                .await,
            404,
            "unknown-source",
        );
    }
    assert_eq!(
        world
            .request("POST", "/webhooks/plain/?a=b", &[("idempotency-key", "k")], b"")
            .await
            .status(),
        202
    );
}

#[tokio::test]
async fn unknown_routes_are_404_for_every_method() {
    let world = World::start(Setup::default());
    for path in [
        "/",
        "/webhooks",
        "/webhooks/",
        "/webhooks/plain/x",
        "//webhooks/plain",
        "/events//",
        "/events//redrive",
        "/events/x//",
        "/events/x/y",
        "/redrive/x",
        "/sources/plain",
        "/sources/plain/pause/x",
        "/metrics/x",
        "/health/x",
        "/%00",
        "/Health",
    ] {
        for method in ["GET", "POST", "DELETE", "OPTIONS", "PROPFIND"] {
            assert_problem(&world.request(method, path, &[], b"").await, 404, "unknown-route");
        }
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_and_lists_the_allowed_methods() {
    let world = World::start(Setup::default());
    for route in Route::ALL {
        let allow = route.methods();
        // The method is checked before the parameter and the query.
        let nonsense = route.path().replace("{source}", "nobody").replace("{id}", "nonsense");
        for path in [request_for(*route).1, format!("{nonsense}/?limit=nonsense")] {
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
                if allow.split(", ").any(|allowed| allowed == method) {
                    continue;
                }
                let response = world.request(method, &path, &[], b"").await;
                assert_problem(&response, 405, "method-not-allowed");
                assert_eq!(header(response.headers(), "allow"), Some(allow), "{method} {path}");
            }
        }
    }
}

#[tokio::test]
async fn get_routes_answer_head_like_get() {
    let world = World::start(Setup::default());
    for (_, path) in
        Route::ALL.iter().map(|route| request_for(*route)).filter(|(method, _)| *method == "GET")
    {
        let (get, head) = (world.get(&path).await, world.request("HEAD", &path, &[], b"").await);
        assert_eq!((get.status(), get.headers()), (head.status(), head.headers()), "{path}");
    }
}

#[tokio::test]
async fn checks_of_a_request_have_a_fixed_order() {
    let world = World::start(Setup::default());
    let too_large = [("content-length", "9999")];
    assert_problem(
        &world.request("PUT", "/webhooks/nobody", &too_large, b"").await,
        405,
        "method-not-allowed",
    );
    assert_problem(
        &world.request("POST", "/webhooks/nobody", &too_large, b"").await,
        404,
        "unknown-source",
    );
    assert_problem(
        &world.request("POST", "/webhooks/plain", &too_large, b"").await,
        400,
        "key-missing",
    );
    let keyed = [("content-length", "9999"), ("idempotency-key", "k")];
    assert_problem(
        &world.request("POST", "/webhooks/plain", &keyed, b"").await,
        413,
        "body-too-large",
    );
    assert_problem(
        &world.request("PUT", "/events/nonsense", &[], b"").await,
        405,
        "method-not-allowed",
    );
}

#[tokio::test]
async fn a_body_of_max_body_is_accepted_and_one_byte_more_refused() {
    let world = World::start(Setup::default());
    assert_eq!(world.post("k1", &[7; 1024]).await.status(), 202);
    assert_problem(&world.post("k2", &[7; 1025]).await, 413, "body-too-large");
    assert_eq!(world.post("k3", b"").await.status(), 202);
    assert_eq!(
        world.store.stored().iter().map(|event| event.body.len()).collect::<Vec<_>>(),
        [1024, 0]
    );
}

#[tokio::test]
async fn the_query_is_stored_as_it_was_posted() {
    for query in ["a=1&a=2", "&&=&b", "sig=a%2Bb%2f+c", "q='x'", "%00%ff", "a?b/c", "caf\u{e9}"] {
        let path = format!("/webhooks/plain?{query}");
        for forward_query in [true, false] {
            let world = World::start(Setup { forward_query, ..Setup::default() });
            let headers = [("idempotency-key", "k")];
            let response = world.request("POST", &path, &headers, b"").await;
            assert_eq!(response.status(), 202, "{query}");
            let expected = if forward_query { query } else { "" };
            assert_eq!(world.store.stored()[0].query, expected);
        }
    }
    let world = World::start(Setup::default());
    for path in ["/webhooks/plain", "/webhooks/plain?", "/webhooks/plain/?"] {
        world.request("POST", path, &[("idempotency-key", path)], b"").await;
    }
    assert!(world.store.stored().iter().all(|event| event.query.is_empty()));
}

#[tokio::test]
async fn each_source_has_its_own_limit_of_a_body() {
    let world = World::start(Setup::default());
    for (source, length, status) in [
        ("github", 2048, 202),
        ("github", 2049, 413),
        ("restamp", 1024, 202),
        ("restamp", 1025, 413),
    ] {
        let key = length.to_string();
        let headers = [("x-github-delivery", &*key), ("idempotency-key", &*key)];
        let path = format!("/webhooks/{source}");
        let response = world.request("POST", &path, &headers, &vec![7; length]).await;
        assert_eq!(response.status(), status, "{length} bytes to {source}");
        if status == 413 {
            let limit = format!("larger than the limit of {} bytes", length - 1);
            assert!(json(&response)["detail"].as_str().unwrap().contains(&limit), "{response:?}");
        }
    }
}

#[tokio::test]
async fn a_worker_process_accepts_no_webhooks() {
    let world = World::start(Setup { takes_webhooks: false, ..Setup::default() });
    assert_problem(&world.post("k1", b"").await, 404, "no-intake");
    assert_eq!(world.get("/ready").await.status(), 200);
}

#[tokio::test]
async fn get_event_shows_the_event() {
    let world = World::start(Setup::default());
    let id = world.accepted("k1").await;
    let response = world.get(&format!("/events/{id}")).await;
    assert_eq!(
        (response.status().as_u16(), header(response.headers(), "content-type")),
        (200, Some("application/json"))
    );
    let shown = json(&response);
    assert_eq!(
        (&shown["event_id"], &shown["source"], &shown["idempotency_key"]),
        (&json!(id.to_string()), &json!("plain"), &json!("k1"))
    );
    assert_eq!(
        (&shown["status"], &shown["max_attempts"], &shown["history"]),
        (&json!("queued"), &json!(20), &json!([]))
    );
    assert_eq!(shown["received_at"], "1970-01-01T00:00:00.000000Z");
    assert_eq!(world.request("HEAD", &format!("/events/{id}"), &[], b"").await.status(), 200);
    assert_eq!(
        world.get(&format!("/events/{}", id.to_string().to_uppercase())).await.status(),
        200
    );

    world.store.database.transact(|tables, _| {
        tables.events.get_mut(&id).unwrap().event.source = name("gone");
    });
    assert_eq!(json(&world.get(&format!("/events/{id}")).await)["max_attempts"], json!(null));
}

#[tokio::test]
async fn an_unknown_event_is_404_and_an_invalid_id_400() {
    let world = World::start(Setup::default());
    let unknown = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e";
    for (method, suffix) in [
        ("GET", ""),
        ("GET", "/request"),
        ("GET", "/body"),
        ("POST", "/redrive"),
        ("POST", "/discard"),
    ] {
        assert_problem(
            &world.request(method, &format!("/events/{unknown}{suffix}"), &[], b"").await,
            404,
            "unknown-event",
        );
        for bad in [
            "1",
            "%00",
            "0199c2f05b7a7c3e9d415f0a7b1c2d3e",
            "zzzzzzzz-5b7a-7c3e-9d41-5f0a7b1c2d3e",
            "..",
            "{id}",
        ] {
            let bad = bad.replace(['{', '}'], "%7B");
            assert_problem(
                &world.request(method, &format!("/events/{bad}{suffix}"), &[], b"").await,
                400,
                "bad-event-id",
            );
        }
    }
}

#[tokio::test]
async fn a_redrive_queues_a_dead_letter_and_wakes_its_worker() {
    let world = World::start(Setup::default());
    let id = world.dead_lettered("k1").await;
    world.app.doorbell.heard().await;
    let response = world.request("POST", &format!("/events/{id}/redrive"), &[], b"").await;
    assert_eq!(
        (response.status().as_u16(), json(&response)),
        (200, json!({"event_id": id.to_string(), "status": "queued", "not_delivering": []}))
    );
    assert_eq!(world.app.doorbell.heard().await, [name("plain")]);

    let again = world.request("POST", &format!("/events/{id}/redrive"), &[], b"").await;
    assert_problem(&again, 409, "not-dead-lettered");
    assert!(json(&again)["detail"].as_str().unwrap().contains("queued"));
    assert!(world.app.doorbell.heard().now_or_never().is_none());
}

#[tokio::test]
async fn a_delivered_event_is_redriven_only_with_delivered_true() {
    let world = World::start(Setup::default());
    let (delivered, dead) = (world.delivered("k1").await, world.dead_lettered("k2").await);
    world.app.doorbell.heard().await;
    let redrive = async |id, query: &str| {
        world.request("POST", &format!("/events/{id}/redrive{query}"), &[], b"").await
    };
    for query in ["", "?", "?delivered=false"] {
        assert_problem(&redrive(delivered, query).await, 409, "not-dead-lettered");
    }
    for query in ["?delivered=perhaps", "?delivered", "?all=true", "?delivered=true&delivered=true"]
    {
        assert_problem(&redrive(delivered, query).await, 400, "bad-query");
    }
    assert_problem(&redrive(dead, "?delivered=true").await, 409, "not-delivered");
    let response = redrive(delivered, "?delivered=true").await;
    assert_eq!(
        (response.status().as_u16(), json(&response)),
        (200, json!({"event_id": delivered.to_string(), "status": "queued", "not_delivering": []}))
    );
    assert_eq!(world.app.doorbell.heard().await, [name("plain")]);
    assert_problem(&redrive(delivered, "?delivered=true").await, 409, "not-delivered");
}

/// Makes an event one of a source that is not configured.
fn remove_source(world: &World, id: EventId) {
    world.store.database.transact(|tables, _| {
        let event = &mut tables.events.get_mut(&id).unwrap().event;
        tables.keys.remove(&(event.source.clone(), event.key.clone()));
        event.source = name("gone");
        tables.keys.insert((event.source.clone(), event.key.clone()), id);
    });
}

fn discards_counted(world: &World, source: &str) -> Option<String> {
    let text = String::from_utf8(world.app.metrics.text(None, &[], &[])).unwrap();
    let series =
        format!("surehook_dead_lettered_total{{reason=\"discarded\",source=\"{source}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&series).map(str::to_owned))
}

#[tokio::test]
async fn a_dead_letter_is_discarded_and_counted_once() {
    let world = World::start(Setup::default());
    let id = world.dead_lettered("k1").await;
    assert_eq!(discards_counted(&world, "plain").as_deref(), Some("0"));
    let shown =
        json!({"event_id": id.to_string(), "status": "dead_lettered", "reason": "discarded"});
    for _ in 0..2 {
        let response = world.request("POST", &format!("/events/{id}/discard"), &[], b"").await;
        assert_eq!((response.status().as_u16(), json(&response)), (200, shown.clone()));
        assert_eq!(discards_counted(&world, "plain").as_deref(), Some("1"));
    }
    let event = json(&world.get(&format!("/events/{id}")).await);
    assert_eq!((&event["status"], &event["reason"]), (&shown["status"], &shown["reason"]));
    let sources = json(&world.get("/sources").await);
    assert_eq!(sources["sources"][1]["source"], "plain");
    assert_eq!(sources["sources"][1]["dead_lettered"], 0);
    let redriven = world.request("POST", &format!("/events/{id}/redrive"), &[], b"").await;
    assert_eq!(json(&redriven)["status"], "queued");
    let event = json(&world.get(&format!("/events/{id}")).await);
    let at = rfc3339(world.store.database.now());
    assert_eq!(
        event["actions"],
        json!([
            {"action": "discarded", "at": at, "attempts": event["attempts"]},
            {"action": "redriven", "at": at, "attempts": event["attempts"]},
        ])
    );
}

#[tokio::test]
async fn waiting_events_are_discarded_only_if_their_source_is_not_configured() {
    let world = World::start(Setup::default());
    let (waiting, delivered) = (world.accepted("k1").await, world.delivered("k2").await);
    let discard =
        async |id: EventId| world.request("POST", &format!("/events/{id}/discard"), &[], b"").await;
    for (id, told) in
        [(waiting, "is queued. Its source is configured"), (delivered, "is delivered")]
    {
        let refused = discard(id).await;
        assert_problem(&refused, 409, "not-discardable");
        assert!(json(&refused)["detail"].as_str().unwrap().contains(told), "{refused:?}");
    }
    world.store.put(waiting, Status::Processing, Vec::new());
    let later = world.store.database.now() + Duration::from_mins(1);
    world.store.database.transact(|tables, _| {
        tables.deliveries.get_mut(&waiting).unwrap().due_at = Some(later);
    });
    remove_source(&world, waiting);
    let refused = discard(waiting).await;
    assert_problem(&refused, 409, "not-discardable");
    assert!(json(&refused)["detail"].as_str().unwrap().contains("lease"), "{refused:?}");
    world.store.put(waiting, Status::Retrying, Vec::new());
    assert_eq!(discard(waiting).await.status(), 200);
    assert_eq!(discards_counted(&world, "gone"), None, "labels are names of configured sources");
    assert_eq!(discards_counted(&world, "").as_deref(), Some("1"));
}

#[tokio::test]
async fn events_are_discarded_in_pages() {
    let world = World::start(Setup::default());
    for n in 0..3 {
        world.dead_lettered(&format!("k{n}")).await;
    }
    let (configured, gone) = (world.accepted("waits").await, world.accepted("gone").await);
    remove_source(&world, gone);
    let step = async |query: String| {
        json(&world.request("POST", &format!("/discard?{query}"), &[], b"").await)
    };
    let counted = step("limit=500&dry_run=true".into()).await;
    assert_eq!(counted, json!({"discarded": 3, "dry_run": true, "next": null}));
    let first = step("source=plain&limit=2".into()).await;
    assert_eq!((&first["discarded"], &first["dry_run"]), (&json!(2), &json!(false)));
    let second = step(format!("limit=2&after={}", first["next"].as_str().unwrap())).await;
    assert_eq!((&second["discarded"], &second["next"]), (&json!(1), &json!(null)));
    assert_eq!(step("source=gone".into()).await["discarded"], 1);
    assert_eq!(discards_counted(&world, "plain").as_deref(), Some("3"));
    assert_eq!(ids(&json(&world.get("/events?reason=discarded").await)).len(), 4);
    let left = json(&world.get(&format!("/events/{configured}")).await);
    assert_eq!(left["status"], "queued");
    let redrive = async |query| json(&world.request("POST", query, &[], b"").await);
    assert_eq!(redrive("/redrive").await["redriven"], 0);
    assert_eq!(redrive("/redrive?reason=discarded&dry_run=true").await["redriven"], 4);
}

#[tokio::test]
async fn a_store_error_becomes_a_problem_without_the_text_of_the_database() {
    let cases = [
        (Mode::Unavailable, 503, "database-unavailable", 503, "database-unavailable"),
        (Mode::Conflict, 503, "database-unavailable", 503, "database-unavailable"),
        (Mode::Unknown, 503, "database-timeout", 503, "database-timeout"),
        (Mode::Rejects, 503, "not-storable", 500, "internal"),
    ];
    for (mode, posted, posted_slug, asked, asked_slug) in cases {
        let world = World::start(Setup::default());
        let id = world.dead_lettered("before").await;
        world.store.set(mode);
        assert_problem(&world.post("k1", b"").await, posted, posted_slug);
        for suffix in ["", "/request", "/body"] {
            let response = world.get(&format!("/events/{id}{suffix}")).await;
            assert_problem(&response, asked, asked_slug);
        }
        for path in [
            format!("/events/{id}/redrive"),
            "/redrive".into(),
            format!("/events/{id}/discard"),
            "/discard".into(),
            "/sources/plain/pause".into(),
            "/sources/plain/resume".into(),
        ] {
            assert_problem(&world.request("POST", &path, &[], b"").await, asked, asked_slug);
        }
        for path in ["/events", "/sources", "/summary"] {
            assert_problem(&world.get(path).await, asked, asked_slug);
        }
        world.store.set(Mode::Works);
        assert_eq!(
            world.post("k1", b"").await.status(),
            202,
            "the producer's retry with the same key is accepted"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_store_is_answered_with_503_after_a_timeout() {
    let world = World::start(Setup::default());
    let id = world.accepted("before").await;
    world.store.set(Mode::Hangs);
    let begun = Instant::now();
    assert_problem(&world.post("k1", b"body").await, 503, "database-timeout");
    assert_problem(&world.get(&format!("/events/{id}")).await, 503, "database-timeout");
    assert!(begun.elapsed() < Duration::from_secs(10));

    world.store.set(Mode::Works);
    let again = world.post("k1", b"body").await;
    assert_eq!(
        (again.status().as_u16(), header(again.headers(), "idempotent-replayed")),
        (202, Some("true")),
        "the first request was stored"
    );
}

#[tokio::test]
async fn an_overloaded_process_answers_503_immediately() {
    let world = World::start(Setup {
        limits: Limits {
            max_queued: 1,
            max_queued_bytes: 1 << 20,
            max_request: 1 << 20,
            sources: 3,
        },
        ..Setup::default()
    });
    world.store.set(Mode::Hangs);
    let mut waiting = std::pin::pin!(world.post("k1", b"body"));
    assert!(futures::poll!(&mut waiting).is_pending());
    assert_problem(&world.post("k2", b"body").await, 503, "overloaded");
    world.store.set(Mode::Works);
    assert_eq!(waiting.await.status(), 202);
    assert_eq!(world.post("k2", b"body").await.status(), 202);
}

#[tokio::test]
async fn queued_bytes_are_bounded_and_include_headers_and_query() {
    let world = World::start(Setup {
        limits: Limits { max_queued: 100, max_queued_bytes: 1000, max_request: 1000, sources: 3 },
        ..Setup::default()
    });
    assert_problem(&world.post("k1", &[0; 1001]).await, 503, "overloaded");
    let headers = [("idempotency-key", "k2"), ("x-long", &*"v".repeat(900))];
    assert_problem(
        &world.request("POST", "/webhooks/plain", &headers, &[0; 200]).await,
        503,
        "overloaded",
    );
    let path = format!("/webhooks/plain?{}", "q".repeat(900));
    assert_problem(
        &world.request("POST", &path, &[("idempotency-key", "k2")], &[0; 200]).await,
        503,
        "overloaded",
    );
    assert_eq!(world.post("k3", &[0; 900]).await.status(), 202);
    assert_eq!(
        world.post("k4", &[0; 900]).await.status(),
        202,
        "the bytes of the first request are free again"
    );
}

fn ids(page: &Value) -> Vec<&str> {
    page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event_id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn events_are_listed_newest_first_page_by_page() {
    let world = World::start(Setup::default());
    let mut events = Vec::new();
    for n in 0..5 {
        events.insert(0, world.accepted(&format!("k{n}")).await.to_string());
    }
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let page = json(&world.get(&format!("/events?limit=2{after}")).await);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, events);
    let listed = json(&world.get("/events?limit=1").await)["events"][0].clone();
    assert_eq!(
        (&listed["idempotency_key"], &listed["max_attempts"], &listed["last_attempt"]),
        (&json!("k4"), &json!(20), &json!(null))
    );
    assert_eq!(world.request("HEAD", "/events?limit=1", &[], b"").await.status(), 200);
}

#[tokio::test]
async fn the_list_returns_the_events_that_match_the_filter() {
    let world = World::start(Setup::default());
    let dead = world.dead_lettered("dead").await;
    let queued = world.accepted("queued").await;
    for (query, expected) in [
        ("status=dead_lettered", vec![dead]),
        ("reason=exhausted", vec![dead]),
        ("status=queued&source=plain", vec![queued]),
        ("source=github", vec![]),
        ("key=queued&source=plain", vec![queued]),
        ("since=2100-01-01T00:00:00Z", vec![]),
        ("until=2100-01-01T00:00:00Z", vec![queued, dead]),
        ("until=1990-01-01T00:00:00Z", vec![]),
    ] {
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(ids(&json(&world.get(&format!("/events?{query}")).await)), expected, "{query}");
    }
}

#[tokio::test]
async fn a_page_of_events_ends_at_its_scan_limit() {
    let world = World::start(Setup::default());
    world.accepted("oldest").await;
    let first = world.store.stored().remove(0);
    world.store.database.transact(|tables, now| {
        for n in 0..MAX_LOOKS {
            let key = IdempotencyKey::parse(n.to_string().as_bytes()).unwrap();
            tables.accept_one(now, NewEvent { id: SystemIds.fresh(), key, ..first.clone() });
        }
    });
    let last = world.store.stored()[1].id.to_string();
    let page = json(&world.get("/events?source=github").await);
    assert_eq!((ids(&page).len(), page["next"].as_str()), (0, Some(&*last)));
    let page = json(&world.get(&format!("/events?source=plain&after={last}")).await);
    assert_eq!((ids(&page), &page["next"]), (vec![&*first.id.to_string()], &json!(null)));
}

#[tokio::test]
async fn an_invalid_query_is_refused_and_changes_nothing() {
    let world = World::start(Setup::default());
    let id = world.dead_lettered("k1").await;
    for query in ["sorce=plain", "status=dead", "limit=501", "dry_run=true"] {
        assert_problem(&world.get(&format!("/events?{query}")).await, 400, "bad-query");
    }
    for query in ["sorce=github", "reason=dead", "limit=0", "status=dead_lettered", "dry_run=maybe"]
    {
        for path in ["/redrive", "/discard"] {
            assert_problem(
                &world.request("POST", &format!("{path}?{query}"), &[], b"").await,
                400,
                "bad-query",
            );
        }
    }
    assert_eq!(json(&world.get(&format!("/events/{id}")).await)["status"], "dead_lettered");
}

#[tokio::test]
async fn dead_letters_are_redriven_in_pages_and_their_workers_woken() {
    let world = World::start(Setup::default());
    for n in 0..3 {
        world.dead_lettered(&format!("k{n}")).await;
    }
    world.app.doorbell.heard().await;
    let step = async |query: String| {
        json(&world.request("POST", &format!("/redrive?{query}"), &[], b"").await)
    };
    let counted = step("limit=500&dry_run=true".into()).await;
    assert_eq!(
        counted,
        json!({"redriven": 3, "dry_run": true, "next": null, "not_delivering": []})
    );
    assert_eq!(step("source=github".into()).await["redriven"], 0);
    assert!(world.app.doorbell.heard().now_or_never().is_none(), "nothing was queued");

    let first = step("source=plain&limit=2".into()).await;
    assert_eq!((&first["redriven"], &first["dry_run"]), (&json!(2), &json!(false)));
    assert_eq!(world.app.doorbell.heard().await, [name("plain")]);
    let second = step(format!("limit=2&after={}", first["next"].as_str().unwrap())).await;
    assert_eq!((&second["redriven"], &second["next"]), (&json!(1), &json!(null)));
    assert_eq!(world.app.doorbell.heard().await, [name("plain")], "the source of the event");
    assert_eq!(ids(&json(&world.get("/events?status=queued").await)).len(), 3);
}

#[tokio::test]
async fn a_redrive_names_the_sources_whose_events_wait() {
    let world = World::start(Setup::default());
    let redrive = async |path: String| {
        json(&world.request("POST", &path, &[], b"").await)["not_delivering"].take()
    };
    let (one, gone) = (world.dead_lettered("k1").await, world.dead_lettered("k2").await);
    world.accepted("k3").await;
    remove_source(&world, gone);
    assert_eq!(redrive("/redrive?source=plain&dry_run=true".into()).await, json!([]));
    assert_eq!(
        redrive("/redrive?dry_run=true".into()).await,
        json!([{"source": "gone", "why": "not_configured"}])
    );
    world.request("POST", "/sources/plain/pause", &[], b"").await;
    let paused = json!([{"source": "plain", "why": "paused"}]);
    assert_eq!(redrive("/redrive?source=plain&dry_run=true".into()).await, paused);
    assert_eq!(
        redrive("/redrive?dry_run=true".into()).await,
        json!([{"source": "gone", "why": "not_configured"}, {"source": "plain", "why": "paused"}])
    );
    assert_eq!(
        redrive("/redrive?key=k1&dry_run=true".into()).await,
        paused,
        "gone has no such key"
    );
    assert_eq!(redrive(format!("/events/{one}/redrive")).await, paused);
    assert_eq!(
        redrive(format!("/events/{gone}/redrive")).await,
        json!([{"source": "gone", "why": "not_configured"}])
    );
    assert_eq!(redrive("/redrive".into()).await, json!([]), "nothing is left to redrive");
}

#[tokio::test]
async fn failures_are_summarized_in_groups() {
    let world = World::start(Setup::default());
    let refused = |second: i64, status_code| AttemptEntry {
        attempt: 1,
        ended_at: Timestamp::from_second(second).unwrap(),
        took: Some(Duration::from_millis(1)),
        verdict: Verdict::Permanent,
        status_code: Some(status_code),
        error: None,
        excerpt: Bytes::from_static(b"unknown field"),
    };
    let mut ids = Vec::new();
    for (n, status_code) in [(1, 422), (2, 400), (3, 422)] {
        let id = world.accepted(&format!("k{n}")).await;
        world.store.put(id, Status::DeadLettered, vec![refused(n, status_code)]);
        ids.push(id.to_string());
    }
    let shown = json(&world.get("/summary").await);
    assert_eq!((&shown["more_groups"], &shown["partial"]), (&json!(false), &json!([])));
    assert_eq!(
        shown["groups"][0],
        json!({
            "source": "plain", "verdict": "permanent", "status_code": 422, "error": null,
            "excerpt": "unknown field", "events": 2, "dead_lettered": 2, "at_least": false,
            "first_at": "1970-01-01T00:00:01.000000Z", "last_at": "1970-01-01T00:00:03.000000Z", "example": ids[2],
        })
    );
    assert_eq!(shown["groups"].as_array().map(Vec::len), Some(2));
    for (query, groups) in [
        ("source=plain", 2),
        ("source=github", 0),
        ("since=1970-01-01T00:00:03Z", 1),
        ("since=1970-01-01T00:00:04Z", 0),
    ] {
        let shown = json(&world.get(&format!("/summary?{query}")).await);
        assert_eq!(shown["groups"].as_array().map(Vec::len), Some(groups), "{query}");
    }
    for query in ["limit=1", "since=1h", "source=a.b"] {
        assert_problem(&world.get(&format!("/summary?{query}")).await, 400, "bad-query");
    }
}

#[tokio::test]
async fn a_summary_examines_more_events_of_one_source_than_of_all() {
    let world = World::start(Setup::default());
    let id = world.accepted("k").await;
    let first = world.store.stored().remove(0);
    world.store.database.transact(|tables, now| {
        for n in 0..1000 {
            let key = IdempotencyKey::parse(n.to_string().as_bytes()).unwrap();
            let id = SystemIds.fresh();
            tables.accept_one(now, NewEvent { id, key, ..first.clone() });
            let row = tables.deliveries.get_mut(&id).unwrap();
            (row.delivery.status, row.due_at) = (Status::DeadLettered, None);
        }
    });
    assert!(world.store.stored().iter().any(|event| event.id == id));
    assert_eq!(json(&world.get("/summary").await)["partial"], json!(["plain"]));
    assert_eq!(json(&world.get("/summary?source=plain").await)["partial"], json!([]));
}

#[tokio::test]
async fn sources_shows_the_backlog_of_each_source() {
    let world = World::start(Setup::default());
    world.accepted("k1").await;
    world.dead_lettered("k2").await;
    world.store.database.advance(Duration::from_millis(1500));
    let shown = json(&world.get("/sources").await);
    let plain = json!({
        "source": "plain", "configured": true, "paused_since": null, "behind_seconds": 1.5,
        "queued": 1, "processing": 0, "retrying": 0, "dead_lettered": 1, "at_least": false,
        "retries_last_seconds": {"shortest": 90.0, "longest": 180.0},
        "this_process": {"breaker": "closed", "last_success_seconds_ago": null, "last_failure_seconds_ago": null},
    });
    assert_eq!(shown["sources"].as_array().unwrap().len(), 3);
    assert_eq!((&shown["delivers"], &shown["sources"][1]), (&json!(true), &plain));
}

#[tokio::test]
async fn a_process_that_does_not_deliver_says_so_and_shows_no_circuit_breakers() {
    let world = World::start(Setup { delivers: false, ..Setup::default() });
    let shown = json(&world.get("/sources").await);
    assert_eq!(shown["delivers"], json!(false));
    for source in shown["sources"].as_array().unwrap() {
        assert_eq!(source["this_process"], json!(null));
        assert_eq!(source["retries_last_seconds"]["longest"], json!(180.0));
    }
}

#[tokio::test]
async fn an_operators_request_for_an_unknown_source_is_refused_with_the_names() {
    let world = World::start(Setup::default());
    let id = world.accepted("k1").await;
    world.store.database.transact(|tables, _| {
        tables.events.get_mut(&id).unwrap().event.source = name("gone");
        tables.deliveries.remove(&id);
    });
    for (method, path) in [("GET", "/events"), ("GET", "/summary"), ("POST", "/redrive")] {
        let ask = async |source: &str| {
            world.request(method, &format!("{path}?source={source}"), &[], b"").await
        };
        for source in ["plain", "gone"] {
            assert_eq!(ask(source).await.status(), 200, "{path} of {source}");
        }
        let refused = ask("plein").await;
        assert_problem(&refused, 400, "bad-query");
        let detail = json(&refused)["detail"].as_str().unwrap().to_owned();
        let names = ["there is no source `plein`: the sources are ", "gone, ", "plain"];
        assert!(names.iter().all(|told| detail.contains(told)), "{path}: {detail}");
    }
    for order in ["pause", "resume"] {
        let path = format!("/sources/plein/{order}");
        let refused = world.request("POST", &path, &[], b"").await;
        assert_problem(&refused, 404, "unknown-source");
        let detail = json(&refused)["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("the sources are ") && detail.contains("plain"), "{detail}");
    }
}

#[tokio::test]
async fn a_source_is_paused_and_resumed_and_the_worker_woken() {
    let world = World::start(Setup::default());
    let ask = async |path: &str| world.request("POST", path, &[], b"").await;
    let paused = async || json(&world.get("/sources").await)["sources"][1]["paused_since"].clone();
    for _ in 0..2 {
        assert_eq!(
            json(&ask("/sources/plain/pause").await),
            json!({"source": "plain", "paused": true, "deliveries_end_within_ms": 20_000})
        );
        assert_eq!(paused().await, "1970-01-01T00:00:00.000000Z");
    }
    assert_eq!(
        world.post("k1", b"body").await.status(),
        202,
        "a paused source still accepts webhooks"
    );
    world.app.doorbell.heard().await;
    for _ in 0..2 {
        assert_eq!(
            json(&ask("/sources/plain/resume").await),
            json!({"source": "plain", "paused": false})
        );
        assert_eq!(paused().await, json!(null));
        assert_eq!(world.app.doorbell.heard().await, [name("plain")]);
    }
    for path in [
        "/sources/nobody/pause",
        "/sources/nobody/resume",
        "/sources/%70lain/pause",
        "/sources/a.b/resume",
    ] {
        assert_problem(&ask(path).await, 404, "unknown-source");
    }
}

#[tokio::test]
async fn a_paused_source_removed_from_the_configuration_can_be_resumed() {
    let world = World::start(Setup::default());
    assert_eq!(world.store.database.pause(name("gone"), true).await, Ok(true));
    let shown = json(&world.get("/sources").await);
    assert_eq!(
        (&shown["sources"][1]["source"], &shown["sources"][1]["configured"]),
        (&json!("gone"), &json!(false))
    );
    assert_eq!(shown["sources"][1]["retries_last_seconds"], json!(null));
    let resume = async || world.request("POST", "/sources/gone/resume", &[], b"").await;
    assert_eq!(resume().await.status(), 200);
    assert_problem(&resume().await, 404, "unknown-source");
}

#[tokio::test]
async fn metrics_are_served_in_the_prometheus_text_format() {
    let world = World::start(Setup::default());
    world.accepted("k1").await;
    world.post("k1", b"body").await;
    world.post("k1", b"another").await;
    world.request("POST", "/webhooks/no%22body", &[("idempotency-key", "k")], b"").await;
    world.app.metrics.breaker(&name("plain"), Breaker::HalfOpen);
    world.store.database.advance(Duration::from_millis(1500));
    let text = world.get("/metrics").await.body().to_vec();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("surehook_breaker_state{"), "it does not deliver: {text}");
    let _alive = world.app.health.watch(Loop::Worker);
    let response = world.get("/metrics").await;
    assert_eq!(header(response.headers(), "content-type"), Some("text/plain; version=0.0.4"));
    let text = String::from_utf8(response.body().to_vec()).unwrap();
    for line in [
        "surehook_webhooks_total{outcome=\"accepted\",source=\"plain\"} 1",
        "surehook_webhooks_total{outcome=\"replayed\",source=\"plain\"} 1",
        "surehook_webhooks_refused_total{problem=\"key-reused\",source=\"plain\"} 1",
        "surehook_webhooks_refused_total{problem=\"unknown-source\",source=\"\"} 1",
        "surehook_backlog_events{source=\"plain\",status=\"queued\"} 1",
        "surehook_backlog_age_seconds{source=\"plain\"} 1.5",
        "surehook_breaker_state{source=\"plain\",state=\"half_open\"} 1",
        "surehook_breaker_state{source=\"plain\",state=\"closed\"} 0",
        "surehook_store_call_seconds_count{call=\"sources\"} 2",
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
    }
    let shown = json(&world.get("/sources").await);
    assert_eq!(shown["sources"][1]["this_process"]["breaker"], "half_open");

    world.store.set(Mode::Unavailable);
    world.app.health.drain();
    let text = String::from_utf8(world.get("/metrics").await.body().to_vec()).unwrap();
    let failed = "surehook_store_calls_failed_total{call=\"sources\",error=\"unavailable\"} 1";
    assert!(text.lines().any(|line| line == failed), "{text}");
    assert!(
        text.contains("surehook_webhooks_total") && !text.contains("surehook_backlog_events{"),
        "{text}"
    );
}

#[test]
fn alerts_use_metrics_that_exist() {
    let alerts = include_str!("../../../deploy/alerts.yaml");
    let words = alerts.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names: BTreeSet<&str> = words.filter(|word| word.starts_with("surehook_")).collect();
    assert!(names.len() > 5, "{names:?}");
    let metrics = include_str!("../../src/metrics.rs");
    for name in names {
        assert!(metrics.contains(&format!("\"{name}\"")), "no metric {name}, but an alert uses it");
    }
}

/// A counter that does not exist before its first increase hides that increase from alerts.
#[tokio::test]
async fn a_quiet_source_has_every_counter_at_zero() {
    let world = World::start(Setup::default());
    let text = String::from_utf8(world.get("/metrics").await.body().to_vec()).unwrap();
    let of_quiet: Vec<&str> =
        text.lines().filter(|line| line.contains("source=\"plain\"")).collect();
    for name in [
        "surehook_webhooks_total",
        "surehook_webhooks_refused_total",
        "surehook_claimed_events_total",
        "surehook_dead_lettered_total",
        "surehook_deliveries_total",
        "surehook_stale_settlements_total",
        "surehook_last_received_timestamp_seconds",
        "surehook_delivery_seconds_count",
        "surehook_accepted_to_delivered_seconds_count",
    ] {
        let series: Vec<&&str> =
            of_quiet.iter().filter(|line| line.starts_with(&format!("{name}{{"))).collect();
        assert!(!series.is_empty(), "{name} is missing in\n{text}");
        assert!(series.iter().all(|line| line.ends_with(" 0")), "{series:?}");
    }
    for kind in ProblemKind::ALL.iter().filter(|kind| kind.status().is_server_error()) {
        let line = format!(
            "surehook_webhooks_refused_total{{problem=\"{}\",source=\"plain\"}} 0",
            kind.slug()
        );
        assert!(of_quiet.contains(&line.as_str()), "{line} is missing");
    }
    for line in [
        "surehook_pruned_events_total{status=\"dead_lettered\"} 0",
        "surehook_pruned_events_total{status=\"delivered\"} 0",
        &format!("surehook_build_info{{commit=\"{COMMIT}\",version=\"{VERSION}\"}} 1"),
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
    }
    #[cfg(target_os = "linux")]
    assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
}

#[tokio::test]
async fn producer_and_operator_addresses_serve_only_their_own_routes() {
    let mut world = World::start(Setup::default());
    for route_set in [RouteSet::Everyone, RouteSet::Producers, RouteSet::Operators] {
        world.route_set = route_set;
        for route in Route::ALL {
            let is_served = match route_set {
                RouteSet::Everyone => true,
                RouteSet::Producers => NOT_FOR_OPERATORS.contains(&route.path()),
                RouteSet::Operators => route.path() != "/webhooks/{source}",
            };
            let (method, path) = request_for(*route);
            let response = world.request(method, &path, &[], b"").await;
            if is_served {
                let is_unknown = response.status() == 404
                    && json(&response)["type"] == "urn:surehook:problem:unknown-route";
                assert!(!is_unknown, "{route_set:?} {route:?}: {response:?}");
            } else {
                assert_problem(&response, 404, "unknown-route");
            }
        }
    }
}
