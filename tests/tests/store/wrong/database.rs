//! Databases that break what a clause about connections or schemas guards. They are made of the
//! real store on SQLite, because the model has neither.

use futures::FutureExt;
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnection;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook::ports::{EventStore, NewEvent, StoreCall};
use surehook::store::sqlite::options;
use surehook_core::admission::Stored;
use surehook_core::id::EventId;
use surehook_core::worker::claims::{Claims, Demand, Settlement};

/// How one port of a real store is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrongDatabase {
    /// A [`LeakyStore`] takes the place of the port for events.
    DroppedCallsStayOpen,
    /// The port for maintenance is that of another database, which is in order.
    AlwaysInOrder,
}

/// A store that leaves a transaction open if the future of an accept is dropped.
pub(crate) struct LeakyStore {
    inner: Arc<dyn EventStore>,
    url: String,
    /// The connection that the last call released.
    free: Mutex<Option<SqliteConnection>>,
    /// Connections whose call was dropped.
    open: Mutex<Vec<SqliteConnection>>,
}

impl LeakyStore {
    pub(crate) fn new(inner: Arc<dyn EventStore>, url: &str) -> Self {
        Self { inner, url: url.to_owned(), free: Mutex::default(), open: Mutex::default() }
    }
}

/// Keeps a transaction open if it is dropped before its end.
struct Transaction<'a> {
    store: &'a LeakyStore,
    connection: Option<SqliteConnection>,
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.store.open.lock().unwrap().extend(self.connection.take());
    }
}

impl EventStore for LeakyStore {
    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
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

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        self.inner.claim(demands)
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        self.inner.settle(batch)
    }
}
