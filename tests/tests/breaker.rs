//! What an outage of a downstream with a backlog costs: a few attempts of its events, and nothing
//! for other sources.

use serde_json::Value;
use std::time::{Duration, Instant};
use surehook_core::event::Status;
use surehook_model::history::Fault;
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Load, Progress, Sent, produce};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, soak};
use uuid::Uuid;

on_each_database!(
    an_outage_uses_up_few_attempts_and_affects_no_other_source,
    a_downstream_that_refuses_everything_costs_few_events,
);

const FAILURES: usize = 10;
const CONCURRENCY: usize = 16;

async fn an_outage_uses_up_few_attempts_and_affects_no_other_source(database: Database) {
    let waiting: usize = soak::either(500, 5_000);
    let (down, open) = soak::either(
        (Duration::from_secs(4), Duration::from_millis(500)),
        (Duration::from_mins(1), Duration::from_secs(5)),
    );
    let run = Recording::begin(database).await;
    let broken = run.sink(|_| Answer::status(503)).await;
    let well = run.sink(|_| Answer::status(200)).await;
    let configuration = format!(
        "[defaults]\nconcurrency = {CONCURRENCY}\nbreaker_failures = {FAILURES}\nbreaker_open = \"{}\"\ninitial_delay = \"100ms\"\nmax_delay = \"1s\"\n
         [sources.broken]\ndestination = \"{}\"\n[sources.well]\ndestination = \"{}\"\n",
        humantime::format_duration(open),
        broken.url("/broken"),
        well.url("/well"),
    );
    let service = run.service(&configuration).await;
    let (at_rest, _) = trickle(&run, &service, &well, Duration::from_secs(1)).await;

    let told = |broken: bool| {
        run.fault(Fault::Downstream {
            source: "broken".to_owned(),
            what: "503".to_owned(),
            broken,
        });
    };
    told(true);
    let began = Instant::now();
    let load = Load { sources: &["broken"], posts: waiting, duplicates: 0, connections: 16 };
    let posting = produce(run.clone(), vec![service.target()], load, Progress::default());
    let outage = async {
        let sent = posting.await;
        tokio::time::sleep(down.saturating_sub(began.elapsed())).await;
        sent
    };
    let (sent, (beside, _)) = tokio::join!(outage, trickle(&run, &service, &well, down));
    let burnt = broken.received().len();
    let shown = Client::default().get(&service.url("/sources")).await.expect("a response").json();
    let back = Instant::now();
    told(false);
    broken.behave(|_| Answer::status(200).after(Duration::from_millis(5)));
    run.all_ended().await;
    let drained = back.elapsed();

    // The failures in a row that open the breaker, the deliveries in flight at that time, and one
    // probe for each period in which it was open.
    let probes = usize::try_from(down.as_millis() / open.as_millis()).expect("a number") + 1;
    println!(
        "{waiting} events, down for {down:?}: {burnt} attempts used up, of which at most {probes} probes; backlog delivered {drained:?} after the recovery; \
         the other source took {at_rest:?} (p99) before the outage and {beside:?} during it"
    );
    assert!(
        burnt >= FAILURES && burnt <= FAILURES + CONCURRENCY + probes,
        "{burnt} attempts used up, {probes} probes"
    );
    let here = &shown["sources"][0]["this_process"];
    assert!(
        ["open", "half_open"].contains(&here["breaker"].as_str().unwrap_or_default()),
        "{shown}"
    );
    assert_eq!(here["last_success_seconds_ago"], Value::Null, "{shown}");
    let taken = broken.taken();
    assert!(
        sent.iter().map(Sent::event).all(|event| taken.get(&event) == Some(&1)),
        "an event was not delivered exactly once"
    );
    assert!(beside < Duration::from_millis(500), "the other source took {beside:?}");
    // The oracles check the ramp, and that nothing was sent while the breaker was open.
    run.judge().await;
}

/// A faulty release of a downstream refuses every event. Then it is replaced.
async fn a_downstream_that_refuses_everything_costs_few_events(database: Database) {
    const REFUSALS: usize = 20;
    const EVENTS: usize = 600;
    let (down, open) = (Duration::from_secs(4), Duration::from_millis(500));
    let run = Recording::begin(database).await;
    let faulty = run.sink(|_| Answer::status(422).body("unknown currency")).await;
    let configuration = format!(
        "[sources.faulty]\ndestination = \"{}\"\nconcurrency = {CONCURRENCY}\nbreaker_refusals = {REFUSALS}\nbreaker_open = \"{}\"\n",
        faulty.url("/faulty"),
        humantime::format_duration(open),
    );
    let service = run.service(&configuration).await;
    let told = |broken: bool| {
        run.fault(Fault::Downstream {
            source: "faulty".to_owned(),
            what: "422".to_owned(),
            broken,
        });
    };
    told(true);
    let began = Instant::now();
    let load = Load { sources: &["faulty"], posts: EVENTS, duplicates: 0, connections: 16 };
    produce(run.clone(), vec![service.target()], load, Progress::default()).await;
    tokio::time::sleep(down.saturating_sub(began.elapsed())).await;
    let lasted = began.elapsed();
    told(false);
    faulty.behave(|_| Answer::status(200));
    run.all_ended().await;

    let judged = run.judge().await;
    let with = |status| judged.events.values().filter(|event| event.status == status).count();
    let (dead, delivered) = (with(Status::DeadLettered), with(Status::Delivered));
    let probes = usize::try_from(lasted.as_millis() / open.as_millis()).expect("a number") + 1;
    println!(
        "{EVENTS} events, refused for {lasted:?}: {dead} dead-lettered, of which at most {probes} probes"
    );
    assert!((REFUSALS..=REFUSALS + CONCURRENCY + probes).contains(&dead), "{dead} dead-lettered");
    assert_eq!(dead + delivered, EVENTS);
}

/// Posts to the healthy source every 20 ms. Returns the 99th percentile of the time from an event's
/// receipt to its settlement, by the database's clock, and the events.
async fn trickle(
    run: &Recording,
    service: &Service,
    well: &Sink,
    lasting: Duration,
) -> (Duration, Vec<Uuid>) {
    let (began, before) = (Instant::now(), well.count());
    let mut events = Vec::new();
    while began.elapsed() < lasting {
        let load = Load { sources: &["well"], posts: 1, duplicates: 0, connections: 1 };
        let sent = produce(run.clone(), vec![service.target()], load, Progress::default()).await;
        events.extend(sent.iter().map(Sent::event));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    well.reaches(before + events.len()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let client = Client::default();
    let mut took = Vec::new();
    for event in &events {
        let shown =
            client.get(&service.url(&format!("/events/{event}"))).await.expect("a response").json();
        let time =
            |name: &str| shown[name].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let (received, settled) = (
            time("received_at").expect("a timestamp"),
            time("settled_at").unwrap_or_else(|| panic!("{shown}")),
        );
        took.push(
            Duration::try_from(settled.duration_since(received))
                .expect("the settlement is later than the receipt"),
        );
    }
    took.sort_unstable();
    (took[(took.len() * 99 / 100).min(took.len() - 1)], events)
}
