//! Capacity over many minutes, across autovacuums and checkpoints: all of a run without a fault, and one in the middle of
//! which the downstream is down.

use crate::report::Report;
use crate::world::{On, Plan, World, start_enduring_server};
use std::fmt::Write as _;
use std::time::Duration;
use tests::load::endurance::{Endurance, Second};
use tests::program::program;

/// Connections that post as fast as answers come.
const CONNECTIONS: usize = 64;
/// How long the downstream answers 503 in the second run.
const OUTAGE: Duration = Duration::from_secs(30);
/// How long a rate must hold to be called the capacity.
const CAPACITY_SECONDS: usize = 300;

/// Runs all four, prints each second, and writes the seconds of each run to a file in `target/bench/`.
pub(crate) async fn measure(report: &mut Report, group: &'static str, time: Duration) {
    for on in [On::Postgres, On::Sqlite] {
        for with_outage in [false, true] {
            // A server of its own: nothing is left of the run before.
            let cluster = start_enduring_server();
            let world = World::start(&cluster, Plan { on, ..Plan::default() }).await;
            let outage = with_outage.then(|| time / 2..time / 2 + OUTAGE);
            let cell = format!(
                "{on:?}, 64 connections{}",
                if with_outage { ", downstream down for 30 s" } else { "" }
            );
            println!("{cell}\n{}", Second::HEADER);
            let mut text = format!("{}\n", Second::HEADER);
            let run = Endurance { time, outage: outage.clone() };
            let trace = run
                .run(&world.offer(CONNECTIONS), &world.sink, &world.database, |second| {
                    println!("{}", second.line());
                    writeln!(text, "{}", second.line()).expect("memory");
                })
                .await;
            let folder = program()
                .ancestors()
                .nth(2)
                .expect("the program is in a target folder")
                .join("bench");
            std::fs::create_dir_all(&folder).expect("a folder");
            let file = format!("endurance-{on:?}{}.txt", if with_outage { "-outage" } else { "" })
                .to_lowercase();
            std::fs::write(folder.join(file), text).expect("a file");
            let row = report.row(group, cell);
            row.add("delivered/s in the first 5 min", trace.delivered_rate(CAPACITY_SECONDS));
            row.add(
                "delivered/s",
                trace.delivered_rate(usize::try_from(time.as_secs()).expect("not that long")),
            );
            row.add(
                "most owed, s",
                trace.most_owed_in_seconds(
                    0..outage.as_ref().map_or(u64::MAX, |outage| outage.start.as_secs()),
                ),
            );
            if let Some(outage) = outage {
                let end = outage.end.as_secs();
                row.add("most owed after the outage, s", trace.most_owed_in_seconds(end..u64::MAX));
                row.add(
                    "caught up after, s",
                    trace.caught_up_at(end + 1).map_or(f64::INFINITY, |at| (at - end) as f64),
                );
            }
            row.add("autovacuums", trace.autovacuums() as f64);
            row.add("resident MiB", world.gauge().resident_mib());
        }
    }
}
