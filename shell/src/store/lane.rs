//! A lane: a bounded set of connections to one database, for one kind of work.
//!
//! It stands in for sqlx's pool, which pings each connection when it comes back, one round trip for each call, and
//! which keeps the idle connections of a server that has been restarted. Here a connection is kept only if its last
//! call ended in good order: one whose call failed midway or was dropped is closed, so that no call can find another
//! one's leavings. One that has been idle for a while is pinged before it is used again.

use crate::ports::Connections;
use sqlx::Connection;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a call waits for a connection, made or returned. Producers wait behind this: sooner a 503 than a hang.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A connection that has been idle for longer is pinged before it is used: the server may have been restarted. Under
/// load no connection rests that long.
const PING_AFTER: Duration = Duration::from_secs(1);

/// A ping that takes longer finds the connection dead.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// How a lane's connections are made.
pub(super) trait Connect: Send + Sync + 'static {
    /// A connection.
    type Connection: Connection;

    /// Makes a connection, or says why not, at the deadline at the latest. With it comes its generation.
    fn connect(&self, deadline: Instant) -> impl Future<Output = Result<(Self::Connection, u64), String>> + Send;

    /// The generation now: a connection of an earlier one is not used again.
    fn generation(&self) -> u64;
}

/// The connections of one lane.
pub(super) struct Lane<C: Connect> {
    connect: C,
    permits: Arc<Semaphore>,
    limit: usize,
    /// The last one used is the next one used, so that the others may rest.
    idle: Mutex<Vec<Idle<C::Connection>>>,
}

struct Idle<C> {
    connection: C,
    generation: u64,
    since: Instant,
}

/// Why a lane gave no connection. Nothing was sent.
#[derive(Debug)]
pub(super) enum TakeError {
    /// All connections were in use for [`ACQUIRE_TIMEOUT`].
    Busy {
        /// So many.
        limit: usize,
    },
    /// Connecting failed, or took longer than [`ACQUIRE_TIMEOUT`]: this is why.
    Connect(String),
}

impl<C: Connect> Lane<C> {
    /// A lane of at most `limit` connections, none of which is made yet.
    pub(super) fn new(connect: C, limit: usize) -> Arc<Self> {
        Arc::new(Self { connect, permits: Arc::new(Semaphore::new(limit)), limit, idle: Mutex::new(Vec::with_capacity(limit)) })
    }

    /// Takes a connection, waiting for it at most [`ACQUIRE_TIMEOUT`]. Unless it is [kept](Held::keep), it is closed
    /// when it is dropped.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Held<C>, TakeError> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let busy = || TakeError::Busy { limit: self.limit };
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        let (connection, generation) = self.connection(deadline).await.map_err(TakeError::Connect)?;
        Ok(Held { connection: Some(connection), generation, lane: Arc::clone(self), _permit: permit })
    }

    /// How many of its connections are in use.
    pub(super) fn in_use(&self, lane: &'static str) -> Connections {
        Connections { lane, in_use: self.limit - self.permits.available_permits(), limit: self.limit }
    }

    /// Closes the connections that rest. To be called after a connection broke: the others are likely to be broken
    /// too, and each would cost a call its failure.
    pub(super) fn forget_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        drop(idle);
    }

    /// Closes the connections that are not in use, and waits until they are closed.
    pub(super) async fn close(&self) {
        while let Some(idle) = self.newest_idle() {
            // An error tells nothing that could still be acted upon.
            let _ = idle.connection.close().await;
        }
    }

    async fn connection(&self, deadline: Instant) -> Result<(C::Connection, u64), String> {
        while let Some(Idle { mut connection, generation, since }) = self.newest_idle() {
            let is_current = generation >= self.connect.generation();
            if is_current && (since.elapsed() < PING_AFTER || matches!(timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(())))) {
                return Ok((connection, generation));
            }
            self.forget_idle();
        }
        self.connect.connect(deadline).await
    }

    fn newest_idle(&self) -> Option<Idle<C::Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// A connection that is in use.
pub(super) struct Held<C: Connect> {
    connection: Option<C::Connection>,
    generation: u64,
    lane: Arc<Lane<C>>,
    // Declared last: the permit is given back after the connection is.
    _permit: OwnedSemaphorePermit,
}

impl<C: Connect> Held<C> {
    /// Whether a later generation has begun since this connection was made.
    pub(super) fn is_outdated(&self) -> bool {
        self.generation < self.lane.connect.generation()
    }

    /// Gives the connection back, to be used again. Only after a call on it has ended in good order.
    pub(super) fn keep(mut self) {
        if let Some(connection) = self.connection.take() {
            let idle = Idle { connection, generation: self.generation, since: Instant::now() };
            self.lane.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
        }
    }
}

const GIVEN_BACK: &str = "a connection is given back only when its holder is consumed";

impl<C: Connect> Deref for Held<C> {
    type Target = C::Connection;

    fn deref(&self) -> &C::Connection {
        self.connection.as_ref().expect(GIVEN_BACK)
    }
}

impl<C: Connect> DerefMut for Held<C> {
    fn deref_mut(&mut self) -> &mut C::Connection {
        self.connection.as_mut().expect(GIVEN_BACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::SqliteConnection;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts its connections, and has a generation that is set from outside.
    #[derive(Default)]
    struct Counted {
        made: AtomicU64,
        generation: AtomicU64,
    }

    impl Connect for Arc<Counted> {
        type Connection = SqliteConnection;

        async fn connect(&self, _: Instant) -> Result<(SqliteConnection, u64), String> {
            self.made.fetch_add(1, Ordering::Relaxed);
            let connection = SqliteConnection::connect("sqlite::memory:").await.map_err(|error| error.to_string())?;
            Ok((connection, self.generation()))
        }

        fn generation(&self) -> u64 {
            self.generation.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_connection_of_an_earlier_generation_is_not_used_again() {
        let connect = Arc::new(Counted::default());
        let lane = Lane::new(Arc::clone(&connect), 2);
        let made = || connect.made.load(Ordering::Relaxed);
        lane.take().await.unwrap().keep();
        let resting = lane.take().await.unwrap();
        assert_eq!(made(), 1, "one that was kept is used again");
        let in_use = lane.take().await.unwrap();
        resting.keep();

        connect.generation.store(1, Ordering::Relaxed);

        assert!(in_use.is_outdated());
        in_use.keep();
        let new = lane.take().await.unwrap();
        assert!(!new.is_outdated());
        assert_eq!(made(), 3, "neither the one that rested nor the one that came back late");
    }
}
