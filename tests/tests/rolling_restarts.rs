//! Two processes behind the real nginx, with the configuration in `deploy/`: no restart is visible to
//! producers.

use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::nginx::Nginx;
use tests::producer::{Post, try_once};
use tests::program::{Process, Service, Target, free_address};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{soak, wait};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval};

/// The number of restarts under load, in the short form and in the long one.
const RESTARTS: (usize, usize) = (20, 200);
/// The posters. Each sends 20 webhooks a second: half of them on connections that they keep, the
/// others on new ones.
const POSTERS: usize = 10;
const EVERY: Duration = Duration::from_millis(50);
/// The number of webhooks that are accepted between two restarts, so that nginx keeps connections to
/// the new process.
const BETWEEN_RESTARTS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_behind_nginx_fail_no_post_and_repeat_no_delivery() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let configuration = configuration(&sink);
    let mut services = [run.service(&configuration).await, run.service(&configuration).await];
    let nginx = Nginx::start(&services.each_ref().map(Service::address)).await;

    let restarts = soak::either(RESTARTS.0, RESTARTS.1);
    let (begun, over, posted) = (Instant::now(), AtomicBool::new(false), AtomicUsize::new(0));
    let posters = futures::future::join_all((0..POSTERS).map(|poster| {
        let (run, target, over, posted) = (&run, nginx.target(), &over, &posted);
        async move { post_until(run, &target, poster, over, posted).await }
    }));
    let restarting = async {
        for turn in 0..restarts {
            let service = &mut services[turn % 2];
            service.signal(Signal::SIGTERM);
            let status = service.wait(Duration::from_secs(15)).await;
            assert_eq!(status.code(), Some(0), "{status}");
            service.restart().await;
            let before = posted.load(Ordering::Relaxed);
            wait::until("webhooks between two restarts", || async {
                let more = posted.load(Ordering::Relaxed) - before;
                if more >= BETWEEN_RESTARTS { Ok(()) } else { Err(format!("{more} webhooks")) }
            })
            .await;
        }
        over.store(true, Ordering::Relaxed);
    };
    futures::future::join(posters, restarting).await;
    let (posted, sent_again) = (posted.load(Ordering::Relaxed), nginx.sent_again());
    println!(
        "{posted} webhooks were accepted during {restarts} restarts in {:?}; nginx sent {sent_again} to another process",
        begun.elapsed()
    );
    assert!(
        posted > restarts * BETWEEN_RESTARTS && sent_again > 0,
        "{posted} webhooks, {sent_again} again"
    );

    let judged = run.judge().await;
    assert_eq!(judged.events.len(), posted);
    let repeated = judged.events.values().filter(|event| event.history.len() != 1).count();
    assert_eq!(repeated, 0, "a restart cost attempts");
    assert_eq!(sink.count(), posted, "an event was delivered twice");
}

async fn post_until(
    run: &Recording,
    target: &Target,
    poster: usize,
    over: &AtomicBool,
    posted: &AtomicUsize,
) {
    let kept = Nginx::client();
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0.. {
        pace.tick().await;
        if over.load(Ordering::Relaxed) {
            return;
        }
        let client = if n % 2 == 0 { kept.clone() } else { Nginx::client() };
        accepted(run, &client, target, &format!("{poster}-{n}")).await;
        posted.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accepted(run: &Recording, client: &Client, target: &Target, key: &str) {
    let post = Post { producer: "producer", source: "orders", key, body: "{}".into() };
    match try_once(run, client, target, &post).await {
        Ok(Ok(_)) => {}
        failed => panic!("webhook {key} was not accepted: {failed:?}"),
    }
}

/// A process can close a kept connection in the moment in which nginx sends a webhook on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_sends_a_post_again_if_its_connection_closes_without_a_response() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let closing = listener.local_addr().expect("it listens");
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            if stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    all_are_accepted_beside(closing).await;
    assert!(requests.load(Ordering::Relaxed) > 0, "the other server received no request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_sends_a_post_again_if_a_process_is_without_its_database() {
    let nothing = free_address();
    let sink = Sink::start(|_| Answer::status(200)).await;
    let database = format!("postgres://postgres@{nothing}/surehook?sslmode=disable");
    let unready = Service::begin(&database, &configuration(&sink)).await;
    all_are_accepted_beside(unready.address()).await;
}

/// Posts to nginx, in front of a process and of another server that fails.
async fn all_are_accepted_beside(other: SocketAddr) {
    const POSTS: usize = 20;
    let run = Recording::begin(Database::sqlite()).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service = run.service(&configuration(&sink)).await;
    let nginx = Nginx::start(&[other, service.address()]).await;
    let (client, target) = (Nginx::client(), nginx.target());
    for n in 0..POSTS {
        accepted(&run, &client, &target, &n.to_string()).await;
    }
    assert!(nginx.sent_again() > 0, "nginx sent no request to the other server");
    assert_eq!(run.judge().await.events.len(), POSTS);
}

/// A server that accepts connections, but does not answer, would delay requests that another process
/// could answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_refuses_connections_until_its_first_migration_has_ended() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (database, address) = (silent.local_addr().expect("it listens"), free_address());
    let folder = TempDir::new().expect("a temporary folder");
    let configuration = format!(
        "listen = \"{address}\"\ndatabase = \"postgres://postgres@{database}/surehook\"\n\
         [sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n"
    );
    std::fs::write(folder.path().join("surehook.toml"), configuration)
        .expect("the folder can be written to");
    let mut process = Process::start(folder.path(), ["serve"]);
    let migrating = tokio::time::timeout(wait::TIMEOUT, silent.accept())
        .await
        .expect("the program connects to its database")
        .expect("a connection");
    let connected = TcpStream::connect(address).await;
    assert!(connected.is_err(), "a connection was accepted during the migration");

    drop((migrating, silent));
    assert!(process.listens(address).await, "{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_lets_only_posts_to_webhooks_through() {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let database = Database::sqlite();
    let service = Service::start(&database.url(), &configuration(&sink)).await;
    let nginx = Nginx::start(&[service.address()]).await;
    let (client, base) = (Nginx::client(), nginx.target().base);
    let key = [("idempotency-key", "k")];
    for (method, path, status_code) in [
        ("POST", "/webhooks/orders", 202),
        ("GET", "/webhooks/orders", 403),
        ("DELETE", "/webhooks/orders", 403),
        ("GET", "/", 404),
        ("GET", "/ready", 404),
        ("GET", "/metrics", 404),
        ("GET", "/sources", 404),
        ("POST", "/sources/orders/pause", 404),
        ("POST", "/webhooks/../sources/orders/pause", 404),
        ("POST", "/webhooks/%2e%2e/sources/orders/pause", 404),
    ] {
        let method = method.parse().expect("a method");
        let answer = client.send(method, &format!("{base}{path}"), &key, "event".into()).await;
        assert_eq!(answer.expect("a response").status_code, status_code, "{path}");
    }
    // Larger than nginx's default limit.
    let (url, key) = (format!("{base}/webhooks/orders"), [("idempotency-key", "large")]);
    let large = client.post(&url, &key, vec![b'x'; 2 << 20]).await.expect("a response");
    assert_eq!(large.status_code, 202);
}

fn configuration(sink: &Sink) -> String {
    format!("[sources.orders]\ndestination = \"{}\"\nmax_body = \"4MiB\"\n", sink.url("/orders"))
}
