//! Redrives delivered events, one request for each event. Each request has the event's id, so it
//! cannot affect other events.
//!
//! A redriven dead letter is no longer a dead letter, but a redriven delivered event ends as
//! delivered again. So the database does not show which events an interrupted run has redriven. A
//! run that fails prints where to continue. A run that a signal ends prints nothing.

use super::client::{OperateError, Service};
use super::progress::Progress;
use super::waiting::Waiting;
use super::{PAGE, pretty};
use crate::cli::RedriveArgs;
use serde_json::{Value, json};
use std::time::Duration;

/// Queues one delivered event again.
pub(super) async fn one(service: &Service, id: &str) -> Result<Value, OperateError> {
    service.post(&["events", id, "redrive"], &[("delivered", "true".to_owned())]).await
}

/// Queues all matching delivered events again, newest first, no faster than the rate. A dry run
/// only counts them, with those whose payload was erased. The service does not say which these are.
pub(super) async fn all(
    service: &Service,
    args: &RedriveArgs,
    filters: &[(&'static str, String)],
    json: bool,
) -> Result<String, OperateError> {
    let pace = args.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1));
    let listed = async |after: Option<String>| {
        let mut query = filters.to_vec();
        query.extend([("status", "delivered".to_owned()), ("limit", PAGE.to_string())]);
        query.extend(after.map(|after| ("after", after)));
        service.get(&["events"], &query).await
    };
    let count = async |next: Option<String>| {
        let page = listed(next.or_else(|| args.after.clone())).await?;
        let events = page["events"].as_array().map_or(0, Vec::len);
        Ok((events as u64, page["next"].as_str().map(str::to_owned)))
    };
    let of = "delivered events queued again";
    let progress = Progress::begin(json, of, (!args.dry_run).then_some(count)).await;
    let (mut redriven, mut erased, mut after) = (0u64, 0u64, args.after.clone());
    let mut waiting = Waiting::default();
    loop {
        let page = listed(after.clone()).await.map_err(|error| {
            progress.abandon();
            broken_off(error, redriven, after.as_deref())
        })?;
        for event in page["events"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let id = event["event_id"].as_str().unwrap_or_default();
            if args.dry_run {
                redriven += 1;
            } else {
                let begun = tokio::time::Instant::now();
                match one(service, id).await {
                    Ok(standing) => {
                        redriven += 1;
                        waiting.note(&standing);
                        tokio::time::sleep_until(begun + pace).await;
                    }
                    Err(OperateError::Erased(_)) => erased += 1,
                    // Another client has redriven it, or it was pruned, since it was listed.
                    Err(OperateError::Elsewhere(_)) => {}
                    Err(error) => {
                        progress.abandon();
                        return Err(broken_off(error, redriven, after.as_deref()));
                    }
                }
            }
            after = Some(id.to_owned());
            progress.reached(redriven);
        }
        let Some(next) = page["next"].as_str() else { break };
        after = Some(next.to_owned());
    }
    let took = progress.finish(redriven);
    waiting.warn();
    let events = if redriven == 1 { "delivered event" } else { "delivered events" };
    Ok(match (json, args.dry_run) {
        (true, dry_run) => {
            let not_delivering = waiting.to_json();
            pretty(&json!({
                "redriven": redriven,
                "erased": erased,
                "dry_run": dry_run,
                "delivered": true,
                "not_delivering": not_delivering,
            }))
        }
        (false, true) => format!(
            "{redriven} {events} would be sent again; their downstreams have accepted them before. Those whose payload was erased are skipped"
        ),
        (false, false) if erased > 0 => format!(
            "{redriven} {events} queued again{took}; {erased} skipped, because retention has erased the payload"
        ),
        (false, false) => format!("{redriven} {events} queued again{took}"),
    })
}

/// Adds to an error where the next run has to continue.
fn broken_off(error: OperateError, redriven: u64, after: Option<&str>) -> OperateError {
    match after {
        Some(after) if redriven > 0 => OperateError::Refused(format!(
            "{error}\n{redriven} delivered events were queued again before this error; run the same command with --after {after} for the rest"
        )),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_prints_where_to_continue() {
        let error = || OperateError::Refused("The database is not available".to_owned());
        let told =
            broken_off(error(), 12, Some("0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e")).to_string();
        assert!(
            told.contains("12 delivered events")
                && told.contains("--after 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"),
            "{told}"
        );
        assert_eq!(
            broken_off(error(), 0, None).to_string(),
            "The database is not available",
            "no event was redriven before"
        );
    }
}
