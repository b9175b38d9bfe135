//! Events that end without a successful delivery: they are dead-lettered with a reason and a
//! complete history, and sent again if an operator redrives them.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;
use tests::database::Database;
use tests::http::Client;
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, verdicts, wait};
use uuid::Uuid;

on_each_database!(
    a_permanent_refusal_is_dead_lettered_at_once,
    exhausted_attempts_end_in_a_dead_letter,
    a_source_can_override_the_verdicts_of_status_codes,
    a_redrive_delivers_with_a_new_budget_and_keeps_the_history,
    only_a_dead_letter_can_be_redriven,
    a_replay_of_a_dead_letter_redrives_it_if_the_source_allows_it,
    every_delivery_carries_the_time_at_which_its_event_was_received,
    deleted_dead_letters_are_counted_and_logged_once,
);

async fn a_permanent_refusal_is_dead_lettered_at_once(database: Database) {
    let (sink, service) = start(&database).await;
    sink.behave(|_| Answer::status(422).body("unknown currency"));

    let event = post(&service, "orders").await;

    let shown = until_status(&service, event, "dead_lettered").await;
    assert_eq!(
        (&shown["reason"], &shown["attempts"]),
        (&Value::from("permanent"), &Value::from(1)),
        "{shown}"
    );
    assert!(shown["settled_at"].is_string() && shown["next_attempt_at"].is_null(), "{shown}");
    let attempt = &shown["history"][0];
    assert_eq!(attempt["verdict"], "permanent", "{shown}");
    assert_eq!(attempt["status_code"], 422, "{shown}");
    assert_eq!(attempt["excerpt"], "unknown currency", "{shown}");
    assert!(
        attempt["error"].is_null()
            && attempt["duration_ms"].is_number()
            && attempt["started_at"].is_string(),
        "{shown}"
    );
    assert_eq!(sink.of(event).len(), 1);
}

async fn exhausted_attempts_end_in_a_dead_letter(database: Database) {
    let (sink, service) = start(&database).await;
    sink.behave(|_| Answer::status(503).body("try later"));

    let event = post(&service, "orders").await;

    let shown = until_status(&service, event, "dead_lettered").await;
    assert_eq!(
        (&shown["reason"], &shown["attempts"]),
        (&Value::from("exhausted"), &Value::from(3)),
        "{shown}"
    );
    let history: Vec<_> = shown["history"]
        .as_array()
        .expect("a history")
        .iter()
        .map(|attempt| (&attempt["attempt"], &attempt["status_code"]))
        .collect();
    assert_eq!(
        history,
        [
            (&Value::from(1), &Value::from(503)),
            (&Value::from(2), &Value::from(503)),
            (&Value::from(3), &Value::from(503))
        ]
    );
    assert_eq!(
        sink.of(event).iter().map(|received| received.attempt).collect::<Vec<_>>(),
        [1, 2, 3]
    );
}

async fn a_source_can_override_the_verdicts_of_status_codes(database: Database) {
    let (sink, service) = start(&database).await;
    sink.behave(|received| Answer::status(if received.path == "/picky" { 404 } else { 422 }));

    let picky = until_status(&service, post(&service, "picky").await, "dead_lettered").await;
    let lenient = until_status(&service, post(&service, "lenient").await, "dead_lettered").await;

    assert_eq!(
        (&picky["reason"], &picky["attempts"]),
        (&Value::from("permanent"), &Value::from(1)),
        "`dead_letter_on` has 404: {picky}"
    );
    assert_eq!(
        (&lenient["reason"], &lenient["attempts"]),
        (&Value::from("exhausted"), &Value::from(3)),
        "`retry_on` has 422: {lenient}"
    );
}

async fn a_redrive_delivers_with_a_new_budget_and_keeps_the_history(database: Database) {
    let (sink, service) = start(&database).await;
    sink.behave(|_| Answer::status(503));
    let event = post(&service, "orders").await;
    until_status(&service, event, "dead_lettered").await;
    // The new retry budget is as large as the first, so two more refusals do not use it up.
    sink.behave(|received| Answer::status(if received.attempt < 6 { 503 } else { 200 }));

    let answer = redrive(&service, &event.to_string()).await;

    assert_eq!(answer.status_code, 200, "{answer:?}");
    assert_eq!(answer.json()["event_id"], event.to_string());
    let shown = until_status(&service, event, "delivered").await;
    let verdicts: Vec<_> = shown["history"]
        .as_array()
        .expect("a history")
        .iter()
        .map(|attempt| attempt["verdict"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(
        verdicts,
        ["transient", "transient", "transient", "transient", "transient", "delivered"],
        "{shown}"
    );
    assert!(shown["reason"].is_null(), "{shown}");
    let action = &shown["actions"][0];
    assert_eq!(action["action"], "redriven", "{shown}");
    assert_eq!(action["attempts"], 3, "{shown}");
    assert_eq!(shown["actions"].as_array().map(Vec::len), Some(1), "{shown}");
    assert!(action["at"].as_str() > shown["received_at"].as_str(), "{shown}");
    assert_eq!(
        sink.of(event).iter().map(|received| received.attempt).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6]
    );
}

async fn only_a_dead_letter_can_be_redriven(database: Database) {
    let (sink, service) = start(&database).await;
    let event = post(&service, "orders").await;
    until_status(&service, event, "delivered").await;

    let answer = redrive(&service, &event.to_string()).await;
    assert_eq!(
        (answer.status_code, answer.problem().as_str()),
        (409, "urn:surehook:problem:not-dead-lettered")
    );
    let answer = redrive(&service, &Uuid::now_v7().to_string()).await;
    assert_eq!(
        (answer.status_code, answer.problem().as_str()),
        (404, "urn:surehook:problem:unknown-event")
    );
    let answer = redrive(&service, "not-a-uuid").await;
    assert_eq!(
        (answer.status_code, answer.problem().as_str()),
        (400, "urn:surehook:problem:bad-event-id")
    );

    assert_eq!(until_status(&service, event, "delivered").await["attempts"], 1);
    assert_eq!(sink.of(event).len(), 1);
}

async fn a_replay_of_a_dead_letter_redrives_it_if_the_source_allows_it(database: Database) {
    let (sink, service) = start(&database).await;
    let post = async |source: &str| {
        let url = service.url(&format!("/webhooks/{source}"));
        let headers = [("idempotency-key", "same")];
        let answer = Client::default().post(&url, &headers, "{}").await.expect("a response");
        assert_eq!(answer.status_code, 202, "{answer:?}");
        let event: Uuid = answer.header("surehook-event-id").parse().expect("an event id");
        let replayed = answer.header("idempotent-replayed") == "true";
        (event, answer.json()["status"].as_str().expect("a status").to_owned(), replayed)
    };
    for (source, status) in [("orders", "dead_lettered"), ("redelivered", "queued")] {
        sink.behave(|_| Answer::status(422));
        let (event, ..) = post(source).await;
        until_status(&service, event, "dead_lettered").await;
        sink.behave(|_| Answer::status(200));
        assert_eq!(post(source).await, (event, status.to_owned(), true));
        if status == "queued" {
            let shown = until_status(&service, event, "delivered").await;
            assert_eq!(shown["attempts"], 2, "{shown}");
            assert_eq!(post(source).await, (event, "delivered".to_owned(), true));
        }
        let expected = if status == "queued" { 2 } else { 1 };
        assert_eq!(sink.of(event).len(), expected, "{source}");
    }
}

async fn every_delivery_carries_the_time_at_which_its_event_was_received(database: Database) {
    let (sink, service) = start(&database).await;
    sink.behave(|_| Answer::status(503));
    let event = post(&service, "orders").await;
    until_status(&service, event, "dead_lettered").await;
    sink.behave(|_| Answer::status(200));
    assert_eq!(redrive(&service, &event.to_string()).await.status_code, 200);
    until_status(&service, event, "delivered").await;
    let again = format!("/events/{event}/redrive?delivered=true");
    let answer = Client::default().post(&service.url(&again), &[], "").await.expect("a response");
    assert_eq!(answer.status_code, 200, "{answer:?}");
    let shown = wait::until("the fifth delivery", || async {
        let shown = verdicts::shown(&Client::default(), &service, event).await;
        let is_last = shown["status"] == "delivered" && shown["attempts"] == 5;
        if is_last { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    let received_at = shown["received_at"].as_str().expect("a time");
    let told: Vec<Vec<u8>> = sink
        .of(event)
        .iter()
        .flat_map(|delivery| delivery.values("surehook-received-at"))
        .map(<[u8]>::to_vec)
        .collect();
    assert_eq!(told, vec![received_at.as_bytes().to_vec(); 5]);
}

async fn deleted_dead_letters_are_counted_and_logged_once(database: Database) {
    let (sink, mut service) = start(&database).await;
    sink.behave(|_| Answer::status(422));
    for _ in 0..3 {
        let event = post(&service, "orders").await;
        until_status(&service, event, "dead_lettered").await;
    }
    service.signal(Signal::SIGTERM);
    service.wait(Duration::from_secs(30)).await;
    // The dead letters become older than their retention.
    tokio::time::sleep(Duration::from_secs(1)).await;

    // A process begins with a pass of retention.
    let configuration = "[retention]\ndead_lettered = \"1s\"\n[sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n";
    let service = Service::start(&database.url(), configuration).await;
    wait::until("the deletions to be counted", || async {
        let answer = Client::default().get(&service.url("/metrics")).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let counted = "surehook_pruned_events_total{status=\"dead_lettered\"} 3\n";
        if text.contains(counted) { Ok(()) } else { Err(text) }
    })
    .await;
    let lines = wait::until("the log line", || async {
        let log = service.log();
        let lines: Vec<String> = log
            .lines()
            .filter(|line| line.contains("dead letters deleted"))
            .map(str::to_owned)
            .collect();
        if lines.is_empty() { Err(log) } else { Ok(lines) }
    })
    .await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("\"WARN\"") && lines[0].contains("\"events\":3"), "{lines:?}");
}

async fn start(database: &Database) -> (Sink, Service) {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!(
        r#"
        [defaults]
        max_attempts = 3
        initial_delay = "20ms"
        max_delay = "50ms"
        [sources.orders]
        destination = "{}"
        [sources.picky]
        destination = "{}"
        dead_letter_on = [404]
        [sources.lenient]
        destination = "{}"
        retry_on = [422]
        [sources.redelivered]
        destination = "{}"
        redrive_on_replay = true
        "#,
        sink.url("/orders"),
        sink.url("/picky"),
        sink.url("/lenient"),
        sink.url("/redelivered")
    );
    let service = Service::start(&database.url(), &configuration).await;
    (sink, service)
}

async fn post(service: &Service, source: &str) -> Uuid {
    let key = Uuid::new_v4().to_string();
    let answer = Client::default()
        .post(&service.url(&format!("/webhooks/{source}")), &[("idempotency-key", &key)], "{}")
        .await
        .expect("a response");
    assert_eq!(answer.status_code, 202, "{answer:?}");
    answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id")
}

async fn redrive(service: &Service, event: &str) -> tests::http::Answer {
    Client::default()
        .post(&service.url(&format!("/events/{event}/redrive")), &[], "")
        .await
        .expect("a response")
}

async fn until_status(service: &Service, event: Uuid, status: &str) -> Value {
    let client = Client::default();
    wait::until("the event to end", || async {
        let shown = verdicts::shown(&client, service, event).await;
        if shown["status"] == status { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await
}
