//! Forwarding: the body, the query and the values of each forwarded header reach the downstream as they were
//! posted, with the time at which the event was stored.

use super::{Promise, Violation, violation};
use crate::history::{Change, Run};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use surehook_core::forwarding::RECEIVED_AT_HEADER;
use surehook_core::id::EventId;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let posts = run.posts();
    let mut violations = Vec::new();
    let mut by_key: BTreeMap<(&str, &str), Vec<_>> = BTreeMap::new();
    for post in posts.values() {
        by_key.entry((&post.source, &post.key)).or_default().push(*post);
    }
    let stored_at = stored_at(run);
    for (at, received) in run.received() {
        let Some(record) = run.events.get(&received.event) else { continue };
        let mut say = |what| {
            violations.push(violation(
                Promise::Bytes,
                at,
                format!("event {}, attempt {}: {what}", received.event, received.attempt),
                [received.event],
            ));
        };
        if record.source != received.source {
            say(format!(
                "sent to the downstream of {}, but it belongs to {}",
                received.source, record.source
            ));
            continue;
        }
        let candidates = by_key
            .get(&(record.source.as_str(), record.key.as_str()))
            .map_or(&[][..], Vec::as_slice);
        let same_body: Vec<_> =
            candidates.iter().filter(|post| post.body == received.body).collect();
        if same_body.is_empty() {
            say("arrived with a body that was never posted".to_owned());
        } else if !same_body.iter().any(|post| post.query == received.query) {
            say(format!("arrived with a query that was never posted: {:?}", received.query));
        } else if !same_body.iter().any(|post| {
            post.headers.iter().all(|(name, values)| received.headers.get(name) == Some(values))
        }) {
            say("arrived with header values that differ from the posted ones".to_owned());
        }
        let values = received.headers.get(RECEIVED_AT_HEADER).map_or(&[][..], Vec::as_slice);
        let told = match values {
            [value] => std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        let is_true = |told: Timestamp| {
            told == record.received_at
                || stored_at.get(&received.event).is_some_and(|times| times.contains(&told))
        };
        if !run.failover_may_lose && !told.is_some_and(is_true) {
            say(format!(
                "arrived with the time of receipt {told:?}, but it was received at {}",
                record.received_at
            ));
        }
    }
    violations
}

/// The times at which each event was stored. An event is stored again under its id if its first
/// commit was lost in a failover.
fn stored_at(run: &Run) -> BTreeMap<EventId, BTreeSet<Timestamp>> {
    let mut times: BTreeMap<EventId, BTreeSet<Timestamp>> = BTreeMap::new();
    for (_, committed) in run.committed() {
        if committed.change == Change::Accepted {
            times.entry(committed.event).or_default().insert(committed.db_time);
        }
    }
    times
}
