//! The simulated database: a node that runs transactions over the reference tables.
//!
//! A transaction takes steps, with time between them, so that a crash or another transaction can fall inside: it
//! locks rows (a claim skips what is locked, a settlement and an accept wait for it), waits, and commits at one
//! instant. What had not committed when the database went down is rolled back; what had stays.

use crate::bugs::Bug;
use crate::clock::START_MILLIS;
use crate::net::DATABASE;
use crate::recorder::{Recorder, elapsed};
use crate::rows::redrive_one;
use crate::transaction::{Transaction, Work, broken};
use jiff::Timestamp;
use madsim::net::Endpoint;
use madsim::rand::Rng;
use madsim::time::sleep;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook::ports::{Erased, EventRecord, NewEvent, Pruned, Redriven, Retention, StoreError};
use surehook::search::{EventFilter, EventPage, PageSize, RedrivenPage, SourceRecord, Span};
use surehook_core::admission::Stored;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::worker::exchange::{Claims, Demand, Settlement};
use surehook_model::database::{Database, DeliveryRow};
use surehook_model::history::{Change, Committed, Fault, What};
use surehook_model::marks::Mark;
use surehook_model::scenario::{Call, Kind, StoreFault};
use tokio::sync::Notify;

/// A row that the database refuses has a body that begins so.
pub(crate) const POISON: &[u8] = b"\0poison";

/// On whose behalf an operator's orders are committed.
const OPERATOR: &str = "the operator";
/// Every request goes to this tag; each reply to one of its own.
pub(crate) const REQUESTS: u64 = 1;

/// What outlives every crash of the database's process, and the switches by which a world breaks it.
pub(crate) struct Disk {
    pub(crate) kind: Kind,
    state: Mutex<State>,
    pub(crate) unlocked: Notify,
    /// The standby is back, or commits are to wait for it no longer.
    standby_changed: Notify,
    /// Where the next reply goes: never to a tag that an earlier caller at the same address may still be sent to.
    pub(crate) next_tag: AtomicU64,
    pub(crate) recorder: Recorder,
    pub(crate) bug: Option<Bug>,
}

pub(crate) struct State {
    pub(crate) tables: Database,
    /// What was pruned, as it stood then.
    pub(crate) pruned: BTreeMap<EventId, EventRecord>,
    /// What the standby has, while it does not have all.
    pub(crate) lagging: Option<Database>,
    /// Goes up whenever commits are to wait for the standby no longer.
    releases: u64,
    pub(crate) locks: BTreeSet<Lock>,
    up: bool,
    /// Goes up whenever all connections break: a transaction of an older one can no longer commit.
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
    /// Whoever writes, where there is one writer.
    Writer,
}

/// How far a commit came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// To every server that it has to reach.
    Everywhere,
    /// To the primary only: its wait for the standby was broken off.
    Here,
    /// It is gone, with the server that was to commit it.
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

/// One call on its way.
pub(crate) struct Request {
    pub(crate) process: String,
    pub(crate) reply_to: u64,
    pub(crate) operation: Operation,
    pub(crate) fault: Option<StoreFault>,
}

#[derive(Clone)]
pub(crate) enum Operation {
    /// An accept as one transaction, where there is one writer.
    Accept(Vec<NewEvent>),
    /// The insert of an accept: what has a key that is there changes nothing.
    Insert(Vec<NewEvent>),
    /// The read of an accept: what stands under these keys.
    Existing(Vec<(SourceName, IdempotencyKey)>),
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
    /// An insert that is taken back.
    Probe(NewEvent),
}

/// Its answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Accepted(Vec<Stored>),
    Existing(Vec<Option<Stored>>),
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
    pub(crate) fn new(kind: Kind, recorder: Recorder, bug: Option<Bug>) -> Arc<Self> {
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

    /// The tables as they are.
    pub(crate) fn tables(&self) -> Database {
        self.state().tables.clone()
    }

    /// Every event that is there, and what was pruned as it stood then.
    pub(crate) fn records(&self) -> BTreeMap<EventId, EventRecord> {
        let state = self.state();
        let mut records = state.pruned.clone();
        records.extend(
            state.tables.events.keys().filter_map(|id| Some((*id, state.tables.find(*id)?))),
        );
        records
    }

    /// Whether nothing is owed.
    pub(crate) fn is_settled(&self) -> bool {
        self.state().tables.deliveries.values().all(|row| row.due_at.is_none())
    }

    pub(crate) fn plan(&self, process: String, call: Call, nth: u32, how: StoreFault) {
        self.state().planned.push(Planned { process, call, calls_left: nth, how });
    }

    /// Breaks all connections: what is under way is rolled back.
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

    /// The primary crashes and recovers. What is in its log is committed, whether the standby has it or not.
    pub(crate) fn restart(&self) {
        self.state().releases += 1;
        self.break_connections();
    }

    /// Cancels the commits that wait for the standby. They are committed all the same.
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

    /// The standby is back, and has everything.
    pub(crate) fn reattach_standby(&self) {
        self.state().lagging = None;
        self.standby_changed.notify_waiters();
    }

    /// The standby becomes the primary, with what it has. Another standby stands by it at once.
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
                began: None,
                process,
                change,
                before,
                after,
            }));
        }
        self.break_connections();
    }

    /// Waits until the standby has what was just written, if that is waited for.
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
                if self.kind != Kind::SynchronousStandby || state.lagging.is_none() {
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

    /// An operator's order, which is repeated until it is done. Answers whether it was otherwise before.
    pub(crate) async fn pause(&self, source: &str, paused: bool) -> bool {
        let source = SourceName::parse(source).expect("a source's name");
        if !paused && self.bug == Some(Bug::ResumeIgnored) {
            return true;
        }
        loop {
            let transaction = Transaction::begin(self, OPERATOR.to_owned());
            let order = |work: &mut Work<'_>| {
                let now = work.now;
                Answer::Paused(work.state.tables.pause(now, source.clone(), paused))
            };
            if let Ok(Answer::Paused(changed)) = transaction.commit(AtCommit::Commit, order).await {
                return changed;
            }
            drop(transaction);
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// An operator's order: what has ended of a source is queued again, its dead letters or what was delivered. Nothing
    /// happens while the database is down.
    pub(crate) async fn redrive(&self, source: &str, delivered: bool) {
        if !self.is_up() {
            return;
        }
        let wanted = if delivered { Status::Delivered } else { Status::DeadLettered };
        let mut transaction = Transaction::begin(self, OPERATOR.to_owned());
        let ended: Vec<EventId> = {
            let tables = &self.state().tables;
            let of_source = tables
                .events
                .iter()
                .filter(|(_, row)| row.event.source.as_str() == source)
                .map(|(id, _)| *id);
            of_source.filter(|id| tables.status(*id) == wanted).collect()
        };
        let ended: Vec<EventId> =
            ended.into_iter().filter(|event| transaction.try_lock(&Lock::Row(*event))).collect();
        self.step().await;
        // What becomes of it, its events tell.
        let _ = transaction
            .commit(AtCommit::Commit, |work| {
                let now = work.now;
                for event in ended {
                    let tables = &work.state.tables;
                    if tables.events.contains_key(&event) && tables.status(event) == wanted {
                        work.change(event, Change::Redriven, |tables| {
                            redrive_one(tables, now, event, delivered, self.bug)
                        });
                    }
                }
                Answer::Pong
            })
            .await;
    }

    /// Somebody at the console locks the rows of a source for a while.
    pub(crate) async fn lock_rows(&self, source: &str, duration: Duration) {
        let mut transaction = Transaction::begin(self, "the console".to_owned());
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

    /// Forgets every fault that is in force or planned. A clock that jumped stays where it is.
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

    /// The fault, if any, that is planned for this call.
    pub(crate) fn fault_for(&self, process: &str, operation: &Operation) -> Option<StoreFault> {
        let call = match operation {
            Operation::Accept(_) | Operation::Insert(_) => Call::Accept,
            Operation::Existing(_) => Call::Look,
            Operation::Claim(_) => Call::Claim,
            Operation::Settle(_) => Call::Settle,
            Operation::Find(_) => Call::Find,
            Operation::Redrive(_) | Operation::RedriveDelivered(_) => Call::Redrive,
            Operation::RedriveAll(..) => Call::RedriveAll,
            Operation::List(..) => Call::List,
            Operation::Sources(..) => Call::Sources,
            Operation::Pause(..) => Call::Pause,
            Operation::Prune(..) => Call::Prune,
            Operation::Erase(..) => Call::Erase,
            Operation::Ping => Call::Ping,
            Operation::Probe(_) => Call::Probe,
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

    /// Time passes inside a transaction.
    pub(crate) async fn step(&self) {
        let slow_by = self.state().slow_by;
        sleep(Duration::from_micros(madsim::rand::thread_rng().gen_range(1_000..4_000)) + slow_by)
            .await;
    }
}

impl State {
    /// The database's time, in microseconds as it keeps it.
    pub(crate) fn now(&self) -> Timestamp {
        let since = i64::try_from(elapsed().as_micros()).expect("runs are short");
        Timestamp::from_microsecond(START_MILLIS * 1_000 + since + self.clock_offset_ms * 1_000)
            .expect("within the calendar")
    }

    pub(crate) fn row(&self, event: EventId) -> Option<DeliveryRow> {
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
    disk.step().await;
    let mut transaction = Transaction::begin(disk, request.process);
    let at_commit = match request.fault {
        Some(StoreFault::FailBeforeCommit) => AtCommit::Break,
        Some(StoreFault::Conflict) => AtCommit::GiveWay,
        _ => AtCommit::Commit,
    };
    if disk.kind == Kind::OneWriter && request.operation.writes() {
        transaction.lock(Lock::Writer).await?;
    }
    let answer = match request.operation {
        Operation::Accept(batch) | Operation::Insert(batch) => {
            transaction.insert(batch, at_commit).await.map(Answer::Accepted)
        }
        Operation::Existing(keys) => transaction.existing(keys).await,
        Operation::Claim(demands) => transaction.claim(demands, at_commit).await,
        Operation::Settle(batch) => transaction.settle(batch, at_commit).await,
        Operation::Find(event) => {
            transaction.read(|tables, _| Answer::Found(tables.find(event).map(Box::new)))
        }
        Operation::Ping => transaction.read(|_, _| Answer::Pong),
        Operation::List(filter, span, size) => {
            transaction.read(|tables, _| Answer::Listed(tables.list(&filter, span, size)))
        }
        Operation::Sources(names, count_to) => {
            transaction.read(|tables, now| Answer::Sources(tables.sources(now, &names, count_to)))
        }
        other => transaction.maintain(other, at_commit).await,
    };
    drop(transaction);
    match request.fault {
        Some(StoreFault::FailAfterCommit) if answer.is_ok() => return Err(broken()),
        Some(StoreFault::Slow { by_ms }) => sleep(Duration::from_millis(by_ms)).await,
        _ => {}
    }
    disk.step().await;
    answer
}

impl Operation {
    fn writes(&self) -> bool {
        !matches!(
            self,
            Self::Existing(_) | Self::Find(_) | Self::List(..) | Self::Sources(..) | Self::Ping
        )
    }
}

type RowChange = (EventId, Change, Option<DeliveryRow>, Option<DeliveryRow>);

/// What a failover takes back: how each event of the old primary stands on the new one, where that differs.
fn taken_back(old: &Database, new: &Database) -> Vec<RowChange> {
    let row = |tables: &Database, event| tables.deliveries.get(event).copied();
    let differ = old.events.keys().filter_map(|event| {
        let (before, after) = (row(old, event), row(new, event));
        if !new.events.contains_key(event) {
            return Some((*event, Change::Lost, before, None));
        }
        (before != after).then_some((*event, Change::RolledBack, before, after))
    });
    let pruned = new.events.keys().filter(|event| !old.events.contains_key(event));
    differ.chain(pruned.map(|event| (*event, Change::RolledBack, None, row(new, event)))).collect()
}
