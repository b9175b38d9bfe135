//! One trial of a database: three processes start together on it while it is empty, accept a load,
//! and one of them is killed twice. It needs nothing of the database beyond what the program needs,
//! so it can run on any that a URL names.

use crate::database::Database;
use crate::producer::{Load, Progress, Sent, produce};
use crate::program::Service;
use crate::recording::Recording;
use crate::sink::{Answer, Received, Sink};
use crate::verdicts;
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

const LOAD: Load = Load {
    sources: &["github", "stripe", "shopify"],
    posts: 1_500,
    duplicates: 150,
    connections: 24,
};

/// What happened in a trial in which all promises were kept.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Posts that were answered with `202`.
    pub posts: usize,
    /// Events that the downstream accepted.
    pub delivered: usize,
    /// Acknowledged events that the downstream did not accept.
    pub lost: usize,
    /// Events that the downstream accepted twice. Each was in flight when its process was killed.
    pub repeated: usize,
    /// Processes that were killed.
    pub kills: usize,
    /// The processes that started together on the empty database, in which each migration was
    /// applied once.
    pub first_starts: usize,
    /// Whether the processes found a pooler.
    pub is_pooled: bool,
}

/// Runs a trial on an empty database or schema.
///
/// # Panics
///
/// If a promise is broken: an acknowledged event is not delivered, or is delivered twice without
/// having been in flight at a kill, or its history does not say what happened.
pub async fn run(url: &str) -> Trial {
    // Takes down what the producers see. Its own database is not the one of the trial.
    let recording = Recording::begin(Database::sqlite()).await;
    let answer =
        |wait| move |received: &Received| Answer::refusing_a_third_at_first(received).after(wait);
    let sink = Sink::start(answer(Duration::from_millis(20))).await;
    let configuration = sink.three_impatient_sources("2s", "");
    let (mut first, second, third) = tokio::join!(
        Service::start(url, &configuration),
        Service::start(url, &configuration),
        Service::start(url, &configuration)
    );
    let progress = Progress::default();
    let targets = vec![second.target(), third.target()];
    let producers = tokio::spawn(produce(recording, targets, LOAD, progress.clone()));
    for third in [1, 2] {
        progress.reaches(LOAD.posts / 3 * third).await;
        first.kill();
        first.restart().await;
    }
    let sent = producers.await.expect("every post is accepted eventually");
    verdicts::all_taken(&sink, &sent).await;
    let interrupted = verdicts::all_delivered_and_explained(&second, &sink, &sent).await;
    let taken = sink.taken();
    let repeated: BTreeSet<Uuid> =
        taken.iter().filter(|(_, times)| **times > 1).map(|(event, _)| *event).collect();
    assert!(
        repeated.is_subset(&interrupted),
        "delivered twice without having been in flight at a kill: {:?}",
        repeated.difference(&interrupted)
    );
    let ready = crate::http::Client::default().get(&second.url("/ready")).await;
    let ready = ready.expect("the process answers").json();
    Trial {
        posts: sent.iter().map(|sent| sent.new + sent.replayed).sum(),
        delivered: taken.len(),
        lost: sent.iter().map(Sent::event).filter(|event| !taken.contains_key(event)).count(),
        repeated: repeated.len(),
        kills: 2,
        first_starts: 3,
        is_pooled: ready["database"] == "postgresql-pooled",
    }
}
