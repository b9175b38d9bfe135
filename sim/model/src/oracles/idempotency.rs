//! Promise *Idempotent*: a pair of source and key names one event, in every interleaving of
//! requests. A key reused with a different body is refused with `422`, and nothing else is.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Posted, Run};
use std::collections::BTreeMap;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let posts = run.posts();
    let mut violations = Vec::new();
    let mut say = |at, what, events: &[_]| {
        violations.push(violation(Promise::Idempotency, at, what, events.iter().copied()));
    };

    // After its event is deleted, a key can be used again.
    let gone = run.gone();
    let mut rows = BTreeMap::new();
    for record in run.events.values().filter(|record| !gone.contains_key(&record.id)) {
        if let Some(other) = rows.insert((record.source.clone(), record.key.clone()), record.id) {
            say(
                run.ended_at,
                format!(
                    "key {} of source {} has two events in the database: {other} and {}",
                    record.key, record.source, record.id
                ),
                &[other, record.id],
            );
        }
    }

    let mut by_key: BTreeMap<(&str, &str), Vec<&Posted>> = BTreeMap::new();
    for post in posts.values() {
        by_key.entry((&post.source, &post.key)).or_default().push(post);
    }
    // The event that each key names, by its first 202, and the event's body, by the post that
    // received it.
    let mut named = BTreeMap::new();
    // For each event named by a 202: its key, its body, and when it was stored.
    let mut bodies = BTreeMap::new();
    let accepted: BTreeMap<_, _> = run
        .committed()
        .filter(|(_, committed)| committed.change == Change::Accepted)
        .map(|(at, committed)| (committed.event, at))
        .collect();
    let mut new = BTreeMap::new();
    for (at, answer) in run.answers() {
        let Some(&post) = posts.get(&answer.post) else { continue };
        let key = (post.source.clone(), post.key.clone());
        if named
            .get(&key)
            .is_some_and(|(event, _)| Some(*event) != answer.event && gone.contains_key(event))
        {
            named.remove(&key);
            new.remove(&key);
        }
        if let (202, Some(event)) = (answer.status_code, answer.event) {
            bodies.entry(event).or_insert((
                key.clone(),
                post.body,
                accepted.get(&event).copied().unwrap_or(at),
            ));
            let (first, body) = named.entry(key.clone()).or_insert((event, post.body));
            if *first != event {
                say(
                    at,
                    format!(
                        "key {} of source {} was answered with event {event}, but earlier with {first}",
                        post.key, post.source
                    ),
                    &[*first, event],
                );
            } else if *body != post.body && !run.first_wins.contains(&post.source) {
                say(
                    at,
                    format!(
                        "key {} of source {} was accepted with two different bodies",
                        post.key, post.source
                    ),
                    &[event],
                );
            }
            if answer.replayed && by_key[&(key.0.as_str(), key.1.as_str())].len() == 1 {
                say(
                    at,
                    format!(
                        "key {} of source {} was answered as a replay, but was posted only once",
                        post.key, post.source
                    ),
                    &[event],
                );
            }
            if !answer.replayed
                && let Some(before) = new.insert(key, answer.post)
            {
                say(
                    at,
                    format!(
                        "key {} of source {} was answered as new for two posts: {} and {}",
                        post.key, post.source, before.0, answer.post.0
                    ),
                    &[event],
                );
            }
        }
    }
    let asked: BTreeMap<_, At> = run.each_post().map(|(at, post)| (post.post, at)).collect();
    for (at, answer) in run.answers().filter(|(_, answer)| answer.status_code == 422) {
        let Some(&post) = posts.get(&answer.post) else { continue };
        let event: Vec<_> = named
            .get(&(post.source.clone(), post.key.clone()))
            .map(|(event, _)| *event)
            .into_iter()
            .collect();
        let another_body_was_posted = by_key[&(post.source.as_str(), post.key.as_str())]
            .iter()
            .any(|other| other.body != post.body);
        if !another_body_was_posted {
            say(
                at,
                format!(
                    "key {} of source {} was refused as reused, but was posted with only one body",
                    post.key, post.source
                ),
                &event,
            );
            continue;
        }
        let key = (post.source.clone(), post.key.clone());
        let asked_at = asked.get(&answer.post).copied().unwrap_or_default();
        let is_of = |event, (of, body, since): &(_, _, At)| {
            *of == key
                && *body == post.body
                && *since <= asked_at
                && gone.get(event).is_none_or(|gone| *gone > at)
        };
        if bodies.iter().any(|(event, named)| is_of(event, named)) {
            say(
                at,
                format!(
                    "key {} of source {} was refused as reused, but the body is that of its event",
                    post.key, post.source
                ),
                &event,
            );
        }
    }
    violations
}
