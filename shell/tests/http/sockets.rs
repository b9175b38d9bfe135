//! A server under test, and a client that sends raw bytes.

use crate::world::World;
use bytes::Bytes;
use http::Response;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use surehook::http_server::{ServerLimits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than any operation in these tests takes.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const LIMITS: ServerLimits = ServerLimits {
    max_connections: 100,
    header_read_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(75),
};

/// How long requests in flight may continue after a shutdown.
const TIME_LEFT: Duration = Duration::from_secs(10);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shutdown: Option<oneshot::Sender<Duration>>,
    running: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(world: &World, limits: ServerLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service =
            surehook::http::service(Arc::clone(&world.app), world.route_set, world.access.clone());
        let (shutdown, told) = oneshot::channel();
        let running = tokio::spawn(serve(listener, service, limits, async move {
            told.await.unwrap_or_default()
        }));
        Self { address, shutdown: Some(shutdown), running }
    }

    pub(crate) fn shut_down(&mut self) {
        self.shut_down_within(TIME_LEFT);
    }

    /// Closes the listener. Requests in flight may continue for this time.
    pub(crate) fn shut_down_within(&mut self, time_left: Duration) {
        self.shutdown.take().expect("the server is shut down only once").send(time_left).unwrap();
    }

    pub(crate) async fn ended(self) {
        within(self.running).await.unwrap();
    }

    pub(crate) async fn client(&self) -> Client {
        Client { stream: within(TcpStream::connect(self.address)).await.unwrap(), unread: vec![] }
    }
}

pub(crate) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.unwrap();
    }

    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within(self.stream.write_all(bytes.as_ref())).await
    }

    /// Sends before the server runs again: the test and the server share a thread.
    pub(crate) fn send_at_once(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        assert_eq!(self.stream.try_write(bytes).unwrap(), bytes.len());
    }

    /// Waits until the server has sent something. It is not read yet.
    pub(crate) async fn readable(&self) {
        within(self.stream.readable()).await.unwrap();
    }

    /// Sends a complete post to `/webhooks/plain` with its length declared.
    pub(crate) async fn post(&mut self, key: &str, body: &[u8]) {
        self.send(head(key, &format!("content-length: {}\r\n", body.len()))).await;
        self.send(body).await;
    }

    /// Sends a part of a body of five bytes, once the server waits for it.
    pub(crate) async fn begins(&mut self, key: &str, part: &str) {
        self.send(head(key, "content-length: 5\r\nexpect: 100-continue\r\n")).await;
        assert_eq!(self.response().await.status(), 100);
        self.send(part).await;
    }

    /// Closes the sending side. The receiving side stays open.
    pub(crate) async fn finish_sending(&mut self) {
        within(self.stream.shutdown()).await.unwrap();
    }

    pub(crate) async fn response(&mut self) -> Response<Bytes> {
        loop {
            if let Some((response, length)) = parse(&self.unread) {
                self.unread.drain(..length);
                return response;
            }
            assert_ne!(
                self.read().await.unwrap(),
                0,
                "the connection ended in {:?}",
                String::from_utf8_lossy(&self.unread[..self.unread.len().min(1000)])
            );
        }
    }

    /// Whether the server closed the connection without sending anything else.
    pub(crate) async fn closed(&mut self) -> bool {
        assert_eq!(self.unread, b"", "unread bytes");
        matches!(self.read().await, Ok(0) | Err(_))
    }

    async fn read(&mut self) -> std::io::Result<usize> {
        within(self.stream.read_buf(&mut self.unread)).await
    }
}

/// The head of a post to `/webhooks/plain`.
pub(crate) fn head(key: &str, more: &str) -> String {
    format!("POST /webhooks/plain HTTP/1.1\r\nhost: test\r\nidempotency-key: {key}\r\n{more}\r\n")
}

fn parse(bytes: &[u8]) -> Option<(Response<Bytes>, usize)> {
    let mut slots = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(head) = parsed.parse(bytes).unwrap() else { return None };
    let mut response = Response::builder().status(parsed.code.unwrap());
    for header in parsed.headers.iter() {
        response = response.header(header.name, header.value);
    }
    let length = response
        .headers_ref()
        .unwrap()
        .get("content-length")
        .map_or(0, |length| length.to_str().unwrap().parse().unwrap());
    let body = bytes.get(head..head + length)?;
    Some((response.body(Bytes::copy_from_slice(body)).unwrap(), head + length))
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("the operation did not finish in time")
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
