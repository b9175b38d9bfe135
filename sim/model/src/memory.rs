//! The reference database as a store: the tables behind a mutex, with a clock that the caller
//! moves. For tests and fuzzing. It has no runtime, threads or faults: each call completes when it
//! is first polled.

use crate::database::Database;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use jiff::Timestamp;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook::ports::{Erased, NewEvent, Pruned, Redriven, Retention, Store, StoreError};
use surehook::search::{
    EventFilter, EventPage, EventRecord, PageSize, RedrivenPage, SourceRecord, Span,
};
use surehook_core::admission::Stored;
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};

#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug)]
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
        Self { state: Mutex::new(State { tables: Database::default(), now }) }
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

    /// Runs [`Self::transact`] at the first poll, not before.
    fn call<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&mut Database, Timestamp) -> Result<T, StoreError> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        ready(()).map(move |()| self.transact(work)).boxed()
    }
}

impl Store for MemoryStore {
    fn accept(&self, batch: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        self.call(move |tables, now| tables.accept(now, batch))
    }

    fn claim(&self, demands: Vec<Demand>) -> BoxFuture<'_, Result<Claims, StoreError>> {
        self.call(move |tables, now| Ok(tables.claim(now, &demands)))
    }

    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        self.call(move |tables, now| Ok(tables.settle(now, &batch)))
    }

    fn find(&self, event: EventId) -> BoxFuture<'_, Result<Option<EventRecord>, StoreError>> {
        self.call(move |tables, _| Ok(tables.find(event)))
    }

    fn redrive(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        self.call(move |tables, now| Ok(tables.redrive(now, event)))
    }

    fn redrive_delivered(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        self.call(move |tables, now| Ok(tables.redrive_delivered(now, event)))
    }

    fn list(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
    ) -> BoxFuture<'_, Result<EventPage, StoreError>> {
        self.call(move |tables, _| Ok(tables.list(&filter, span, size)))
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> BoxFuture<'_, Result<RedrivenPage, StoreError>> {
        self.call(move |tables, now| Ok(tables.redrive_all(now, &filter, span, size, dry_run)))
    }

    fn sources(
        &self,
        names: Vec<SourceName>,
        count_to: u32,
    ) -> BoxFuture<'_, Result<Vec<SourceRecord>, StoreError>> {
        self.call(move |tables, now| Ok(tables.sources(now, &names, count_to)))
    }

    fn pause(&self, source: SourceName, paused: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.call(move |tables, now| Ok(tables.pause(now, source, paused)))
    }

    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Pruned, StoreError>> {
        self.call(move |tables, now| Ok(tables.prune(now, retention, after, limit)))
    }

    fn erase(
        &self,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Erased, StoreError>> {
        self.call(move |tables, now| Ok(tables.erase(now, kept, after, limit)))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.call(|_, _| Ok(()))
    }

    fn probe(&self, _: NewEvent) -> BoxFuture<'_, Result<(), StoreError>> {
        self.call(|_, _| Ok(()))
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
    fn now<T>(call: BoxFuture<'_, Result<T, StoreError>>) -> Result<T, StoreError> {
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
    fn a_call_that_is_not_polled_does_nothing() {
        let store = MemoryStore::new();
        drop(store.accept(vec![event()]));
        assert_eq!(store.tables(), Database::default());
    }
}
