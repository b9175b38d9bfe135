//! Webhooks of GitHub, sent as GitHub sends them and each of them twice: 329 events arrive, each
//! once and unchanged, with the headers that a receiver needs to check the signature.

use flate2::read::GzDecoder;
use futures::{StreamExt, stream};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use tests::database::Database;
use tests::http::Client;
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, wait};
use uuid::Uuid;

on_each_database!(every_github_payload_arrives_once_unchanged_with_its_signature);

const SECRET: &[u8] = b"It's a Secret to Everybody";

async fn every_github_payload_arrives_once_unchanged_with_its_signature(database: Database) {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!(
        "[sources.github]\ndestination = \"{}\"\nproducer = \"github\"\n",
        sink.url("/github")
    );
    let service = Service::start(&database.url(), &configuration).await;
    let payloads = payloads();
    assert_eq!(payloads.len(), 329);

    let (client, url) = (Client::default(), service.url("/webhooks/github"));
    let post = |payload: &Payload| {
        let (client, url, payload) = (client.clone(), url.clone(), payload.clone());
        async move {
            let (hook, delivery) =
                (format!("GitHub-Hookshot/{:07x}", 0x044_aadd), payload.delivery.to_string());
            let headers = [
                ("user-agent", hook.as_str()),
                ("accept", "*/*"),
                ("content-type", "application/json"),
                ("x-github-delivery", &delivery),
                ("x-github-event", &payload.event),
                ("x-github-hook-id", "292430182"),
                ("x-hub-signature-256", &payload.signature),
            ];
            let answer = client.post(&url, &headers, payload.body).await.expect("a response");
            assert_eq!(answer.status_code, 202, "{answer:?}");
            let event: Uuid = answer.json()["event_id"]
                .as_str()
                .and_then(|id| id.parse().ok())
                .expect("an event id");
            (event, answer.header("idempotent-replayed") == "true")
        }
    };
    let first: Vec<(Uuid, bool)> = stream::iter(&payloads).map(post).buffered(16).collect().await;
    let second: Vec<(Uuid, bool)> = stream::iter(&payloads).map(post).buffered(16).collect().await;

    assert!(
        first.iter().all(|(_, replayed)| !replayed) && second.iter().all(|(_, replayed)| *replayed)
    );
    assert!(
        first.iter().zip(&second).all(|(first, second)| first.0 == second.0),
        "a replay has the first event's id"
    );
    let events: BTreeMap<Uuid, &Payload> =
        first.iter().map(|(event, _)| *event).zip(&payloads).collect();
    assert_eq!(events.len(), 329, "two payloads have the same event");
    let status = |event: &Uuid| {
        let (client, url) = (client.clone(), service.url(&format!("/events/{event}")));
        async move { client.get(&url).await.expect("a response").json()["status"].clone() }
    };
    wait::until("every event to be delivered", || async {
        let statuses: Vec<_> = stream::iter(events.keys()).map(status).buffered(16).collect().await;
        let missing = statuses.iter().filter(|status| *status != "delivered").count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are not delivered")) }
    })
    .await;

    let received = sink.received();
    assert_eq!(received.len(), 329, "each event is sent once");
    assert_eq!(
        received.iter().map(|received| received.event).collect::<BTreeSet<_>>(),
        events.keys().copied().collect()
    );
    for received in &received {
        let payload = events[&received.event];
        assert_eq!(
            received.body_sha256,
            <[u8; 32]>::from(Sha256::digest(&payload.body)),
            "{}",
            payload.event
        );
        assert_eq!(received.values("x-hub-signature-256"), [payload.signature.as_bytes()]);
        assert_eq!(received.values("x-github-event"), [payload.event.as_bytes()]);
        assert_eq!(received.values("x-github-delivery"), [payload.delivery.to_string().as_bytes()]);
        assert_eq!(received.values("content-type"), [b"application/json"]);
        assert_eq!(received.values("user-agent"), [b"GitHub-Hookshot/044aadd"]);
    }
}

/// One webhook of GitHub.
#[derive(Clone)]
struct Payload {
    event: String,
    delivery: Uuid,
    signature: String,
    body: Vec<u8>,
}

fn payloads() -> Vec<Payload> {
    let mut text = String::new();
    let fixture = include_bytes!("../fixtures/github-webhooks.tsv.gz");
    GzDecoder::new(&fixture[..]).read_to_string(&mut text).expect("the fixture is gzip over text");
    text.lines()
        .map(|line| {
            let (event, body) = line.split_once('\t').expect("a name, a tab, a payload");
            Payload {
                event: event.to_owned(),
                delivery: Uuid::new_v4(),
                signature: signature(body.as_bytes()),
                body: body.into(),
            }
        })
        .collect()
}

/// The value of `X-Hub-Signature-256`.
fn signature(body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("HMAC accepts keys of any length");
    mac.update(body);
    let hex: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}
