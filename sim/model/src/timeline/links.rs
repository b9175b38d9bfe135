//! The messages between lanes: requests, responses and commits, and whether they arrived.

use super::index::Index;
use super::words::{Lane, lane};
use crate::history::{CallResult, Change, Fault, Handshake, Run, What};
use std::collections::BTreeMap;
use surehook_core::id::{Attempt, EventId};

/// An arrow of the drawing, between two entries of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) from: (usize, Lane),
    pub(super) to: (usize, Lane),
    /// Whether it arrived, as far as the history shows.
    pub(super) arrived: bool,
    /// A short label.
    pub(super) label: String,
}

/// A delivery that has started and not ended.
struct Open {
    sending: usize,
    process: String,
    event: EventId,
    attempt: Attempt,
    received: bool,
    replied: Option<(usize, u16)>,
}

/// All arrows of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) arrows: Vec<Link>,
    /// The starts of deliveries that were in flight at the end of the run.
    pub(super) under_way: Vec<usize>,
}

/// Follows every request, response and commit of a run.
pub(super) fn links(run: &Run, index: &Index<'_>) -> Links {
    let mut links = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut of_request = BTreeMap::new();
    for (entry, what) in run.entries.iter().map(|entry| &entry.what).enumerate() {
        let own = lane(index, what);
        let mut link = |from: Lane, to: Lane, arrived, label: String| {
            links.push(Link { from: (entry, from), to: (entry, to), arrived, label });
        };
        match what {
            What::Posted(posted) => {
                link(own, Lane::process(&posted.process), true, format!("p{}", posted.post.0));
            }
            What::Handshake(Handshake::Sent { post, process, .. }) => {
                link(own, Lane::process(process), true, format!("p{}", post.0));
            }
            What::Answered { post, status_code, .. } => {
                if let Some(posted) = index.posts.get(post) {
                    link(Lane::process(&posted.process), own, true, status_code.to_string());
                }
            }
            What::Unanswered { post, .. } => {
                if let Some(posted) = index.posts.get(post) {
                    link(Lane::process(&posted.process), own, false, format!("p{}", post.0));
                }
            }
            What::Committed(committed) => {
                let label = match committed.change {
                    Change::Accepted => "accept",
                    Change::Claimed => "claim",
                    Change::Settled { .. } => "settle",
                    Change::Redriven { .. } => "redrive",
                    Change::Discarded => "discard",
                    Change::Pruned => "prune",
                    Change::Erased => "erase",
                    Change::Capped => "cap",
                    Change::RolledBack | Change::Lost => "failover",
                };
                link(Lane::process(&committed.process), own, true, label.to_owned());
            }
            What::StaleSettlement { process, .. } => {
                link(Lane::process(process), own, true, "stale".to_owned());
            }
            What::Called { result, call, .. } => match result {
                CallResult::Done => {}
                CallResult::Refused => link(Lane::Database, own, true, format!("{call} failed")),
                CallResult::Unknown => link(Lane::Database, own, false, format!("{call}?")),
            },
            What::Sending(sending) => open.push(Open {
                sending: entry,
                process: sending.process.clone(),
                event: sending.event,
                attempt: sending.attempt,
                received: false,
                replied: None,
            }),
            What::Received(received) => {
                let of = |of: &&mut Open| {
                    !of.received && of.event == received.event && of.attempt == received.attempt
                };
                if let Some(delivery) = open.iter_mut().rev().find(of) {
                    delivery.received = true;
                    of_request.insert(received.request, delivery.sending);
                    let from = (delivery.sending, Lane::process(&delivery.process));
                    let label = format!("{} #{}", index.short(received.event), received.attempt);
                    links.push(Link { from, to: (entry, own), arrived: true, label });
                }
            }
            What::Replied { request, status_code, .. } => {
                let sending = of_request.get(request);
                if let Some(delivery) = open.iter_mut().find(|of| Some(&of.sending) == sending) {
                    delivery.replied = Some((entry, *status_code));
                } else if let Some(received) = index.requests.get(request) {
                    // The sender was killed or has exited, so the response is lost.
                    let sent = run.each(|what| {
                        if let What::Sending(sending) = what { Some(sending) } else { None }
                    });
                    let nobody = sent
                        .take_while(|(at, _)| *at <= run.entries[entry].at)
                        .filter(|(_, of)| {
                            of.event == received.event && of.attempt == received.attempt
                        })
                        .last();
                    if let Some((_, sending)) = nobody {
                        link(own, Lane::process(&sending.process), false, status_code.to_string());
                    }
                }
            }
            What::Sent { process, event, attempt, status_code } => {
                let of = |of: &Open| {
                    of.process == *process && of.event == *event && of.attempt == *attempt
                };
                if let Some(place) = open.iter().rposition(of) {
                    end(run, index, &open.remove(place), status_code.map(|_| entry), &mut links);
                }
            }
            What::Fault(Fault::Killed { process } | Fault::Exited { process }) => {
                let (gone, stay) = open.into_iter().partition(|of| of.process == *process);
                open = stay;
                let gone: Vec<Open> = gone;
                for delivery in &gone {
                    end(run, index, delivery, None, &mut links);
                }
            }
            What::Handshake(Handshake::Answered { .. } | Handshake::Relayed { .. })
            | What::Looked { .. }
            | What::Fault(_)
            | What::Reached(_)
            | What::Ready { .. } => {}
        }
    }
    for delivery in &open {
        end(run, index, delivery, None, &mut links);
    }
    Links { arrows: links, under_way: open.iter().map(|delivery| delivery.sending).collect() }
}

/// Adds the arrows of a delivery's response, and of its request if that never arrived.
fn end(run: &Run, index: &Index<'_>, delivery: &Open, heard: Option<usize>, links: &mut Vec<Link>) {
    let process = Lane::process(&delivery.process);
    let What::Sending(sending) = &run.entries[delivery.sending].what else { return };
    let downstream = Lane::Downstream(sending.source.clone());
    match (delivery.replied, heard) {
        (Some((replied, status_code)), _) => links.push(Link {
            from: (replied, downstream),
            to: (heard.unwrap_or(replied), process),
            arrived: heard.is_some(),
            label: status_code.to_string(),
        }),
        (None, None) if !delivery.received => links.push(Link {
            from: (delivery.sending, process),
            to: (delivery.sending, downstream),
            arrived: false,
            label: format!("{} #{}", index.short(delivery.event), delivery.attempt),
        }),
        (None, _) => {}
    }
}
