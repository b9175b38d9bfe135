//! Several processes on one PostgreSQL database share the work, and no event is delivered by two of
//! them.

use std::collections::BTreeSet;
use std::time::Duration;
use tests::database::Database;
use tests::producer::{Load, Progress, Sent, produce};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::{Answer, Sink};

const EVENTS: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_on_one_database_deliver_each_event_once() {
    let run = Recording::begin(Database::postgres().await).await;
    let sinks = [run.sink(behaviour).await, run.sink(behaviour).await, run.sink(behaviour).await];
    let mut services = Vec::new();
    for sink in &sinks {
        // Each process has its own downstream for the same sources, which shows what each process
        // delivered.
        services.push(run.service(&configuration(sink)).await);
    }
    // All processes accept events, faster than they deliver them. They share the resulting backlog.
    let load =
        Load { sources: &["github", "stripe"], posts: EVENTS, duplicates: 0, connections: 32 };
    let targets = services.iter().map(Service::target).collect();
    let burst = async {
        let sent = produce(run.clone(), targets, load, Progress::default()).await;
        run.all_ended().await;
        sent
    };
    let sent = run.while_network_is("a burst above the delivery capacity", burst).await;

    let wanted: BTreeSet<_> = sent.iter().map(Sent::event).collect();
    assert_eq!(wanted.len(), EVENTS);
    let taken: Vec<_> = sinks.iter().map(Sink::taken).collect();
    assert!(
        taken.iter().flat_map(|taken| taken.values()).all(|&times| times == 1),
        "one process delivered an event twice"
    );
    assert_eq!(
        taken.iter().map(std::collections::BTreeMap::len).sum::<usize>(),
        EVENTS,
        "two processes delivered the same event"
    );
    assert_eq!(
        taken.iter().flat_map(|taken| taken.keys().copied()).collect::<BTreeSet<_>>(),
        wanted
    );
    let shares: Vec<usize> = taken.iter().map(std::collections::BTreeMap::len).collect();
    assert!(
        shares.iter().all(|&share| share > EVENTS / 5),
        "a process delivered less than a fifth: {shares:?}"
    );
    run.judge().await;
}

/// Slow enough that one process alone could not keep up.
fn behaviour(_: &tests::sink::Received) -> Answer {
    Answer::status(200).after(Duration::from_millis(20))
}

fn configuration(sink: &Sink) -> String {
    format!(
        "[defaults]\nconcurrency = 64\n[sources.github]\ndestination = \"{}\"\n[sources.stripe]\ndestination = \"{}\"\n",
        sink.url("/github"),
        sink.url("/stripe")
    )
}
