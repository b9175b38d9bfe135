//! The request that a delivery sends, and the reply that a response becomes.

use crate::sink::{Act, ENOUGH, Sink, claim, downstream, sent, source, until, within};
use bytes::Bytes;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use reqwest::Url;
use std::sync::atomic::Ordering;
use std::time::Duration;
use surehook::downstream::{HttpDownstream, send_once};
use surehook::ports::Downstream;
use surehook_core::verdict::{DeliveryError, MAX_EXCERPT_BYTES, Reply};
use surehook_core::worker::claims::Claim;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[track_caller]
fn response(reply: Reply) -> (u16, Option<Duration>, Bytes) {
    match reply {
        Reply::Response { status_code, retry_after, excerpt } => {
            (status_code, retry_after, excerpt)
        }
        failed @ (Reply::Failed(_) | Reply::NotSent) => panic!("{failed:?}"),
    }
}

/// The request line, the header lines in order, and the body of a request.
fn parts(request: &[u8]) -> (&[u8], Vec<&[u8]>, &[u8]) {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut lines = request[..end].split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end);
    (lines.next().unwrap(), lines.collect(), &request[end + 4..])
}

#[tokio::test]
async fn an_event_is_sent_byte_for_byte_with_the_surehook_headers() {
    let sink = Sink::answering(OK).await;
    let headers =
        b"x-sig: one\r\nx-bytes: caf\xc3\xa9 \xff\r\nx-sig: two\r\naccept-encoding: br\r\nx-empty: \r\nsurehook-attempt: 9\r\n\r\n";
    let body = [&[0, 0xff, b'\r', b'\n'], &[7; 100_000][..]].concat();
    let reply = within(downstream(&sink.url()).send(&claim(headers, &body), ENOUGH)).await;
    assert_eq!(response(reply), (200, None, Bytes::from_static(b"ok")));

    let requests = sink.requests();
    let (line, headers, sent) = parts(&requests[0]);
    assert_eq!((line, sent), (&b"POST /hook?q=1 HTTP/1.1"[..], &body[..]));
    let of = |name: &[u8]| {
        headers
            .iter()
            .filter(|line| line.starts_with(name))
            .map(|line| &line[name.len()..])
            .collect::<Vec<_>>()
    };
    assert_eq!(of(b"x-sig: "), [b"one", b"two"]);
    assert_eq!(of(b"x-bytes: "), [b"caf\xc3\xa9 \xff"]);
    assert_eq!(of(b"accept-encoding: "), [b"br"]);
    assert_eq!(of(b"x-empty:").len(), 1);
    assert_eq!(of(b"content-length: "), [b"100004"]);
    assert_eq!(of(b"host: "), [sink.address.to_string().as_bytes()]);
    assert_eq!(of(b"surehook-event-id: "), [b"0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"]);
    assert_eq!(
        (of(b"surehook-source: "), of(b"surehook-attempt: ")),
        (vec![&b"plain"[..]], vec![&b"3"[..]])
    );
    assert_eq!(of(b"surehook-received-at: "), [b"2026-11-29T08:00:00.012345Z"]);
    assert_eq!(
        headers.len(),
        12,
        "the headers above and the default `accept`: {:?}",
        String::from_utf8_lossy(&requests[0])
    );
}

/// The target of the request to this path of a destination, for an event with this query.
async fn target(path: &str, query: &'static [u8]) -> String {
    let sink = Sink::answering(OK).await;
    let url = format!("http://{}{path}", sink.address);
    let claim = Claim { query: Bytes::from_static(query), ..claim(b"\r\n", b"") };
    assert_eq!(response(within(downstream(&url).send(&claim, ENOUGH)).await).0, 200);
    let requests = sink.requests();
    let line = String::from_utf8(parts(&requests[0]).0.to_vec()).unwrap();
    line.strip_prefix("POST ").unwrap().strip_suffix(" HTTP/1.1").unwrap().to_owned()
}

#[tokio::test]
async fn the_query_of_an_event_is_appended_to_that_of_the_destination() {
    assert_eq!(target("/hook", b"").await, "/hook");
    assert_eq!(target("/hook", b"a=1&a=%2f+x&&;=b").await, "/hook?a=1&a=%2f+x&&;=b");
    assert_eq!(target("/hook?token=t", b"").await, "/hook?token=t");
    assert_eq!(target("/hook?token=t", b"a=1&Token=other&b").await, "/hook?token=t&a=1&b");
    assert_eq!(target("/hook?token=t", b"%74oken=other").await, "/hook?token=t");
    assert_eq!(target("/hook?", b"a").await, "/hook?a");
}

#[tokio::test]
async fn the_query_of_an_event_is_sent_byte_for_byte() {
    let all = "!$%&'()*+,-./0123456789:;=?@ABCXYZ[\\]^_`abcxyz{|}~caf\u{e9}".as_bytes();
    assert_eq!(target("/", all).await.as_bytes(), [b"/?", all].concat());
    let own = target("/hook?a='b'", b"q='c'&%27=%2f").await;
    assert_eq!(own, "/hook?a=%27b%27&q='c'&%27=%2f", "the destination's own query is normalized");
}

#[tokio::test]
async fn an_event_whose_url_is_too_long_is_not_sent() {
    let sink = Sink::answering(OK).await;
    for (query, is_sent) in [("q".repeat(60_000), true), ("q".repeat(65_530), false)] {
        let claim = Claim { query: query.into(), ..claim(b"\r\n", b"") };
        let reply = within(downstream(&sink.url()).send(&claim, ENOUGH)).await;
        let expected = Reply::Failed(DeliveryError::ConnectionFailed);
        assert_eq!(reply != expected, is_sent, "{reply:?}");
    }
    let claim = Claim { query: Bytes::from_static(b"\xff"), ..claim(b"\r\n", b"") };
    let reply = within(downstream(&sink.url()).send(&claim, ENOUGH)).await;
    assert_eq!(reply, Reply::Failed(DeliveryError::ConnectionFailed));
    assert_eq!(sink.requests().len(), 1);
}

#[tokio::test]
async fn an_empty_body_has_content_length_0_and_no_added_headers() {
    let sink = Sink::answering(OK).await;
    within(downstream(&sink.url()).send(&claim(b"\r\n", b""), ENOUGH)).await;
    let requests = sink.requests();
    let (_, headers, body) = parts(&requests[0]);
    let lengths =
        headers.iter().filter(|line| line.starts_with(b"content-length")).collect::<Vec<_>>();
    assert_eq!((lengths, body), (vec![&&b"content-length: 0"[..]], &b""[..]));
    for absent in
        [&b"accept-encoding"[..], b"user-agent", b"referer", b"content-type", b"transfer-encoding"]
    {
        assert!(
            !headers.iter().any(|line| line.starts_with(absent)),
            "{:?}",
            String::from_utf8_lossy(absent)
        );
    }
}

#[tokio::test]
async fn credentials_in_a_url_become_the_authorization_of_that_destination_only() {
    let sink = Sink::answering(OK).await;
    let url = format!("http://user:p%40ss@{}/hook", sink.address);
    within(downstream(&url).send(&claim(b"authorization: Bearer producers\r\n\r\n", b""), ENOUGH))
        .await;
    within(
        downstream(&sink.url())
            .send(&claim(b"authorization: Bearer producers\r\n\r\n", b""), ENOUGH),
    )
    .await;
    let sent = sink.requests();
    let authorization = |request: &[u8]| {
        let lines = parts(request).1;
        lines
            .into_iter()
            .filter(|line| line.starts_with(b"authorization"))
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    assert_eq!(authorization(&sent[0]), [b"authorization: Basic dXNlcjpwQHNz"], "user:p@ss");
    assert_eq!(authorization(&sent[1]), [b"authorization: Bearer producers"]);
}

#[test]
fn an_unsupported_destination_is_an_error_that_shows_no_password() {
    assert!(HttpDownstream::new(&source("http://user:hush@[::1]:99/")).is_ok());
    for url in ["ftp://user:hush@host/", "mailto:user@host"] {
        let error = HttpDownstream::new(&source(url)).err().expect(url);
        assert!(
            error.to_string().contains("`plain`") && !format!("{error:?}").contains("hush"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn every_status_code_is_reported_unchanged() {
    for status_code in [200, 204, 304, 400, 429, 500, 599, 999] {
        let sink =
            Sink::answering(format!("HTTP/1.1 {status_code} x\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(
            response(sent(&downstream(&sink.url()), ENOUGH).await),
            (status_code, None, Bytes::new())
        );
    }
}

#[tokio::test]
async fn a_redirect_is_a_reply_and_is_not_followed() {
    for status_code in [301, 302, 303, 307, 308] {
        let elsewhere = Sink::answering(OK).await;
        let sink = Sink::answering(format!(
            "HTTP/1.1 {status_code} x\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
            elsewhere.url()
        ))
        .await;
        assert_eq!(response(sent(&downstream(&sink.url()), ENOUGH).await).0, status_code);
        assert_eq!((sink.requests().len(), elsewhere.requests().len()), (1, 0));
    }
}

#[tokio::test]
async fn a_compressed_response_is_kept_compressed() {
    let sink = Sink::answering(
        b"HTTP/1.1 503 x\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00",
    )
    .await;
    assert_eq!(
        response(sent(&downstream(&sink.url()), ENOUGH).await),
        (503, None, Bytes::from_static(b"\x1f\x8b\x08\x00"))
    );
}

#[tokio::test]
async fn the_start_of_a_response_is_kept_and_its_connection_reused() {
    let body: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let chunked = [
        &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n"[..],
        &body,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    let declared = [&b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"[..], &body].concat();
    for answer in [chunked, declared] {
        let sink = Sink::answering(answer).await;
        let downstream = downstream(&sink.url());
        for _ in 0..3 {
            assert_eq!(response(sent(&downstream, ENOUGH).await).2, body[..MAX_EXCERPT_BYTES]);
        }
        assert_eq!((sink.requests().len(), sink.connections.load(Ordering::SeqCst)), (3, 1));
    }
}

#[tokio::test]
async fn a_response_that_is_too_long_only_closes_its_connection() {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n"] {
        let sink = Sink::start(Act::Flood(head.into())).await;
        let downstream = downstream(&sink.url());
        for connections in 1..=2 {
            let (status_code, _, excerpt) = response(sent(&downstream, ENOUGH).await);
            assert_eq!((status_code, excerpt.len()), (200, MAX_EXCERPT_BYTES));
            assert_eq!(sink.connections.load(Ordering::SeqCst), connections);
        }
        until(|| sink.closed.load(Ordering::SeqCst) == 2).await;
    }
}

#[tokio::test]
async fn a_long_response_is_not_read_to_its_end() {
    let body = vec![b'x'; 4 << 20];
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let sink = Sink::answering([head.as_bytes(), &body].concat()).await;
    let downstream = downstream(&sink.url());
    for connections in 1..=2 {
        assert_eq!(response(sent(&downstream, ENOUGH).await).2, body[..MAX_EXCERPT_BYTES]);
        assert_eq!(
            sink.connections.load(Ordering::SeqCst),
            connections,
            "a connection with unread bytes is not reused"
        );
    }
}

#[tokio::test]
async fn a_kept_connection_that_the_downstream_closed_fails_no_delivery() {
    let sink = Sink::start(Act::AnswerAndClose(OK.into())).await;
    let downstream = downstream(&sink.url());
    for sent_before in 0..20 {
        until(|| sink.closed.load(Ordering::SeqCst) == sent_before).await;
        assert_eq!(response(sent(&downstream, ENOUGH).await).0, 200);
    }
    assert_eq!(sink.requests().len(), 20);
}

#[tokio::test]
async fn retry_after_is_parsed_as_seconds_or_as_a_date() {
    let in_a_minute = Timestamp::now().checked_add(Duration::from_mins(1)).unwrap();
    let in_a_minute = DateTimePrinter::new().timestamp_to_rfc9110_string(&in_a_minute).unwrap();
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let cases = [
        ("retry-after: 120\r\n".to_owned(), 120..=120),
        (format!("{date}retry-after: 7\r\n"), 7..=7),
        (format!("{date}retry-after: Sun, 06 Nov 1994 08:50:37 GMT\r\n"), 60..=60),
        (format!("{date}Retry-After: Sunday, 06-Nov-94 08:50:07 GMT\r\n"), 30..=30),
        (format!("retry-after: {in_a_minute}\r\n"), 40..=60),
    ];
    for (headers, expected) in cases {
        let sink =
            Sink::answering(format!("HTTP/1.1 503 x\r\n{headers}content-length: 0\r\n\r\n")).await;
        let asked = response(sent(&downstream(&sink.url()), ENOUGH).await)
            .1
            .unwrap_or_else(|| panic!("{headers}"));
        assert!(expected.contains(&asked.as_secs()), "{headers}: {asked:?}");
    }
    for nothing in [
        "",
        "retry-after: soon\r\n",
        "retry-after: \u{ff}\r\n",
        "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
    ] {
        let sink =
            Sink::answering(format!("HTTP/1.1 503 x\r\n{nothing}content-length: 0\r\n\r\n")).await;
        assert_eq!(response(sent(&downstream(&sink.url()), ENOUGH).await).1, None, "{nothing}");
    }
}

#[tokio::test]
async fn a_timeout_beyond_the_range_of_the_clock_is_unlimited() {
    let sink = Sink::answering(OK).await;
    assert_eq!(response(sent(&downstream(&sink.url()), Duration::MAX).await).0, 200);
}

#[tokio::test]
async fn an_event_is_sent_once_to_another_url_as_a_delivery() {
    let body = "b".repeat(3000);
    let answer = format!("HTTP/1.1 422 No\r\ncontent-length: 3000\r\n\r\n{body}");
    let sink = Sink::answering(answer).await;
    let mut delivered = claim(b"x-sig: one\r\n\r\n", b"\0\xff");
    delivered.query = Bytes::from_static(b"a='1'");
    let url: Url = format!("http://user:pass@{}/hook?own=1", sink.address).parse().unwrap();
    let sent = within(send_once(&url, &delivered, ENOUGH)).await.unwrap();
    let Reply::Response { status_code, excerpt, .. } = sent.reply else { panic!("{sent:?}") };
    assert_eq!((status_code, &excerpt[..]), (422, body.as_bytes()), "more than a stored excerpt");

    within(downstream(url.as_str()).send(&delivered, ENOUGH)).await;
    let requests = sink.requests();
    assert_eq!(requests[0], requests[1], "the request differs from that of a delivery");
}

#[tokio::test]
async fn an_event_that_is_sent_once_to_no_service_has_its_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let sent = within(send_once(&url, &claim(b"\r\n", b""), ENOUGH)).await.unwrap();
    assert_eq!(sent.reply, Reply::Failed(DeliveryError::ConnectionRefused));
    assert!(sent.cause.contains("refused"), "{sent:?}");
    let claim = Claim { headers: Bytes::from_static(b"no colon"), ..claim(b"\r\n", b"") };
    assert!(within(send_once(&url, &claim, ENOUGH)).await.is_err());
}
