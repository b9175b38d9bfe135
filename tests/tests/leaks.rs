//! Many deliveries leak nothing: memory, file descriptors and threads do not grow with their
//! number, and a few connections to the downstream are reused.
//!
//! With `SUREHOOK_SOAK` set to any duration, it delivers 200,000 events instead of 12,000.

use std::time::Duration;
use tests::database::Database;
use tests::producer::{Load, Progress, produce};
use tests::program::Usage;
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, soak, wait};

on_each_database!(many_deliveries_leak_no_memory_descriptors_or_threads);

const CONCURRENCY: usize = 16;
const SOURCES: usize = 3;
const LOAD: Load = Load {
    sources: &["github", "stripe", "shopify"],
    posts: 3_000,
    duplicates: 0,
    connections: 16,
};

/// The allocator keeps some memory, and the page cache of SQLite fills up once.
const GROWTH_BYTES: u64 = 24 << 20;

async fn many_deliveries_leak_no_memory_descriptors_or_threads(database: Database) {
    let run = Recording::begin(database).await;
    let after = |time| move |_: &_| Answer::status(200).after(time);
    // So slow that the first round uses all slots at the same time, and opens all connections.
    let sink = run.sink(after(Duration::from_millis(100))).await;
    let service = run.service(&configuration(&sink)).await;
    let rounds = soak::either(4, 67);
    let mut usages: Vec<Usage> = Vec::new();
    let work = async {
        for round in 1..=rounds {
            produce(run.clone(), vec![service.target()], LOAD, Progress::default()).await;
            run.all_ended().await;
            assert_eq!(sink.taken().len(), LOAD.posts * round);
            usages.push(at_rest(&service).await);
            sink.behave(after(Duration::from_millis(1)));
        }
    };
    run.while_network_is("bursts above the delivery capacity", work).await;

    // Growth is measured from the second round, because the first one opens what is opened only
    // once, such as the connections to the database.
    let (first, last) = (usages[1], usages[usages.len() - 1]);
    println!("{usages:?}, {} connections", sink.connections());
    // Connections of the last round may still be closing, at either end.
    assert!(last.descriptors <= first.descriptors + 8, "file descriptors grow: {usages:?}");
    assert!(last.threads <= first.threads + 2, "threads grow: {usages:?}");
    let growth = last.resident_bytes.saturating_sub(first.resident_bytes);
    assert!(growth < GROWTH_BYTES, "memory grew by {growth} bytes: {usages:?}");
    // One for each slot of each source. A few may have been closed while idle, and opened again.
    let most = CONCURRENCY * SOURCES * 3 / 2;
    assert!(
        sink.connections() <= most,
        "{} connections for {CONCURRENCY} slots of {SOURCES} sources",
        sink.connections()
    );
    run.judge().await;
}

/// The usage of the process after its producers have disconnected.
async fn at_rest(service: &tests::program::Service) -> Usage {
    let mut last = service.usage();
    wait::until("the process to be idle", || {
        let now = service.usage();
        let rests = now.descriptors >= last.descriptors;
        last = now;
        async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if rests { Ok(now) } else { Err(format!("{now:?}")) }
        }
    })
    .await
}

fn configuration(sink: &Sink) -> String {
    format!("[defaults]\nconcurrency = {CONCURRENCY}\n{}", sink.three_sources())
}
