//! The load generator: producers on keep-alive connections, each with one request in flight.
//!
//! It writes to sockets directly. An HTTP client library costs more for each request than
//! PostgreSQL's own load generator, on cores that the service needs. The benchmark would then
//! measure that client.

use super::clock;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The header that carries the time of a post to the sink, in nanoseconds on this process's clock.
pub(super) const SENT: &str = "x-sent";

#[derive(Clone, Debug)]
pub struct Offer {
    /// The addresses of the processes. Connections use them in turn.
    pub targets: Vec<SocketAddr>,
    /// The number of sources, `s0`, `s1`, …. Posts use them in turn.
    pub sources: usize,
    /// The number of connections, each with one post in flight.
    pub connections: usize,
    /// The size of a body, in bytes.
    pub body: usize,
    /// Whether a body is a JSON document with the idempotency key as its member `id`.
    pub is_json: bool,
    /// The percentage of posts that repeat an earlier one.
    pub duplicates: u64,
    pub until: Until,
    /// Posts a second over all connections. If `None`, as fast as answers arrive.
    pub rate: Option<f64>,
    /// Counts the accepted posts during the run.
    pub accepted: Arc<AtomicU64>,
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After this time.
    Over(Duration),
    /// After this number of posts.
    Posts(u64),
}

/// The result of a load.
#[derive(Debug)]
pub struct Load {
    /// Answers with `202`, including replays.
    pub accepted: u64,
    /// Other answers, by status code.
    pub others: BTreeMap<u16, u64>,
    /// From the first post to the last answer.
    pub took: Duration,
    /// From a post to its answer, in nanoseconds. For a post that had to wait for the answer before
    /// it, the time starts when the post was due.
    pub latency: Histogram<u64>,
}

impl Load {
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.took.as_secs_f64()
    }

    /// A quantile of the latency, in milliseconds.
    #[must_use]
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }
}

pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("the bounds are valid")
}

impl Offer {
    /// Offers the whole load, and waits for the last answer.
    ///
    /// # Panics
    ///
    /// If the service does not take or answer a request.
    pub async fn run(&self) -> Load {
        let run = fastrand::u32(..);
        let begun = Instant::now();
        let mut connections = JoinSet::new();
        for number in 0..self.connections {
            connections.spawn(connection(self.clone(), run, number, begun));
        }
        let mut load = Load {
            accepted: 0,
            others: BTreeMap::new(),
            took: Duration::ZERO,
            latency: histogram(),
        };
        while let Some(ended) = connections.join_next().await {
            let part = ended.expect("a connection does not panic");
            load.accepted += part.accepted;
            part.others.into_iter().for_each(|(status_code, count)| {
                *load.others.entry(status_code).or_default() += count;
            });
            load.latency.add(part.latency).expect("the same bounds");
        }
        load.took = begun.elapsed();
        load
    }
}

/// Runs a load and checks that every post is accepted.
///
/// # Panics
///
/// If a post is not accepted.
pub async fn all_accepted(offer: &Offer) -> Load {
    let load = offer.run().await;
    assert!(load.others.is_empty(), "{:?}", load.others);
    load
}

async fn connection(offer: Offer, run: u32, number: usize, begun: Instant) -> Load {
    let target = offer.targets[number % offer.targets.len()];
    let mut socket = TcpStream::connect(target).await.expect("the service listens");
    socket.set_nodelay(true).expect("a socket option");
    let mut body = if offer.is_json { document(offer.body) } else { body(offer.body) };
    let mut load =
        Load { accepted: 0, others: BTreeMap::new(), took: Duration::ZERO, latency: histogram() };
    let (mut request, mut answer) =
        (Vec::with_capacity(offer.body + 1024), Vec::with_capacity(4096));
    let mut unique = 0_u64;
    for n in 0_u64.. {
        let due = offer.rate.map(|rate| {
            begun
                + Duration::from_secs_f64(
                    (n as f64 * offer.connections as f64 + number as f64) / rate,
                )
        });
        let over = match offer.until {
            Until::Over(time) => due.unwrap_or_else(Instant::now) >= begun + time,
            Until::Posts(posts) => n * offer.connections as u64 + number as u64 >= posts,
        };
        if over {
            break;
        }
        let mut sent = clock::nanos();
        if let Some(due) = due {
            let late = Instant::now().saturating_duration_since(due);
            sleep_until(due).await;
            sent = clock::nanos()
                .saturating_sub(u64::try_from(late.as_nanos()).expect("the delay fits in 64 bits"));
        }
        let is_duplicate = unique > 0 && n % 100 < offer.duplicates;
        let key = if is_duplicate { fastrand::u64(0..unique) } else { unique };
        unique += u64::from(!is_duplicate);
        let source = (key + number as u64) % offer.sources as u64;
        let key = format!("{run:08x}-{number:04x}-4000-8000-{key:012x}");
        head(&mut request, target, source, &key, sent, body.len());
        if offer.is_json {
            body[BEFORE_ID.len()..][..key.len()].copy_from_slice(key.as_bytes());
        }
        request.extend_from_slice(&body);
        socket.write_all(&request).await.expect("the service takes the request");
        let status_code = read_answer(&mut socket, &mut answer).await;
        load.latency.saturating_record(clock::nanos() - sent);
        if status_code == 202 {
            load.accepted += 1;
            offer.accepted.fetch_add(1, Ordering::Relaxed);
        } else {
            *load.others.entry(status_code).or_default() += 1;
        }
    }
    load
}

/// A request's head with eight headers as webhook producers send them, in addition to the headers
/// of HTTP itself.
fn head(
    request: &mut Vec<u8>,
    target: SocketAddr,
    source: u64,
    key: &str,
    sent: u64,
    length: usize,
) {
    let mut head = String::with_capacity(768);
    let signature = "sha256=7d38cdd689735b008b3c702edd92eea23791c5f6f0f0f1f2f3f4f5f6f7f8f9fa";
    write!(
        head,
        "POST /webhooks/s{source} HTTP/1.1\r\nhost: {target}\r\nuser-agent: Example-Hookshot/044aadd\r\naccept: */*\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\nidempotency-key: {key}\r\nx-example-event: invoice.paid\r\n\
         {SENT}: {sent}\r\nx-example-signature-256: {signature}\r\n\
         traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n"
    )
    .expect("memory");
    request.clear();
    request.extend_from_slice(head.as_bytes());
}

/// Incompressible bytes, the same each time.
#[must_use]
pub fn body(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.alphanumeric() as u8).take(length).collect()
}

const BEFORE_ID: &str = "{\"id\":\"";

/// A JSON document of about this length, with a member `id` of 36 characters and items as those of a
/// webhook of GitHub.
fn document(length: usize) -> Vec<u8> {
    let item = r#"{"id":186853002,"name":"Hello-World","full_name":"Codertocat/Hello-World","private":false,"owner":{"login":"Codertocat","id":21031067,"site_admin":false},"html_url":"https://git.example.com/Codertocat/Hello-World","description":null,"keys_url":"https://api.git.example.com/repos/Codertocat/Hello-World/keys{/key_id}","size":0,"created_at":"2019-05-15T15:19:25Z"}"#;
    let items = vec![item; (length.saturating_sub(80) / (item.len() + 1)).max(1)].join(",");
    format!("{BEFORE_ID}{:36}\",\"object\":\"event\",\"items\":[{items}]}}", "").into_bytes()
}

async fn read_answer(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> u16 {
    buffer.clear();
    loop {
        assert!(
            socket.read_buf(buffer).await.expect("the service answers") > 0,
            "the service closed the connection"
        );
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = response.parse(buffer) else { continue };
        if buffer.len() >= head + content_length(response.headers) {
            return response.code.expect("a status code");
        }
    }
}

/// The value of `Content-Length`, or 0 if it is missing.
pub(super) fn content_length(headers: &[httparse::Header<'_>]) -> usize {
    let length = headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    length.map_or(0, |header| {
        std::str::from_utf8(header.value)
            .ok()
            .and_then(|length| length.parse().ok())
            .expect("a length")
    })
}
