//! Repeated kills under load: processes of the program, the database, and both together. They are
//! killed with `kill -9`, or the database stops as after a crash. No acknowledged event is missing,
//! and every repetition is explained.
//!
//! `SUREHOOK_SOAK=10m` repeats rounds for this time. Each round has its own database, so that a
//! longer run needs no more memory. While one round is judged, the load of the next one runs, so
//! that there are always producers. The totals are printed after each round.

use futures::future::join_all;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use surehook_model::history::Run;
use tests::database::Database;
use tests::postgres::{Cluster, Settings, Stop};
use tests::producer::{Load, Progress, produce};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::{Answer, Received, Sink};
use tests::soak;
use uuid::Uuid;

/// Kills in one round. The last one comes after the load, during the remaining deliveries.
const KILLS: usize = 8;
const LOAD: Load = Load {
    sources: &["github", "stripe", "shopify"],
    posts: 4_000,
    duplicates: 400,
    connections: 48,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_processes_and_of_postgresql_lose_nothing() {
    Soak::lanes(|soak| async move {
        let cluster = Arc::new(Cluster::start(Settings { fsync: true, ..Settings::default() }));
        for _ in soak::rounds() {
            soak.round_on_postgresql(&cluster).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_the_process_on_sqlite_lose_nothing() {
    Soak::lanes(|soak| async move {
        for _ in soak::rounds() {
            soak.round_on_sqlite().await;
        }
    })
    .await;
}

/// All rounds together.
struct Soak {
    begun: Instant,
    /// Held by the round whose load runs.
    load: tokio::sync::Mutex<()>,
    tally: Mutex<Tally>,
}

/// The totals of all rounds.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    rounds: usize,
    events: usize,
    kills_of_processes: usize,
    kills_of_databases: usize,
    taken_again: usize,
    lost: usize,
}

impl Soak {
    /// In the long form there are two lanes of rounds: the load of one runs while the other is
    /// judged.
    async fn lanes<Lane: Future<Output = ()>>(lane: impl Fn(Arc<Self>) -> Lane) {
        let soak = Arc::new(Self {
            begun: Instant::now(),
            load: tokio::sync::Mutex::default(),
            tally: Mutex::default(),
        });
        join_all((0..soak::either(1, 2)).map(|_| lane(Arc::clone(&soak)))).await;
    }

    async fn round_on_postgresql(&self, cluster: &Arc<Cluster>) {
        let url = cluster.create_database().await;
        let run = Recording::begin(Database::Postgres(url.clone())).await;
        let sink = run.sink(behaviour).await;
        let configuration = sink.three_impatient_sources("2s", "");
        let mut services = [run.service(&configuration).await, run.service(&configuration).await];
        let (mut of_processes, mut of_databases) = (0, 0);
        let load = self.load.lock().await;
        let progress = Progress::default();
        let targets = services.iter().map(Service::target).collect();
        let producers = tokio::spawn(produce(run.clone(), targets, LOAD, progress.clone()));
        // Each kind of kill occurs. The first kind, the times and the victims are random.
        let first = draw(4);
        for kill in 0..KILLS {
            progress.reaches(LOAD.posts * (kill + 1) / KILLS).await;
            tokio::time::sleep(Duration::from_millis(draw(200))).await;
            let (one, all) = (usize::from(draw(2) == 1), 0..2);
            let (victims, database) = match (first + kill as u64) % 4 {
                0 => (one..one + 1, None),
                1 => (0..0, Some(Stop::Kill)),
                2 => (0..0, Some(Stop::Immediate)),
                _ => (all, Some(Stop::Kill)),
            };
            services[victims.clone()].iter_mut().for_each(Service::kill);
            of_processes += victims.len();
            of_databases += usize::from(database.is_some());
            // A process that was killed with its database starts before the database is back, and
            // waits for it.
            let database = async {
                if let Some(how) = database {
                    stop(&run, cluster, how).await;
                }
            };
            let processes = async {
                for service in &mut services[victims] {
                    service.restart().await;
                }
            };
            futures::join!(database, processes);
        }
        producers.await.expect("every post is accepted eventually");
        drop(load);
        self.add(&run.judge().await, &sink, of_processes, of_databases);
        drop(services);
        let (_, name) = url.rsplit_once('/').expect("a URL names its database");
        cluster.execute(&format!("drop database {name} with (force)")).await;
    }

    async fn round_on_sqlite(&self) {
        let run = Recording::begin(Database::sqlite()).await;
        let sink = run.sink(behaviour).await;
        let mut service = run.service(&sink.three_impatient_sources("2s", "")).await;
        let load = self.load.lock().await;
        let progress = Progress::default();
        let producers =
            tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
        for kill in 0..KILLS {
            progress.reaches(LOAD.posts * (kill + 1) / KILLS).await;
            tokio::time::sleep(Duration::from_millis(draw(200))).await;
            service.kill();
            service.restart().await;
        }
        producers.await.expect("every post is accepted eventually");
        drop(load);
        self.add(&run.judge().await, &sink, KILLS, 0);
        service.signal(Signal::SIGTERM);
        assert!(service.wait(Duration::from_secs(30)).await.success());
    }

    /// Adds a round that the oracles have judged, so that its repetitions are explained.
    fn add(&self, run: &Run, sink: &Sink, kills_of_processes: usize, kills_of_databases: usize) {
        let taken = sink.taken();
        let acknowledged: BTreeSet<Uuid> =
            run.answers().filter_map(|(_, answer)| Some(answer.event?.as_uuid())).collect();
        let lost: Vec<&Uuid> =
            acknowledged.iter().filter(|event| !taken.contains_key(event)).collect();
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.rounds += 1;
        tally.events += acknowledged.len();
        tally.kills_of_processes += kills_of_processes;
        tally.kills_of_databases += kills_of_databases;
        tally.taken_again += taken.values().map(|times| times - 1).sum::<usize>();
        tally.lost += lost.len();
        println!("after {:.0?}: {tally:?}", self.begun.elapsed());
        assert!(lost.is_empty(), "acknowledged, but never delivered: {lost:?}");
    }
}

async fn stop(run: &Recording, cluster: &Arc<Cluster>, how: Stop) {
    let cluster = Arc::clone(cluster);
    // On a blocking thread, because it waits for the server and must not delay the other lane.
    let stopped = async {
        let stopped = tokio::task::spawn_blocking(move || {
            cluster.stop(how);
            cluster.resume();
        });
        stopped.await.expect("the server stops and starts again");
    };
    run.while_database_is("killed", stopped).await;
}

/// A random number below `bound`.
fn draw(bound: u64) -> u64 {
    // From the last eight bytes of a random UUID, without their first bits, which are not random.
    (Uuid::new_v4().as_u64_pair().1 & 0xffff_ffff) % bound
}

fn behaviour(received: &Received) -> Answer {
    Answer::refusing_a_third_at_first(received).after(Duration::from_millis(5))
}
