//! Promise *Durable*: after its `202`, an event is in the database until its retention ends.

use super::{Promise, Violation, violation};
use crate::history::{Change, Run};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    // With an asynchronous standby, a failover may lose acknowledged events: the operator chose
    // this.
    let may_go =
        |change| change == Change::Pruned || (change == Change::Lost && run.failover_may_lose);
    let gone: BTreeSet<_> = run
        .committed()
        .filter(|(_, committed)| may_go(committed.change))
        .map(|(_, committed)| committed.event)
        .collect();
    // A try that is repeated after a failover inserts its event again.
    let mut accepted = BTreeMap::new();
    for (at, committed) in run.committed() {
        if committed.change == Change::Accepted {
            accepted.entry(committed.event).or_insert(at);
        }
    }
    let sees_commits = !accepted.is_empty();
    let mut violations = Vec::new();
    for (at, answer) in run.answers().filter(|(_, answer)| answer.status_code == 202) {
        let Some(event) = answer.event else {
            violations.push(violation(
                Promise::Durability,
                at,
                format!("the 202 for post {} has no event id", answer.post.0),
                [],
            ));
            continue;
        };
        if !run.events.contains_key(&event) && !gone.contains(&event) {
            violations.push(violation(
                Promise::Durability,
                at,
                format!("event {event} was acknowledged, but is not in the database at the end"),
                [event],
            ));
        } else if sees_commits && accepted.get(&event).is_none_or(|committed| *committed > at) {
            violations.push(violation(
                Promise::Durability,
                at,
                format!("event {event} was acknowledged before it was committed"),
                [event],
            ));
        }
    }
    violations
}
