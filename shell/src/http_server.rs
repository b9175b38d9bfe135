//! The HTTP server: HTTP/1.1 over TCP, with limits.
//!
//! Responses that hyper sends by itself have no problem body: 400 to a request that is not HTTP,
//! and 431 to a head that is too long. (A target alone cannot reach the length at which hyper
//! answers 414.) A client whose header section does not arrive in time gets 408, and its connection
//! is closed. A new connection that sends nothing is closed without a response after the same time,
//! and one that sends nothing between two requests after [`ServerLimits::idle_timeout`]. The kernel
//! closes the connection of a peer that does not receive its responses.
//!
//! At [`ServerLimits::max_connections`], a new connection waits, and later ones wait in the
//! kernel's accept queue. To make room, keep-alive connections close after their current request,
//! and connections that sent no request within `GRACE` are closed. Some of the requests whose body
//! has been incomplete for longest, and for longer than `GRACE`, are answered 503. So idle and slow
//! connections cannot starve new ones.
//!
//! When the server closes, connections that wait in the accept queue are accepted, and each
//! connection may send another request within `LAST_REQUEST`. So a request that is on its way is
//! answered. Every response says that the connection closes.
//!
//! Not here: routes (see [`crate::http`]).

mod again;
mod heads;

use crate::headers::MAX_HEADERS;
use crate::http::problem::{MEDIA_TYPE, ProblemKind};
use crate::shedding::{Connections, Progress, Watched};
use again::Again;
use heads::{HeadTimer, Heads, Noticed};
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::{Body, Incoming};
use hyper::rt::Timer;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
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

/// Maximum bytes of a request line with its header section.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Maximum bytes that are buffered for one connection, in each direction. So a request's query and
/// headers have fewer.
pub const MAX_BUFFER_BYTES: usize = 64 << 10;
/// How long a peer may leave sent bytes unacknowledged, or its receive window closed.
#[cfg(target_os = "linux")]
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the server still reads from a connection after its last response, so that the peer can
/// receive that response. Closing a socket with unread bytes makes the kernel reset the connection,
/// which can destroy the response in transit.
const LINGER: Duration = Duration::from_secs(1);
/// How long a connection without a first request is kept while all connections are in use. Clients
/// that connect to post send their request immediately.
const GRACE: Duration = Duration::from_millis(500);
/// When a new connection waits and request bodies are late, up to one in this number of connections
/// is closed. Several are closed at a time, so that a flood of slow senders does not delay each new
/// connection.
const SHED_ONE_IN: usize = 16;
/// When the server closes, the time for a request that a client has just sent on a connection. A
/// connection without a request is closed after it.
const LAST_REQUEST: Duration = Duration::from_millis(200);
/// As `LINGER`, for a connection that was closed to make room.
const SHORT_LINGER: Duration = Duration::from_millis(200);
/// Pause after an accept failed because a resource was exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Maximum number of open connections. At least 1.
    pub max_connections: usize,
    /// Timeout for the header section of a request, and for a new connection without a request.
    pub header_read_timeout: Duration,
    /// Timeout for the next request on a connection that has had one.
    pub idle_timeout: Duration,
}

/// The HTTP/1.1 settings of this server, for any I/O and timer.
pub fn protocol(
    timer: impl Timer + Send + Sync + 'static,
    header_read_timeout: Duration,
) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(timer)
        .header_read_timeout(header_read_timeout)
        // A client may close its sending side after its request, as `nc -N` does, and wait for the
        // response.
        .half_close(true)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES);
    builder
}

/// Serves `service` on `listener` until `shutdown` completes, and then until the requests in flight
/// are answered. Its result is the time for this. Then they are aborted.
///
/// For warp routes, `service` is `TowerToHyperService::new(warp::service(routes))`. For the routes
/// of this program, it is [`crate::http::service`].
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    limits: ServerLimits,
    shutdown: impl Future<Output = Duration>,
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
    let (call, _) = watch::channel(Call::MakeRoom);
    let mut connections = JoinSet::new();
    let mut progress = Connections::default();
    let mut shutdown = pin!(shutdown);
    let is_closing = Arc::new(AtomicBool::new(false));
    let spawn = |connections: &mut JoinSet<()>, progress: &mut Connections, stream: TcpStream| {
        set_up(&stream);
        let progress = progress.add(limits.max_connections);
        connections.spawn(Again::new(connection(
            stream,
            Arc::clone(&service),
            limits,
            call.subscribe(),
            Arc::clone(&is_closing),
            progress,
        )));
    };
    let time_left = 'accepting: loop {
        let stream = tokio::select! {
            biased;
            time_left = &mut shutdown => break time_left,
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
                "connection limit reached; closing idle connections"
            );
            call.send_replace(Call::MakeRoom);
            progress.shed(limits.max_connections.div_ceil(SHED_ONE_IN), GRACE);
            tokio::select! {
                biased;
                time_left = &mut shutdown => {
                    // Its client may have sent a request, so it is served above the limit.
                    spawn(&mut connections, &mut progress, stream);
                    break 'accepting time_left;
                }
                Some(ended) = connections.join_next() => reap(ended),
                () = sleep(GRACE) => {}
            }
        }
        spawn(&mut connections, &mut progress, stream);
    };
    for stream in waiting(listener).take(limits.max_connections.saturating_sub(connections.len())) {
        spawn(&mut connections, &mut progress, stream);
    }
    is_closing.store(true, Ordering::Relaxed);
    call.send_replace(Call::ShutDown);
    let all_end = async {
        while let Some(ended) = connections.join_next().await {
            reap(ended);
        }
    };
    if timeout(time_left, all_end).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "the time for requests in flight is over; aborting them"
        );
        connections.shutdown().await;
    }
}

/// A command to all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// A connection that has served a request finishes the current one and closes. One that is late
    /// with its first request closes.
    MakeRoom,
    /// Every connection finishes its current request, or one that arrives within `LAST_REQUEST`, and
    /// closes.
    ShutDown,
}

/// Closes a listener. Returns the connections that waited in its accept queue. The kernel would reset
/// them, although a client may have sent a request already.
fn waiting(listener: TcpListener) -> impl Iterator<Item = TcpStream> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        // The listener does not block. The queue is empty, or closing the listener ends it.
        let (stream, _) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        TcpStream::from_std(stream).ok()
    })
}

fn reap(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "connection task panicked; its requests were not answered");
    }
}

/// Pauses after an accept error, unless the connection was closed before it was accepted. Other
/// errors mean that file descriptors or memory are exhausted. An immediate retry would only use
/// processor time.
async fn rest_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
    {
        return;
    }
    tracing::warn!(%error, "cannot accept connections; retrying in {} ms", ACCEPT_PAUSE.as_millis());
    sleep(ACCEPT_PAUSE).await;
}

fn set_up(stream: &TcpStream) {
    // Both calls fail only on a closed socket. Reading from it reports that.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(PEER_TIMEOUT));
}

/// What the timer of a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// The connection is new. It is not closed to make room.
    FirstRequest,
    /// The server closes.
    LastRequest,
}

async fn connection<S, B>(
    stream: TcpStream,
    service: Arc<S>,
    limits: ServerLimits,
    mut call: watch::Receiver<Call>,
    is_closing: Arc<AtomicBool>,
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
    let heads = Arc::new(Heads::default());
    let timer = HeadTimer {
        heads: Arc::clone(&heads),
        head: limits.header_read_timeout,
        idle: limits.idle_timeout,
    };
    let (mut wait, mut waits_for) = (pin!(sleep(GRACE)), Some(Wait::FirstRequest));
    let mut connection = protocol(timer, limits.header_read_timeout).serve_connection(
        TokioIo::new(Noticed { stream, heads: Arc::clone(&heads) }),
        hyper::service::service_fn({
            let (heads, progress) = (Arc::clone(&heads), Arc::clone(&progress));
            move |request: Request<Incoming>| {
                heads.request();
                let request = request.map(|body| Watched::new(body, Arc::clone(&progress)));
                let (answer, is_closing) = (service.call(request), Arc::clone(&is_closing));
                Box::pin(async move {
                    let mut response = answer.await?;
                    if is_closing.load(Ordering::Relaxed) {
                        response
                            .headers_mut()
                            .insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok(response)
                }) as Pin<Box<dyn Future<Output = Result<_, Infallible>> + Send>>
            }
        }),
    );
    let mut listening = true;
    let ended = loop {
        tokio::select! {
            biased;
            // First, so that a request that has arrived is answered before its connection closes.
            ended = &mut connection => break Some(ended),
            called = call.changed(), if listening => {
                listening = called.is_ok() && *call.borrow() != Call::ShutDown;
                if !listening {
                    wait.set(sleep(LAST_REQUEST));
                    waits_for = Some(Wait::LastRequest);
                } else if heads.is_used() {
                    Pin::new(&mut connection).graceful_shutdown();
                } else if waits_for.is_none() {
                    break None;
                }
            }
            () = &mut wait, if waits_for.is_some() => {
                if waits_for.take() == Some(Wait::LastRequest) {
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
    };
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner().stream;
    let late = match ended {
        // No bytes were exchanged, so there is no response to wait for. The connection is closed at
        // once to make room.
        None if parts.read_buf.is_empty() => return,
        None => true,
        Some(ended) => {
            let late = ended.as_ref().is_err_and(hyper::Error::is_timeout);
            if let Err(error) = ended {
                tracing::debug!(%error, "connection failed");
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

/// The response to a header section that did not arrive in time. hyper sends none.
fn headers_too_slow() -> Vec<u8> {
    let problem =
        ProblemKind::TooSlow.with("The request's header section did not arrive in time.").to_json();
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
    async fn connections_send_without_delay_and_time_out_on_a_stalled_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        set_up(&stream);
        assert!(stream.nodelay().unwrap());
        assert_eq!(socket2::SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(PEER_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "the time of the test is virtual")]
    async fn accepting_pauses_only_while_a_resource_is_exhausted() {
        let begun = tokio::time::Instant::now();
        rest_after(&io::ErrorKind::ConnectionAborted.into()).await;
        assert!(begun.elapsed().is_zero());
        rest_after(&nix::errno::Errno::EMFILE.into()).await;
        assert_eq!(begun.elapsed(), ACCEPT_PAUSE);
    }
}
