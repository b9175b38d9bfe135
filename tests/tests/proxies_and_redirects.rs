//! Operator commands and deliveries connect only to the configured address. They use no proxy from
//! the environment, and commands follow no redirect.

use std::net::SocketAddr;
use std::process::Output;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::program::{Environment, Service, run_in};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Proxies that do not exist, in every spelling that programs read.
const PROXIES: Environment = &[
    ("HTTP_PROXY", "http://127.0.0.1:9"),
    ("http_proxy", "http://127.0.0.1:9"),
    ("HTTPS_PROXY", "http://127.0.0.1:9"),
    ("https_proxy", "http://127.0.0.1:9"),
    ("ALL_PROXY", "http://127.0.0.1:9"),
    ("all_proxy", "http://127.0.0.1:9"),
    ("NO_PROXY", ""),
    ("no_proxy", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_do_not_use_a_proxy_of_the_environment() {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let database = Database::sqlite();
    let service = Service::start(&database.url(), &configuration(&sink)).await;
    for line in
        ["health", "health --ready", "sources", "events list", "pause orders", "resume orders"]
    {
        let output = run(PROXIES, line, &service.url("")).await;
        assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_do_not_follow_redirects() {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let database = Database::sqlite();
    let service = Service::start(&database.url(), &configuration(&sink)).await;
    let elsewhere = redirecting(service.url("")).await;
    for line in ["health", "sources", "pause orders"] {
        let output = run(&[], line, &format!("http://{elsewhere}")).await;
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("307"), "{line}: {said}");
    }
    let sources = Client::default().get(&service.url("/sources")).await.expect("a response").json();
    assert_eq!(sources["sources"][0]["paused_since"], serde_json::Value::Null, "{sources}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_do_not_use_a_proxy_of_the_environment() {
    let run = Recording::begin(Database::sqlite()).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service = run.service_in(PROXIES, &configuration(&sink)).await;
    let answer = Client::default()
        .post(&service.url("/webhooks/orders"), &[("idempotency-key", "k")], "{}")
        .await
        .expect("a response");
    assert_eq!(answer.status_code, 202, "{answer:?}");
    run.all_ended().await;
    assert!(sink.count() == 1 && sink.received()[0].taken(), "{:?}", sink.received());
}

fn configuration(sink: &Sink) -> String {
    format!("[sources.orders]\ndestination = \"{}\"\n", sink.url("/orders"))
}

async fn run(environment: Environment, line: &str, url: &str) -> Output {
    let line = format!("{line} --url {url}");
    let run = move || {
        let folder = TempDir::new().expect("a temporary folder");
        run_in(environment, folder.path(), line.split_whitespace())
    };
    tokio::task::spawn_blocking(run).await.expect("the program ran")
}

/// A server that redirects every request to the same path below `base`.
async fn redirecting(base: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it listens");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0)
            {}
            let request = String::from_utf8_lossy(&request).into_owned();
            let path = request.split(' ').nth(1).unwrap_or("/");
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: {base}{path}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            // This fails if the client has disconnected. The client's side of the test reports
            // that.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}
