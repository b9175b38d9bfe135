//! A process that stands still for longer than its leases last, and then goes on as if nothing had happened.

use std::time::Duration;
use surehook_model::history::{Change, What};
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Post, try_once};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::wait;

/// A lease lasts for the time-out and 10 s.
const TIMEOUT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(12_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_process_holds_is_delivered_by_another_and_its_late_settlement_does_not_count() {
    let run = Recording::begin(Database::postgres().await).await;
    // Long enough to be stopped in the middle.
    let sink = run.sink(|_| Answer::status(200).after(Duration::from_millis(200))).await;
    let [stopped, other] = [run.service(&configuration(&sink)).await, run.service(&configuration(&sink)).await];
    let client = Client::default();
    // What a process accepts it also claims: it need not wait for its next look.
    for number in 0..8 {
        let key = format!("key-{number}");
        let post = Post { producer: "producer", source: "github", key: &key, body: key.clone().into() };
        try_once(&run, &client, &stopped.target(), &post).await.expect("an answer").expect("a 202");
    }
    sink.reaches(1).await;
    stopped.pause(PAUSE).await;
    run.all_ended().await;
    wait::until("the stopped process to have said what became of its deliveries", || async {
        let log = stopped.log();
        let late = log.matches("settlement refused").count() + log.matches("could not be written in time").count();
        if late > 0 { Ok(()) } else { Err(log) }
    })
    .await;

    let judged = run.judge().await;
    let taken_over: Vec<_> = judged
        .committed()
        .filter(|(_, committed)| committed.change == Change::Claimed && committed.process == "service-2")
        .filter(|(_, committed)| committed.after.is_some_and(|row| row.delivery.attempt > 1))
        .map(|(_, committed)| committed.event)
        .collect();
    assert!(!taken_over.is_empty(), "the other process took nothing over");
    for event in taken_over {
        let settled_by: Vec<&str> = judged
            .each(|what| match what {
                What::Committed(committed) if committed.event == event => Some(committed),
                _ => None,
            })
            .filter(|(_, committed)| matches!(committed.change, Change::Settled { .. }))
            .map(|(_, committed)| committed.process.as_str())
            .collect();
        assert_eq!(settled_by, ["service-2"], "event {event} was settled by whom it no longer belonged to");
    }
    assert!(other.is_running() && stopped.is_running());
}

fn configuration(sink: &Sink) -> String {
    format!("[defaults]\ntimeout = \"{TIMEOUT:?}\"\n{}", sink.three_sources())
}
