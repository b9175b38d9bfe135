//! Relayed requests: a handshake is relayed to the downstream of its source, and never stored or
//! acknowledged as an event. An event is never relayed.

use super::{Promise, Violation, violation};
use crate::history::{Handshake, PostId, Run, What};
use std::collections::BTreeMap;

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut sent: BTreeMap<PostId, &str> = BTreeMap::new();
    let mut keys: BTreeMap<(&str, &str), PostId> = BTreeMap::new();
    let handshakes =
        run.each(|what| if let What::Handshake(handshake) = what { Some(handshake) } else { None });
    for (at, handshake) in handshakes {
        match handshake {
            Handshake::Sent { post, source, key, .. } => {
                sent.insert(*post, source);
                keys.insert((source, key), *post);
            }
            Handshake::Answered { post, event: Some(event), .. } => {
                let what = format!("handshake {} was acknowledged as event {event}", post.0);
                violations.push(violation(Promise::Relay, at, what, [*event]));
            }
            Handshake::Answered { event: None, .. } => {}
            Handshake::Relayed { source, post } => {
                if post.and_then(|post| sent.get(&post)) != Some(&source.as_str()) {
                    let what = format!("a request to {source} was relayed, but is no handshake");
                    violations.push(violation(Promise::Relay, at, what, []));
                }
            }
        }
    }
    for (event, record) in &run.events {
        if let Some(post) = keys.get(&(record.source.as_str(), record.key.as_str())) {
            let what = format!("handshake {} was stored as event {event}", post.0);
            violations.push(violation(Promise::Relay, run.ended_at, what, [*event]));
        }
    }
    violations
}
