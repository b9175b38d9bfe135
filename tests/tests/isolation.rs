//! No source and no producer takes memory or connections from another: destinations that hang with large bodies, and
//! producers that send slowly.

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

/// A body of the largest size that is taken by default.
const LARGE: usize = 1 << 20;
/// What the worker may hold by default.
const MAX_HELD_BYTES: u64 = 64 << 20;
/// What the process takes besides: its code, connections and their buffers, one event that is on its way from the database
/// for each connection, and what an allocator keeps.
const BESIDES: u64 = 80 << 20;

const POSTS: usize = 200;
const EVERY: Duration = Duration::from_millis(10);
/// A 99th percentile under this is as good as at rest: what is measured there is the machine. A source that is held up waits
/// for seconds.
const FLOOR: Duration = Duration::from_millis(400);

async fn five_hung_sources_with_large_bodies_delay_no_healthy_source(database: Database) {
    beside_hung(database, 5, 40).await;
}

async fn hundreds_of_hung_sources_with_large_bodies_delay_no_healthy_source(database: Database) {
    beside_hung(database, hung_sources(), 1).await;
}

/// Five hundred, or fewer where there is little time: each has an event of a mebibyte.
fn hung_sources() -> usize {
    tests::soak::either(150, 500)
}

async fn beside_hung(database: Database, hung: usize, events: usize) {
    // Two such worlds at once would measure each other.
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

    // What hangs is stored first, by a process that delivers nothing, so that another one's memory can be looked at.
    let body = Bytes::from(vec![b'x'; LARGE]);
    for n in 0..hung * events {
        let answer =
            post(&client, &service, &format!("hung-{}", n % hung), &format!("k{n}"), body.clone())
                .await;
        assert_eq!(answer.0, 202);
    }
    service.signal(Signal::SIGTERM);
    service.wait(Duration::from_secs(30)).await;

    // Alone: the hung sources have nothing that is due for a while.
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
    assert!(small < FLOOR.max(small_alone * 2), "{small:?}, and alone {small_alone:?}");
    assert!(
        large < FLOOR.max(large_alone * 2),
        "{large:?} with large bodies, and alone {large_alone:?}"
    );
    assert!(peak < MAX_HELD_BYTES + BESIDES, "{} MiB resident", peak >> 20);
}

/// Puts what is due of all sources off, and back.
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
    let answer = client.post(&url, &[("idempotency-key", key)], body).await.expect("an answer");
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

    /// The 99th percentile of the time from the answer to a post until its arrival, of posts at a steady pace.
    async fn percentile(&self, client: &Client, service: &Service, size: usize) -> Duration {
        let mut stored = Vec::new();
        let posts = if size > 1_000 { POSTS / 4 } else { POSTS };
        for _ in 0..posts {
            let key = Uuid::new_v4().to_string();
            let (status_code, event) =
                post(client, service, "healthy", &key, Bytes::from(vec![b'h'; size])).await;
            assert_eq!(status_code, 202);
            stored.push((event.expect("an id"), Instant::now()));
            tokio::time::sleep(EVERY).await;
        }
        wait::until("everything to arrive", || {
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

/// A downstream that takes connections, and neither reads nor answers.
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
    // Room for 16 of the largest bodies.
    let configuration = format!("[intake]\nmax_queued_bytes = \"16MiB\"\n{}", sink.three_sources());
    let service = Service::start(&database.url(), &configuration).await;
    let client = Client::default();
    let mut slow = Vec::new();
    for n in 0..20 {
        let mut stream = TcpStream::connect(service.address()).await.expect("a connection");
        let head = format!(
            "POST /webhooks/github HTTP/1.1\r\nhost: a\r\nidempotency-key: slow-{n}\r\ncontent-length: {LARGE}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("it is read");
        // The last are refused while they send.
        let _ = stream.write_all(&vec![b's'; LARGE - 1]).await;
        slow.push(stream);
    }
    let (status_code, _) =
        post(&client, &service, "stripe", "other", Bytes::from(vec![b'o'; 100_000])).await;
    assert_eq!(status_code, 202, "another source has memory of its own");
    wait::within(Duration::from_secs(10), "the source itself to be heard", || async {
        match post(&client, &service, "github", "itself", Bytes::from(vec![b'o'; LARGE])).await.0 {
            202 => Ok(()),
            other => Err(format!("{other}")),
        }
    })
    .await;
    // Those that made room for that are told.
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
        stream.write_all(head.as_bytes()).await.expect("it is buffered at least");
        silent.push(stream);
    }
    let asked = Instant::now();
    for path in ["/health", "/ready"] {
        let answer = tokio::time::timeout(
            Duration::from_secs(20),
            Client::default().get(&service.url(path)),
        )
        .await;
        assert_eq!(answer.expect("an answer").expect("an answer").status_code, 200, "{path}");
    }
    assert!(asked.elapsed() < Duration::from_secs(9), "answered after {:?}", asked.elapsed());
    let mut told = [0; 12];
    silent[0].read_exact(&mut told).await.expect("the one that was there for longest is told");
    assert_eq!(&told, b"HTTP/1.1 503");
}
