//! A sudden end, of the program or of its database: `kill -9` in the middle of a load. Everything that was acknowledged
//! arrives; what arrives twice is what was in flight, and says so.

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
    // However little the machine lets through: what the downstream gets from here on is in flight when the kill comes.
    sink.behave(answer_after(Duration::from_millis(300)));
    sink.reaches(sink.count() + 1).await;

    service.kill();

    sink.behave(answer_after(Duration::from_millis(20)));
    // Processes that only take events in, killed as well: they answer the rest of the load and touch no delivery, so
    // what the last of them shows as being processed is what the first had in flight.
    for quarter in [2, 3] {
        service.restart_as("intake").await;
        progress.reaches(load.posts / 4 * quarter).await;
        service.kill();
        assert!(progress.answered() < load.posts, "the load was over before the kill");
    }
    service.restart_as("intake").await;
    let sent = producers.await.expect("every post is accepted at last");
    let in_flight: BTreeSet<Uuid> = verdicts::all_shown(&service, &sent)
        .await
        .iter()
        .filter(|event| event["status"] == "processing")
        .map(|event| {
            event["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id")
        })
        .collect();
    assert!(!in_flight.is_empty(), "the process was killed in the middle of nothing");
    service.kill();
    service.restart().await;

    verdicts::all_taken(&sink, &sent).await;
    let lost = verdicts::all_delivered_and_explained(&service, &sink, &sent).await;
    let twice: BTreeSet<Uuid> =
        sink.taken().into_iter().filter(|(_, times)| *times > 1).map(|(event, _)| event).collect();
    assert!(sink.taken().values().all(|&times| times <= 2), "one kill explains one repetition");
    assert_eq!(lost, in_flight, "what was in flight lost its attempt, and nothing else did");
    assert!(
        twice.is_subset(&in_flight),
        "delivered twice without having been in flight: {:?}",
        twice.difference(&in_flight)
    );
    // What a process can hold at once, by source: its slots, and four times as many claimed ahead. Beside those, the
    // batch of settlements that is being written, and as many that wait before it claims no more.
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
        assert!(progress.answered() < load.posts, "the load was over before the kill");
        cluster.resume();
    };
    run.while_database_is("killed", killed).await;

    let sent = producers.await.expect("every post is accepted at last");
    verdicts::all_taken(&sink, &sent).await;
    // A claim whose answer was cut off is lost, and nobody was sent what it claimed; a settlement whose answer was
    // cut off is written again, or refused because it had been written. So nothing is delivered twice.
    verdicts::all_delivered_and_explained(&service, &sink, &sent).await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
    run.judge().await;
}

fn configuration(sink: &Sink) -> String {
    sink.three_impatient_sources("500ms", &format!("concurrency = {CONCURRENCY}"))
}
