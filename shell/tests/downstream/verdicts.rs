//! The status of a complete response head decides the reply, even if the rest of the response is
//! malformed.

use crate::sink::{Act, ENOUGH, Sink, downstream, sent};
use bytes::Bytes;
use std::time::Duration;
use surehook_core::verdict::Reply;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

fn ok(excerpt: &'static [u8]) -> Reply {
    Reply::Response { status_code: 200, retry_after: None, excerpt: Bytes::from_static(excerpt) }
}

#[tokio::test]
async fn a_malformed_header_does_not_change_the_status() {
    let many =
        |count: usize| (0..count).map(|n| format!("X-{n}: v\r\n")).collect::<String>().into_bytes();
    let headers: Vec<(&str, Vec<u8>)> = vec![
        ("101 headers", many(101)),
        ("1000 headers", many(1000)),
        ("a space before the colon", b"X-Name : v\r\n".to_vec()),
        (
            "a space before the colon of the length",
            b"X-Before: v\r\nContent-Length : 2\r\n".to_vec(),
        ),
        ("a control byte in a cookie", b"Set-Cookie: a=\x01b\r\n".to_vec()),
        ("DEL in a value", b"X-Name: a\x7fb\r\n".to_vec()),
        (
            "a warning of PHP in text",
            b"PHP Warning:  Undefined variable $x in /app/index.php on line 3\r\n".to_vec(),
        ),
        (
            "a warning of PHP in HTML",
            b"<br />\r\n<b>Warning</b>:  Undefined variable $x in <b>/app/index.php</b>\r\n"
                .to_vec(),
        ),
        ("a folded line", b"X-Name: a\r\n  b\r\n\tc\r\n".to_vec()),
        ("a folded line at first", b" X-Name: a\r\n".to_vec()),
        ("a space in a name", b"X Name: v\r\n".to_vec()),
        ("a line without a colon", b"nonsense\r\n".to_vec()),
        ("an empty name", b": v\r\n".to_vec()),
        ("a name that is not ASCII", b"X-\xff: v\r\n".to_vec()),
        ("a value of UTF-8", "X-Name: caf\u{e9}\r\n".into()),
        ("a long value", format!("X-Name: {}\r\n", "v".repeat(64 << 10)).into_bytes()),
        ("line feeds alone", b"X-Name: v\nX-Other: v\n".to_vec()),
    ];
    let mut wrong = Vec::new();
    for (what, lines) in headers {
        let answer = [&b"HTTP/1.1 200 OK\r\n"[..], &lines, b"Content-Length: 2\r\n\r\nok"].concat();
        let sink = Sink::answering(answer).await;
        let downstream = downstream(&sink.url());
        for _ in 0..2 {
            let reply = sent(&downstream, ENOUGH).await;
            if reply != ok(b"ok") {
                wrong.push(format!("{what}: {reply:?}"));
            }
        }
        assert_eq!(sink.requests().len(), 2, "{what}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_malformed_header_does_not_hide_a_retry_after() {
    let sink = Sink::answering(b"HTTP/1.1 503 x\r\nPHP Warning:  x\r\nRetry-After : 7\r\nX Y: z\r\ncontent-length: 0\r\n\r\n").await;
    let expected = Reply::Response {
        status_code: 503,
        retry_after: Some(Duration::from_secs(7)),
        excerpt: Bytes::new(),
    };
    assert_eq!(sent(&downstream(&sink.url()), ENOUGH).await, expected);
}

#[tokio::test]
async fn interim_responses_are_not_the_reply() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let sink =
        Sink::answering(format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")).await;
    assert_eq!(sent(&downstream(&sink.url()), ENOUGH).await, ok(b"ok"));
}

#[tokio::test]
async fn a_truncated_body_does_not_change_the_status() {
    let closed: [(&[u8], &[u8]); 5] = [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nnonsense\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n", b""),
    ];
    for (answer, excerpt) in closed {
        let sink = Sink::start(Act::AnswerAndClose(answer.into())).await;
        let reply = sent(&downstream(&sink.url()), ENOUGH).await;
        assert_eq!(reply, ok(excerpt), "{}", String::from_utf8_lossy(answer));
    }
}

/// More than the time limit for a body, and less than the timeout of the delivery.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn an_endless_body_is_read_for_a_short_time_only() {
    let acts: [(Act, &[u8]); 3] = [
        (
            Act::AnswerAndHang(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello".into()),
            b"hello",
        ),
        (Act::AnswerAndHang(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into()), b""),
        (Act::Drip(b"HTTP/1.1 200 OK\r\n\r\n".into()), b"."),
    ];
    for (act, excerpt) in acts {
        let sink = Sink::start(act.clone()).await;
        let begun = Instant::now();
        let Reply::Response { status_code: 200, excerpt: kept, .. } =
            sent(&downstream(&sink.url()), ENOUGH).await
        else {
            panic!("{act:?}")
        };
        assert!(kept.starts_with(excerpt), "{act:?}: {kept:?}");
        assert!(begun.elapsed() < SOON, "{act:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_body_is_not_read_beyond_the_timeout() {
    let limit = Duration::from_millis(400);
    for act in [
        Act::AnswerAndHang(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n".into()),
        Act::AnswerLateAndHang(limit / 2, b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n".into()),
    ] {
        let sink = Sink::start(act.clone()).await;
        let begun = Instant::now();
        assert_eq!(sent(&downstream(&sink.url()), limit).await, ok(b""), "{act:?}");
        // Less than the time limit for a body.
        assert!(begun.elapsed() < limit * 2, "{act:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_connection_with_an_unfinished_body_is_not_reused() {
    let sink = Sink::start(Act::AnswerAndHang(
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello".into(),
    ))
    .await;
    let downstream = downstream(&sink.url());
    for _ in 0..2 {
        assert_eq!(sent(&downstream, Duration::from_millis(300)).await, ok(b"hello"));
    }
    assert_eq!(sink.connections.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_response_sent_before_the_request_is_read_is_the_reply() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 64];
            stream.read_exact(&mut head).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            // Read the rest of the request without answering, so that the kernel does not reset the
            // connection.
            tokio::spawn(async move {
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    let body = vec![b'x'; 1 << 20];
    let reply = crate::sink::within(surehook::ports::Downstream::send(
        &downstream(&url),
        &crate::sink::claim(b"\r\n", &body),
        ENOUGH,
    ));
    assert_eq!(reply.await, ok(b"ok"));
}
