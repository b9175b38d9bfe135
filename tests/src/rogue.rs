//! A downstream that violates the protocol: it reads a request, and then follows a script on the
//! raw socket.
//!
//! For downstreams that speak HTTP, see [`crate::sink`].

use crate::recording::Recording;
use crate::sink::Received;
use bytes::Bytes;
use http::Uri;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use surehook_model::history::What;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A small send buffer, so that the number of bytes written is close to the number that the other
/// side read.
const SEND_BUFFER_BYTES: u32 = 16 << 10;

/// The pause between the writes of a flood. Without it the flood would overload the test itself.
const BREATH: Duration = Duration::from_millis(1);

/// The steps to perform. Afterwards the connection is closed.
///
/// A script with a complete response says `Connection: close`. Otherwise a client can take the
/// connection for its next request before it sees that it is closed, and that request fails.
#[derive(Clone, Debug, Default)]
pub struct Script {
    steps: Vec<Step>,
    reply: Option<(u16, Option<Duration>)>,
}

#[derive(Clone, Debug)]
enum Step {
    Say(Bytes),
    Drip(Bytes, Duration),
    Flood(Bytes, u64),
    Hang,
    Reset,
}

impl Script {
    /// Sends these bytes.
    #[must_use]
    pub fn say(self, bytes: impl Into<Bytes>) -> Self {
        self.then(Step::Say(bytes.into()))
    }

    /// Sends these bytes one by one, with this interval.
    #[must_use]
    pub fn drip(self, bytes: impl Into<Bytes>, every: Duration) -> Self {
        self.then(Step::Drip(bytes.into(), every))
    }

    /// Sends the same bytes `times` times, at most 1000 times a second.
    #[must_use]
    pub fn flood(self, bytes: impl Into<Bytes>, times: u64) -> Self {
        self.then(Step::Flood(bytes.into(), times))
    }

    /// Does nothing until the other side closes.
    #[must_use]
    pub fn hang(self) -> Self {
        self.then(Step::Hang)
    }

    #[must_use]
    pub fn reset(self) -> Self {
        self.then(Step::Reset)
    }

    /// The reply that a client must derive from all this: a status code, and a time to wait.
    /// Without this call the client must see no complete reply.
    #[must_use]
    pub fn replies(self, status_code: u16, retry_after: Option<Duration>) -> Self {
        Self { reply: Some((status_code, retry_after)), ..self }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// A downstream that follows one script for each request, each on its own connection, until it is
/// dropped.
#[derive(Debug)]
pub struct Rogue {
    address: SocketAddr,
    tally: Arc<Tally>,
    server: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Tally {
    requests: AtomicUsize,
    most_taken: AtomicU64,
}

impl Rogue {
    /// Starts to listen on a free port of the loopback interface. Its requests and replies are part
    /// of the run.
    ///
    /// # Panics
    ///
    /// If there is no free port, or outside of a runtime.
    pub fn start(
        recording: &Recording,
        script: impl Fn(&Received) -> Script + Send + Sync + 'static,
    ) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // Accepted connections inherit the buffer size.
        socket.set_send_buffer_size(SEND_BUFFER_BYTES).expect("a socket has a send buffer");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let listener = socket.listen(1024).expect("a bound socket can listen");
        let address = listener.local_addr().expect("a bound socket has an address");
        let tally = Arc::new(Tally::default());
        let server =
            tokio::spawn(serve(listener, recording.clone(), Arc::new(script), Arc::clone(&tally)));
        Self { address, tally, server }
    }

    /// The URL of a path of this downstream.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The number of requests so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tally.requests.load(Ordering::Relaxed)
    }

    /// The most bytes that one connection accepted, including those in kernel buffers.
    #[must_use]
    pub fn most_taken(&self) -> u64 {
        self.tally.most_taken.load(Ordering::Relaxed)
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve<F>(listener: TcpListener, recording: Recording, script: Arc<F>, tally: Arc<Tally>)
where
    F: Fn(&Received) -> Script + Send + Sync + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (recording, script, tally) =
            (recording.clone(), Arc::clone(&script), Arc::clone(&tally));
        connections
            .spawn(async move { connection(stream, &recording, script.as_ref(), &tally).await });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    mut stream: TcpStream,
    recording: &Recording,
    script: &impl Fn(&Received) -> Script,
    tally: &Tally,
) {
    // A connection that ends before its request is complete is ignored.
    let Ok((received, body)) = request(&mut stream).await else { return };
    tally.requests.fetch_add(1, Ordering::Relaxed);
    let request = received.record(recording, &body);
    let Script { steps, reply } = script(&received);
    if let Some((status_code, retry_after)) = reply {
        recording.record(What::Replied { request, status_code, retry_after });
    }
    let mut taken = Taken { bytes: 0, most: &tally.most_taken };
    for step in steps {
        // The other side can close at any time. Then the remaining steps are skipped.
        if play(&mut stream, step, &mut taken).await.is_err() {
            break;
        }
    }
}

/// The bytes that one connection accepted, for the tally.
struct Taken<'a> {
    bytes: u64,
    most: &'a AtomicU64,
}

impl Taken<'_> {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.most.fetch_max(self.bytes, Ordering::Relaxed);
    }
}

async fn request(stream: &mut TcpStream) -> io::Result<(Received, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(request) = parse(&bytes) {
            return Ok(request);
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The request, once it is complete. Every delivery declares its length.
fn parse(bytes: &[u8]) -> Option<(Received, Vec<u8>)> {
    let mut slots = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut slots);
    let httparse::Status::Complete(head) = request.parse(bytes).expect("the program speaks HTTP")
    else {
        return None;
    };
    let headers: Vec<(String, Vec<u8>)> = request
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), header.value.to_vec()))
        .collect();
    let length = headers
        .iter()
        .find(|header| header.0 == "content-length")
        .expect("the program declares its bodies' length");
    let length: usize = String::from_utf8_lossy(&length.1).parse().expect("a length is a number");
    let body = bytes.get(head..head + length)?.to_vec();
    let target: Uri = request.path.and_then(|path| path.parse().ok()).unwrap_or_default();
    Some((Received::new(&target, headers, &body), body))
}

async fn play(stream: &mut TcpStream, step: Step, taken: &mut Taken<'_>) -> io::Result<()> {
    match step {
        Step::Say(bytes) => say(stream, &bytes, taken).await,
        Step::Drip(bytes, every) => {
            for byte in bytes.chunks(1) {
                say(stream, byte, taken).await?;
                // Waiting for the next byte also detects immediately that the other side has
                // closed.
                if let Ok(gone) = tokio::time::timeout(every, until_gone(stream)).await {
                    return gone;
                }
            }
            Ok(())
        }
        Step::Flood(bytes, times) => {
            for _ in 0..times {
                say(stream, &bytes, taken).await?;
                tokio::time::sleep(BREATH).await;
            }
            Ok(())
        }
        Step::Hang => until_gone(stream).await,
        Step::Reset => {
            stream.set_zero_linger()?;
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
}

async fn say(stream: &mut TcpStream, mut bytes: &[u8], taken: &mut Taken<'_>) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = stream.write(bytes).await?;
        taken.add(written);
        bytes = &bytes[written..];
    }
    Ok(())
}

async fn until_gone(stream: &mut TcpStream) -> io::Result<()> {
    let mut ignored = [0; 1024];
    while stream.read(&mut ignored).await? > 0 {}
    Err(io::ErrorKind::UnexpectedEof.into())
}
