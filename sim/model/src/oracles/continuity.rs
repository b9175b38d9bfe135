//! Promise *Continuous*: a process that is shutting down answers requests until its listener closes,
//! and does not refuse one because of its shutdown.

use super::{Promise, Violation, violation};
use crate::history::{At, Fault, Posted, Run, What};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut posts: BTreeMap<_, (At, &Posted)> = BTreeMap::new();
    // When each draining process with an open listener began its shutdown.
    let mut draining: BTreeMap<&str, At> = BTreeMap::new();
    // The processes that have answered since their start, so that they listen.
    let mut listening: BTreeSet<&str> = BTreeSet::new();
    // The processes that have closed their listener. They still answer requests in flight, and a
    // second signal does not open it again.
    let mut closed: BTreeSet<&str> = BTreeSet::new();
    // While packets can be lost, a connection can be refused although its address is listened at.
    let mut broken_until = At::ZERO;
    let mut violations = Vec::new();
    let mut refused = |at: At, post: &Posted, how: &str| {
        let Posted { post, process, source, key, .. } = post;
        let what = format!(
            "post {} of key {key} to source {source} was refused by {process} {how}",
            post.0
        );
        violations.push(violation(Promise::Continuity, at, what, []));
    };
    for entry in &run.entries {
        match &entry.what {
            What::Posted(posted) => {
                posts.insert(posted.post, (entry.at, posted));
            }
            What::Answered { post, problem, .. } => {
                let Some((_, post)) = posts.get(post) else { continue };
                listening.insert(&post.process);
                if problem.as_deref() == Some("shutting-down") {
                    refused(entry.at, post, "because it is shutting down");
                }
            }
            What::Unanswered { post, is_refused: true } => {
                let Some((asked_at, post)) = posts.get(post) else { continue };
                let began = draining.get(post.process.as_str());
                if began.is_some_and(|began| began <= asked_at) && broken_until < *asked_at {
                    refused(entry.at, post, "before its listener closes");
                }
            }
            What::Fault(Fault::Draining { process })
                if listening.contains(process.as_str()) && !closed.contains(process.as_str()) =>
            {
                draining.entry(process).or_insert(entry.at);
            }
            What::Fault(Fault::Closing { process }) => {
                draining.remove(process.as_str());
                closed.insert(process);
            }
            What::Fault(
                Fault::Started { process } | Fault::Killed { process } | Fault::Exited { process },
            ) => {
                draining.remove(process.as_str());
                listening.remove(process.as_str());
                closed.remove(process.as_str());
            }
            What::Fault(Fault::Network { duration, .. }) => {
                broken_until = broken_until.max(entry.at + *duration);
            }
            _ => {}
        }
    }
    violations
}
