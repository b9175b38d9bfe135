//! Which entry concerns which event, and the short names of events: `e1` is the first that appears
//! in the run.

use crate::history::{Handshake, PostId, Posted, Received, RequestId, Run, What};
use std::collections::{BTreeMap, BTreeSet};
use surehook_core::id::EventId;

/// Lookups over one run.
pub(super) struct Index<'a> {
    /// In the order of their first appearance: the position is the short name.
    pub(super) events: Vec<EventId>,
    numbers: BTreeMap<EventId, usize>,
    pub(super) posts: BTreeMap<PostId, &'a Posted>,
    pub(super) requests: BTreeMap<RequestId, &'a Received>,
    /// The events that a source and key may refer to. More than one only if the promise
    /// *Idempotent* is broken.
    by_key: BTreeMap<(&'a str, &'a str), BTreeSet<EventId>>,
    answered: BTreeMap<PostId, EventId>,
}

impl<'a> Index<'a> {
    pub(super) fn of(run: &'a Run) -> Self {
        let posts = run.posts();
        let mut by_key: BTreeMap<_, BTreeSet<EventId>> = BTreeMap::new();
        for record in run.events.values() {
            by_key
                .entry((record.source.as_str(), record.key.as_str()))
                .or_default()
                .insert(record.id);
        }
        let mut answered = BTreeMap::new();
        for (_, answer) in run.answers() {
            if let (Some(event), Some(post)) = (answer.event, posts.get(&answer.post)) {
                by_key.entry((post.source.as_str(), post.key.as_str())).or_default().insert(event);
                answered.insert(answer.post, event);
            }
        }
        let requests = run.received().map(|(_, received)| (received.request, received)).collect();
        let mut index = Self {
            events: Vec::new(),
            numbers: BTreeMap::new(),
            posts,
            requests,
            by_key,
            answered,
        };
        let appeared = run
            .entries
            .iter()
            .flat_map(|entry| named(&entry.what))
            .chain(run.events.keys().copied());
        for event in appeared {
            if !index.numbers.contains_key(&event) {
                index.events.push(event);
                index.numbers.insert(event, index.events.len());
            }
        }
        index
    }

    /// The short name, such as `e7`, or the id if the event does not appear in the run.
    pub(super) fn short(&self, event: EventId) -> String {
        self.numbers.get(&event).map_or_else(|| event.to_string(), |number| format!("e{number}"))
    }

    /// The events that an entry concerns, the most certain first.
    pub(super) fn touched(&self, what: &What) -> Vec<EventId> {
        let of_post = |post: &PostId| {
            let posted = self.posts.get(post);
            let of_key = posted
                .and_then(|posted| self.by_key.get(&(posted.source.as_str(), posted.key.as_str())));
            let answered = self.answered.get(post);
            let others = of_key.into_iter().flatten().filter(|event| Some(*event) != answered);
            answered.into_iter().chain(others).copied().collect()
        };
        match what {
            What::Posted(posted) => of_post(&posted.post),
            What::Answered { post, .. } | What::Unanswered { post, .. } => of_post(post),
            What::Replied { request, .. } => {
                self.requests.get(request).map(|received| received.event).into_iter().collect()
            }
            What::Looked { .. }
            | What::Handshake(_)
            | What::Sending(_)
            | What::Sent { .. }
            | What::Received(_)
            | What::Committed(_)
            | What::StaleSettlement { .. }
            | What::Called { .. }
            | What::Fault(_)
            | What::Reached(_)
            | What::Ready { .. } => named(what),
        }
    }

    /// A text for one line: known event ids become short names, and characters that could control a
    /// terminal are escaped.
    pub(super) fn plain(&self, text: &str) -> String {
        let mut plain = String::new();
        let mut skip_to = 0;
        for (start, character) in text.char_indices() {
            if start < skip_to {
                continue;
            }
            let end = start + uuid_length();
            let known = text
                .get(start..end)
                .and_then(|id| id.parse().ok())
                .filter(|event| self.numbers.contains_key(event));
            if let Some(event) = known {
                plain.push_str(&self.short(event));
                skip_to = end;
            } else if steers(character) {
                plain.extend(character.escape_default());
            } else {
                plain.push(character);
            }
        }
        plain
    }
}

fn uuid_length() -> usize {
    "00000000-0000-0000-0000-000000000000".len()
}

/// Control characters, and those that change the direction of text.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The events whose ids an entry contains.
fn named(what: &What) -> Vec<EventId> {
    match what {
        What::Answered { event, .. } | What::Handshake(Handshake::Answered { event, .. }) => {
            event.iter().copied().collect()
        }
        What::Sending(sending) => vec![sending.event],
        What::Received(received) => vec![received.event],
        What::Committed(committed) => vec![committed.event],
        What::Looked { event, .. }
        | What::Sent { event, .. }
        | What::StaleSettlement { event, .. } => vec![*event],
        What::Called { events, .. } => events.clone(),
        What::Posted(_)
        | What::Handshake(Handshake::Sent { .. } | Handshake::Relayed { .. })
        | What::Unanswered { .. }
        | What::Replied { .. }
        | What::Fault(_)
        | What::Reached(_)
        | What::Ready { .. } => Vec::new(),
    }
}
