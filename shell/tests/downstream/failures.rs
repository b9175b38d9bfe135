//! How a delivery without a complete response head is classified.

use crate::sink::{Act, ENOUGH, Sink, claim, downstream, sent, within};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use surehook::downstream::HttpDownstream;
use surehook::ports::Downstream;
use surehook_core::verdict::{DeliveryError, Reply};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::Acceptor;

const SHORT: Duration = Duration::from_millis(200);

async fn failure_at(url: &str, limit: Duration) -> DeliveryError {
    match sent(&downstream(url), limit).await {
        Reply::Failed(error) => error,
        reply @ (Reply::Response { .. } | Reply::NotSent) => panic!("{reply:?}"),
    }
}

async fn failure(act: Act) -> DeliveryError {
    failure_at(&Sink::start(act).await.url(), ENOUGH).await
}

/// The failure of a delivery that must last until its timeout, and not much longer.
async fn late_failure(url: &str) -> DeliveryError {
    let begun = Instant::now();
    let failure = failure_at(url, SHORT).await;
    let took = begun.elapsed();
    assert!((SHORT..SHORT * 10).contains(&took), "{took:?}");
    failure
}

#[tokio::test]
async fn a_closed_port_is_connection_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(
        failure_at(&format!("http://{address}/"), ENOUGH).await,
        DeliveryError::ConnectionRefused
    );
}

#[tokio::test]
async fn an_unroutable_address_is_connection_failed() {
    assert_eq!(
        failure_at("http://255.255.255.255/", ENOUGH).await,
        DeliveryError::ConnectionFailed
    );
}

#[tokio::test]
async fn an_unknown_name_is_a_dns_error() {
    assert_eq!(failure_at("http://no-such-host.invalid/", ENOUGH).await, DeliveryError::Dns);
}

#[tokio::test]
async fn a_connection_that_closes_before_the_head_ends_is_connection_reset() {
    for act in [
        Act::Reset,
        Act::AnswerAndClose(b"".into()),
        Act::AnswerAndClose(b"HTTP/1.1 200".into()),
        Act::AnswerAndClose(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n".into()),
        Act::AnswerAndClose(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".into()),
    ] {
        assert_eq!(failure(act.clone()).await, DeliveryError::ConnectionReset, "{act:?}");
    }
}

#[tokio::test]
async fn a_response_that_is_not_http_is_invalid() {
    let endless_head = format!("HTTP/1.1 200 OK\r\nx: {}", "v".repeat(1 << 20));
    for answer in [
        &b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..],
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        endless_head.as_bytes(),
    ] {
        let told = failure(Act::AnswerAndHang(answer.into())).await;
        assert_eq!(
            told,
            DeliveryError::InvalidResponse,
            "{}",
            String::from_utf8_lossy(&answer[..answer.len().min(60)])
        );
    }
}

#[tokio::test]
async fn a_missing_response_head_is_a_timeout() {
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let sink = Sink::start(Act::AnswerAndHang(answer.into())).await;
        assert_eq!(late_failure(&sink.url()).await, DeliveryError::Timeout);
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    assert_eq!(late_failure(&url).await, DeliveryError::Timeout, "in the TLS handshake");
}

#[tokio::test]
async fn a_server_without_tls_is_a_tls_error() {
    // An HTTP server answers like this when it reads a TLS handshake as a request.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        std::future::pending::<()>().await;
    });
    assert_eq!(failure_at(&url, ENOUGH).await, DeliveryError::Tls);
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused_and_sni_names_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let downstream = downstream(&url);
    // openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500
    //     -subj /CN=localhost …
    let certificate = CertificateDer::from(&include_bytes!("self-signed.der")[..]);
    let key = PrivateKeyDer::try_from(&include_bytes!("self-signed.key.der")[..]).unwrap();
    let config = Arc::new(
        ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap(),
    );
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.unwrap();
        let name = start.client_hello().server_name().map(str::to_owned);
        (name, start.into_stream(config).await.is_err())
    });
    assert_eq!(sent(&downstream, ENOUGH).await, Reply::Failed(DeliveryError::Tls));
    assert_eq!(within(server).await.unwrap(), (Some("localhost".to_owned()), true));
}

#[tokio::test]
async fn an_event_that_cannot_be_sent_fails_without_a_panic() {
    let nowhere = HttpDownstream::new(&BTreeMap::new()).unwrap();
    assert_eq!(sent(&nowhere, ENOUGH).await, Reply::Failed(DeliveryError::ConnectionFailed));
    let sink = Sink::answering("").await;
    let changed_by_hand = claim(b"no header section", b"");
    let reply = within(downstream(&sink.url()).send(&changed_by_hand, ENOUGH)).await;
    assert_eq!(reply, Reply::Failed(DeliveryError::ConnectionFailed));
    assert_eq!(sink.requests().len(), 0);
}
