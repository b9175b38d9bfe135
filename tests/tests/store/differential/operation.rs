//! Sequences of operations, made of small numbers that shrink well, and their translation to calls
//! of the port, which depends on the results of earlier calls.

use super::side::{Answer, EPOCH, GRID};
use bytes::Bytes;
use jiff::Timestamp;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook::ports::{NewEvent, Retention};
use surehook::search::{EventFilter, PageSize, Span, SummaryFilter, SummarySize};
use surehook_core::admission::Fingerprint;
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, Outcome, Reason, RedrivenBy, Status};
use surehook_core::id::{BudgetAttempt, EventId, Fence};
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::verdict::{DeliveryError, Verdict};
use surehook_core::worker::claims::{AttemptRecord, Claim, Demand, Settlement};
use surehook_model::database::{Database, EventRow};
use uuid::Uuid;

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Accept(Vec<New>),
    /// By source.
    Claim(BTreeMap<u8, Want>),
    Settle(Vec<End>),
    /// The event, and whether a replay redrives it.
    Redrive(Whose, bool),
    RedriveDelivered(Whose),
    Prune {
        delivered: u32,
        dead_lettered: u32,
        after: Option<Whose>,
        limit: u32,
    },
    /// The retention in steps of the clock, the event to start after, and the limit.
    Erase(u32, Option<Whose>, u32),
    /// The horizon and the lease of each source, and the limit.
    CapDueTimes(BTreeMap<u8, (Length, Length)>, u32),
    List(Search),
    RedriveAll(Search, bool),
    Discard(Whose, DiscardScope),
    DiscardAll(Search, DiscardScope, bool),
    /// The source, and whether to pause or to resume it.
    Pause(u8, bool),
    Sources(u32),
    /// The source, for how many steps of the clock, and the limits.
    Summary(Option<u8>, Option<u32>, u32, u32),
    /// Lets this number of clock steps pass.
    Pass(u32),
}

/// The filter, and the size of a page.
#[derive(Clone, Debug)]
pub(super) struct Search {
    source: Option<u8>,
    key: Option<u8>,
    status: Option<usize>,
    reason: Option<usize>,
    status_code: Option<u16>,
    from: Option<Whose>,
    until: Option<Whose>,
    events: u32,
    looks: u32,
}

#[derive(Clone, Debug)]
pub(super) struct New {
    source: u8,
    key: u8,
    body: Vec<u8>,
    lease: Option<Length>,
    id: Id,
}

#[derive(Clone, Debug)]
enum Id {
    Fresh,
    /// The id of an earlier event, with the other fields as given here.
    Another(Index),
    /// An earlier event again.
    Again(Index),
}

#[derive(Clone, Debug)]
pub(super) struct Want {
    limit: u32,
    bytes: usize,
    lease: Length,
    max_attempts: u32,
}

/// A duration in steps of the clock.
#[derive(Clone, Debug)]
pub(super) enum Length {
    Steps(u32),
    Endless,
}

#[derive(Clone, Debug)]
pub(super) struct End {
    claim: Held,
    fence: i64,
    outcome: Ending,
    record: Option<Record>,
}

#[derive(Clone, Debug)]
enum Held {
    /// A claim that is not yet settled.
    Open(Index),
    Any(Index),
    Unknown,
}

#[derive(Clone, Debug)]
enum Ending {
    Delivered,
    Retry(Length),
    DeadLetter(usize),
    Release,
    CutOff,
}

#[derive(Clone, Debug)]
struct Record {
    ended_ago: u32,
    took_us: u64,
    verdict: usize,
    status_code: Option<u16>,
    error: Option<Index>,
    excerpt: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum Whose {
    Known(Index),
    /// A dead-lettered event.
    Dead(Index),
    Delivered(Index),
    Unknown,
}

pub(super) fn sequences() -> impl Strategy<Value = Vec<Operation>> {
    vec(operation(), 1..40)
}

fn operation() -> impl Strategy<Value = Operation> {
    let redriven = prop_oneof![4 => any::<Index>().prop_map(Whose::Dead), 1 => whose()];
    let redriven_delivered =
        prop_oneof![4 => any::<Index>().prop_map(Whose::Delivered), 1 => whose()];
    let discarded = prop_oneof![1 => any::<Index>().prop_map(Whose::Dead), 2 => whose()];
    prop_oneof![
        4 => vec(new(), 0..6).prop_map(Operation::Accept),
        8 => btree_map(0..3u8, want(), 1..4).prop_map(Operation::Claim),
        6 => vec(end(), 1..6).prop_map(Operation::Settle),
        2 => (redriven, any::<bool>()).prop_map(|(whose, is_replay)| Operation::Redrive(whose, is_replay)),
        2 => redriven_delivered.prop_map(Operation::RedriveDelivered),
        2 => (0..3u32, 0..3u32, proptest::option::weighted(0.2, whose()), 1..20u32)
            .prop_map(|(delivered, dead_lettered, after, limit)| Operation::Prune { delivered, dead_lettered, after, limit }),
        2 => (0..3u32, proptest::option::weighted(0.2, whose()), 1..20u32)
            .prop_map(|(kept, after, limit)| Operation::Erase(kept, after, limit)),
        2 => (btree_map(0..3u8, (length(), length()), 1..4), 1..6u32)
            .prop_map(|(bounds, limit)| Operation::CapDueTimes(bounds, limit)),
        2 => search().prop_map(Operation::List),
        2 => (search(), any::<bool>()).prop_map(|(search, dry_run)| Operation::RedriveAll(search, dry_run)),
        2 => (discarded, scope()).prop_map(|(whose, scope)| Operation::Discard(whose, scope)),
        2 => (search(), scope(), any::<bool>())
            .prop_map(|(search, scope, dry_run)| Operation::DiscardAll(search, scope, dry_run)),
        1 => (0..3u8, any::<bool>()).prop_map(|(source, paused)| Operation::Pause(source, paused)),
        1 => (1..6u32).prop_map(Operation::Sources),
        2 => (proptest::option::weighted(0.3, 0..3u8), proptest::option::weighted(0.5, 0..3u32), 1..6u32, 1..4u32)
            .prop_map(|(source, since, looks, groups)| Operation::Summary(source, since, looks, groups)),
        4 => (1..4u32).prop_map(Operation::Pass),
    ]
}

fn scope() -> impl Strategy<Value = DiscardScope> {
    prop_oneof![Just(DiscardScope::DeadLetters), Just(DiscardScope::Unclaimed)]
}

fn search() -> impl Strategy<Value = Search> {
    use proptest::option::weighted;
    let filter = (
        weighted(0.6, 0..3u8),
        weighted(0.2, 0..8u8),
        weighted(0.5, 0..5usize),
        weighted(0.2, 0..4usize),
        weighted(0.1, 100..600u16),
    );
    let page = (weighted(0.2, whose()), weighted(0.2, whose()), 1..6u32, 1..20u32);
    (filter, page).prop_map(
        |((source, key, status, reason, status_code), (from, until, events, looks))| Search {
            source,
            key,
            status,
            reason,
            status_code,
            from,
            until,
            events,
            looks,
        },
    )
}

fn new() -> impl Strategy<Value = New> {
    let id = prop_oneof![
        16 => Just(Id::Fresh),
        2 => any::<Index>().prop_map(Id::Another),
        2 => any::<Index>().prop_map(Id::Again),
    ];
    (0..3u8, 0..8u8, vec(any::<u8>(), 0..4), option::of(length()), id)
        .prop_map(|(source, key, body, lease, id)| New { source, key, body, lease, id })
}

fn want() -> impl Strategy<Value = Want> {
    let bytes = prop_oneof![2 => Just(usize::MAX), 1 => 0..12usize];
    (1..6u32, bytes, length(), 1..3u32).prop_map(|(limit, bytes, lease, max_attempts)| Want {
        limit,
        bytes,
        lease,
        max_attempts,
    })
}

fn length() -> impl Strategy<Value = Length> {
    prop_oneof![16 => (0..3u32).prop_map(Length::Steps), 1 => Just(Length::Endless)]
}

fn end() -> impl Strategy<Value = End> {
    let claim = prop_oneof![
        12 => any::<Index>().prop_map(Held::Open),
        3 => any::<Index>().prop_map(Held::Any),
        1 => Just(Held::Unknown),
    ];
    let fence = prop_oneof![16 => Just(0), 1 => Just(1), 1 => Just(-1)];
    let outcome = prop_oneof![
        3 => Just(Ending::Delivered),
        3 => length().prop_map(Ending::Retry),
        3 => (0..3usize).prop_map(Ending::DeadLetter),
        2 => Just(Ending::Release),
        2 => Just(Ending::CutOff),
    ];
    (claim, fence, outcome, proptest::option::of(record()))
        .prop_map(|(claim, fence, outcome, record)| End { claim, fence, outcome, record })
}

fn record() -> impl Strategy<Value = Record> {
    let error = proptest::option::of(any::<Index>());
    (
        0..3u32,
        0..5_000_000u64,
        0..4usize,
        proptest::option::of(100..600u16),
        error,
        vec(any::<u8>(), 0..4),
    )
        .prop_map(|(ended_ago, took_us, verdict, status_code, error, excerpt)| Record {
            ended_ago,
            took_us,
            verdict,
            status_code,
            error,
            excerpt,
        })
}

fn whose() -> impl Strategy<Value = Whose> {
    prop_oneof![8 => any::<Index>().prop_map(Whose::Known), 1 => Just(Whose::Unknown)]
}

/// A call of the port.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Accept(Vec<NewEvent>),
    Claim(Vec<Demand>),
    Settle(Vec<Settlement>),
    Redrive(EventId, RedrivenBy),
    RedriveDelivered(EventId),
    Prune(Retention, Option<EventId>, u32),
    Erase(Duration, Option<EventId>, u32),
    CapDueTimes(Vec<Bound>, u32),
    List(EventFilter, Span, PageSize),
    RedriveAll(EventFilter, Span, PageSize, bool),
    Discard(EventId, DiscardScope),
    DiscardAll(EventFilter, DiscardScope, Span, PageSize, bool),
    Pause(SourceName, bool),
    Sources(Vec<SourceName>, u32),
    /// With a virtual time.
    Summary(SummaryFilter, SummarySize),
    Pass,
}

/// The knowledge that accumulates during a sequence.
pub(super) struct Run {
    /// The virtual time, in microseconds.
    pub(super) now: i64,
    /// Every event that was submitted, in the order of ids.
    offered: Vec<NewEvent>,
    claims: Vec<Claim>,
    open: Vec<Claim>,
    dead: Vec<EventId>,
    delivered: Vec<EventId>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            now: EPOCH,
            offered: Vec::new(),
            claims: Vec::new(),
            open: Vec::new(),
            dead: Vec::new(),
            delivered: Vec::new(),
        }
    }
}

impl Run {
    pub(super) fn call(&mut self, operation: &Operation) -> Call {
        match operation {
            Operation::Accept(batch) => Call::Accept(self.batch(batch)),
            Operation::Claim(wants) => {
                let demand = |(source, want): (&u8, &Want)| Demand {
                    source: source_name(*source),
                    limit: want.limit,
                    bytes: want.bytes,
                    lease: duration(&want.lease),
                    max_attempts: want.max_attempts,
                };
                Call::Claim(wants.iter().map(demand).collect())
            }
            Operation::Settle(ends) => {
                Call::Settle(ends.iter().map(|end| self.settlement(end)).collect())
            }
            Operation::Redrive(whose, is_replay) => {
                let by = if *is_replay { RedrivenBy::Replay } else { RedrivenBy::Operator };
                Call::Redrive(self.event(whose), by)
            }
            Operation::RedriveDelivered(whose) => Call::RedriveDelivered(self.event(whose)),
            Operation::Prune { delivered, dead_lettered, after, limit } => {
                let retention = Retention {
                    delivered: GRID * *delivered,
                    dead_lettered: GRID * *dead_lettered,
                };
                Call::Prune(retention, after.as_ref().map(|whose| self.event(whose)), *limit)
            }
            Operation::Erase(kept, after, limit) => {
                Call::Erase(GRID * *kept, after.as_ref().map(|whose| self.event(whose)), *limit)
            }
            Operation::CapDueTimes(bounds, limit) => {
                let bound = |(source, (horizon, lease)): (&u8, &(Length, Length))| Bound {
                    source: source_name(*source),
                    horizon: duration(horizon),
                    lease: duration(lease),
                };
                Call::CapDueTimes(bounds.iter().map(bound).collect(), *limit)
            }
            Operation::List(search) => {
                let (filter, span, size) = self.search(search);
                Call::List(filter, span, size)
            }
            Operation::RedriveAll(search, dry_run) => {
                let (filter, span, size) = self.search(search);
                Call::RedriveAll(filter, span, size, *dry_run)
            }
            Operation::Discard(whose, scope) => Call::Discard(self.event(whose), *scope),
            Operation::DiscardAll(search, scope, dry_run) => {
                let (filter, span, size) = self.search(search);
                Call::DiscardAll(filter, *scope, span, size, *dry_run)
            }
            Operation::Pause(source, paused) => Call::Pause(source_name(*source), *paused),
            Operation::Sources(count_to) => {
                Call::Sources(vec![source_name(0), source_name(2)], *count_to)
            }
            Operation::Summary(source, since, looks, groups) => {
                let steps = |steps: u32| i64::try_from((GRID * steps).as_micros()).unwrap();
                let filter = SummaryFilter {
                    source: source.map(source_name),
                    since: since
                        .map(|since| Timestamp::from_microsecond(self.now - steps(since)).unwrap()),
                };
                Call::Summary(filter, SummarySize { looks: *looks, groups: *groups })
            }
            Operation::Pass(steps) => {
                self.now += i64::try_from((GRID * *steps).as_micros()).unwrap();
                Call::Pass
            }
        }
    }

    /// Every event that was submitted, stored or not, and one that was not.
    pub(super) fn events(&self) -> BTreeSet<EventId> {
        self.offered.iter().map(|event| event.id).chain([number(UNKNOWN)]).collect()
    }

    /// Records the model's answer and its present tables.
    pub(super) fn learn(&mut self, answer: &Answer, tables: &Database) {
        if let Answer::Claimed(Ok(claims)) = answer {
            self.claims.extend(claims.claimed.iter().cloned());
        }
        let claimed_as_stored = tables.deliveries.iter().filter_map(|(event, row)| {
            let EventRow { event, received_at, .. } = tables.events.get(event)?;
            let claim = event.clone().claimed(*received_at);
            let is_first =
                row.delivery.status == Status::Processing && row.delivery.fence == claim.fence;
            is_first.then_some(claim)
        });
        for claim in claimed_as_stored {
            if !self.claims.iter().any(|known| known.event == claim.event) {
                self.claims.push(claim);
            }
        }
        let is_open = |claim: &&Claim| {
            tables.deliveries.get(&claim.event).is_some_and(|row| row.delivery.fence == claim.fence)
        };
        self.open = self.claims.iter().filter(is_open).cloned().collect();
        self.dead = tables.ended.keys().copied().collect();
        self.delivered = tables
            .events
            .keys()
            .filter(|event| !tables.deliveries.contains_key(event))
            .copied()
            .collect();
    }

    /// A batch contains each key once, and each id once, because no two events have the same id.
    fn batch(&mut self, batch: &[New]) -> Vec<NewEvent> {
        let (mut keys, mut ids) = (BTreeSet::new(), BTreeSet::new());
        let mut events = Vec::new();
        for new in batch {
            let event = self.new_event(new);
            if keys.insert((event.source.clone(), event.key.clone())) && ids.insert(event.id) {
                events.push(event);
            }
        }
        events
    }

    fn new_event(&mut self, new: &New) -> NewEvent {
        let id = match &new.id {
            Id::Again(index) if !self.offered.is_empty() => {
                return index.get(&self.offered).clone();
            }
            Id::Another(index) if !self.offered.is_empty() => index.get(&self.offered).id,
            _ => number(self.offered.len()),
        };
        let body = Bytes::from(new.body.clone());
        let event = NewEvent {
            id,
            source: source_name(new.source),
            key: idempotency_key(new.key),
            fingerprint: Fingerprint::of(&body),
            query: body.slice(body.len() / 2..),
            headers: body.slice(..body.len() / 2),
            body,
            lease: new.lease.as_ref().map(duration),
        };
        self.offered.push(event.clone());
        event
    }

    fn settlement(&self, end: &End) -> Settlement {
        let claim = match &end.claim {
            Held::Open(index) if !self.open.is_empty() => index.get(&self.open).clone(),
            Held::Any(index) if !self.claims.is_empty() => index.get(&self.claims).clone(),
            _ => Claim {
                event: number(254),
                source: source_name(0),
                fence: Fence(1),
                attempt: 1,
                in_budget: BudgetAttempt(1),
                age: Duration::ZERO,
                received_at: jiff::Timestamp::UNIX_EPOCH,
                query: Bytes::new(),
                headers: Bytes::new(),
                body: Bytes::new(),
            },
        };
        let outcome = match &end.outcome {
            Ending::Delivered => Outcome::Delivered,
            Ending::Retry(after) => Outcome::Retry { after: duration(after) },
            Ending::DeadLetter(reason) => Outcome::DeadLetter(Reason::OF_ATTEMPTS[*reason]),
            Ending::Release => Outcome::Release,
            Ending::CutOff => Outcome::CutOff,
        };
        let record = end.record.as_ref().map(|record| AttemptRecord {
            ended_ago: GRID * record.ended_ago,
            took: Duration::from_micros(record.took_us),
            verdict: Verdict::ALL[record.verdict],
            status_code: record.status_code,
            error: record.error.map(|index| *index.get(&DeliveryError::ALL)),
            excerpt: record.excerpt.clone().into(),
        });
        let fence = Fence(claim.fence.0.saturating_add_signed(end.fence));
        Settlement { fence, ..claim.settled(outcome, record) }
    }

    fn search(&self, search: &Search) -> (EventFilter, Span, PageSize) {
        let filter = EventFilter {
            source: search.source.map(source_name),
            key: search.key.map(idempotency_key),
            status: search.status.map(|index| Status::ALL[index]),
            reason: search.reason.map(|index| Reason::ALL[index]),
            status_code: search.status_code,
        };
        let bound = |whose: &Option<Whose>, otherwise: EventId| {
            whose.as_ref().map_or(otherwise, |whose| self.event(whose))
        };
        let span = Span {
            from: bound(&search.from, EventId::MIN),
            until: bound(&search.until, EventId::MAX),
        };
        (filter, span, PageSize { events: search.events, looks: search.looks })
    }

    fn event(&self, whose: &Whose) -> EventId {
        match whose {
            Whose::Dead(index) if !self.dead.is_empty() => *index.get(&self.dead),
            Whose::Delivered(index) if !self.delivered.is_empty() => *index.get(&self.delivered),
            Whose::Known(index) if !self.offered.is_empty() => index.get(&self.offered).id,
            _ => number(UNKNOWN),
        }
    }
}

/// The number of an event that is never submitted.
const UNKNOWN: usize = 255;

/// The n-th id. Its last byte is the number. A sequence has fewer than 200 events.
fn number(n: usize) -> EventId {
    EventId::from_uuid(Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 + n as u128))
}

fn source_name(number: u8) -> SourceName {
    SourceName::parse(["a", "b", "c"][usize::from(number)]).unwrap()
}

fn idempotency_key(number: u8) -> IdempotencyKey {
    IdempotencyKey::parse(format!("key-{number}").as_bytes()).unwrap()
}

fn duration(length: &Length) -> Duration {
    match length {
        Length::Steps(steps) => GRID * *steps,
        Length::Endless => Duration::MAX,
    }
}
