//! Sends what was delivered once more, event by event: each is asked for under its id, so nothing else can be meant.
//!
//! Unlike a dead letter, an event that is sent once more ends as it was before. So nothing in the database tells a run
//! that was broken off what it has done, and the run itself says where the next is to go on.

use super::client::{OperateError, Service};
use super::{PAGE, pretty, progress};
use crate::cli::RedriveArgs;
use serde_json::{Value, json};
use std::time::Duration;

/// Queues one delivered event again.
pub(super) async fn one(service: &Service, id: &str) -> Result<Value, OperateError> {
    service.post(&["events", id, "redrive"], &[("delivered", "true".to_owned())]).await
}

/// Queues all delivered events that match, newest first, no faster than the rate; or only counts them.
pub(super) async fn all(
    service: &Service,
    args: &RedriveArgs,
    filters: &[(&'static str, String)],
    json: bool,
) -> Result<String, OperateError> {
    let pace = args.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1));
    let progress = progress(json, "delivered events queued once more");
    let (mut redriven, mut after) = (0u64, args.after.clone());
    loop {
        let mut query = filters.to_vec();
        query.extend([("status", "delivered".to_owned()), ("limit", PAGE.to_string())]);
        query.extend(after.iter().map(|after| ("after", after.clone())));
        let page = service
            .get(&["events"], &query)
            .await
            .map_err(|error| broken_off(error, redriven, after.as_deref()))?;
        for event in page["events"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let id = event["event_id"].as_str().unwrap_or_default();
            if args.dry_run {
                redriven += 1;
            } else {
                let begun = tokio::time::Instant::now();
                match one(service, id).await {
                    Ok(_) => {
                        redriven += 1;
                        tokio::time::sleep_until(begun + pace).await;
                    }
                    // Somebody else has queued it, or it was pruned, since it was listed.
                    Err(OperateError::Elsewhere(_)) => {}
                    Err(error) => {
                        progress.abandon();
                        return Err(broken_off(error, redriven, after.as_deref()));
                    }
                }
            }
            after = Some(id.to_owned());
            progress.set_position(redriven);
        }
        let Some(next) = page["next"].as_str() else { break };
        after = Some(next.to_owned());
    }
    progress.finish_and_clear();
    let events = if redriven == 1 { "delivered event" } else { "delivered events" };
    Ok(match (json, args.dry_run) {
        (true, dry_run) => {
            pretty(&json!({"redriven": redriven, "dry_run": dry_run, "delivered": true}))
        }
        (false, true) => format!(
            "{redriven} {events} would be sent once more; their downstreams have taken them before"
        ),
        (false, false) => format!("{redriven} {events} queued once more"),
    })
}

/// An error in the middle, with where to go on.
fn broken_off(error: OperateError, redriven: u64, after: Option<&str>) -> OperateError {
    match after {
        Some(after) if redriven > 0 => OperateError::Refused(format!(
            "{error}\n{redriven} delivered events were queued once more before; run the same again with --after {after} for the rest"
        )),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_broken_off_says_where_to_go_on() {
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
            "nothing was done"
        );
    }
}
