//! A busy, healthy service: many producers, duplicates, and a downstream that refuses a third of
//! the first attempts. Every event is delivered once, and its history explains its status.

use tests::database::Database;
use tests::producer::{Load, Progress, produce};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, verdicts};

on_each_database!(every_event_is_delivered_once_and_its_status_is_explained);

async fn every_event_is_delivered_once_and_its_status_is_explained(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&configuration(&sink)).await;
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: 5_000,
        duplicates: 500,
        connections: 64,
    };

    let sent = produce(run.clone(), vec![service.target()], load, Progress::default()).await;

    assert_eq!(sent.len(), 4_500);
    assert_eq!(
        sent.iter().map(|sent| sent.new + sent.replayed).sum::<usize>(),
        5_000,
        "each post was accepted"
    );
    for sent in &sent {
        assert!(
            sent.new == 1 || (sent.new == 0 && sent.unanswered > 0),
            "a key must be new exactly once, unless a response was lost: {sent:?}"
        );
    }
    verdicts::all_taken(&sink, &sent).await;
    let lost = verdicts::all_delivered_and_explained(&service, &sink, &sent).await;
    assert!(lost.is_empty(), "attempts were lost without a fault: {lost:?}");
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
    let refused = sink.received().iter().filter(|received| !received.taken()).count();
    assert_eq!(
        sink.count(),
        4_500 + refused,
        "the number of requests is not that of events and refusals"
    );
    assert!(
        (1_200..1_800).contains(&refused),
        "about a third must be refused at first, not {refused}"
    );
    run.judge().await;
}

fn configuration(sink: &Sink) -> String {
    format!(
        r#"
        [defaults]
        initial_delay = "50ms"
        max_delay = "200ms"
        {}
        "#,
        sink.three_sources()
    )
}
