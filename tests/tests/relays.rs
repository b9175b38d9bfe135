//! Handshakes of producers, which the program passes to the destination and does not store.

use bytes::Bytes;
use futures::future::join_all;
use hyper::Method;
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::http::{Answer as Response, Client};
use tests::on_each_database;
use tests::program::Service;
use tests::recording::Recording;
use tests::rogue::{Rogue, Script};
use tests::sink::{Answer, Sink};
use tests::wait;

on_each_database!(
    handshakes_are_relayed_and_events_are_stored,
    a_destination_that_misbehaves_fails_the_relay_and_nothing_else,
);

/// The relay timeout of each source whose destination misbehaves.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest time of a relay that ends without its timeout, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// The most bytes of a response that a destination can send: the program reads 64 KiB, and the
/// buffers of two kernels take the rest.
const TAKEN_AT_MOST: u64 = 2 << 20;
const HANDSHAKE: &str = "{\"type\":\"url_verification\",\"challenge\":\"c\"}";

/// The number of stored events.
async fn stored(service: &Service) -> usize {
    let page = Client::default().get(&service.url("/events")).await.expect("a response");
    page.json()["events"].as_array().expect("a list of events").len()
}

async fn handshakes_are_relayed_and_events_are_stored(database: Database) {
    let sink = Sink::start(|_| Answer::status(200).body("challenge")).await;
    let configuration = format!(
        "[sources.slack]\ndestination = \"{}\"\nidempotency_key = \"json:/event_id\"\n\
         relay = [\"GET\", \"HEAD\", {{ json = \"/type\", equals = \"url_verification\" }}]\n",
        sink.url("/hook?tenant=acme")
    );
    let service = Service::start(&database.url(), &configuration).await;
    let client = Client::default();
    let url = |query: &str| service.url(&format!("/webhooks/slack{query}"));
    let send = async |method: Method, query: &str, body: &'static str| {
        let headers = [("x-signature", "s"), ("authorization", "Bearer t")];
        let body = Bytes::from_static(body.as_bytes());
        client.send(method, &url(query), &headers, body).await.expect("a response")
    };
    for (method, query, body, answer) in [
        (Method::GET, "?hub.challenge='1'", "", "challenge"),
        (Method::HEAD, "", "", ""),
        (Method::POST, "?a", HANDSHAKE, "challenge"),
    ] {
        let response = send(method.clone(), query, body).await;
        assert_eq!((response.status_code, &response.body[..]), (200, answer.as_bytes()));
        assert_eq!(response.header("surehook-event-id"), "");
        let received = sink.received().pop().expect("the relayed request");
        let own = query.replacen('?', "&", 1);
        assert_eq!(
            (received.path, received.query),
            ("/hook".to_owned(), format!("tenant=acme{own}"))
        );
        let values = |name: &str| received.headers.iter().filter(|header| header.0 == name).count();
        assert_eq!(
            ["x-signature", "authorization", "surehook-source", "surehook-event-id"].map(values),
            [1, 0, 1, 0],
            "{method}"
        );
    }
    assert_eq!(stored(&service).await, 0);

    let event = "{\"type\":\"event\",\"event_id\":\"Ev1\"}";
    let accepted = send(Method::POST, "", event).await;
    assert_eq!(accepted.status_code, 202, "{accepted:?}");
    let id = accepted.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    wait::until("the delivery", || async {
        sink.of(id).pop().ok_or_else(|| "not received".to_owned())
    })
    .await;
    assert_eq!(stored(&service).await, 1);
    assert_eq!(sink.count(), 4);

    let refused = send(Method::OPTIONS, "", "").await;
    assert_eq!((refused.status_code, refused.header("allow")), (405, "POST, GET, HEAD"));
    let metrics = client.get(&service.url("/metrics")).await.expect("a response");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let counted = "surehook_relayed_total{source=\"slack\",status=\"200\"} 3";
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
}

/// The misbehaviours, each with the name of its source and what the producer gets.
const CASES: [(&str, u16, &str); 8] = [
    ("hangs", 504, "relay-timeout"),
    ("hangs-in-the-body", 504, "relay-timeout"),
    ("five-megabytes", 502, "relay-failed"),
    ("closes-half-way", 502, "relay-failed"),
    ("resets", 502, "relay-failed"),
    ("nonsense", 502, "relay-failed"),
    ("redirects", 302, ""),
    ("interim-first", 200, ""),
];

fn script(name: &str) -> Script {
    let script = Script::default();
    let ok = |length: u32| {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
    };
    match name {
        "hangs" => script.hang(),
        "hangs-in-the-body" => script.say(ok(5)).say("hal").hang(),
        "five-megabytes" => script.say(ok(5_000_000)).flood(vec![b'x'; 10_000], 500),
        "closes-half-way" => script.say(ok(5)).say("hal"),
        "resets" => script.say(ok(5)).reset(),
        "nonsense" => script.say("nonsense\r\n\r\n"),
        "redirects" => script.say(
            "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        ),
        "interim-first" => script
            .say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
            .say(ok(2))
            .say("ok"),
        other => panic!("no such source: {other}"),
    }
}

async fn a_destination_that_misbehaves_fails_the_relay_and_nothing_else(database: Database) {
    let run = Recording::begin(database).await;
    let rogue = Rogue::start(&run, |received| script(received.path.trim_start_matches('/')));
    let sink = Sink::start(|_| Answer::status(200)).await;
    let mut configuration =
        format!("[sources.healthy]\ndestination = \"{}\"\n", sink.url("/healthy"));
    for (name, ..) in CASES {
        configuration += &format!(
            "[sources.{name}]\ndestination = \"{}\"\nrelay_timeout = \"{}s\"\n\
             relay = [{{ header = \"X-Handshake\" }}]\n",
            rogue.url(&format!("/{name}")),
            TIMEOUT.as_secs()
        );
    }
    let service = Service::start(&run.database().url(), &configuration).await;
    let client = Client::default();
    let handshake = async |name: &str| {
        let url = service.url(&format!("/webhooks/{name}"));
        let begun = Instant::now();
        let headers = [("x-handshake", "1")];
        (client.post(&url, &headers, HANDSHAKE).await.expect("a response"), begun.elapsed())
    };
    let slugs = |response: &Response| {
        if response.status_code >= 500 { response.problem() } else { String::new() }
    };

    let all = join_all(CASES.iter().map(|(name, ..)| handshake(name))).await;
    for ((name, status, slug), (response, took)) in CASES.iter().zip(&all) {
        assert_eq!(response.status_code, *status, "{name}: {response:?}");
        let urn =
            if slug.is_empty() { String::new() } else { format!("urn:surehook:problem:{slug}") };
        assert_eq!(slugs(response), urn, "{name}");
        let range =
            if *status == 504 { TIMEOUT..TIMEOUT + AT_ONCE } else { Duration::ZERO..AT_ONCE };
        assert!(range.contains(took), "{name}: {took:?}");
    }
    let of = |name| &all[CASES.iter().position(|case| case.0 == name).expect("a case")].0;
    assert_eq!(of("redirects").header("location"), "/elsewhere");
    assert_eq!(of("interim-first").body, "ok");
    assert!(rogue.most_taken() <= TAKEN_AT_MOST, "{} bytes", rogue.most_taken());

    // Events, while more requests wait than the source relays at once.
    let many = join_all((0..20).map(|_| handshake("hangs")));
    let events = async {
        let expected = CASES.len() + 8;
        wait::until("the relayed requests", || async {
            let count = rogue.count();
            if count == expected { Ok(()) } else { Err(format!("{count} of {expected}")) }
        })
        .await;
        let begun = Instant::now();
        for name in ["healthy", "hangs"] {
            let url = service.url(&format!("/webhooks/{name}"));
            let headers = [("idempotency-key", "k")];
            let response = client.post(&url, &headers, "event").await.expect("a response");
            assert_eq!(response.status_code, 202, "{name}: {response:?}");
        }
        sink.reaches(1).await;
        begun.elapsed()
    };
    let (many, took) = futures::future::join(many, events).await;
    let with = |status| many.iter().filter(|(response, _)| response.status_code == status).count();
    assert_eq!((with(504), with(502)), (8, 12));
    assert!(took < AT_ONCE, "events took {took:?}");
    assert_eq!(stored(&service).await, 2);
}
