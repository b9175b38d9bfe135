//! The reference database as a store: the tables behind a mutex, with a clock that the caller
//! moves. For tests and fuzzing. It has no runtime and no threads: each call completes when it is
//! first polled, unless the test delays it or lets it fail (see [`MemoryStore::before_each`]).

use crate::database::Database;
use crate::operator_reads;
use crate::scenario::Call;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook::ports::{
    Discarded, Erased, EventStore, MaintenanceStore, NewEvent, OperatorStore, Pruned, Redriven,
    Retention, StoreCall, StoreError,
};
use surehook::search::{ChangedPage, EventFilter, PageSize, Span};
use surehook_core::admission::Stored;
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, RedrivenBy};
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};

/// Runs before each call of a store.
type Before = dyn Fn(Call) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync;

pub struct MemoryStore {
    state: Mutex<State>,
    before: Option<Box<Before>>,
}

struct State {
    tables: Database,
    now: Timestamp,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store whose clock shows the start of 2026.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expected condition always holds")]
    pub fn new() -> Self {
        const START_SECONDS: i64 = 1_767_225_600;
        Self::at(
            Timestamp::from_second(START_SECONDS).expect("the start time is a valid timestamp"),
        )
    }

    /// An empty store whose clock shows `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { state: Mutex::new(State { tables: Database::default(), now }), before: None }
    }

    /// The same store, on which each call first waits for `before`. If `before` fails, the call
    /// fails with its error and changes nothing.
    #[must_use]
    pub fn before_each(
        self,
        before: impl Fn(Call) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync + 'static,
    ) -> Self {
        Self { before: Some(Box::new(before)), ..self }
    }

    /// The time that the store's clock shows.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.state().now
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.state().now += by;
    }

    /// A copy of the tables.
    #[must_use]
    pub fn tables(&self) -> Database {
        self.state().tables.clone()
    }

    /// Reads or changes the tables in one atomic step, without the port.
    pub fn transact<T>(&self, work: impl FnOnce(&mut Database, Timestamp) -> T) -> T {
        let mut state = self.state();
        let now = state.now;
        work(&mut state.tables, now)
    }

    // A panic inside a step can leave the tables half changed. The test that caused it has failed
    // anyway.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One atomic step, after what the test wants before it. Nothing happens before the first poll.
    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        work: impl FnOnce(&mut Database, Timestamp) -> Result<T, StoreError> + Send + 'a,
    ) -> StoreCall<'a, T> {
        async move {
            if let Some(before) = &self.before {
                before(call).await?;
            }
            self.transact(work)
        }
        .boxed()
    }

    /// A step that only reads.
    fn read<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        work: impl FnOnce(&Database, Timestamp) -> T + Send + 'a,
    ) -> StoreCall<'a, T> {
        self.call(call, move |tables, now| Ok(work(tables, now)))
    }
}

impl EventStore for MemoryStore {
    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        self.call(Call::Accept, move |tables, now| tables.accept(now, batch))
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        self.call(Call::Claim, move |tables, now| Ok(tables.claim(now, &demands)))
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        self.call(Call::Settle, move |tables, now| Ok(tables.settle(now, &batch)))
    }
}

impl OperatorStore for MemoryStore {
    operator_reads!();

    fn redrive(&self, event: EventId, by: RedrivenBy) -> StoreCall<'_, Redriven> {
        self.call(Call::Redrive, move |tables, now| Ok(tables.redrive(now, event, by)))
    }

    fn redrive_delivered(&self, event: EventId) -> StoreCall<'_, Redriven> {
        self.call(Call::Redrive, move |tables, now| Ok(tables.redrive_delivered(now, event)))
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        self.call(Call::RedriveAll, move |tables, now| {
            Ok(tables.redrive_all(now, &filter, span, size, dry_run))
        })
    }

    fn discard(&self, event: EventId, scope: DiscardScope) -> StoreCall<'_, Discarded> {
        self.call(Call::Discard, move |tables, now| Ok(tables.discard(now, event, scope)))
    }

    fn discard_all(
        &self,
        filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        self.call(Call::DiscardAll, move |tables, now| {
            Ok(tables.discard_all(now, &filter, scope, span, size, dry_run))
        })
    }

    fn pause(&self, source: SourceName, paused: bool) -> StoreCall<'_, bool> {
        self.call(Call::Pause, move |tables, now| Ok(tables.pause(now, source, paused)))
    }
}

impl MaintenanceStore for MemoryStore {
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        self.call(Call::Prune, move |tables, now| Ok(tables.prune(now, retention, after, limit)))
    }

    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased> {
        self.call(Call::Erase, move |tables, now| Ok(tables.erase(now, kept, after, limit)))
    }

    fn cap_due_times(&self, bounds: Vec<Bound>, limit: u32) -> StoreCall<'_, u64> {
        self.call(Call::CapDueTimes, move |tables, now| {
            Ok(tables.cap_due_times(now, &bounds, limit))
        })
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        self.read(Call::Ping, |_, _| ())
    }

    fn probe(&self, _: NewEvent) -> StoreCall<'_, ()> {
        self.call(Call::Probe, |_, _| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use surehook_core::admission::Fingerprint;
    use surehook_core::key::IdempotencyKey;
    use surehook_core::source::SourceName;

    const LEASE: Duration = Duration::from_mins(1);

    fn event() -> NewEvent {
        NewEvent {
            id: "019ab000-0000-7000-8000-000000000001".parse().unwrap(),
            source: SourceName::parse("orders").unwrap(),
            key: IdempotencyKey::parse(b"k").unwrap(),
            fingerprint: Fingerprint::of(b"body"),
            query: Bytes::new(),
            headers: Bytes::new(),
            body: Bytes::from_static(b"body"),
            lease: None,
        }
    }

    fn demand() -> Vec<Demand> {
        vec![Demand {
            source: event().source,
            limit: 1,
            bytes: usize::MAX,
            lease: LEASE,
            max_attempts: 3,
        }]
    }

    /// The result of a call that is polled once.
    fn now<T>(call: StoreCall<'_, T>) -> Result<T, StoreError> {
        call.now_or_never().expect("the call completes at its first poll")
    }

    #[test]
    fn a_lease_ends_when_the_clock_moves_past_it() {
        let store = MemoryStore::new();
        assert_eq!(now(store.accept(vec![event()])), Ok(vec![Stored::Inserted]));
        assert_eq!(now(store.claim(demand())).unwrap().claimed.len(), 1);
        store.advance(LEASE - Duration::from_micros(1));
        assert!(now(store.claim(demand())).unwrap().claimed.is_empty());
        store.advance(Duration::from_micros(1));
        assert_eq!(now(store.claim(demand())).unwrap().claimed[0].attempt, 2);
    }

    #[test]
    fn a_call_that_fails_before_its_step_changes_nothing() {
        let store = MemoryStore::new().before_each(|call| {
            let is_broken = call == Call::Accept;
            async move {
                if is_broken { Err(StoreError::Conflict("test".to_owned())) } else { Ok(()) }
            }
            .boxed()
        });
        assert_eq!(now(store.accept(vec![event()])), Err(StoreError::Conflict("test".to_owned())));
        assert_eq!(store.tables(), Database::default());
        assert_eq!(now(store.pause(event().source, true)), Ok(true), "only accepting is broken");
    }

    #[test]
    fn a_call_that_is_not_polled_does_nothing() {
        let store = MemoryStore::new();
        drop(store.accept(vec![event()]));
        assert_eq!(store.tables(), Database::default());
    }
}
