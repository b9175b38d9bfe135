//! Stores that handle connections and schemas wrongly. They wrap the real store on SQLite, because
//! the model has neither.

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnection;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook::ports::{Erased, NewEvent, Pruned, Redriven, Retention, Store, StoreError};
use surehook::search::{
    EventFilter, EventPage, EventRecord, PageSize, RedrivenPage, SourceRecord, Span,
};
use surehook::store::sqlite::options;
use surehook_core::admission::Stored;
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};

/// How a wrapper of a real store is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrongDatabase {
    DroppedCallsStayOpen,
    AlwaysInOrder,
}

impl WrongDatabase {
    /// One process's handle on a store that is wrong in this way.
    pub(crate) fn store(self, inner: Arc<dyn Store>, url: &str) -> Arc<dyn Store> {
        Arc::new(WrongStore {
            inner,
            url: url.to_owned(),
            wrong: self,
            free: Mutex::default(),
            open: Mutex::default(),
        })
    }
}

struct WrongStore {
    inner: Arc<dyn Store>,
    url: String,
    wrong: WrongDatabase,
    /// The connection that the last call released.
    free: Mutex<Option<SqliteConnection>>,
    /// Connections whose call was dropped.
    open: Mutex<Vec<SqliteConnection>>,
}

/// Keeps a transaction open if it is dropped before its end.
struct Transaction<'a> {
    store: &'a WrongStore,
    connection: Option<SqliteConnection>,
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.store.open.lock().unwrap().extend(self.connection.take());
    }
}

impl Store for WrongStore {
    fn accept(&self, batch: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        if self.wrong != WrongDatabase::DroppedCallsStayOpen {
            return self.inner.accept(batch);
        }
        async move {
            let free = self.free.lock().unwrap().take();
            let connection = match free {
                Some(connection) => connection,
                None => options(&self.url).unwrap().connect().await.unwrap(),
            };
            let mut transaction = Transaction { store: self, connection: Some(connection) };
            let connection =
                transaction.connection.as_mut().expect("the connection is taken only at the end");
            sqlx::raw_sql("begin immediate").execute(&mut *connection).await.unwrap();
            // Longer than any timeout of a caller that drops the call.
            tokio::time::sleep(Duration::from_millis(20)).await;
            sqlx::raw_sql("rollback").execute(connection).await.unwrap();
            *self.free.lock().unwrap() = transaction.connection.take();
            self.inner.accept(batch).await
        }
        .boxed()
    }

    fn claim(&self, demands: Vec<Demand>) -> BoxFuture<'_, Result<Claims, StoreError>> {
        self.inner.claim(demands)
    }

    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        self.inner.settle(batch)
    }

    fn find(&self, event: EventId) -> BoxFuture<'_, Result<Option<EventRecord>, StoreError>> {
        self.inner.find(event)
    }

    fn redrive(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        self.inner.redrive(event)
    }

    fn redrive_delivered(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        self.inner.redrive_delivered(event)
    }

    fn list(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
    ) -> BoxFuture<'_, Result<EventPage, StoreError>> {
        self.inner.list(filter, span, size)
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> BoxFuture<'_, Result<RedrivenPage, StoreError>> {
        self.inner.redrive_all(filter, span, size, dry_run)
    }

    fn sources(
        &self,
        names: Vec<SourceName>,
        count_to: u32,
    ) -> BoxFuture<'_, Result<Vec<SourceRecord>, StoreError>> {
        self.inner.sources(names, count_to)
    }

    fn pause(&self, source: SourceName, paused: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.inner.pause(source, paused)
    }

    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Pruned, StoreError>> {
        self.inner.prune(retention, after, limit)
    }

    fn erase(
        &self,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Erased, StoreError>> {
        self.inner.erase(kept, after, limit)
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        match self.wrong {
            WrongDatabase::AlwaysInOrder => ready(Ok(())).boxed(),
            WrongDatabase::DroppedCallsStayOpen => self.inner.ping(),
        }
    }

    fn probe(&self, event: NewEvent) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.probe(event)
    }
}
