//! Chooses the connections to close when all are in use. The body of each request is watched, so
//! that the connections of slow senders can be closed.
//!
//! Not here: memory for bodies. The intake manages it (see [`surehook_core::reading`]).

use futures::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// The progress of the current request of one connection.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Start of the current body. `None` while no body is incomplete.
    reading_since: Mutex<Option<Instant>>,
    gives_way: AtomicBool,
    waker: AtomicWaker,
}

impl Progress {
    /// Whether the connection must close to make room.
    pub(crate) fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Relaxed)
    }

    fn reads_since(&self) -> Option<Instant> {
        *self.reading_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, since: Option<Instant>) {
        *self.reading_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// The connections of one server. Bounded by their number: entries of closed connections are
/// removed when new ones are added.
#[derive(Debug, Default)]
pub(crate) struct Connections(Vec<Weak<Progress>>);

impl Connections {
    /// Adds a connection. `most` is the maximum number of open connections.
    pub(crate) fn add(&mut self, most: usize) -> Arc<Progress> {
        if self.0.len() >= most.saturating_mul(2) {
            self.0.retain(|progress| progress.strong_count() > 0);
        }
        let progress = Arc::new(Progress::default());
        self.0.push(Arc::downgrade(&progress));
        progress
    }

    /// Marks connections to close: at most `most` of those whose request body has been incomplete
    /// for at least `grace`, the oldest first. Returns their number.
    pub(crate) fn shed(&mut self, most: usize, grace: Duration) -> usize {
        let reading =
            self.0.iter().filter_map(Weak::upgrade).filter(|progress| !progress.gives_way());
        let mut slow: Vec<_> =
            reading.filter_map(|progress| Some((progress.reads_since()?, progress))).collect();
        slow.retain(|(since, _)| since.elapsed() >= grace);
        slow.sort_by_key(|(since, _)| *since);
        slow.truncate(most);
        for (_, progress) in &slow {
            progress.gives_way.store(true, Ordering::Relaxed);
            progress.waker.wake();
        }
        slow.len()
    }
}

/// The rest of the body did not arrive, and the connection is closed to make room for others.
#[derive(Debug)]
pub(crate) struct GaveWay;

impl fmt::Display for GaveWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body arrived too slowly while all connections were in use")
    }
}

impl Error for GaveWay {}

/// Whether an error has [`GaveWay`] as its cause.
pub(crate) fn is_gave_way(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<GaveWay>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A request body whose progress is watched.
#[derive(Debug)]
pub struct Watched<B> {
    body: B,
    progress: Arc<Progress>,
}

impl<B: Body> Watched<B> {
    pub(crate) fn new(body: B, progress: Arc<Progress>) -> Self {
        progress.set((!body.is_end_stream()).then(Instant::now));
        Self { body, progress }
    }
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        self.progress.set(None);
    }
}

impl<B> Body for Watched<B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        self.progress.waker.register(context.waker());
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending() && self.progress.gives_way() {
            return Poll::Ready(Some(Err(Box::new(GaveWay))));
        }
        if matches!(polled, Poll::Ready(None)) {
            self.progress.set(None);
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
