//! An intake between producers, a store and a worker that do as they please, held to its promises at each action.

use arbitrary::{Result, Unstructured};
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
/// The longest case, in steps.
const STEPS: usize = 300;
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1800);
const LEASE: Duration = Duration::from_mins(1);

/// An intake's settings, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// See [`Settings`].
    pub max_queued: usize,
    /// See [`Settings`].
    pub batches_at_once: usize,
    /// In this order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Producers send this many requests.
    Submit {
        /// How many.
        count: usize,
        /// The index of the source.
        source: usize,
        /// Idempotency keys are drawn from this many, beginning with the number of the request so far.
        keys: u8,
        /// The bytes of each.
        size: usize,
        /// The store rejects their rows.
        poison: bool,
    },
    /// One of the open calls to the store ends.
    End {
        /// Which of them.
        which: usize,
        /// How.
        how: End,
    },
    /// The worker offers room.
    Offer {
        /// The index of the source.
        source: usize,
        /// The room.
        capacity: (u32, usize),
    },
    /// The worker takes over what was handed over.
    TakeOver,
    /// The worker ends.
    CloseHandover,
    /// One release ends.
    EndRelease,
    /// Time passes.
    Pass(Duration),
    /// The process is told to stop.
    ShutDown,
}

/// How a call to the store ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a commit; or with a rejection, if a row is poison.
    Commit,
    /// Nothing is stored.
    Unavailable,
    /// Nothing is stored.
    Conflict,
    /// The caller does not learn whether it is stored, and it is or is not.
    Unknown {
        /// Whether it is.
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
        while !bytes.is_empty() && steps.len() < STEPS {
            steps.extend(step(&mut bytes));
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

/// Lets all of it happen to an intake, and then lets every call end. Each request has one answer. An acknowledged event is in
/// the store under the id that the answer names. No batch exceeds its bounds or names a key twice. Only what the store
/// claimed in its answer is handed over, and never more than the worker offered. Room is neither lost nor given back twice.
/// And the intake comes to its end.
///
/// # Panics
///
/// If it does not.
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
    /// What is committed, by source and key.
    rows: BTreeMap<(SourceName, IdempotencyKey), Row>,
    open: BTreeMap<BatchId, Vec<(Ticket, Option<Duration>)>>,
    /// What the store answered as claimed and the intake has neither handed over nor released.
    claimed: BTreeSet<Ticket>,
    /// What was handed over and not taken over.
    handed: VecDeque<Ticket>,
    /// The worker's room by source: the newest offer, less what it has taken over since.
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
    /// Whether a call may have stored it and the intake was not told.
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
            .expect("a key"),
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
                    "a request is admitted where none may be"
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
                assert!(self.requests.insert(ticket, sent).is_none(), "a ticket is used twice");
            }
            Err(Refusal::Overloaded) => assert!(
                waiting >= self.settings.max_queued,
                "a request is refused although there is room"
            ),
            Err(refusal) => {
                assert!(refusal == Refusal::ShuttingDown && self.is_shutting_down, "{refusal:?}")
            }
        }
    }

    fn end(&mut self, batch: BatchId, how: End) {
        let events = self.open.remove(&batch).expect("it is open");
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
                    self.requests.get_mut(ticket).expect("it was sent").in_doubt = true;
                }
                Err(StoreFailure::Unknown)
            }
        };
        if let Ok(stored) = &result {
            let claimed =
                events.iter().zip(stored).filter(|(_, stored)| **stored == Stored::Claimed);
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
        if lease.is_some() { Stored::Claimed } else { Stored::Inserted }
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
            let room = self.room.get_mut(&source).expect("it was offered");
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

    /// Carries out all that the intake wants now.
    fn drain(&mut self) {
        self.intake.invariants();
        while let Some(action) = self.intake.poll(self.now) {
            self.intake.invariants();
            self.act(action);
        }
        let wake = self.intake.wake_at();
        assert!(
            wake.is_none_or(|at| at > self.now),
            "it wants to be woken at {wake:?} and has nothing to do at {:?}",
            self.now
        );
    }

    fn act(&mut self, action: Action) {
        assert!(!self.is_done, "{action:?} after the end");
        match action {
            Action::Store { batch, events } => self.store(batch, events),
            Action::HandOver { events, .. } => {
                assert!(!self.handover_closed, "events are handed over to a worker that has ended");
                for ticket in events {
                    assert!(
                        self.claimed.remove(&ticket),
                        "an event is handed over that the store did not claim"
                    );
                    assert!(
                        !self.requests[&ticket].forgotten,
                        "an event is handed over after its bytes are gone"
                    );
                    self.handed.push_back(ticket);
                }
            }
            Action::Release(events) => {
                for ticket in events {
                    assert!(
                        self.claimed.remove(&ticket),
                        "an event is released that the store did not claim"
                    );
                }
                self.releases += 1;
            }
            Action::Ring(sources) => assert!(!sources.is_empty(), "no source is named"),
            Action::Answer { ticket, answer } => self.answer(ticket, answer),
            Action::Forget(ticket) => {
                let sent = self.requests.get_mut(&ticket).expect("it was sent");
                assert!(
                    sent.answered && !sent.forgotten,
                    "a request is forgotten twice or before its answer"
                );
                sent.forgotten = true;
            }
            Action::Done => {
                assert!(
                    self.is_shutting_down && self.open.is_empty() && self.releases == 0,
                    "the end comes too early"
                );
                assert!(
                    self.requests.values().all(|sent| sent.answered && sent.forgotten),
                    "a request is left without its answer"
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
        assert!(self.open.len() < self.settings.batches_at_once, "too many calls at once");
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
            "a batch is not sorted, or has a key twice"
        );
        for (ticket, lease) in &events {
            let sent = self.requests.get_mut(ticket).expect("it was sent");
            sent.store_calls += 1;
            assert!(
                !sent.in_doubt || lease.is_none() || sent.store_calls > STORE_ATTEMPTS,
                "a lease after an unknown result"
            );
        }
        assert!(self.open.insert(batch, events).is_none(), "a call's name is used twice");
        // What is claimed on insert fits into what the worker offered last, unless it was taken before that offer.
        let leased = self.open.values().flatten().filter(|(_, lease)| lease.is_some()).count()
            + self.claimed.len()
            + self.handed.len();
        assert!(
            self.intake.capacity_taken() as usize >= leased,
            "room is given back that is in use"
        );
    }

    fn answer(&mut self, ticket: Ticket, answer: std::result::Result<Admission, Refusal>) {
        let (now, rows) = (self.now, &self.rows);
        let sent = self.requests.get_mut(&ticket).expect("it was sent");
        assert!(!sent.answered, "a request is answered twice");
        sent.answered = true;
        let row = rows.get(&(sent.request.source.clone(), sent.request.key.clone()));
        match answer {
            Ok(Admission::Accepted { id, .. }) => {
                assert_eq!(
                    (row.map(|row| row.id), id),
                    (Some(sent.request.event), sent.request.event),
                    "an event is acknowledged that is not stored"
                );
            }
            Ok(Admission::Replayed { id, .. }) => {
                let row = row.expect("a replay is answered and there is no first event");
                assert_eq!(
                    row.id, id,
                    "a replay is answered with another id than the first event's"
                );
                assert!(row.id != sent.request.event, "an event is a replay of itself");
                let same = row.fingerprint == sent.request.fingerprint
                    || sent.request.on_key_reuse == OnKeyReuse::FirstWins;
                assert!(same, "another body is taken for a replay");
            }
            Ok(Admission::KeyReused) => {
                let row = row.expect("a reused key is refused and there is no first event");
                assert!(row.fingerprint != sent.request.fingerprint, "the same body is refused");
            }
            Err(Refusal::TimedOut) => {
                assert!(now >= sent.deadline, "a request times out too early");
                return;
            }
            Err(Refusal::NotStored(NotStored::Unknown)) => {}
            Err(Refusal::NotStored(_)) => {
                let is_ours = row.is_some_and(|row| row.id == sent.request.event);
                assert!(
                    !is_ours && !sent.in_doubt,
                    "the producer is told that nothing is stored, and it may be"
                );
            }
            Err(refusal @ (Refusal::Overloaded | Refusal::ShuttingDown)) => {
                panic!("{refusal:?} for an admitted request")
            }
        }
        sent.forgotten = true;
    }

    /// Everything ends, and the process shuts down.
    fn finish(&mut self) {
        self.step(&Step::ShutDown);
        // A call splits in two at most once for each of its rows, and each part is tried a few times.
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
        assert!(self.is_done, "the intake does not come to its end");
        assert!(self.claimed.is_empty(), "claimed events are neither handed over nor released");
        self.take_over();
        if !self.handover_closed {
            assert_eq!(self.intake.capacity_taken(), 0, "room is lost");
        }
    }
}

fn source_name(index: usize) -> SourceName {
    SourceName::parse(&format!("source-{index}")).expect("a name")
}
