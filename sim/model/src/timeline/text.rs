//! The timeline as text: one line for each moment.

use super::story::{MomentKind, Row, Story};
use super::words::{seconds, span};
use std::fmt::Write;
use std::time::Duration;

/// Idle time from this length on gets its own line.
const SILENCE: Duration = Duration::from_secs(5);

pub(super) fn render(story: &Story<'_>, most: usize) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string cannot fail");
    if story.violations.is_empty() {
        line("No promise was broken.".to_owned());
    }
    for (_, violation, more) in story.first_of_each_promise() {
        line(format!("BROKEN PROMISE [{:?}]: {}", violation.promise, violation.promise.in_words()));
        line(format!("  at {}: {}", seconds(violation.at), story.index.plain(&violation.what)));
        for wrong in story.wrong_at(violation.at) {
            line(format!("  active fault: {wrong}"));
        }
        if more > 0 {
            line(format!("  and {more} more times"));
        }
    }
    let named: Vec<_> = if story.in_full.is_empty() {
        story.index.events.clone()
    } else {
        story.index.events.iter().filter(|event| story.in_full.contains(event)).copied().collect()
    };
    line(String::new());
    for event in named.iter().take(EVENTS_MAX) {
        line(story.event_words(*event));
    }
    if named.len() > EVENTS_MAX {
        line(format!("and {} more events", named.len() - EVENTS_MAX));
    }
    line("#2 is an event's second attempt, p3 is a producer's request; a GET with the same result as the one before is left out".to_owned());
    line(String::new());

    let rows = story.rows(most);
    let names = story.moments.iter().map(|moment| moment.lane.to_string().chars().count());
    let width = names.max().unwrap_or(0);
    let mut last = None;
    for row in rows {
        match row {
            Row::LeftOut(count) => {
                line(format!("               ··· {count} left out ···"));
                last = None;
            }
            Row::Moment(moment) => {
                let silence = last.map_or(Duration::ZERO, |last| moment.at.saturating_sub(last));
                if silence >= SILENCE {
                    line(format!("               ··· {} ···", span(silence)));
                }
                last = Some(moment.at);
                let (mark, lane) = match moment.kind {
                    MomentKind::Broken(_) => (">>>", String::new()),
                    MomentKind::Fault => (" ! ", moment.lane.to_string()),
                    MomentKind::Step => ("   ", moment.lane.to_string()),
                };
                let lane = if lane.is_empty() {
                    lane
                } else {
                    format!("{:width$}  ", story.index.plain(&lane))
                };
                line(format!("{mark}{:>10}  {lane}{}", seconds(moment.at), moment.text));
            }
        }
    }
    out
}

/// Limit of events that are listed before the timeline.
const EVENTS_MAX: usize = 100;
