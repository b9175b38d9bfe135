//! The downstream. It answers at once, or after a delay, and records how long each event was in
//! transit. It reads from sockets directly, for the same reason as the load generator.

use super::clock;
use super::offer::{SENT, content_length, histogram};
use hdrhistogram::Histogram;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// How the downstream answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// The delay before each answer.
    pub delay: Duration,
    /// The percentage of events whose first attempt is refused.
    pub refused_at_first: u64,
}

/// What the downstream has received.
#[derive(Debug)]
pub struct Received {
    /// Requests that were accepted.
    pub taken: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// The times of the first and of the last request.
    pub span: Option<(Instant, Instant)>,
    /// From the post to the request here, in nanoseconds, for accepted requests.
    pub latency: Histogram<u64>,
}

impl Received {
    fn new() -> Self {
        Self { taken: 0, refused: 0, span: None, latency: histogram() }
    }

    /// A quantile of the latency, in milliseconds.
    #[must_use]
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }

    /// Accepted requests a second, between the first and the last.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.span.map_or(0.0, |(first, last)| self.taken as f64 / (last - first).as_secs_f64())
    }
}

#[derive(Debug)]
pub struct Sink {
    pub address: SocketAddr,
    received: Arc<Mutex<Received>>,
    is_down: Arc<AtomicBool>,
    server: JoinHandle<()>,
}

impl Sink {
    /// Starts it on a free port.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let received = Arc::new(Mutex::new(Received::new()));
        let is_down = Arc::new(AtomicBool::new(false));
        let shared = (Arc::clone(&received), Arc::clone(&is_down));
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, manners, Arc::clone(&shared.0), Arc::clone(&shared.1)));
            }
        });
        Self { address, received, is_down, server }
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every request is answered with 503, or again as the manners say.
    pub fn refuse_all(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    /// The number of requests accepted since the last [`Self::take`].
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.received().taken
    }

    /// Returns what was received since the last call, and starts counting anew.
    #[expect(clippy::must_use_candidate, reason = "callers also use it to start counting anew")]
    pub fn take(&self) -> Received {
        std::mem::replace(&mut *self.received(), Received::new())
    }

    /// Waits until this number of requests was accepted since the last [`Self::take`].
    ///
    /// # Panics
    ///
    /// If they are not accepted within `time_limit`.
    pub async fn until_taken(&self, count: u64, time_limit: Duration) {
        let deadline = Instant::now() + time_limit;
        while self.taken() < count {
            assert!(
                Instant::now() < deadline,
                "{} of {count} were delivered within {time_limit:?}",
                self.taken()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    mut socket: TcpStream,
    manners: Manners,
    received: Arc<Mutex<Received>>,
    is_down: Arc<AtomicBool>,
) {
    socket.set_nodelay(true).expect("a socket option");
    let mut buffer = Vec::with_capacity(8192);
    while let Some(request) = read_request(&mut socket, &mut buffer).await {
        if !manners.delay.is_zero() {
            sleep(manners.delay).await;
        }
        let refused = is_down.load(Ordering::Relaxed)
            || (request.attempt == 1 && request.event % 100 < manners.refused_at_first);
        let answer: &[u8] = if refused {
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        };
        {
            let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
            if refused {
                received.refused += 1;
            } else {
                received.taken += 1;
                received.latency.saturating_record(clock::nanos().saturating_sub(request.sent));
            }
            let now = Instant::now();
            received.span = Some(received.span.map_or((now, now), |(first, _)| (first, now)));
        }
        if socket.write_all(answer).await.is_err() {
            return;
        }
    }
}

struct Request {
    sent: u64,
    attempt: u64,
    /// The last 32 bits of the event's id.
    event: u64,
}

/// The next request on a connection, or `None` once it is closed.
async fn read_request(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if let Ok(httparse::Status::Complete(head)) = request.parse(buffer) {
            let end = head + content_length(request.headers);
            if buffer.len() >= end {
                let value = |name: &str| {
                    let header = request
                        .headers
                        .iter()
                        .find(|header| header.name.eq_ignore_ascii_case(name));
                    header
                        .and_then(|header| std::str::from_utf8(header.value).ok())
                        .unwrap_or_default()
                };
                let id = value("surehook-event-id");
                let tail = id
                    .get(id.len().saturating_sub(8)..)
                    .and_then(|tail| u64::from_str_radix(tail, 16).ok());
                let read = Request {
                    sent: value(SENT).parse().unwrap_or_default(),
                    attempt: value("surehook-attempt").parse().unwrap_or_default(),
                    event: tail.unwrap_or_default(),
                };
                buffer.drain(..end);
                return Some(read);
            }
        }
        if !matches!(socket.read_buf(buffer).await, Ok(1..)) {
            return None;
        }
    }
}
