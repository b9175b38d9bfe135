//! The states that last for a while: crashes, stops, shutdowns, faults of network and database,
//! broken downstreams, and leases.

use super::words::{Lane, between};
use crate::history::{At, Change, Fault, Run, What};
use jiff::Timestamp;
use std::time::Duration;
use surehook_core::event::Status;
use surehook_core::id::{Attempt, EventId};

/// A fault that lasts for a while, in one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Band {
    pub(super) lane: Lane,
    pub(super) kind: BandKind,
    pub(super) what: String,
    pub(super) from: At,
    pub(super) to: At,
    /// The entry at which it started.
    pub(super) entry: usize,
    /// Whether no entry of the history shows its end. Then the timeline adds a line for it.
    pub(super) ends_silently: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BandKind {
    Down,
    Paused,
    Draining,
    Network,
    Database,
    Downstream,
    Held,
}

impl BandKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Network => "network",
            Self::Database => "failing",
            Self::Downstream => "broken",
            Self::Held => "held",
        }
    }
}

/// Every band of a run, in the order of their starts.
pub(super) fn bands(run: &Run) -> Vec<Band> {
    let mut bands: Vec<Band> = Vec::new();
    for (entry, (at, what)) in run.entries.iter().map(|entry| (entry.at, &entry.what)).enumerate() {
        let What::Fault(fault) = what else { continue };
        // An entry that ends a band ends it early. A band without such an entry lasts for its own
        // duration.
        let mut end = |of: &dyn Fn(&Band) -> bool| {
            for band in bands.iter_mut().filter(|band| band.to > at && of(band)) {
                band.to = at;
                band.ends_silently = false;
            }
        };
        let (lane, kind, what, lasting) = match fault {
            Fault::Killed { process } => {
                end(&|band| band.lane == Lane::process(process));
                (Lane::process(process), BandKind::Down, "down", None)
            }
            Fault::Exited { process } => {
                end(&|band| band.lane == Lane::process(process) && band.kind == BandKind::Draining);
                (Lane::process(process), BandKind::Down, "down", None)
            }
            Fault::Started { process } => {
                end(&|band| band.lane == Lane::process(process) && band.kind == BandKind::Down);
                continue;
            }
            Fault::Reloaded { .. } | Fault::Closing { .. } => continue,
            Fault::Draining { process } => {
                (Lane::process(process), BandKind::Draining, "shutting down", None)
            }
            Fault::Paused { process, duration } => {
                (Lane::process(process), BandKind::Paused, "stopped", Some(*duration))
            }
            Fault::Network { what, duration } => {
                (Lane::World, BandKind::Network, what.as_str(), Some(*duration))
            }
            Fault::Database { what, process: None, duration } if !duration.is_zero() => {
                (Lane::Database, BandKind::Database, what.as_str(), Some(*duration))
            }
            Fault::Database { .. } => continue,
            Fault::Downstream { source, what, broken } => {
                end(&|band| {
                    band.kind == BandKind::Downstream
                        && band.lane == Lane::Downstream(source.clone())
                });
                if !broken {
                    continue;
                }
                (Lane::Downstream(source.clone()), BandKind::Downstream, what.as_str(), None)
            }
            Fault::SourcePaused { source, paused } => {
                end(&|band| {
                    band.kind == BandKind::Held && band.lane == Lane::Downstream(source.clone())
                });
                if !paused {
                    continue;
                }
                (Lane::Downstream(source.clone()), BandKind::Held, "paused by an operator", None)
            }
            Fault::Healed => {
                end(&|band| !matches!(band.kind, BandKind::Down | BandKind::Draining));
                continue;
            }
        };
        let to = lasting.map_or(run.ended_at, |lasting| at + lasting).max(at);
        let ends_silently = lasting.is_some() && to < run.ended_at;
        bands.push(Band { lane, kind, what: what.to_owned(), from: at, to, entry, ends_silently });
    }
    bands
}

/// The time in which an event belongs to the process that claimed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) event: EventId,
    pub(super) attempt: Attempt,
    pub(super) process: String,
    pub(super) from: At,
    /// The commit of the claim.
    pub(super) entry: usize,
    pub(super) to: At,
    /// The commit of its settlement; `None` if the lease ended unsettled, or the run ended before.
    pub(super) settled: Option<usize>,
}

impl Lease {
    pub(super) fn ran_out(&self, run: &Run) -> bool {
        self.settled.is_none() && self.to < run.ended_at
    }
}

/// Every lease of a run, in the order of the claims.
pub(super) fn leases(run: &Run) -> Vec<Lease> {
    let mut leases = Vec::new();
    for (entry, at, committed) in commits(run) {
        let Some(row) = committed.after.filter(|row| {
            committed.change == Change::Claimed && row.delivery.status == Status::Processing
        }) else {
            continue;
        };
        let due = row
            .due_at
            .map_or(run.ended_at, |due| reached(run, entry, due))
            .clamp(at, run.ended_at.max(at));
        let settlement = commits(run).find(|(later, _, other)| {
            let settles = matches!(other.change, Change::Settled { fence, .. } if fence == row.delivery.fence);
            *later > entry && other.event == committed.event && settles
        });
        let (to, settled) = match settlement {
            Some((settled, when, _)) if when <= due => (when, Some(settled)),
            _ => (due, None),
        };
        let (event, attempt) = (committed.event, row.delivery.attempt);
        leases.push(Lease {
            event,
            attempt,
            process: committed.process.clone(),
            from: at,
            entry,
            to,
            settled,
        });
    }
    leases
}

fn commits(run: &Run) -> impl Iterator<Item = (usize, At, &crate::history::Committed)> {
    run.entries.iter().enumerate().filter_map(|(entry, of)| {
        let What::Committed(committed) = &of.what else { return None };
        Some((entry, of.at, committed))
    })
}

/// When the database's clock reached `due`. The clock can jump, so each commit after `from` gives a
/// new estimate.
fn reached(run: &Run, from: usize, due: Timestamp) -> At {
    let mut expected = run.ended_at;
    for (entry, at, committed) in commits(run).skip_while(|(entry, ..)| *entry < from) {
        if entry > from && at >= expected {
            break;
        }
        let left =
            if due > committed.db_time { between(committed.db_time, due) } else { Duration::ZERO };
        expected = at + left;
    }
    expected
}
