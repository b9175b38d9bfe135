//! A transaction of the simulated database: its locks, its duration, and its changes at the commit.
//!
//! It follows PostgreSQL. The time of a statement is that of its start. An insert waits for another
//! insert of the same key. A claim skips locked rows. While a commit waits for a synchronous
//! standby, its changes are invisible and its locks are held. The node, its faults and its switches
//! are in [`crate::database`].

use crate::bugs::Bug;
use crate::database::{AtCommit, Disk, Flushed, Lock, POISON, State};
use crate::recorder::elapsed;
use crate::rows::{accept_one, claim_one, settle_one};
use crate::timer::{sleep, timeout};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::MutexGuard;
use std::time::Duration;
use surehook::ports::{NewEvent, StoreError};
use surehook_core::admission::Stored;
use surehook_core::cursor::DueTime;
use surehook_core::event::Status;
use surehook_core::id::{Attempt, EventId};
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use surehook_model::database::{Database, DeliveryRow};
use surehook_model::history::{At, Change, Committed, What};
use surehook_model::marks::Mark;

/// How long a transaction waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// A transaction. Dropping it releases its locks.
pub(crate) struct Transaction<'a> {
    pub(crate) disk: &'a Disk,
    generation: u64,
    locks: Vec<Lock>,
    process: String,
    /// When the process sent its statement.
    sent: At,
    /// The start of its statement, in the run's time and in the database's.
    began: At,
    pub(crate) now: Timestamp,
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.generation == self.generation {
            for lock in &self.locks {
                state.locks.remove(lock);
            }
        }
        drop(state);
        self.disk.unlocked.notify_waiters();
    }
}

/// The result of a claim.
#[derive(Default)]
pub(crate) struct Claimed {
    pub(crate) claims: Claims,
    /// The source of each claimed row, and when the row was due.
    pub(crate) due: Vec<(SourceName, DueTime)>,
}

/// The changes of a transaction at the instant of its commit.
pub(crate) struct Work<'a> {
    pub(crate) state: MutexGuard<'a, State>,
    pub(crate) now: Timestamp,
    pub(crate) committed: Vec<(EventId, Change, Option<DeliveryRow>, Option<DeliveryRow>)>,
    stale: Vec<(EventId, Attempt)>,
}

impl Work<'_> {
    pub(crate) fn change<T>(
        &mut self,
        event: EventId,
        change: Change,
        make: impl FnOnce(&mut Database) -> T,
    ) -> T {
        let before = self.state.row(event);
        let result = make(&mut self.state.tables);
        let after = self.state.row(event);
        if before != after {
            self.committed.push((event, change, before, after));
        }
        result
    }

    /// The source of a stored event.
    pub(crate) fn source(&self, event: EventId) -> String {
        self.state.tables.events[&event].event.source.to_string()
    }
}

/// When a row is due; `None` if there is no row, or if it is a dead letter.
fn due_time(row: Option<DeliveryRow>) -> Option<DueTime> {
    Some(DueTime::from_micros(row?.due_at?.as_microsecond()))
}

pub(crate) fn broken() -> StoreError {
    StoreError::Unknown("connection broken".to_owned())
}

impl<'a> Transaction<'a> {
    /// Starts a transaction whose single statement starts now.
    pub(crate) fn begin(disk: &'a Disk, process: String, sent: At) -> Self {
        let state = disk.state();
        let (generation, now) = (state.generation, state.now());
        drop(state);
        Self { disk, generation, locks: Vec::new(), process, sent, began: elapsed(), now }
    }

    /// Its statement starts only now: until now it has waited for the database's writer.
    pub(crate) fn starts_now(&mut self) {
        (self.now, self.began) = (self.disk.state().now(), elapsed());
    }

    fn is_cut_off(&self) -> bool {
        self.disk.state().generation != self.generation
    }

    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&Database, Timestamp) -> T,
    ) -> Result<T, StoreError> {
        let state = self.disk.state();
        let standby =
            state.lagging.as_ref().filter(|_| self.disk.bug == Some(Bug::FindReadsStandby));
        if state.generation == self.generation {
            Ok(read(standby.unwrap_or(&state.tables), state.now()))
        } else {
            Err(broken())
        }
    }

    /// Commits. Returns when the standby has the changes, if the database waits for that.
    pub(crate) async fn commit<T>(
        &self,
        at_commit: AtCommit,
        work: impl FnOnce(&mut Work<'_>) -> T,
    ) -> Result<T, StoreError> {
        self.may_commit(at_commit)?;
        let flushed = self.disk.flushed(self.generation).await;
        if flushed == Flushed::Nowhere {
            return Err(broken());
        }
        let mut at_work = Work {
            state: self.disk.state(),
            now: self.now,
            committed: Vec::new(),
            stale: Vec::new(),
        };
        let answer = work(&mut at_work);
        let Work { state, now, committed, stale } = at_work;
        drop(state);
        for (event, change, before, after) in committed {
            let process = self.process.clone();
            self.disk.recorder.record(What::Committed(Committed {
                event,
                db_time: now,
                sent: Some(self.sent),
                began: Some(self.began),
                process,
                change,
                before,
                after,
            }));
        }
        for (event, attempt) in stale {
            self.disk.recorder.record(What::StaleSettlement {
                process: self.process.clone(),
                event,
                attempt,
            });
        }
        if flushed == Flushed::Here {
            self.disk.reached(Mark::VisibleUnreplicated);
            if self.disk.bug != Some(Bug::CancelledCommitTakenForDone) {
                return Err(broken());
            }
        }
        Ok(answer)
    }

    pub(crate) fn may_commit(&self, at_commit: AtCommit) -> Result<(), StoreError> {
        if self.is_cut_off() || at_commit == AtCommit::Break {
            return Err(broken());
        }
        if at_commit == AtCommit::GiveWay {
            return Err(StoreError::Conflict("could not serialize access".to_owned()));
        }
        Ok(())
    }

    pub(crate) fn try_lock(&mut self, lock: &Lock) -> bool {
        let mut state = self.disk.state();
        // A transaction whose connection is broken holds no locks and must not take any.
        let fresh = state.generation == self.generation && state.locks.insert(lock.clone());
        drop(state);
        if fresh {
            self.locks.push(lock.clone());
        }
        fresh
    }

    pub(crate) async fn lock(&mut self, lock: Lock) -> Result<(), StoreError> {
        let waited = timeout(LOCK_TIMEOUT, async {
            loop {
                let unlocked = self.disk.unlocked.notified();
                if self.try_lock(&lock) {
                    return;
                }
                unlocked.await;
            }
        });
        waited.await.map_err(|_| StoreError::Conflict("lock timeout".to_owned()))
    }

    /// Inserts the new events of a batch. Returns the outcome for each event.
    pub(crate) async fn insert(
        &mut self,
        batch: Vec<NewEvent>,
        at_commit: AtCommit,
    ) -> Result<Vec<Stored>, StoreError> {
        let keys: BTreeSet<(SourceName, IdempotencyKey)> =
            batch.iter().map(|event| (event.source.clone(), event.key.clone())).collect();
        assert_eq!(keys.len(), batch.len(), "a batch contains a key twice");
        let paused = self.disk.state().tables.paused.clone();
        for (source, key) in keys {
            self.lock(Lock::Key(source, key)).await?;
        }
        self.disk.step().await;
        if batch.iter().any(|event| event.body.starts_with(POISON)) {
            return Err(StoreError::Rejected("the database rejects a row of the batch".to_owned()));
        }
        let bug = self.disk.bug;
        if let (Some(existing), true) = (self.all_existing(&batch), bug != Some(Bug::NoUniqueness))
        {
            // A transaction that writes nothing does not wait for the standby.
            self.may_commit(at_commit)?;
            return Ok(existing);
        }
        let accept = |work: &mut Work<'_>| {
            let now = work.now;
            let stored = batch.into_iter().map(|event| {
                let (id, source, lease) = (event.id, event.source.clone(), event.lease);
                let stored =
                    work.change(id, Change::Accepted, |tables| accept_one(tables, now, event, bug));
                let is_paused = paused.contains_key(&source) && bug != Some(Bug::PauseIgnored);
                match (stored, lease.filter(|_| !is_paused)) {
                    (Stored::Inserted, Some(lease)) => {
                        if bug != Some(Bug::ClaimedInWordsOnly) {
                            work.change(id, Change::Claimed, |tables| {
                                tables.claim_new(now, id, lease);
                            });
                        }
                        Stored::Claimed { received_at: now }
                    }
                    (stored, _) => stored,
                }
            });
            stored.collect()
        };
        self.commit(at_commit, accept).await
    }

    /// The stored events of a batch, if all of its keys exist.
    fn all_existing(&self, batch: &[NewEvent]) -> Option<Vec<Stored>> {
        let tables = &self.disk.state().tables;
        batch
            .iter()
            .map(|event| {
                Some(tables.existing(*tables.keys.get(&(event.source.clone(), event.key.clone()))?))
            })
            .collect()
    }

    /// Reads the events with these keys. Returns when the standby has them.
    pub(crate) async fn existing(
        &mut self,
        keys: Vec<(SourceName, IdempotencyKey)>,
    ) -> Result<Vec<Option<Stored>>, StoreError> {
        let found: Vec<Option<Stored>> = {
            let state = self.disk.state();
            let existing =
                |key| match (state.tables.existing(*state.tables.keys.get(key)?), self.disk.bug) {
                    (Stored::Existing { id, fingerprint, .. }, Some(Bug::StatusGuessed)) => {
                        Some(Stored::Existing { id, fingerprint, status: Status::Queued })
                    }
                    (existing, _) => Some(existing),
                };
            keys.iter().map(existing).collect()
        };
        if found.iter().any(Option::is_some) && self.disk.bug != Some(Bug::ReplayWithoutWaiting) {
            self.disk.step().await;
            match self.disk.flushed(self.generation).await {
                Flushed::Everywhere => {}
                Flushed::Here | Flushed::Nowhere => return Err(broken()),
            }
        }
        Ok(found)
    }

    /// Claims due events. Each demand has the due time from which its claim starts; `None` means
    /// the front.
    pub(crate) async fn claim(
        &mut self,
        demands: Vec<(Option<DueTime>, Demand)>,
        at_commit: AtCommit,
    ) -> Result<Claimed, StoreError> {
        let (bug, now) = (self.disk.bug, self.now);
        let (mut picked, mut claimed) = (Vec::new(), Claimed::default());
        for (from, mut demand) in demands {
            if bug == Some(Bug::ClaimIgnoresBytes) {
                demand.bytes = usize::MAX;
            }
            let due = {
                let state = self.disk.state();
                let look_from =
                    if bug == Some(Bug::IgnoreLease) { now + Duration::from_hours(1) } else { now };
                let due = if bug == Some(Bug::PauseIgnored) {
                    let mut tables = state.tables.clone();
                    tables.paused.clear();
                    tables.due(look_from, &demand.source)
                } else {
                    state.tables.due(look_from, &demand.source)
                };
                let is_after_start = |event: &EventId| {
                    from.is_none_or(|from| due_time(state.row(*event)) >= Some(from))
                };
                due.into_iter().filter(is_after_start).collect::<Vec<_>>()
            };
            let mut locked = Vec::new();
            for event in due {
                let is_wanted = locked.len() < demand.limit as usize;
                if is_wanted
                    && (bug == Some(Bug::ClaimWithoutLock) || self.try_lock(&Lock::Row(event)))
                {
                    locked.push(event);
                }
            }
            let state = self.disk.state();
            for event in state.tables.fitting(&demand, locked, &mut claimed.claims) {
                let fence = state.row(event).map(|row| row.delivery.fence);
                picked.push((demand.clone(), event, fence));
            }
        }
        self.disk.step().await;
        let slow_by = self.disk.state().claims_slow_by;
        if slow_by > Duration::ZERO {
            sleep(slow_by).await;
        }
        if picked.is_empty() {
            self.may_commit(at_commit)?;
            return Ok(claimed);
        }
        self.commit(at_commit, |work| {
            for (demand, event, fence) in picked {
                let unchanged = work.state.row(event).map(|row| row.delivery.fence) == fence;
                let Some(due) = due_time(work.state.row(event)) else { continue };
                if unchanged || bug == Some(Bug::ClaimWithoutLock) {
                    claimed.due.push((demand.source.clone(), due));
                    work.change(event, Change::Claimed, |tables| {
                        claim_one(tables, now, &demand, event, &mut claimed.claims, bug);
                    });
                }
            }
            claimed
        })
        .await
    }

    pub(crate) async fn settle(
        &mut self,
        batch: Vec<Settlement>,
        at_commit: AtCommit,
    ) -> Result<Vec<EventId>, StoreError> {
        let events: BTreeSet<EventId> = batch.iter().map(|settlement| settlement.event).collect();
        for event in events {
            self.lock(Lock::Row(event)).await?;
        }
        self.disk.step().await;
        let bug = self.disk.bug;
        self.commit(at_commit, |work| {
            let now = work.now;
            let mut stale = Vec::new();
            for settlement in batch {
                let Settlement { event, fence, attempt, outcome, .. } = settlement;
                let change = Change::Settled { fence, attempt, outcome };
                if !work.change(event, change, |tables| settle_one(tables, now, settlement, bug)) {
                    stale.push(event);
                    work.stale.push((event, attempt));
                }
            }
            stale
        })
        .await
    }
}
