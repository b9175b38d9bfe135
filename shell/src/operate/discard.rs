//! Discards events: one by its id, or all that match, step by step. A discarded event is not selected
//! again, so an interrupted run can be started again.

use super::client::{OperateError, Service};
use super::progress::Progress;
use super::{PAGE, pretty, query};
use crate::cli::DiscardArgs;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

/// Discards one event, or all that match.
pub(super) async fn discard(
    to: &Service,
    args: &DiscardArgs,
    json: bool,
) -> Result<String, OperateError> {
    if let Some(id) = &args.id {
        let standing = to.post(&["events", id, "discard"], &[]).await?;
        return Ok(if json { pretty(&standing) } else { format!("{id} is discarded") });
    }
    let filters = query(&args.filters, Timestamp::now())?;
    if filters.is_empty() && !args.all {
        return Err(OperateError::WithoutFilter);
    }
    all(to, args, &filters, json).await
}

#[derive(Deserialize)]
struct Step {
    discarded: u64,
    next: Option<String>,
}

async fn all(
    service: &Service,
    args: &DiscardArgs,
    filters: &[(&'static str, String)],
    json: bool,
) -> Result<String, OperateError> {
    let one = async |dry_run: bool, next: Option<String>| -> Result<Step, OperateError> {
        let mut query = filters.to_vec();
        query.extend([("limit", PAGE.to_string()), ("dry_run", dry_run.to_string())]);
        query.extend(next.map(|next| ("after", next)));
        service.post(&["discard"], &query).await
    };
    let count = async |next| one(true, next).await.map(|step| (step.discarded, step.next));
    let progress =
        Progress::begin(json, "events discarded", (!args.dry_run).then_some(count)).await;
    let (mut discarded, mut next) = (0, None::<String>);
    loop {
        let done = one(args.dry_run, next).await.map_err(|error| {
            progress.abandon();
            after(error, discarded, args.dry_run)
        })?;
        discarded += done.discarded;
        progress.reached(discarded);
        next = done.next;
        if next.is_none() {
            break;
        }
    }
    let took = progress.finish(discarded);
    let events = if discarded == 1 { "event" } else { "events" };
    Ok(match (json, args.dry_run) {
        (true, dry_run) => pretty(&json!({"discarded": discarded, "dry_run": dry_run})),
        (false, true) => format!("{discarded} {events} would be discarded"),
        (false, false) => format!("{discarded} {events} discarded{took}"),
    })
}

/// Adds to an error the number of events that were discarded before it.
fn after(error: OperateError, discarded: u64, dry_run: bool) -> OperateError {
    match error {
        error if discarded == 0 || dry_run => error,
        error => OperateError::Refused(format!(
            "{error}\n{discarded} events were discarded before this error; run the same command again for the rest"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_includes_the_number_of_events_discarded_before() {
        let error = || OperateError::Refused("The database is not available".to_owned());
        assert!(
            after(error(), 500, false).to_string().contains("500 events were discarded before")
        );
        for (discarded, dry_run) in [(500, true), (0, false)] {
            let told = after(error(), discarded, dry_run).to_string();
            assert_eq!(told, "The database is not available");
        }
    }
}
