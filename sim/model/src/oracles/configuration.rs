//! Promise *Explicit*, for configurations: a process accepts, claims and sends the events of the
//! sources that it was started with. It answers `404` for all others.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Committed, Entry, PostId, Posted, Run, Sending, What};
use std::collections::BTreeMap;
use surehook_core::id::EventId;

type Posts<'a> = BTreeMap<PostId, (At, &'a Posted)>;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let posts: Posts<'_> = run.each_post().map(|(at, post)| (post.post, (at, post))).collect();
    let wrong = |entry: &Entry| {
        let (what, event) = wrong(run, &posts, entry)?;
        Some(violation(Promise::Configuration, entry.at, what, event))
    };
    run.entries.iter().filter_map(wrong).collect()
}

fn wrong(run: &Run, posts: &Posts<'_>, entry: &Entry) -> Option<(String, Option<EventId>)> {
    let lacks = |process, source, at| run.policies.has(process, source, at, at) == Some(false);
    match &entry.what {
        What::Sending(Sending { process, source, event, .. }) => {
            let what = format!("{process} sends an event of source {source}, which it lacks");
            lacks(process, source, entry.at).then_some((what, Some(*event)))
        }
        What::Committed(Committed { change: Change::Claimed, event, process, sent, .. }) => {
            let source = &run.events.get(event)?.source;
            let what = format!("{process} claimed an event of source {source}, which it lacks");
            lacks(process, source, sent.unwrap_or(entry.at)).then_some((what, Some(*event)))
        }
        What::Answered { post, status_code, event, problem, .. } => {
            let (asked_at, Posted { process, source, .. }) = posts.get(post)?;
            let has = run.policies.has(process, source, *asked_at, entry.at)?;
            let is_unknown = problem.as_deref() == Some("unknown-source");
            let what = format!(
                "{process} answered a post to source {source} with {status_code}, but it {} that source",
                if has { "has" } else { "lacks" }
            );
            let is_wrong = if has { is_unknown } else { *status_code == 202 };
            is_wrong.then_some((what, *event))
        }
        _ => None,
    }
}
