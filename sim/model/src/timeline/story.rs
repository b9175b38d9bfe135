//! The content of a timeline: the violations, the events that are shown in full, and the moments
//! ordered by time.

use super::index::Index;
use super::links::{Links, links};
use super::spans::{Band, BandKind, Lease, bands, leases};
use super::words::{Lane, counted, lane, seconds, words};
use crate::history::{At, CallResult, Run, What};
use crate::oracles::Violation;
use std::collections::{BTreeMap, BTreeSet};
use surehook_core::id::EventId;

/// The number of events that are shown in full, unless one violation alone concerns more.
const EVENTS_IN_FULL: usize = 4;

const COLOURS: usize = 4;

/// How much of the run is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The events of the violations, and every fault.
    Essential,
    Everything,
}

/// A run and the content of its timeline.
pub(super) struct Story<'a> {
    pub(super) run: &'a Run,
    pub(super) index: Index<'a>,
    /// All violations, ordered by time.
    pub(super) violations: &'a [Violation],
    /// The events that are shown in full. Empty if no violation names an event; then all are.
    pub(super) in_full: BTreeSet<EventId>,
    pub(super) bands: Vec<Band>,
    pub(super) leases: Vec<Lease>,
    pub(super) links: Links,
    pub(super) moments: Vec<Moment>,
}

/// One line of the timeline.
pub(super) struct Moment {
    pub(super) at: At,
    pub(super) lane: Lane,
    pub(super) text: String,
    pub(super) kind: MomentKind,
    pub(super) events: Vec<EventId>,
    /// The entry that the line describes; `None` for a line that is derived from other entries.
    pub(super) entry: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MomentKind {
    Step,
    Fault,
    /// A violation, by its index.
    Broken(usize),
}

/// The next line of a renderer.
pub(super) enum Row<'s> {
    Moment(&'s Moment),
    LeftOut(usize),
}

impl<'a> Story<'a> {
    pub(super) fn of(run: &'a Run, violations: &'a [Violation], scope: Scope) -> Self {
        let in_full = events_in_full(violations);
        let (index, bands, leases) = (Index::of(run), bands(run), leases(run));
        let links = links(run, &index);
        let mut story =
            Self { run, index, violations, in_full, bands, leases, links, moments: Vec::new() };
        story.moments = story.tell(scope);
        story
    }

    /// Whether something about these events is shown in full.
    pub(super) fn is_in_full(&self, events: &[EventId]) -> bool {
        self.in_full.is_empty() || events.iter().any(|event| self.in_full.contains(event))
    }

    /// The colour of the first of these events that is shown in full. Up to `COLOURS` events have
    /// different colours.
    pub(super) fn colour(&self, events: &[EventId]) -> Option<usize> {
        let event = events.iter().find(|event| self.in_full.contains(event))?;
        let in_full = self.index.events.iter().filter(|event| self.in_full.contains(event));
        in_full.enumerate().find(|(_, other)| *other == event).map(|(place, _)| place % COLOURS)
    }

    fn tell(&self, scope: Scope) -> Vec<Moment> {
        let (mut moments, mut seen) = (Vec::new(), BTreeMap::new());
        for (entry, (at, what)) in
            self.run.entries.iter().map(|entry| (entry.at, &entry.what)).enumerate()
        {
            let events = self.index.touched(what);
            let fault = matches!(what, What::Fault(_));
            let noise = match what {
                // The commit of a successful call is shown instead.
                What::Called { result, .. } => *result == CallResult::Done,
                // A lookup with the same result as the one before is shown only if it is wrong.
                What::Looked { event, status, attempts, .. } => {
                    let again =
                        seen.insert(*event, (*status, *attempts)) == Some((*status, *attempts));
                    again && self.violations.iter().all(|violation| violation.at != at)
                }
                What::Posted(_)
                | What::Handshake(_)
                | What::Answered { .. }
                | What::Unanswered { .. }
                | What::Sending(_)
                | What::Sent { .. }
                | What::Received(_)
                | What::Replied { .. }
                | What::Committed(_)
                | What::StaleSettlement { .. }
                | What::Fault(_)
                | What::Reached(_)
                | What::Ready { .. } => false,
            };
            // These concern no single event, and explain later entries.
            let always = fault
                || matches!(
                    what,
                    What::Reached(_) | What::Handshake(_) | What::Ready { is_ready: false, .. }
                );
            if scope == Scope::Everything || always || (!noise && self.is_in_full(&events)) {
                let kind = if fault { MomentKind::Fault } else { MomentKind::Step };
                let text = self.index.plain(&words(&self.index, what));
                moments.push(Moment {
                    at,
                    lane: lane(&self.index, what),
                    text,
                    kind,
                    events,
                    entry: Some(entry),
                });
            }
        }
        let silent = self.bands.iter().filter(|band| band.ends_silently).map(|band| Moment {
            at: band.to,
            lane: band.lane.clone(),
            text: if band.kind == BandKind::Paused {
                "continues".to_owned()
            } else {
                self.index.plain(&format!("ended: {}", band.what))
            },
            kind: MomentKind::Fault,
            events: Vec::new(),
            entry: None,
        });
        let ran_out =
            self.leases.iter().filter(|lease| lease.ran_out(self.run)).map(|lease| Moment {
                at: lease.to,
                lane: Lane::Database,
                text: format!(
                    "the lease of {} on {} #{} ends unsettled",
                    lease.process,
                    self.index.short(lease.event),
                    lease.attempt
                ),
                kind: MomentKind::Step,
                events: vec![lease.event],
                entry: None,
            });
        let ran_out =
            ran_out.filter(|moment| scope == Scope::Everything || self.is_in_full(&moment.events));
        let broken = self.violations.iter().enumerate().map(|(number, violation)| Moment {
            at: violation.at,
            lane: Lane::World,
            text: format!("BROKEN [{:?}] {}", violation.promise, self.index.plain(&violation.what)),
            kind: MomentKind::Broken(number),
            events: violation.events.clone(),
            entry: None,
        });
        let broken = broken.filter(|moment| {
            scope == Scope::Everything
                || moment.events.is_empty()
                || self.is_in_full(&moment.events)
        });
        let under_way = self.links.under_way.iter().filter_map(|entry| {
            let What::Sending(sending) = &self.run.entries[*entry].what else { return None };
            let begun = seconds(self.run.entries[*entry].at);
            Some(Moment {
                at: self.run.ended_at,
                lane: Lane::process(&sending.process),
                text: format!(
                    "still sends {} #{}, since {begun}",
                    self.index.short(sending.event),
                    sending.attempt
                ),
                kind: MomentKind::Step,
                events: vec![sending.event],
                entry: None,
            })
        });
        let under_way = under_way
            .filter(|moment| scope == Scope::Everything || self.is_in_full(&moment.events));
        let derived: Vec<Moment> = silent.chain(ran_out).chain(under_way).chain(broken).collect();
        moments.extend(derived);
        moments.sort_by_key(|moment| moment.at); // stable: derived lines come after their entry
        moments
    }

    /// At most `most` moments, those nearest to the violations, with the numbers of the moments
    /// left out between them.
    pub(super) fn rows(&self, most: usize) -> Vec<Row<'_>> {
        let broken: Vec<usize> = (0..self.moments.len())
            .filter(|place| matches!(self.moments[*place].kind, MomentKind::Broken(_)))
            .collect();
        let mut by_distance: Vec<usize> = (0..self.moments.len()).collect();
        by_distance.sort_by_key(|place| {
            broken.iter().map(|broken| broken.abs_diff(*place)).min().unwrap_or(0)
        });
        let kept: BTreeSet<usize> = by_distance.into_iter().take(most).collect();
        let (mut rows, mut left_out) = (Vec::new(), 0);
        for (place, moment) in self.moments.iter().enumerate() {
            if !kept.contains(&place) {
                left_out += 1;
                continue;
            }
            if left_out > 0 {
                rows.push(Row::LeftOut(left_out));
                left_out = 0;
            }
            rows.push(Row::Moment(moment));
        }
        if left_out > 0 {
            rows.push(Row::LeftOut(left_out));
        }
        rows
    }

    /// The first violation of each promise with its index, and the number of further violations of
    /// that promise.
    pub(super) fn first_of_each_promise(&self) -> Vec<(usize, &'a Violation, usize)> {
        let mut counts = BTreeMap::new();
        self.violations
            .iter()
            .for_each(|violation| *counts.entry(violation.promise).or_insert(0_usize) += 1);
        let mut firsts: Vec<(usize, &Violation, usize)> = Vec::new();
        for (number, violation) in self.violations.iter().enumerate() {
            if firsts.iter().all(|(_, first, _)| first.promise != violation.promise) {
                firsts.push((number, violation, counts[&violation.promise] - 1));
            }
        }
        firsts
    }

    /// The faults that were active at a time.
    pub(super) fn wrong_at(&self, at: At) -> Vec<String> {
        let in_force = self.bands.iter().filter(|band| band.from <= at && at < band.to);
        in_force
            .map(|band| {
                self.index.plain(&format!(
                    "{}: {} since {}",
                    band.lane,
                    band.what,
                    seconds(band.from)
                ))
            })
            .collect()
    }

    /// One line about an event: its names, its source and key, and its final state.
    pub(super) fn event_words(&self, event: EventId) -> String {
        let Some(record) = self.run.events.get(&event) else {
            return format!("{} {event}: not in the database at the end", self.index.short(event));
        };
        let reason =
            record.reason.map(|reason| format!(", {}", reason.as_str())).unwrap_or_default();
        let (source, key) =
            (super::words::clipped(&record.source), super::words::clipped(&record.key));
        let attempts = counted(record.attempt, "attempt");
        // The full id must not pass through `plain`, which would shorten it.
        let rest = self.index.plain(&format!(
            "{source}, key {key}: {}{reason} after {attempts}",
            record.status.as_str()
        ));
        format!("{} {event} {rest}", self.index.short(event))
    }
}

fn events_in_full(violations: &[Violation]) -> BTreeSet<EventId> {
    let mut promises = BTreeSet::new();
    let mut in_full: BTreeSet<EventId> = BTreeSet::new();
    let firsts = violations
        .iter()
        .filter(|violation| !violation.events.is_empty() && promises.insert(violation.promise));
    for violation in firsts {
        if in_full.is_empty() || in_full.len() + violation.events.len() <= EVENTS_IN_FULL {
            in_full.extend(&violation.events);
        }
    }
    in_full
}
