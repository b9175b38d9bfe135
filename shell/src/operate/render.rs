//! Responses of a service as text for a terminal.
//!
//! All text from outside (keys, excerpts, every string of a response) passes through [`escaped`],
//! so that it cannot control the terminal.

use super::table::{Column, fitted, plain, written};
use crate::config::coarse;
use crate::search::BEGINNING_BYTES;
use crate::visible::{escaped, lines, quoted};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use comfy_table::CellAlignment;
use serde_json::Value;
use std::fmt::Write;
use std::time::Duration;

/// The characters of an excerpt or a key that are shown.
const SHORT: usize = 40;

/// A list of events, newest first.
pub(super) fn events(events: &[Value], next: Option<&str>, width: Option<usize>) -> String {
    if events.is_empty() && next.is_none() {
        return "no event matches".to_owned();
    }
    let column =
        |header, cell: &dyn Fn(&Value) -> String| Column::new(header, events.iter().map(cell));
    let next_or_end = |event: &Value| {
        let when = event["next_attempt_at"].as_str().or(event["settled_at"].as_str());
        when.map_or_else(|| "-".to_owned(), to_the_second)
    };
    let last = |event: &Value| match &event["last_attempt"] {
        Value::Null => "-".to_owned(),
        attempt => result(attempt),
    };
    let columns = vec![
        column("EVENT", &|event| text(&event["event_id"])),
        column("SOURCE", &|event| text(&event["source"])).ranked(6).at_least(8),
        column("KEY", &|event| short(&text(&event["idempotency_key"]))).ranked(5).at_least(9),
        column("STATUS", &standing),
        column("ATTEMPTS", &attempts).ranked(2),
        column("RECEIVED", &|event| time(&event["received_at"])).ranked(3),
        column("NEXT / ENDED", &next_or_end).ranked(1),
        column("LAST ATTEMPT", &last).at_least(13),
        column("RESPONSE", &|event| excerpt(&event["last_attempt"])).ranked(4).at_least(10),
    ];
    let mut out = fitted(columns, width);
    if let Some(next) = next {
        let _ = write!(out, "\nthere may be more events: continue with --after {}", escaped(next));
    }
    out
}

/// One event, its attempts and its actions. Of its request, if there is one, the destination and the size, and with
/// `with_request` all but the body.
pub(super) fn event(
    event: &Value,
    request: Option<&Value>,
    with_request: bool,
    redrive_url: &str,
) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14}{value}");
    };
    line("event", text(&event["event_id"]));
    line("source", text(&event["source"]));
    if let Some(request) = request {
        line(
            "destination",
            match request["destination"].as_str() {
                Some(url) => escaped(url),
                None => "unknown: the source is not configured".to_owned(),
            },
        );
    }
    line("key", text(&event["idempotency_key"]));
    line("status", standing(event));
    line("attempts", attempts(event));
    if !event["next_attempt_at"].is_null() {
        line("next attempt", time(&event["next_attempt_at"]));
    }
    if let Some(request) = request {
        line("body", body(request));
        if with_request {
            for (name, value) in parts(request) {
                line(name, value);
            }
        }
    }
    let mut table = plain(&["WHEN", "", "TOOK", "", ""]);
    table.add_row([
        time(&event["received_at"]),
        "received".to_owned(),
        String::new(),
        String::new(),
        String::new(),
    ]);
    // Each action is shown before the first attempt that came after it.
    let mut actions = event["actions"].as_array().into_iter().flatten().peekable();
    let acted = |action: &Value| {
        let (at, done) = (time(&action["at"]), action_done(action));
        [at, done, String::new(), String::new(), String::new()]
    };
    for attempt in event["history"].as_array().into_iter().flatten() {
        let is_before = |action: &&Value| action["attempts"].as_u64() < attempt["attempt"].as_u64();
        while let Some(action) = actions.next_if(is_before) {
            table.add_row(acted(action));
        }
        table.add_row([
            if attempt["started_at"].is_null() {
                "-".to_owned()
            } else {
                time(&attempt["started_at"])
            },
            format!("attempt {}", text(&attempt["attempt"])),
            attempt["duration_ms"].as_f64().map_or_else(|| "-".to_owned(), milliseconds),
            result(attempt),
            excerpt(attempt),
        ]);
    }
    let mut actions: Vec<&Value> = actions.collect();
    // A dead letter that is discarded keeps the time when it ended.
    let last = actions.pop_if(|action| {
        action["action"] == "discarded" && event["settled_at"].as_str() < action["at"].as_str()
    });
    for action in actions {
        table.add_row(acted(action));
    }
    if !event["settled_at"].is_null() {
        table.add_row([
            time(&event["settled_at"]),
            standing(event),
            String::new(),
            String::new(),
            String::new(),
        ]);
    }
    if let Some(action) = last {
        table.add_row(acted(action));
    }
    if let Some(took) = table.column_mut(2) {
        took.set_cell_alignment(CellAlignment::Right);
    }
    let _ = write!(out, "\n{}{}", written(&table), responses(event));
    let delivered = match event["status"].as_str() {
        Some("dead_lettered") => Some(("", "")),
        Some("delivered") => Some((" --delivered", "?delivered=true")),
        _ => None,
    };
    if let Some((flag, query)) = delivered {
        let _ = write!(
            out,
            "\nsend it again:  surehook events redrive {}{flag}\n           or:  curl -X POST {}",
            text(&event["event_id"]),
            quoted(&format!("{redrive_url}{query}"))
        );
    }
    out
}

/// The kept part of each response that the timeline cuts off. Equal responses to consecutive attempts
/// are shown once.
fn responses(event: &Value) -> String {
    let attempts = event["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut shown = String::new();
    for same in attempts.chunk_by(|one, next| one["excerpt"] == next["excerpt"]) {
        let (first, last) = (&same[0], &same[same.len() - 1]);
        let whole = first["excerpt"].as_str().unwrap_or_default();
        if first["excerpt_base64"] == true || escaped(whole).chars().count() <= SHORT {
            continue;
        }
        let first = text(&first["attempt"]);
        let of = match same.len() {
            1 => format!("attempt {first}"),
            _ => format!("attempts {first} to {}", text(&last["attempt"])),
        };
        let _ = writeln!(shown, "\nresponse to {of}:");
        for line in lines(whole.trim_end()).split('\n') {
            let _ = writeln!(shown, "{}", format!("  {line}").trim_end());
        }
    }
    shown
}

/// The failures of undelivered events, in groups.
pub(super) fn summary(shown: &Value, is_of_one_source: bool, width: Option<usize>) -> String {
    let groups = shown["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut out = if groups.is_empty() {
        "no undelivered event has failed\n".to_owned()
    } else {
        let count = |group: &Value, name: &str| {
            let more = if group["at_least"] == true { "+" } else { "" };
            format!("{}{more}", text(&group[name]))
        };
        let column =
            |header, cell: &dyn Fn(&Value) -> String| Column::new(header, groups.iter().map(cell));
        let time = |value: &Value| value.as_str().map_or_else(|| text(value), to_the_second);
        let columns = vec![
            column("EVENTS", &|group| count(group, "events")).of_numbers(),
            column("DEAD", &|group| count(group, "dead_lettered")).of_numbers().ranked(3),
            column("SOURCE", &|group| text(&group["source"])).at_least(12),
            column("FAILURE", &result).at_least(14),
            column("RESPONSE", &beginning).ranked(4).at_least(10),
            column("FIRST", &|group| time(&group["first_at"])).ranked(1),
            column("LAST", &|group| time(&group["last_at"])).ranked(2),
            column("EXAMPLE", &|group| text(&group["example"])),
        ];
        fitted(columns, width)
    };
    if shown["more_groups"] == true {
        out.push_str("\nthere are more groups, all of them smaller\n");
    }
    for source in shown["partial"].as_array().into_iter().flatten() {
        let source = text(source);
        let _ = write!(out, "\n{source} has more undelivered events than were examined. ");
        if !is_of_one_source {
            let _ = write!(out, "`surehook summary --source {source}` can examine more of them, ");
        }
        out.push_str("`surehook sources` counts them\n");
    }
    out
}

/// The size and the media type of a stored body.
fn body(request: &Value) -> String {
    if !request["erased_at"].is_null() {
        return format!("erased at {}", time(&request["erased_at"]));
    }
    let size = format!("{} bytes", text(&request["size"]));
    match request["content_type"].as_str() {
        Some(kind) => format!("{size}, {}", escaped(kind)),
        None => size,
    }
}

/// The parts of a stored request without its body, each with its name.
fn parts(request: &Value) -> Vec<(&'static str, String)> {
    let mut parts = vec![("sha256", text(&request["sha256"]))];
    if !request["erased_at"].is_null() {
        return parts;
    }
    parts.push(("method", text(&request["method"])));
    if request["query"] != "" {
        parts.push(("query", text(&request["query"])));
    }
    for header in request["headers"].as_array().into_iter().flatten() {
        let coding = if header["value_base64"] == true { " (base64)" } else { "" };
        let (name, value) = (text(&header["name"]), text(&header["value"]));
        parts.push(("header", format!("{name}: {value}{coding}")));
    }
    parts
}

/// The work of every source.
pub(super) fn sources(shown: &Value) -> String {
    let sources = shown["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut table = plain(&[
        "SOURCE",
        "QUEUED",
        "PROCESSING",
        "RETRYING",
        "DEAD",
        "BEHIND",
        "RETRIES LAST",
        "",
    ]);
    for source in sources {
        let is_more = source["at_least"] == true;
        let count = |name: &str| {
            let number = source[name].as_u64().unwrap_or(0);
            if is_more && number > 0 { format!("{number}+") } else { number.to_string() }
        };
        let mut notes = Vec::new();
        if let Some(since) = source["paused_since"].as_str() {
            notes.push(format!("paused since {}", to_the_second(since)));
        }
        if let Some(state) =
            source["this_process"]["breaker"].as_str().filter(|state| *state != "closed")
        {
            notes.push(format!("breaker {}", escaped(&state.replace('_', " "))));
        }
        if source["configured"] == false {
            notes.push("not configured: waiting events are kept until it is configured".to_owned());
        }
        table.add_row([
            text(&source["source"]),
            count("queued"),
            count("processing"),
            count("retrying"),
            count("dead_lettered"),
            source["behind_seconds"].as_f64().map_or_else(|| "-".to_owned(), seconds),
            retries(&source["retries_last_seconds"]),
            notes.join("; "),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut out = written(&table);
    if shown["delivers"] == false {
        out.push_str(
            "\nThis process only accepts webhooks (role `intake`) and has no circuit breakers. Each worker process has its\n\
             own: `surehook sources --url URL` with the address of a worker shows them.\n",
        );
    }
    out
}

/// How long the retries of an event take if each attempt fails.
fn retries(last: &Value) -> String {
    let duration = |name: &str| {
        let seconds = last[name].as_f64()?;
        Duration::try_from_secs_f64(seconds).ok()
    };
    match (duration("shortest"), duration("longest")) {
        (_, Some(Duration::ZERO)) => "no retries".to_owned(),
        (Some(shortest), Some(longest)) => format!("{} to {}", coarse(shortest), coarse(longest)),
        _ => "-".to_owned(),
    }
}

fn standing(event: &Value) -> String {
    match event["reason"].as_str() {
        Some(reason) => format!("{} ({})", text(&event["status"]), escaped(reason)),
        None => text(&event["status"]),
    }
}

fn action_done(action: &Value) -> String {
    match action["action"].as_str() {
        Some("redriven") => "redriven by an operator".to_owned(),
        Some("redriven_by_replay") => "redriven by a replay".to_owned(),
        Some("discarded") => "discarded by an operator".to_owned(),
        _ => text(&action["action"]),
    }
}

fn attempts(event: &Value) -> String {
    match event["max_attempts"].as_u64() {
        // The retry budget of an event that was delivered after a redrive is no longer known.
        Some(most) if event["attempts"].as_u64() <= Some(most) => {
            format!("{} of {most}", text(&event["attempts"]))
        }
        Some(_) | None => text(&event["attempts"]),
    }
}

/// The result of an attempt: its verdict, with the status code or the error.
fn result(attempt: &Value) -> String {
    let verdict = text(&attempt["verdict"]);
    match (attempt["status_code"].as_u64(), attempt["error"].as_str()) {
        (Some(code), None) => format!("{code} {verdict}"),
        (Some(code), Some(error)) => format!("{code} {verdict}: {}", escaped(error)),
        (None, Some(error)) => format!("{verdict}: {}", escaped(error)),
        (None, None) => verdict,
    }
}

/// The beginning of the responses of a group, with an ellipsis if it is as long as it can be. A
/// character of up to four bytes at its end can be missing.
fn beginning(group: &Value) -> String {
    let is_cut = group["excerpt"].as_str().is_some_and(|text| {
        text.len() >= if text.is_ascii() { BEGINNING_BYTES } else { BEGINNING_BYTES - 3 }
    });
    let more = if is_cut { "…" } else { "" };
    format!("{}{more}", excerpt(group))
}

fn excerpt(attempt: &Value) -> String {
    let shown = attempt["excerpt"].as_str().unwrap_or_default();
    if attempt["excerpt_base64"] == true {
        return match STANDARD.decode(shown) {
            Ok(bytes) => format!("({} bytes, not text)", bytes.len()),
            Err(_) => String::new(),
        };
    }
    short(&escaped(shown))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => escaped(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A time with milliseconds.
fn time(value: &Value) -> String {
    value
        .as_str()
        .and_then(|text| text.get(..23))
        .map_or_else(|| text(value), |text| escaped(&text.replace('T', " ")))
}

fn to_the_second(time: &str) -> String {
    escaped(&time.get(..19).unwrap_or(time).replace('T', " "))
}

pub(super) fn milliseconds(took: f64) -> String {
    if took < 1000.0 { format!("{took:.1} ms") } else { format!("{:.1} s", took / 1000.0) }
}

fn seconds(behind: f64) -> String {
    if behind < 60.0 {
        return format!("{behind:.1} s");
    }
    let whole = Duration::from_secs_f64(behind.round());
    humantime::format_duration(whole).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_shown_as_a_timeline() {
        let shown = event(
            &json!({
                "event_id": "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e", "source": "github", "idempotency_key": "k\u{1b}[2J",
                "status": "dead_lettered", "attempts": 2, "max_attempts": 2, "received_at": "2026-11-25T00:00:00.123456Z",
                "next_attempt_at": null, "settled_at": "2026-11-25T00:00:07.000000Z", "reason": "exhausted",
                "history": [
                    {"attempt": 1, "started_at": "2026-11-25T00:00:00.200000Z", "duration_ms": 12.4, "verdict": "transient", "status_code": 503, "error": null, "excerpt": "try\nlater"},
                    {"attempt": 2, "started_at": null, "duration_ms": null, "verdict": "lost", "status_code": null, "error": null, "excerpt": ""},
                ],
            }),
            None,
            false,
            "http://127.0.0.1:8080/events/0199c2f0/redrive",
        );
        let expected = "\
event         0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e
source        github
key           k\\u{1b}[2J
status        dead_lettered (exhausted)
attempts      2 of 2

WHEN                                                   TOOK
2026-11-25 00:00:00.123  received
2026-11-25 00:00:00.200  attempt 1                  12.4 ms  503 transient  try\\nlater
-                        attempt 2                        -  lost
2026-11-25 00:00:07.000  dead_lettered (exhausted)

send it again:  surehook events redrive 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e
           or:  curl -X POST 'http://127.0.0.1:8080/events/0199c2f0/redrive'";
        assert_eq!(shown, expected, "\n{shown}");
    }

    #[test]
    fn redrives_and_discards_are_shown_in_the_timeline() {
        let attempt = |attempt: u32, second: u32| json!({"attempt": attempt, "started_at": format!("2026-11-25T00:00:0{second}.000000Z"), "duration_ms": 1.0, "verdict": "permanent", "status_code": 422, "excerpt": ""});
        let action = |action: &str, second: u32, attempts: u32| json!({"action": action, "at": format!("2026-11-25T00:00:0{second}.000000Z"), "attempts": attempts});
        let lost = json!({"attempt": 2, "started_at": null, "duration_ms": null, "verdict": "lost", "excerpt": ""});
        let mut one = json!({
            "event_id": "0199c2f0", "status": "dead_lettered", "reason": "discarded", "received_at": "2026-11-25T00:00:00.000000Z",
            "settled_at": "2026-11-25T00:00:06.000000Z", "history": [attempt(1, 1), lost, attempt(3, 5)],
            "actions": [
                action("redriven", 2, 1), action("discarded", 3, 2), action("redriven_by_replay", 4, 2),
                action("discarded", 7, 3),
            ],
        });
        let timeline = |one: &Value| {
            let shown = event(one, None, false, "");
            let rows = shown.lines().skip_while(|line| !line.starts_with("WHEN")).skip(1);
            let rows = rows.take_while(|line| !line.is_empty());
            let brief = |row: &str| {
                let (_, what) = row.split_at(25);
                let seconds = row.get(17..19).unwrap_or("-");
                format!("{seconds} {}", what.split("  ").next().unwrap_or_default())
            };
            rows.map(brief).collect::<Vec<_>>()
        };
        let mut expected = vec![
            "00 received",
            "01 attempt 1",
            "02 redriven by an operator",
            "   attempt 2",
            "03 discarded by an operator",
            "04 redriven by a replay",
            "05 attempt 3",
            "06 dead_lettered (discarded)",
            "07 discarded by an operator",
        ];
        assert_eq!(timeline(&one), expected);

        // An event that was waiting is a dead letter because of the discard.
        one["settled_at"] = json!("2026-11-25T00:00:07.000000Z");
        expected.truncate(7);
        expected.extend(["07 discarded by an operator", "07 dead_lettered (discarded)"]);
        assert_eq!(timeline(&one), expected);
    }

    #[test]
    fn a_response_that_the_timeline_cuts_off_is_shown_completely() {
        let attempt = |attempt: u32, excerpt: &str| json!({"attempt": attempt, "verdict": "transient", "excerpt": excerpt});
        let long = format!("line 1\r\n\n  line 3 \u{1b}[2J {}", "x".repeat(1000));
        let mut other = attempt(5, &"/".repeat(60));
        other["excerpt_base64"] = json!(true);
        let one = json!({
            "event_id": "0199c2f0", "status": "queued",
            "history": [attempt(1, &long), attempt(2, &long), attempt(3, "short"), attempt(4, &long), other],
        });
        let shown = event(&one, None, false, "");
        let whole = format!("  line 1\\r\n\n    line 3 \\u{{1b}}[2J {}\n", "x".repeat(1000));
        let expected =
            format!("\nresponse to attempts 1 to 2:\n{whole}\nresponse to attempt 4:\n{whole}");
        assert!(shown.ends_with(&expected), "{shown}");
        assert_eq!(shown.matches("response to").count(), 2, "{shown}");
    }

    #[test]
    fn an_event_is_shown_with_its_request() {
        let one = json!({"event_id": "0199c2f0", "source": "github", "idempotency_key": "k", "status": "queued", "attempts": 0});
        let mut request = json!({
            "destination": "https://app.example/?…", "sha256": "44136f", "erased_at": null, "method": "POST", "query": "a=1",
            "content_type": "application/json", "size": 2,
            "headers": [{"name": "x-a", "value": "1"}, {"name": "x-b", "value": "/w==", "value_base64": true}],
        });
        let shown = |request: &Value, whole| {
            let shown = event(&one, Some(request), whole, "");
            shown.split("\n\n").next().unwrap().to_owned()
        };
        let brief = "\
event         0199c2f0
source        github
destination   https://app.example/?…
key           k
status        queued
attempts      0
body          2 bytes, application/json";
        assert_eq!(shown(&request, false), brief);
        let whole = "\nsha256        44136f\nmethod        POST\nquery         a=1\nheader        x-a: 1\nheader        x-b: /w== (base64)";
        assert_eq!(shown(&request, true), format!("{brief}{whole}"));

        request["erased_at"] = json!("2026-11-26T00:00:00.000000Z");
        request["destination"] = json!(null);
        let erased = shown(&request, true);
        for told in ["unknown: the source is not configured", "erased at 2026-11-26 00:00:00.000"] {
            assert!(erased.contains(told), "{told} is not in\n{erased}");
        }
        assert!(!erased.contains("header"), "{erased}");
    }

    #[test]
    fn no_text_of_a_response_controls_the_terminal() {
        let evil = "\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200f}\u{2028}";
        let attempt = json!({"attempt": 1, "started_at": evil, "verdict": evil, "error": evil, "excerpt": evil});
        let one = json!({
            "event_id": evil, "source": evil, "idempotency_key": evil, "status": evil, "reason": evil, "received_at": evil,
            "next_attempt_at": evil, "settled_at": evil, "history": [attempt], "actions": [{"action": evil, "at": evil}], "last_attempt": attempt, "attempts": evil,
            "configured": false, "paused_since": evil, "this_process": {"breaker": evil},
        });
        let stored = json!({
            "destination": evil, "sha256": evil, "erased_at": null, "method": evil, "query": evil, "content_type": evil,
            "size": evil, "headers": [{"name": evil, "value": evil}],
        });
        let shown = [
            event(&one, Some(&stored), true, "http://[::1]/"),
            events(std::slice::from_ref(&one), Some(evil), None),
            sources(&json!({"sources": [one]})),
            summary(
                &json!({"groups": [{
                    "source": evil, "verdict": evil, "error": evil, "excerpt": evil, "events": evil, "dead_lettered": evil,
                    "first_at": evil, "last_at": evil, "example": evil,
                }], "partial": [evil]}),
                false,
                None,
            ),
        ];
        for shown in shown {
            let harmful: Vec<char> = shown
                .chars()
                .filter(|one| evil.replace("[2J", "").replace("31m", "").contains(*one))
                .collect();
            assert!(shown.contains("202e") && harmful.is_empty(), "{harmful:?} in {shown:?}");
        }
    }

    #[test]
    fn a_delivered_event_is_shown_with_its_redrive_command() {
        let shown = event(
            &json!({"event_id": "0199c2f0", "status": "delivered", "history": []}),
            None,
            false,
            "http://[::1]:8080/events/0199c2f0/redrive",
        );
        assert!(shown.contains("surehook events redrive 0199c2f0 --delivered\n"), "{shown}");
        assert!(
            shown.ends_with(
                "curl -X POST 'http://[::1]:8080/events/0199c2f0/redrive?delivered=true'"
            ),
            "{shown}"
        );
        let waits = event(
            &json!({"event_id": "0199c2f0", "status": "queued", "history": []}),
            None,
            false,
            "",
        );
        assert!(!waits.contains("send it again"), "{waits}");
    }

    #[test]
    fn events_are_shown_in_a_table() {
        let shown = |width| {
            events(
                &[json!({
                    "event_id": "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e", "source": "github", "idempotency_key": "k".repeat(70),
                    "status": "retrying", "attempts": 1, "max_attempts": null, "received_at": "2026-11-25T00:00:00.123456Z",
                    "next_attempt_at": "2026-11-25T00:00:07.000000Z", "settled_at": null, "reason": null,
                    "last_attempt": {"attempt": 1, "verdict": "transient", "status_code": 503, "error": null, "excerpt": "try\nlater"},
                })],
                Some("0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"),
                width,
            )
        };
        let expected = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e  github  kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…  retrying  1         2026-11-25 00:00:00.123  2026-11-25 00:00:07  503 transient  try\\nlater";
        let whole = shown(None);
        assert_eq!(whole.lines().nth(1), Some(expected), "\n{whole}");
        assert!(whole.ends_with("continue with --after 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"));
        let narrow = shown(Some(80));
        let expected =
            "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e  github  kkkkkkkk…  retrying  503 transient";
        assert_eq!(narrow.lines().nth(1), Some(expected), "\n{narrow}");
        assert_eq!(events(&[], None, None), "no event matches");
    }

    #[test]
    fn groups_of_failures_are_shown_in_a_table() {
        let group = |source: &str, excerpt: &str, is_partial: bool| {
            json!({
                "source": source, "verdict": "permanent", "status_code": 422, "error": null, "excerpt": excerpt,
                "events": 600, "dead_lettered": 599, "at_least": is_partial, "first_at": "2026-11-25T00:00:00.123456Z",
                "last_at": "2026-11-25T00:10:00.123456Z", "example": "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e",
            })
        };
        let groups = json!([group("orders", "unknown\nfield", true), group("github", "", false)]);
        let shown = summary(
            &json!({"groups": groups, "more_groups": true, "partial": ["orders"]}),
            false,
            None,
        );
        let expected = "\
EVENTS  DEAD  SOURCE  FAILURE        RESPONSE        FIRST                LAST                 EXAMPLE
  600+  599+  orders  422 permanent  unknown\\nfield  2026-11-25 00:00:00  2026-11-25 00:10:00  0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e
   600   599  github  422 permanent                  2026-11-25 00:00:00  2026-11-25 00:10:00  0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e

there are more groups, all of them smaller

orders has more undelivered events than were examined. `surehook summary --source orders` can examine more of them, `surehook sources` counts them
";
        assert_eq!(shown, expected, "\n{shown}");
        for (response, told) in
            [("a".repeat(39), "a"), ("a".repeat(40), "a…"), ("é".repeat(19), "é…")]
        {
            let groups = json!([group("orders", &response, false)]);
            let shown = summary(
                &json!({"groups": groups, "more_groups": false, "partial": []}),
                false,
                None,
            );
            assert!(shown.contains(&format!("{told}  2026")), "{shown}");
        }
        let none = json!({"groups": [], "more_groups": false, "partial": []});
        assert_eq!(summary(&none, false, None), "no undelivered event has failed\n");
        let of_one = json!({"groups": [], "more_groups": false, "partial": ["orders"]});
        let told = summary(&of_one, true, None);
        assert!(told.ends_with("examined. `surehook sources` counts them\n"), "{told}");
    }

    #[test]
    fn sources_are_shown_in_a_table() {
        let source = |name: &str, configured: bool| {
            json!({
                "source": name, "configured": configured, "paused_since": (!configured).then_some("2026-11-25T00:00:00.000000Z"),
                "behind_seconds": if configured { json!(605.2) } else { json!(null) },
                "queued": 1000, "processing": 16, "retrying": 0, "dead_lettered": 3, "at_least": configured,
                "retries_last_seconds": configured.then(|| json!({"shortest": 250_000.0, "longest": 500_000.5})),
                "this_process": if configured { json!({"breaker": "half_open"}) } else { json!(null) },
            })
        };
        let both = json!([source("github", true), source("gone", false)]);
        let shown = sources(&json!({"delivers": true, "sources": both}));
        let expected = "\
SOURCE  QUEUED  PROCESSING  RETRYING  DEAD  BEHIND  RETRIES LAST
github   1000+         16+         0    3+  10m 5s  2days 21h to 5days 18h  breaker half open
gone      1000          16         0     3       -  -                       paused since 2026-11-25 00:00:00; not configured: waiting events are kept until it is configured
";
        assert_eq!(shown, expected, "\n{shown}");
        let of_intake = sources(&json!({"delivers": false, "sources": both}));
        let (table, note) = of_intake.split_once("\n\n").unwrap();
        assert_eq!(format!("{table}\n"), expected);
        assert!(
            note.contains("`surehook sources --url URL` with the address of a worker"),
            "{note}"
        );
    }

    #[test]
    fn the_duration_of_retries_is_shown_in_two_units() {
        let of = |shortest: f64, longest: f64| {
            retries(&json!({"shortest": shortest, "longest": longest}))
        };
        assert_eq!(of(3.5, 7.0), "3s to 7s");
        assert_eq!(of(0.0, 0.0), "no retries");
        assert_eq!(of(-1.0, 1e300), "-");
        assert_eq!(retries(&json!(null)), "-");
    }

    #[test]
    fn an_excerpt_that_is_not_text_shows_only_its_size() {
        assert_eq!(
            excerpt(&json!({"excerpt": "/wA=", "excerpt_base64": true})),
            "(2 bytes, not text)"
        );
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
