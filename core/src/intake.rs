//! The state machine of one process's intake. It decides which requests wait, which are stored
//! together, what the store's result means for each request, and which events are handed over to
//! the worker of the same process. It holds no bytes, no connection and no clock.
//!
//! The contract is the same as that of [`crate::worker`]:
//!
//! 1. Report what happened: [`Intake::handle`].
//! 2. Carry out the actions: call [`Intake::poll`] until it returns `None`.
//! 3. Sleep until the next input, at most until [`Intake::wake_at`]. A spurious wake-up is
//!    harmless.
//!
//! `poll` and `wake_at` use the same list of due steps, so they cannot disagree.
//!
//! Batches need no timer (group commit). While a batch is being stored, requests queue up, and the
//! next batch takes them. An idle intake stores a batch of one at once; a busy one stores hundreds
//! with one commit.

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
    Action, BATCH_BYTES, BATCH_ROWS, BatchId, ClaimedOnInsert, Input, Refusal, Request,
    STORE_ATTEMPTS, Settings, StoreFailure, Ticket,
};

/// The intake of one process. See the [module](self).
#[derive(Debug)]
pub struct Intake {
    settings: Settings,
    phase: Phase,
    next_ticket: u64,
    next_batch: u64,
    /// Every request with a ticket. It is either in `queue` or in a part.
    requests: BTreeMap<Ticket, Waiting>,
    /// When each unanswered request times out.
    deadlines: BTreeSet<(Instant, Ticket)>,
    /// Requests that are in no batch yet, oldest first.
    queue: VecDeque<Ticket>,
    /// Parts to store with the next calls: retries, and halves of rejected batches. They go before
    /// the queue.
    again: VecDeque<Part>,
    /// The calls in flight.
    storing: BTreeMap<BatchId, Call>,
    /// Releases in flight: claims that the worker did not take over.
    releasing: u32,
    offers: Offers,
    /// Actions that follow from the inputs so far, in order.
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

/// The requests of one batch that have the same source and idempotency key. The first is stored,
/// and the results of the others follow from it.
#[derive(Clone, Debug)]
struct Group {
    first: Ticket,
    others: Vec<Ticket>,
}

/// The groups that one call stores.
#[derive(Clone, Debug)]
struct Part {
    groups: Vec<Group>,
    /// How often it was handed to the store.
    attempts: u32,
    /// The outcome of an earlier attempt is unknown: it may be stored.
    is_in_doubt: bool,
}

#[derive(Debug)]
struct Call {
    part: Part,
    /// When the call began. The leases of the events that it claims are counted from here.
    since: Instant,
    /// For each group, whether it is claimed on insert.
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
    /// An empty intake.
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

    /// Adds a request to the queue and returns its ticket.
    ///
    /// # Errors
    ///
    /// [`Refusal::Overloaded`] or [`Refusal::ShuttingDown`]. The intake does not hold the request
    /// then.
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

    /// Processes an input.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Stored { batch, result } => self.stored(batch, result),
            Input::Offered { source, capacity, lease } => {
                self.offers.offer(source, capacity, lease);
            }
            Input::TakenOver { source, size } => self.offers.taken_over(&source, size),
            Input::OffersWithdrawn => self.offers.withdraw(),
            Input::HandoverClosed => self.offers.close(),
            Input::NotHandedOver(events) => {
                self.offers.close();
                self.releasing += 1;
                // Before the answers: after them, the driver no longer has the bytes of these
                // events.
                self.ready.push_front(Action::Release(events));
            }
            Input::Released => {
                debug_assert!(self.releasing > 0, "a release ended that was not started");
                self.releasing = self.releasing.saturating_sub(1);
            }
            Input::Limited { max_queued } => self.settings.max_queued = max_queued,
            Input::ShutDown => {
                if self.phase == Phase::Running {
                    self.phase = Phase::Draining;
                }
            }
        }
    }

    /// The next action to carry out. `None` until [`Self::wake_at`] or the next input.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        let (at, step) = self.next_step()?;
        if at > now {
            return None;
        }
        self.take(now, step)
    }

    /// When to poll again if there is no input before. It is in the past if an action is ready, and
    /// `None` if only an input can lead to an action.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.next_step().map(|(at, _)| at)
    }

    /// The number of requests that count against `max_queued`: from [`Self::submit`] until the
    /// store's last result.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.requests.len()
    }

    /// The number of events for which offered capacity is in use: claimed on insert, or about to
    /// be, and not yet taken over by the worker.
    #[must_use]
    pub fn capacity_taken(&self) -> u32 {
        self.offers.taken()
    }

    /// The earliest step. Of steps that are due at the same time, the first of this list.
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

    /// Carries out a due step.
    fn take(&mut self, now: Instant, step: Step) -> Option<Action> {
        match step {
            Step::Ready => self.ready.pop_front(),
            Step::Store => Some(self.store(now)),
            Step::TimeOut => {
                let (_, ticket) = self.deadlines.pop_first().expect("a deadline is due");
                self.requests.get_mut(&ticket).expect("a timed-out request is held").is_answered =
                    true;
                Some(Action::Answer { ticket, answer: Err(Refusal::TimedOut) })
            }
            Step::Done => {
                self.phase = Phase::Done;
                Some(Action::Done)
            }
        }
    }

    /// Starts the call for the next part. Events for which the worker offers capacity are claimed
    /// on insert, but only at the first attempt: after an unknown outcome it is unknown what the
    /// attempt has claimed.
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
            debug_assert!(false, "the store answered a call that is not in flight");
            return;
        };
        match result {
            Ok(stored) => {
                assert_eq!(
                    stored.len(),
                    part.groups.len(),
                    "the store must return one result for each event"
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

    /// The part is committed: hands claimed events over to the worker and answers every request.
    fn committed(&mut self, part: Part, since: Instant, is_leased: &[bool], stored: &[Stored]) {
        let (mut claimed, mut to_ring) = (Vec::new(), BTreeSet::new());
        for ((group, stored), is_leased) in part.groups.iter().zip(stored).zip(is_leased) {
            let Request { source, size, .. } = &self.requests[&group.first].request;
            match stored {
                Stored::Claimed { received_at } => claimed.push((group.first, *received_at)),
                Stored::Inserted => {
                    to_ring.insert(source.clone());
                }
                Stored::Existing { .. } => {}
            }
            if *is_leased && !stored.is_claimed() {
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

    /// The part is not stored, or its outcome is unknown. It is retried where a retry can help. A
    /// rejected part is halved until the rejected row is alone. The event ids stay the same, so an
    /// earlier attempt that was committed is recognised.
    fn failed(&mut self, mut part: Part, failure: StoreFailure) {
        part.is_in_doubt |= failure == StoreFailure::Unknown;
        match failure {
            StoreFailure::Conflict | StoreFailure::Unknown if part.attempts < STORE_ATTEMPTS => {
                self.again.push_back(part);
            }
            StoreFailure::Rejected if part.groups.len() > 1 => {
                let second = part.groups.split_off(part.groups.len() / 2);
                let half = |groups| Part { groups, attempts: 0, is_in_doubt: part.is_in_doubt };
                self.again.extend([half(part.groups), half(second)]);
            }
            StoreFailure::Rejected => {
                // Other requests with the same key may have a different body, so the next of them
                // is stored instead.
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

    /// Processes the store's last result for a request: removes it, and answers it unless it has
    /// timed out.
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

    /// Checks the invariants that hold between calls.
    ///
    /// # Panics
    ///
    /// Panics if an invariant is violated.
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
                "a queue or part names a request that is not held"
            );
            assert!(seen.insert(ticket), "a request is queued or stored twice");
        }
        assert_eq!(seen.len(), self.requests.len(), "a request is neither queued nor in a part");
        assert!(
            self.storing.len() <= self.settings.batches_at_once,
            "more concurrent calls than `batches_at_once`"
        );
        let unanswered: BTreeSet<(Instant, Ticket)> = self
            .requests
            .iter()
            .filter(|(_, waiting)| !waiting.is_answered)
            .map(|(ticket, waiting)| (waiting.deadline, *ticket))
            .collect();
        assert_eq!(
            unanswered, self.deadlines,
            "the deadlines differ from those of the unanswered requests"
        );
        for call in self.storing.values() {
            assert!(
                call.part.groups.len() <= BATCH_ROWS && !call.part.groups.is_empty(),
                "a batch must have 1 to {BATCH_ROWS} rows"
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
            "an event is claimed on insert without offered capacity"
        );
    }
}

/// The store's result for the other requests of a group, derived from the result of the first.
fn existing(id: EventId, fingerprint: Fingerprint, stored: Stored) -> Stored {
    match stored {
        Stored::Inserted => Stored::Existing { id, fingerprint, status: Status::Queued },
        Stored::Claimed { .. } => Stored::Existing { id, fingerprint, status: Status::Processing },
        existing @ Stored::Existing { .. } => existing,
    }
}
