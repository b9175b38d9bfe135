//! A downstream made of a TCP socket. It records every request byte for byte, and reacts to each as
//! the test chose.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook::config::{Destination, Source};
use surehook::downstream::HttpDownstream;
use surehook::ports::Downstream;
use surehook_core::id::{BudgetAttempt, EventId, Fence};
use surehook_core::source::SourceName;
use surehook_core::verdict::Reply;
use surehook_core::worker::claims::Claim;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Longer than any operation in these tests takes.
pub(crate) const ENOUGH: Duration = Duration::from_secs(20);

/// The reaction of the sink to a complete request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers, and waits for the next request on this connection.
    Answer(Vec<u8>),
    /// Answers, and closes the connection.
    AnswerAndClose(Vec<u8>),
    /// Sends these bytes, and then nothing more.
    AnswerAndHang(Vec<u8>),
    /// Waits for this time, sends these bytes, and then nothing more.
    AnswerLateAndHang(Duration, Vec<u8>),
    /// Sends these bytes, and then one byte every few milliseconds without end.
    Drip(Vec<u8>),
    /// Sends these bytes, and then more as fast as possible without end.
    Flood(Vec<u8>),
    Reset,
}

pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    /// The number of connections that the sink has closed.
    pub(crate) closed: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Sink {
    pub(crate) async fn start(act: Act) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), act).await
    }

    pub(crate) async fn start_at(address: SocketAddr, act: Act) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let sink = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            closed: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, closed, requests) =
            (sink.connections.clone(), sink.closed.clone(), sink.requests.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (act, closed, requests) = (act.clone(), closed.clone(), requests.clone());
                tokio::spawn(async move {
                    serve(stream, act, &requests).await;
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        sink
    }

    pub(crate) async fn answering(response: impl AsRef<[u8]>) -> Self {
        Self::start(Act::Answer(response.as_ref().to_vec())).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook?q=1", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Vec<u8>> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, act: Act, requests: &Mutex<Vec<Vec<u8>>>) {
    while let Some(request) = read_request(&mut stream).await {
        requests.lock().unwrap().push(request);
        match &act {
            Act::Answer(response) => stream.write_all(response).await.unwrap(),
            Act::AnswerAndClose(response) => return stream.write_all(response).await.unwrap(),
            Act::AnswerAndHang(response) => {
                stream.write_all(response).await.unwrap();
                std::future::pending::<()>().await;
            }
            Act::AnswerLateAndHang(delay, response) => {
                tokio::time::sleep(*delay).await;
                stream.write_all(response).await.unwrap();
                std::future::pending::<()>().await;
            }
            Act::Drip(response) => {
                stream.write_all(response).await.unwrap();
                while stream.write_all(b".").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                return;
            }
            Act::Flood(response) => {
                stream.write_all(response).await.unwrap();
                while stream.write_all(&[b'.'; 4096]).await.is_ok() {}
                return;
            }
            Act::Reset => {
                return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    }
}

/// Reads one request with a declared length. Returns `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let mut slots = [httparse::EMPTY_HEADER; 200];
        let mut parsed = httparse::Request::new(&mut slots);
        if let httparse::Status::Complete(head) = parsed.parse(&bytes).unwrap() {
            let length = parsed
                .headers
                .iter()
                .find(|header| header.name == "content-length")
                .expect("a declared length");
            let length: usize = std::str::from_utf8(length.value).unwrap().parse().unwrap();
            if bytes.len() == head + length {
                return Some(bytes);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// The event that every test here delivers, with these headers (as a section) and this body.
pub(crate) fn claim(headers: &[u8], body: &[u8]) -> Claim {
    Claim {
        event: "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e".parse::<EventId>().unwrap(),
        source: SourceName::parse("plain").unwrap(),
        fence: Fence(1),
        attempt: 3,
        in_budget: BudgetAttempt(1),
        age: Duration::ZERO,
        received_at: "2026-11-29T08:00:00.012345Z".parse().unwrap(),
        query: Bytes::new(),
        headers: Bytes::copy_from_slice(headers),
        body: Bytes::copy_from_slice(body),
    }
}

/// The source of [`claim`], with this destination.
pub(crate) fn source(url: &str) -> BTreeMap<SourceName, Source> {
    let destination = Destination::new(url.parse().unwrap());
    BTreeMap::from([(SourceName::parse("plain").unwrap(), Source::new(destination))])
}

pub(crate) fn downstream(url: &str) -> HttpDownstream {
    HttpDownstream::new(&source(url)).unwrap()
}

/// Delivers one small event.
pub(crate) async fn sent(downstream: &HttpDownstream, limit: Duration) -> Reply {
    within(downstream.send(&claim(b"\r\n", b"body"), limit)).await
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(ENOUGH, future).await.expect("the operation did not finish in time")
}

/// Polls until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
