//! Producers that behave aggressively: many connections, duplicates, and a retry after everything
//! that is neither an acceptance nor a refusal.

use crate::http::{Answer, Client};
use crate::program::Target;
use crate::recording::Recording;
use crate::soak;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use surehook_core::admission::Fingerprint;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_model::history::{Posted, What};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The sources. Events use them in turn.
    pub sources: &'static [&'static str],
    /// The number of posts, duplicates included.
    pub posts: usize,
    /// The number of posts that repeat the key and the body of another.
    pub duplicates: usize,
    /// The number of keep-alive connections that post concurrently.
    pub connections: usize,
}

/// One event, as its producer knows it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The source that it was posted to.
    pub source: &'static str,
    pub key: String,
    /// The digest of its body.
    pub body_sha256: [u8; 32],
    /// The event ids of all `202` answers. There must be only one.
    pub ids: BTreeSet<Uuid>,
    /// The number of answers that called the event new.
    pub new: usize,
    /// The number of answers that called it a replay.
    pub replayed: usize,
    /// The number of posts without an answer, or with one that asks for a retry.
    pub unanswered: usize,
}

impl Sent {
    /// The event's id.
    ///
    /// # Panics
    ///
    /// If the answers to this key named no event, or more than one.
    #[must_use]
    pub fn event(&self) -> Uuid {
        assert_eq!(self.ids.len(), 1, "one key must have one event: {self:?}");
        *self.ids.first().expect("there is one id")
    }
}

/// The time limit for the acceptance of a post. A soak has longer outages.
fn time_limit() -> Duration {
    soak::either(Duration::from_mins(1), Duration::from_mins(4))
}

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_millis(200);

/// After each acceptance whose turn is a multiple of this, the producer reads the event's status.
const LOOKS_EVERY: usize = 16;

/// The headers of each post, besides its key. They must reach the downstream unchanged.
const HEADERS: [(&str, &str); 2] =
    [("content-type", "application/json"), ("x-signature", "sha256=0f1e2d3c4b5a")];

/// The number of posts with a `202`. Each one wakes the tasks that wait for a point in the middle
/// of the load.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<watch::Sender<usize>>);

impl Progress {
    /// The number of posts answered so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until this number of posts is answered.
    ///
    /// # Panics
    ///
    /// If they are not answered in time.
    pub async fn reaches(&self, posts: usize) {
        let mut progress = self.0.subscribe();
        let reached =
            tokio::time::timeout(time_limit(), progress.wait_for(|&answered| answered >= posts))
                .await;
        assert!(
            reached.is_ok(),
            "waited {:?} for {posts} posts; {} are answered",
            time_limit(),
            self.answered()
        );
    }
}

/// Posts the whole load to the targets in turn, and returns what each event's producer knows. A
/// post without an answer, or with one that asks for a retry, goes to the next target.
///
/// # Panics
///
/// If a post is refused, or has no `202` within a minute (four minutes in a soak).
pub async fn produce(
    recording: Recording,
    targets: Vec<Target>,
    load: Load,
    progress: Progress,
) -> Vec<Sent> {
    let events = load.posts - load.duplicates;
    let run = Uuid::now_v7();
    let sent: Vec<Sent> = (0..events)
        .map(|index| Sent {
            source: load.sources[index % load.sources.len()],
            key: format!("{run}-{index}"),
            body_sha256: Sha256::digest(body(index)).into(),
            ids: BTreeSet::new(),
            new: 0,
            replayed: 0,
            unanswered: 0,
        })
        .collect();
    let order = order(events, load.duplicates);
    let producer = Arc::new(Producer {
        recording,
        targets,
        order,
        sent: Mutex::new(sent),
        next: AtomicUsize::new(0),
        progress,
    });
    let mut connections = JoinSet::new();
    for number in 0..load.connections {
        connections.spawn(Arc::clone(&producer).connection(format!("producer-{number}")));
    }
    while let Some(ended) = connections.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    Arc::into_inner(producer)
        .expect("every connection has ended")
        .sent
        .into_inner()
        .expect("no connection has panicked")
}

/// The state that all connections share.
struct Producer {
    recording: Recording,
    targets: Vec<Target>,
    order: Vec<usize>,
    sent: Mutex<Vec<Sent>>,
    next: AtomicUsize,
    progress: Progress,
}

impl Producer {
    /// Posts the next event until all are posted.
    async fn connection(self: Arc<Self>, name: String) {
        let client = Client::default();
        loop {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&index) = self.order.get(turn) else { return };
            let (source, key) = {
                let sent = &self.sent.lock().expect("no connection has panicked")[index];
                (sent.source, sent.key.clone())
            };
            let post = Post { producer: &name, source, key: &key, body: body(index) };
            let (accepted, unanswered) = self.post(&client, turn, &post).await;
            {
                let sent = &mut self.sent.lock().expect("no connection has panicked")[index];
                sent.ids.insert(accepted.event.as_uuid());
                sent.unanswered += unanswered;
                if accepted.replayed {
                    sent.replayed += 1;
                } else {
                    sent.new += 1;
                }
            }
            self.progress.0.send_modify(|answered| *answered += 1);
            if turn.is_multiple_of(LOOKS_EVERY) {
                self.look(&client, turn, accepted.event).await;
            }
        }
    }

    /// Posts one event until it is accepted. Returns the answer, and the number of tries without
    /// one.
    async fn post(&self, client: &Client, turn: usize, post: &Post<'_>) -> (Accepted, usize) {
        let begun = Instant::now();
        let mut wait = FIRST_RETRY;
        for unanswered in 0.. {
            let target = &self.targets[(turn + unanswered) % self.targets.len()];
            match try_once(&self.recording, client, target, post).await {
                Ok(Ok(accepted)) => return (accepted, unanswered),
                Ok(Err(refused)) if (400..500).contains(&refused.status_code) => {
                    panic!("{} was refused: {refused:?}", post.key)
                }
                last => assert!(
                    begun.elapsed() < time_limit(),
                    "{} was not accepted within {:?}: {last:?}",
                    post.key,
                    time_limit()
                ),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_RETRY);
        }
        unreachable!("the loop ends only by returning or panicking")
    }

    /// Records the status of an event. An unanswered request is ignored.
    async fn look(&self, client: &Client, turn: usize, event: EventId) {
        let asked_at = self.recording.elapsed();
        let target = &self.targets[turn % self.targets.len()];
        let Ok(answer) = client.get(&format!("{}/events/{event}", target.base)).await else {
            return;
        };
        let (status, attempts) = match answer.status_code {
            200 => {
                let shown = answer.json();
                let status = shown["status"].as_str().and_then(Status::from_name);
                (
                    status,
                    shown["attempts"]
                        .as_u64()
                        .and_then(|attempts| u32::try_from(attempts).ok())
                        .expect("a number of attempts"),
                )
            }
            404 => (None, 0),
            _ => return,
        };
        self.recording.record(What::Looked { event, asked_at, status, attempts });
    }
}

/// One post of a producer.
#[derive(Clone, Debug)]
pub struct Post<'a> {
    /// The name of the producer.
    pub producer: &'a str,
    /// The source it is posted to.
    pub source: &'a str,
    pub key: &'a str,
    pub body: Bytes,
}

/// The content of a `202`.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// The event's id.
    pub event: EventId,
    /// The event's status.
    pub status: Status,
    /// Whether it was accepted before.
    pub replayed: bool,
}

/// Posts once and records the result: an acceptance, or another answer.
///
/// # Errors
///
/// Describes why there is no answer.
///
/// # Panics
///
/// If a `202` does not name its event.
pub async fn try_once(
    recording: &Recording,
    client: &Client,
    target: &Target,
    post: &Post<'_>,
) -> Result<Result<Accepted, Answer>, String> {
    let id = recording.post_id();
    let query = format!("bytes={}&sig=a%2Bb", post.body.len());
    recording.record(What::Posted(Posted {
        post: id,
        producer: post.producer.to_owned(),
        process: target.name.clone(),
        source: post.source.to_owned(),
        key: post.key.to_owned(),
        body: Fingerprint::of(&post.body),
        storable: true,
        query: query.clone(),
        takes: None,
        headers: HEADERS
            .iter()
            .map(|(name, value)| ((*name).to_owned(), vec![value.as_bytes().to_vec()]))
            .collect(),
    }));
    let url = format!("{}/webhooks/{}?{query}", target.base, post.source);
    let headers: Vec<(&str, &str)> =
        HEADERS.into_iter().chain([("idempotency-key", post.key)]).collect();
    let answer = match client.post(&url, &headers, post.body.clone()).await {
        Ok(answer) => answer,
        Err(why) => {
            recording.record(What::Unanswered { post: id, is_refused: false });
            return Err(why);
        }
    };
    let status_code = answer.status_code;
    let accepted = (status_code == 202).then(|| {
        let said = answer.json();
        let event = said["event_id"]
            .as_str()
            .and_then(|id| id.parse().ok())
            .unwrap_or_else(|| panic!("no event id: {answer:?}"));
        let status = said["status"]
            .as_str()
            .and_then(Status::from_name)
            .unwrap_or_else(|| panic!("no status: {answer:?}"));
        Accepted { event, status, replayed: answer.header("idempotent-replayed") == "true" }
    });
    let (event, status) =
        (accepted.map(|accepted| accepted.event), accepted.map(|accepted| accepted.status));
    let replayed = accepted.is_some_and(|accepted| accepted.replayed);
    recording.record(What::Answered {
        post: id,
        status_code,
        event,
        status,
        replayed,
        problem: None,
    });
    Ok(accepted.ok_or(answer))
}

/// The body of one event: 60 bytes to 1 KiB, the same each time.
fn body(index: usize) -> Bytes {
    let filler = "surehook ".repeat(scatter(index) % 110);
    Bytes::from(format!(r#"{{"number":{index},"kind":"invoice.paid","filler":"{filler}"}}"#))
}

/// Every event once and `duplicates` of them again, in a shuffled order that is always the same.
fn order(events: usize, duplicates: usize) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..events).chain((0..duplicates).map(|n| scatter(n) % events)).collect();
    for place in (1..order.len()).rev() {
        order.swap(place, scatter(place) % (place + 1));
    }
    order
}

/// A deterministic number that looks random.
fn scatter(n: usize) -> usize {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(29)
}
