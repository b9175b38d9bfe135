//! A lane: a bounded set of connections to one database, for one kind of work.
//!
//! It stands in for sqlx's pool, which pings each connection when it comes back, one round trip for each call, and
//! which keeps the idle connections of a server that has been restarted. Here a connection is kept only if its last
//! call ended in good order: one whose call failed midway or was dropped is closed, so that no call can find another
//! one's leavings. One that has been idle for a while is pinged before it is used again.
//!
//! The limit counts sessions at the server, and not only connections of this process. A connection whose call was given
//! up keeps its place until the server has ended its session: a commit can hang there for as long as a standby is away.

use crate::ports::Connections;
use futures::future::BoxFuture;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
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
    type Connection: Send + 'static;

    /// Makes a connection, or says why not, at the deadline at the latest. With it comes its generation.
    fn connect(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<(Self::Connection, u64), String>> + Send;

    /// Whether the connection's other end answers.
    fn ping(connection: &mut Self::Connection) -> impl Future<Output = bool> + Send;

    /// Closes a connection that is idle.
    fn close(connection: Self::Connection) -> impl Future<Output = ()> + Send;

    /// Closes a connection whose call was given up. What is returned, if anything, waits until the server has ended
    /// the session.
    fn end(&self, connection: Self::Connection, generation: u64) -> Option<BoxFuture<'static, ()>>;

    /// The generation now: a connection of an earlier one is not used again.
    fn generation(&self) -> u64;
}

/// The connections of one lane.
pub(super) struct Lane<C: Connect> {
    connect: C,
    permits: Arc<Semaphore>,
    limit: usize,
    /// Places of calls that were given up, and whose sessions the server has not ended.
    given_up: AtomicUsize,
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
        /// How many there are.
        limit: usize,
        /// How many of them belong to calls that were given up, and whose sessions the server has not ended.
        given_up: usize,
    },
    /// Connecting failed, or took longer than [`ACQUIRE_TIMEOUT`]: this is why.
    Connect(String),
}

impl<C: Connect> Lane<C> {
    /// A lane of at most `limit` connections, none of which is made yet.
    pub(super) fn new(connect: C, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            connect,
            permits: Arc::new(Semaphore::new(limit)),
            limit,
            given_up: AtomicUsize::new(0),
            idle: Mutex::new(Vec::with_capacity(limit)),
        })
    }

    /// Takes a connection, waiting for it at most [`ACQUIRE_TIMEOUT`]. Unless it is [kept](Held::keep), it is closed
    /// when it is dropped, and its place is free again once the server has ended its session.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Held<C>, TakeError> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let busy = || TakeError::Busy {
            limit: self.limit,
            given_up: self.given_up.load(Ordering::Relaxed),
        };
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let (connection, generation) =
            self.connection(deadline).await.map_err(TakeError::Connect)?;
        Ok(Held {
            connection: Some(connection),
            generation,
            lane: Arc::clone(self),
            permit: Some(permit),
        })
    }

    /// How many of its connections are in use.
    pub(super) fn in_use(&self, lane: &'static str) -> Connections {
        Connections {
            lane,
            in_use: self.limit - self.permits.available_permits(),
            limit: self.limit,
        }
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

/// A connection that is in use.
pub(super) struct Held<C: Connect> {
    connection: Option<C::Connection>,
    generation: u64,
    lane: Arc<Lane<C>>,
    // Declared last: the permit is given back after the connection is.
    permit: Option<OwnedSemaphorePermit>,
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

impl<C: Connect> Drop for Held<C> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        // Without a runtime the process ends, and nobody needs the place.
        let Ok(runtime) = Handle::try_current() else { return };
        let Some(ended) = self.lane.connect.end(connection, self.generation) else { return };
        let place = GivenUp::new(&self.lane, self.permit.take());
        runtime.spawn(async move {
            ended.await;
            drop(place);
        });
    }
}

/// The place of a call that was given up.
struct GivenUp<C: Connect> {
    lane: Arc<Lane<C>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<C: Connect> GivenUp<C> {
    fn new(lane: &Arc<Lane<C>>, permit: Option<OwnedSemaphorePermit>) -> Self {
        lane.given_up.fetch_add(1, Ordering::Relaxed);
        Self { lane: Arc::clone(lane), _permit: permit }
    }
}

impl<C: Connect> Drop for GivenUp<C> {
    fn drop(&mut self) {
        self.lane.given_up.fetch_sub(1, Ordering::Relaxed);
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
    use futures::FutureExt;
    use std::sync::atomic::AtomicU64;
    use tokio::sync::Notify;

    /// Counts its connections, has a generation that is set from outside, and ends sessions when it is told to.
    #[derive(Default)]
    struct Counted {
        made: AtomicU64,
        generation: AtomicU64,
        ended: Arc<Notify>,
    }

    impl Connect for Arc<Counted> {
        type Connection = ();

        async fn connect(&self, _: Instant) -> Result<((), u64), String> {
            self.made.fetch_add(1, Ordering::Relaxed);
            Ok(((), self.generation()))
        }

        async fn ping((): &mut ()) -> bool {
            true
        }

        async fn close((): ()) {}

        fn end(&self, (): (), _: u64) -> Option<BoxFuture<'static, ()>> {
            let ended = Arc::clone(&self.ended);
            Some(async move { ended.notified().await }.boxed())
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

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_given_up_keeps_its_place_until_its_session_has_ended() {
        let connect = Arc::new(Counted::default());
        let lane = Lane::new(Arc::clone(&connect), 2);
        drop(lane.take().await.unwrap());
        let in_use = lane.take().await.unwrap();
        let refused = lane.take().await.err();
        assert!(matches!(refused, Some(TakeError::Busy { limit: 2, given_up: 1 })), "{refused:?}");
        assert_eq!(lane.in_use("test").in_use, 2);

        connect.ended.notify_one();

        let after = lane.take().await.unwrap();
        in_use.keep();
        after.keep();
        assert_eq!((lane.in_use("test").in_use, lane.given_up.load(Ordering::Relaxed)), (0, 0));
    }
}
