//! No log line contains a body, a header value or a credential, even at the finest level of the
//! program. All of them contain one word, which the test searches for in the whole log.

use std::time::Duration;
use tests::database::Database;
use tests::http::Client;
use tests::on_each_database;
use tests::recording::Recording;
use tests::sink::{Answer, Received};

/// The word that must not be logged.
const CANARY: &str = "canary7f3a";

on_each_database!(no_log_line_contains_a_body_header_or_credential);

async fn no_log_line_contains_a_body_header_or_credential(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run.sink(behaviour).await;
    let destination = sink.url("/orders").replace("http://", &format!("http://user:{CANARY}@"))
        + &format!("?token={CANARY}");
    let configuration = format!(
        "[defaults]\nmax_attempts = 2\ninitial_delay = \"10ms\"\nmax_delay = \"20ms\"\nforward_credentials = true\n
         [sources.orders]\ndestination = \"{destination}\"\n
         [sources.charges]\ndestination = \"{destination}\"\nidempotency_key = \"json:/secret\"\n"
    );
    let service = run
        .service_in(
            &[("SUREHOOK_LOG_FILTER", "warn,surehook=trace,surehook_core=trace")],
            &configuration,
        )
        .await;
    let client = Client::default();
    let (bearer, body) = (format!("Bearer {CANARY}"), format!("{{\"secret\": \"{CANARY}\"}}"));
    for key in ["taken", "refused", "failed"] {
        let headers = [
            ("idempotency-key", key),
            ("authorization", &bearer),
            ("cookie", CANARY),
            ("x-secret", CANARY),
        ];
        let answer = client
            .post(&service.url(&format!("/webhooks/orders?token={CANARY}")), &headers, body.clone())
            .await
            .expect("a response");
        assert_eq!(answer.status_code, 202, "{answer:?}");
    }
    // Refused requests must not be logged either: an invalid key, an unknown source, a different
    // body. Some producers put their credential into the query.
    let bad = format!("{CANARY} is no key");
    for (path, key) in [
        ("/webhooks/orders", bad.as_str()),
        ("/webhooks/nowhere", CANARY),
        ("/webhooks/orders", "taken"),
    ] {
        let path = format!("{path}?token={CANARY}");
        let answer = client
            .post(&service.url(&path), &[("idempotency-key", key)], format!("{CANARY}!"))
            .await
            .expect("a response");
        assert!((400..500).contains(&answer.status_code), "{answer:?}");
    }
    let invalid = format!("{{\"secret\": \"{CANARY} is no key\"}}");
    let answer =
        client.post(&service.url("/webhooks/charges"), &[], invalid).await.expect("a response");
    assert_eq!(answer.status_code, 400, "{answer:?}");
    run.all_ended().await;
    // What an operator reads of a request is not logged either.
    let listed = client.get(&service.url("/events")).await.expect("a response").json();
    for event in listed["events"].as_array().expect("events") {
        for part in ["request", "body"] {
            let id = event["event_id"].as_str().expect("an id");
            let path = service.url(&format!("/events/{id}/{part}"));
            let answer = client.get(&path).await.expect("a response");
            let read = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(answer.status_code == 200 && read.contains(CANARY), "{answer:?}");
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(sink.received().len() >= 3, "not every event was sent");

    let log = service.log();
    assert!(
        log.contains("answered") && log.contains("dead-lettered"),
        "the log lacks lines of the finest level:\n{log}"
    );
    let told: Vec<&str> = log.lines().filter(|line| line.contains(CANARY)).collect();
    assert!(told.is_empty(), "{told:#?}");
}

fn behaviour(received: &Received) -> Answer {
    match received.attempt {
        1 => Answer::status(503).body("try later"),
        _ => Answer::status(422).body("no"),
    }
}
