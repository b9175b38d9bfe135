//! The limit of open files: the program raises it to the hard limit, and an inbound flood does not
//! take the descriptors that deliveries need.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::database::Database;
use tests::on_each_database;
use tests::producer::{Load, Progress, produce};
use tests::program::OPEN_FILES;
use tests::recording::Recording;
use tests::rogue::{Rogue, Script};
use tests::wait;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

on_each_database!(
    an_inbound_flood_at_the_file_limit_fails_no_delivery,
    the_soft_limit_of_open_files_is_raised_at_start,
);

/// More than the limit of open files, so that the flood takes every descriptor that it can get.
const FLOOD: usize = 400;
/// The flood has arrived when the program holds this number of its 256 descriptors.
const FLOODED: usize = 190;
const EVENTS: usize = 60;

async fn an_inbound_flood_at_the_file_limit_fails_no_delivery(database: Database) {
    let run = Recording::begin(database).await;
    let takes = Arc::new(AtomicBool::new(false));
    // The downstream closes each connection, so that each delivery needs a new one.
    let rogue = Rogue::start(&run, {
        let takes = Arc::clone(&takes);
        move |_| {
            let status_code = if takes.load(Ordering::SeqCst) { 204 } else { 503 };
            let answer = format!(
                "HTTP/1.1 {status_code} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            Script::default().say(answer.into_bytes()).replies(status_code, None)
        }
    });
    let configuration = format!(
        "[defaults]\ninitial_delay = \"500ms\"\nfactor = 1.0\nmax_attempts = 10000\nbreaker_failures = 0\n\
         [sources.flooded]\ndestination = \"{}\"\n",
        rogue.url("/")
    );
    let service = run.service_in(&[(OPEN_FILES, "256 256")], &configuration).await;
    let load = Load { sources: &["flooded"], posts: EVENTS, duplicates: 0, connections: 4 };
    produce(run.clone(), vec![service.target()], load, Progress::default()).await;

    let flood = flood(service.address());
    wait::until("the flood to arrive", || async {
        let descriptors = service.usage().descriptors;
        if descriptors >= FLOODED {
            Ok(())
        } else {
            Err(format!("the program holds {descriptors} descriptors"))
        }
    })
    .await;
    // On average, each event is tried three times during the flood.
    let tried = rogue.count() + 3 * EVENTS;
    wait::until("deliveries during the flood", || async {
        let count = rogue.count();
        if count >= tried { Ok(()) } else { Err(format!("{count} of {tried} deliveries")) }
    })
    .await;
    takes.store(true, Ordering::SeqCst);
    run.all_ended().await;
    drop(flood);

    let judged = run.judge().await;
    assert_eq!(judged.events.len(), EVENTS);
    for event in judged.events.values() {
        let failed: Vec<_> = event
            .history
            .iter()
            .filter(|attempt| !matches!(attempt.status_code, Some(503 | 204)))
            .collect();
        assert!(failed.is_empty(), "attempts that the downstream did not answer: {failed:?}");
    }
    assert_eq!(service.mishaps(), [""; 0]);
}

/// Opens connections that send nothing, and opens each again when it is closed. They end when the
/// result is dropped.
fn flood(address: SocketAddr) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    for _ in 0..FLOOD {
        connections.spawn(async move {
            loop {
                match TcpStream::connect(address).await {
                    Ok(mut stream) => {
                        while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
    }
    connections
}

async fn the_soft_limit_of_open_files_is_raised_at_start(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| tests::sink::Answer::status(200)).await;
    let configuration = format!("[sources.a]\ndestination = \"{}\"\n", sink.url("/"));
    let service = run.service_in(&[(OPEN_FILES, "256 3000")], &configuration).await;
    assert_eq!(service.open_files(), (3000, 3000));
    assert!(
        !service.log().contains("limit of open files"),
        "the settings fit the limit, but the program warns"
    );
    // Only one process can use a SQLite database.
    drop(service);
    let tight = run.service_in(&[(OPEN_FILES, "256 300")], &configuration).await;
    assert_eq!(tight.open_files(), (300, 300));
    assert!(
        tight.log().contains("max_connections does not fit the limit of open files"),
        "{}",
        tight.log()
    );
}
