//! HTTP over the simulated network: a client that sends one request on one connection, and a server
//! for any hyper service.

use crate::clock::SimTimer;
use bytes::Bytes;
use futures::{FutureExt, select_biased};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use madsim::net::{TcpListener, TcpStream};
use madsim::task::JoinHandle;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use surehook::process::Stop;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The addresses of the nodes.
pub(crate) const DATABASE: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 5432);

pub(crate) fn process(index: usize) -> SocketAddr {
    address(1, index, 8080)
}

pub(crate) fn downstream(index: usize) -> SocketAddr {
    address(2, index, 80)
}

pub(crate) fn producers() -> IpAddr {
    address(3, 0, 0).ip()
}

fn address(net: u8, index: usize, port: u16) -> SocketAddr {
    let [high, low] = u16::try_from(index + 1)
        .expect("there are fewer than 65,536 nodes of a kind")
        .to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, high, net, low)), port)
}

/// A simulated stream that flushes only if something was written. The inner stream's flush always
/// sends an empty packet. It wakes the peer, whose hyper flushes in turn, so two idle ends would
/// wake each other endlessly.
struct Stream {
    stream: TcpStream,
    unflushed: bool,
}

impl Stream {
    fn io(stream: TcpStream) -> TokioIo<Self> {
        TokioIo::new(Self { stream, unflushed: false })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::take(&mut self.unflushed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Closes the connection on drop, as when its process is killed.
pub(crate) struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends one request on its own connection. The connection stays open until the guard is dropped.
pub(crate) async fn send(
    to: SocketAddr,
    request: Request<impl Body<Data = Bytes, Error = Infallible> + Send + 'static>,
) -> Result<(Response<Incoming>, Connection), SendError> {
    let stream = TcpStream::connect(to).await.map_err(SendError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(Stream::io(stream))
        .await
        .map_err(|_| SendError::Http)?;
    let connection = Connection(madsim::task::spawn(async move {
        // The sender gets every error from its request.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(|_| SendError::Http)?;
    Ok((response, connection))
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum SendError {
    Connect(io::Error),
    Http,
}

/// How long a server waits for the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds the address. Tries again while the socket of a killed predecessor still exists.
pub(crate) async fn listen(at: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(at).await {
            Ok(listener) => return listener,
            Err(_) => crate::timer::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Serves an accepted connection to its end or, after `stop` completes, to the end of the current
/// request.
pub(crate) async fn serve_until<S, B>(stream: TcpStream, service: S, stop: Stop)
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let builder = surehook::http_server::protocol(SimTimer, HEADER_TIMEOUT);
    let mut connection = std::pin::pin!(builder.serve_connection(Stream::io(stream), service));
    let mut stop = stop;
    let ended = select_biased! {
        ended = connection.as_mut().fuse() => Some(ended),
        _ = stop => None,
    };
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
