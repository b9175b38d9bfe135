//! The simulated database: a node that runs transactions over the reference tables.
//!
//! A transaction takes steps, with time between them, so that a crash or another transaction can fall inside: it
//! locks rows (a claim skips what is locked, a settlement and an accept wait for it), waits, and commits at one
//! instant. What had not committed when the database went down is rolled back; what had stays.

use crate::bugs::Bug;
use crate::net::DATABASE;
use crate::recorder::{Recorder, elapsed};
use crate::rows::{accept_one, claim_one, redrive_one, settle_one};
use jiff::Timestamp;
use madsim::net::Endpoint;
use madsim::rand::Rng;
use madsim::time::{sleep, timeout};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook::ports::{Erased, EventRecord, NewEvent, Pruned, Redriven, Retention, StoreError};
use surehook::search::{EventFilter, EventPage, PageSize, RedrivenPage, SourceRecord, Span};
use surehook_core::admission::Stored;
use surehook_core::event::Status;
use surehook_core::id::{Attempt, EventId};
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::worker::exchange::{Claims, Demand, Settlement};
use surehook_model::database::{Database, DeliveryRow};
use surehook_model::history::{Change, Committed, Fault, What};
use surehook_model::scenario::{Call, StoreFault};
use tokio::sync::Notify;

/// A row that the database refuses has a body that begins so.
pub(crate) const POISON: &[u8] = b"\0poison";

/// How long a transaction waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Every request goes to this tag; each reply to one of its own.
pub(crate) const REQUESTS: u64 = 1;

/// What outlives every crash of the database's process, and the switches by which a world breaks it.
pub(crate) struct Disk {
    state: Mutex<State>,
    unlocked: Notify,
    /// Where the next reply goes: never to a tag that an earlier caller at the same address may still be sent to.
    pub(crate) next_tag: AtomicU64,
    pub(crate) recorder: Recorder,
    bug: Option<Bug>,
}

struct State {
    tables: Database,
    locks: BTreeSet<Lock>,
    up: bool,
    /// Goes up whenever all connections break: a transaction of an older one can no longer commit.
    generation: u64,
    clock_offset_ms: i64,
    slow_by: Duration,
    claims_slow_by: Duration,
    planned: Vec<Planned>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lock {
    Row(EventId),
    Key(SourceName, IdempotencyKey),
}

/// A store fault that waits for its call.
#[derive(Clone, Debug)]
struct Planned {
    process: String,
    call: Call,
    calls_left: u32,
    how: StoreFault,
}

/// One call on its way.
pub(crate) struct Request {
    pub(crate) process: String,
    pub(crate) reply_to: u64,
    pub(crate) operation: Operation,
    pub(crate) fault: Option<StoreFault>,
}

#[derive(Clone)]
pub(crate) enum Operation {
    Accept(Vec<NewEvent>),
    Claim(Vec<Demand>),
    Settle(Vec<Settlement>),
    Find(EventId),
    Redrive(EventId),
    RedriveDelivered(EventId),
    RedriveAll(EventFilter, Span, PageSize, bool),
    List(EventFilter, Span, PageSize),
    Sources(Vec<SourceName>, u32),
    Pause(SourceName, bool),
    Prune(Retention, Option<EventId>, u32),
    Erase(Duration, Option<EventId>, u32),
    Ping,
}

/// Its answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Accepted(Vec<Stored>),
    Claimed(Claims),
    Settled(Vec<EventId>),
    Found(Option<Box<EventRecord>>),
    Redriven(Redriven),
    AllRedriven(RedrivenPage),
    Listed(EventPage),
    Sources(Vec<SourceRecord>),
    Paused(bool),
    Pruned(Pruned),
    Erased(Erased),
    Pong,
}

impl Disk {
    pub(crate) fn new(recorder: Recorder, bug: Option<Bug>) -> Arc<Self> {
        let state = State {
            tables: Database::default(),
            locks: BTreeSet::new(),
            up: true,
            generation: 0,
            clock_offset_ms: 0,
            slow_by: Duration::ZERO,
            claims_slow_by: Duration::ZERO,
            planned: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state), unlocked: Notify::new(), next_tag: AtomicU64::new(REQUESTS + 1), recorder, bug })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables as they are.
    pub(crate) fn tables(&self) -> Database {
        self.state().tables.clone()
    }

    /// Whether nothing is owed.
    pub(crate) fn is_settled(&self) -> bool {
        self.state().tables.deliveries.values().all(|row| row.due_at.is_none())
    }

    pub(crate) fn plan(&self, process: String, call: Call, nth: u32, how: StoreFault) {
        self.state().planned.push(Planned { process, call, calls_left: nth, how });
    }

    /// Breaks all connections: what is under way is rolled back.
    pub(crate) fn break_connections(&self) {
        let mut state = self.state();
        state.generation += 1;
        state.locks.clear();
        drop(state);
        self.unlocked.notify_waiters();
    }

    pub(crate) fn set_up(&self, up: bool) {
        self.state().up = up;
        if !up {
            self.break_connections();
        }
    }

    pub(crate) fn set_slow(&self, by: Duration) {
        self.state().slow_by = by;
    }

    pub(crate) fn set_claims_slow(&self, by: Duration) {
        self.state().claims_slow_by = by;
    }

    /// An operator's order. Answers whether it was otherwise before.
    pub(crate) fn pause(&self, source: &str, paused: bool) -> bool {
        let mut state = self.state();
        let now = state.now();
        state.tables.pause(now, SourceName::parse(source).expect("a source's name"), paused)
    }

    /// An operator's order: what has ended of a source is queued again, its dead letters or what was delivered. Nothing
    /// happens while the database is down.
    pub(crate) fn redrive(&self, source: &str, delivered: bool) {
        let (generation, up) = {
            let state = self.state();
            (state.generation, state.up)
        };
        if !up {
            return;
        }
        let wanted = if delivered { Status::Delivered } else { Status::DeadLettered };
        let transaction = Transaction { disk: self, generation, locks: Vec::new(), process: "the operator".to_owned() };
        let done = transaction.commit(AtCommit::Commit, |work| {
            let now = work.now;
            let tables = &work.state.tables;
            let of_source = tables.events.iter().filter(|(_, row)| row.event.source.as_str() == source).map(|(id, _)| *id);
            let ended: Vec<EventId> = of_source.filter(|id| tables.status(*id) == wanted).collect();
            for event in ended {
                work.change(event, Change::Redriven, |tables| redrive_one(tables, now, event, delivered, self.bug));
            }
            Answer::Pong
        });
        debug_assert!(done.is_ok(), "nothing can break its connection in no time: {done:?}");
    }

    pub(crate) fn jump_clock(&self, by_ms: i64) {
        self.state().clock_offset_ms += by_ms;
    }

    /// Forgets every fault that is in force or planned. A clock that jumped stays where it is.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.up = true;
        state.slow_by = Duration::ZERO;
        state.claims_slow_by = Duration::ZERO;
        state.planned.clear();
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state().up
    }

    /// The fault, if any, that is planned for this call.
    pub(crate) fn fault_for(&self, process: &str, operation: &Operation) -> Option<StoreFault> {
        let call = match operation {
            Operation::Accept(_) => Call::Accept,
            Operation::Claim(_) => Call::Claim,
            Operation::Settle(_) => Call::Settle,
            Operation::Find(_)
            | Operation::Redrive(_)
            | Operation::RedriveDelivered(_)
            | Operation::RedriveAll(..)
            | Operation::List(..)
            | Operation::Sources(..)
            | Operation::Pause(..)
            | Operation::Prune(..)
            | Operation::Erase(..)
            | Operation::Ping => return None,
        };
        let mut due = None;
        self.state().planned.retain_mut(|planned| {
            if planned.process != process || planned.call != call {
                return true;
            }
            planned.calls_left -= 1;
            if planned.calls_left == 0 {
                due.get_or_insert(planned.how);
            }
            planned.calls_left > 0
        });
        if let Some(how) = due {
            let duration = if let StoreFault::Slow { by_ms } = how { Duration::from_millis(by_ms) } else { Duration::ZERO };
            let what = format!("{how:?} at this {call:?}");
            self.recorder.record(What::Fault(Fault::Database { what, process: Some(process.to_owned()), duration }));
        }
        due
    }

    /// Time passes inside a transaction.
    async fn step(&self) {
        let slow_by = self.state().slow_by;
        sleep(Duration::from_micros(madsim::rand::thread_rng().gen_range(1_000..4_000)) + slow_by).await;
    }
}

impl State {
    /// The database's time, in microseconds as it keeps it.
    fn now(&self) -> Timestamp {
        const START_MICROS: i64 = 1_767_225_600_000_000; // 2026-01-01
        let since = i64::try_from(elapsed().as_micros()).expect("runs are short");
        Timestamp::from_microsecond(START_MICROS + since + self.clock_offset_ms * 1_000).expect("within the calendar")
    }

    fn row(&self, event: EventId) -> Option<DeliveryRow> {
        self.tables.deliveries.get(&event).copied()
    }
}

/// Runs the database's node: one task a transaction.
pub(crate) async fn serve(disk: Arc<Disk>) {
    let endpoint = Endpoint::bind(DATABASE).await.expect("the database's address is its own");
    loop {
        let Ok((payload, from)) = endpoint.recv_from_raw(REQUESTS).await else { return };
        let request = *payload.downcast::<Request>().expect("only requests come here");
        let (endpoint, disk) = (endpoint.clone(), Arc::clone(&disk));
        madsim::task::spawn(async move {
            let reply_to = request.reply_to;
            let answer = transact(&disk, request).await;
            let _ = endpoint.send_to_raw(from, reply_to, Box::new(answer)).await;
        });
    }
}

/// One transaction, and the fault that is planned for it.
async fn transact(disk: &Disk, request: Request) -> Result<Answer, StoreError> {
    let unknown = || Err(StoreError::Unknown("connection broken".to_owned()));
    let mut transaction = Transaction { disk, generation: disk.state().generation, locks: Vec::new(), process: request.process };
    disk.step().await;
    let at_commit = match request.fault {
        Some(StoreFault::FailBeforeCommit) => AtCommit::Break,
        Some(StoreFault::Conflict) => AtCommit::GiveWay,
        _ => AtCommit::Commit,
    };
    let answer = match request.operation {
        Operation::Accept(batch) => transaction.accept(batch, at_commit).await,
        Operation::Claim(demands) => transaction.claim(demands, at_commit).await,
        Operation::Settle(batch) => transaction.settle(batch, at_commit).await,
        Operation::Find(event) => transaction.read(|tables, _| Answer::Found(tables.find(event).map(Box::new))),
        Operation::Ping => transaction.read(|_, _| Answer::Pong),
        Operation::Redrive(event) => transaction.commit(AtCommit::Commit, |work| {
            let now = work.now;
            let redriven = work.change(event, Change::Redriven, |tables| tables.redrive(now, event));
            Answer::Redriven(redriven)
        }),
        Operation::RedriveDelivered(event) => transaction.commit(AtCommit::Commit, |work| {
            let now = work.now;
            Answer::Redriven(work.change(event, Change::Redriven, |tables| tables.redrive_delivered(now, event)))
        }),
        Operation::List(filter, span, size) => transaction.read(|tables, _| Answer::Listed(tables.list(&filter, span, size))),
        Operation::Sources(names, count_to) => transaction.read(|tables, now| Answer::Sources(tables.sources(now, &names, count_to))),
        Operation::RedriveAll(filter, span, size, dry_run) => transaction.commit(AtCommit::Commit, |work| {
            let now = work.now;
            let (letters, page) = work.state.tables.letters(&filter.of_dead_letters(), span, size);
            for letter in letters.into_iter().filter(|_| !dry_run) {
                work.change(letter, Change::Redriven, |tables| tables.redrive(now, letter));
            }
            Answer::AllRedriven(page)
        }),
        Operation::Pause(source, paused) => transaction.commit(AtCommit::Commit, |work| {
            let now = work.now;
            Answer::Paused(work.state.tables.pause(now, source, paused))
        }),
        Operation::Erase(kept, after, limit) => transaction.commit(AtCommit::Commit, |work| {
            let now = work.now;
            Answer::Erased(work.state.tables.erase(now, kept, after, limit))
        }),
        Operation::Prune(retention, after, limit) => transaction.commit(AtCommit::Commit, |work| {
            let before: Vec<EventId> = work.state.tables.events.keys().copied().collect();
            let pruned = work.state.tables.prune(work.now, retention, after, limit);
            for event in before.into_iter().filter(|event| !work.state.tables.events.contains_key(event)) {
                work.committed.push((event, Change::Pruned, None, None));
            }
            Answer::Pruned(pruned)
        }),
    };
    drop(transaction);
    match request.fault {
        Some(StoreFault::FailAfterCommit) if answer.is_ok() => return unknown(),
        Some(StoreFault::Slow { by_ms }) => sleep(Duration::from_millis(by_ms)).await,
        _ => {}
    }
    disk.step().await;
    answer
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AtCommit {
    Commit,
    Break,
    GiveWay,
}

/// A transaction; its locks are free when it is dropped.
struct Transaction<'a> {
    disk: &'a Disk,
    generation: u64,
    locks: Vec<Lock>,
    process: String,
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

/// What a transaction does at the instant of its commit.
struct Work<'a> {
    state: MutexGuard<'a, State>,
    now: Timestamp,
    committed: Vec<(EventId, Change, Option<DeliveryRow>, Option<DeliveryRow>)>,
    stale: Vec<(EventId, Attempt)>,
}

impl Work<'_> {
    fn change<T>(&mut self, event: EventId, change: Change, make: impl FnOnce(&mut Database) -> T) -> T {
        let before = self.state.row(event);
        let result = make(&mut self.state.tables);
        let after = self.state.row(event);
        if before != after {
            self.committed.push((event, change, before, after));
        }
        result
    }
}

impl Transaction<'_> {
    fn read(&self, read: impl FnOnce(&Database, Timestamp) -> Answer) -> Result<Answer, StoreError> {
        let state = self.disk.state();
        if state.generation == self.generation {
            Ok(read(&state.tables, state.now()))
        } else {
            Err(StoreError::Unknown("connection broken".to_owned()))
        }
    }

    fn commit(&self, at_commit: AtCommit, work: impl FnOnce(&mut Work<'_>) -> Answer) -> Result<Answer, StoreError> {
        let state = self.disk.state();
        if state.generation != self.generation || at_commit == AtCommit::Break {
            return Err(StoreError::Unknown("connection broken".to_owned()));
        }
        if at_commit == AtCommit::GiveWay {
            return Err(StoreError::Conflict("could not serialize access".to_owned()));
        }
        let now = state.now();
        let mut at_work = Work { state, now, committed: Vec::new(), stale: Vec::new() };
        let answer = work(&mut at_work);
        let now = at_work.now;
        for (event, change, before, after) in at_work.committed {
            let committed = Committed { event, db_time: now, process: self.process.clone(), change, before, after };
            self.disk.recorder.record(What::Committed(committed));
        }
        for (event, attempt) in at_work.stale {
            self.disk.recorder.record(What::StaleSettlement { process: self.process.clone(), event, attempt });
        }
        Ok(answer)
    }

    fn try_lock(&mut self, lock: &Lock) -> bool {
        let mut state = self.disk.state();
        // A transaction whose connection broke holds nothing any more, and may take nothing.
        let fresh = state.generation == self.generation && state.locks.insert(lock.clone());
        drop(state);
        if fresh {
            self.locks.push(lock.clone());
        }
        fresh
    }

    async fn lock(&mut self, lock: Lock) -> Result<(), StoreError> {
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

    async fn accept(&mut self, batch: Vec<NewEvent>, at_commit: AtCommit) -> Result<Answer, StoreError> {
        let keys: BTreeSet<(SourceName, IdempotencyKey)> = batch.iter().map(|event| (event.source.clone(), event.key.clone())).collect();
        assert_eq!(keys.len(), batch.len(), "a batch holds each key once");
        for (source, key) in keys {
            self.lock(Lock::Key(source, key)).await?;
        }
        self.disk.step().await;
        if batch.iter().any(|event| event.body.starts_with(POISON)) {
            return Err(StoreError::Rejected("a row is refused".to_owned()));
        }
        let bug = self.disk.bug;
        self.commit(at_commit, |work| {
            let now = work.now;
            let stored = batch.into_iter().map(|event| {
                let (id, source, lease) = (event.id, event.source.clone(), event.lease);
                let stored = work.change(id, Change::Accepted, |tables| accept_one(tables, now, event, bug));
                let is_paused = work.state.tables.paused.contains_key(&source) && bug != Some(Bug::PauseIgnored);
                match (stored, lease.filter(|_| !is_paused)) {
                    (Stored::Inserted, Some(lease)) => {
                        if bug != Some(Bug::ClaimedInWordsOnly) {
                            work.change(id, Change::Claimed, |tables| tables.claim_new(now, id, lease));
                        }
                        Stored::Claimed
                    }
                    (stored, _) => stored,
                }
            });
            Answer::Accepted(stored.collect())
        })
    }

    async fn claim(&mut self, demands: Vec<Demand>, at_commit: AtCommit) -> Result<Answer, StoreError> {
        let bug = self.disk.bug;
        // A statement's time is that of its start, whatever the clock does meanwhile.
        let now = self.disk.state().now();
        let mut picked = Vec::new();
        for demand in demands {
            let due = {
                let state = self.disk.state();
                let look_from = if bug == Some(Bug::IgnoreLease) { now + Duration::from_hours(1) } else { now };
                if bug == Some(Bug::PauseIgnored) {
                    let mut tables = state.tables.clone();
                    tables.paused.clear();
                    tables.due(look_from, &demand.source)
                } else {
                    state.tables.due(look_from, &demand.source)
                }
            };
            let mut left = demand.limit;
            for event in due {
                if left > 0 && (bug == Some(Bug::ClaimWithoutLock) || self.try_lock(&Lock::Row(event))) {
                    left -= 1;
                    let fence = self.disk.state().row(event).map(|row| row.delivery.fence);
                    picked.push((demand.clone(), event, fence));
                }
            }
        }
        self.disk.step().await;
        let slow_by = self.disk.state().claims_slow_by;
        if slow_by > Duration::ZERO {
            sleep(slow_by).await;
        }
        self.commit(at_commit, |work| {
            work.now = now;
            let mut claims = Claims::default();
            for (demand, event, fence) in picked {
                let unchanged = work.state.row(event).map(|row| row.delivery.fence) == fence;
                let still_there = work.state.row(event).is_some_and(|row| row.due_at.is_some());
                if still_there && (unchanged || bug == Some(Bug::ClaimWithoutLock)) {
                    work.change(event, Change::Claimed, |tables| claim_one(tables, now, &demand, event, &mut claims, bug));
                }
            }
            Answer::Claimed(claims)
        })
    }

    async fn settle(&mut self, batch: Vec<Settlement>, at_commit: AtCommit) -> Result<Answer, StoreError> {
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
            Answer::Settled(stale)
        })
    }
}
