//! The database calls of operators and of maintenance, as transactions that lock rows and take time.

use crate::bugs::Bug;
use crate::database::{AtCommit, Lock};
use crate::rows::discard_one;
use crate::transaction::{Transaction, Work};
use std::time::Duration;
use surehook::ports::{Discarded, Erased, NewEvent, Pruned, Redriven, Retention, StoreError};
use surehook::search::{ChangedPage, EventFilter, PageSize, Span};
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, RedrivenBy, Status};
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_model::database::Database;
use surehook_model::history::Change;
use surehook_model::marks::Mark;

impl Transaction<'_> {
    pub(crate) async fn pause(
        &mut self,
        source: SourceName,
        paused: bool,
        at_commit: AtCommit,
    ) -> Result<bool, StoreError> {
        self.disk.step().await;
        let pause = |work: &mut Work<'_>| {
            let now = work.now;
            work.state.tables.pause(now, source, paused)
        };
        self.commit(at_commit, pause).await
    }

    /// Inserts an event, rolls it back, and commits with the same waits as an insert.
    pub(crate) async fn probe(
        &mut self,
        event: NewEvent,
        at_commit: AtCommit,
    ) -> Result<(), StoreError> {
        self.lock(Lock::Key(event.source, event.key)).await?;
        self.disk.step().await;
        self.commit(at_commit, |_| ()).await
    }

    /// Redrives a dead letter, or a delivered event if `by` is `None`.
    pub(crate) async fn redrive(
        &mut self,
        event: EventId,
        by: Option<RedrivenBy>,
        at_commit: AtCommit,
    ) -> Result<Redriven, StoreError> {
        self.lock(Lock::Row(event)).await?;
        self.disk.step().await;
        let redrive = |work: &mut Work<'_>| {
            let now = work.now;
            work.change(event, Change::Redriven { of_many: false }, |tables| match by {
                Some(by) => tables.redrive(now, event, by),
                None => tables.redrive_delivered(now, event),
            })
        };
        self.commit(at_commit, redrive).await
    }

    pub(crate) async fn redrive_all(
        &mut self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
        at_commit: AtCommit,
    ) -> Result<ChangedPage, StoreError> {
        let (mut letters, page) =
            self.disk.state().tables.letters(&filter.clone().of_dead_letters(), span, size);
        let discarded = discarded(&self.disk.state().tables, &filter);
        if self.disk.bug == Some(Bug::RedriveTakesDiscarded) {
            letters.extend(discarded);
        } else if !discarded.is_empty() {
            self.disk.reached(Mark::DiscardedLeftByRedrive);
        }
        if dry_run {
            return self.read(|_, _| page);
        }
        let held: Vec<EventId> =
            letters.into_iter().filter(|letter| self.try_lock(&Lock::Row(*letter))).collect();
        self.disk.step().await;
        let redrive = |work: &mut Work<'_>| {
            let now = work.now;
            let mut sources = Vec::new();
            for letter in held {
                let redriven = work.change(letter, Change::Redriven { of_many: true }, |tables| {
                    tables.redrive(now, letter, RedrivenBy::Operator)
                });
                if redriven == Redriven::Queued {
                    sources.push(work.source(letter));
                }
            }
            ChangedPage::new(sources, page.next)
        };
        self.commit(at_commit, redrive).await
    }

    pub(crate) async fn discard(
        &mut self,
        event: EventId,
        scope: DiscardScope,
        at_commit: AtCommit,
    ) -> Result<Discarded, StoreError> {
        self.lock(Lock::Row(event)).await?;
        self.disk.step().await;
        let bug = self.disk.bug;
        let discard = |work: &mut Work<'_>| {
            let now = work.now;
            work.change(event, Change::Discarded, |tables| {
                discard_one(tables, now, event, scope, bug)
            })
        };
        self.commit(at_commit, discard).await
    }

    pub(crate) async fn discard_all(
        &mut self,
        filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
        at_commit: AtCommit,
    ) -> Result<ChangedPage, StoreError> {
        let (chosen, scope, page) =
            self.disk.state().tables.discardable(self.now, &filter, scope, span, size);
        if dry_run {
            return self.read(|_, _| page);
        }
        let held: Vec<EventId> =
            chosen.into_iter().filter(|event| self.try_lock(&Lock::Row(*event))).collect();
        self.disk.step().await;
        let bug = self.disk.bug;
        let discard = |work: &mut Work<'_>| {
            let now = work.now;
            let mut sources = Vec::new();
            for event in held {
                let discarded = work.change(event, Change::Discarded, |tables| {
                    discard_one(tables, now, event, scope, bug)
                });
                if discarded == Discarded::Now {
                    sources.push(work.source(event));
                }
            }
            ChangedPage::new(sources, page.next)
        };
        self.commit(at_commit, discard).await
    }

    /// Deletes the events whose retention has ended, except those with rows locked by others.
    pub(crate) async fn prune(
        &mut self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
        at_commit: AtCommit,
    ) -> Result<Pruned, StoreError> {
        let (over, reached) = {
            let state = self.disk.state();
            let (mut over, reached) = state.tables.to_prune(self.now, retention, after, limit);
            if self.disk.bug == Some(Bug::PruneOwed) {
                over.extend(retrying(&state.tables));
            }
            let key = |id: &EventId| {
                state
                    .tables
                    .events
                    .get(id)
                    .map(|row| (row.event.source.clone(), row.event.key.clone()))
            };
            (over.into_iter().filter_map(|id| Some((id, key(&id)?))).collect::<Vec<_>>(), reached)
        };
        let mut doomed = Vec::new();
        for (event, (source, key)) in over {
            if self.try_lock(&Lock::Row(event)) && self.try_lock(&Lock::Key(source, key)) {
                doomed.push((event, self.disk.state().row(event)));
            }
        }
        self.disk.step().await;
        let delete = |work: &mut Work<'_>| {
            let (mut deleted, mut dead_lettered, mut discarded) = (0, 0, 0);
            for (event, row) in doomed {
                let Some(record) =
                    work.state.tables.find(event).filter(|_| work.state.row(event) == row)
                else {
                    continue;
                };
                let is_discarded = work.state.tables.is_discarded(event);
                discarded += u64::from(is_discarded);
                dead_lettered += u64::from(record.status == Status::DeadLettered && !is_discarded);
                work.state.pruned.insert(event, record);
                work.state.tables.delete(event);
                work.committed.push((event, Change::Pruned, row, None));
                deleted += 1;
            }
            Pruned { deleted, dead_lettered, discarded, reached }
        };
        self.commit(at_commit, delete).await
    }

    /// Erases the payloads whose retention has ended, except those with rows locked by others.
    pub(crate) async fn erase(
        &mut self,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
        at_commit: AtCommit,
    ) -> Result<Erased, StoreError> {
        let (mut over, reached) = self.disk.state().tables.to_erase(self.now, kept, after, limit);
        if self.disk.bug == Some(Bug::EraseOwed) {
            over.extend(retrying(&self.disk.state().tables));
        }
        let held: Vec<EventId> =
            over.into_iter().filter(|event| self.try_lock(&Lock::Row(*event))).collect();
        self.disk.step().await;
        let erase = |work: &mut Work<'_>| {
            let now = work.now;
            let mut erased = 0;
            for event in held {
                if work.state.row(event).is_none() || self.disk.bug == Some(Bug::EraseOwed) {
                    work.state.tables.erase_one(now, event);
                    let row = work.state.row(event);
                    work.committed.push((event, Change::Erased, row, row));
                    erased += 1;
                }
            }
            Erased { erased, reached }
        };
        self.commit(at_commit, erase).await
    }

    /// Caps due times that are beyond the horizon, except those of rows locked by others.
    pub(crate) async fn cap_due_times(
        &mut self,
        bounds: Vec<Bound>,
        limit: u32,
        at_commit: AtCommit,
    ) -> Result<u64, StoreError> {
        let beyond = self.disk.state().tables.beyond(self.now, &bounds, limit);
        let mut held = Vec::new();
        for (event, lease) in beyond {
            if self.try_lock(&Lock::Row(event)) {
                held.push((event, lease, self.disk.state().row(event)));
            }
        }
        self.disk.step().await;
        if held.is_empty() {
            // A transaction that writes nothing does not wait for the standby.
            self.may_commit(at_commit)?;
            return Ok(0);
        }
        let cap = |work: &mut Work<'_>| {
            let (now, mut capped) = (work.now, 0);
            for (event, lease, row) in held {
                if work.state.row(event) == row {
                    work.change(event, Change::Capped, |tables| {
                        tables.cap_due_time(now, event, lease);
                    });
                    capped += 1;
                }
            }
            capped
        };
        self.commit(at_commit, cap).await
    }
}

/// The discarded events that a filter for a redrive names by their source, if by any.
fn discarded(tables: &Database, filter: &EventFilter) -> Vec<EventId> {
    let is_of_source = |event: &&EventId| {
        filter.source.as_ref().is_none_or(|source| tables.events[*event].event.source == *source)
    };
    let of_source = tables.deliveries.keys().filter(is_of_source).copied();
    of_source.filter(|event| tables.is_discarded(*event)).collect()
}

/// The events that wait for a retry.
fn retrying(tables: &Database) -> Vec<EventId> {
    tables
        .deliveries
        .iter()
        .filter(|(_, row)| row.delivery.status == Status::Retrying)
        .map(|(event, _)| *event)
        .collect()
}
