//! Promise *Explicit*, for readers: `GET /events/{id}` shows a state that the event had during the
//! request. After an event has ended, only a redrive changes its status. A replay of a dead letter is
//! a redrive if its source says so.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Run, What};
use std::collections::{BTreeMap, BTreeSet};
use surehook::search::EventRecord;
use surehook_core::event::{Reason, Status};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let acknowledged: BTreeMap<_, _> = run
        .answers()
        .filter_map(|(at, answer)| Some((answer.event?, at)))
        .fold(BTreeMap::new(), |mut first, (event, at)| {
            first.entry(event).or_insert(at);
            first
        });
    let mut states: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let (mut pruned, mut rolled_back) = (BTreeMap::new(), BTreeSet::new());
    // A process that was stopped in an accept for longer than the retention stores the event again,
    // without attempts.
    let mut last_stored = BTreeMap::new();
    for (at, committed) in run.committed() {
        match committed.change {
            Change::Accepted => {
                last_stored.insert(committed.event, at);
            }
            Change::Pruned | Change::Lost => {
                // A failover may restore it; then it is pruned again.
                pruned.entry(committed.event).or_insert(at);
                continue;
            }
            Change::Erased | Change::Capped => continue,
            Change::RolledBack => {
                rolled_back.insert(committed.event);
            }
            Change::Claimed
            | Change::Settled { .. }
            | Change::Redriven { .. }
            | Change::Discarded => {}
        }
        let status = committed.after.map_or(Status::Delivered, |row| row.delivery.status);
        states.entry(committed.event).or_default().push((at, status));
    }
    let posted: BTreeMap<_, _> = run.each_post().map(|(at, post)| (post.post, at)).collect();
    let posts = run.posts();
    for (at, answer) in run.answers() {
        let (Some(event), Some(status), Some(asked_at)) =
            (answer.event, answer.status, posted.get(&answer.post))
        else {
            continue;
        };
        let is_redriven = answer.replayed
            && posts
                .get(&answer.post)
                .is_some_and(|post| run.redrives_on_replay.contains(&post.source));
        if is_redriven && status == Status::DeadLettered {
            let what = format!(
                "post {} was answered that event {event} is dead-lettered, but a replay redrives it",
                answer.post.0
            );
            violations.push(violation(Promise::Lookup, at, what, [event]));
        }
        let asked_at = asked_at.saturating_sub(run.commits_within);
        if let Some(possible) = states
            .get(&event)
            .map(|states| possible(states, asked_at, at))
            .filter(|possible| !possible.contains(&status))
        {
            let what = format!(
                "post {} was answered that event {event} is {status:?}, but during the request it was {possible:?}",
                answer.post.0
            );
            violations.push(violation(Promise::Lookup, at, what, [event]));
        }
    }
    for entry in &run.entries {
        let What::Looked { event, asked_at, status, attempts } = &entry.what else { continue };
        let mut say = |what| {
            violations.push(violation(
                Promise::Lookup,
                entry.at,
                format!("GET /events/{event}: {what}"),
                [*event],
            ));
        };
        let Some(status) = status else {
            if acknowledged.get(event).is_some_and(|at| at <= asked_at)
                && pruned.get(event).is_none_or(|at| *at > entry.at)
            {
                say("404, although the event was acknowledged before".to_owned());
            }
            continue;
        };
        if let Some(states) = states.get(event) {
            let possible = possible(states, *asked_at, entry.at);
            if !possible.contains(status) {
                say(format!("{status:?}, but during the request it was {possible:?}"));
            }
        }
        // An attempt that was released unsent is used again, unless the event is discarded before.
        let is_too_many = |record: &EventRecord| {
            let spare = u32::from(record.reason == Some(Reason::Discarded));
            attempts.saturating_sub(spare) > record.attempt
        };
        let is_stored_again = last_stored.get(event).is_some_and(|at| *at > entry.at);
        if run.events.get(event).is_some_and(is_too_many)
            && !rolled_back.contains(event)
            && !is_stored_again
        {
            say(format!("{attempts} attempts, more than the event has at the end of the run"));
        }
    }
    violations
}

/// The statuses that an event had between request and response.
fn possible(states: &[(At, Status)], asked_at: At, answered_at: At) -> BTreeSet<Status> {
    let before = states.iter().rev().find(|(at, _)| *at <= asked_at).map(|(_, status)| *status);
    let during = states
        .iter()
        .filter(|(at, _)| *at > asked_at && *at <= answered_at)
        .map(|(_, status)| *status);
    before.into_iter().chain(during).collect()
}
