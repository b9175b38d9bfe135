//! Producers that behave as the aggressive ones do: many connections, duplicates, and a retry after anything that is
//! neither an acceptance nor a refusal.

use crate::http::{Answer, Client};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

/// What is posted.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where each event goes, in turn.
    pub sources: &'static [&'static str],
    /// All posts, duplicates included.
    pub posts: usize,
    /// So many of them repeat the key and the body of another.
    pub duplicates: usize,
    /// Keep-alive connections that post at once.
    pub connections: usize,
}

/// One event, as its producer knows it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Where it was posted.
    pub source: &'static str,
    /// Its idempotency key.
    pub key: String,
    /// The digest of its body.
    pub body_sha256: [u8; 32],
    /// The event id of every `202`. One, if all is well.
    pub ids: BTreeSet<Uuid>,
    /// How many answers said that the event is new.
    pub new: usize,
    /// How many answers said that it was known.
    pub replayed: usize,
    /// How many posts got no answer, or one that asks to come back.
    pub unanswered: usize,
}

impl Sent {
    /// The event's id.
    ///
    /// # Panics
    ///
    /// If the answers to this key named none, or more than one.
    #[must_use]
    pub fn event(&self) -> Uuid {
        assert_eq!(self.ids.len(), 1, "one key is one event: {self:?}");
        *self.ids.first().expect("there is one")
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_millis(200);

/// How many posts of a load have their `202`. Who wants to do something in the middle is woken by each.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<watch::Sender<usize>>);

impl Progress {
    /// The posts that are answered by now.
    #[must_use]
    pub fn answered(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until so many posts are answered.
    ///
    /// # Panics
    ///
    /// If they are not in time.
    pub async fn reaches(&self, posts: usize) {
        let mut progress = self.0.subscribe();
        let reached = tokio::time::timeout(PATIENCE, progress.wait_for(|&answered| answered >= posts)).await;
        assert!(reached.is_ok(), "waited {PATIENCE:?} for {posts} posts; {} are answered", self.answered());
    }
}

/// Posts the whole load to the service at `base` and gives back what each event's producer knows.
///
/// # Panics
///
/// If a post is refused, or has no `202` within a minute.
pub async fn produce(base: String, load: Load, progress: Progress) -> Vec<Sent> {
    let events = load.posts - load.duplicates;
    let run = Uuid::now_v7();
    let sent: Arc<Mutex<Vec<Sent>>> = Arc::new(Mutex::new(
        (0..events)
            .map(|index| Sent {
                source: load.sources[index % load.sources.len()],
                key: format!("{run}-{index}"),
                body_sha256: Sha256::digest(body(index)).into(),
                ids: BTreeSet::new(),
                new: 0,
                replayed: 0,
                unanswered: 0,
            })
            .collect(),
    ));
    let order = Arc::new(order(events, load.duplicates));
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    for _ in 0..load.connections {
        let (base, sent, order, next, progress) =
            (base.clone(), Arc::clone(&sent), Arc::clone(&order), Arc::clone(&next), progress.clone());
        connections.spawn(async move {
            let client = Client::default();
            while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (source, key) = {
                    let sent = &sent.lock().expect("no connection has panicked")[index];
                    (sent.source, sent.key.clone())
                };
                let url = format!("{base}/webhooks/{source}");
                let (answer, unanswered) = post(&client, &url, &key, body(index)).await;
                let event =
                    answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no event id: {answer:?}"));
                let sent = &mut sent.lock().expect("no connection has panicked")[index];
                sent.ids.insert(event);
                sent.unanswered += unanswered;
                if answer.header("idempotent-replayed") == "true" {
                    sent.replayed += 1
                } else {
                    sent.new += 1
                }
                progress.0.send_modify(|answered| *answered += 1);
            }
        });
    }
    while let Some(ended) = connections.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    Arc::into_inner(sent).expect("every connection has ended").into_inner().expect("no connection has panicked")
}

/// Posts one event until it is accepted. Gives back the answer, and how many tries had none.
async fn post(client: &Client, url: &str, key: &str, body: Bytes) -> (Answer, usize) {
    let begun = Instant::now();
    let mut wait = FIRST_RETRY;
    let mut unanswered = 0;
    loop {
        let result = client.post(url, &[("idempotency-key", key), ("content-type", "application/json")], body.clone()).await;
        match result {
            Ok(answer) if answer.status_code == 202 => return (answer, unanswered),
            Ok(answer) if (400..500).contains(&answer.status_code) => panic!("{key} was refused: {answer:?}"),
            last => {
                assert!(begun.elapsed() < PATIENCE, "{key} was not accepted within {PATIENCE:?}: {last:?}");
                unanswered += 1;
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LAST_RETRY);
            }
        }
    }
}

/// The body of one event: 60 bytes to 1 KiB, the same each time.
fn body(index: usize) -> Bytes {
    let filler = "surehook ".repeat(scatter(index) % 110);
    Bytes::from(format!(r#"{{"number":{index},"kind":"invoice.paid","filler":"{filler}"}}"#))
}

/// Every event once and so many of them twice, in an order that is mixed and always the same.
fn order(events: usize, duplicates: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..events).chain((0..duplicates).map(|n| scatter(n) % events)).collect();
    for place in (1..order.len()).rev() {
        order.swap(place, scatter(place) % (place + 1));
    }
    order
}

/// A number that looks random and is not.
fn scatter(n: usize) -> usize {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(29)
}
