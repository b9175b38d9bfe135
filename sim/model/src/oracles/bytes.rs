//! Forwarding: the body and the values of each forwarded header reach the downstream as they were
//! posted.

use super::{Promise, Violation, violation};
use crate::history::Run;
use std::collections::BTreeMap;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let posts = run.posts();
    let mut violations = Vec::new();
    let mut by_key: BTreeMap<(&str, &str), Vec<_>> = BTreeMap::new();
    for post in posts.values() {
        by_key.entry((&post.source, &post.key)).or_default().push(*post);
    }
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
        } else if !same_body.iter().any(|post| {
            post.headers.iter().all(|(name, values)| received.headers.get(name) == Some(values))
        }) {
            say("arrived with header values that differ from the posted ones".to_owned());
        }
    }
    violations
}
