//! No source and no producer takes memory or connections from another. The tests use destinations
//! that hang with large events, and producers that send slowly.

use bytes::Bytes;
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::http::Client;
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use uuid::Uuid;

on_each_database!(
    five_hung_sources_with_large_bodies_delay_no_healthy_source,
    hundreds_of_hung_sources_with_large_bodies_delay_no_healthy_source,
    slow_producers_do_not_block_other_sources,
);

/// The largest body that is accepted by default.
const LARGE: usize = 1 << 20;
/// The memory that the worker may use for events by default.
const MAX_HELD_BYTES: u64 = 64 << 20;
/// Other memory of the process: code, connections and their buffers, one event in transit from the
/// database for each connection, and memory that the allocator keeps.
const BESIDES: u64 = 80 << 20;

const EVERY: Duration = Duration::from_millis(10);
/// A 99th percentile below this counts as undisturbed, because it mostly measures the machine. The
/// events of a delayed source wait for seconds.
const FLOOR: Duration = Duration::from_millis(400);

async fn five_hung_sources_with_large_bodies_delay_no_healthy_source(database: Database) {
    beside_hung(database, 5, 40).await;
}

async fn hundreds_of_hung_sources_with_large_bodies_delay_no_healthy_source(database: Database) {
    beside_hung(database, hung_sources(), 1).await;
}

/// Small events of one measurement. The long form takes 30 seconds for each.
fn posts() -> usize {
    tests::soak::either(200, 3_000)
}

/// 500 in the long form, and 150 otherwise. Each has one event of a mebibyte.
fn hung_sources() -> usize {
    tests::soak::either(150, 500)
}

async fn beside_hung(database: Database, hung: usize, events: usize) {
    // Two of these tests at the same time would affect each other's measurements.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALONE.lock().await;
    let hangs = Hangs::start().await;
    let arrivals = Arrivals::default();
    let sink = arrivals.sink().await;
    let mut configuration =
        format!("[sources.healthy]\ndestination = \"{}\"\n", sink.url("/healthy"));
    for n in 0..hung {
        let _ = write!(
            configuration,
            "[sources.hung-{n}]\ndestination = \"http://{}/\"\nbreaker_failures = 0\n",
            hangs.address
        );
    }
    let mut service =
        Service::start(&database.url(), &format!("role = \"intake\"\n{configuration}")).await;
    let client = Client::default();

    // An intake-only process stores the events that hang, so that they do not count in the memory
    // of the process that is measured.
    let body = Bytes::from(vec![b'x'; LARGE]);
    for n in 0..hung * events {
        let answer =
            post(&client, &service, &format!("hung-{}", n % hung), &format!("k{n}"), body.clone())
                .await;
        assert_eq!(answer.0, 202);
    }
    service.signal(Signal::SIGTERM);
    service.wait(Duration::from_secs(30)).await;

    // Measures the healthy source alone: the hung sources have no due events for now.
    database.execute(&later(&database)).await;
    service.restart_as("all").await;
    let (small_alone, large_alone) = (
        arrivals.percentile(&client, &service, 100).await,
        arrivals.percentile(&client, &service, LARGE).await,
    );
    database.execute(&due(&database)).await;
    wait::until("many deliveries to hang", || {
        let open = hangs.open();
        async move { if open >= hung.min(16) { Ok(()) } else { Err(format!("{open} hang")) } }
    })
    .await;
    let (small, large) = (
        arrivals.percentile(&client, &service, 100).await,
        arrivals.percentile(&client, &service, LARGE).await,
    );
    let peak = service.usage().peak_bytes;
    println!(
        "beside {hung} hung sources: p99 from stored to delivered {small:?} (alone {small_alone:?}), with {LARGE} bytes {large:?} (alone {large_alone:?}); at most {} MiB resident",
        peak >> 20
    );
    assert!(
        small < FLOOR.max(small_alone * 2),
        "p99 of small bodies: {small:?}, alone {small_alone:?}"
    );
    assert!(
        large < FLOOR.max(large_alone * 2),
        "p99 of large bodies: {large:?}, alone {large_alone:?}"
    );
    assert!(peak < MAX_HELD_BYTES + BESIDES, "{} MiB resident", peak >> 20);
}

/// Postpones all due events by a day. `due` reverses this.
fn later(database: &Database) -> String {
    match database {
        Database::Postgres(_) => {
            "update deliveries set due_at = due_at + interval '1 day'".to_owned()
        }
        Database::Sqlite(_) => "update deliveries set due_at = due_at + 86400000000".to_owned(),
    }
}

fn due(database: &Database) -> String {
    match database {
        Database::Postgres(_) => {
            "update deliveries set due_at = due_at - interval '1 day' where due_at > now() + interval '1 hour'".to_owned()
        }
        Database::Sqlite(_) => {
            "update deliveries set due_at = due_at - 86400000000 where due_at > (unixepoch('now') + 3600) * 1000000".to_owned()
        }
    }
}

async fn post(
    client: &Client,
    service: &Service,
    source: &str,
    key: &str,
    body: Bytes,
) -> (u16, Option<Uuid>) {
    let url = service.url(&format!("/webhooks/{source}"));
    let answer = client.post(&url, &[("idempotency-key", key)], body).await.expect("a response");
    let event = (answer.status_code == 202)
        .then(|| answer.json()["event_id"].as_str().expect("an id").parse().expect("an id"));
    (answer.status_code, event)
}

/// When events arrived at the healthy downstream.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<HashMap<Uuid, Instant>>>);

impl Arrivals {
    async fn sink(&self) -> Sink {
        let arrived = Arc::clone(&self.0);
        Sink::start(move |received| {
            arrived.lock().unwrap().entry(received.event).or_insert_with(Instant::now);
            Answer::status(200)
        })
        .await
    }

    /// Posts at a steady pace. Returns the 99th percentile of the time from the response to a post
    /// until the event arrives.
    async fn percentile(&self, client: &Client, service: &Service, size: usize) -> Duration {
        let mut stored = Vec::new();
        let posts = if size > 1_000 { posts() / 4 } else { posts() };
        for _ in 0..posts {
            let key = Uuid::new_v4().to_string();
            let (status_code, event) =
                post(client, service, "healthy", &key, Bytes::from(vec![b'h'; size])).await;
            assert_eq!(status_code, 202);
            stored.push((event.expect("an id"), Instant::now()));
            tokio::time::sleep(EVERY).await;
        }
        wait::until("every event to arrive", || {
            let missing = stored
                .iter()
                .filter(|(event, _)| !self.0.lock().unwrap().contains_key(event))
                .count();
            async move { if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) } }
        })
        .await;
        let arrived = self.0.lock().unwrap();
        let mut times: Vec<Duration> = stored
            .iter()
            .map(|(event, at)| arrived[event].saturating_duration_since(*at))
            .collect();
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }
}

/// A downstream that accepts connections, and neither reads nor responds.
struct Hangs {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepting: JoinHandle<()>,
}

impl Hangs {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let open = Arc::new(Mutex::new(Vec::new()));
        let accepting = tokio::spawn({
            let open = Arc::clone(&open);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    open.lock().unwrap().push(stream);
                }
            }
        });
        Self { address, open, accepting }
    }

    fn open(&self) -> usize {
        self.open.lock().unwrap().len()
    }
}

impl Drop for Hangs {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn slow_producers_do_not_block_other_sources(database: Database) {
    let sink = Sink::start(|_| Answer::status(200)).await;
    // Space for 16 of the largest bodies.
    let configuration = format!("[intake]\nmax_queued_bytes = \"16MiB\"\n{}", sink.three_sources());
    let service = Service::start(&database.url(), &configuration).await;
    let client = Client::default();
    let mut slow = Vec::new();
    for n in 0..20 {
        let mut stream = TcpStream::connect(service.address()).await.expect("a connection");
        let head = format!(
            "POST /webhooks/github HTTP/1.1\r\nhost: a\r\nidempotency-key: slow-{n}\r\ncontent-length: {LARGE}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("the program reads");
        // The program refuses the last requests while they are sent.
        let _ = stream.write_all(&vec![b's'; LARGE - 1]).await;
        slow.push(stream);
    }
    let (status_code, _) =
        post(&client, &service, "stripe", "other", Bytes::from(vec![b'o'; 100_000])).await;
    assert_eq!(status_code, 202, "a slow source took the memory of another source");
    wait::within(
        Duration::from_secs(10),
        "a post to the slow source itself to be accepted",
        || async {
            match post(&client, &service, "github", "itself", Bytes::from(vec![b'o'; LARGE]))
                .await
                .0
            {
                202 => Ok(()),
                other => Err(format!("{other}")),
            }
        },
    )
    .await;
    // Requests that were closed to make space got a 503.
    for mut stream in slow {
        let mut answer = [0; 12];
        if let Ok(Ok(_)) =
            tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut answer)).await
        {
            assert_eq!(&answer, b"HTTP/1.1 503");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_answered_while_all_connections_wait_for_bodies() {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!("[intake]\nmax_connections = 100\n{}", sink.three_sources());
    let database = Database::sqlite();
    let service = Service::start(&database.url(), &configuration).await;
    let mut silent = Vec::new();
    for n in 0..300 {
        let mut stream = TcpStream::connect(service.address()).await.expect("a connection");
        let head = format!(
            "POST /webhooks/github HTTP/1.1\r\nhost: a\r\nidempotency-key: silent-{n}\r\ncontent-length: 10\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("the kernel buffers the head");
        silent.push(stream);
    }
    let asked = Instant::now();
    for path in ["/health", "/ready"] {
        let answer = tokio::time::timeout(
            Duration::from_secs(20),
            Client::default().get(&service.url(path)),
        )
        .await;
        assert_eq!(answer.expect("a response").expect("a response").status_code, 200, "{path}");
    }
    assert!(asked.elapsed() < Duration::from_secs(9), "answered after {:?}", asked.elapsed());
    let mut told = [0; 12];
    silent[0].read_exact(&mut told).await.expect("the oldest connection gets a response");
    assert_eq!(&told, b"HTTP/1.1 503");
}
