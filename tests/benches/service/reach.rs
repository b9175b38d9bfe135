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

const GOALS: [Goal; 20] = [
    less("planning, share of the statements' time end to end", 0.05, 0.01, |r| {
        r.median("planning", "end to end, as fast as answers come", "planning ÷ all")
    }),
    more("end to end ÷ single-row inserts at 64 clients", 0.75, 0.95, |r| {
        r.median("sustained", "end to end, peak rate", "÷ inserts")
    }),
    more("intake at 64 connections ÷ single-row inserts at 64 clients", 1.6, 2.0, |r| {
        r.median("intake", "intake, 64 connections", "÷ inserts")
    }),
    more("intake at 256 connections ÷ the best of single-row inserts", 2.0, 2.5, |r| {
        let inserts = |connections: u32| {
            r.median("intake", &format!("intake, {connections} connections"), "inserts/s")
        };
        Some(
            r.median("intake", "intake, 256 connections", "posts/s")?
                / inserts(16)?.max(inserts(64)?),
        )
    }),
    less("a post's latency at 1 connection ÷ an insert's", 1.6, 1.3, |r| {
        Some(
            r.median("intake", "intake, 1 connections", "ack p50 ms")?
                / r.median("intake", "intake, 1 connections", "insert ms")?,
        )
    }),
    more("drain ÷ single-row inserts at 64 clients", 1.5, 1.8, |r| {
        r.median("drain", "drain of 200000", "÷ inserts")
    }),
    more("end to end on SQLite ÷ on PostgreSQL", 1.0, 1.3, |r| {
        let rate = |group| {
            r.median(group, "end to end, peak rate", "delivered/s, as fast as answers come")
        };
        Some(rate("sqlite")? / rate("sustained")?)
    }),
    less(
        "acknowledged at 50 % of the peak rate, p99 ÷ an insert's p99 at that rate",
        2.0,
        1.2,
        |r| r.median("sustained", "end to end, 50 % of the peak rate", "ack p99 ÷ insert p99"),
    ),
    more("PostgreSQL, with retention ÷ without", 0.8, 0.95, |r| {
        r.median("steady", "Postgres, with retention ÷ without", "delivered/s")
    }),
    more("SQLite, with retention ÷ without", 0.8, 0.95, |r| {
        r.median("steady", "Sqlite, with retention ÷ without", "delivered/s")
    }),
    less("eight processes ÷ one, CPU an event", 1.3, 1.1, |r| {
        let micros = |processes: u32| {
            r.median("scaling", &format!("{processes} processes, 2,000 posts/s"), "CPU µs/event")
        };
        Some(micros(8)? / micros(1)?)
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
    less("resident, 1,000 sources, more load than is delivered, MiB", 96.0, 64.0, |r| {
        let cell = "1000 sources, load beyond the deliveries, answered at once";
        r.median("memory", cell, "resident MiB")
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
