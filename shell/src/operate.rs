//! The commands for operators: list, show, send, summarize, redrive, discard, pause. Each is one or more HTTP requests to
//! a running service.
//!
//! Nothing here accesses the database. A command for many events works page by page, so it can be
//! interrupted at any time and run again. It does not redrive a dead letter twice.

mod client;
mod delivered;
mod discard;
mod progress;
mod render;
mod stored;
mod table;
mod time;
mod waiting;

pub use client::OperateError;

use crate::cli::{
    EventsCommand, Filters, ListArgs, RedriveArgs, ServiceArgs, SourcesArgs, SummaryArgs,
};
use crate::visible::pretty_json;
use bytes::Bytes;
use client::Service;
use jiff::Timestamp;
use progress::Progress;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use waiting::Waiting;

/// The most events that a service returns on one page.
const PAGE: u32 = 500;
/// The dead letters that one step redrives, if the rate allows. Each step is one transaction.
const STEP: u32 = 200;

/// What a command prints on standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Text(String),
    /// The text of a command whose purpose failed.
    Failed(String),
    /// The text of a command that has found undelivered events.
    Undelivered(String),
    /// Bytes that must reach a file unchanged.
    Bytes(Bytes),
}

impl From<String> for Output {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Bytes as text for a terminal, which [`crate::visible`] makes safe.
///
/// # Errors
///
/// [`OperateError::NotText`].
pub fn for_terminal(bytes: &[u8]) -> Result<&str, OperateError> {
    std::str::from_utf8(bytes).map_err(|_| OperateError::NotText)
}

/// Runs `surehook events …` and returns what to print.
///
/// # Errors
///
/// [`OperateError`].
pub async fn events(
    command: &EventsCommand,
    service: &ServiceArgs,
) -> Result<Output, OperateError> {
    let to = Service::new(&service.url)?;
    match command {
        EventsCommand::List(args) => list(&to, args, service.json).await.map(Output::Text),
        EventsCommand::Show { id, request } => {
            stored::show(&to, id, *request, service.json).await.map(Output::Text)
        }
        EventsCommand::Body { id } => stored::body(&to, id, service.json).await,
        EventsCommand::Send(args) => stored::send(&to, args, service.json).await,
        EventsCommand::Redrive(args) => redrive(&to, args, service.json).await.map(Output::Text),
        EventsCommand::Discard(args) => {
            discard::discard(&to, args, service.json).await.map(Output::Text)
        }
    }
}

/// Redrives one event, or all that match.
async fn redrive(to: &Service, args: &RedriveArgs, json: bool) -> Result<String, OperateError> {
    match &args.id {
        Some(id) => {
            let standing = if args.delivered {
                delivered::one(to, id).await?
            } else {
                to.post(&["events", id, "redrive"], &[]).await?
            };
            let mut waiting = Waiting::default();
            waiting.note(&standing);
            waiting.warn();
            Ok(if json {
                pretty(&standing)
            } else {
                format!("{id} is queued again, with new attempts")
            })
        }
        None => {
            let filters = query(&args.filters, Timestamp::now())?;
            if filters.is_empty() && !args.all {
                return Err(OperateError::WithoutFilter);
            }
            if args.delivered {
                delivered::all(to, args, &filters, json).await
            } else {
                redrive_all(to, args, &filters, json).await
            }
        }
    }
}

/// Runs `surehook sources` and returns the text to print.
///
/// # Errors
///
/// [`OperateError`].
pub async fn sources(args: &SourcesArgs) -> Result<Output, OperateError> {
    let mut shown = Service::new(&args.service.url)?.get(&["sources"], &[]).await?;
    let Some(sources) = shown["sources"].as_array_mut() else {
        return Err(OperateError::Foreign(args.service.url.clone()));
    };
    if args.undelivered {
        sources.retain(has_undelivered);
    }
    let is_empty = sources.is_empty();
    let text = match (args.service.json, args.undelivered && is_empty) {
        (true, _) => pretty(&shown),
        (false, true) => "no undelivered events".to_owned(),
        (false, false) => render::sources(&shown),
    };
    Ok(if args.undelivered && !is_empty { Output::Undelivered(text) } else { text.into() })
}

/// Whether a source has events that are neither delivered nor dead-lettered. If a count is missing, it
/// may have some.
fn has_undelivered(source: &Value) -> bool {
    ["queued", "processing", "retrying"].iter().any(|status| source[status] != 0)
}

/// Runs `surehook summary` and returns the text to print.
///
/// # Errors
///
/// [`OperateError`].
pub async fn summary(args: &SummaryArgs) -> Result<String, OperateError> {
    let now = Timestamp::now();
    let mut query = Vec::new();
    query.extend(args.source.iter().map(|source| ("source", source.clone())));
    let since = args.since.as_deref().map(|text| time(text, now)).transpose()?;
    query.extend(since.map(|since| ("since", since)));
    let service = Service::new(&args.service.url)?;
    let shown = service.get(&["summary"], &query).await?;
    Ok(if args.service.json {
        pretty(&shown)
    } else {
        render::summary(&shown, args.source.is_some(), table::terminal_width())
    })
}

/// Checks whether a service runs, or with `ready` whether it is ready for requests.
///
/// # Errors
///
/// [`OperateError`] if it does not run or is not ready.
pub async fn health(ready: bool, service: &ServiceArgs) -> Result<String, OperateError> {
    let answer =
        Service::new(&service.url)?.get(&[if ready { "ready" } else { "health" }], &[]).await?;
    Ok(if service.json {
        pretty(&answer)
    } else {
        answer["status"].as_str().unwrap_or("ok").to_owned()
    })
}

/// Pauses or resumes a source and returns the text to print.
///
/// # Errors
///
/// [`OperateError`].
pub async fn pause(
    source: &str,
    paused: bool,
    service: &ServiceArgs,
) -> Result<String, OperateError> {
    let order = if paused { "pause" } else { "resume" };
    let answer: Value = Service::new(&service.url)?.post(&["sources", source, order], &[]).await?;
    Ok(match (service.json, paused) {
        (true, _) => pretty(&answer),
        (false, true) => {
            let rest = answer["deliveries_end_within_ms"]
                .as_u64()
                .map(Duration::from_millis)
                .map_or(String::new(), |within| {
                    let within = humantime::format_duration(within);
                    format!("; deliveries that are under way end within {within}")
                });
            format!(
                "{source} is paused: it accepts webhooks, but its events are not claimed until `surehook resume {source}`{rest}"
            )
        }
        (false, false) => format!("{source} is resumed"),
    })
}

/// Follows the pages until the requested number of events is reached.
async fn list(service: &Service, args: &ListArgs, json: bool) -> Result<String, OperateError> {
    let filters = query(&args.filters, Timestamp::now())?;
    let mut events = Vec::new();
    let mut next: Option<String> = args.after.as_ref().map(ToString::to_string);
    loop {
        let missing = args.limit - u32::try_from(events.len()).unwrap_or(u32::MAX).min(args.limit);
        let mut query = filters.clone();
        query.extend(args.status.iter().map(|status| ("status", status.clone())));
        query.push(("limit", missing.min(PAGE).to_string()));
        query.extend(next.iter().map(|next| ("after", next.clone())));
        let mut page = service.get(&["events"], &query).await?;
        events.extend(page["events"].as_array_mut().map(std::mem::take).unwrap_or_default());
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() || events.len() >= args.limit as usize {
            break;
        }
    }
    Ok(if json {
        pretty(&json!({"events": events, "next": next}))
    } else {
        render::events(&events, next.as_deref(), table::terminal_width())
    })
}

#[derive(Deserialize)]
struct Step {
    redriven: u64,
    next: Option<String>,
    #[serde(default)]
    not_delivering: Value,
}

/// Redrives in steps, no faster than the rate.
async fn redrive_all(
    service: &Service,
    args: &RedriveArgs,
    filters: &[(&'static str, String)],
    json: bool,
) -> Result<String, OperateError> {
    // A step has at most the events of a tenth of a second (at least one), so that a low rate is
    // spread evenly.
    let step = args.rate.map_or(STEP, |rate| STEP.min(rate.div_ceil(10)).max(1));
    let pace = args.rate.map_or(Duration::ZERO, |rate| {
        Duration::from_secs_f64(f64::from(step) / f64::from(rate.max(1)))
    });
    let one =
        async |size: u32, dry_run: bool, next: Option<String>| -> Result<Step, OperateError> {
            let mut query = filters.to_vec();
            query.extend([("limit", size.to_string()), ("dry_run", dry_run.to_string())]);
            query.extend(next.map(|next| ("after", next)));
            service.post(&["redrive"], &query).await
        };
    let count = async |next| one(PAGE, true, next).await.map(|step| (step.redriven, step.next));
    let progress =
        Progress::begin(json, "dead letters redriven", (!args.dry_run).then_some(count)).await;
    let size = if args.dry_run { PAGE } else { step };
    let (mut redriven, mut next) = (0, None::<String>);
    let mut waiting = Waiting::default();
    loop {
        let begun = tokio::time::Instant::now();
        let done = one(size, args.dry_run, next).await.map_err(|error| {
            progress.abandon();
            after(error, redriven, args.dry_run)
        })?;
        redriven += done.redriven;
        waiting.note(&json!({"not_delivering": done.not_delivering}));
        progress.reached(redriven);
        next = done.next;
        if next.is_none() {
            break;
        }
        if !args.dry_run && done.redriven > 0 {
            tokio::time::sleep_until(begun + pace).await;
        }
    }
    let took = progress.finish(redriven);
    waiting.warn();
    let letters = if redriven == 1 { "dead letter" } else { "dead letters" };
    Ok(match (json, args.dry_run) {
        (true, dry_run) => pretty(&json!({
            "redriven": redriven,
            "dry_run": dry_run,
            "not_delivering": waiting.to_json(),
        })),
        (false, true) => format!(
            "{redriven} {letters} would be redriven. Delivered events are redriven only with --delivered."
        ),
        (false, false) => format!("{redriven} {letters} redriven{took}"),
    })
}

/// Adds to an error the number of events that were redriven before it.
fn after(error: OperateError, redriven: u64, dry_run: bool) -> OperateError {
    match error {
        error if redriven == 0 || dry_run => error,
        error => OperateError::Refused(format!(
            "{error}\n{redriven} dead letters were redriven before this error; run the same command again for the rest"
        )),
    }
}

/// The filters as query parameters.
fn query(filters: &Filters, now: Timestamp) -> Result<Vec<(&'static str, String)>, OperateError> {
    let mut query = Vec::new();
    let mut add = |name, value: &Option<String>| {
        query.extend(value.iter().map(|value| (name, value.clone())));
    };
    add("source", &filters.source);
    add("key", &filters.key);
    add("reason", &filters.reason);
    add("status_code", &filters.status_code.map(|code| code.to_string()));
    add("since", &filters.since.as_deref().map(|text| time(text, now)).transpose()?);
    add("until", &filters.until.as_deref().map(|text| time(text, now)).transpose()?);
    Ok(query)
}

/// A time as a query parameter.
fn time(text: &str, now: Timestamp) -> Result<String, OperateError> {
    match time::parse(text, now) {
        Some(time) => Ok(time.to_string()),
        None => Err(OperateError::Time(text.to_owned())),
    }
}

fn pretty(value: &Value) -> String {
    pretty_json(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_letters_are_no_undelivered_events() {
        let none = json!({"queued": 0, "processing": 0, "retrying": 0, "dead_lettered": 7});
        assert!(!has_undelivered(&none));
        for status in ["queued", "processing", "retrying"] {
            let mut source = none.clone();
            source[status] = 1.into();
            assert!(has_undelivered(&source), "{status}");
        }
        assert!(has_undelivered(&json!({"source": "of another version"})));
    }

    #[test]
    fn an_error_includes_the_number_of_events_redriven_before() {
        let error = || OperateError::Refused("The database is not available".to_owned());
        assert!(
            after(error(), 400, false)
                .to_string()
                .contains("400 dead letters were redriven before")
        );
        assert_eq!(
            after(error(), 400, true).to_string(),
            "The database is not available",
            "a dry run changes nothing"
        );
        assert_eq!(after(error(), 0, false).to_string(), "The database is not available");
    }
}
