//! Promise *Never stuck*, for producers: once the last fault has ended and every process has had
//! time to notice, posts are answered and not refused for lack of capacity. Without this oracle, a
//! service that accepts nothing would keep every other promise.

use super::{Promise, Violation, violation};
use crate::history::{Posted, Run};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long after the last fault a process may still refuse requests: it reconnects to the database
/// and stores what is queued.
const GRACE: Duration = Duration::from_secs(30);
/// Limit for a response. Some producers hang up after this time.
const ANSWERED_WITHIN: Duration = Duration::from_millis(500);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let answers: BTreeMap<_, _> =
        run.answers().map(|(at, answer)| (answer.post, (at, answer.status_code))).collect();
    let asked = run.each_post().filter(|(at, posted)| {
        posted.storable
            && !posted.is_slow()
            && *at >= run.healed_at + GRACE
            && *at + ANSWERED_WITHIN <= run.ended_at
    });
    let refused = asked.filter_map(|(at, posted)| {
        let became = match answers.get(&posted.post) {
            None => "was never answered".to_owned(),
            Some((_, status_code @ 500..)) => format!("was answered with {status_code}"),
            Some((answered_at, _)) if *answered_at > at + ANSWERED_WITHIN => {
                format!("was answered after {:?}", *answered_at - at)
            }
            Some(_) => return None,
        };
        let Posted { post, process, source, key, .. } = posted;
        let since = (at - run.healed_at).as_secs_f64();
        let what = format!(
            "post {} of key {key} to source {source} at {process} {became}, {since:.1}s after the last fault ended",
            post.0
        );
        Some(violation(Promise::Availability, at, what, []))
    });
    refused.collect()
}
