//! A process that is stopped for longer than its leases last, and then continues.

use std::collections::BTreeSet;
use std::time::Duration;
use surehook_core::id::EventId;
use surehook_core::verdict::Verdict;
use surehook_model::history::{Change, Run};
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Post, try_once};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::{Answer, Received, Sink};
use tests::{on_each_database, wait};

/// The timeout of a delivery. A lease lasts 10 s longer.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Longer than a lease.
const PAUSE: Duration = Duration::from_secs(15);

const EVENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_is_taken_over_and_its_settlements_are_refused() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(behaviour).await;
    let stopped = run.service(&configuration(&sink)).await;
    accept(&run, &stopped).await;
    sink.reaches(EVENTS).await;
    // The other process starts after the first one is stopped, so that it has no events yet. The
    // first one continues during the other's deliveries, so that its late settlements find the rows
    // as it left them, except for the fence.
    let taken_over = async {
        let other = run.service(&configuration(&sink)).await;
        wait::until("the other process to take an event over", || async {
            let received = sink.received();
            if received.iter().any(|received| received.attempt == 2) {
                Ok(())
            } else {
                Err(format!("{received:?}"))
            }
        })
        .await;
        other
    };
    let _other = stopped.pause_while(taken_over).await;
    run.all_ended().await;

    let judged = run.judge().await;
    let taken_over: BTreeSet<EventId> = changes(&judged, |change| change == Change::Claimed)
        .filter(|(_, process)| *process == "service-2")
        .map(|(event, _)| event)
        .collect();
    assert!(!taken_over.is_empty(), "the other process took nothing over");
    for event in taken_over {
        let settled = changes(&judged, |change| matches!(change, Change::Settled { .. }))
            .filter(|(of, _)| *of == event);
        let settled_by: Vec<&str> = settled.map(|(_, process)| process).collect();
        assert_eq!(
            settled_by,
            ["service-2"],
            "event {event} was settled by a process that no longer held it"
        );
        let verdicts: Vec<Verdict> =
            judged.events[&event].history.iter().map(|attempt| attempt.verdict).collect();
        assert_eq!(verdicts, [Verdict::Lost, Verdict::Delivered], "event {event}");
        let (number, refused) = (event.to_string(), "settlement refused");
        wait::until("the stopped process to log that its settlement was refused", || async {
            let log = stopped.log();
            if log.lines().any(|line| line.contains(refused) && line.contains(&number)) {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
    }
}

on_each_database!(a_response_received_during_a_pause_is_used_after_it);

async fn a_response_received_during_a_pause_is_used_after_it(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run.sink(behaviour).await;
    let service = run.service(&configuration(&sink)).await;
    accept(&run, &service).await;
    sink.reaches(EVENTS).await;
    // Longer than the timeout of each delivery, and well within its lease.
    service.pause(TIMEOUT + Duration::from_secs(1)).await;
    run.all_ended().await;
    let judged = run.judge().await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
    assert!(
        judged.events.values().all(|event| event.history.len() == 1),
        "an event needed more than one attempt"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_process_continues_with_its_events_after_a_pause() {
    let run = Recording::begin(Database::sqlite()).await;
    let sink = run.sink(behaviour).await;
    let service = run.service(&configuration(&sink)).await;
    accept(&run, &service).await;
    sink.reaches(EVENTS).await;
    service.pause(PAUSE).await;
    run.all_ended().await;

    let judged = run.judge().await;
    // It depends on timing whether the process first reads the late responses or notices the ended
    // leases. Each event is delivered, at most twice.
    for (event, record) in &judged.events {
        let verdicts: Vec<Verdict> = record.history.iter().map(|attempt| attempt.verdict).collect();
        let expected: [&[Verdict]; 2] =
            [&[Verdict::Delivered], &[Verdict::Lost, Verdict::Delivered]];
        assert!(expected.contains(&&verdicts[..]), "event {event}: {verdicts:?}");
    }
    assert_eq!(sink.taken().len(), EVENTS);
}

/// Slow enough that a process can be stopped, and can continue, during a delivery.
fn behaviour(received: &Received) -> Answer {
    let slowly = if received.attempt == 1 {
        Duration::from_millis(600)
    } else {
        Duration::from_millis(1_500)
    };
    Answer::status(200).after(slowly)
}

/// Posts events, which the process that accepts them claims at once.
async fn accept(run: &Recording, service: &Service) {
    let client = Client::default();
    for number in 0..EVENTS {
        let key = format!("key-{number}");
        let post =
            Post { producer: "producer", source: "github", key: &key, body: key.clone().into() };
        try_once(run, &client, &service.target(), &post).await.expect("a response").expect("a 202");
    }
}

/// The changes of one kind: the event and the process of each.
fn changes(run: &Run, of_kind: impl Fn(Change) -> bool) -> impl Iterator<Item = (EventId, &str)> {
    run.committed()
        .filter(move |(_, committed)| of_kind(committed.change))
        .map(|(_, committed)| (committed.event, committed.process.as_str()))
}

fn configuration(sink: &Sink) -> String {
    format!("[defaults]\ntimeout = \"{TIMEOUT:?}\"\n{}", sink.three_sources())
}
