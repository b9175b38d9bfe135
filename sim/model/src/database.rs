//! The reference database: the tables as maps, and each method of the store's ports as one atomic
//! step.
//!
//! It uses `surehook_core::event` for every transition, so it is the reference for the SQL of the
//! real stores. Time is an argument. Interruptible transactions, locks and faults are not part of
//! it; its users add them.

use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook::ports::{
    Discarded, Erased, FoundBody, NewEvent, Pruned, Redriven, Retention, StoreError,
};
use surehook::search::{
    ActionEntry, AttemptEntry, BEGINNING_BYTES, ChangedPage, EventFilter, EventPage, EventRecord,
    FailureGroup, FailureSummary, PageSize, Path, RequestRecord, SourceRecord, Span, SummaryFilter,
    SummarySize, dead_letter_looks,
};
use surehook_core::admission::Stored;
use surehook_core::due::Bound;
use surehook_core::event::{
    Action, DeliveryState, DiscardScope, Due, Illegal, Reason, RedrivenBy, Status,
};
use surehook_core::id::{Attempt, EventId, Fence};
use surehook_core::key::IdempotencyKey;
use surehook_core::retention::Reached;
use surehook_core::source::SourceName;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{Claim, Claims, DeadLettered, Demand, HeldBack, Settlement};

/// The longest duration that is added to a time, as in the real stores: 100 years. Longer durations
/// are truncated to it.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// An event as it was posted. It changes only when its payload is erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    pub event: NewEvent,
    pub received_at: Timestamp,
    /// When query, headers and body were erased; all are empty since then.
    pub erased_at: Option<Timestamp>,
}

/// The delivery state of an event that is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// The row without its time.
    pub delivery: DeliveryState,
    /// The schedule or the end of the lease; `None` for a dead letter.
    pub due_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Database {
    pub events: BTreeMap<EventId, EventRow>,
    /// The unique constraint on source and key.
    pub keys: BTreeMap<(SourceName, IdempotencyKey), EventId>,
    /// One row for each event that is not delivered.
    pub deliveries: BTreeMap<EventId, DeliveryRow>,
    /// When each dead letter was dead-lettered.
    pub ended: BTreeMap<EventId, Timestamp>,
    /// Append-only until an event is pruned.
    pub attempts: BTreeMap<(EventId, Attempt), AttemptEntry>,
    /// Each redrive and each discard, by the fence that it gave the event. Append-only until an event
    /// is pruned.
    pub actions: BTreeMap<(EventId, Fence), ActionEntry>,
    /// The paused sources, and since when each is paused.
    pub paused: BTreeMap<SourceName, Timestamp>,
}

impl Database {
    /// [`surehook::ports::EventStore::accept`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Rejected`] if a new event has the id of another event. Then nothing is stored.
    pub fn accept(
        &mut self,
        now: Timestamp,
        batch: Vec<NewEvent>,
    ) -> Result<Vec<Stored>, StoreError> {
        let mut new_ids = BTreeMap::new();
        for event in &batch {
            let key = (event.source.clone(), event.key.clone());
            if self.keys.contains_key(&key) {
                continue;
            }
            let is_taken = self.events.contains_key(&event.id)
                || new_ids.insert(event.id, key.clone()).is_some_and(|other| other != key);
            if is_taken {
                return Err(StoreError::Rejected(format!("another event has the id {}", event.id)));
            }
        }
        let accept = |event: NewEvent| {
            let (id, source, lease) = (event.id, event.source.clone(), event.lease);
            match (self.accept_one(now, event), lease) {
                (Stored::Inserted, Some(lease)) if !self.paused.contains_key(&source) => {
                    self.claim_new(now, id, lease);
                    Stored::Claimed { received_at: now }
                }
                (stored, _) => stored,
            }
        };
        Ok(batch.into_iter().map(accept).collect())
    }

    /// Claims an event that was accepted at the same time `now`.
    ///
    /// # Panics
    ///
    /// If `event` does not exist or is not due.
    pub fn claim_new(&mut self, now: Timestamp, event: EventId, lease: Duration) {
        let claimed =
            self.deliveries[&event].delivery.claim(lease, 1).expect("a new row can be claimed");
        self.put(now, event, claimed.delivery, claimed.due);
    }

    /// Accepts one event without claiming it. Its id must not belong to another event.
    pub fn accept_one(&mut self, now: Timestamp, event: NewEvent) -> Stored {
        let key = (event.source.clone(), event.key.clone());
        if let Some(&id) = self.keys.get(&key) {
            return self.existing(id);
        }
        self.keys.insert(key, event.id);
        self.deliveries.insert(
            event.id,
            DeliveryRow { delivery: DeliveryState::accepted(), due_at: Some(now) },
        );
        self.events.insert(event.id, EventRow { event, received_at: now, erased_at: None });
        Stored::Inserted
    }

    /// The result of an accept for a key that belongs to this event.
    ///
    /// # Panics
    ///
    /// If `event` does not exist.
    #[must_use]
    pub fn existing(&self, event: EventId) -> Stored {
        Stored::Existing {
            id: event,
            fingerprint: self.events[&event].event.fingerprint,
            status: self.status(event),
        }
    }

    /// The status of an event. An event without a row in `deliveries` is delivered.
    #[must_use]
    pub fn status(&self, event: EventId) -> Status {
        self.deliveries.get(&event).map_or(Status::Delivered, |row| row.delivery.status)
    }

    /// [`surehook::ports::EventStore::claim`].
    pub fn claim(&mut self, now: Timestamp, demands: &[Demand]) -> Claims {
        let mut claims = Claims::default();
        for demand in demands {
            let due = self.due(now, &demand.source);
            for event in
                self.fitting(demand, due.into_iter().take(demand.limit as usize), &mut claims)
            {
                self.claim_one(now, demand, event, &mut claims);
            }
        }
        claims
    }

    /// The due events that fit into the demand's bytes. The first one that does not fit is added to
    /// `claims.held_back`.
    pub fn fitting(
        &self,
        demand: &Demand,
        due: impl IntoIterator<Item = EventId>,
        claims: &mut Claims,
    ) -> Vec<EventId> {
        let mut left = demand.bytes;
        let mut fitting = Vec::new();
        for event in due {
            let size = self.size(demand, event);
            if size > left {
                claims.held_back.push(HeldBack { source: demand.source.clone(), size });
                break;
            }
            left -= size;
            fitting.push(event);
        }
        fitting
    }

    /// The bytes that an event takes if it is claimed; zero if the claim dead-letters it instead.
    #[must_use]
    pub fn size(&self, demand: &Demand, event: EventId) -> usize {
        let is_spent = self
            .deliveries
            .get(&event)
            .is_some_and(|row| row.delivery.attempts_used() >= demand.max_attempts);
        self.events.get(&event).filter(|_| !is_spent).map_or(0, |row| row.event.size())
    }

    /// The due events of a source, oldest due time first; none if the source is paused.
    #[must_use]
    pub fn due(&self, now: Timestamp, source: &SourceName) -> Vec<EventId> {
        if self.paused.contains_key(source) {
            return Vec::new();
        }
        let of_source =
            self.deliveries.iter().filter(|(id, _)| self.events[id].event.source == *source);
        let mut due: Vec<(Timestamp, EventId)> = of_source
            .filter_map(|(id, row)| Some((row.due_at?, *id)))
            .filter(|(at, _)| *at <= now)
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Claims one event.
    ///
    /// # Panics
    ///
    /// If `event` does not exist or is not due.
    pub fn claim_one(
        &mut self,
        now: Timestamp,
        demand: &Demand,
        event: EventId,
        claims: &mut Claims,
    ) {
        let row = self.deliveries[&event];
        let claimed = row
            .delivery
            .claim(demand.lease, demand.max_attempts)
            .expect("a due row can be claimed");
        if let Some(attempt) = claimed.lost {
            self.lose(now, event, attempt);
        }
        self.put(now, event, claimed.delivery, claimed.due);
        let (source, attempt) = (demand.source.clone(), claimed.delivery.attempt);
        if let Some(reason) = claimed.delivery.reason {
            claims.dead_lettered.push(DeadLettered { event, source, attempt, reason });
            return;
        }
        let EventRow { event: stored, received_at, .. } = &self.events[&event];
        claims.claimed.push(Claim {
            event,
            source,
            fence: claimed.delivery.fence,
            attempt,
            in_budget: claimed.delivery.in_budget(),
            // Never negative, although the clock may have jumped back.
            age: now.duration_since(*received_at).try_into().unwrap_or_default(),
            received_at: *received_at,
            query: stored.query.clone(),
            headers: stored.headers.clone(),
            body: stored.body.clone(),
        });
    }

    /// Records an attempt that was never settled.
    fn lose(&mut self, now: Timestamp, event: EventId, attempt: Attempt) {
        let lost = AttemptEntry {
            attempt,
            ended_at: now,
            took: None,
            verdict: Verdict::Lost,
            status_code: None,
            error: None,
            excerpt: Bytes::new(),
        };
        self.attempts.insert((event, attempt), lost);
    }

    /// [`surehook::ports::EventStore::settle`].
    pub fn settle(&mut self, now: Timestamp, batch: &[Settlement]) -> Vec<EventId> {
        batch
            .iter()
            .filter(|settlement| !self.settle_one(now, settlement))
            .map(|settlement| settlement.event)
            .collect()
    }

    /// Settles one event. Returns `false` if the settlement is refused as stale.
    pub fn settle_one(&mut self, now: Timestamp, settlement: &Settlement) -> bool {
        let Some(row) = self.deliveries.get(&settlement.event) else { return false };
        let Ok((delivery, due)) = row.delivery.settle(settlement.fence, settlement.outcome) else {
            return false;
        };
        if let Some(record) = settlement.entry() {
            let attempt = row.delivery.attempt;
            let entry = AttemptEntry {
                attempt,
                ended_at: now - micros(record.ended_ago),
                took: Some(micros(record.took)),
                verdict: record.verdict,
                status_code: record.status_code,
                error: record.error.map(|error| error.as_str().to_owned()),
                excerpt: record.excerpt.clone(),
            };
            self.attempts.insert((settlement.event, attempt), entry);
        }
        self.put(now, settlement.event, delivery, due);
        true
    }

    /// Writes a row after its transition.
    fn put(&mut self, now: Timestamp, event: EventId, delivery: DeliveryState, due: Due) {
        self.ended.remove(&event);
        match delivery.status {
            Status::Delivered => {
                self.deliveries.remove(&event);
                return;
            }
            Status::DeadLettered => {
                self.ended.insert(event, now);
            }
            Status::Queued | Status::Processing | Status::Retrying => {}
        }
        self.deliveries.insert(event, DeliveryRow { delivery, due_at: due_at(now, due) });
    }

    /// Records an action that made `delivery` the row of an event.
    fn act(&mut self, now: Timestamp, event: EventId, action: Action, delivery: DeliveryState) {
        let entry = ActionEntry { action, at: now, attempt: delivery.attempt };
        self.actions.insert((event, delivery.fence), entry);
    }

    /// [`surehook::ports::OperatorStore::find`].
    #[must_use]
    pub fn find(&self, event: EventId) -> Option<EventRecord> {
        let EventRow { event: stored, received_at, .. } = self.events.get(&event)?;
        let row = self.deliveries.get(&event);
        let status = self.status(event);
        let history: Vec<AttemptEntry> = self
            .attempts
            .range((event, 0)..=(event, Attempt::MAX))
            .map(|(_, entry)| entry.clone())
            .collect();
        let last = history.last();
        Some(EventRecord {
            id: event,
            source: stored.source.to_string(),
            key: stored.key.to_string(),
            received_at: *received_at,
            status,
            attempt: row
                .map_or_else(|| last.map_or(0, |entry| entry.attempt), |row| row.delivery.attempt),
            budget_from: row.map(|row| row.delivery.budget_from),
            next_attempt_at: row
                .filter(|_| matches!(status, Status::Queued | Status::Retrying))
                .and_then(|row| row.due_at),
            settled_at: match status {
                Status::Delivered => Some(last.map_or(*received_at, |entry| entry.ended_at)),
                Status::DeadLettered => self.ended.get(&event).copied(),
                Status::Queued | Status::Processing | Status::Retrying => None,
            },
            reason: row.and_then(|row| row.delivery.reason),
            history,
            actions: self
                .actions
                .range((event, Fence(0))..=(event, Fence(u64::MAX)))
                .map(|(_, entry)| *entry)
                .collect(),
        })
    }

    /// [`surehook::ports::OperatorStore::request`].
    #[must_use]
    pub fn request(&self, event: EventId) -> Option<RequestRecord> {
        let EventRow { event: stored, received_at, erased_at } = self.events.get(&event)?;
        Some(RequestRecord {
            source: stored.source.to_string(),
            received_at: *received_at,
            erased_at: *erased_at,
            fingerprint: stored.fingerprint,
            query: stored.query.clone(),
            headers: stored.headers.clone(),
            body_bytes: stored.body.len() as u64,
        })
    }

    /// [`surehook::ports::OperatorStore::body`].
    #[must_use]
    pub fn body(&self, event: EventId) -> FoundBody {
        match self.events.get(&event) {
            None => FoundBody::NotFound,
            Some(EventRow { erased_at: Some(_), .. }) => FoundBody::Erased,
            Some(EventRow { event: stored, .. }) => FoundBody::Found(stored.body.clone()),
        }
    }

    /// [`surehook::ports::OperatorStore::redrive`].
    pub fn redrive(&mut self, now: Timestamp, event: EventId, by: RedrivenBy) -> Redriven {
        if !self.events.contains_key(&event) {
            return Redriven::NotFound;
        }
        match self.deliveries.get(&event).map(|row| row.delivery.redrive()) {
            Some(Ok((delivery, due))) => {
                self.put(now, event, delivery, due);
                self.act(now, event, by.action(), delivery);
                Redriven::Queued
            }
            Some(Err(_)) | None => Redriven::WrongStatus(self.status(event)),
        }
    }

    /// [`surehook::ports::OperatorStore::redrive_delivered`].
    pub fn redrive_delivered(&mut self, now: Timestamp, event: EventId) -> Redriven {
        if !self.events.contains_key(&event) {
            return Redriven::NotFound;
        }
        let status = self.status(event);
        if status != Status::Delivered {
            return Redriven::WrongStatus(status);
        }
        if self.events[&event].erased_at.is_some() {
            return Redriven::Erased;
        }
        let last = self
            .attempts
            .range((event, 0)..=(event, Attempt::MAX))
            .next_back()
            .map_or(0, |((_, attempt), _)| *attempt);
        let (delivery, due) = DeliveryState::redelivered(last);
        self.put(now, event, delivery, due);
        self.act(now, event, Action::Redriven, delivery);
        Redriven::Queued
    }

    /// [`surehook::ports::OperatorStore::discard`].
    pub fn discard(&mut self, now: Timestamp, event: EventId, scope: DiscardScope) -> Discarded {
        if !self.events.contains_key(&event) {
            return Discarded::NotFound;
        }
        let Some(row) = self.deliveries.get(&event) else {
            return Discarded::WrongStatus(Status::Delivered);
        };
        let is_due = row.due_at.is_some_and(|due_at| due_at <= now);
        match row.delivery.discard(scope, is_due) {
            Ok(discarded) => {
                if let Some(attempt) = discarded.lost {
                    self.lose(now, event, attempt);
                }
                let ended = self.ended.get(&event).copied().filter(|_| !discarded.ends_now);
                self.put(now, event, discarded.delivery, Due::Never);
                self.ended.insert(event, ended.unwrap_or(now));
                self.act(now, event, Action::Discarded, discarded.delivery);
                Discarded::Now
            }
            Err(Illegal::AlreadyDiscarded) => Discarded::Before,
            Err(Illegal::Ended | Illegal::Stale | Illegal::NotDeadLettered | Illegal::Unended) => {
                Discarded::WrongStatus(self.status(event))
            }
        }
    }

    /// [`surehook::ports::OperatorStore::discard_all`].
    ///
    /// # Panics
    ///
    /// If an event that [`Self::discardable`] chose cannot be discarded.
    pub fn discard_all(
        &mut self,
        now: Timestamp,
        filter: &EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> ChangedPage {
        let (chosen, scope, page) = self.discardable(now, filter, scope, span, size);
        if !dry_run {
            for event in chosen {
                assert_eq!(self.discard(now, event, scope), Discarded::Now, "it can be discarded");
            }
        }
        page
    }

    /// The events that [`Self::discard_all`] discards, in which scope, and its result.
    ///
    /// # Panics
    ///
    /// Never: each event is in the tables.
    #[must_use]
    pub fn discardable(
        &self,
        now: Timestamp,
        filter: &EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
    ) -> (Vec<EventId>, DiscardScope, ChangedPage) {
        let (path, filter) = filter.clone().for_discard(scope);
        let scope = DiscardScope::of_source(filter.status.is_some());
        let mut looked = self.along(path, &filter, span);
        looked.retain(|id| self.deliveries.contains_key(id));
        looked.truncate(size.looks as usize);
        let is_discardable = |event: &EventRecord| {
            let row = self.deliveries[&event.id];
            let is_due = row.due_at.is_some_and(|due_at| due_at <= now);
            filter.matches(event) && row.delivery.discard(scope, is_due).is_ok()
        };
        let chosen: Vec<EventRecord> = looked
            .iter()
            .filter_map(|id| self.newest(*id))
            .filter(is_discardable)
            .take(size.events as usize)
            .collect();
        let ids: Vec<EventId> = chosen.iter().map(|event| event.id).collect();
        let next = next(size, &ids, &looked);
        let sources = chosen.into_iter().map(|event| event.source).collect();
        (ids, scope, ChangedPage::new(sources, next))
    }

    /// [`surehook::ports::OperatorStore::list`].
    #[must_use]
    pub fn list(&self, filter: &EventFilter, span: Span, size: PageSize) -> EventPage {
        let looked: Vec<EventId> = self
            .along(filter.path(), filter, span)
            .into_iter()
            .rev()
            .take(size.looks as usize)
            .collect();
        let events: Vec<EventRecord> = looked
            .iter()
            .filter_map(|id| self.newest(*id))
            .filter(|event| filter.matches(event))
            .take(size.events as usize)
            .collect();
        let shown: Vec<EventId> = events.iter().map(|event| event.id).collect();
        EventPage { events, next: next(size, &shown, &looked) }
    }

    /// [`surehook::ports::OperatorStore::summary`].
    #[must_use]
    pub fn summary(&self, filter: &SummaryFilter, size: SummarySize) -> FailureSummary {
        let mut of_source: BTreeMap<&SourceName, Vec<(EventId, Option<Timestamp>)>> =
            BTreeMap::new();
        for (id, row) in &self.deliveries {
            let source = &self.events[id].event.source;
            if filter.source.as_ref().is_none_or(|wanted| wanted == source) {
                of_source.entry(source).or_default().push((*id, row.due_at));
            }
        }
        let looks = size.looks as usize;
        let (mut groups, mut partial) = (Vec::<FailureGroup>::new(), Vec::new());
        for (source, rows) in of_source {
            let (dead, mut waiting): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|(_, due_at)| due_at.is_none());
            waiting.sort_by_key(|(id, due_at)| (*due_at, *id));
            if dead.len() >= looks || waiting.len() >= 2 * looks {
                partial.push(source.to_string());
            }
            let both_ends = waiting.len().saturating_sub(looks).max(looks.min(waiting.len()));
            let waiting = waiting[..looks.min(waiting.len())].iter().chain(&waiting[both_ends..]);
            let is_kept = |(id, _): &&(EventId, Option<Timestamp>)| !self.is_discarded(*id);
            let dead = dead.iter().rev().take(looks).filter(is_kept);
            for (id, due_at) in dead.chain(waiting) {
                self.group(&mut groups, filter.since, *id, due_at.is_none());
            }
        }
        FailureSummary::new(groups, partial, size.groups)
    }

    /// Adds an event to its group, if its newest attempt failed since then.
    fn group(
        &self,
        groups: &mut Vec<FailureGroup>,
        since: Option<Timestamp>,
        event: EventId,
        is_dead: bool,
    ) {
        let newest = self.attempts.range((event, 0)..=(event, Attempt::MAX)).next_back();
        let Some((_, newest)) = newest.filter(|(_, entry)| {
            entry.verdict != Verdict::Delivered && since.is_none_or(|since| entry.ended_at >= since)
        }) else {
            return;
        };
        let alone = FailureGroup {
            source: self.events[&event].event.source.to_string(),
            verdict: newest.verdict,
            status_code: newest.status_code,
            error: newest.error.clone(),
            beginning: newest.excerpt.slice(..newest.excerpt.len().min(BEGINNING_BYTES)),
            events: 1,
            dead_lettered: u32::from(is_dead),
            first: newest.ended_at,
            last: newest.ended_at,
            example: event,
        };
        let kind = |group: &FailureGroup| {
            let FailureGroup { source, verdict, status_code, error, beginning, .. } = group.clone();
            (source, verdict, status_code, error, beginning)
        };
        match groups.iter_mut().find(|group| kind(group) == kind(&alone)) {
            None => groups.push(alone),
            Some(group) => {
                group.events += 1;
                group.dead_lettered += alone.dead_lettered;
                group.first = group.first.min(alone.first);
                group.last = group.last.max(alone.last);
                group.example = group.example.max(alone.example);
            }
        }
    }

    /// [`surehook::ports::OperatorStore::redrive_all`].
    pub fn redrive_all(
        &mut self,
        now: Timestamp,
        filter: &EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> ChangedPage {
        let (letters, page) = self.letters(&filter.clone().of_dead_letters(), span, size);
        if !dry_run {
            for letter in letters {
                self.redrive(now, letter, RedrivenBy::Operator);
            }
        }
        page
    }

    /// The dead letters that [`Self::redrive_all`] redrives, and its result.
    #[must_use]
    pub fn letters(
        &self,
        filter: &EventFilter,
        span: Span,
        size: PageSize,
    ) -> (Vec<EventId>, ChangedPage) {
        // The unique key also leads to delivered events. Only events that are not delivered count
        // as looked at.
        let looked: Vec<EventId> = self
            .along(filter.path(), filter, span)
            .into_iter()
            .filter(|id| self.deliveries.contains_key(id))
            .collect();
        let looked = &looked[..looked.len().min(size.looks as usize)];
        let meant: Vec<EventRecord> = looked
            .iter()
            .filter_map(|id| self.newest(*id))
            .filter(|event| filter.matches(event))
            .filter(|event| event.reason.is_some_and(|reason| reason.is_redriven_by(filter.reason)))
            .take(size.events as usize)
            .collect();
        let ids: Vec<EventId> = meant.iter().map(|event| event.id).collect();
        let next = next(size, &ids, looked);
        let sources = meant.into_iter().map(|event| event.source).collect();
        (ids, ChangedPage::new(sources, next))
    }

    /// The events of a span on a path, in the order of their ids.
    fn along(&self, path: Path, filter: &EventFilter, span: Span) -> Vec<EventId> {
        let is_of_source = |id: &EventId| {
            filter.source.as_ref().is_some_and(|source| self.events[id].event.source == *source)
        };
        let lies_there = |id: &EventId| match path {
            Path::Key => {
                (filter.source.is_none() || is_of_source(id))
                    && filter.key.as_ref().is_some_and(|key| self.events[id].event.key == *key)
            }
            Path::DeadLetters => is_of_source(id) && self.status(*id) == Status::DeadLettered,
            Path::Owed => self.deliveries.contains_key(id),
            Path::Events => true,
        };
        self.events
            .keys()
            .copied()
            .filter(|id| span.from <= *id && *id < span.until)
            .filter(lies_there)
            .collect()
    }

    /// Whether an event is discarded.
    #[must_use]
    pub fn is_discarded(&self, event: EventId) -> bool {
        let row = self.deliveries.get(&event);
        row.is_some_and(|row| row.delivery.reason == Some(Reason::Discarded))
    }

    /// An event with only its newest attempt, as in a list.
    fn newest(&self, event: EventId) -> Option<EventRecord> {
        let mut found = self.find(event)?;
        found.history = found.history.pop().into_iter().collect();
        found.actions.clear();
        Some(found)
    }

    /// [`surehook::ports::OperatorStore::sources`].
    #[must_use]
    pub fn sources(
        &self,
        now: Timestamp,
        names: &[SourceName],
        count_to: u32,
    ) -> Vec<SourceRecord> {
        let mut named: BTreeMap<&SourceName, Vec<&DeliveryRow>> =
            names.iter().chain(self.paused.keys()).map(|name| (name, Vec::new())).collect();
        for (id, row) in &self.deliveries {
            named.entry(&self.events[id].event.source).or_default().push(row);
        }
        named
            .into_iter()
            .map(|(source, mut rows)| {
                rows.sort_by_key(|row| row.due_at);
                let of = |is_one: &dyn Fn(&DeliveryRow) -> bool| -> Vec<&DeliveryRow> {
                    rows.iter().copied().filter(|row| is_one(row)).take(count_to as usize).collect()
                };
                let is_due = |row: &DeliveryRow| row.due_at.is_some_and(|due_at| due_at <= now);
                let (due, later) = (of(&is_due), of(&|row| row.due_at.is_some_and(|at| at > now)));
                let looks = dead_letter_looks(count_to) as usize;
                // The sort is stable, so dead letters are still in the order of their ids.
                let newest: Vec<&DeliveryRow> = rows
                    .iter()
                    .rev()
                    .filter(|row| row.due_at.is_none())
                    .take(looks)
                    .copied()
                    .collect();
                let dead: Vec<&DeliveryRow> = newest
                    .iter()
                    .filter(|row| row.delivery.reason != Some(Reason::Discarded))
                    .take(count_to as usize)
                    .copied()
                    .collect();
                let count = |status: Status| {
                    let rows = due
                        .iter()
                        .chain(&later)
                        .chain(&dead)
                        .filter(|row| row.delivery.status == status);
                    rows.fold(0u32, |count, _| count.saturating_add(1))
                };
                SourceRecord {
                    source: source.to_string(),
                    queued: count(Status::Queued),
                    processing: count(Status::Processing),
                    retrying: count(Status::Retrying),
                    dead_lettered: count(Status::DeadLettered),
                    is_partial: [&due, &later, &dead]
                        .into_iter()
                        .any(|rows| rows.len() >= count_to as usize)
                        || newest.len() >= looks,
                    behind: due
                        .first()
                        .and_then(|row| row.due_at)
                        .map(|due_at| now.duration_since(due_at).unsigned_abs()),
                    paused_since: self.paused.get(source).copied(),
                }
            })
            .collect()
    }

    /// [`surehook::ports::OperatorStore::stored_sources`].
    #[must_use]
    pub fn stored_sources(&self) -> Vec<String> {
        let names = self.events.values().map(|row| row.event.source.as_str());
        names.collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect()
    }

    /// [`surehook::ports::OperatorStore::pause`].
    pub fn pause(&mut self, now: Timestamp, source: SourceName, paused: bool) -> bool {
        let was_paused = self.paused.contains_key(&source);
        if paused {
            self.paused.entry(source).or_insert(now);
        } else {
            self.paused.remove(&source);
        }
        was_paused != paused
    }

    /// [`surehook::ports::MaintenanceStore::prune`].
    pub fn prune(
        &mut self,
        now: Timestamp,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> Pruned {
        let (over, reached) = self.to_prune(now, retention, after, limit);
        let owed = over.iter().filter(|event| self.deliveries.contains_key(event));
        let (letters, discarded) = owed.fold((0, 0), |(letters, discarded), event| {
            if self.is_discarded(*event) {
                (letters, discarded + 1)
            } else {
                (letters + 1, discarded)
            }
        });
        for event in &over {
            self.delete(*event);
        }
        Pruned { deleted: over.len() as u64, dead_lettered: letters, discarded, reached }
    }

    /// The events that a step of pruning deletes, and where the step ends.
    #[must_use]
    pub fn to_prune(
        &self,
        now: Timestamp,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> (Vec<EventId>, Reached) {
        let (looked_at, reached) = self.step(now, retention.delivered, after, limit);
        (looked_at.into_iter().filter(|id| self.is_over(now, retention, *id)).collect(), reached)
    }

    /// Deletes an event with its key, its delivery row, its attempts and its actions.
    pub fn delete(&mut self, event: EventId) {
        if let Some(row) = self.events.remove(&event) {
            self.keys.remove(&(row.event.source, row.event.key));
        }
        self.deliveries.remove(&event);
        self.ended.remove(&event);
        self.attempts.retain(|(of, _), _| *of != event);
        self.actions.retain(|(of, _), _| *of != event);
    }

    /// [`surehook::ports::MaintenanceStore::erase`].
    pub fn erase(
        &mut self,
        now: Timestamp,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> Erased {
        let (over, reached) = self.to_erase(now, kept, after, limit);
        for event in &over {
            self.erase_one(now, *event);
        }
        Erased { erased: over.len() as u64, reached }
    }

    /// The events whose payload a step of erasing erases, and where the step ends.
    #[must_use]
    pub fn to_erase(
        &self,
        now: Timestamp,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> (Vec<EventId>, Reached) {
        let soonest = now - micros(kept);
        let (looked_at, reached) = self.step(now, kept, after, limit);
        let is_over = |id: &EventId| {
            self.events[id].erased_at.is_none()
                && self.status(*id) == Status::Delivered
                && self.events[id].received_at <= soonest
                && self
                    .find(*id)
                    .and_then(|record| record.settled_at)
                    .is_some_and(|ended| ended <= soonest)
        };
        (looked_at.into_iter().filter(is_over).collect(), reached)
    }

    pub fn erase_one(&mut self, now: Timestamp, event: EventId) {
        if let Some(row) = self.events.get_mut(&event) {
            (row.event.query, row.event.headers, row.event.body) = Default::default();
            row.erased_at = Some(now);
        }
    }

    /// [`surehook::ports::MaintenanceStore::cap_due_times`].
    pub fn cap_due_times(&mut self, now: Timestamp, bounds: &[Bound], limit: u32) -> u64 {
        let beyond = self.beyond(now, bounds, limit);
        for (event, lease) in &beyond {
            self.cap_due_time(now, *event, *lease);
        }
        beyond.len() as u64
    }

    /// The events whose due times are beyond the horizon, with the lease of their source: at most
    /// `limit`, the earliest of a source first.
    #[must_use]
    pub fn beyond(&self, now: Timestamp, bounds: &[Bound], limit: u32) -> Vec<(EventId, Duration)> {
        let of_source = |bound: &Bound| {
            let mut beyond: Vec<(Timestamp, EventId)> = self
                .deliveries
                .iter()
                .filter(|(id, _)| self.events[id].event.source == bound.source)
                .filter_map(|(id, row)| Some((row.due_at?, *id)))
                .filter(|(due_at, _)| bound.excludes(*due_at, now))
                .collect();
            beyond.sort_unstable();
            let lease = bound.lease;
            beyond.into_iter().map(move |(_, event)| (event, lease))
        };
        bounds.iter().flat_map(of_source).take(limit as usize).collect()
    }

    /// Makes an event due after a lease.
    pub fn cap_due_time(&mut self, now: Timestamp, event: EventId, lease: Duration) {
        if let Some(row) = self.deliveries.get_mut(&event) {
            row.due_at = Some(now + micros(lease));
        }
    }

    /// The events that a step of retention looks at, and where the step ends. Delivered events
    /// that were received within the last `kept` stay unchanged.
    fn step(
        &self,
        now: Timestamp,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> (Vec<EventId>, Reached) {
        let looked_at: Vec<EventId> = self
            .events
            .keys()
            .copied()
            .filter(|id| after.is_none_or(|after| *id > after))
            .take(limit as usize)
            .collect();
        let reached = Reached::new(
            looked_at.last().copied(),
            looked_at.len(),
            limit,
            (now - micros(kept)).as_millisecond(),
        );
        (looked_at, reached)
    }

    fn is_over(&self, now: Timestamp, retention: Retention, event: EventId) -> bool {
        let kept = match self.status(event) {
            Status::Delivered => retention.delivered,
            Status::DeadLettered => retention.dead_lettered,
            Status::Queued | Status::Processing | Status::Retrying => return false,
        };
        let soonest = now - micros(retention.delivered.min(retention.dead_lettered));
        self.events[&event].received_at <= soonest
            && self
                .find(event)
                .and_then(|record| record.settled_at)
                .is_some_and(|ended| ended <= now - micros(kept))
    }
}

/// The calls of [`surehook::ports::OperatorStore`] that only read, for a store on these tables. The
/// store has a method `read(call, work)`, which runs `work` on the tables in one atomic step.
#[macro_export]
macro_rules! operator_reads {
    () => {
        fn find(
            &self,
            event: surehook_core::id::EventId,
        ) -> surehook::ports::StoreCall<'_, Option<surehook::search::EventRecord>> {
            self.read($crate::scenario::Call::Find, move |tables, _| tables.find(event))
        }

        fn request(
            &self,
            event: surehook_core::id::EventId,
        ) -> surehook::ports::StoreCall<'_, Option<surehook::search::RequestRecord>> {
            self.read($crate::scenario::Call::Find, move |tables, _| tables.request(event))
        }

        fn body(
            &self,
            event: surehook_core::id::EventId,
        ) -> surehook::ports::StoreCall<'_, surehook::ports::FoundBody> {
            self.read($crate::scenario::Call::Find, move |tables, _| tables.body(event))
        }

        fn list(
            &self,
            filter: surehook::search::EventFilter,
            span: surehook::search::Span,
            size: surehook::search::PageSize,
        ) -> surehook::ports::StoreCall<'_, surehook::search::EventPage> {
            self.read($crate::scenario::Call::List, move |tables, _| {
                tables.list(&filter, span, size)
            })
        }

        fn summary(
            &self,
            filter: surehook::search::SummaryFilter,
            size: surehook::search::SummarySize,
        ) -> surehook::ports::StoreCall<'_, surehook::search::FailureSummary> {
            self.read($crate::scenario::Call::List, move |tables, _| tables.summary(&filter, size))
        }

        fn sources(
            &self,
            names: Vec<surehook_core::source::SourceName>,
            count_to: u32,
        ) -> surehook::ports::StoreCall<'_, Vec<surehook::search::SourceRecord>> {
            self.read($crate::scenario::Call::Sources, move |tables, now| {
                tables.sources(now, &names, count_to)
            })
        }

        fn stored_sources(&self) -> surehook::ports::StoreCall<'_, Vec<String>> {
            self.read($crate::scenario::Call::Sources, |tables, _| tables.stored_sources())
        }
    };
}

/// Where the next page continues, after a page that shows `shown` and looked at `looked`.
fn next(size: PageSize, shown: &[EventId], looked: &[EventId]) -> Option<EventId> {
    if shown.len() >= size.events as usize {
        shown.last().copied()
    } else {
        looked.last().copied().filter(|_| looked.len() >= size.looks as usize)
    }
}

fn due_at(now: Timestamp, due: Due) -> Option<Timestamp> {
    match due {
        Due::After(duration) => Some(now + micros(duration)),
        Due::Never => None,
    }
}

/// A duration as the databases store it: in microseconds, rounded up, and at most [`LONGEST`].
fn micros(duration: Duration) -> Duration {
    let micros = duration.as_nanos().div_ceil(1000);
    u64::try_from(micros).map_or(LONGEST, |micros| Duration::from_micros(micros).min(LONGEST))
}
