//! This program serves a database that the first version created and filled. Unfinished events are
//! delivered, finished ones are unchanged and can still be queried, and keys are still known.
//!
//! The fixtures hold one event in each status, named by its source: `queued`, `processing` (its
//! process was killed), `retrying`, `delivered`, and a dead letter for each reason.

use serde_json::Value;
use std::collections::BTreeMap;
use tests::database::Database;
use tests::http::Client;
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, verdicts, wait};
use uuid::Uuid;

const POSTGRES: &str = include_str!("../fixtures/first_schema/postgres.sql");
const SQLITE: &str = include_str!("../fixtures/first_schema/sqlite.sql");

/// The sources of unfinished events, each with the attempts that its event has when it is
/// delivered.
const OWED: [(&str, u64); 3] = [("processing", 2), ("queued", 1), ("retrying", 2)];
const REASONS: [&str; 3] = ["exhausted", "lost", "permanent"];

on_each_database!(a_database_of_the_first_schema_is_served);

async fn a_database_of_the_first_schema_is_served(database: Database) {
    database.execute(if let Database::Sqlite(_) = database { SQLITE } else { POSTGRES }).await;
    let events: BTreeMap<String, Uuid> =
        database.fetch("select source, id from events").await.into_iter().collect();
    assert_eq!(events.len(), OWED.len() + REASONS.len() + 1, "{events:?}");
    let sink = Sink::start(|_| Answer::status(200)).await;
    // The fixtures grow older than any default retention.
    let mut configuration =
        "[retention]\ndelivered = \"36500d\"\ndead_lettered = \"36500d\"\n".to_owned();
    for source in events.keys() {
        configuration +=
            &format!("[sources.{source}]\ndestination = \"{}\"\n", sink.url(&format!("/{source}")));
    }

    let service = Service::start(&database.url(), &configuration).await;

    for (source, attempts) in OWED {
        let event = events[source];
        let shown = until_delivered(&service, event).await;
        assert_eq!(shown["attempts"], attempts, "{shown}");
        let history = shown["history"].as_array().expect("a history");
        assert_eq!(history.len() as u64, attempts, "{shown}");
        let received = sink.of(event);
        assert_eq!(
            received.iter().map(|received| u64::from(received.attempt)).collect::<Vec<_>>(),
            [attempts],
            "{shown}"
        );
        assert_eq!(received[0].values("x-name"), [b"Caf\xE9"], "header bytes are unchanged");
    }
    let retried = shown(&service, events["retrying"]).await;
    let first = &retried["history"][0];
    assert_eq!(
        (&first["verdict"], &first["status_code"], &first["excerpt"]),
        (&"transient".into(), &503.into(), &"not now".into())
    );
    assert_eq!(shown(&service, events["processing"]).await["history"][0]["verdict"], "lost");

    what_had_ended_is_shown_and_known(&service, &events).await;
    for source in ["delivered"].iter().chain(&REASONS) {
        assert!(sink.of(events[*source]).is_empty(), "{source}: a finished event was sent again");
    }

    for reason in REASONS {
        let event = events[reason];
        let answer = Client::default()
            .post(&service.url(&format!("/events/{event}/redrive")), &[], "")
            .await
            .expect("a response");
        assert_eq!(answer.status_code, 200, "{answer:?}");
        assert_eq!(until_delivered(&service, event).await["attempts"], 2, "{reason}");
    }
}

async fn what_had_ended_is_shown_and_known(service: &Service, events: &BTreeMap<String, Uuid>) {
    let delivered = shown(service, events["delivered"]).await;
    assert_eq!(
        (&delivered["status"], &delivered["attempts"]),
        (&"delivered".into(), &1.into()),
        "{delivered}"
    );
    assert_eq!(delivered["history"][0]["excerpt"], "seen", "{delivered}");
    for reason in REASONS {
        let dead = shown(service, events[reason]).await;
        assert_eq!(
            (&dead["status"], &dead["reason"]),
            (&"dead_lettered".into(), &reason.into()),
            "{dead}"
        );
    }
    for (body, status_code) in [(r#"{"made for": "delivered"}"#, 202), ("another body", 422)] {
        let answer = Client::default()
            .post(&service.url("/webhooks/delivered"), &[("idempotency-key", "delivered-1")], body)
            .await
            .expect("a response");
        assert_eq!(answer.status_code, status_code, "{answer:?}");
        assert_eq!(answer.json()["event_id"], events["delivered"].to_string(), "{answer:?}");
    }
}

async fn shown(service: &Service, event: Uuid) -> Value {
    verdicts::shown(&Client::default(), service, event).await
}

async fn until_delivered(service: &Service, event: Uuid) -> Value {
    wait::until("the event to be delivered", || async {
        let shown = shown(service, event).await;
        if shown["status"] == "delivered" { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await
}
