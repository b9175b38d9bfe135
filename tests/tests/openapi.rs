//! Every response matches the OpenAPI document that the program serves, in each role and for events
//! of each status.

use bytes::Bytes;
use std::time::Duration;
use surehook::http::OPENAPI;
use tests::database::Database;
use tests::http::{Answer, Client, exchange};
use tests::openapi::Document;
use tests::program::Service;
use tests::sink::{self, Sink};
use tests::{on_each_database, wait};

on_each_database!(
    responses_match_the_openapi_document_for_each_event_status,
    every_role_serves_the_openapi_document
);

/// The status in which the downstream of each source leaves its events. `queued` needs a process
/// without a worker.
const STATUSES: [&str; 4] = ["processing", "retrying", "delivered", "dead_lettered"];

async fn responses_match_the_openapi_document_for_each_event_status(database: Database) {
    // The downstream of each source determines the status of its events.
    let sink = Sink::start(|received| match received.path.as_str() {
        "/delivered" => sink::Answer::status(204),
        "/retrying" => sink::Answer::status(503),
        "/dead_lettered" => sink::Answer::status(422),
        _ => sink::Answer::status(200).after(Duration::from_mins(1)),
    })
    .await;
    let mut configuration =
        String::from("drain_timeout = \"0s\"\n[defaults]\ninitial_delay = \"10m\"\n");
    for status in STATUSES {
        configuration += &format!(
            "[sources.{status}]\ndestination = \"{}\"\nidempotency_key = \"header:X-Key\"\n",
            sink.url(&format!("/{status}"))
        );
    }
    let service = Service::start(&database.url(), &configuration).await;
    let caller = Caller::new(&service);
    let mut dead = None;
    for wanted in STATUSES {
        let accepted =
            caller.call("POST", &format!("/webhooks/{wanted}"), &[("X-Key", "k")], "body").await;
        assert_eq!(accepted.status_code, 202);
        let event =
            format!("/events/{}", accepted.json()["event_id"].as_str().expect("an event id"));
        wait::until(&format!("the event to be {wanted}"), || async {
            let answer = caller.call("GET", &event, &[], "").await;
            let status = answer.json()["status"].as_str().expect("a status").to_owned();
            if status == wanted { Ok(()) } else { Err(status) }
        })
        .await;
        let again =
            caller.call("POST", &format!("/webhooks/{wanted}"), &[("X-Key", "k")], "body").await;
        assert_eq!((again.status_code, again.header("idempotent-replayed")), (202, "true"));
        caller.call("POST", &format!("/webhooks/{wanted}"), &[("X-Key", "k")], "another").await;
        assert_eq!(caller.call("HEAD", &event, &[], "").await.status_code, 200);
        let redriven = caller.call("POST", &format!("{event}/redrive"), &[], "").await.status_code;
        assert_eq!(redriven, if wanted == "dead_lettered" { 200 } else { 409 });
        caller.call("POST", &format!("{event}/discard"), &[], "").await;
        dead = Some(event);
    }
    let dead = dead.expect("four events were posted");
    wait::until("a redriven event to be dead-lettered again", || async {
        let shown = caller.call("GET", &dead, &[], "").await.json();
        if shown["history"].as_array().is_some_and(|history| history.len() == 2) {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await;
    for path in [
        "/health",
        "/ready",
        "/openapi.json",
        "/nowhere",
        "/webhooks/unknown",
        "/events/1",
        "/events/1/redrive",
        "/events/1/discard",
        "/discard",
    ] {
        for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
            caller.call(method, path, &[], "").await;
        }
    }
}

async fn every_role_serves_the_openapi_document(database: Database) {
    let configuration =
        "drain_timeout = \"0s\"\n[sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n";
    let mut service = Service::start(&database.url(), configuration).await;
    for role in ["all", "intake", "worker"] {
        service.kill();
        service.restart_as(role).await;
        let caller = Caller::new(&service);
        let answer = caller.call("GET", "/openapi.json", &[], "").await;
        assert_eq!(
            (answer.status_code, answer.header("content-type"), &answer.body[..]),
            (200, "application/json", OPENAPI),
            "{role}"
        );
        let posted =
            caller.call("POST", "/webhooks/orders", &[("Idempotency-Key", role)], "body").await;
        assert_eq!(posted.status_code, if role == "worker" { 404 } else { 202 }, "{role}");
        if role == "intake" {
            let event =
                format!("/events/{}", posted.json()["event_id"].as_str().expect("an event id"));
            assert_eq!(
                caller.call("GET", &event, &[], "").await.json()["status"],
                "queued",
                "no worker delivers the event"
            );
        }
    }
    // The server itself refuses a head that is too large. By the document, this response has no
    // body.
    let head = format!(
        "GET /health HTTP/1.1\r\nHost: surehook\r\nX-Long: {}\r\n\r\n",
        "x".repeat(64 << 10)
    );
    let answer = exchange(service.address(), head.as_bytes()).await;
    assert_eq!(answer.status_code, 431);
    Document::read(OPENAPI).assert_describes("GET", "/health", 431, &answer.headers, &answer.body);
    let answer = exchange(
        service.address(),
        format!("GET /{} HTTP/1.1\r\nHost: surehook\r\n\r\n", "x".repeat(70 << 10)).as_bytes(),
    )
    .await;
    assert_eq!(
        (answer.status_code, &answer.body[..]),
        (431, &b""[..]),
        "a target that is too long gets the same response"
    );
}

/// A client that compares each response with the OpenAPI document.
struct Caller {
    client: Client,
    document: Document,
    base: String,
}

impl Caller {
    fn new(service: &Service) -> Self {
        Self { client: Client::default(), document: Document::read(OPENAPI), base: service.url("") }
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> Answer {
        let verb = method.parse().expect("a method");
        let answer = self
            .client
            .send(
                verb,
                &format!("{}{path}", self.base),
                headers,
                Bytes::from_static(body.as_bytes()),
            )
            .await;
        let answer = answer.expect("the program responds");
        self.document.assert_describes(
            method,
            path,
            answer.status_code,
            &answer.headers,
            &answer.body,
        );
        answer
    }
}
