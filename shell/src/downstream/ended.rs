//! Connections with a limit for their opening. They remember why TLS ended them, and they do not lose
//! a response that came before a reset.
//!
//! A destination that refuses a large body may answer, and close the connection, while the body is
//! still being sent. The write then fails, although the response can still be read. hyper would report
//! the failed write, so the connection does not: what is read next is the response, or the end of the
//! connection.
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
        Pin::new(&mut self.stream)
            .poll_write(context, bytes)
            .map(|written| unless_closed(written, bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS writes here, too.
        Pin::new(&mut self.stream).poll_flush(context).map(|flushed| unless_closed(flushed, ()))
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
        let bytes = buffers.iter().map(|buffer| buffer.len()).sum();
        Pin::new(&mut self.stream)
            .poll_write_vectored(context, buffers)
            .map(|written| unless_closed(written, bytes))
    }
}

/// The result of a write, or `done` if the destination has closed the connection: the bytes are dropped.
fn unless_closed<T>(written: io::Result<T>, done: T) -> io::Result<T> {
    match written {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(done)
        }
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{Request, StatusCode};
    use http_body_util::Full;
    use hyper_util::client::legacy;
    use hyper_util::rt::TokioExecutor;
    use std::future::ready;

    /// A connection that was reset after the destination had sent these bytes.
    struct Reset {
        unread: &'static [u8],
        /// The client reads only after a write has failed.
        is_noticed: bool,
    }

    impl Read for Reset {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            mut buffer: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.is_noticed {
                return Poll::Pending;
            }
            let (now, later) = self.unread.split_at(self.unread.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.unread = later;
            Poll::Ready(Ok(()))
        }
    }

    impl Write for Reset {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.is_noticed = true;
            context.waker().wake_by_ref();
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Connection for Reset {
        fn connected(&self) -> Connected {
            Connected::new()
        }
    }

    /// Opens such connections.
    #[derive(Clone)]
    struct Opens(&'static [u8]);

    impl Service<Uri> for Opens {
        type Response = Reset;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<Reset>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Uri) -> Self::Future {
            ready(Ok(Reset { unread: self.0, is_noticed: false }))
        }
    }

    async fn response(unread: &'static [u8]) -> Result<StatusCode, legacy::Error> {
        let connector = Connector::new(Opens(unread), Duration::from_secs(20));
        let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
        let request = Request::post("http://refuses.test/").body(Full::new(Bytes::from("body")));
        let response = client.request(request.unwrap());
        Ok(timeout(Duration::from_secs(20), response).await.expect("it ends")?.status())
    }

    #[tokio::test]
    async fn a_response_that_came_before_a_reset_is_read() {
        let refusal = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(response(refusal).await.unwrap(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn a_reset_without_a_response_is_an_incomplete_message() {
        let error = response(b"").await.unwrap_err();
        let cause = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
        assert!(cause.is_some_and(hyper::Error::is_incomplete_message), "{error:?}");
    }
}
