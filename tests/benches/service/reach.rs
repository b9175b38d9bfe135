//! The measured figures that have a goal, compared with their floors and goals.

use crate::report::Report;
use std::fmt::Write as _;

/// A goal: its figure, its floor and its goal, and whether more is better.
struct Goal {
    what: &'static str,
    floor: f64,
    goal: f64,
    more_is_better: bool,
    measured: fn(&Report) -> Option<f64>,
}

const fn more(
    what: &'static str,
    floor: f64,
    goal: f64,
    measured: fn(&Report) -> Option<f64>,
) -> Goal {
    Goal { what, floor, goal, more_is_better: true, measured }
}

const fn less(
    what: &'static str,
    floor: f64,
    goal: f64,
    measured: fn(&Report) -> Option<f64>,
) -> Goal {
    Goal { what, floor, goal, more_is_better: false, measured }
}

const GOALS: [Goal; 18] = [
    more("intake at 64 connections ÷ single-row inserts at 64 clients", 1.0, 1.6, |r| {
        r.median("intake", "intake, 64 connections", "÷ inserts")
    }),
    more("intake at 256 connections ÷ the best of single-row inserts", 1.4, 2.0, |r| {
        let inserts = |connections: u32| {
            r.median("intake", &format!("intake, {connections} connections"), "inserts/s")
        };
        Some(
            r.median("intake", "intake, 256 connections", "posts/s")?
                / inserts(16)?.max(inserts(64)?),
        )
    }),
    less("a post's latency at 1 connection ÷ an insert's", 2.4, 1.6, |r| {
        Some(
            r.median("intake", "intake, 1 connections", "ack p50 ms")?
                / r.median("intake", "intake, 1 connections", "insert ms")?,
        )
    }),
    more("intake on SQLite ÷ on PostgreSQL, 64 connections", 1.0, 1.5, |r| {
        let rate = |group| r.median(group, "intake, 64 connections", "posts/s");
        Some(rate("sqlite")? / rate("intake")?)
    }),
    less("acknowledged at 50 % of the peak rate, p99, ms", 25.0, 5.0, |r| {
        r.median("sustained", "end to end, 50 % of the peak rate", "ack p99 ms")
    }),
    more("drain ÷ single-row inserts at 64 clients", 0.8, 1.2, |r| {
        r.median("drain", "drain of 200000", "÷ inserts")
    }),
    more("end to end, posts/s", 8_000.0, 14_000.0, |r| {
        r.median("sustained", "end to end, peak rate", "posts/s")
    }),
    less("from post to sink at 100/s, p50, ms", 3.0, 1.5, |r| {
        r.median("rest", "100 posts/s, Postgres", "to sink p50 ms")
    }),
    less("from post to sink at 100/s, p99, ms", 8.0, 4.0, |r| {
        r.median("rest", "100 posts/s, Postgres", "to sink p99 ms")
    }),
    less("statements an event at 90 % of the peak rate", 0.3, 0.05, |r| {
        r.median("sustained", "end to end, 90 % of the peak rate", "statements/event")
    }),
    less("write-ahead log an event, KiB", 2.7, 2.1, |r| {
        Some(
            r.median("sustained", "end to end, 90 % of the peak rate", "WAL bytes/event")? / 1024.0,
        )
    }),
    less("claim at 5 M stored and 1 M due ÷ empty", 1.5, 1.2, |r| {
        let claim = |cell| r.median("growth", cell, "claim µs/event");
        Some(claim("5 M stored, 1 M due")? / claim("nothing stored")?)
    }),
    less("resident at 90 % of the peak rate, MiB", 128.0, 48.0, |r| {
        r.median("sustained", "end to end, 90 % of the peak rate", "resident MiB")
    }),
    less("idle: statements a minute", 150.0, 30.0, |r| {
        r.median("idle", "nothing to do", "statements a minute")
    }),
    less("idle: CPU, %", 1.0, 0.2, |r| r.median("idle", "nothing to do", "service CPU %")),
    more("three processes ÷ one, to a sink that takes 50 ms", 2.5, 2.9, |r| {
        let rate = |processes: u32| {
            r.median(
                "processes",
                &format!("{processes} processes, a sink that takes 50 ms"),
                "delivered/s",
            )
        };
        Some(rate(3)? / rate(1)?)
    }),
    less("SQLite: acknowledged at 50 % of the peak rate, p99, ms", 25.0, 5.0, |r| {
        r.median("sqlite", "end to end, 50 % of the peak rate", "ack p99 ms")
    }),
    more("SQLite: end to end, posts/s", 8_000.0, 14_000.0, |r| {
        r.median("sqlite", "end to end, peak rate", "posts/s")
    }),
];

/// The measured goals as a table.
pub(crate) fn table(report: &Report) -> String {
    let mut text = "| what | floor | goal | measured | |\n|---|--:|--:|--:|---|\n".to_owned();
    for goal in GOALS {
        let Some(measured) = (goal.measured)(report) else { continue };
        let reaches =
            |mark: f64| if goal.more_is_better { measured >= mark } else { measured <= mark };
        let verdict = if reaches(goal.goal) {
            "goal"
        } else if reaches(goal.floor) {
            "floor"
        } else {
            "**below**"
        };
        writeln!(
            text,
            "| {} | {} | {} | {measured:.2} | {verdict} |",
            goal.what, goal.floor, goal.goal
        )
        .expect("memory");
    }
    text
}
