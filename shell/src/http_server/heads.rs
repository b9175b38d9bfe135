//! The time limit for the head of the next request. hyper has one limit for the wait until a request
//! begins and for its head. Here the wait between two requests has its own limit: the timer that
//! hyper uses starts with the limit of an idle connection, and gets the limit of a head when the
//! first bytes arrive.
//!
//! If the first bytes of a head arrive together with the request before, they are not noticed: the
//! limit of an idle connection applies to the rest of this head.

use hyper::rt::{Sleep, Timer};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

/// What is known about the requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Whether the connection has had a request.
    is_used: AtomicBool,
    /// Whether bytes arrived since the server began to wait for the next request.
    has_begun: AtomicBool,
}

impl Heads {
    pub(super) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    pub(super) fn request(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }
}

/// The timer of one connection. hyper starts it when it begins to wait for a request.
#[derive(Debug)]
pub(super) struct HeadTimer {
    pub(super) heads: Arc<Heads>,
    /// The limit for a head, from its first byte. Also for the first byte of the connection.
    pub(super) head: Duration,
    /// The limit for the wait between two requests.
    pub(super) idle: Duration,
}

impl Timer for HeadTimer {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        self.heads.has_begun.store(false, Ordering::Relaxed);
        let limit = if self.heads.is_used() { self.idle } else { self.head };
        Box::pin(HeadWait {
            sleep: Box::pin(sleep(limit)),
            heads: Arc::clone(&self.heads),
            head: self.head,
            has_begun: false,
        })
    }

    fn sleep_until(&self, _: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(self.head)
    }
}

/// Completes when the limit for the next request is reached.
struct HeadWait {
    sleep: Pin<Box<tokio::time::Sleep>>,
    heads: Arc<Heads>,
    head: Duration,
    has_begun: bool,
}

impl Sleep for HeadWait {}

impl Future for HeadWait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !self.has_begun && self.heads.has_begun.load(Ordering::Relaxed) {
            self.has_begun = true;
            let head = self.head;
            self.sleep.set(sleep(head));
        }
        self.sleep.as_mut().poll(context)
    }
}

/// A stream that notices when bytes arrive.
#[derive(Debug)]
pub(super) struct Noticed<S> {
    pub(super) stream: S,
    pub(super) heads: Arc<Heads>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noticed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.heads.has_begun.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noticed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
