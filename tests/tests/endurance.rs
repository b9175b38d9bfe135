//! Ninety seconds at full rate, across several autovacuums, with a downstream outage in the middle.
//! Deliveries keep up with the intake before the outage, and catch up after it. For the long form,
//! run `make bench BENCH=endurance`.

use std::time::Duration;
use tests::database::Database;
use tests::load::endurance::{Endurance, Trace};
use tests::load::{Manners, Offer, Sink, Until};
use tests::postgres::{Cluster, Settings};
use tests::program::Service;
use tests::soak;

const OUTAGE: std::ops::Range<Duration> = Duration::from_secs(50)..Duration::from_mins(1);
/// Posts per second: less than a debug build delivers on a busy machine, so that it can work off
/// the backlog of the outage.
const RATE: f64 = 300.0;
/// Seconds after the outage until its ten seconds of backlog are delivered. They include the time
/// in which the circuit breaker closes and deliveries ramp up.
const CAUGHT_UP_WITHIN: u64 = 30;

async fn run(database: Database) -> Trace {
    let sink = Sink::start(Manners::default()).await;
    let configuration = format!(
        "[defaults]\nconcurrency = 64\ninitial_delay = \"100ms\"\nbreaker_open = \"2s\"\n[sources.s0]\ndestination = \"http://{}/s0\"\n",
        sink.address
    );
    let service = Service::start(&database.url(), &configuration).await;
    let offer = Offer {
        targets: vec![service.address()],
        sources: 1,
        connections: 16,
        body: 1024,
        is_json: false,
        duplicates: 0,
        until: Until::Posts(0),
        rate: Some(RATE),
        accepted: std::sync::Arc::default(),
    };
    let time = soak::asked_for().unwrap_or(Duration::from_secs(90));
    let trace = Endurance { time, outage: Some(OUTAGE) }
        .run(&offer, &sink, &database, |second| println!("{}", second.line()))
        .await;
    let (start, end) = (OUTAGE.start.as_secs(), OUTAGE.end.as_secs());
    assert_eq!(trace.refused, 0, "posts were not accepted\n{}", trace.tail(100));
    let owed = trace.most_owed_in_seconds(0..start);
    assert!(
        owed <= 1.0,
        "the backlog reached {owed:.1} seconds of events before the outage\n{}",
        trace.tail(100)
    );
    let caught_up = trace.caught_up_at(end + 1).expect("everything is delivered in the end");
    assert!(
        caught_up <= end + CAUGHT_UP_WITHIN,
        "caught up at second {caught_up}\n{}",
        trace.tail(100)
    );
    let owed = trace.most_owed_in_seconds(end + CAUGHT_UP_WITHIN..u64::MAX);
    assert!(
        owed <= 1.0,
        "the backlog reached {owed:.1} seconds of events after the outage\n{}",
        trace.tail(100)
    );
    trace
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_keep_up_with_the_intake_across_autovacuums() {
    let more = vec![("autovacuum_naptime", "5s".to_owned())];
    let cluster = Cluster::start(Settings { more, ..Settings::default() });
    let trace = run(Database::Postgres(cluster.create_database().await)).await;
    assert!(trace.autovacuums() >= 4, "{} autovacuums", trace.autovacuums());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_keep_up_with_the_intake_on_sqlite() {
    run(Database::sqlite()).await;
}
