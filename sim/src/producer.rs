//! The producers: a node that sends the posts of the scenario. They retry aggressively after
//! everything but `202` and a permanent refusal, and look up their accepted events.

use crate::database::POISON;
use crate::downstream::{HANDSHAKE_HEADER, values};
use crate::net;
use crate::recorder::{Recorder, elapsed};
use crate::timer::{sleep, timeout};
use bytes::Bytes;
use futures::future::ready;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use madsim::rand::Rng;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use surehook_core::admission::Fingerprint;
use surehook_core::event::Status;
use surehook_core::forwarding::EVENT_ID_HEADER;
use surehook_core::id::EventId;
use surehook_model::history::{Handshake, Posted, What};
use surehook_model::scenario::{HandshakeAt, MAX_BODY_BYTES, Post, Scenario};

/// How long a producer waits for a response.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The number of bytes that a slow producer sends one by one, at the end of a body.
const TRICKLED_BYTES: u32 = 8;
/// The first pause of a producer is this at most, and each further one may be twice as long.
const FIRST_PAUSE_MS: u64 = 100;
/// How many times the longest pause doubles: to 51.2 s. Producers that never pause longer than a few
/// seconds would spend most of a run on events that cannot be stored.
const DOUBLINGS: usize = 9;
/// A refused producer keeps trying for at least this long after all faults have ended.
const TRIES_AFTER_HEAL: Duration = Duration::from_mins(1);

/// The addresses of the service and the input of the producers.
pub(crate) struct Producers {
    pub(crate) scenario: Scenario,
    pub(crate) processes: Vec<SocketAddr>,
    /// The processes that accept, by index.
    pub(crate) intakes: Vec<usize>,
    pub(crate) recorder: Recorder,
}

/// Sends all posts. Returns when every producer has its final response or has stopped trying.
pub(crate) async fn run(producers: Arc<Producers>) {
    let mut tasks = Vec::new();
    for post in &producers.scenario.posts {
        for copy in 0..post.copies {
            let (producers, post) = (Arc::clone(&producers), post.clone());
            tasks.push(madsim::task::spawn(async move { producers.deliver(&post, copy).await }));
        }
    }
    for handshake in producers.scenario.handshakes.clone() {
        let producers = Arc::clone(&producers);
        tasks.push(madsim::task::spawn(async move { producers.shake(&handshake).await }));
    }
    for task in tasks {
        task.await.expect("a producer's task does not panic");
    }
}

impl Producers {
    async fn deliver(&self, post: &Post, copy: u32) {
        sleep_until(Duration::from_millis(post.at_ms)).await;
        let give_up_at = Duration::from_millis(self.scenario.heal_at_ms) + TRIES_AFTER_HEAL;
        for attempt in 0.. {
            let process =
                self.intakes[(post.process + copy as usize + attempt) % self.intakes.len()];
            let hangs_up = post.hangs_up_ms.filter(|_| attempt == 0).map(Duration::from_millis);
            let answer = self.post(post, copy, process, hangs_up).await;
            match answer {
                Some((202, Some(event))) => return self.look(event).await,
                Some((404, _)) => {} // another process may have the source
                Some((400..=499, _)) => return,
                _ => {}
            }
            if elapsed() > give_up_at {
                return;
            }
            let longest = FIRST_PAUSE_MS << attempt.min(DOUBLINGS);
            sleep(Duration::from_millis(madsim::rand::thread_rng().gen_range(20..=longest))).await;
        }
    }

    /// Sends one request. Returns the status code, and the event that a `202` names.
    async fn post(
        &self,
        post: &Post,
        copy: u32,
        process: usize,
        hangs_up: Option<Duration>,
    ) -> Option<(u16, Option<EventId>)> {
        let source = &self.scenario.sources[post.source].name;
        let headers = headers(post);
        let body = body(post);
        let query = format!("part={}&sig=a%2Bb", post.body);
        let takes = Duration::from_millis(post.trickles_ms.unwrap_or_default());
        let id = self.recorder.post_id();
        self.recorder.record(What::Posted(Posted {
            post: id,
            producer: format!("producer of {} #{copy}", post.key),
            process: process_name(process),
            source: source.clone(),
            key: post.key.clone(),
            body: Fingerprint::of(&body),
            storable: !post.poison,
            query: query.clone(),
            takes: Some(takes),
            headers: values(&headers),
        }));
        let mut request = Request::post(format!("/webhooks/{source}?{query}"))
            .header("host", "surehook")
            .header("idempotency-key", &post.key)
            .header("content-length", body.len())
            .body(in_pieces(body, takes))
            .expect("the request is valid");
        request.headers_mut().extend(headers);
        let is_refused = AtomicBool::new(false);
        let exchange = async {
            let sent = net::send(self.processes[process], request).await;
            if let Err(net::SendError::Connect(_)) = sent {
                is_refused.store(true, Relaxed);
            }
            let (response, _connection) = sent.ok()?;
            let status_code = response.status().as_u16();
            let replayed = response.headers().contains_key("idempotent-replayed");
            let body = response.into_body().collect().await.ok()?.to_bytes();
            Some((status_code, replayed, body))
        };
        let Ok(Some((status_code, replayed, body))) =
            timeout(hangs_up.unwrap_or(TIMEOUT + takes), exchange).await
        else {
            let is_refused = is_refused.into_inner();
            self.recorder.record(What::Unanswered { post: id, is_refused });
            return None;
        };
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let event = json["event_id"].as_str().and_then(|text| text.parse().ok());
        let status = json["status"].as_str().and_then(Status::from_name);
        let problem =
            json["type"].as_str().and_then(|urn| urn.rsplit(':').next()).map(str::to_owned);
        self.recorder.record(What::Answered {
            post: id,
            status_code,
            event,
            status,
            replayed,
            problem,
        });
        Some((status_code, event))
    }

    /// Sends a handshake, once.
    async fn shake(&self, handshake: &HandshakeAt) {
        sleep_until(Duration::from_millis(handshake.at_ms)).await;
        let source = &self.scenario.sources[handshake.source].name;
        let process = self.intakes[handshake.process % self.intakes.len()];
        let post = self.recorder.post_id();
        let key = format!("handshake-{}", post.0);
        self.recorder.record(What::Handshake(Handshake::Sent {
            post,
            process: process_name(process),
            source: source.clone(),
            key: key.clone(),
        }));
        let request = Request::post(format!("/webhooks/{source}?challenge={}", post.0))
            .header("host", "surehook")
            .header("idempotency-key", key)
            .header(HANDSHAKE_HEADER, post.0)
            .body(Full::new(Bytes::from_static(b"challenge")))
            .expect("the request is valid");
        let exchange = async {
            let (response, _connection) = net::send(self.processes[process], request).await.ok()?;
            let (head, body) = response.into_parts();
            body.collect().await.ok()?;
            Some(head)
        };
        let Ok(Some(head)) = timeout(TIMEOUT, exchange).await else { return };
        let event = head.headers.get(EVENT_ID_HEADER).and_then(|id| id.to_str().ok()?.parse().ok());
        let status_code = head.status.as_u16();
        self.recorder.record(What::Handshake(Handshake::Answered { post, status_code, event }));
    }

    /// Looks up an event a few times.
    async fn look(&self, event: EventId) {
        for longest in [500, 20_000, 60_000] {
            sleep(Duration::from_millis(madsim::rand::thread_rng().gen_range(1..longest))).await;
            let process = madsim::rand::thread_rng().gen_range(0..self.processes.len());
            let asked_at = elapsed();
            let request = Request::get(format!("/events/{event}"))
                .header("host", "surehook")
                .body(Full::new(Bytes::new()))
                .expect("the request is valid");
            let exchange = async {
                let (response, _connection) =
                    net::send(self.processes[process], request).await.ok()?;
                let status_code = response.status().as_u16();
                Some((status_code, response.into_body().collect().await.ok()?.to_bytes()))
            };
            let Ok(Some((status_code, body))) = timeout(TIMEOUT, exchange).await else { continue };
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let attempts = json["attempts"]
                .as_u64()
                .and_then(|attempts| u32::try_from(attempts).ok())
                .unwrap_or_default();
            match status_code {
                200 => {
                    let status = json["status"].as_str().and_then(Status::from_name);
                    self.recorder.record(What::Looked { event, asked_at, status, attempts });
                }
                404 => self.recorder.record(What::Looked {
                    event,
                    asked_at,
                    status: None,
                    attempts: 0,
                }),
                _ => {}
            }
        }
    }
}

/// A body that is sent at once, except for its last bytes if they take their time.
fn in_pieces(mut body: Bytes, takes: Duration) -> UnsyncBoxBody<Bytes, Infallible> {
    if takes.is_zero() {
        return Full::new(body).boxed_unsync();
    }
    let first = body.split_to(body.len().saturating_sub(TRICKLED_BYTES as usize));
    let pause = takes / TRICKLED_BYTES;
    let last = stream::iter(body).then(move |byte| async move {
        sleep(pause).await;
        Bytes::from(vec![byte])
    });
    let pieces = stream::once(ready(first)).chain(last).map(|piece| Ok(Frame::data(piece)));
    StreamBody::new(pieces).boxed_unsync()
}

/// Headers that must be forwarded unchanged: repeated names, and bytes that are not text.
fn headers(post: &Post) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value =
        |text: String| HeaderValue::from_str(&text).expect("the text is a valid header value");
    headers.append("content-type", HeaderValue::from_static("application/octet-stream"));
    headers.append("x-part", value(format!("first of {}", post.body)));
    headers.append("x-part", value(format!("second of {}", post.body)));
    headers.append(
        HeaderName::from_static("x-name"),
        HeaderValue::from_bytes(b"caf\xe9").expect("a header value may contain obs-text"),
    );
    headers
}

/// Binary bytes that depend only on the post's number.
fn body(post: &Post) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(post.body);
    let mut body =
        if post.poison { POISON.to_vec() } else { format!("{}:", post.body).into_bytes() };
    body.extend(std::iter::repeat_with(|| rng.u8(..)).take(post.size));
    body.truncate(MAX_BODY_BYTES);
    Bytes::from(body)
}

pub(crate) fn process_name(index: usize) -> String {
    format!("process {}", index + 1)
}

pub(crate) async fn sleep_until(at: Duration) {
    sleep(at.saturating_sub(elapsed())).await;
}
