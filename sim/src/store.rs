//! The store port of a simulated process. Each call sends requests over the network to the
//! database's node.

use crate::bugs::Bug;
use crate::database::{Answer, Disk, Operation, REQUESTS, Request};
use crate::effects::Effects;
use crate::net::DATABASE;
use crate::waits::Wait;
use futures::FutureExt;
use madsim::net::Endpoint;
use madsim::time::{sleep, timeout};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use surehook::ports::{
    Erased, EventStore, MaintenanceStore, NewEvent, OperatorStore, Pruned, Redriven, Retention,
    StoreCall, StoreError,
};
use surehook::search::{
    EventFilter, EventPage, EventRecord, PageSize, RedrivenPage, SourceRecord, Span,
};
use surehook_core::admission::Stored;
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use surehook_model::history::{CallResult, What};
use surehook_model::marks::Mark;
use surehook_model::scenario::{DatabaseKind, StoreFault};

/// The longest time that a caller waits for one request.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// The most events of a step of retention. It is small, so that a pass has many steps.
const STEP_EVENTS: u32 = 8;

/// How often an accept is repeated for events whose key existed at the insert, but no longer at the
/// read.
const ACCEPT_ROUNDS: usize = 5;

/// The store port of one process.
pub(crate) struct RemoteStore {
    disk: Arc<Disk>,
    endpoint: Endpoint,
    process: String,
    effects: Arc<Effects>,
    index: usize,
}

impl RemoteStore {
    pub(crate) async fn connect(
        disk: Arc<Disk>,
        process: String,
        effects: Arc<Effects>,
        index: usize,
    ) -> Self {
        let endpoint = Endpoint::bind("0.0.0.0:0").await.expect("a port is free");
        Self { disk, endpoint, process, effects, index }
    }

    async fn call(&self, operation: Operation) -> Result<Answer, StoreError> {
        let (call, events) = described(&operation);
        let result = self.send(operation).await;
        self.record(call, events, &result);
        result
    }

    fn record<T>(&self, call: &'static str, events: Vec<EventId>, result: &Result<T, StoreError>) {
        let result = match result {
            Ok(_) => CallResult::Done,
            Err(StoreError::Unknown(_)) => CallResult::Unknown,
            Err(StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::Rejected(_)) => {
                CallResult::Refused
            }
        };
        if !events.is_empty() {
            self.disk.recorder.record(What::Called {
                process: self.process.clone(),
                call,
                result,
                events,
            });
        }
    }

    async fn send(&self, operation: Operation) -> Result<Answer, StoreError> {
        let _waiting =
            self.disk.recorder.waits().begin(self.index, Wait::Call(described(&operation).0));
        self.effects.pass(self.index, self.exchange(operation)).await
    }

    /// Accepts as the store on PostgreSQL does: inserts the new events, and reads those whose keys
    /// existed.
    async fn insert_and_look(&self, batch: &[NewEvent]) -> Result<Vec<Stored>, StoreError> {
        let mut stored: Vec<Option<Stored>> = vec![None; batch.len()];
        let mut is_part_committed = false;
        for _ in 0..ACCEPT_ROUNDS {
            let open: Vec<usize> =
                (0..batch.len()).filter(|&index| stored[index].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let inserted = self
                .send(Operation::Insert(open.iter().map(|&index| batch[index].clone()).collect()))
                .await;
            let inserted =
                match inserted.map_err(|error| self.in_doubt(error, is_part_committed))? {
                    Answer::Accepted(inserted) => inserted,
                    other => unreachable!("the reply to an insert is {other:?}"),
                };
            for (&index, inserted) in open.iter().zip(inserted) {
                stored[index] =
                    Some(inserted).filter(|inserted| !matches!(inserted, Stored::Existing { .. }));
            }
            is_part_committed |= stored
                .iter()
                .any(|stored| matches!(stored, Some(Stored::Inserted | Stored::Claimed)));
            let in_the_way: Vec<usize> =
                open.into_iter().filter(|&index| stored[index].is_none()).collect();
            if in_the_way.is_empty() {
                break;
            }
            let keys = in_the_way
                .iter()
                .map(|&index| (batch[index].source.clone(), batch[index].key.clone()))
                .collect();
            let existing = match self
                .send(Operation::Existing(keys))
                .await
                .map_err(|error| self.in_doubt(error, is_part_committed))?
            {
                Answer::Existing(existing) => existing,
                other => unreachable!("the reply to a read of keys is {other:?}"),
            };
            for (index, existing) in in_the_way.into_iter().zip(existing) {
                stored[index] = existing;
            }
        }
        let conflict = || {
            self.in_doubt(
                StoreError::Conflict(
                    "events with the same keys are repeatedly stored and deleted".into(),
                ),
                is_part_committed,
            )
        };
        stored.into_iter().collect::<Option<Vec<Stored>>>().ok_or_else(conflict)
    }

    /// The error of an accept of which a part may have been committed.
    fn in_doubt(&self, error: StoreError, is_part_committed: bool) -> StoreError {
        if !is_part_committed {
            return error;
        }
        self.disk.reached(Mark::PartCommitted);
        if self.disk.bug == Some(Bug::PartTakenForNothing) {
            return error;
        }
        StoreError::Unknown(error.to_string())
    }

    async fn exchange(&self, operation: Operation) -> Result<Answer, StoreError> {
        let fault = self.disk.fault_for(&self.process, &operation);
        if fault == Some(StoreFault::Refuse) || !self.disk.is_up() {
            sleep(Duration::from_millis(1)).await;
            return Err(StoreError::Unavailable("connection refused".to_owned()));
        }
        let reply_to = self.disk.next_tag.fetch_add(1, Ordering::Relaxed);
        let request = Request { process: self.process.clone(), reply_to, operation, fault };
        let unknown = |what: &str| StoreError::Unknown(what.to_owned());
        self.endpoint
            .send_to_raw(DATABASE, REQUESTS, Box::new(request))
            .await
            .map_err(|_| unknown("connection broken"))?;
        let reply = timeout(CALL_TIMEOUT, self.endpoint.recv_from_raw(reply_to))
            .await
            .map_err(|_| unknown("no reply in time"))?;
        let (payload, _) = reply.map_err(|_| unknown("connection broken"))?;
        *payload
            .downcast::<Result<Answer, StoreError>>()
            .expect("every message with this tag is a reply")
    }
}

fn described(operation: &Operation) -> (&'static str, Vec<EventId>) {
    match operation {
        Operation::Accept(batch) | Operation::Insert(batch) => {
            ("accept", batch.iter().map(|event| event.id).collect())
        }
        Operation::Existing(_) => ("look", vec![]),
        Operation::Settle(batch) => {
            ("settle", batch.iter().map(|settlement| settlement.event).collect())
        }
        Operation::Redrive(event) => ("redrive", vec![*event]),
        Operation::RedriveDelivered(event) => ("redrive delivered", vec![*event]),
        Operation::Claim(_) => ("claim", vec![]),
        Operation::Find(_) => ("find", vec![]),
        Operation::RedriveAll(..) => ("redrive all", vec![]),
        Operation::List(..) => ("list", vec![]),
        Operation::Sources(..) => ("sources", vec![]),
        Operation::Pause(..) => ("pause", vec![]),
        Operation::Prune(..) => ("prune", vec![]),
        Operation::Erase(..) => ("erase", vec![]),
        Operation::Ping => ("ping", vec![]),
        Operation::Probe(_) => ("probe", vec![]),
    }
}

/// Extracts the value of a reply, which has the variant of its call.
macro_rules! answered {
    ($call:expr, $variant:ident) => {
        $call
            .map(|answer: Result<Answer, StoreError>| match answer? {
                Answer::$variant(value) => Ok::<_, StoreError>(value),
                other => unreachable!("expected the reply {}, got {other:?}", stringify!($variant)),
            })
            .boxed()
    };
}

impl EventStore for RemoteStore {
    fn accepts_at_once(&self) -> usize {
        if self.disk.kind == DatabaseKind::OneWriter { 1 } else { 2 }
    }

    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        if self.disk.kind == DatabaseKind::OneWriter {
            return answered!(self.call(Operation::Accept(batch)), Accepted);
        }
        async move {
            let stored = self.insert_and_look(&batch).await;
            self.record("accept", batch.iter().map(|event| event.id).collect(), &stored);
            stored
        }
        .boxed()
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        answered!(self.call(Operation::Claim(demands)), Claimed)
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        answered!(self.call(Operation::Settle(batch)), Settled)
    }
}

impl OperatorStore for RemoteStore {
    fn find(&self, event: EventId) -> StoreCall<'_, Option<EventRecord>> {
        answered!(self.call(Operation::Find(event)), Found)
            .map(|found| Ok(found?.map(|record: Box<EventRecord>| *record)))
            .boxed()
    }

    fn redrive(&self, event: EventId) -> StoreCall<'_, Redriven> {
        answered!(self.call(Operation::Redrive(event)), Redriven)
    }

    fn redrive_delivered(&self, event: EventId) -> StoreCall<'_, Redriven> {
        answered!(self.call(Operation::RedriveDelivered(event)), Redriven)
    }

    fn list(&self, filter: EventFilter, span: Span, size: PageSize) -> StoreCall<'_, EventPage> {
        answered!(self.call(Operation::List(filter, span, size)), Listed)
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, RedrivenPage> {
        answered!(self.call(Operation::RedriveAll(filter, span, size, dry_run)), AllRedriven)
    }

    fn sources(&self, names: Vec<SourceName>, count_to: u32) -> StoreCall<'_, Vec<SourceRecord>> {
        answered!(self.call(Operation::Sources(names, count_to)), Sources)
    }

    fn pause(&self, source: SourceName, paused: bool) -> StoreCall<'_, bool> {
        answered!(self.call(Operation::Pause(source, paused)), Paused)
    }
}

impl MaintenanceStore for RemoteStore {
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        answered!(self.call(Operation::Prune(retention, after, limit.min(STEP_EVENTS))), Pruned)
    }

    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased> {
        answered!(self.call(Operation::Erase(kept, after, limit.min(STEP_EVENTS))), Erased)
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        self.call(Operation::Ping).map(|answer| answer.map(|_| ())).boxed()
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        self.call(Operation::Probe(event)).map(|answer| answer.map(|_| ())).boxed()
    }
}
