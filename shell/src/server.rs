//! The server that carries the HTTP surface: HTTP/1.1 over TCP, within bounds.
//!
//! What hyper answers by itself has no problem body: a bare 400 to what is not HTTP, 431 to too long a head (a target
//! alone cannot get to where hyper answers 414). A sender whose header section does not arrive in time gets a 408 and is closed; a connection
//! that sends nothing, at its start or between two requests, is closed without a word after the same time, so no
//! connection can idle for longer. A peer that does not take its responses is cut off by the kernel.
//!
//! When [`ServerLimits::max_connections`] are open and one more comes, those that have been served before finish what
//! they are at and close, and those that have had `GRACE` for their first request and not sent it are closed, so
//! that neither kept nor silent connections can starve new ones. So do some of those whose request's body has been awaited for
//! longest, if that is longer than `GRACE`: they are answered 503. The newcomer waits until there is room, and those behind
//! it wait in the kernel's queue.
//!
//! Not here: routes (see [`crate::http`]).

use crate::headers::MAX_HEADERS;
use crate::http::problem::{Kind, MEDIA_TYPE};
use crate::shedding::{Connections, Progress, Watched};
use hyper::body::{Body, Incoming};
use hyper::rt::Timer;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

/// The most bytes of a request's line and header section.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// The most bytes that are buffered for one connection, in each direction.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// How long a peer may leave sent bytes unacknowledged, or its receive window closed.
#[cfg(target_os = "linux")]
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an ended connection is still read from, so that the peer gets to see the last answer: closing a socket
/// with unread bytes makes the kernel reset the connection, which can destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(1);
/// How long a connection that has not sent its first request keeps its place when there are no others. Whoever connects
/// to post does so at once.
const GRACE: Duration = Duration::from_millis(500);
/// Of so many connections, one gives its place up when one more comes and the bodies of requests are late. More than one at
/// a time, so that a flood of slow senders does not make each newcomer wait.
const SHED_ONE_IN: usize = 16;
/// How long a connection that gave its place up is still read from.
const SHORT_LINGER: Duration = Duration::from_millis(200);
/// How long accepting rests after it failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What bounds the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections open at once. At least 1.
    pub max_connections: usize,
    /// How long a request's header section may take, and how long a connection may idle.
    pub header_read_timeout: Duration,
    /// How long requests in flight may take after the shutdown has begun; then they are cut off.
    pub drain_timeout: Duration,
}

/// How this server speaks HTTP/1.1, for any IO and timer.
pub fn protocol(
    timer: impl Timer + Send + Sync + 'static,
    header_read_timeout: Duration,
) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(timer)
        .header_read_timeout(header_read_timeout)
        // A client may close its sending side behind its request, as `nc -N` does, and wait for the answer.
        .half_close(true)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES);
    builder
}

/// Serves `service` on `listener` until `shutdown` completes, and then until the requests in flight are answered or
/// [`ServerLimits::drain_timeout`] is over.
///
/// For warp routes, `service` is `TowerToHyperService::new(warp::service(routes))`; for those of this program,
/// [`crate::http::service`].
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    limits: ServerLimits,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Watched<Incoming>>, Response = Response<B>, Error = Infallible>
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let service = Arc::new(service);
    let protocol = protocol(TokioTimer::new(), limits.header_read_timeout);
    let (call, _) = watch::channel(Call::MakeRoom);
    let mut connections = JoinSet::new();
    let mut progress = Connections::default();
    let mut shutdown = pin!(shutdown);
    'accepting: loop {
        let stream = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                reap(ended);
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    rest_after(&error).await;
                    continue;
                }
            },
        };
        while connections.len() >= limits.max_connections {
            tracing::debug!(
                connections = connections.len(),
                "no connection is free: asking the idle ones to close"
            );
            call.send_replace(Call::MakeRoom);
            progress.shed(limits.max_connections.div_ceil(SHED_ONE_IN), GRACE);
            tokio::select! {
                biased;
                () = &mut shutdown => break 'accepting,
                Some(ended) = connections.join_next() => reap(ended),
                () = sleep(GRACE) => {}
            }
        }
        set_up(&stream);
        let progress = progress.add(limits.max_connections);
        connections.spawn(connection(
            stream,
            Arc::clone(&service),
            protocol.clone(),
            call.subscribe(),
            progress,
        ));
    }
    drop(listener);
    call.send_replace(Call::ShutDown);
    let all_end = async {
        while let Some(ended) = connections.join_next().await {
            reap(ended);
        }
    };
    if timeout(limits.drain_timeout, all_end).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "cutting off requests that are still in flight after the drain time-out"
        );
        connections.shutdown().await;
    }
}

/// What the connections are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// Whoever has been served before: finish and close. Whoever should have sent something by now: close.
    MakeRoom,
    /// All: finish and close.
    ShutDown,
}

fn reap(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection ended in a panic; its requests were not answered");
    }
}

/// A connection that broke before it was accepted is nobody's fault. All else is a want of files or memory, which
/// passes or does not, and trying again at once would only burn the processor.
async fn rest_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
    {
        return;
    }
    tracing::warn!(%error, "cannot accept connections; trying again in {} ms", ACCEPT_PAUSE.as_millis());
    sleep(ACCEPT_PAUSE).await;
}

fn set_up(stream: &TcpStream) {
    // Both only fail on a socket that is already dead, which reading then tells.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(PEER_TIMEOUT));
}

async fn connection<S, B>(
    stream: TcpStream,
    service: Arc<S>,
    protocol: http1::Builder,
    mut call: watch::Receiver<Call>,
    progress: Arc<Progress>,
) where
    S: Service<Request<Watched<Incoming>>, Response = Response<B>, Error = Infallible>
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let served = Arc::new(AtomicBool::new(false));
    let (mut grace, mut in_grace) = (pin!(sleep(GRACE)), true);
    let mut connection = protocol.serve_connection(
        TokioIo::new(stream),
        hyper::service::service_fn({
            let (served, progress) = (Arc::clone(&served), Arc::clone(&progress));
            move |request: Request<Incoming>| {
                served.store(true, Ordering::Relaxed);
                let request = request.map(|body| Watched::new(body, Arc::clone(&progress)));
                Box::pin(service.call(request)) as Pin<Box<dyn Future<Output = _> + Send>>
            }
        }),
    );
    let mut listening = true;
    let ended = loop {
        tokio::select! {
            biased;
            called = call.changed(), if listening => {
                listening = called.is_ok();
                if !listening || *call.borrow() == Call::ShutDown || served.load(Ordering::Relaxed) {
                    Pin::new(&mut connection).graceful_shutdown();
                } else if !in_grace {
                    break None;
                }
            }
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => break Some(ended),
            () = &mut grace, if in_grace => in_grace = false,
        }
    };
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    let late = match ended {
        // Nothing was said on either side: there is no answer that lingering could save, and the place is wanted.
        None if parts.read_buf.is_empty() => return,
        None => true,
        Some(ended) => {
            let late = ended.as_ref().is_err_and(hyper::Error::is_timeout);
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection failed");
            }
            late
        }
    };
    let linger = if progress.gives_way() { SHORT_LINGER } else { LINGER };
    let _ = timeout(linger, async {
        if late && !parts.read_buf.is_empty() {
            stream.write_all(&headers_too_slow()).await?;
        }
        stream.shutdown().await?;
        let mut unread = vec![0; 16 << 10];
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

/// The answer to a header section that did not arrive in time, which hyper leaves unanswered.
fn headers_too_slow() -> Vec<u8> {
    let problem =
        Kind::TooSlow.with("The request's header section did not arrive in time.").to_json();
    let mut response = format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
        problem.len()
    )
    .into_bytes();
    response.extend(problem);
    response
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_does_not_hold_answers_back_nor_wait_for_a_peer_that_takes_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        set_up(&stream);
        assert!(stream.nodelay().unwrap());
        assert_eq!(socket2::SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(PEER_TIMEOUT));
    }
}
