//! Promise *Explicit*, for refusals: if every response for a request says that nothing was stored,
//! nothing was stored. Only `database-timeout` and `internal` leave the outcome open.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, PostId, Run, What};
use std::collections::BTreeMap;

/// The problems after which an event may have been stored.
const OPEN: [&str; 2] = ["database-timeout", "internal"];

type Asked<'a> = (&'a str, &'a str, &'a str);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut posts: BTreeMap<Asked<'_>, Vec<(At, PostId)>> = BTreeMap::new();
    for (at, post) in run.each_post() {
        posts.entry((&post.process, &post.source, &post.key)).or_default().push((at, post.post));
    }
    let denied: BTreeMap<PostId, &str> = run
        .each(|what| match what {
            What::Answered { post, problem: Some(problem), .. }
                if !OPEN.contains(&problem.as_str()) =>
            {
                Some((*post, problem.as_str()))
            }
            _ => None,
        })
        .map(|(_, denied)| denied)
        .collect();
    let accepted = run.committed().filter(|(_, committed)| committed.change == Change::Accepted);
    accepted
        .filter_map(|(at, committed)| {
            let record = run.events.get(&committed.event)?;
            let of_key = posts.get(&(committed.process.as_str(), record.source.as_str(), record.key.as_str()))?;
            let problems: Option<Vec<&str>> =
                of_key.iter().filter(|(posted, _)| *posted <= at).map(|(_, post)| denied.get(post).copied()).collect();
            let problems = problems.filter(|problems| !problems.is_empty())?;
            let what = format!(
                "event {} was stored by {}, although every response for it said that nothing was stored: {problems:?}",
                committed.event, committed.process
            );
            Some(violation(Promise::Refusal, at, what, [committed.event]))
        })
        .collect()
}
