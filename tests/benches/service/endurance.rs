//! Capacity over many minutes, across autovacuums and checkpoints: on each database a run without a fault, a comparison of
//! the database that it filled with an empty one, and a run in the middle of which the downstream is down.

use crate::report::Report;
use crate::world::{On, Plan, World, start_enduring_server};
use std::fmt::Write as _;
use std::time::Duration;
use tests::database::Database;
use tests::load::endurance::{Endurance, Second, Trace};
use tests::load::{Offer, Until, all_accepted};
use tests::program::program;
use tokio::time::sleep;

const CONNECTIONS: usize = 64;
/// How long the downstream answers 503.
const OUTAGE: Duration = Duration::from_secs(30);
/// The share of the capacity that is offered in the run with an outage. At full capacity nothing is left over to work a
/// backlog off, however long the run is.
const SHARE: f64 = 0.5;
/// How long a rate must hold to be called the capacity.
const CAPACITY_SECONDS: usize = 300;
/// Windows in which the filled and the empty database are loaded, one after the other.
const WINDOWS: usize = 4;
const WINDOW: Duration = Duration::from_secs(10);

/// Which runs are wanted.
pub(crate) struct Wanted {
    pub(crate) time: Duration,
    pub(crate) databases: Vec<On>,
    /// If set, only the outage is measured, at this many posts a second.
    pub(crate) outage_at_rate: Option<u32>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            time: Duration::from_mins(10),
            databases: vec![On::Postgres, On::Sqlite],
            outage_at_rate: None,
        }
    }
}

/// Prints each second, and writes the seconds of each run to a file in `target/bench/`.
pub(crate) async fn measure(report: &mut Report, group: &'static str, wanted: &Wanted) {
    for &on in &wanted.databases {
        let rate = match wanted.outage_at_rate {
            Some(rate) => f64::from(rate),
            None => SHARE * capacity(report, group, wanted.time, on).await,
        };
        outage(report, group, wanted.time, on, rate).await;
    }
}

/// Measures the capacity, and then compares the filled database with an empty one. Returns the
/// capacity in events a second.
async fn capacity(report: &mut Report, group: &'static str, time: Duration, on: On) -> f64 {
    let plan = Plan { on, ..Plan::default() };
    let cluster = start_enduring_server();
    let world = World::start(&cluster, plan).await;
    let cell = format!("{on:?}, {CONNECTIONS} connections as fast as answers come");
    let run = Endurance { time, outage: None };
    let trace = traced(&run, &world, &world.offer(CONNECTIONS), &cell).await;
    let capacity = trace.delivered_rate(CAPACITY_SECONDS);
    let row = report.row(group, cell);
    row.add("delivered/s in the first 5 min", capacity);
    row.add("delivered/s", trace.delivered_rate(seconds(time)));
    row.add("most owed, s", trace.most_owed_in_seconds(0..u64::MAX));
    row.add("autovacuums", trace.autovacuums() as f64);
    row.add("posts refused", trace.refused as f64);
    row.add("resident MiB", world.gauge().resident_mib());

    let other_cluster = start_enduring_server();
    let empty = World::start(&other_cluster, plan).await;
    let row = report.row(group, format!("{on:?}, filled by the run above, and empty"));
    for _ in 0..WINDOWS {
        for (name, world) in [("filled, events/s", &world), ("empty, events/s", &empty)] {
            let offer = Offer { until: Until::Over(WINDOW), ..world.offer(CONNECTIONS) };
            row.add(name, all_accepted(&offer).await.rate());
            sleep(Duration::from_secs(1)).await;
        }
    }
    capacity
}

/// How long delivered events are kept in the run with retention.
const KEPT: &str = "10s";
/// The pause between the two runs of `steady`. What one has left to delete or to vacuum is done then.
const REST: Duration = Duration::from_secs(30);

/// Full rate with a retention that deletes all the time, compared with full rate without deletion. The second run lies
/// between the halves of the first, so that a machine which becomes slower or faster does so for both.
pub(crate) async fn steady(report: &mut Report, group: &'static str, wanted: &Wanted) {
    for &on in &wanted.databases {
        let clusters = [start_enduring_server(), start_enduring_server()];
        let keeps = World::start(&clusters[0], Plan { on, kept: "7d", ..Plan::default() }).await;
        let deletes = World::start(&clusters[1], Plan { on, kept: KEPT, ..Plan::default() }).await;
        let mut without = Steady::new(&keeps, on, "7d");
        let mut with = Steady::new(&deletes, on, KEPT);
        without.half(report, group, wanted.time).await;
        sleep(REST).await;
        with.half(report, group, wanted.time).await;
        with.half(report, group, wanted.time).await;
        sleep(REST).await;
        without.half(report, group, wanted.time).await;
        let row = report.row(group, format!("{on:?}, with retention ÷ without"));
        row.add("delivered/s", with.rate() / without.rate());
    }
}

/// One of the two runs of `steady`.
struct Steady<'a> {
    world: &'a World<'a>,
    on: On,
    cell: String,
    /// The rate of each half.
    rates: Vec<f64>,
}

impl<'a> Steady<'a> {
    fn new(world: &'a World<'a>, on: On, kept: &str) -> Self {
        let cell = format!("{on:?}, delivered events are kept for {kept}");
        Self { world, on, cell, rates: Vec::new() }
    }

    /// Runs for half of `time`.
    async fn half(&mut self, report: &mut Report, group: &'static str, time: Duration) {
        let name = if self.rates.is_empty() { "first half" } else { "second half" };
        let run = Endurance { time: time / 2, outage: None };
        let cpu = || self.world.services[0].usage().cpu;
        let before = cpu();
        let title = format!("{}, {name}", self.cell);
        let trace = traced(&run, self.world, &self.world.offer(CONNECTIONS), &title).await;
        let spent = cpu().saturating_sub(before);
        let rate = trace.delivered_rate(seconds(run.time));
        self.rates.push(rate);
        let size = number(&self.world.database, size(self.on)).await / f64::from(1 << 20);
        let stored = number(&self.world.database, "select count(*) from events").await;
        let row = report.row(group, title);
        row.add("delivered/s", rate);
        row.add("most owed, s", trace.most_owed_in_seconds(0..u64::MAX));
        row.add("autovacuums", trace.autovacuums() as f64);
        row.add("size at the end, MiB", size);
        row.add("events stored at the end", stored);
        row.add("service cores", spent.as_secs_f64() / run.time.as_secs_f64());
        row.add("resident MiB", self.world.gauge().resident_mib());
    }

    fn rate(&self) -> f64 {
        self.rates.iter().sum::<f64>() / self.rates.len() as f64
    }
}

/// The query for the size of a database in bytes.
fn size(on: On) -> &'static str {
    match on {
        On::Postgres => "select pg_database_size(current_database())",
        On::Sqlite => "select page_count * page_size from pragma_page_count, pragma_page_size",
    }
}

async fn number(database: &Database, query: &'static str) -> f64 {
    let rows: Vec<(i64,)> = database.fetch(query).await;
    rows[0].0 as f64
}

/// Posts at a rate, while the downstream is down for 30 seconds in the middle.
async fn outage(report: &mut Report, group: &'static str, time: Duration, on: On, rate: f64) {
    // A new server, so that nothing is left of the run before.
    let cluster = start_enduring_server();
    let world = World::start(&cluster, Plan { on, ..Plan::default() }).await;
    let cell = format!("{on:?}, {rate:.0} posts/s, downstream down for 30 s");
    let outage = time / 2..time / 2 + OUTAGE;
    let (start, end) = (outage.start.as_secs(), outage.end.as_secs());
    let run = Endurance { time, outage: Some(outage) };
    let offer = Offer { rate: Some(rate), ..world.offer(CONNECTIONS) };
    let trace = traced(&run, &world, &offer, &cell).await;
    let row = report.row(group, cell);
    row.add("delivered/s", trace.delivered_rate(seconds(time)));
    row.add("most owed before the outage, s", trace.most_owed_in_seconds(0..start));
    let caught_up = trace.caught_up_at(end + 1);
    row.add("caught up after, s", caught_up.map_or(f64::INFINITY, |at| (at - end) as f64));
    let later = caught_up.unwrap_or(u64::MAX);
    row.add("most owed after that, s", trace.most_owed_in_seconds(later..u64::MAX));
    row.add("autovacuums", trace.autovacuums() as f64);
    row.add("posts refused", trace.refused as f64);
    row.add("resident MiB", world.gauge().resident_mib());
}

fn seconds(time: Duration) -> usize {
    usize::try_from(time.as_secs()).expect("not that long")
}

async fn traced(run: &Endurance, world: &World<'_>, offer: &Offer, cell: &str) -> Trace {
    println!("{cell}\n{}", Second::HEADER);
    let mut text = format!("{}\n", Second::HEADER);
    let trace = run
        .run(offer, &world.sink, &world.database, |second| {
            println!("{}", second.line());
            writeln!(text, "{}", second.line()).expect("memory");
        })
        .await;
    let target = program().ancestors().nth(2).expect("the program is in a target folder");
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = cell.to_lowercase().replace([' ', ',', '/'], "-");
    std::fs::write(folder.join(format!("endurance-{file}.txt")), text).expect("a file");
    trace
}
