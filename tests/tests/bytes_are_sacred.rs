//! The downstream receives what the producer sent: every byte of the body, and every value of every
//! header that describes the event. Headers that describe the connection are not forwarded, and
//! neither are credentials.

use sha2::{Digest, Sha256};
use tests::database::Database;
use tests::http::exchange;
use tests::program::Service;
use tests::sink::{Answer, Received, Sink};
use tests::{on_each_database, wait};
use uuid::Uuid;

on_each_database!(
    any_bytes_arrive_with_every_value_of_every_header_in_order,
    empty_and_chunked_bodies_arrive_unchanged,
    connection_headers_and_credentials_are_not_forwarded,
    credentials_are_forwarded_if_the_source_allows_it,
    a_query_arrives_after_that_of_the_destination,
);

async fn any_bytes_arrive_with_every_value_of_every_header_in_order(database: Database) {
    let (sink, service) = start(&database).await;
    let body = random_bytes(100_000);
    assert!(body.contains(&0));
    let headers: [&[u8]; 12] = [
        b"X-Trace: first",
        b"x-trace: second",
        b"X-TRACE: ",
        b"X-Trace: first",
        b"x-Name: caf\xe9 \xff\x80",
        b"X-NAME: \xe6\x97\xa5\xe6\x9c\xac",
        b"X-Comma: a, b",
        b"X-Comma: c,d",
        b"X-Quoted: \"a\\\"b\\\\\"; q=0.5",
        b"X-Tab: a\tb",
        b"Content-Type: application/octet-stream",
        b"Content-Encoding: gzip",
    ];

    let received = delivered(&sink, &service, "plain", &headers, &body).await;

    assert_eq!(received.body_sha256, <[u8; 32]>::from(Sha256::digest(&body)));
    assert_eq!(received.values("x-trace"), [&b"first"[..], b"second", b"", b"first"]);
    assert_eq!(received.values("x-name"), [&b"caf\xe9 \xff\x80"[..], "日本".as_bytes()]);
    assert_eq!(received.values("x-comma"), [&b"a, b"[..], b"c,d"]);
    assert_eq!(received.values("x-quoted"), [&b"\"a\\\"b\\\\\"; q=0.5"[..]]);
    assert_eq!(received.values("x-tab"), [&b"a\tb"[..]]);
    assert_eq!(received.values("content-type"), [&b"application/octet-stream"[..]]);
    assert_eq!(
        received.values("content-encoding"),
        [&b"gzip"[..]],
        "a body with a content encoding is forwarded unchanged"
    );
    assert_eq!(received.values("content-length"), [body.len().to_string().as_bytes()]);
    assert_eq!(received.values("accept"), [b"*/*"]);
    let added: Vec<&str> = received
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| !is_expected(name))
        .collect();
    assert!(added.is_empty(), "headers were added: {added:?}");
}

/// Whether the test sends this header, every delivery has it, or HTTP itself needs it.
fn is_expected(name: &str) -> bool {
    let sent = [
        "x-trace",
        "x-name",
        "x-comma",
        "x-quoted",
        "x-tab",
        "content-type",
        "content-encoding",
        "idempotency-key",
    ];
    let ours = ["surehook-event-id", "surehook-source", "surehook-attempt", "surehook-received-at"];
    // `Accept: */*` means the same as no `Accept`. The HTTP client of the program adds it.
    let transport = ["host", "content-length", "accept"];
    sent.contains(&name) || ours.contains(&name) || transport.contains(&name)
}

async fn empty_and_chunked_bodies_arrive_unchanged(database: Database) {
    let (sink, service) = start(&database).await;
    let empty = delivered(&sink, &service, "plain", &[], b"").await;
    assert_eq!(empty.body_sha256, <[u8; 32]>::from(Sha256::digest(b"")));

    let body = random_bytes(50_000);
    let mut request = head("plain", &[b"Transfer-Encoding: chunked"]);
    for chunk in body.chunks(7_001) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let chunked = accepted(&sink, &service, &request).await;
    assert_eq!(chunked.body_sha256, <[u8; 32]>::from(Sha256::digest(&body)));
    assert!(
        chunked.values("transfer-encoding").is_empty(),
        "the delivery declares its length instead"
    );
}

async fn connection_headers_and_credentials_are_not_forwarded(database: Database) {
    let (sink, service) = start(&database).await;
    let headers: [&[u8]; 11] = [
        b"Connection: X-Hop, keep-alive",
        b"X-Hop: one connection only",
        b"Keep-Alive: timeout=5",
        b"TE: trailers",
        b"Proxy-Authorization: Basic c2VjcmV0",
        b"Authorization: Bearer secret",
        b"Cookie: session=secret",
        b"Surehook-Event-Id: 00000000-0000-0000-0000-000000000000",
        b"Surehook-Attempt: 99",
        b"Surehook_Received_At: 1970-01-01T00:00:00Z",
        b"X-Kept: yes",
    ];
    let received = delivered(&sink, &service, "plain", &headers, b"{}").await;

    for name in ["x-hop", "keep-alive", "te", "proxy-authorization", "authorization", "cookie"] {
        assert!(received.values(name).is_empty(), "{name} was forwarded");
    }
    assert_eq!(received.values("x-kept"), [b"yes"]);
    assert_eq!(
        received.values("host"),
        [sink.url("").trim_start_matches("http://").as_bytes()],
        "the host is that of the downstream"
    );
    assert_eq!(received.values("surehook-attempt"), [b"1"], "the producer's value is replaced");
    assert_eq!(received.values("surehook-event-id").len(), 1);
    assert_eq!(received.values("surehook-received-at").len(), 1);
    assert!(received.values("surehook_received_at").is_empty());
    assert!(!received.event.is_nil());
}

async fn credentials_are_forwarded_if_the_source_allows_it(database: Database) {
    let (sink, service) = start(&database).await;
    let headers: [&[u8]; 3] =
        [b"Authorization: Bearer secret", b"Cookie: a=1", b"Proxy-Authorization: Basic c2VjcmV0"];
    let received = delivered(&sink, &service, "trusted", &headers, b"{}").await;
    assert_eq!(received.values("authorization"), [b"Bearer secret"]);
    assert_eq!(received.values("cookie"), [b"a=1"]);
    assert!(
        received.values("proxy-authorization").is_empty(),
        "credentials for a proxy are never forwarded"
    );
}

async fn a_query_arrives_after_that_of_the_destination(database: Database) {
    let (sink, service) = start(&database).await;
    for (source, query, expected) in [
        ("plain", "", ""),
        ("plain", "?", ""),
        ("plain", "?a=1&a=%2f+x&&;=b", "a=1&a=%2f+x&&;=b"),
        ("plain", "?q='x'&{}|\\^`[]=%zz%", "q='x'&{}|\\^`[]=%zz%"),
        ("tenant", "?a=1", "tenant=acme&a=1"),
        ("tenant", "?Tenant=other&a=1&%74enant[]=x", "tenant=acme&a=1"),
        ("private", "?token=secret", ""),
    ] {
        let target = format!("{source}{query}");
        let received = delivered(&sink, &service, &target, &[], b"{}").await;
        assert_eq!(received.query, expected, "posted to {target}");
        assert_eq!(received.path, format!("/{source}"));
    }
}

async fn start(database: &Database) -> (Sink, Service) {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!(
        "[sources.plain]\ndestination = \"{}\"\n[sources.trusted]\ndestination = \"{}\"\nforward_credentials = true\n[sources.tenant]\ndestination = \"{}\"\n[sources.private]\ndestination = \"{}\"\nforward_query = false\n",
        sink.url("/plain"),
        sink.url("/trusted"),
        sink.url("/tenant?tenant=acme"),
        sink.url("/private")
    );
    let service = Service::start(&database.url(), &configuration).await;
    (sink, service)
}

/// Posts a body with these header lines. Returns what the downstream received.
async fn delivered(
    sink: &Sink,
    service: &Service,
    source: &str,
    headers: &[&[u8]],
    body: &[u8],
) -> Received {
    let length = format!("Content-Length: {}", body.len());
    let mut request = head(source, &[headers, &[length.as_bytes()]].concat());
    request.extend_from_slice(body);
    accepted(sink, service, &request).await
}

fn head(source: &str, headers: &[&[u8]]) -> Vec<u8> {
    let key = Uuid::new_v4();
    let mut head =
        format!("POST /webhooks/{source} HTTP/1.1\r\nHost: surehook\r\nIdempotency-Key: {key}\r\n")
            .into_bytes();
    for line in headers {
        head.extend_from_slice(line);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    head
}

async fn accepted(sink: &Sink, service: &Service, request: &[u8]) -> Received {
    let answer = exchange(service.address(), request).await;
    assert_eq!(answer.status_code, 202, "{answer:?}");
    let event: Uuid =
        answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id");
    wait::until("the delivery", || async {
        sink.of(event).pop().ok_or_else(|| "not received".to_owned())
    })
    .await
}

/// Pseudo-random bytes, the same in each run.
fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    })
    .take(count)
    .collect()
}
