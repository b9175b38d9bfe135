//! One of the stores that are compared, and its offset to the virtual clock.
//!
//! The virtual clock stands still during an operation and advances in steps of [`GRID`]. All
//! durations in calls are whole steps. So a time that a database has just stored is a whole step
//! plus the duration of the operation. It is moved back to the step, minus one millisecond for each
//! event with a smaller number. Then no two events of a source are due at the same time, and
//! "oldest first" is unambiguous.

use super::operation::Call;
use super::picture::Picture;
use crate::db::{Db, Raw};
use crate::find::{self, Readable};
use jiff::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use surehook::ports::{Discarded, Erased, Pruned, Redriven, StoreError};
use surehook::search::{ChangedPage, EventPage, EventRecord, FailureSummary, SourceRecord};
use surehook_core::admission::Stored;
use surehook_core::id::EventId;
use surehook_core::retention::Reached;
use surehook_core::worker::claims::Claims;
use surehook_model::database::Database;

/// One step. Every operation takes less time.
pub(super) const GRID: Duration = Duration::from_mins(1);
const GRID_US: i64 = 60_000_000;
/// The largest distance of a time below its step: more than a millisecond for each of 255 events.
const BELOW_US: i64 = 1_000_000;

/// The virtual time at the start of a sequence.
pub(super) const EPOCH: i64 = 1_000_000 * GRID_US;

pub(super) struct Side {
    pub(super) name: &'static str,
    db: Db,
    /// The difference between stored times and the virtual clock, in microseconds.
    ahead: i64,
}

/// An answer in a form that allows comparing two stores. Where the port leaves the order open, it
/// is sorted. Of an error only the kind is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted(Result<Vec<Stored>, ErrorKind>),
    /// The port guarantees which events are claimed, but not the order of the list.
    Claimed(Result<Claims, ErrorKind>),
    Settled(Result<Vec<EventId>, ErrorKind>),
    Redriven(Result<Redriven, ErrorKind>),
    Redelivered(Result<Redriven, ErrorKind>),
    Erased(Result<Erased, ErrorKind>),
    Capped(Result<u64, ErrorKind>),
    Pruned(Result<Pruned, ErrorKind>),
    /// With virtual times.
    Listed(Result<EventPage, ErrorKind>),
    AllRedriven(Result<ChangedPage, ErrorKind>),
    Discarded(Result<Discarded, ErrorKind>),
    AllDiscarded(Result<ChangedPage, ErrorKind>),
    Paused(Result<bool, ErrorKind>),
    /// With virtual times.
    Summary(Result<FailureSummary, ErrorKind>),
    /// The delay of a source in whole steps, and whether it is paused, but not since when.
    Sources(Result<Vec<(SourceRecord, bool)>, ErrorKind>),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    Unavailable,
    Conflict,
    Rejected,
    Unknown,
}

impl Side {
    pub(super) fn new(name: &'static str, db: Db) -> Self {
        let mut side = Self { name, db, ahead: 0 };
        side.ahead = side.now() - EPOCH;
        side
    }

    /// Empties the tables and resets the virtual clock.
    pub(super) async fn clear(&mut self) {
        match &self.db.raw {
            Raw::Memory(memory) => memory.transact(|tables, _| *tables = Database::default()),
            Raw::Postgres(_) | Raw::Sqlite(_) => {
                self.db.execute("delete from actions; delete from attempts; delete from deliveries; delete from events; delete from paused_sources").await;
            }
        }
        self.ahead = self.now() - EPOCH;
    }

    pub(super) async fn answer(&self, call: &Call) -> Answer {
        let store = &self.db.store;
        match call.clone() {
            Call::Accept(batch) => {
                Answer::Accepted(store.accept(batch).await.map_err(kind).map(|mut stored| {
                    for stored in &mut stored {
                        // The time within the operation has its own clause.
                        if let Stored::Claimed { received_at } = stored {
                            *received_at = Timestamp::UNIX_EPOCH;
                        }
                    }
                    stored
                }))
            }
            Call::Claim(demands) => {
                Answer::Claimed(store.claim(demands).await.map_err(kind).map(|mut claims| {
                    claims.claimed.sort_by_key(|claim| claim.event);
                    // The age includes the duration of the operations, and has its own clause.
                    for claim in &mut claims.claimed {
                        claim.age = Duration::ZERO;
                        claim.received_at = self.virtual_time(claim.received_at);
                    }
                    claims.dead_lettered.sort_by_key(|dead_lettered| dead_lettered.event);
                    claims
                }))
            }
            Call::Settle(batch) => {
                Answer::Settled(store.settle(batch).await.map_err(kind).map(|mut refused| {
                    refused.sort();
                    refused
                }))
            }
            Call::Redrive(event, by) => {
                Answer::Redriven(store.redrive(event, by).await.map_err(kind))
            }
            Call::RedriveDelivered(event) => {
                Answer::Redelivered(store.redrive_delivered(event).await.map_err(kind))
            }
            Call::Prune(retention, after, limit) => {
                let pruned = store.prune(retention, after, limit).await.map_err(kind);
                Answer::Pruned(
                    pruned.map(|pruned| Pruned { reached: without_time(pruned.reached), ..pruned }),
                )
            }
            Call::Erase(kept, after, limit) => {
                let erased = store.erase(kept, after, limit).await.map_err(kind);
                Answer::Erased(
                    erased.map(|erased| Erased { reached: without_time(erased.reached), ..erased }),
                )
            }
            Call::CapDueTimes(bounds, limit) => {
                Answer::Capped(store.cap_due_times(bounds, limit).await.map_err(kind))
            }
            Call::List(filter, span, size) => Answer::Listed(
                store.list(filter, span, size).await.map_err(kind).map(|mut page| {
                    page.events =
                        page.events.into_iter().map(|found| self.on_the_clock(found)).collect();
                    page
                }),
            ),
            Call::RedriveAll(filter, span, size, dry_run) => Answer::AllRedriven(
                store.redrive_all(filter, span, size, dry_run).await.map_err(kind),
            ),
            Call::Discard(event, scope) => {
                Answer::Discarded(store.discard(event, scope).await.map_err(kind))
            }
            Call::DiscardAll(filter, scope, span, size, dry_run) => Answer::AllDiscarded(
                store.discard_all(filter, scope, span, size, dry_run).await.map_err(kind),
            ),
            Call::Pause(source, paused) => {
                Answer::Paused(store.pause(source, paused).await.map_err(kind))
            }
            Call::Sources(names, count_to) => {
                let records = store.sources(names, count_to).await.map_err(kind);
                Answer::Sources(
                    records.map(|records| records.into_iter().map(on_the_grid).collect()),
                )
            }
            Call::Summary(mut filter, size) => {
                filter.since =
                    filter.since.map(|since| micros(since.as_microsecond() + self.ahead));
                let summary = store.summary(filter, size).await.map_err(kind);
                Answer::Summary(summary.map(|mut summary| {
                    for group in &mut summary.groups {
                        group.first = self.virtual_time(group.first);
                        group.last = self.virtual_time(group.last);
                    }
                    summary
                }))
            }
            Call::Pass => Answer::Nothing,
        }
    }

    /// What operators can read of an event, with virtual times.
    pub(super) async fn read(&self, event: EventId) -> Result<Readable, ErrorKind> {
        let mut read = find::read(&*self.db.store, event).await.map_err(kind)?;
        read.record = read.record.map(|found| self.on_the_clock(found));
        if let Some(request) = &mut read.request {
            request.received_at = self.virtual_time(request.received_at);
            request.erased_at = request.erased_at.map(|at| self.virtual_time(at));
        }
        Ok(read)
    }

    /// Moves every stored time to its place on the virtual clock, whose time is `now` from here on.
    pub(super) async fn settle_times(&mut self, now: i64) {
        let (before, after) = (self.ahead, self.now() - now);
        let of = |column: &str, id: &str| {
            match &self.db.raw {
            Raw::Postgres(_) => format!(
                "{column} = 'epoch'::timestamptz + (((extract(epoch from {column}) * 1000000)::bigint - {before} + {BELOW_US}) / {GRID_US} * {GRID_US}
                 - 1000 * get_byte(uuid_send({id}), 15) + {after}) * interval '1 microsecond'"
            ),
            Raw::Sqlite(_) => {
                let digit = |at: u32| format!("(instr('0123456789ABCDEF', substr(hex({id}), {at}, 1)) - 1)");
                format!(
                    "{column} = ({column} - {before} + {BELOW_US}) / {GRID_US} * {GRID_US} - 1000 * (16 * {} + {}) + {after}",
                    digit(31),
                    digit(32)
                )
            }
            Raw::Memory(_) => String::new(),
        }
        };
        if let Raw::Memory(memory) = &self.db.raw {
            memory.transact(|tables, _| {
                let put = |event: &EventId, at: &mut Timestamp| {
                    let number = i64::from(event.as_uuid().as_bytes()[15]);
                    let on_the_clock = (at.as_microsecond() - before + BELOW_US) / GRID_US
                        * GRID_US
                        - 1000 * number;
                    *at = micros(on_the_clock + after);
                };
                tables.events.iter_mut().for_each(|(event, row)| {
                    put(event, &mut row.received_at);
                    row.erased_at.iter_mut().for_each(|at| put(event, at));
                });
                tables
                    .deliveries
                    .iter_mut()
                    .for_each(|(event, row)| row.due_at.iter_mut().for_each(|at| put(event, at)));
                tables.ended.iter_mut().for_each(|(event, at)| put(event, at));
                tables
                    .attempts
                    .iter_mut()
                    .for_each(|((event, _), entry)| put(event, &mut entry.ended_at));
                tables.actions.iter_mut().for_each(|((event, _), entry)| put(event, &mut entry.at));
            });
        } else {
            let (events, erased) = (of("received_at", "id"), of("erased_at", "id"));
            let (due, ended) = (of("due_at", "event_id"), of("ended_at", "event_id"));
            let acted = of("at", "event_id");
            self.db
                .execute(&format!(
                    "begin; update events set {events}, {erased}; update deliveries set {due}, {ended}; update attempts set {ended}; update actions set {acted}; commit"
                ))
                .await;
        }
        self.ahead = after;
    }

    /// The tables, with virtual times.
    pub(super) async fn picture(&self) -> Picture {
        Picture::of(&self.db, self.ahead).await
    }

    /// The model's tables. Empty for the other sides.
    pub(super) fn tables(&self) -> Database {
        match &self.db.raw {
            Raw::Memory(memory) => memory.tables(),
            Raw::Postgres(_) | Raw::Sqlite(_) => Database::default(),
        }
    }

    /// The database's time, in microseconds. PostgreSQL and SQLite use the machine's clock.
    fn now(&self) -> i64 {
        match &self.db.raw {
            Raw::Memory(memory) => memory.now().as_microsecond(),
            Raw::Postgres(_) | Raw::Sqlite(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_micros()
                .try_into()
                .unwrap(),
        }
    }

    fn virtual_time(&self, at: Timestamp) -> Timestamp {
        micros(at.as_microsecond() - self.ahead)
    }

    fn on_the_clock(&self, mut found: EventRecord) -> EventRecord {
        let put = |at: &mut Timestamp| *at = self.virtual_time(*at);
        put(&mut found.received_at);
        found.next_attempt_at.iter_mut().for_each(put);
        found.settled_at.iter_mut().for_each(put);
        found.history.iter_mut().for_each(|entry| put(&mut entry.ended_at));
        found.actions.iter_mut().for_each(|entry| put(&mut entry.at));
        found
    }
}

/// A source's record with its delay in whole steps. Due times are up to a second below their step,
/// and an operation takes less than a step.
fn on_the_grid(mut record: SourceRecord) -> (SourceRecord, bool) {
    record.behind = record
        .behind
        .map(|behind| GRID * u32::try_from(behind.as_secs() / GRID.as_secs()).unwrap());
    let is_paused = record.paused_since.take().is_some();
    (record, is_paused)
}

fn micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap()
}

fn kind(error: StoreError) -> ErrorKind {
    match error {
        StoreError::Unavailable(_) => ErrorKind::Unavailable,
        StoreError::Conflict(_) => ErrorKind::Conflict,
        StoreError::Rejected(_) => ErrorKind::Rejected,
        StoreError::Unknown(_) => ErrorKind::Unknown,
    }
}

/// Ids use the real time, and the stores' clocks differ, so whether an id is old is not part of the
/// answer.
fn without_time(reached: Reached) -> Reached {
    Reached { behind: None, ..reached }
}
