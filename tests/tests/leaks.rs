//! Many deliveries leave nothing behind: neither memory nor file descriptors nor threads grow with their number, and the
//! connections to a downstream are few and used again.
//!
//! `SUREHOOK_SOAK` of any length delivers 200,000 events instead of 12,000.

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

/// Allocators keep some of what they got, and SQLite's page cache fills up once.
const GROWTH_BYTES: u64 = 24 << 20;

async fn many_deliveries_leak_no_memory_descriptors_or_threads(database: Database) {
    let run = Recording::begin(database).await;
    let after = |time| move |_: &_| Answer::status(200).after(time);
    // So slow that in the first round all slots are used at once, and all connections made.
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
    run.while_network_is("bursts that are more than can be delivered at once", work).await;

    // The first round opens what is opened once: the database's connections, as they are first wanted.
    let (first, last) = (usages[1], usages[usages.len() - 1]);
    println!("{usages:?}, {} connections", sink.connections());
    // Connections of the last round may be closing, on either side.
    assert!(last.descriptors <= first.descriptors + 8, "file descriptors grow: {usages:?}");
    assert!(last.threads <= first.threads + 2, "threads grow: {usages:?}");
    let growth = last.resident_bytes.saturating_sub(first.resident_bytes);
    assert!(growth < GROWTH_BYTES, "memory grew by {growth} bytes: {usages:?}");
    // One for each slot and source; a few may have been closed while idle, and made anew.
    let most = CONCURRENCY * SOURCES * 3 / 2;
    assert!(
        sink.connections() <= most,
        "{} connections for {CONCURRENCY} slots of {SOURCES} sources",
        sink.connections()
    );
    run.judge().await;
}

/// What the process takes once its producers have hung up.
async fn at_rest(service: &tests::program::Service) -> Usage {
    let mut last = service.usage();
    wait::until("the process to be at rest", || {
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
