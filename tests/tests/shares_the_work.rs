//! Several processes on one PostgreSQL database share the work, and no event is delivered by two of them.

use std::collections::BTreeSet;
use std::time::Duration;
use tests::database::Database;
use tests::producer::{Load, Progress, Sent, produce};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::verdicts;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_on_one_database_deliver_each_event_once() {
    let run = Recording::begin(Database::postgres().await).await;
    let sinks = [run.sink(behaviour).await, run.sink(behaviour).await, run.sink(behaviour).await];
    let mut services = Vec::new();
    for sink in &sinks {
        // Each process has a downstream of its own for the same sources, which tells who delivered what.
        services.push(run.service(&configuration(sink)).await);
    }
    let load = Load { sources: &["github", "stripe"], posts: 1_000, duplicates: 0, connections: 16 };

    let loads = services.iter().map(|service| produce(run.clone(), vec![service.target()], load, Progress::default()));
    let sent: Vec<Sent> = futures::future::join_all(loads).await.concat();

    let wanted: BTreeSet<_> = sent.iter().map(Sent::event).collect();
    assert_eq!(wanted.len(), 3_000);
    for (service, sent) in services.iter().zip(sent.chunks(1_000)) {
        verdicts::until_delivered(service, sent).await;
    }
    let taken: Vec<_> = sinks.iter().map(Sink::taken).collect();
    assert!(taken.iter().flat_map(|taken| taken.values()).all(|&times| times == 1), "one process delivered an event twice");
    assert_eq!(taken.iter().map(|taken| taken.len()).sum::<usize>(), 3_000, "two processes delivered the same event");
    assert_eq!(taken.iter().flat_map(|taken| taken.keys().copied()).collect::<BTreeSet<_>>(), wanted);
    let shares: Vec<usize> = taken.iter().map(|taken| taken.len()).collect();
    assert!(shares.iter().all(|&share| share > 0), "a process took no part: {shares:?}");
    run.judge().await;
}

/// Slow enough that one process alone could not keep up.
fn behaviour(_: &tests::sink::Received) -> Answer {
    Answer::status(200).after(Duration::from_millis(20))
}

fn configuration(sink: &Sink) -> String {
    format!("[sources.github]\ndestination = \"{}\"\n[sources.stripe]\ndestination = \"{}\"\n", sink.url("/github"), sink.url("/stripe"))
}
