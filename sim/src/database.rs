//! The simulated database: a node that runs transactions over the reference tables.
//!
//! A transaction takes several steps with time between them, so that a crash or another transaction
//! can come between. It locks rows (a claim skips locked rows, a settlement and an accept wait for
//! them), waits, and commits at one instant. When the database goes down, uncommitted transactions
//! are rolled back and committed changes stay.

use crate::bugs::Bug;
use crate::clock::START_MILLIS;
use crate::net::DATABASE;
use crate::recorder::{Recorder, elapsed};
use crate::rows::{discard_one, redrive_one};
use crate::timer::sleep;
use crate::transaction::{Transaction, Work, broken};
use futures::future::BoxFuture;
use jiff::Timestamp;
use madsim::net::Endpoint;
use madsim::rand::Rng;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook::ports::StoreError;
use surehook::search::EventRecord;
use surehook_core::event::{DiscardScope, Status};
use surehook_core::id::{Attempt, EventId};
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_model::database::{Database, DeliveryRow};
use surehook_model::history::{At, Change, Committed, Fault, What};
use surehook_model::marks::Mark;
use surehook_model::scenario::{Call, DatabaseKind, StoreFault};
use tokio::sync::Notify;

/// The start of the bodies whose rows the database rejects.
pub(crate) const POISON: &[u8] = b"\0poison";

/// The process name of commits that an operator makes.
const OPERATOR: &str = "the operator";
/// The tag of all requests. Each reply has its own tag.
pub(crate) const REQUESTS: u64 = 1;

/// The state that survives every crash of the database's process, and the switches for its faults.
pub(crate) struct Disk {
    pub(crate) kind: DatabaseKind,
    state: Mutex<State>,
    pub(crate) unlocked: Notify,
    /// Notified when the standby is back, or when commits no longer wait for it.
    standby_changed: Notify,
    /// The tag of the next reply. Tags are not reused: a reply to an earlier caller at the same
    /// address may still be sent.
    pub(crate) next_tag: AtomicU64,
    pub(crate) recorder: Recorder,
    pub(crate) bug: Option<Bug>,
}

pub(crate) struct State {
    pub(crate) tables: Database,
    /// The pruned events as they were then.
    pub(crate) pruned: BTreeMap<EventId, EventRecord>,
    /// The standby's content while it lags behind.
    pub(crate) lagging: Option<Database>,
    /// Increases whenever commits stop waiting for the standby.
    releases: u64,
    pub(crate) locks: BTreeSet<Lock>,
    up: bool,
    /// Increases whenever all connections break. A transaction of an older generation can no longer
    /// commit.
    pub(crate) generation: u64,
    clock_offset_ms: i64,
    slow_by: Duration,
    pub(crate) claims_slow_by: Duration,
    planned: Vec<Planned>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lock {
    Row(EventId),
    Key(SourceName, IdempotencyKey),
    /// The single writer, for databases that have one.
    Writer,
}

/// How far a commit was replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// To every server that it must reach.
    Everywhere,
    /// Only to the primary: its wait for the standby was cancelled.
    Here,
    /// Lost with the server on which it was made.
    Nowhere,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtCommit {
    Commit,
    Break,
    GiveWay,
}

/// A store fault that waits for its call.
#[derive(Clone, Debug)]
struct Planned {
    process: String,
    call: Call,
    calls_left: u32,
    how: StoreFault,
}

/// A call in transit.
pub(crate) struct Request {
    pub(crate) process: String,
    pub(crate) sent_at: At,
    pub(crate) reply_to: u64,
    pub(crate) call: Call,
    pub(crate) steps: Steps,
    pub(crate) fault: Option<StoreFault>,
}

/// What a call does in its transaction.
pub(crate) type Steps = Box<
    dyn for<'t> FnOnce(
            &'t mut Transaction<'_>,
            AtCommit,
        ) -> BoxFuture<'t, Result<Reply, StoreError>>
        + Send
        + Sync,
>;

/// The result of a call. It has the type that the caller expects.
pub(crate) type Reply = Box<dyn Any + Send + Sync>;

impl Disk {
    pub(crate) fn new(kind: DatabaseKind, recorder: Recorder, bug: Option<Bug>) -> Arc<Self> {
        let state = State {
            tables: Database::default(),
            pruned: BTreeMap::new(),
            lagging: None,
            releases: 0,
            locks: BTreeSet::new(),
            up: true,
            generation: 0,
            clock_offset_ms: 0,
            slow_by: Duration::ZERO,
            claims_slow_by: Duration::ZERO,
            planned: Vec::new(),
        };
        let (state, next_tag) = (Mutex::new(state), AtomicU64::new(REQUESTS + 1));
        Arc::new(Self {
            kind,
            state,
            unlocked: Notify::new(),
            standby_changed: Notify::new(),
            next_tag,
            recorder,
            bug,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the tables.
    pub(crate) fn tables(&self) -> Database {
        self.state().tables.clone()
    }

    /// Every event in the database, and the pruned events as they were then.
    pub(crate) fn records(&self) -> BTreeMap<EventId, EventRecord> {
        let state = self.state();
        let mut records = state.pruned.clone();
        records.extend(
            state.tables.events.keys().filter_map(|id| Some((*id, state.tables.find(*id)?))),
        );
        records
    }

    /// Whether every event is delivered or dead-lettered.
    pub(crate) fn is_settled(&self) -> bool {
        self.state().tables.deliveries.values().all(|row| row.due_at.is_none())
    }

    pub(crate) fn plan(&self, process: String, call: Call, nth: u32, how: StoreFault) {
        self.state().planned.push(Planned { process, call, calls_left: nth, how });
    }

    /// Breaks all connections: open transactions are rolled back.
    fn break_connections(&self) {
        let mut state = self.state();
        state.generation += 1;
        state.locks.clear();
        drop(state);
        self.unlocked.notify_waiters();
        self.standby_changed.notify_waiters();
    }

    pub(crate) fn set_up(&self, up: bool) {
        self.state().up = up;
        if !up {
            self.restart();
        }
    }

    /// The primary crashes and recovers. Changes in its log are committed, whether the standby has
    /// them or not.
    pub(crate) fn restart(&self) {
        self.state().releases += 1;
        self.break_connections();
    }

    /// Cancels the waits for the standby. The commits stay.
    pub(crate) fn cancel_commits(&self) {
        self.state().releases += 1;
        self.standby_changed.notify_waiters();
    }

    pub(crate) fn cut_standby_off(&self) {
        let mut state = self.state();
        if state.lagging.is_none() {
            state.lagging = Some(state.tables.clone());
        }
    }

    /// The standby is back and up to date.
    pub(crate) fn reattach_standby(&self) {
        self.state().lagging = None;
        self.standby_changed.notify_waiters();
    }

    /// The standby becomes the primary with the changes that it has. A new standby is in sync
    /// immediately.
    pub(crate) fn fail_over(&self) {
        let mut state = self.state();
        let now = state.now();
        let changes = state.lagging.take().map(|standby| {
            let primary = std::mem::replace(&mut state.tables, standby);
            taken_back(&primary, &state.tables)
        });
        drop(state);
        for (event, change, before, after) in changes.into_iter().flatten() {
            let process = "the failover".to_owned();
            self.recorder.record(What::Committed(Committed {
                event,
                db_time: now,
                sent: None,
                began: None,
                process,
                change,
                before,
                after,
            }));
        }
        self.break_connections();
    }

    /// Waits until the standby has the changes just written, if the kind of database requires it.
    pub(crate) async fn flushed(&self, generation: u64) -> Flushed {
        let releases = self.state().releases;
        let mut waited = false;
        loop {
            let changed = self.standby_changed.notified();
            {
                let state = self.state();
                if state.releases != releases {
                    return Flushed::Here;
                }
                if state.generation != generation {
                    return Flushed::Nowhere;
                }
                if self.kind != DatabaseKind::SynchronousStandby || state.lagging.is_none() {
                    return Flushed::Everywhere;
                }
            }
            if !std::mem::replace(&mut waited, true) {
                self.reached(Mark::CommitWaitedForStandby);
            }
            changed.await;
        }
    }

    pub(crate) fn reached(&self, mark: Mark) {
        self.recorder.record(What::Reached(mark));
    }

    pub(crate) fn set_slow(&self, by: Duration) {
        self.state().slow_by = by;
    }

    pub(crate) fn set_claims_slow(&self, by: Duration) {
        self.state().claims_slow_by = by;
    }

    /// An operator's pause or resume, retried until it succeeds. Returns whether the state changed.
    pub(crate) async fn pause(&self, source: &str, paused: bool) -> bool {
        let source = SourceName::parse(source).expect("the scenario's source names are valid");
        if !paused && self.bug == Some(Bug::ResumeIgnored) {
            return true;
        }
        loop {
            let transaction = Transaction::begin(self, OPERATOR.to_owned(), elapsed());
            let order = |work: &mut Work<'_>| {
                let now = work.now;
                work.state.tables.pause(now, source.clone(), paused)
            };
            if let Ok(changed) = transaction.commit(AtCommit::Commit, order).await {
                return changed;
            }
            drop(transaction);
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// An operator's redrive of a source's dead letters that are not discarded, or of its delivered
    /// events. It does nothing while the database is down.
    pub(crate) async fn redrive(&self, source: &str, delivered: bool) {
        if !self.is_up() {
            return;
        }
        let wanted = if delivered { Status::Delivered } else { Status::DeadLettered };
        let mut transaction = Transaction::begin(self, OPERATOR.to_owned(), elapsed());
        let ended: Vec<EventId> = {
            let tables = &self.state().tables;
            let of_source = tables
                .events
                .iter()
                .filter(|(_, row)| row.event.source.as_str() == source)
                .map(|(id, _)| *id);
            let takes_discarded = self.bug == Some(Bug::RedriveTakesDiscarded);
            let is_left = |id: &EventId| tables.is_discarded(*id) && !takes_discarded;
            of_source.filter(|id| tables.status(*id) == wanted && !is_left(id)).collect()
        };
        let ended: Vec<EventId> =
            ended.into_iter().filter(|event| transaction.try_lock(&Lock::Row(*event))).collect();
        self.step().await;
        // The result is visible in the events.
        let _ = transaction
            .commit(AtCommit::Commit, |work| {
                let now = work.now;
                for event in ended {
                    let tables = &work.state.tables;
                    let is_left =
                        tables.is_discarded(event) && self.bug != Some(Bug::RedriveTakesDiscarded);
                    if tables.events.contains_key(&event)
                        && tables.status(event) == wanted
                        && !is_left
                    {
                        work.change(event, Change::Redriven { of_many: true }, |tables| {
                            redrive_one(tables, now, event, delivered, self.bug);
                        });
                    }
                }
            })
            .await;
    }

    /// An operator discards the events of a source. It does nothing while the database is down.
    pub(crate) async fn discard(&self, source: &str, scope: DiscardScope) {
        if !self.is_up() {
            return;
        }
        let mut transaction = Transaction::begin(self, OPERATOR.to_owned(), elapsed());
        let rows: Vec<EventId> = {
            let tables = &self.state().tables;
            let of_source = tables
                .deliveries
                .keys()
                .filter(|id| tables.events[*id].event.source.as_str() == source);
            of_source.copied().collect()
        };
        let held: Vec<EventId> =
            rows.into_iter().filter(|event| transaction.try_lock(&Lock::Row(*event))).collect();
        self.step().await;
        // The result is visible in the events.
        let _ = transaction
            .commit(AtCommit::Commit, |work| {
                let now = work.now;
                for event in held {
                    work.change(event, Change::Discarded, |tables| {
                        discard_one(tables, now, event, scope, self.bug)
                    });
                }
            })
            .await;
    }

    /// An administrator locks the rows of a source from a console for a while.
    pub(crate) async fn lock_rows(&self, source: &str, duration: Duration) {
        let mut transaction = Transaction::begin(self, "the console".to_owned(), elapsed());
        let rows: Vec<EventId> = {
            let tables = &self.state().tables;
            let of_source = tables
                .deliveries
                .keys()
                .filter(|id| tables.events[*id].event.source.as_str() == source);
            of_source.copied().collect()
        };
        for row in rows {
            transaction.try_lock(&Lock::Row(row));
        }
        sleep(duration).await;
    }

    pub(crate) fn jump_clock(&self, by_ms: i64) {
        self.state().clock_offset_ms += by_ms;
    }

    /// Ends all active and planned faults. A clock that jumped keeps its offset.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.up = true;
        state.slow_by = Duration::ZERO;
        state.claims_slow_by = Duration::ZERO;
        state.planned.clear();
        drop(state);
        self.reattach_standby();
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state().up
    }

    /// The fault that is planned for this call, if any.
    pub(crate) fn fault_for(&self, process: &str, call: Call) -> Option<StoreFault> {
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
            let duration = if let StoreFault::Slow { by_ms } = how {
                Duration::from_millis(by_ms)
            } else {
                Duration::ZERO
            };
            let what = format!("{how:?} at this {call:?}");
            self.recorder.record(What::Fault(Fault::Database {
                what,
                process: Some(process.to_owned()),
                duration,
            }));
        }
        due
    }

    /// Lets time pass inside a transaction.
    pub(crate) async fn step(&self) {
        let slow_by = self.state().slow_by;
        sleep(Duration::from_micros(madsim::rand::thread_rng().gen_range(1_000..4_000)) + slow_by)
            .await;
    }
}

impl State {
    /// The database's time, in microseconds as PostgreSQL stores it.
    pub(crate) fn now(&self) -> Timestamp {
        let since = i64::try_from(elapsed().as_micros())
            .expect("the run is too short to overflow i64 microseconds");
        Timestamp::from_microsecond(START_MILLIS * 1_000 + since + self.clock_offset_ms * 1_000)
            .expect("the time is a valid timestamp")
    }

    pub(crate) fn row(&self, event: EventId) -> Option<DeliveryRow> {
        self.tables.deliveries.get(&event).copied()
    }
}

/// Runs the database's node, with one task for each transaction.
pub(crate) async fn serve(disk: Arc<Disk>) {
    let endpoint = Endpoint::bind(DATABASE).await.expect("the database's address is free");
    loop {
        let Ok((payload, from)) = endpoint.recv_from_raw(REQUESTS).await else { return };
        let request =
            *payload.downcast::<Request>().expect("every message with this tag is a request");
        let (endpoint, disk) = (endpoint.clone(), Arc::clone(&disk));
        madsim::task::spawn(async move {
            let reply_to = request.reply_to;
            let reply = transact(&disk, request).await;
            let _ = endpoint.send_to_raw(from, reply_to, Box::new(reply)).await;
        });
    }
}

/// Runs one transaction, with the fault that is planned for it.
async fn transact(disk: &Disk, request: Request) -> Result<Reply, StoreError> {
    disk.step().await;
    let mut transaction = Transaction::begin(disk, request.process, request.sent_at);
    let at_commit = match request.fault {
        Some(StoreFault::FailBeforeCommit) => AtCommit::Break,
        Some(StoreFault::Conflict) => AtCommit::GiveWay,
        _ => AtCommit::Commit,
    };
    if disk.kind == DatabaseKind::OneWriter && request.call.writes() {
        transaction.lock(Lock::Writer).await?;
        transaction.starts_now();
    }
    let reply = (request.steps)(&mut transaction, at_commit).await;
    drop(transaction);
    match request.fault {
        Some(StoreFault::FailAfterCommit) if reply.is_ok() => return Err(broken()),
        Some(StoreFault::Slow { by_ms }) => sleep(Duration::from_millis(by_ms)).await,
        _ => {}
    }
    disk.step().await;
    reply
}

type RowChange = (EventId, Change, Option<DeliveryRow>, Option<DeliveryRow>);

/// The changes that a failover rolls back: for each event whose row or attempts differ, its row on
/// the old and on the new primary.
fn taken_back(old: &Database, new: &Database) -> Vec<RowChange> {
    let row = |tables: &Database, event| tables.deliveries.get(event).copied();
    let attempts = |tables: &Database, event: EventId| {
        tables.attempts.range((event, Attempt::MIN)..=(event, Attempt::MAX)).count()
    };
    let differ = old.events.keys().filter_map(|event| {
        let (before, after) = (row(old, event), row(new, event));
        if !new.events.contains_key(event) {
            return Some((*event, Change::Lost, before, None));
        }
        (before != after || attempts(old, *event) != attempts(new, *event)).then_some((
            *event,
            Change::RolledBack,
            before,
            after,
        ))
    });
    let pruned = new.events.keys().filter(|event| !old.events.contains_key(event));
    differ.chain(pruned.map(|event| (*event, Change::RolledBack, None, row(new, event)))).collect()
}
