//! Kills in a loop: processes of the program, the database, and both together, by `kill -9` and as after a crash, under
//! load. However often, nothing that was acknowledged is missing, and every repetition is explained.
//!
//! `SUREHOOK_SOAK=10m` goes on for so long, in rounds, each with a database of its own.

use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::postgres::{Cluster, Settings, Stop};
use tests::producer::{Load, Progress, produce};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::soak;

/// Kills in one round.
const KILLS: usize = 8;
const LOAD: Load = Load { sources: &["github", "stripe", "shopify"], posts: 4_000, duplicates: 400, connections: 48 };

/// What a soak came to.
#[derive(Debug, Default)]
struct Tally {
    rounds: usize,
    events: usize,
    kills: usize,
    taken_again: usize,
}

impl Tally {
    /// The oracles have judged: what is counted here was explained, and nothing was lost.
    fn add(&mut self, kills: usize, sink: &Sink, events: usize) {
        self.rounds += 1;
        self.events += events;
        self.kills += kills;
        self.taken_again += sink.taken().values().map(|times| times - 1).sum::<usize>();
    }

    fn tell(&self, begun: Instant) {
        let Self { rounds, events, kills, taken_again } = self;
        println!(
            "{rounds} rounds in {:.0?}: {events} events, {kills} kills, {taken_again} repetitions, each explained; 0 lost",
            begun.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_processes_and_of_postgresql_lose_nothing() {
    let cluster = Cluster::start(Settings { fsync: true, ..Settings::default() });
    let (mut tally, begun) = (Tally::default(), Instant::now());
    for round in soak::rounds() {
        let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
        let sink = run.sink(behaviour).await;
        let configuration = configuration(&sink);
        let mut services = [run.service(&configuration).await, run.service(&configuration).await];
        let targets = services.iter().map(Service::target).collect();
        let progress = Progress::default();
        let producers = tokio::spawn(produce(run.clone(), targets, LOAD, progress.clone()));
        for kill in 0..KILLS {
            progress.reaches(LOAD.posts * (kill + 1) / (KILLS + 2)).await;
            let victim = (round + kill / 4) % 2;
            match (round + kill) % 4 {
                0 => services[victim].kill(),
                1 => stop(&run, &cluster, Stop::Kill).await,
                2 => stop(&run, &cluster, Stop::Immediate).await,
                _ => {
                    services[victim].kill();
                    stop(&run, &cluster, Stop::Kill).await;
                }
            }
            if !services[victim].is_running() {
                services[victim].restart().await;
            }
        }
        let sent = producers.await.expect("every post is accepted at last");
        run.judge().await;
        tally.add(KILLS, &sink, sent.len());
        tally.tell(begun);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_the_process_on_sqlite_lose_nothing() {
    let (mut tally, begun) = (Tally::default(), Instant::now());
    for _ in soak::rounds() {
        let run = Recording::begin(Database::sqlite()).await;
        let sink = run.sink(behaviour).await;
        let mut service = run.service(&configuration(&sink)).await;
        let progress = Progress::default();
        let producers = tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
        for kill in 0..KILLS {
            progress.reaches(LOAD.posts * (kill + 1) / (KILLS + 2)).await;
            service.kill();
            service.restart().await;
        }
        let sent = producers.await.expect("every post is accepted at last");
        run.judge().await;
        tally.add(KILLS, &sink, sent.len());
        tally.tell(begun);
        service.signal(Signal::SIGTERM);
        assert!(service.wait(Duration::from_secs(30)).await.success());
    }
}

async fn stop(run: &Recording, cluster: &Cluster, how: Stop) {
    let stopped = async {
        cluster.stop(how);
        cluster.resume();
    };
    run.while_database_is("killed", stopped).await;
}

fn behaviour(received: &tests::sink::Received) -> Answer {
    Answer::status(if received.is_one_of_a_third_of_first_attempts() { 503 } else { 200 }).after(Duration::from_millis(5))
}

fn configuration(sink: &Sink) -> String {
    // The lease is the time-out and 10 s: what was in flight comes back soon.
    format!(
        r#"
        [defaults]
        timeout = "500ms"
        initial_delay = "50ms"
        max_delay = "200ms"
        {}
        "#,
        sink.three_sources()
    )
}
