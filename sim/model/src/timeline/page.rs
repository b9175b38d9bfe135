//! The HTML page around the drawing: the violations, the events, the legend, and collapsed
//! sections.

use super::ROWS_MAX;
use super::draw::{Drawing, draw};
use super::story::Story;
use super::words::{Lane, seconds};
use std::fmt::Write;
use surehook_core::id::EventId;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// The legend of the drawing.
const SIGNS: &str = include_str!("signs.html");

pub(super) fn render(
    story: &Story<'_>,
    everything: &str,
    title: &str,
    scenario_toml: &str,
    rerun: &str,
) -> String {
    let Drawing { svg, heads, width } = draw(story, ROWS_MAX);
    let mut out = String::new();
    let mut put = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    put(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{0}</title>\n<style>\n{STYLE}</style>\n<h1>{0}</h1>",
        escaped(&story.index.plain(title))
    ));
    put(broken(story));
    put(format!("<p class=\"rerun\">Repeat this run: <code>{}</code></p>", escaped(rerun)));
    put(events(story));
    put(SIGNS.to_owned());
    put(format!("<div class=\"drawing\" style=\"width:{width:.0}px\">\n<div class=\"heads\">"));
    for head in &heads {
        let left = head.x - head.width / 2.0;
        let name = if let Lane::Downstream(source) = &head.lane {
            format!("<small>downstream</small><br>{}", escaped(&story.index.plain(source)))
        } else {
            escaped(&story.index.plain(&head.lane.to_string()))
        };
        put(format!("<span style=\"left:{left:.0}px;width:{:.0}px\">{name}</span>", head.width));
    }
    put("</div>".to_owned());
    put(svg);
    put("</div>".to_owned());
    put(folded("Scenario", scenario_toml));
    let all: Vec<String> = story
        .violations
        .iter()
        .map(|violation| story.index.plain(&violation.to_string()))
        .collect();
    put(folded(&format!("All broken promises ({})", all.len()), &all.join("\n")));
    put(folded("The whole history as text", everything));
    put(format!("<script>\n{SCRIPT}</script>\n</html>"));
    out
}

fn broken(story: &Story<'_>) -> String {
    let mut out = String::new();
    let mut put = |text: String| writeln!(out, "{text}").expect("writing to a string cannot fail");
    if story.violations.is_empty() {
        put("<p>No promise was broken.</p>".to_owned());
    }
    for (number, violation, more) in story.first_of_each_promise() {
        let what = escaped(&story.index.plain(&violation.what));
        put("<section class=\"broken\">".to_owned());
        put(format!(
            "<p><b>Broken promise: {}.</b> <small>{:?}</small></p>",
            escaped(violation.promise.in_words()),
            violation.promise
        ));
        put(format!("<p>At <a href=\"#v{number}\">{}</a>: {what}</p>", seconds(violation.at)));
        let wrong = story.wrong_at(violation.at);
        if !wrong.is_empty() {
            put(format!("<p><small>Active faults: {}</small></p>", escaped(&wrong.join("; "))));
        }
        if more > 0 {
            put(format!("<p><small>Broken {more} more times; see the list below.</small></p>"));
        }
        put("</section>".to_owned());
    }
    out
}

/// The events that are shown in full, and a collapsed list of the others.
fn events(story: &Story<'_>) -> String {
    let (full, others): (Vec<_>, Vec<_>) =
        story.index.events.iter().copied().partition(|event| story.is_in_full(&[*event]));
    let mut out = "<ul class=\"events\">\n".to_owned();
    let (shown, rest) = full.split_at(full.len().min(8));
    for event in shown {
        let colour = story
            .colour(&[*event])
            .map_or_else(String::new, |colour| format!(" class=\"c{colour}\""));
        let name = escaped(&story.index.short(*event));
        writeln!(out, "<li{colour} data-e=\"{name}\">{}</li>", escaped(&story.event_words(*event)))
            .expect("writing to a string cannot fail");
    }
    out.push_str("</ul>\n");
    let (stored, never): (Vec<EventId>, Vec<EventId>) =
        rest.iter().chain(&others).copied().partition(|event| story.run.events.contains_key(event));
    let mut others: Vec<String> =
        stored.into_iter().map(|event| story.event_words(event)).collect();
    if !never.is_empty() {
        others.push(format!("and {} that were not in the database at the end", never.len()));
    }
    if !others.is_empty() {
        out.push_str(&folded(&format!("The other events ({})", others.len()), &others.join("\n")));
    }
    out
}

fn folded(title: &str, text: &str) -> String {
    format!("<details><summary>{}</summary><pre>{}</pre></details>", escaped(title), escaped(text))
}

/// Escapes a text for HTML and XML, including attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(character),
            control if control.is_control() => out.extend(control.escape_default()),
            other => out.push(other),
        }
    }
    out
}
