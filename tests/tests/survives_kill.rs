//! `kill -9` of the program or of its database during a load. Every acknowledged event arrives.
//! Only events that were in flight arrive twice, and their history shows it.

use std::collections::BTreeSet;
use std::time::Duration;
use surehook_core::worker::BATCH_ROWS;
use tests::database::Database;
use tests::postgres::{Cluster, Settings, Stop};
use tests::producer::{Load, Progress, produce};
use tests::recording::Recording;
use tests::sink::{Answer, Received, Sink};
use tests::{on_each_database, verdicts};
use uuid::Uuid;

on_each_database!(a_kill_loses_nothing_and_repeats_only_deliveries_in_flight);

const SOURCES: usize = 3;
const CONCURRENCY: usize = 16;

async fn a_kill_loses_nothing_and_repeats_only_deliveries_in_flight(database: Database) {
    let run = Recording::begin(database).await;
    let answer_after =
        |wait| move |received: &Received| Answer::refusing_a_third_at_first(received).after(wait);
    let sink = run.sink(answer_after(Duration::from_millis(20))).await;
    let mut service = run.service(&configuration(&sink)).await;
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: 2_400,
        duplicates: 240,
        connections: 64,
    };
    let progress = Progress::default();
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], load, progress.clone()));
    sink.reaches(100).await;
    progress.reaches(load.posts / 4).await;
    // From here on responses take longer, so that deliveries are in flight at the kill, even on a
    // busy machine.
    sink.behave(answer_after(Duration::from_millis(300)));
    sink.reaches(sink.count() + 1).await;

    service.kill();

    sink.behave(answer_after(Duration::from_millis(20)));
    // Intake-only processes answer the rest of the load, and are killed as well. They change no
    // delivery, so the events that the last of them shows as `processing` are those that the first
    // process had in flight.
    for quarter in [2, 3] {
        service.restart_as("intake").await;
        progress.reaches(load.posts / 4 * quarter).await;
        service.kill();
        assert!(progress.answered() < load.posts, "the load ended before the kill");
    }
    service.restart_as("intake").await;
    let sent = producers.await.expect("every post is accepted eventually");
    let in_flight: BTreeSet<Uuid> = verdicts::all_shown(&service, &sent)
        .await
        .iter()
        .filter(|event| event["status"] == "processing")
        .map(|event| {
            event["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id")
        })
        .collect();
    assert!(!in_flight.is_empty(), "nothing was in flight at the kill");
    service.kill();
    service.restart().await;

    verdicts::all_taken(&sink, &sent).await;
    let lost = verdicts::all_delivered_and_explained(&service, &sink, &sent).await;
    let twice: BTreeSet<Uuid> =
        sink.taken().into_iter().filter(|(_, times)| *times > 1).map(|(event, _)| event).collect();
    assert!(
        sink.taken().values().all(|&times| times <= 2),
        "one kill explains at most one repetition"
    );
    assert_eq!(lost, in_flight, "not exactly the events in flight have a lost attempt");
    assert!(
        twice.is_subset(&in_flight),
        "delivered twice without having been in flight: {:?}",
        twice.difference(&in_flight)
    );
    // The most events that a process can hold: for each source its slots, and four times that
    // number claimed ahead; in addition the batch of settlements that is being written, and another
    // one that waits before claims stop.
    let bound =
        5 * CONCURRENCY * SOURCES + 2 * usize::try_from(BATCH_ROWS).expect("a small number");
    assert!(
        in_flight.len() <= bound,
        "{} were in flight, and a process holds at most {bound}",
        in_flight.len()
    );
    run.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgresql_server_loses_and_repeats_nothing() {
    let cluster = Cluster::start(Settings::default());
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&configuration(&sink)).await;
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: 1_500,
        duplicates: 150,
        connections: 64,
    };
    let progress = Progress::default();
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], load, progress.clone()));
    sink.reaches(100).await;
    progress.reaches(load.posts / 3).await;

    let killed = async {
        cluster.stop(Stop::Kill);
        assert!(progress.answered() < load.posts, "the load ended before the kill");
        cluster.resume();
    };
    run.while_database_is("killed", killed).await;

    let sent = producers.await.expect("every post is accepted eventually");
    verdicts::all_taken(&sink, &sent).await;
    // If the response to a claim was lost, the claimed events were not sent. If the response to a
    // settlement was lost, the settlement is written again, or refused because it was committed. So
    // nothing is delivered twice.
    verdicts::all_delivered_and_explained(&service, &sink, &sent).await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
    run.judge().await;
}

fn configuration(sink: &Sink) -> String {
    sink.three_impatient_sources("500ms", &format!("concurrency = {CONCURRENCY}"))
}
