//! A connection pool for one kind of work on one database.
//!
//! It replaces sqlx's pool, which pings each connection on release (a round trip for each call),
//! and keeps the idle connections of a server that has been restarted. Here a connection returns to
//! the pool only if its last call completed. A connection whose call failed or was cancelled is
//! closed, so that its state cannot affect the next call. A connection that was idle for longer than
//! `PING_AFTER` is pinged before it is used again.
//!
//! The limit counts sessions at the server, not only connections of this process. The connection of
//! an abandoned call keeps its slot until the server has ended its session: a commit can hang at
//! the server as long as a standby is away.

use crate::ports::{Connections, StoreError};
use futures::future::BoxFuture;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a call waits for a connection, new or returned. Producers wait behind this, and an
/// early 503 is better than a long wait.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A connection that was idle for longer is pinged before it is used, because the server may have
/// been restarted. Under load no connection is idle for that long.
const PING_AFTER: Duration = Duration::from_secs(1);

/// A connection that does not answer a ping within this time counts as dead.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// How a pool opens and closes its connections.
pub(super) trait Connect: Send + Sync + 'static {
    type Connection: Send + 'static;

    /// Opens a connection, or returns the reason why not, by the deadline. Also returns the
    /// connection's generation.
    fn connect(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<(Self::Connection, u64), String>> + Send;

    /// Whether the other end of the connection answers.
    fn ping(connection: &mut Self::Connection) -> impl Future<Output = bool> + Send;

    /// Closes an idle connection.
    fn close(connection: Self::Connection) -> impl Future<Output = ()> + Send;

    /// Closes the connection of an abandoned call. The returned future, if any, completes when the
    /// server has ended the session.
    fn end(&self, connection: Self::Connection, generation: u64) -> Option<BoxFuture<'static, ()>>;

    /// The current generation. Connections of an earlier one are not reused.
    fn generation(&self) -> u64;

    /// Whether a connection must be closed rather than kept, because another pool needs one and
    /// cannot open it.
    fn is_wanted_elsewhere(&self) -> bool {
        false
    }
}

pub(super) struct Pool<C: Connect> {
    connect: C,
    permits: Arc<Semaphore>,
    limit: usize,
    /// Slots of abandoned calls whose sessions the server has not ended yet.
    abandoned: AtomicUsize,
    /// Used as a stack: under light load the connections at the bottom stay idle.
    idle: Mutex<Vec<Idle<C::Connection>>>,
}

struct Idle<C> {
    connection: C,
    generation: u64,
    since: Instant,
}

/// Why a pool returned no connection. Nothing was sent to the database.
#[derive(Debug)]
pub(super) enum TakeError {
    /// All connections were in use for [`ACQUIRE_TIMEOUT`].
    Busy {
        /// The number of connections of this pool.
        limit: usize,
        /// How many of them belong to abandoned calls whose sessions the server has not ended.
        abandoned: usize,
    },
    /// Connecting failed or took longer than [`ACQUIRE_TIMEOUT`]. Holds the reason.
    Connect(String),
}

/// Runs a call to its end, also if the future is dropped or kept without being polled. Otherwise such
/// a future could keep its place in the queue for a connection, and the connection itself, for ever.
pub(super) async fn detached<T: Send + 'static>(
    call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(call).await.unwrap_or_else(|error| {
        Err(StoreError::Unknown(format!("the task of the transaction failed: {error}")))
    })
}

impl<C: Connect> Pool<C> {
    /// A pool of at most `limit` connections. Each is opened when it is first needed.
    pub(super) fn new(connect: C, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            connect,
            permits: Arc::new(Semaphore::new(limit)),
            limit,
            abandoned: AtomicUsize::new(0),
            idle: Mutex::new(Vec::with_capacity(limit)),
        })
    }

    /// Takes a connection. Waits for it for at most [`ACQUIRE_TIMEOUT`]. Unless it is
    /// [kept](PooledConnection::keep), it is closed on drop, and its slot is free when the server
    /// has ended the session.
    pub(super) async fn take(self: &Arc<Self>) -> Result<PooledConnection<C>, TakeError> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let busy = || TakeError::Busy {
            limit: self.limit,
            abandoned: self.abandoned.load(Ordering::Relaxed),
        };
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let (connection, generation) =
            self.connection(deadline).await.map_err(TakeError::Connect)?;
        Ok(PooledConnection {
            connection: Some(connection),
            generation,
            pool: Arc::clone(self),
            permit: Some(permit),
        })
    }

    /// Connections in use and their limit, under the name `pool`.
    pub(super) fn in_use(&self, pool: &'static str) -> Connections {
        Connections {
            pool,
            in_use: self.limit - self.permits.available_permits(),
            limit: self.limit,
        }
    }

    /// Closes the idle connections. Called after a connection broke: the others are probably broken
    /// too, and each would fail one call.
    pub(super) fn forget_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        drop(idle);
    }

    /// Closes the idle connections and waits until they are closed.
    pub(super) async fn close(&self) {
        while let Some(idle) = self.newest_idle() {
            // An error here needs no reaction.
            C::close(idle.connection).await;
        }
    }

    async fn connection(&self, deadline: Instant) -> Result<(C::Connection, u64), String> {
        while let Some(Idle { mut connection, generation, since }) = self.newest_idle() {
            let is_current = generation >= self.connect.generation();
            if is_current
                && (since.elapsed() < PING_AFTER
                    || timeout(PING_TIMEOUT, C::ping(&mut connection)).await == Ok(true))
            {
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

pub(super) struct PooledConnection<C: Connect> {
    connection: Option<C::Connection>,
    generation: u64,
    pool: Arc<Pool<C>>,
    // Declared last, so that the permit is released after the connection is dropped.
    permit: Option<OwnedSemaphorePermit>,
}

impl<C: Connect> PooledConnection<C> {
    /// Whether a later generation has begun since this connection was opened.
    pub(super) fn is_outdated(&self) -> bool {
        self.generation < self.pool.connect.generation()
    }

    /// Returns the connection to the pool. Only allowed after its last call completed.
    pub(super) fn keep(mut self) {
        if let Some(connection) = self.connection.take() {
            if self.pool.connect.is_wanted_elsewhere() {
                return;
            }
            let idle = Idle { connection, generation: self.generation, since: Instant::now() };
            self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
        }
    }
}

impl<C: Connect> Drop for PooledConnection<C> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        // Without a runtime the process is ending, and no call needs the slot.
        let Ok(runtime) = Handle::try_current() else { return };
        let Some(ended) = self.pool.connect.end(connection, self.generation) else { return };
        let place = AbandonedSession::new(&self.pool, self.permit.take());
        runtime.spawn(async move {
            ended.await;
            drop(place);
        });
    }
}

/// The slot of an abandoned call.
struct AbandonedSession<C: Connect> {
    pool: Arc<Pool<C>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<C: Connect> AbandonedSession<C> {
    fn new(pool: &Arc<Pool<C>>, permit: Option<OwnedSemaphorePermit>) -> Self {
        pool.abandoned.fetch_add(1, Ordering::Relaxed);
        Self { pool: Arc::clone(pool), _permit: permit }
    }
}

impl<C: Connect> Drop for AbandonedSession<C> {
    fn drop(&mut self) {
        self.pool.abandoned.fetch_sub(1, Ordering::Relaxed);
    }
}

const GIVEN_BACK: &str = "a `PooledConnection` has its connection until it is consumed";

impl<C: Connect> Deref for PooledConnection<C> {
    type Target = C::Connection;

    fn deref(&self) -> &C::Connection {
        self.connection.as_ref().expect(GIVEN_BACK)
    }
}

impl<C: Connect> DerefMut for PooledConnection<C> {
    fn deref_mut(&mut self) -> &mut C::Connection {
        self.connection.as_mut().expect(GIVEN_BACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use tokio::sync::Notify;

    /// Counts its connections. The test sets its generation, ends its sessions, and decides how
    /// long connecting takes and whether a connection answers a ping.
    #[derive(Default)]
    struct Counted {
        made: AtomicU64,
        generation: AtomicU64,
        ended: Arc<Notify>,
        connecting_takes: Mutex<Duration>,
        deadline: Mutex<Option<Instant>>,
        pings: Arc<AtomicU64>,
        is_silent: Arc<AtomicBool>,
    }

    struct Connection {
        pings: Arc<AtomicU64>,
        is_silent: Arc<AtomicBool>,
    }

    impl Connect for Arc<Counted> {
        type Connection = Connection;

        async fn connect(&self, deadline: Instant) -> Result<(Connection, u64), String> {
            self.made.fetch_add(1, Ordering::Relaxed);
            *self.deadline.lock().unwrap() = Some(deadline);
            let takes = *self.connecting_takes.lock().unwrap();
            tokio::time::sleep(takes).await;
            let (pings, is_silent) = (Arc::clone(&self.pings), Arc::clone(&self.is_silent));
            Ok((Connection { pings, is_silent }, self.generation()))
        }

        async fn ping(connection: &mut Connection) -> bool {
            connection.pings.fetch_add(1, Ordering::Relaxed);
            if connection.is_silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            true
        }

        async fn close(_: Connection) {}

        fn end(&self, _: Connection, _: u64) -> Option<BoxFuture<'static, ()>> {
            let ended = Arc::clone(&self.ended);
            Some(async move { ended.notified().await }.boxed())
        }

        fn generation(&self) -> u64 {
            self.generation.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_slot_is_bounded_and_counts_for_connecting() {
        let connect = Arc::new(Counted::default());
        let pool = Pool::new(Arc::clone(&connect), 1);
        let in_use = pool.take().await.unwrap();
        let begun = Instant::now();
        assert!(matches!(pool.take().await.err(), Some(TakeError::Busy { abandoned: 0, .. })));
        assert_eq!(begun.elapsed().as_millis(), ACQUIRE_TIMEOUT.as_millis());

        let begun = Instant::now();
        let waiting = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.take().await.map(drop) }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        connect.generation.store(1, Ordering::Relaxed);
        in_use.keep();
        connect.ended.notify_one();
        assert!(waiting.await.unwrap().is_ok());
        assert_eq!(
            *connect.deadline.lock().unwrap(),
            Some(begun + ACQUIRE_TIMEOUT),
            "connecting gets the rest of the time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_idle_for_long_is_pinged_before_its_use() {
        let connect = Arc::new(Counted::default());
        let pool = Pool::new(Arc::clone(&connect), 3);
        let pings = || connect.pings.load(Ordering::Relaxed);
        pool.take().await.unwrap().keep();
        pool.take().await.unwrap().keep();
        assert_eq!(pings(), 0, "it was in use a moment ago");
        tokio::time::sleep(PING_AFTER).await;
        pool.take().await.unwrap().keep();
        assert_eq!(pings(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn dead_idle_connections_together_cost_one_short_wait() {
        let connect = Arc::new(Counted::default());
        let pool = Pool::new(Arc::clone(&connect), 3);
        let in_use = [pool.take().await, pool.take().await, pool.take().await];
        for taken in in_use {
            taken.unwrap().keep();
        }
        tokio::time::sleep(PING_AFTER).await;
        connect.is_silent.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        pool.take().await.unwrap().keep();
        assert_eq!(begun.elapsed().as_millis(), PING_TIMEOUT.as_millis());
        let (pings, made) = (&connect.pings, &connect.made);
        assert_eq!((pings.load(Ordering::Relaxed), made.load(Ordering::Relaxed)), (1, 4));
    }

    #[tokio::test]
    async fn a_connection_of_an_earlier_generation_is_not_reused() {
        let connect = Arc::new(Counted::default());
        let pool = Pool::new(Arc::clone(&connect), 2);
        let made = || connect.made.load(Ordering::Relaxed);
        pool.take().await.unwrap().keep();
        let resting = pool.take().await.unwrap();
        assert_eq!(made(), 1, "a kept connection is reused");
        let in_use = pool.take().await.unwrap();
        resting.keep();

        connect.generation.store(1, Ordering::Relaxed);

        assert!(in_use.is_outdated());
        in_use.keep();
        let new = pool.take().await.unwrap();
        assert!(!new.is_outdated());
        assert_eq!(made(), 3, "neither the idle connection nor the one returned late is reused");
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_call_keeps_its_slot_until_its_session_has_ended() {
        let connect = Arc::new(Counted::default());
        let pool = Pool::new(Arc::clone(&connect), 2);
        drop(pool.take().await.unwrap());
        let in_use = pool.take().await.unwrap();
        let refused = pool.take().await.err();
        assert!(matches!(refused, Some(TakeError::Busy { limit: 2, abandoned: 1 })), "{refused:?}");
        assert_eq!(pool.in_use("test").in_use, 2);

        connect.ended.notify_one();

        let after = pool.take().await.unwrap();
        in_use.keep();
        after.keep();
        assert_eq!((pool.in_use("test").in_use, pool.abandoned.load(Ordering::Relaxed)), (0, 0));
    }
}
