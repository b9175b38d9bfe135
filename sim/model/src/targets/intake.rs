//! An intake between arbitrary producers, a store and a worker. Its promises are checked at each
//! action.

use arbitrary::{Result, Unstructured};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use surehook_core::admission::{Admission, Fingerprint, NotStored, OnKeyReuse, Stored};
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::intake::{
    Action, BATCH_BYTES, BATCH_ROWS, BatchId, Capacity, Input, Intake, Refusal, Request,
    STORE_ATTEMPTS, Settings, StoreFailure, Ticket,
};
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use uuid::Uuid;

const SOURCES: usize = 3;
/// Limit of the steps of a case.
const STEPS: usize = 300;
/// Limit of the requests of a case. All requests are looked at after each action.
const REQUESTS: usize = 600;
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1800);
const LEASE: Duration = Duration::from_mins(1);

/// The settings of an intake, and the steps that happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub max_queued: usize,
    pub batches_at_once: usize,
    pub steps: Vec<Step>,
}

/// An input to the intake, or a change of its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Producers send this many requests.
    Submit {
        /// The number of requests.
        count: usize,
        /// Index of the source.
        source: usize,
        /// The number of different idempotency keys. The number of a request determines its key.
        keys: u8,
        /// The size of each in bytes.
        size: usize,
        /// Whether the store rejects their rows.
        poison: bool,
    },
    /// One of the open calls to the store ends.
    End {
        /// Selects the call, modulo the number of open calls.
        which: usize,
        /// How it ends.
        how: End,
    },
    /// The worker offers capacity.
    Offer {
        /// Index of the source.
        source: usize,
        /// Events and bytes.
        capacity: (u32, usize),
    },
    /// The worker takes over all handed-over events.
    TakeOver,
    /// The worker ends.
    CloseHandover,
    /// A release ends.
    EndRelease,
    /// Time passes.
    Pass(Duration),
    /// The process starts its shutdown.
    ShutDown,
}

/// How a call to the store ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a commit, or with a rejection if a row of the batch is poison.
    Commit,
    /// Nothing is stored.
    Unavailable,
    /// Nothing is stored.
    Conflict,
    /// The outcome is unknown to the caller.
    Unknown {
        /// Whether the batch was committed.
        committed: bool,
    },
}

/// Runs the case that `data` describes.
///
/// # Panics
///
/// If the intake breaks a promise.
pub fn run(data: &[u8]) {
    check(&Case::read(data));
}

impl Case {
    /// The case that `data` describes. Any bytes describe one.
    #[must_use]
    pub fn read(data: &[u8]) -> Self {
        let mut bytes = Unstructured::new(data);
        let max_queued = if bytes.ratio(1, 3).unwrap_or(false) {
            bytes.int_in_range(1..=20).unwrap_or(1)
        } else {
            4096
        };
        let batches_at_once = bytes.int_in_range(1..=3).unwrap_or(1);
        let mut steps = Vec::new();
        let mut requests = 0;
        while !bytes.is_empty() && steps.len() < STEPS {
            let Ok(step) = step(&mut bytes) else { continue };
            if let Step::Submit { count, .. } = step {
                requests += count;
                if requests > REQUESTS {
                    break;
                }
            }
            steps.push(step);
        }
        Self { max_queued, batches_at_once, steps }
    }
}

fn step(bytes: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match bytes.int_in_range(0..=31)? {
        0..=9u8 => Step::Submit {
            count: if bytes.ratio(1, 8)? {
                bytes.int_in_range(1..=600)?
            } else {
                bytes.int_in_range(1..=5)?
            },
            source: bytes.int_in_range(0..=SOURCES - 1)?,
            keys: bytes.int_in_range(1..=40)?,
            size: if bytes.ratio(1, 6)? {
                bytes.int_in_range(0..=BATCH_BYTES + 10)?
            } else {
                bytes.int_in_range(0..=2_000)?
            },
            poison: bytes.ratio(1, 10)?,
        },
        10..=20 => Step::End {
            which: usize::from(bytes.arbitrary::<u8>()?),
            how: match bytes.int_in_range(0..=11)? {
                0..=6u8 => End::Commit,
                7 => End::Unavailable,
                8 => End::Conflict,
                9 => End::Unknown { committed: false },
                _ => End::Unknown { committed: true },
            },
        },
        21..=24 => Step::Offer {
            source: bytes.int_in_range(0..=SOURCES - 1)?,
            capacity: (bytes.int_in_range(0..=20)?, bytes.int_in_range(0..=20_000)?),
        },
        25 | 26 => Step::TakeOver,
        27 => Step::CloseHandover,
        28 => Step::EndRelease,
        29 | 30 => Step::Pass(Duration::from_millis(bytes.int_in_range(0..=2_500)?)),
        _ => Step::ShutDown,
    })
}

/// Applies all steps to an intake, then lets every call end, and checks:
///
/// - Each request gets one answer.
/// - An acknowledged event is in the store under the id in the answer.
/// - No batch exceeds its limits or contains a key twice.
/// - Only events that the store reported as claimed are handed over, and never more than the worker
///   offered.
/// - Capacity is neither lost nor returned twice.
/// - The intake ends.
///
/// # Panics
///
/// If a check fails.
pub fn check(case: &Case) {
    let mut world = World::new(case);
    world.drain();
    for step in &case.steps {
        world.step(step);
    }
    world.finish();
}

struct World {
    settings: Settings,
    intake: Intake,
    now: Instant,
    next_id: u128,
    requests: BTreeMap<Ticket, Sent>,
    /// The committed events by source and key.
    rows: BTreeMap<(SourceName, IdempotencyKey), Row>,
    open: BTreeMap<BatchId, Vec<(Ticket, Option<Duration>)>>,
    /// Events that the store reported as claimed, and that are neither handed over nor released.
    claimed: BTreeSet<Ticket>,
    /// Events that are handed over, but not taken over.
    handed: VecDeque<Ticket>,
    /// The worker's capacity by source: the newest offer minus what it has taken over since.
    room: BTreeMap<SourceName, (u32, usize)>,
    handover_closed: bool,
    releases: u32,
    is_shutting_down: bool,
    is_done: bool,
}

struct Sent {
    request: Request,
    poison: bool,
    deadline: Instant,
    answered: bool,
    forgotten: bool,
    store_calls: u32,
    /// Whether a call may have stored it with an outcome unknown to the intake.
    in_doubt: bool,
}

#[derive(Clone, Copy)]
struct Row {
    id: EventId,
    fingerprint: Fingerprint,
    status: Status,
}

impl World {
    fn new(case: &Case) -> Self {
        let settings = Settings {
            max_queued: case.max_queued,
            batches_at_once: case.batches_at_once,
            request_timeout: REQUEST_TIMEOUT,
        };
        Self {
            settings,
            intake: Intake::new(settings),
            now: Instant::ZERO,
            next_id: 0,
            requests: BTreeMap::new(),
            rows: BTreeMap::new(),
            open: BTreeMap::new(),
            claimed: BTreeSet::new(),
            handed: VecDeque::new(),
            room: BTreeMap::new(),
            handover_closed: false,
            releases: 0,
            is_shutting_down: false,
            is_done: false,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit { count, source, keys, size, poison } => {
                for n in 0..count {
                    self.submit(source, u32::from(keys), n, size, poison);
                }
            }
            Step::End { which, how } => {
                if let Some(batch) = self.open.keys().nth(which % self.open.len().max(1)).copied() {
                    self.end(batch, how);
                }
            }
            Step::Offer { source, capacity: (events, bytes) } => self.offer(source, events, bytes),
            Step::TakeOver => self.take_over(),
            Step::CloseHandover => self.close_handover(),
            Step::EndRelease => self.end_release(),
            Step::Pass(time) => {
                self.now = self.now + time;
            }
            Step::ShutDown => {
                self.is_shutting_down = true;
                self.intake.handle(Input::ShutDown);
            }
        }
        self.drain();
    }

    fn submit(&mut self, source: usize, keys: u32, n: usize, size: usize, poison: bool) {
        self.next_id += 1;
        let body = self.next_id % 2;
        let request = Request {
            event: EventId::from_uuid(Uuid::from_u128(self.next_id)),
            source: source_name(source),
            key: IdempotencyKey::parse(
                format!("key-{}", (self.next_id + n as u128) % u128::from(keys)).as_bytes(),
            )
            .expect("the key is valid"),
            fingerprint: Fingerprint::of(&body.to_be_bytes()),
            on_key_reuse: if source == 0 { OnKeyReuse::FirstWins } else { OnKeyReuse::Reject },
            size,
        };
        let deadline = self.now + REQUEST_TIMEOUT;
        let waiting = self.intake.waiting();
        match self.intake.submit(self.now, request.clone()) {
            Ok(ticket) => {
                assert!(
                    waiting < self.settings.max_queued && !self.is_shutting_down,
                    "a request was admitted to a full or closed intake"
                );
                let sent = Sent {
                    request,
                    poison,
                    deadline,
                    answered: false,
                    forgotten: false,
                    store_calls: 0,
                    in_doubt: false,
                };
                assert!(self.requests.insert(ticket, sent).is_none(), "a ticket was used twice");
            }
            Err(Refusal::Overloaded) => assert!(
                waiting >= self.settings.max_queued,
                "a request was refused although the queue has room"
            ),
            Err(refusal) => {
                assert!(refusal == Refusal::ShuttingDown && self.is_shutting_down, "{refusal:?}");
            }
        }
    }

    fn end(&mut self, batch: BatchId, how: End) {
        let events = self.open.remove(&batch).expect("the batch is open");
        let poisoned = events.iter().any(|(ticket, _)| self.requests[ticket].poison);
        let result = match how {
            End::Unavailable => Err(StoreFailure::Unavailable),
            End::Conflict => Err(StoreFailure::Conflict),
            End::Commit | End::Unknown { .. } if poisoned => Err(StoreFailure::Rejected),
            End::Commit => Ok(events
                .iter()
                .map(|(ticket, lease)| self.commit(*ticket, *lease))
                .collect::<Vec<_>>()),
            End::Unknown { committed } => {
                for (ticket, lease) in &events {
                    if committed {
                        self.commit(*ticket, *lease);
                    }
                    self.requests.get_mut(ticket).expect("the request was submitted").in_doubt =
                        true;
                }
                Err(StoreFailure::Unknown)
            }
        };
        if let Ok(stored) = &result {
            let claimed = events.iter().zip(stored).filter(|(_, stored)| stored.is_claimed());
            self.claimed.extend(claimed.map(|((ticket, _), _)| *ticket));
        }
        self.intake.handle(Input::Stored { batch, result });
    }

    fn commit(&mut self, ticket: Ticket, lease: Option<Duration>) -> Stored {
        let Request { event, source, key, fingerprint, .. } =
            self.requests[&ticket].request.clone();
        if let Some(Row { id, fingerprint, status }) =
            self.rows.get(&(source.clone(), key.clone())).copied()
        {
            return Stored::Existing { id, fingerprint, status };
        }
        let status = if lease.is_some() { Status::Processing } else { Status::Queued };
        self.rows.insert((source, key), Row { id: event, fingerprint, status });
        if lease.is_some() {
            Stored::Claimed { received_at: received_at(event) }
        } else {
            Stored::Inserted
        }
    }

    fn offer(&mut self, source: usize, events: u32, bytes: usize) {
        // A worker that has ended offers nothing.
        if !self.handover_closed {
            self.room.insert(source_name(source), (events, bytes));
            let capacity = Capacity { events, bytes };
            self.intake.handle(Input::Offered {
                source: source_name(source),
                capacity,
                lease: LEASE,
            });
        }
    }

    fn take_over(&mut self) {
        while let Some(ticket) = self.handed.pop_front() {
            let Request { source, size, .. } = self.requests[&ticket].request.clone();
            let room = self.room.get_mut(&source).expect("capacity was offered");
            *room = (room.0.saturating_sub(1), room.1.saturating_sub(size));
            self.intake.handle(Input::TakenOver { source, size });
        }
    }

    fn close_handover(&mut self) {
        self.take_over();
        self.handover_closed = true;
        self.intake.handle(Input::HandoverClosed);
    }

    fn end_release(&mut self) {
        if self.releases > 0 {
            self.releases -= 1;
            self.intake.handle(Input::Released);
        }
    }

    /// Carries out all actions that are ready.
    fn drain(&mut self) {
        self.intake.invariants();
        while let Some(action) = self.intake.poll(self.now) {
            self.intake.invariants();
            self.act(action);
        }
        let wake = self.intake.wake_at();
        assert!(
            wake.is_none_or(|at| at > self.now),
            "wake_at is {wake:?}, but no action is ready at {:?}",
            self.now
        );
    }

    fn act(&mut self, action: Action) {
        assert!(!self.is_done, "{action:?} after Done");
        match action {
            Action::Store { batch, events } => self.store(batch, events),
            Action::HandOver { events, .. } => {
                assert!(
                    !self.handover_closed,
                    "events were handed over to a worker that has ended"
                );
                for (ticket, at) in events {
                    assert_eq!(
                        at,
                        received_at(self.requests[&ticket].request.event),
                        "an event was handed over with the time of another"
                    );
                    assert!(
                        self.claimed.remove(&ticket),
                        "an event was handed over that the store did not claim"
                    );
                    assert!(
                        !self.requests[&ticket].forgotten,
                        "an event was handed over after its bytes were dropped"
                    );
                    self.handed.push_back(ticket);
                }
            }
            Action::Release(events) => {
                for (ticket, _) in events {
                    assert!(
                        self.claimed.remove(&ticket),
                        "an event was released that the store did not claim"
                    );
                }
                self.releases += 1;
            }
            Action::Ring(sources) => {
                assert!(!sources.is_empty(), "the doorbell was rung without a source");
            }
            Action::Answer { ticket, answer } => self.answer(ticket, answer),
            Action::Forget(ticket) => {
                let sent = self.requests.get_mut(&ticket).expect("the request was submitted");
                assert!(
                    sent.answered && !sent.forgotten,
                    "a request was forgotten twice or before its answer"
                );
                sent.forgotten = true;
            }
            Action::Done => {
                assert!(
                    self.is_shutting_down && self.open.is_empty() && self.releases == 0,
                    "Done came before the shutdown or with open calls"
                );
                assert!(
                    self.requests.values().all(|sent| sent.answered && sent.forgotten),
                    "Done came with an unanswered request"
                );
                self.is_done = true;
            }
        }
    }

    fn store(&mut self, batch: BatchId, events: Vec<(Ticket, Option<Duration>)>) {
        assert!(
            !events.is_empty() && events.len() <= BATCH_ROWS,
            "a batch of {} events",
            events.len()
        );
        assert!(self.open.len() < self.settings.batches_at_once, "too many concurrent calls");
        let bytes: usize =
            events.iter().map(|(ticket, _)| self.requests[ticket].request.size).sum();
        assert!(bytes <= BATCH_BYTES || events.len() == 1, "a batch of {bytes} bytes");
        let keys: Vec<_> = events
            .iter()
            .map(|(ticket, _)| {
                (&self.requests[ticket].request.source, &self.requests[ticket].request.key)
            })
            .collect();
        assert!(
            keys.is_sorted_by(|one, other| one < other),
            "a batch is not sorted or contains a key twice"
        );
        for (ticket, lease) in &events {
            let sent = self.requests.get_mut(ticket).expect("the request was submitted");
            sent.store_calls += 1;
            assert!(
                !sent.in_doubt || lease.is_none() || sent.store_calls > STORE_ATTEMPTS,
                "a claim on insert was requested after an unknown result"
            );
        }
        assert!(self.open.insert(batch, events).is_none(), "a batch id was used twice");
        // Events that are claimed on insert fit into the worker's last offer, except those claimed
        // before that offer.
        let leased = self.open.values().flatten().filter(|(_, lease)| lease.is_some()).count()
            + self.claimed.len()
            + self.handed.len();
        assert!(
            self.intake.capacity_taken() as usize >= leased,
            "capacity was returned that is still in use"
        );
    }

    fn answer(&mut self, ticket: Ticket, answer: std::result::Result<Admission, Refusal>) {
        let (now, rows) = (self.now, &self.rows);
        let sent = self.requests.get_mut(&ticket).expect("the request was submitted");
        assert!(!sent.answered, "a request was answered twice");
        sent.answered = true;
        let row = rows.get(&(sent.request.source.clone(), sent.request.key.clone()));
        match answer {
            Ok(Admission::Accepted { id, .. }) => {
                assert_eq!(
                    (row.map(|row| row.id), id),
                    (Some(sent.request.event), sent.request.event),
                    "an event was acknowledged, but is not stored"
                );
            }
            Ok(Admission::Replayed { id, .. }) => {
                let row = row.expect("a replay needs a stored event");
                assert_eq!(row.id, id, "a replay has the id of the first event");
                assert!(row.id != sent.request.event, "a new event was answered as a replay");
                let same = row.fingerprint == sent.request.fingerprint
                    || sent.request.on_key_reuse == OnKeyReuse::FirstWins;
                assert!(same, "a request with a different body was answered as a replay");
            }
            Ok(Admission::KeyReused { first }) => {
                let row = row.expect("a reused key needs a stored event");
                assert_eq!(row.id, first, "a refusal names the first event");
                assert!(
                    row.fingerprint != sent.request.fingerprint,
                    "a request with the same body was refused"
                );
            }
            Err(Refusal::TimedOut) => {
                assert!(now >= sent.deadline, "a request timed out too early");
                return;
            }
            Err(Refusal::NotStored(NotStored::Unknown)) => {}
            Err(Refusal::NotStored(_)) => {
                let is_ours = row.is_some_and(|row| row.id == sent.request.event);
                assert!(
                    !is_ours && !sent.in_doubt,
                    "the answer denies the storing of an event that may be stored"
                );
            }
            Err(refusal @ (Refusal::Overloaded | Refusal::ShuttingDown)) => {
                panic!("{refusal:?} for an admitted request")
            }
        }
        sent.forgotten = true;
    }

    /// Lets all calls end, and shuts the intake down.
    fn finish(&mut self) {
        self.step(&Step::ShutDown);
        // A call splits in two at most once for each of its rows, and each part is tried a few
        // times.
        for _ in 0..20_000 {
            if let Some(batch) = self.open.keys().next().copied() {
                self.end(batch, End::Commit);
            } else if self.releases > 0 {
                self.end_release();
            }
            self.drain();
            if self.is_done {
                break;
            }
        }
        assert!(self.is_done, "the intake does not end");
        assert!(self.claimed.is_empty(), "claimed events were neither handed over nor released");
        self.take_over();
        if !self.handover_closed {
            assert_eq!(self.intake.capacity_taken(), 0, "capacity was lost");
        }
    }
}

fn source_name(index: usize) -> SourceName {
    SourceName::parse(&format!("source-{index}")).expect("the source name is valid")
}

/// When the store has stored an event: a different time for each.
fn received_at(event: EventId) -> Timestamp {
    let [.., a, b, c, d] = *event.as_uuid().as_bytes();
    Timestamp::from_second(u32::from_be_bytes([a, b, c, d]).into()).expect("the time is in range")
}
