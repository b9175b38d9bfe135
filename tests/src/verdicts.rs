//! The checks of each event after a run: it was accepted by the downstream, how often, its status
//! follows from its attempts, and these follow from the downstream's responses.

use crate::http::Client;
use crate::producer::Sent;
use crate::program::Service;
use crate::sink::{Received, Sink};
use crate::wait;
use futures::{StreamExt, stream};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook_model::history::{PostId, Run, What};
use uuid::Uuid;

const LOOKS_AT_ONCE: usize = 32;

/// Checks a run in which no process ended: every post was answered in time, with `202` or `503`.
/// Prints the slowest answer.
///
/// # Panics
///
/// If a post was not.
pub fn every_post_is_answered(run: &Run, within: Duration) {
    let posted: BTreeMap<PostId, Duration> = run
        .each(|what| if let What::Posted(post) = what { Some(post.post) } else { None })
        .map(|(at, post)| (post, at))
        .collect();
    let mut slowest = Duration::ZERO;
    let mut answered = 0;
    for (at, answer) in run.answers() {
        assert!(matches!(answer.status_code, 202 | 503), "{answer:?}");
        let took = at - posted[&answer.post];
        assert!(took < within, "{answer:?} came after {took:?}");
        slowest = slowest.max(took);
        answered += 1;
    }
    assert_eq!(answered, posted.len(), "some posts were not answered");
    println!("{answered} posts were answered, the slowest after {slowest:.3?}");
}

/// Waits until the downstream has accepted every event of `sent`.
///
/// # Panics
///
/// If it has not in time.
pub async fn all_taken(sink: &Sink, sent: &[Sent]) {
    let wanted: BTreeSet<Uuid> = sent.iter().map(Sent::event).collect();
    wait::until("the downstream to accept every event", || async {
        let taken = sink.taken();
        let missing = wanted.iter().filter(|event| !taken.contains_key(event)).count();
        if missing == 0 {
            Ok(())
        } else {
            Err(format!("{missing} of {} are missing", wanted.len()))
        }
    })
    .await;
}

/// The response of `GET /events/{id}` for one event.
///
/// # Panics
///
/// If the response is not `200`.
pub async fn shown(client: &Client, service: &Service, event: Uuid) -> Value {
    let answer =
        client.get(&service.url(&format!("/events/{event}"))).await.expect("the program answers");
    assert_eq!(answer.status_code, 200, "{event}: {answer:?}");
    answer.json()
}

/// The response of `GET /events/{id}` for each event that was sent, in order.
///
/// # Panics
///
/// If a response is not `200`.
pub async fn all_shown(service: &Service, sent: &[Sent]) -> Vec<Value> {
    let client = Client::default();
    stream::iter(sent)
        .map(|sent| shown(&client, service, sent.event()))
        .buffered(LOOKS_AT_ONCE)
        .collect()
        .await
}

/// Waits until every event of `sent` is shown as delivered. Returns the shown events, in order.
///
/// # Panics
///
/// If an event is not delivered in time.
pub async fn until_delivered(service: &Service, sent: &[Sent]) -> Vec<Value> {
    let client = Client::default();
    let ended = |sent| {
        let client = client.clone();
        async move {
            wait::until("an event to be shown as delivered", || async {
                let shown = shown(&client, service, Sent::event(sent)).await;
                if shown["status"] == "delivered" { Ok(shown) } else { Err(shown.to_string()) }
            })
            .await
        }
    };
    stream::iter(sent).map(ended).buffered(LOOKS_AT_ONCE).collect().await
}

/// Waits until every event of `sent` is shown as delivered. Then checks each history against the
/// state machine and against what the downstream received. Returns the events that have a lost
/// attempt.
///
/// # Panics
///
/// If an event is not shown as delivered in time, or its history is not explained.
pub async fn all_delivered_and_explained(
    service: &Service,
    sink: &Sink,
    sent: &[Sent],
) -> BTreeSet<Uuid> {
    let events = until_delivered(service, sent).await;
    let mut received: BTreeMap<(Uuid, u64), Vec<Received>> = BTreeMap::new();
    for request in sink.received() {
        received.entry((request.event, u64::from(request.attempt))).or_default().push(request);
    }
    let mut lost = BTreeSet::new();
    for (sent, event) in sent.iter().zip(&events) {
        assert_eq!(event["event_id"], sent.event().to_string(), "{event}");
        assert_eq!(event["source"], sent.source, "{event}");
        assert_eq!(event["idempotency_key"], sent.key.as_str(), "{event}");
        if explained(sent, event, &received) {
            lost.insert(sent.event());
        }
    }
    let known: BTreeSet<Uuid> = sent.iter().map(Sent::event).collect();
    assert!(
        received.keys().all(|(event, _)| known.contains(event)),
        "the downstream received an event that no producer knows"
    );
    lost
}

/// Checks an event's history against the received requests. Returns whether the event has a lost
/// attempt.
fn explained(sent: &Sent, event: &Value, received: &BTreeMap<(Uuid, u64), Vec<Received>>) -> bool {
    let history = event["history"].as_array().unwrap_or_else(|| panic!("no history: {event}"));
    assert_eq!(event["attempts"], history.len(), "{event}");
    let mut lost = false;
    for (attempt, number) in history.iter().zip(1..) {
        assert_eq!(attempt["attempt"], number, "attempts must be numbered without a gap: {event}");
        let requests = received.get(&(sent.event(), number)).map_or(&[][..], Vec::as_slice);
        assert!(requests.len() <= 1, "attempt {number} was sent more than once: {event}");
        for request in requests {
            assert_eq!(request.body_sha256, sent.body_sha256, "the body was changed: {event}");
            assert_eq!(
                (request.source.as_str(), request.path.as_str()),
                (sent.source, format!("/{}", sent.source).as_str()),
                "{event}"
            );
        }
        let answered = requests.first().and_then(|request| request.answered);
        let is_last = attempt == history.last().expect("there is an attempt");
        let verdict = attempt["verdict"].as_str().unwrap_or_default();
        match verdict {
            "delivered" => assert!(
                is_last && matches!(answered, Some(200..=299)),
                "{event}, received {requests:?}"
            ),
            "transient" => assert!(!is_last, "{event}"),
            "lost" => {
                assert!(!is_last, "{event}");
                lost = true;
            }
            other => panic!("unexpected verdict {other:?}: {event}"),
        }
        if attempt["status_code"].is_null() {
            assert!(
                verdict == "lost" || attempt["error"].is_string(),
                "an attempt has neither a reply nor an error: {event}"
            );
        } else {
            assert_eq!(
                attempt["status_code"].as_u64(),
                answered.map(u64::from),
                "{event}, received {requests:?}"
            );
        }
    }
    assert_eq!(
        history.last().map(|attempt| &attempt["verdict"]),
        Some(&Value::from("delivered")),
        "{event}"
    );
    let numbers = received
        .range((sent.event(), 0)..=(sent.event(), u64::MAX))
        .map(|((_, number), _)| *number);
    assert!(
        numbers.max().unwrap_or_default() <= history.len() as u64,
        "the history lacks an attempt: {event}"
    );
    assert!(
        event["next_attempt_at"].is_null()
            && event["settled_at"].is_string()
            && event["reason"].is_null(),
        "{event}"
    );
    lost
}
