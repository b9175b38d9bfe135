//! Connections with a limit for their opening, which remember why TLS ended them.
//!
//! Under TLS 1.3 a destination refuses a client after the client's handshake. If its alert is read before
//! the request is passed to the connection, hyper reports only that the connection is closed. So each
//! connection remembers its TLS error.

use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::Uri;
use hyper::http::Extensions;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::timeout;
use tower_service::Service;

/// The TLS error of a connection, if there was one.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsFailure(Arc<OnceLock<rustls::Error>>);

impl TlsFailure {
    /// The TLS error of this connection.
    pub(super) fn of(connection: &Connected) -> Option<rustls::Error> {
        let mut extras = Extensions::new();
        connection.get_extras(&mut extras);
        extras.get::<Self>()?.0.get().cloned()
    }
}

/// Opens connections within a time. They remember their TLS error.
#[derive(Clone)]
pub(super) struct Connector<C> {
    inner: C,
    opened_within: Duration,
}

impl<C> Connector<C> {
    pub(super) const fn new(inner: C, opened_within: Duration) -> Self {
        Self { inner, opened_within }
    }
}

impl<C> Service<Uri> for Connector<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Error: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    type Response = Remembering<C::Response>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = timeout(self.opened_within, self.inner.call(to));
        async move {
            let stream = connecting
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "opening it took too long"))?
                .map_err(Into::into)?;
            Ok(Remembering { stream, failure: TlsFailure::default() })
        }
        .boxed()
    }
}

/// A connection that remembers its TLS error.
pub(super) struct Remembering<S> {
    stream: S,
    failure: TlsFailure,
}

impl<S: Connection> Connection for Remembering<S> {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.failure.clone())
    }
}

impl<S: Read + Unpin> Read for Remembering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if let Err(error) = &read
            && let Some(error) = error.get_ref().and_then(|error| error.downcast_ref())
        {
            // Only the first error is the reason.
            let _ = self.failure.0.set(rustls::Error::clone(error));
        }
        Poll::Ready(read)
    }
}

impl<S: Write + Unpin> Write for Remembering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}
