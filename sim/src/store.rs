//! The store port of a simulated process. Each call sends requests over the network to the
//! database's node.

use crate::bugs::Bug;
use crate::cursor::ClaimCursors;
use crate::database::{AtCommit, Disk, REQUESTS, Reply, Request, Steps};
use crate::effects::Effects;
use crate::held::HeldBytes;
use crate::net::DATABASE;
use crate::recorder::elapsed;
use crate::timer::{sleep, timeout};
use crate::transaction::{Claimed, Transaction};
use crate::waits::Wait;
use futures::FutureExt;
use futures::future::ready;
use jiff::Timestamp;
use madsim::net::Endpoint;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook::ports::{
    Discarded, Erased, EventStore, MaintenanceStore, NewEvent, OperatorStore, Pruned, Redriven,
    Retention, StoreCall, StoreError,
};
use surehook::search::{ChangedPage, EventFilter, PageSize, Span};
use surehook_core::admission::Stored;
use surehook_core::cursor::DueTime;
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, RedrivenBy};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use surehook_model::database::Database;
use surehook_model::history::{CallResult, What};
use surehook_model::marks::Mark;
use surehook_model::operator_reads;
use surehook_model::scenario::{Call, DatabaseKind, StoreFault};

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
    /// Where the claims of each source start.
    cursors: Mutex<ClaimCursors>,
    held: Arc<HeldBytes>,
    /// The situations that were reported.
    reached: Mutex<BTreeSet<Mark>>,
}

impl RemoteStore {
    pub(crate) async fn connect(
        disk: Arc<Disk>,
        process: String,
        effects: Arc<Effects>,
        index: usize,
        held: Arc<HeldBytes>,
    ) -> Self {
        let endpoint = Endpoint::bind("0.0.0.0:0").await.expect("a port is free");
        let cursors = Mutex::new(ClaimCursors::new(disk.kind, disk.bug));
        let reached = Mutex::default();
        Self { disk, endpoint, process, effects, index, cursors, held, reached }
    }

    fn cursors(&self) -> MutexGuard<'_, ClaimCursors> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a claim of this source starts; `None` means the front.
    fn start_of(&self, source: &SourceName) -> Option<DueTime> {
        let from = self.cursors().start(source);
        if from.is_some() {
            self.reached(Mark::ClaimStartedBehindFront);
        }
        from
    }

    /// Reports a situation once.
    fn reached(&self, mark: Mark) {
        if self.reached.lock().unwrap_or_else(PoisonError::into_inner).insert(mark) {
            self.disk.reached(mark);
        }
    }

    /// Sends a call that concerns these events to the database, and records its result.
    async fn call<T, S>(&self, call: Call, events: Vec<EventId>, steps: S) -> Result<T, StoreError>
    where
        T: Send + Sync + 'static,
        S: for<'t> FnOnce(&'t mut Transaction<'_>, AtCommit) -> StoreCall<'t, T>
            + Send
            + Sync
            + 'static,
    {
        let result = self.send(call, steps).await;
        self.record(call, events, &result);
        result
    }

    /// Sends a call to the database that only reads.
    fn read<T: Send + Sync + 'static>(
        &self,
        call: Call,
        read: impl FnOnce(&Database, Timestamp) -> T + Send + Sync + 'static,
    ) -> StoreCall<'_, T> {
        self.send(call, |transaction, _| ready(transaction.read(read)).boxed()).boxed()
    }

    fn record<T>(&self, call: Call, events: Vec<EventId>, result: &Result<T, StoreError>) {
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
                call: call.as_str(),
                result,
                events,
            });
        }
    }

    async fn send<T, S>(&self, call: Call, steps: S) -> Result<T, StoreError>
    where
        T: Send + Sync + 'static,
        S: for<'t> FnOnce(&'t mut Transaction<'_>, AtCommit) -> StoreCall<'t, T>
            + Send
            + Sync
            + 'static,
    {
        let steps: Steps = Box::new(|transaction, at_commit| {
            steps(transaction, at_commit)
                .map(|done| done.map(|value| Box::new(value) as Reply))
                .boxed()
        });
        let _waiting = self.disk.recorder.waits().begin(self.index, Wait::Call(call.as_str()));
        let reply = self.effects.pass(self.index, self.exchange(call, steps)).await?;
        Ok(*reply.downcast().expect("the reply has the type that its caller expects"))
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
            let events: Vec<NewEvent> = open.iter().map(|&index| batch[index].clone()).collect();
            let inserted = self
                .send(Call::Accept, move |transaction, at| transaction.insert(events, at).boxed())
                .await
                .map_err(|error| self.in_doubt(error, is_part_committed))?;
            for (&index, inserted) in open.iter().zip(inserted) {
                stored[index] =
                    Some(inserted).filter(|inserted| !matches!(inserted, Stored::Existing { .. }));
            }
            is_part_committed |= stored
                .iter()
                .any(|stored| matches!(stored, Some(Stored::Inserted | Stored::Claimed { .. })));
            let in_the_way: Vec<usize> =
                open.into_iter().filter(|&index| stored[index].is_none()).collect();
            if in_the_way.is_empty() {
                break;
            }
            let keys: Vec<(SourceName, IdempotencyKey)> = in_the_way
                .iter()
                .map(|&index| (batch[index].source.clone(), batch[index].key.clone()))
                .collect();
            let existing = self
                .send(Call::Look, move |transaction, _| transaction.existing(keys).boxed())
                .await
                .map_err(|error| self.in_doubt(error, is_part_committed))?;
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

    async fn exchange(&self, call: Call, steps: Steps) -> Result<Reply, StoreError> {
        let fault = self.disk.fault_for(&self.process, call);
        if fault == Some(StoreFault::Refuse) || !self.disk.is_up() {
            sleep(Duration::from_millis(1)).await;
            return Err(StoreError::Unavailable("connection refused".to_owned()));
        }
        let reply_to = self.disk.next_tag.fetch_add(1, Ordering::Relaxed);
        let (process, sent_at) = (self.process.clone(), elapsed());
        let request = Request { process, sent_at, reply_to, call, steps, fault };
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
            .downcast::<Result<Reply, StoreError>>()
            .expect("every message with this tag is a reply")
    }
}

impl EventStore for RemoteStore {
    fn accepts_at_once(&self) -> usize {
        if self.disk.kind == DatabaseKind::OneWriter { 1 } else { 2 }
    }

    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        let events = batch.iter().map(|event| event.id).collect();
        if self.disk.kind == DatabaseKind::OneWriter {
            return self
                .call(Call::Accept, events, |transaction, at| transaction.insert(batch, at).boxed())
                .boxed();
        }
        async move {
            let stored = self.insert_and_look(&batch).await;
            self.record(Call::Accept, events, &stored);
            stored
        }
        .boxed()
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        async move {
            let from = |demand: Demand| (self.start_of(&demand.source), demand);
            let sources: Vec<_> = demands.iter().map(|demand| demand.source.clone()).collect();
            let demands: Vec<_> = demands.into_iter().map(from).collect();
            let claim =
                self.send(Call::Claim, |transaction, at| transaction.claim(demands, at).boxed());
            let Claimed { claims, due } = claim.await?;
            for source in &sources {
                self.cursors().returned(source);
            }
            for (source, due) in due {
                self.cursors().claimed(&source, due);
            }
            if !claims.held_back.is_empty() {
                self.reached(Mark::EventHeldBack);
            }
            let claimed = claims.claimed.into_iter().map(|claim| self.held.watch(claim)).collect();
            Ok(Claims { claimed, ..claims })
        }
        .boxed()
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        let events = batch.iter().map(|settlement| settlement.event).collect();
        self.call(Call::Settle, events, |transaction, at| transaction.settle(batch, at).boxed())
            .boxed()
    }
}

impl OperatorStore for RemoteStore {
    operator_reads!();

    fn redrive(&self, event: EventId, by: RedrivenBy) -> StoreCall<'_, Redriven> {
        self.call(Call::Redrive, vec![event], move |transaction, at| {
            transaction.redrive(event, Some(by), at).boxed()
        })
        .boxed()
    }

    fn redrive_delivered(&self, event: EventId) -> StoreCall<'_, Redriven> {
        self.call(Call::Redrive, vec![event], move |transaction, at| {
            transaction.redrive(event, None, at).boxed()
        })
        .boxed()
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        self.send(Call::RedriveAll, move |transaction, at| {
            transaction.redrive_all(filter, span, size, dry_run, at).boxed()
        })
        .boxed()
    }

    fn discard(&self, event: EventId, scope: DiscardScope) -> StoreCall<'_, Discarded> {
        self.call(Call::Discard, vec![event], move |transaction, at| {
            transaction.discard(event, scope, at).boxed()
        })
        .boxed()
    }

    fn discard_all(
        &self,
        filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        self.send(Call::DiscardAll, move |transaction, at| {
            transaction.discard_all(filter, scope, span, size, dry_run, at).boxed()
        })
        .boxed()
    }

    fn pause(&self, source: SourceName, paused: bool) -> StoreCall<'_, bool> {
        self.send(Call::Pause, move |transaction, at| transaction.pause(source, paused, at).boxed())
            .boxed()
    }
}

impl MaintenanceStore for RemoteStore {
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        let limit = limit.min(STEP_EVENTS);
        self.send(Call::Prune, move |transaction, at| {
            transaction.prune(retention, after, limit, at).boxed()
        })
        .boxed()
    }

    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased> {
        let limit = limit.min(STEP_EVENTS);
        self.send(Call::Erase, move |transaction, at| {
            transaction.erase(kept, after, limit, at).boxed()
        })
        .boxed()
    }

    fn cap_due_times(&self, bounds: Vec<Bound>, limit: u32) -> StoreCall<'_, u64> {
        self.send(Call::CapDueTimes, move |transaction, at| {
            transaction.cap_due_times(bounds, limit, at).boxed()
        })
        .boxed()
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        self.read(Call::Ping, |_, _| ())
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        self.send(Call::Probe, |transaction, at| transaction.probe(event, at).boxed()).boxed()
    }
}
