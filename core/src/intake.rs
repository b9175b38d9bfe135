//! One process's intake: which requests wait, which are stored together, what the store's result means for each of them, and
//! which events are handed over to the worker of the same process. It holds no bytes, no connection and no clock.
//!
//! The contract is the one of [`crate::worker`]:
//!
//! 1. Report what happened: [`Intake::handle`].
//! 2. Carry out what it wants: [`Intake::poll`], until it returns `None`.
//! 3. Sleep until something else happens, at the latest until [`Intake::wake_at`]. A spurious wake is harmless.
//!
//! `poll` and `wake_at` are read off one list, so they cannot disagree.
//!
//! Batches need no timer (group commit): while a batch is being stored, requests queue up, and the next batch takes what has
//! gathered. An idle intake stores a batch of one at once; a busy one stores hundreds with one commit.

mod capacity;
mod interface;
#[cfg(test)]
mod tests;

use crate::admission::{Admission, Fingerprint, NotStored, Stored, resolve};
use crate::event::Status;
use crate::id::EventId;
use crate::key::IdempotencyKey;
use crate::source::SourceName;
use crate::time::Instant;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use capacity::Offers;

pub use capacity::Capacity;
pub use interface::{
    Action, BATCH_BYTES, BATCH_ROWS, BatchId, Input, Refusal, Request, STORE_ATTEMPTS, Settings,
    StoreFailure, Ticket,
};

/// One process's intake. See the [module](self).
#[derive(Debug)]
pub struct Intake {
    settings: Settings,
    phase: Phase,
    next_ticket: u64,
    next_batch: u64,
    /// Every request that has a ticket: it waits in `queue` or is a part of a batch.
    requests: BTreeMap<Ticket, Waiting>,
    /// When each unanswered request times out.
    deadlines: BTreeSet<(Instant, Ticket)>,
    /// Requests that no batch has taken, oldest first.
    queue: VecDeque<Ticket>,
    /// Parts that are to be stored as soon as the store takes another call: retries and halves of rejected batches. They
    /// keep the place of the batch that they come from.
    again: VecDeque<Part>,
    /// The calls that the store has not answered.
    storing: BTreeMap<BatchId, Call>,
    /// Claims that are being given back to the store because the worker takes no more.
    releasing: u32,
    offers: Offers,
    /// What follows from the inputs so far, in order.
    ready: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Draining,
    Done,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    deadline: Instant,
    is_answered: bool,
}

/// The requests of one batch that have the same source and idempotency key. The first is stored; the result of the others
/// follows from it.
#[derive(Clone, Debug)]
struct Group {
    first: Ticket,
    others: Vec<Ticket>,
}

/// Groups that are stored by one call.
#[derive(Clone, Debug)]
struct Part {
    groups: Vec<Group>,
    /// How often it was handed to the store.
    attempts: u32,
    /// An earlier attempt may have stored it.
    is_in_doubt: bool,
}

#[derive(Debug)]
struct Call {
    part: Part,
    /// When the call began. The leases of what it claims are counted from here.
    since: Instant,
    /// For each group, whether it is to be claimed on insert.
    is_leased: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ready,
    Store,
    TimeOut,
    Done,
}

impl Intake {
    /// An intake that holds nothing.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::Running,
            next_ticket: 0,
            next_batch: 0,
            requests: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            queue: VecDeque::new(),
            again: VecDeque::new(),
            storing: BTreeMap::new(),
            releasing: 0,
            offers: Offers::default(),
            ready: VecDeque::new(),
        }
    }

    /// Admits a request to the queue and returns its ticket.
    ///
    /// # Errors
    ///
    /// [`Refusal::Overloaded`] or [`Refusal::ShuttingDown`]. Nothing is held then.
    pub fn submit(&mut self, now: Instant, request: Request) -> Result<Ticket, Refusal> {
        if self.phase != Phase::Running {
            return Err(Refusal::ShuttingDown);
        }
        if self.requests.len() >= self.settings.max_queued {
            return Err(Refusal::Overloaded);
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let deadline = now + self.settings.request_timeout;
        self.requests.insert(ticket, Waiting { request, deadline, is_answered: false });
        self.deadlines.insert((deadline, ticket));
        self.queue.push_back(ticket);
        Ok(ticket)
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Stored { batch, result } => self.stored(batch, result),
            Input::Offered { source, capacity, lease } => {
                self.offers.offer(source, capacity, lease)
            }
            Input::TakenOver { source, size } => self.offers.taken_over(&source, size),
            Input::HandoverClosed => self.offers.close(),
            Input::NotHandedOver(events) => {
                self.offers.close();
                self.releasing += 1;
                // Before the answers, after which the driver has no bytes of these events any more.
                self.ready.push_front(Action::Release(events));
            }
            Input::Released => {
                debug_assert!(self.releasing > 0, "a release that was not asked for has ended");
                self.releasing = self.releasing.saturating_sub(1);
            }
            Input::ShutDown => {
                if self.phase == Phase::Running {
                    self.phase = Phase::Draining;
                }
            }
        }
    }

    /// What is to be done now; `None` when nothing is, until [`Self::wake_at`] or the next input.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        let (at, step) = self.next_step()?;
        if at > now {
            return None;
        }
        self.take(now, step)
    }

    /// When to poll again if nothing else happens; `None` if only an input can bring this intake on. In the past if an
    /// action is ready.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.next_step().map(|(at, _)| at)
    }

    /// Requests that hold a place: from [`Self::submit`] until the store's last result for them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.requests.len()
    }

    /// For how many events the worker's room is taken: claimed on insert, or asked for, and not taken over.
    #[must_use]
    pub fn capacity_taken(&self) -> u32 {
        self.offers.taken()
    }

    /// The one list of what is due when: the earliest step, and of steps that are due together the first of the list.
    fn next_step(&self) -> Option<(Instant, Step)> {
        const READY: Instant = Instant::ZERO;
        let when = |condition: bool| condition.then_some(READY);
        let may_store = self.storing.len() < self.settings.batches_at_once
            && !(self.again.is_empty() && self.queue.is_empty());
        let is_empty = self.requests.is_empty() && self.storing.is_empty() && self.releasing == 0;
        [
            (when(!self.ready.is_empty()), Step::Ready),
            (when(may_store), Step::Store),
            (self.deadlines.first().map(|(at, _)| *at), Step::TimeOut),
            (when(self.phase == Phase::Draining && is_empty), Step::Done),
        ]
        .into_iter()
        .filter_map(|(at, step)| Some((at?, step)))
        .min_by_key(|(at, _)| *at)
    }

    /// Carries out a step that is due.
    fn take(&mut self, now: Instant, step: Step) -> Option<Action> {
        match step {
            Step::Ready => self.ready.pop_front(),
            Step::Store => Some(self.store(now)),
            Step::TimeOut => {
                let (_, ticket) = self.deadlines.pop_first().expect("the step says so");
                self.requests.get_mut(&ticket).expect("an unanswered request waits").is_answered =
                    true;
                Some(Action::Answer { ticket, answer: Err(Refusal::TimedOut) })
            }
            Step::Done => {
                self.phase = Phase::Done;
                Some(Action::Done)
            }
        }
    }

    /// Hands the next part to the store. What the worker has capacity for is claimed on insert; only at the first attempt,
    /// because nobody knows what an attempt with an unknown outcome has claimed.
    fn store(&mut self, now: Instant) -> Action {
        let part = self.again.pop_front().unwrap_or_else(|| self.next_batch());
        let mut events = Vec::with_capacity(part.groups.len());
        let mut is_leased = Vec::with_capacity(part.groups.len());
        for group in &part.groups {
            let Request { source, size, .. } = &self.requests[&group.first].request;
            let lease = if part.attempts == 0 { self.offers.take(source, *size) } else { None };
            is_leased.push(lease.is_some());
            events.push((group.first, lease));
        }
        self.next_batch += 1;
        let batch = BatchId(self.next_batch);
        self.storing.insert(
            batch,
            Call { part: Part { attempts: part.attempts + 1, ..part }, since: now, is_leased },
        );
        Action::Store { batch, events }
    }

    /// The oldest requests that fit into one batch, sorted by source and idempotency key.
    fn next_batch(&mut self) -> Part {
        let mut groups: BTreeMap<(SourceName, IdempotencyKey), Group> = BTreeMap::new();
        let (mut rows, mut bytes) = (0, 0);
        while let Some(&ticket) = self.queue.front() {
            let request = &self.requests[&ticket].request;
            match groups.get_mut(&(request.source.clone(), request.key.clone())) {
                Some(group) => group.others.push(ticket),
                None if rows > 0 && bytes + request.size > BATCH_BYTES => break,
                None => {
                    bytes += request.size;
                    groups.insert(
                        (request.source.clone(), request.key.clone()),
                        Group { first: ticket, others: Vec::new() },
                    );
                }
            }
            self.queue.pop_front();
            rows += 1;
            if rows == BATCH_ROWS {
                break;
            }
        }
        Part { groups: groups.into_values().collect(), attempts: 0, is_in_doubt: false }
    }

    fn stored(&mut self, batch: BatchId, result: Result<Vec<Stored>, StoreFailure>) {
        let Some(Call { part, since, is_leased }) = self.storing.remove(&batch) else {
            debug_assert!(false, "the store answers a call that is not open");
            return;
        };
        match result {
            Ok(stored) => {
                assert_eq!(
                    stored.len(),
                    part.groups.len(),
                    "the store answers for each event of a batch"
                );
                self.committed(part, since, &is_leased, &stored);
            }
            Err(failure) => {
                for (group, _) in
                    part.groups.iter().zip(&is_leased).filter(|(_, is_leased)| **is_leased)
                {
                    let Request { source, size, .. } = &self.requests[&group.first].request;
                    self.offers.give_back(source, *size);
                }
                self.failed(part, failure);
            }
        }
    }

    /// The part is committed: claimed events go to the worker, and every request of it is answered.
    fn committed(&mut self, part: Part, since: Instant, is_leased: &[bool], stored: &[Stored]) {
        let (mut claimed, mut to_ring) = (Vec::new(), BTreeSet::new());
        for ((group, stored), is_leased) in part.groups.iter().zip(stored).zip(is_leased) {
            let Request { source, size, .. } = &self.requests[&group.first].request;
            match stored {
                Stored::Claimed => claimed.push(group.first),
                Stored::Inserted => {
                    to_ring.insert(source.clone());
                }
                Stored::Existing { .. } => {}
            }
            if *is_leased && *stored != Stored::Claimed {
                self.offers.give_back(source, *size);
            }
        }
        if !claimed.is_empty() && self.offers.is_closed() {
            self.releasing += 1;
            self.ready.push_back(Action::Release(claimed));
        } else if !claimed.is_empty() {
            self.ready.push_back(Action::HandOver { since, events: claimed });
        }
        if !to_ring.is_empty() {
            self.ready.push_back(Action::Ring(to_ring));
        }
        for (group, stored) in part.groups.into_iter().zip(stored) {
            let Request { event, fingerprint, on_key_reuse, .. } =
                self.requests[&group.first].request;
            self.answer(group.first, Ok(resolve(event, fingerprint, on_key_reuse, *stored)));
            let seen_by_others = existing(event, fingerprint, *stored);
            for other in group.others {
                let Request { event, fingerprint, on_key_reuse, .. } =
                    self.requests[&other].request;
                self.answer(other, Ok(resolve(event, fingerprint, on_key_reuse, seen_by_others)));
            }
        }
    }

    /// The part is not stored, or nobody knows. It is tried again where that can help, and halved until a row that the store
    /// rejects is alone. The event ids stay the same, so that an attempt whose result was lost is recognised.
    fn failed(&mut self, mut part: Part, failure: StoreFailure) {
        part.is_in_doubt |= failure == StoreFailure::Unknown;
        match failure {
            StoreFailure::Conflict | StoreFailure::Unknown if part.attempts < STORE_ATTEMPTS => {
                self.again.push_back(part)
            }
            StoreFailure::Rejected if part.groups.len() > 1 => {
                let second = part.groups.split_off(part.groups.len() / 2);
                let half = |groups| Part { groups, attempts: 0, is_in_doubt: part.is_in_doubt };
                self.again.extend([half(part.groups), half(second)]);
            }
            StoreFailure::Rejected => {
                // Others with the same key may have another body: the next of them is stored in its place.
                let Part { groups, is_in_doubt, .. } = part;
                for Group { first, others } in groups {
                    self.answer(
                        first,
                        Err(Refusal::NotStored(NotStored::Refused.after(is_in_doubt))),
                    );
                    let mut others = others.into_iter();
                    if let Some(first) = others.next() {
                        let groups = vec![Group { first, others: others.collect() }];
                        self.again.push_back(Part { groups, attempts: 0, is_in_doubt });
                    }
                }
            }
            StoreFailure::Unavailable | StoreFailure::Conflict | StoreFailure::Unknown => {
                let last = if failure == StoreFailure::Unknown {
                    NotStored::Unknown
                } else {
                    NotStored::Unavailable
                };
                let refusal = Refusal::NotStored(last.after(part.is_in_doubt));
                for Group { first, others } in part.groups {
                    self.answer(first, Err(refusal));
                    for other in others {
                        self.answer(other, Err(refusal));
                    }
                }
            }
        }
    }

    /// The store's last result for a request: it gives up its place, and has its answer unless it has timed out.
    fn answer(&mut self, ticket: Ticket, answer: Result<Admission, Refusal>) {
        let Waiting { deadline, is_answered, .. } =
            self.requests.remove(&ticket).expect("a request is answered once");
        if is_answered {
            self.ready.push_back(Action::Forget(ticket));
        } else {
            self.deadlines.remove(&(deadline, ticket));
            self.ready.push_back(Action::Answer { ticket, answer });
        }
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Panics
    ///
    /// If it does not hold.
    pub fn invariants(&self) {
        let groups = self
            .again
            .iter()
            .flat_map(|part| &part.groups)
            .chain(self.storing.values().flat_map(|call| &call.part.groups));
        let placed =
            self.queue.iter().copied().chain(groups.flat_map(|group| {
                core::iter::once(group.first).chain(group.others.iter().copied())
            }));
        let mut seen = BTreeSet::new();
        for ticket in placed {
            assert!(
                self.requests.contains_key(&ticket),
                "a place is held by a request that is gone"
            );
            assert!(seen.insert(ticket), "a request is in two places");
        }
        assert_eq!(seen.len(), self.requests.len(), "a request is in no place");
        assert!(self.storing.len() <= self.settings.batches_at_once, "too many calls at once");
        assert!(self.requests.len() <= self.settings.max_queued, "more requests than may wait");
        let unanswered: BTreeSet<(Instant, Ticket)> = self
            .requests
            .iter()
            .filter(|(_, waiting)| !waiting.is_answered)
            .map(|(ticket, waiting)| (waiting.deadline, *ticket))
            .collect();
        assert_eq!(
            unanswered, self.deadlines,
            "the deadlines are those of the unanswered requests"
        );
        for call in self.storing.values() {
            assert!(
                call.part.groups.len() <= BATCH_ROWS && !call.part.groups.is_empty(),
                "a batch has 1 to {BATCH_ROWS} rows"
            );
            let bytes: usize =
                call.part.groups.iter().map(|group| self.requests[&group.first].request.size).sum();
            assert!(
                bytes <= BATCH_BYTES || call.part.groups.len() == 1,
                "a batch is larger than {BATCH_BYTES} bytes"
            );
        }
        let leased = self
            .storing
            .values()
            .flat_map(|call| &call.is_leased)
            .filter(|is_leased| **is_leased)
            .count();
        assert!(
            leased <= self.offers.taken() as usize,
            "an event is claimed on insert without room for it"
        );
    }
}

/// What the others of a group find once the first of it is stored.
fn existing(id: EventId, fingerprint: Fingerprint, stored: Stored) -> Stored {
    match stored {
        Stored::Inserted => Stored::Existing { id, fingerprint, status: Status::Queued },
        Stored::Claimed => Stored::Existing { id, fingerprint, status: Status::Processing },
        existing @ Stored::Existing { .. } => existing,
    }
}
