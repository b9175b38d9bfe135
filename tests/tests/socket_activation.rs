//! Socket activation, as with systemd: the listening socket outlives the process, so a restart refuses
//! no webhook. The tests pass the socket themselves.

use nix::sys::signal::Signal;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Post, try_once};
use tests::program::{Process, Target};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, soak, wait};
use tokio::time::{MissedTickBehavior, interval};

/// The number of restarts under load, in the short form and in the long one.
const RESTARTS: (usize, usize) = (4, 20);
/// The posters. Each sends 20 webhooks a second: half of them on connections that they keep, the
/// others on new ones.
const POSTERS: usize = 10;
const EVERY: Duration = Duration::from_millis(50);

on_each_database!(restarts_refuse_no_webhook_while_a_delivery_hangs);

async fn restarts_refuse_no_webhook_while_a_delivery_hangs(database: Database) {
    let run = Recording::begin(database).await;
    let sink = run
        .sink(
            |received| {
                if received.path == "/hung" { Answer::never() } else { Answer::status(200) }
            },
        )
        .await;
    let mut service = run.activated_service(&configuration(&sink)).await;
    let restarts = soak::either(RESTARTS.0, RESTARTS.1);
    let (over, posted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let posters = futures::future::join_all((0..POSTERS).map(|poster| {
        let (run, target, over, posted) = (&run, service.target(), &over, &posted);
        async move { post_until(run, &target, poster, over, posted).await }
    }));
    let restarting = async {
        for n in 0..restarts {
            let key = format!("hung-{n}");
            accepted(&run, &Client::default(), &service.target(), "hung", &key).await;
            wait::until("the delivery that hangs", || async {
                let hung =
                    sink.received().iter().filter(|received| received.path == "/hung").count();
                if hung > n { Ok(()) } else { Err(format!("{hung} deliveries hang")) }
            })
            .await;
            service.signal(Signal::SIGTERM);
            let status = service.wait(Duration::from_secs(20)).await;
            assert_eq!(status.code(), Some(0), "{status}");
            service.restart().await;
        }
        over.store(true, Ordering::Relaxed);
    };
    futures::future::join(posters, restarting).await;
    let all = posted.load(Ordering::Relaxed) + restarts;
    println!("{all} webhooks were posted and accepted during {restarts} restarts");
    assert!(posted.load(Ordering::Relaxed) > restarts * POSTERS, "{all} webhooks");

    sink.behave(|_| Answer::status(200));
    let judged = run.judge().await;
    assert_eq!(judged.events.len(), all);
    let healthy = judged.events.values().filter(|event| event.source.as_str() == "orders");
    let repeated: Vec<_> = healthy.filter(|event| event.history.len() != 1).collect();
    assert!(repeated.is_empty(), "a restart cost attempts: {repeated:?}");
}

async fn post_until(
    run: &Recording,
    target: &Target,
    poster: usize,
    over: &AtomicBool,
    posted: &AtomicUsize,
) {
    let kept = Client::default();
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0.. {
        pace.tick().await;
        if over.load(Ordering::Relaxed) {
            return;
        }
        let client = if n % 2 == 0 { kept.clone() } else { Client::default() };
        accepted(run, &client, target, "orders", &format!("{poster}-{n}")).await;
        posted.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accepted(run: &Recording, client: &Client, target: &Target, source: &str, key: &str) {
    let post = Post { producer: "producer", source, key, body: "{}".into() };
    match try_once(run, client, target, &post).await {
        Ok(Ok(_)) => {}
        refused => panic!("webhook {key} was refused: {refused:?}"),
    }
}

fn configuration(sink: &Sink) -> String {
    format!(
        r#"
        drain_timeout = "4s"
        [defaults]
        timeout = "5s"
        initial_delay = "50ms"
        max_delay = "200ms"
        [sources.orders]
        destination = "{}"
        [sources.hung]
        destination = "{}"
        concurrency = 100
        breaker_failures = 0
        "#,
        sink.url("/orders"),
        sink.url("/hung")
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_taken_by_name_and_the_supervisor_is_told_the_state() {
    let folder = TempDir::new().expect("a temporary folder");
    let text = "[sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n";
    std::fs::write(folder.path().join("surehook.toml"), text)
        .expect("the folder can be written to");
    let socket = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let (operators, webhooks) = (socket(), socket());
    let supervisor =
        UnixDatagram::bind(folder.path().join("notify")).expect("the folder can be written to");
    supervisor.set_read_timeout(Some(wait::TIMEOUT)).expect("a socket has a timeout");
    let told = || {
        let mut message = [0; 64];
        let length = supervisor.recv(&mut message).expect("the program reports its state");
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    let is_reloading = |message: &str| message.starts_with("RELOADING=1\nMONOTONIC_USEC=");

    let mut process =
        Process::start_on(&[&operators, &webhooks], "operators:webhooks", folder.path(), ["serve"]);
    assert_eq!(told(), "READY=1", "{}", process.log());
    let client = Client::default();
    for (listener, path, status_code) in [
        (&webhooks, "/ready", 200),
        (&webhooks, "/sources", 404),
        (&operators, "/sources", 200),
        (&operators, "/webhooks/orders", 404),
    ] {
        let address = listener.local_addr().expect("a bound socket has an address");
        let answer = client.get(&format!("http://{address}{path}")).await.expect("a response");
        assert_eq!(answer.status_code, status_code, "{path}");
    }
    process.signal(Signal::SIGHUP);
    let message = told();
    assert!(is_reloading(&message), "{message}");
    assert_eq!(told(), "READY=1");
    process.signal(Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
    let status = process.wait(wait::TIMEOUT).await;
    assert_eq!(status.code(), Some(0), "{status}: {}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passed_sockets_that_fit_no_listener_are_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let text = "[sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n";
    std::fs::write(folder.path().join("surehook.toml"), text)
        .expect("the folder can be written to");
    let socket = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let (first, second) = (socket(), socket());
    let names = "webhooks:webhooks";
    let mut process = Process::start_on(&[&first, &second], names, folder.path(), ["serve"]);
    let status = process.wait(wait::TIMEOUT).await;
    assert_eq!(status.code(), Some(2), "{status}");
    assert!(process.log().contains("one named `webhooks`"), "{}", process.log());
}
