//! Relayed requests on the wire, and the responses that go back.

use crate::sink::{Act, Sink, downstream, until, within};
use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use std::sync::atomic::Ordering;
use std::time::Duration;
use surehook::ports::{MAX_RELAYED_BODY, Relay, RelayFailed, Relayed};
use surehook_core::source::SourceName;
use surehook_core::verdict::DeliveryError;

fn request(method: Method, query: &'static str, body: &'static str) -> Relayed {
    Relayed { method, query: query.into(), headers: HeaderMap::new(), body: body.into() }
}

/// Relays a `POST` to this URL.
async fn relayed(url: &str) -> Result<Response<Bytes>, RelayFailed> {
    let source = SourceName::parse("plain").unwrap();
    let request = request(Method::POST, "", "{}");
    within(downstream(url).relay(&source, request)).await
}

async fn answer_to(act: Act) -> Result<Response<Bytes>, RelayFailed> {
    relayed(&Sink::start(act).await.url()).await
}

fn names(response: &Response<Bytes>) -> Vec<&str> {
    let mut names: Vec<&str> = response.headers().keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_request_is_passed_on_with_method_query_headers_and_body() {
    let sink = Sink::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let url = format!("http://user:secret@{}/hook?own=1", sink.address);
    let source = SourceName::parse("plain").unwrap();
    for method in [Method::POST, Method::GET, Method::OPTIONS, Method::HEAD] {
        let mut relayed = request(method.clone(), "a='b'&own=2", "body");
        relayed.headers.append("x-sig", "one".parse().unwrap());
        relayed.headers.append("x-sig", "two".parse().unwrap());
        let response = within(downstream(&url).relay(&source, relayed)).await.unwrap();
        assert_eq!(response.status(), 200);
        let expected = if method == Method::HEAD { "" } else { "ok" };
        assert_eq!(response.body(), expected, "{method}");
        let sent = String::from_utf8(sink.requests().pop().unwrap()).unwrap();
        let (head, body) = sent.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<&str> = head.split("\r\n").collect();
        let start = format!("{method} /hook?own=1&a='b' HTTP/1.1");
        assert_eq!((lines.remove(0), body), (&*start, "body"));
        lines.sort_unstable();
        let host = format!("host: {}", sink.address);
        let expected = [
            "accept: */*",
            "authorization: Basic dXNlcjpzZWNyZXQ=",
            "content-length: 4",
            &host,
            "surehook-source: plain",
            "x-sig: one",
            "x-sig: two",
        ];
        assert_eq!(lines, expected);
    }
}

#[tokio::test]
async fn a_response_goes_back_without_the_headers_of_its_connection() {
    let response = answer_to(Act::AnswerAndClose(
        b"HTTP/1.1 418 Teapot\r\nContent-Type: text/plain\r\nX-Hook-Secret: s\r\nX-Hook-Secret: t\r\n\
          Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\n\
          Surehook-Event-Id: forged\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            .to_vec(),
    ))
    .await
    .unwrap();
    assert_eq!((response.status().as_u16(), &response.body()[..]), (418, &b"abc"[..]));
    assert_eq!(names(&response), ["content-type", "x-hook-secret"]);
    assert_eq!(response.headers().get_all("x-hook-secret").iter().count(), 2);
}

#[tokio::test]
async fn a_redirect_goes_back_and_is_not_followed() {
    let elsewhere = Sink::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let redirect = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
        elsewhere.url()
    );
    let response = answer_to(Act::Answer(redirect.into())).await.unwrap();
    assert_eq!(response.status(), 307);
    assert_eq!(response.headers()["location"], elsewhere.url());
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn interim_responses_are_skipped() {
    let response = answer_to(Act::Answer(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
          HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            .to_vec(),
    ))
    .await
    .unwrap();
    assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"ok"[..]));
    assert_eq!(names(&response), [""; 0]);
}

#[tokio::test]
async fn a_body_of_64_kib_goes_back_and_one_byte_more_fails() {
    for (length, fits) in [(MAX_RELAYED_BODY, true), (MAX_RELAYED_BODY + 1, false)] {
        let declared = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let chunked =
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n");
        let body = vec![b'x'; length];
        for response in [
            [declared.as_bytes(), &body].concat(),
            [chunked.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat(),
            [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &body].concat(),
        ] {
            let answer = answer_to(Act::AnswerAndClose(response)).await;
            match answer {
                Ok(response) => assert_eq!((response.body().len(), fits), (length, true)),
                Err(error) => assert_eq!((error, fits), (RelayFailed::TooLarge, false)),
            }
        }
    }
}

#[tokio::test]
async fn an_endless_body_is_read_no_further_than_its_limit() {
    let sink = Sink::start(Act::Flood(b"HTTP/1.1 200 OK\r\n\r\n".to_vec())).await;
    assert_eq!(relayed(&sink.url()).await.unwrap_err(), RelayFailed::TooLarge);
    until(|| sink.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_response_that_is_not_complete_fails() {
    let reset = RelayFailed::NoResponse(DeliveryError::ConnectionReset);
    let invalid = RelayFailed::NoResponse(DeliveryError::InvalidResponse);
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (response, error) in [
        (String::new(), reset),
        ("HTTP/1.1 200 OK\r\ncontent-le".to_owned(), reset),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhal".to_owned(), reset),
        (format!("{chunked}5\r\nhal"), reset),
        (format!("{chunked}nonsense\r\n"), invalid),
        ("nonsense\r\n\r\n".to_owned(), invalid),
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
                .to_owned(),
            invalid,
        ),
    ] {
        let answer = answer_to(Act::AnswerAndClose(response.clone().into())).await;
        assert_eq!(answer.unwrap_err(), error, "{response:?}");
    }
    assert_eq!(answer_to(Act::Reset).await.unwrap_err(), reset);
}

#[tokio::test]
async fn a_destination_that_is_not_reachable_fails() {
    let refused = RelayFailed::NoResponse(DeliveryError::ConnectionRefused);
    assert_eq!(relayed("http://127.0.0.1:9/").await.unwrap_err(), refused);
}

#[tokio::test]
async fn a_request_that_is_dropped_closes_its_connection() {
    let sink = Sink::start(Act::Drip(b"HTTP/1.1 200 OK\r\n\r\n".to_vec())).await;
    let downstream = downstream(&sink.url());
    let source = SourceName::parse("plain").unwrap();
    let relayed = downstream.relay(&source, request(Method::POST, "", "{}"));
    let waited = tokio::time::timeout(Duration::from_millis(200), relayed).await;
    assert!(waited.is_err());
    assert_eq!(sink.requests().len(), 1);
    until(|| sink.closed.load(Ordering::SeqCst) == 1).await;
}
