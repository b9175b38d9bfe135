//! Destinations as people have them: behind a token, with certificates of a private authority, and with
//! TLS that cannot work. The history and the log name the cause.

use hyper::Method;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::on_each_database;
use tests::program::{Environment, Service, run, run_in};
use tests::sink::{Answer, Sink};
use tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

on_each_database!(the_headers_of_a_source_are_sent_and_never_shown);

const AUTHORITY: &[u8] = include_bytes!("certificates/authority.pem");
const SERVER: &[u8] = include_bytes!("certificates/server.pem");
const EXPIRED: &[u8] = include_bytes!("certificates/expired.pem");
const OTHER_NAME: &[u8] = include_bytes!("certificates/other-name.pem");
const KEY: &[u8] = include_bytes!("certificates/server.key.pem");

/// The certificate authorities of this machine are not read.
const NO_FOLDER: (&str, &str) = ("SSL_CERT_DIR", "");
/// The file of a certificate authority that has issued nothing.
const OTHER_AUTHORITY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates/other-authority.pem");
const PRIVATE_AUTHORITY: Environment = &[
    ("SSL_CERT_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates/authority.pem")),
    NO_FOLDER,
];

async fn the_headers_of_a_source_are_sent_and_never_shown(database: Database) {
    const ENVIRONMENT: Environment =
        &[("TOKEN", "hunter2-in-a-variable"), ("SUREHOOK_LOG_FILTER", "trace")];
    let sink =
        Sink::start(|received| Answer::status(if received.attempt == 1 { 503 } else { 200 })).await;
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, "hunter2-in-a-file\n").expect("the folder can be written to");
    let configuration = format!(
        "[defaults]\ninitial_delay = \"10ms\"\nrelay = [\"GET\"]\nforward_credentials = true\n\
         [sources.orders]\ndestination = \"{}\"\n\
         headers = {{ Authorization = \"Bearer ${{TOKEN}}\", X-Secret = \"${{file:{}}}\", X-Plain = \"hunter2-in-the-configuration\" }}\n",
        sink.url("/hook"),
        file.display()
    );
    let service = Service::start_in(ENVIRONMENT, &database.url(), &configuration).await;
    let client = Client::default();
    let url = service.url("/webhooks/orders");
    let headers = [
        ("idempotency-key", "k"),
        ("authorization", "Basic of-the-producer"),
        ("x_secret", "forged"),
        ("x-other", "kept"),
    ];
    let relayed =
        client.send(Method::GET, &url, &headers, "".into()).await.expect("a response to the relay");
    assert_eq!(relayed.status_code, 200, "{relayed:?}");
    let accepted = client.post(&url, &headers, "event").await.expect("a response");
    let event = accepted.json()["event_id"].as_str().expect("an id").to_owned();
    has_status(&service, &event, "delivered").await;
    let received = sink.received();
    assert_eq!(received.len(), 3, "a relayed request and two attempts: {received:?}");
    for request in &received {
        for (name, value) in [
            ("authorization", "Bearer hunter2-in-a-variable"),
            ("x-secret", "hunter2-in-a-file"),
            ("x-plain", "hunter2-in-the-configuration"),
            ("x-other", "kept"),
        ] {
            assert_eq!(request.values(name), [value.as_bytes()], "{name}: {request:?}");
        }
        assert!(request.values("x_secret").is_empty(), "{request:?}");
    }

    for path in [
        "/sources".to_owned(),
        "/events".to_owned(),
        format!("/events/{event}"),
        format!("/events/{event}/request"),
        "/metrics".to_owned(),
    ] {
        let answer = client.get(&service.url(&path)).await.expect("a response");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status_code == 200 && !text.contains("hunter2"), "{path}: {text}");
    }
    assert!(service.log().contains("\"message\":\"delivered\""), "the log has all levels");
    assert!(!service.log().contains("hunter2"), "a value of a header is in the log");
    std::fs::write(folder.path().join("surehook.toml"), &configuration)
        .expect("the folder can be written to");
    let checked = run_in(&ENVIRONMENT[..1], folder.path(), ["check"]);
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && !shown.contains("hunter2"), "{checked:?}");
    assert!(shown.contains("headers     authorization, x-plain, x-secret\n"), "{shown}");
    assert!(shown.contains("replaced    headers.Authorization: ${TOKEN}\n"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_with_a_certificate_of_a_private_authority_receives_events() {
    let destination = Destination::start(SERVER, |config| config).await;
    let (service, event, _database) = destination.posted(PRIVATE_AUTHORITY).await;
    has_status(&service, &event, "delivered").await;
    assert_eq!(destination.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cause_of_a_certificate_that_is_refused_is_in_the_history_and_the_log() {
    let unknown: Environment = vec![("SSL_CERT_FILE", OTHER_AUTHORITY), NO_FOLDER].leak();
    for (certificate, environment, error, words) in [
        (
            SERVER,
            unknown,
            "tls: unknown issuer of the certificate",
            "no certificate authority that this machine trusts has issued the certificate; for one of your own, set SSL_CERT_FILE",
        ),
        (
            EXPIRED,
            PRIVATE_AUTHORITY,
            "tls: certificate expired",
            "the certificate expired at 2026-01-01T00:00:00Z; renew it",
        ),
        (
            OTHER_NAME,
            PRIVATE_AUTHORITY,
            "tls: certificate is for another name",
            "the certificate is for other.example, and not for 127.0.0.1",
        ),
    ] {
        let destination = Destination::start(certificate, |config| config).await;
        let (service, event, _database) = destination.posted(environment).await;
        fails_with(&service, &event, error, words).await;
        assert_eq!(destination.requests(), 0, "{error}: a request was sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_speaks_only_http2_is_named_as_such() {
    let destination = Destination::start(SERVER, |mut config| {
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    })
    .await;
    let (service, event, _database) = destination.posted(PRIVATE_AUTHORITY).await;
    let words = "the destination does not accept HTTP/1.1, and Surehook does not speak HTTP/2";
    fails_with(&service, &event, "tls: HTTP/1.1 not accepted", words).await;
    assert_eq!(destination.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_requires_a_client_certificate_is_named_as_such() {
    for version in [&TLS13, &TLS12] {
        let destination = Destination::with_client_certificates(version).await;
        let (service, event, _database) = destination.posted(PRIVATE_AUTHORITY).await;
        let words = "the destination accepts only clients with a certificate";
        fails_with(&service, &event, "tls: client certificate required", words).await;
        assert_eq!(destination.requests(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_authorities_without_a_certificate_is_refused_at_start() {
    let folder = TempDir::new().expect("a temporary folder");
    let text = "listen = \"127.0.0.1:0\"\nsources.orders.destination = \"https://127.0.0.1:9/\"\n";
    for (file, content) in [("empty.pem", Some("")), ("missing.pem", None)] {
        let path = folder.path().join(file);
        if let Some(content) = content {
            std::fs::write(&path, content).expect("the folder can be written to");
        }
        std::fs::write(folder.path().join("surehook.toml"), text)
            .expect("the folder can be written to");
        let environment: Environment =
            vec![("SSL_CERT_FILE", &*path.display().to_string().leak()), NO_FOLDER].leak();
        let output = run_in(environment, folder.path(), ["serve"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains("cannot create the HTTP client") && told.contains("SSL_CERT_FILE"),
            "{told}"
        );
    }
}

/// Waits until the event has this status.
async fn has_status(service: &Service, event: &str, status: &str) {
    let url = service.url(&format!("/events/{event}"));
    wait::until("the status of the event", || async {
        let shown = Client::default().get(&url).await?.json();
        if shown["status"] == status { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
}

/// Waits for the first attempt, which must have failed with this error, and with these words in the log.
async fn fails_with(service: &Service, event: &str, error: &str, words: &str) {
    has_status(service, event, "retrying").await;
    let url = service.url(&format!("/events/{event}"));
    let shown = Client::default().get(&url).await.expect("a response").json();
    let attempt = &shown["history"][0];
    assert_eq!((&attempt["error"], &attempt["verdict"]), (&error.into(), &"transient".into()));
    let log = service.log();
    let line = |message: &str| -> Value {
        let line = log.lines().find(|line| line.contains(message) && line.contains(event));
        let line = line.unwrap_or_else(|| panic!("no line `{message}` in:\n{log}"));
        serde_json::from_str(line).expect("a line of JSON")
    };
    assert_eq!(line("delivery failed; retry scheduled")["error"], error);
    let explained = line("TLS with the destination failed");
    assert_eq!(explained["error"], error);
    assert!(explained["cause"].as_str().is_some_and(|cause| cause.contains(words)), "{explained}");
    let folder = TempDir::new().expect("a temporary folder");
    let show = ["events", "show", event, "--url", &service.url("")];
    let output = run(folder.path(), show);
    assert!(String::from_utf8_lossy(&output.stdout).contains(error), "{output:?}");
}

/// A destination that speaks HTTP/1.1 under TLS.
struct Destination {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Destination {
    async fn start(certificate: &[u8], change: fn(ServerConfig) -> ServerConfig) -> Self {
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![parsed(certificate)], key()).expect("a key");
        Self::serve(change(config)).await
    }

    async fn with_client_certificates(version: &'static SupportedProtocolVersion) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(parsed(AUTHORITY)).expect("a certificate authority");
        let verifier = WebPkiClientVerifier::builder(roots.into()).build().expect("a root");
        let config = ServerConfig::builder_with_protocol_versions(&[version])
            .with_client_cert_verifier(verifier);
        Self::serve(config.with_single_cert(vec![parsed(SERVER)], key()).expect("a key")).await
    }

    async fn serve(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("https://{}/hook", listener.local_addr().expect("it listens"));
        let requests = Arc::new(AtomicUsize::new(0));
        let (acceptor, counted) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    match acceptor.accept(stream).into_fallible().await {
                        Ok(stream) => answer(stream, &counted).await,
                        Err((_, stream)) => close(stream).await,
                    }
                });
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Starts the program with this destination, and posts an event.
    async fn posted(&self, environment: Environment) -> (Service, String, Database) {
        let configuration = format!("[sources.orders]\ndestination = \"{}\"\n", self.url);
        let database = Database::sqlite();
        let service = Service::start_in(environment, &database.url(), &configuration).await;
        let headers = [("idempotency-key", "k")];
        let answer = Client::default()
            .post(&service.url("/webhooks/orders"), &headers, "event")
            .await
            .expect("a response");
        let event = answer.json()["event_id"].as_str().expect("an id").to_owned();
        (service, event, database)
    }
}

fn parsed(certificate: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(certificate).expect("a certificate")
}

fn key() -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(KEY).expect("a private key")
}

/// Answers one request with `200`.
async fn answer(mut stream: TlsStream<TcpStream>, requests: &AtomicUsize) {
    let mut read = vec![0; 8 << 10];
    // The request is small: its end is the end of its body.
    let mut length = 0;
    while !read[..length].ends_with(b"\r\n\r\nevent") {
        match stream.read(&mut read[length..]).await {
            Ok(0) | Err(_) => return,
            Ok(count) => length += count,
        }
    }
    requests.fetch_add(1, Ordering::Relaxed);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let _ = stream.flush().await;
}

/// Closes a connection after the client has received everything. Otherwise bytes that were not read reset
/// the connection, and the client may not see the alert.
async fn close(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}
