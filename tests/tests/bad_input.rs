//! Invalid requests over real sockets, each with one defect: the response names the problem, and
//! nothing is stored.

use std::time::Duration;
use tests::database::Database;
use tests::http::{Answer, exchange};
use tests::program::Service;
use tests::sink::{self, Sink};
use tests::{on_each_database, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

on_each_database!(
    a_missing_or_invalid_key_is_refused,
    a_missing_or_invalid_key_in_a_body_is_refused,
    quoted_and_unquoted_keys_are_the_same,
    a_key_with_another_body_is_refused_and_changes_nothing,
    a_body_over_the_limit_is_refused_declared_or_not,
    an_unknown_path_or_method_gets_its_problem,
    a_body_that_is_cut_short_or_malformed_stores_nothing,
    a_client_that_half_closes_after_its_request_gets_a_response,
    a_body_that_does_not_arrive_in_time_is_refused,
    malformed_http_is_refused,
);

const MAX_BODY: usize = 64 << 10;

async fn a_missing_or_invalid_key_is_refused(database: Database) {
    let bench = Bench::start(&database).await;
    let overlong = format!("Idempotency-Key: {}", "k".repeat(256));
    let cases: [(&[&[u8]], &str); 9] = [
        (&[], "key-missing"),
        (&[b"X-Key: another-header"], "key-missing"),
        (&[b"Idempotency-Key: "], "key-invalid"),
        (&[b"Idempotency-Key: \"\""], "key-invalid"),
        (&[b"Idempotency-Key: two words"], "key-invalid"),
        (&[overlong.as_bytes()], "key-invalid"),
        (&[b"Idempotency-Key: caf\xc3\xa9"], "key-invalid"),
        (&[b"Idempotency-Key: \"never closed"], "key-invalid"),
        (&[b"Idempotency-Key: k", b"Idempotency-Key: k"], "key-invalid"),
    ];
    for (headers, problem) in cases {
        let answer = bench.post("orders", headers, b"{}").await;
        assert_eq!((answer.status_code, answer.problem()), (400, urn(problem)), "{headers:?}");
    }
    let longest = format!("Idempotency-Key: {}", "k".repeat(255));
    assert_new(&bench.post("orders", &[longest.as_bytes()], b"{}").await);
    bench.delivers_only(1).await;
}

/// Each body has one defect.
async fn a_missing_or_invalid_key_in_a_body_is_refused(database: Database) {
    let bench = Bench::start(&database).await;
    let id = |value: &str| format!("{{\"id\": {value}}}").into_bytes();
    let utf_16: Vec<u8> = "{\"id\": 1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cases: [(Vec<u8>, &str); 21] = [
        (b"".to_vec(), "key-missing"),
        (b"{}".to_vec(), "key-missing"),
        (b"no JSON".to_vec(), "key-missing"),
        (b"{\"id\": \"a\"".to_vec(), "key-missing"),
        (b"\xef\xbb\xbf{\"id\": \"a\"}".to_vec(), "key-missing"),
        (utf_16, "key-missing"),
        (b"{\"id\": \"\xff\"}".to_vec(), "key-missing"),
        (b"{\"id\": \"a\", \"text\": \"\xff\"}".to_vec(), "key-missing"),
        (b"[".repeat(MAX_BODY), "key-missing"),
        // A pointer into a string.
        (b"\"id\"".to_vec(), "key-missing"),
        // A form, although the requests say that they are JSON.
        (b"a=1".to_vec(), "key-missing"),
        (b"id=a&id=a".to_vec(), "key-invalid"),
        (b"id=".to_vec(), "key-invalid"),
        (id("null"), "key-invalid"),
        (id("true"), "key-invalid"),
        (id("1.5"), "key-invalid"),
        (id("{}"), "key-invalid"),
        (id("[1]"), "key-invalid"),
        (id("\"\""), "key-invalid"),
        (id(&format!("\"{}\"", "k".repeat(256))), "key-invalid"),
        (id("\"caf\u{e9}\""), "key-invalid"),
    ];
    for (body, problem) in cases {
        let answer = bench.post("charges", &[b"Content-Type: application/json"], &body).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert_eq!((answer.status_code, answer.problem()), (400, urn(problem)), "{shown}");
    }
    let long = id(&"9".repeat(200));
    assert_new(&bench.post("charges", &[b"Content-Type: text/plain"], &long).await);
    assert_new(&bench.post("charges", &[b"Content-Type: application/json"], b"id=a").await);
    bench.delivers_only(2).await;
}

async fn quoted_and_unquoted_keys_are_the_same(database: Database) {
    let bench = Bench::start(&database).await;
    let raw = bench.post("orders", &[b"Idempotency-Key: same"], b"{}").await;
    assert_new(&raw);
    let quoted = bench.post("orders", &[b"idempotency-key: \"same\""], b"{}").await;
    assert_eq!((quoted.status_code, quoted.header("idempotent-replayed")), (202, "true"));
    assert_eq!(raw.json()["event_id"], quoted.json()["event_id"]);
    assert_new(&bench.post("invoices", &[b"Idempotency-Key: same"], b"{}").await);
    bench.delivers_only(2).await;
}

async fn a_key_with_another_body_is_refused_and_changes_nothing(database: Database) {
    let bench = Bench::start(&database).await;
    let first = bench.post("orders", &[b"Idempotency-Key: k"], b"one").await;
    assert_new(&first);
    let other = bench.post("orders", &[b"Idempotency-Key: k"], b"another").await;
    assert_eq!((other.status_code, other.problem()), (422, urn("key-reused")));
    assert_eq!(other.json()["event_id"], first.json()["event_id"]);
    let third = bench.post("orders", &[b"Idempotency-Key: k"], b"a third").await;
    assert_eq!(third.status_code, 422);
    let warned = "webhooks refused";
    wait::until("the warning in the log", || async {
        let log = bench.service.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(warned)).collect();
        let id = first.json()["event_id"].as_str().expect("an id").to_owned();
        match lines[..] {
            [line] if line.contains("orders") && line.contains(&id) => Ok(()),
            _ => Err(format!("not one warning with the id {id} in a minute: {lines:?}")),
        }
    })
    .await;
    let again = bench.post("orders", &[b"Idempotency-Key: k"], b"one").await;
    assert_eq!(again.json()["event_id"], first.json()["event_id"]);

    assert_new(&bench.post("restamping", &[b"Idempotency-Key: k"], b"at 10:00").await);
    let restamped = bench.post("restamping", &[b"Idempotency-Key: k"], b"at 10:05").await;
    assert_eq!(
        (restamped.status_code, restamped.header("idempotent-replayed")),
        (202, "true"),
        "`on_key_reuse` of this source is `first_wins`"
    );
    bench.delivers_only(2).await;
}

async fn a_body_over_the_limit_is_refused_declared_or_not(database: Database) {
    let bench = Bench::start(&database).await;
    let (fits, too_large) = (vec![b'x'; MAX_BODY], vec![b'x'; MAX_BODY + 1]);
    for (key, framing) in [("declared", Framing::Declared), ("chunked", Framing::Chunked)] {
        let key = format!("Idempotency-Key: {key}");
        let answer = bench.post_framed("orders", &[key.as_bytes()], &too_large, framing).await;
        assert_eq!((answer.status_code, answer.problem()), (413, urn("body-too-large")), "{key}");
        assert_new(&bench.post_framed("orders", &[key.as_bytes()], &fits, framing).await);
    }
    // Refused by its declared length, before any of the body arrives.
    let answer = exchange(
        bench.service.address(),
        &head(
            "POST",
            "/webhooks/orders",
            &[b"Idempotency-Key: k", b"Content-Length: 1000000000000"],
        ),
    )
    .await;
    assert_eq!((answer.status_code, answer.problem()), (413, urn("body-too-large")));
    // Refused by the bytes received so far, without waiting for the end of the body.
    let endless = vec![b'x'; 8 << 20];
    let answer = bench
        .post_framed("orders", &[b"Idempotency-Key: endless"], &endless, Framing::ChunkedWithoutEnd)
        .await;
    assert_eq!((answer.status_code, answer.problem()), (413, urn("body-too-large")));
    bench.delivers_only(2).await;
}

async fn an_unknown_path_or_method_gets_its_problem(database: Database) {
    let bench = Bench::start(&database).await;
    let unknown_event = format!("/events/{}", Uuid::now_v7());
    let cases = [
        ("POST", "/webhooks/unknown", 404, "unknown-source", ""),
        ("POST", "/webhooks/Orders", 404, "unknown-source", ""),
        ("POST", "/webhooks", 404, "unknown-route", ""),
        ("POST", "/webhooks/orders/more", 404, "unknown-route", ""),
        ("GET", "/", 404, "unknown-route", ""),
        ("GET", "/metrics/../events", 404, "unknown-route", ""),
        ("GET", "/webhooks/orders", 405, "method-not-allowed", "POST"),
        ("PUT", "/webhooks/orders", 405, "method-not-allowed", "POST"),
        ("BREW", "/webhooks/orders", 405, "method-not-allowed", "POST"),
        ("DELETE", unknown_event.as_str(), 405, "method-not-allowed", "GET, HEAD"),
        ("POST", "/health", 405, "method-not-allowed", "GET, HEAD"),
        ("POST", "/ready", 405, "method-not-allowed", "GET, HEAD"),
        ("GET", unknown_event.as_str(), 404, "unknown-event", ""),
        ("GET", "/events/1", 400, "bad-event-id", ""),
        ("GET", "/events/%00", 400, "bad-event-id", ""),
        ("GET", "/events/0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e0", 400, "bad-event-id", ""),
        ("POST", "/events/1/redrive", 400, "bad-event-id", ""),
        ("POST", "/events/1/discard", 400, "bad-event-id", ""),
    ];
    for (method, path, status_code, problem, allow) in cases {
        let request = head(method, path, &[b"Idempotency-Key: k", b"Content-Length: 0"]);
        let answer = exchange(bench.service.address(), &request).await;
        assert_eq!(
            (answer.status_code, answer.problem()),
            (status_code, urn(problem)),
            "{method} {path}"
        );
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
    assert_new(&bench.post("orders", &[b"Idempotency-Key: k"], b"{}").await);
    bench.delivers_only(1).await;
}

async fn a_body_that_is_cut_short_or_malformed_stores_nothing(database: Database) {
    let bench = Bench::start(&database).await;
    let address = bench.service.address();
    let cut_short = [
        head("POST", "/webhooks/orders", &[b"Idempotency-Key: k", b"Content-Length: 100"]),
        vec![b'x'; 50],
    ]
    .concat();
    let unfinished = [
        head("POST", "/webhooks/orders", &[b"Idempotency-Key: k", b"Transfer-Encoding: chunked"]),
        b"5\r\nhello\r\n".to_vec(),
    ]
    .concat();
    let malformed = [
        head("POST", "/webhooks/orders", &[b"Idempotency-Key: k", b"Transfer-Encoding: chunked"]),
        b"5\r\nhello\r\nnot a size\r\n".to_vec(),
    ]
    .concat();

    // The sender closes its sending side and still reads, so it gets a response.
    for request in [&cut_short, &unfinished] {
        let mut stream = TcpStream::connect(address).await.expect("the program listens");
        stream.write_all(request).await.expect("the program reads");
        stream.shutdown().await.expect("the sending side can be closed");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .expect("the program responds and closes the connection");
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("body-incomplete"),
            "{answer}"
        );
    }
    let answer = exchange(address, &malformed).await;
    assert_eq!((answer.status_code, answer.problem()), (400, urn("body-incomplete")));
    // The sender closes the connection.
    for request in [&cut_short, &unfinished] {
        let mut stream = TcpStream::connect(address).await.expect("the program listens");
        stream.write_all(request).await.expect("the program reads");
        drop(stream);
    }

    assert_new(&bench.post("orders", &[b"Idempotency-Key: k"], &[b'x'; 100]).await);
    bench.delivers_only(1).await;
}

/// `nc -N` and embedded HTTP stacks close their sending side after the request.
async fn a_client_that_half_closes_after_its_request_gets_a_response(database: Database) {
    let bench = Bench::start(&database).await;
    for n in 0..10 {
        let key = format!("Idempotency-Key: half-{n}");
        let head = format!(
            "POST /webhooks/orders HTTP/1.1\r\nHost: surehook\r\n{key}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let mut stream =
            TcpStream::connect(bench.service.address()).await.expect("the program listens");
        stream.write_all(head.as_bytes()).await.expect("the program reads");
        stream.shutdown().await.expect("the sending side can be closed");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .expect("the program responds and closes the connection");
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer:?}");
    }
    bench.delivers_only(10).await;
}

async fn a_body_that_does_not_arrive_in_time_is_refused(database: Database) {
    let bench = Bench::start(&database).await;
    let stalled = [
        head("POST", "/webhooks/orders", &[b"Idempotency-Key: k", b"Content-Length: 100"]),
        vec![b'x'; 50],
    ]
    .concat();
    let begun = std::time::Instant::now();
    let answer = exchange(bench.service.address(), &stalled).await;
    assert_eq!((answer.status_code, answer.problem()), (408, urn("too-slow")));
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "the response came before the body timeout"
    );
    assert_new(&bench.post("orders", &[b"Idempotency-Key: k"], b"{}").await);
    bench.delivers_only(1).await;
}

async fn malformed_http_is_refused(database: Database) {
    let bench = Bench::start(&database).await;
    let header = [b"X-Long: ", vec![b'x'; 64 << 10].as_slice()].concat();
    let many: Vec<&[u8]> = vec![b"X-Many: 1"; 200];
    let cases: [(Vec<u8>, &[u16]); 5] = [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n".to_vec(), &[400]),
        (
            b"POST /webhooks/orders HTTP/1.1\r\nIdempotency-Key: k\r\nContent-Length: -1\r\n\r\n"
                .to_vec(),
            &[400],
        ),
        (
            b"POST /webhooks/orders HTTP/1.1\r\nIdempotency-Key: k\r\nBad Name: 1\r\n\r\n".to_vec(),
            &[400],
        ),
        (
            head(
                "POST",
                "/webhooks/orders",
                &[b"Idempotency-Key: k", b"Content-Length: 0", &header],
            ),
            &[431],
        ),
        (
            head(
                "POST",
                "/webhooks/orders",
                &[&[b"Idempotency-Key: k".as_slice(), b"Content-Length: 0"], many.as_slice()]
                    .concat(),
            ),
            &[431],
        ),
    ];
    for (request, expected) in cases {
        let answer = exchange(bench.service.address(), &request).await;
        assert!(
            expected.contains(&answer.status_code),
            "{:?}: {answer:?}",
            String::from_utf8_lossy(&request[..request.len().min(80)])
        );
    }
    assert_new(&bench.post("orders", &[b"Idempotency-Key: k"], b"{}").await);
    bench.delivers_only(1).await;
}

/// A service with four sources and a downstream that accepts everything. The source `charges` has its
/// keys in the body.
struct Bench {
    sink: Sink,
    service: Service,
}

#[derive(Clone, Copy)]
enum Framing {
    Declared,
    Chunked,
    ChunkedWithoutEnd,
}

impl Bench {
    async fn start(database: &Database) -> Self {
        let sink = Sink::start(|_| sink::Answer::status(200)).await;
        let configuration = format!(
            r#"
            [intake]
            max_body = "{MAX_BODY}B"
            body_timeout = "500ms"
            [sources.orders]
            destination = "{}"
            [sources.invoices]
            destination = "{}"
            [sources.restamping]
            destination = "{}"
            on_key_reuse = "first_wins"
            [sources.charges]
            destination = "{}"
            idempotency_key = ["json:/id", "form:id"]
            "#,
            sink.url("/orders"),
            sink.url("/invoices"),
            sink.url("/restamping"),
            sink.url("/charges")
        );
        Self { service: Service::start(&database.url(), &configuration).await, sink }
    }

    async fn post(&self, source: &str, headers: &[&[u8]], body: &[u8]) -> Answer {
        self.post_framed(source, headers, body, Framing::Declared).await
    }

    async fn post_framed(
        &self,
        source: &str,
        headers: &[&[u8]],
        body: &[u8],
        framing: Framing,
    ) -> Answer {
        let framed = match framing {
            Framing::Declared => format!("Content-Length: {}", body.len()),
            Framing::Chunked | Framing::ChunkedWithoutEnd => {
                "Transfer-Encoding: chunked".to_owned()
            }
        };
        let mut request =
            head("POST", &format!("/webhooks/{source}"), &[headers, &[framed.as_bytes()]].concat());
        match framing {
            Framing::Declared => request.extend_from_slice(body),
            Framing::Chunked | Framing::ChunkedWithoutEnd => {
                for chunk in body.chunks(16 << 10) {
                    request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    request.extend_from_slice(chunk);
                    request.extend_from_slice(b"\r\n");
                }
            }
        }
        if matches!(framing, Framing::Chunked) {
            request.extend_from_slice(b"0\r\n\r\n");
        }
        exchange(self.service.address(), &request).await
    }

    /// Asserts that exactly this number of events was stored. It posts one last event to each
    /// source with keys in a header and waits for its delivery; the downstream has then received all earlier events as
    /// well.
    async fn delivers_only(&self, events: usize) {
        for source in ["orders", "invoices", "restamping"] {
            let last = self.post(source, &[b"Idempotency-Key: the-last-of-all"], b"last").await;
            assert_new(&last);
            let event: Uuid = last.json()["event_id"]
                .as_str()
                .and_then(|id| id.parse().ok())
                .expect("an event id");
            wait::until("the delivery of the last event", || async {
                if self.sink.of(event).is_empty() { Err("not received".to_owned()) } else { Ok(()) }
            })
            .await;
        }
        self.sink.reaches(events + 3).await;
        let received = self.sink.received();
        assert_eq!(received.len(), events + 3, "a refused request was stored: {received:?}");
    }
}

fn assert_new(answer: &Answer) {
    assert_eq!((answer.status_code, answer.header("idempotent-replayed")), (202, ""), "{answer:?}");
}

fn urn(problem: &str) -> String {
    format!("urn:surehook:problem:{problem}")
}

/// The head of a request with `Connection: close`.
fn head(method: &str, path: &str, headers: &[&[u8]]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
        .into_bytes();
    for line in headers {
        head.extend_from_slice(line);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}
