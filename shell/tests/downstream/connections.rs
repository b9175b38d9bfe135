//! How connections to downstreams are opened, kept alive and closed.

use crate::sink::{
    Act, ENOUGH, Sink, claim, downstream as downstream_at, sent, source, until, within,
};
use bytes::Bytes;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use surehook::downstream::{Connecting, HttpDownstream};
use surehook::ports::Downstream;
use surehook_core::verdict::{DeliveryError, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Longer than a connection takes, and shorter than a delivery may.
const OPENED_WITHIN: Duration = Duration::from_millis(900);

/// A resolver that answers the same addresses for every name, in this order.
struct Fixed(Vec<Ipv4Addr>);

impl Resolve for Fixed {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Vec<_> =
            self.0.iter().map(|&address| SocketAddr::from((address, 0))).collect();
        Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
    }
}

/// A resolver that answers 127.0.0.N for every name. The test can change N.
#[derive(Clone)]
struct Moving(Arc<AtomicU8>);

impl Resolve for Moving {
    fn resolve(&self, _: Name) -> Resolving {
        let address =
            SocketAddr::from((Ipv4Addr::new(127, 0, 0, self.0.load(Ordering::SeqCst)), 0));
        Box::pin(async move { Ok(Box::new([address].into_iter()) as Addrs) })
    }
}

fn downstream(
    url: &str,
    max_age: Duration,
    resolver: Moving,
    tls: Option<ClientConfig>,
) -> HttpDownstream {
    let connecting =
        Connecting { max_age, opened_within: OPENED_WITHIN, resolver: Arc::new(resolver), tls };
    HttpDownstream::connecting(&source(url), connecting).unwrap()
}

#[tokio::test]
async fn a_second_address_is_tried_if_the_first_does_not_answer() {
    let sink = Sink::answering(OK).await;
    // A listener whose queue is full: the kernel drops what else arrives.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 2], sink.address.port()));
    silent.bind(&address.into()).unwrap();
    silent.listen(0).unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    assert!(
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err(),
        "the queue is full"
    );
    let resolver = Fixed(vec![Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST]);
    let connecting = Connecting {
        max_age: Duration::from_mins(1),
        opened_within: OPENED_WITHIN,
        resolver: Arc::new(resolver),
        tls: None,
    };
    let url = format!("http://two.test:{}/", sink.address.port());
    let downstream = HttpDownstream::connecting(&source(&url), connecting).unwrap();
    assert_eq!(sent(&downstream, ENOUGH).await, response(b"ok"));
}

#[tokio::test]
async fn a_connection_that_is_not_opened_in_time_is_a_timeout() {
    let (listener, _, url) = tls_server().await;
    let resolver = Moving(Arc::new(AtomicU8::new(1)));
    let downstream = downstream(&url, Duration::from_mins(1), resolver, Some(any_certificate()));
    // The kernel accepts the connection, and no handshake follows.
    assert_eq!(sent(&downstream, ENOUGH).await, Reply::Failed(DeliveryError::Timeout));
    drop(listener);
}

/// A delivery that waits for a connection takes the first one that is free. The one that was being
/// opened for it is opened further, and no delivery's deadline applies.
#[tokio::test]
async fn a_handshake_that_no_delivery_waits_for_ends_in_time() {
    let (listener, acceptor, url) = tls_server().await;
    let resolver = Moving(Arc::new(AtomicU8::new(1)));
    let downstream = downstream(&url, Duration::from_mins(1), resolver, Some(any_certificate()));
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut unfinished = None;
        for _ in 0..2 {
            let mut request = Vec::new();
            while !request.ends_with(b"body") {
                stream.read_buf(&mut request).await.unwrap();
            }
            if unfinished.is_none() {
                // The second delivery opens this connection, and gets the first one.
                unfinished = Some(listener.accept().await.unwrap().0);
            }
            stream.write_all(OK).await.unwrap();
            stream.flush().await.unwrap();
        }
        let mut unfinished = unfinished.unwrap();
        let mut hello = Vec::new();
        // Ends when the client closes it.
        let _ = unfinished.read_to_end(&mut hello).await;
        assert!(!hello.is_empty(), "the handshake began");
    });
    let replies = tokio::join!(sent(&downstream, ENOUGH), sent(&downstream, ENOUGH));
    assert_eq!(replies, (response(b"ok"), response(b"ok")));
    within(serving).await.unwrap();
}

/// A downstream that receives the rest later would process the event, and again the next attempt.
#[tokio::test]
async fn the_rest_of_a_delivery_that_timed_out_is_not_sent() {
    const BODY: usize = 64 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let downstream = downstream_at(&format!("http://{}/", listener.local_addr().unwrap()));
    let claim = claim(b"\r\n", &vec![b'.'; BODY]);
    let (reply, accepted) = within(futures::future::join(
        downstream.send(&claim, Duration::from_millis(300)),
        listener.accept(),
    ))
    .await;
    assert_eq!(reply, Reply::Failed(DeliveryError::Timeout));
    let mut received = Vec::new();
    // An error is a reset, which is an end, too.
    let _ = within(accepted.unwrap().0.read_to_end(&mut received)).await;
    assert!(!received.is_empty() && received.len() < BODY, "{} bytes", received.len());
}

/// Some services answer before they have read the request. What they have not read would occupy memory
/// that no limit covers. An event that was accepted is never sent again, so its rest is.
#[tokio::test]
async fn the_rest_of_a_delivery_is_sent_only_if_the_event_was_accepted() {
    const BODY: usize = 64 << 20;
    const REFUSED: &[u8] = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nok";
    for (answer, status_code, is_whole) in [(REFUSED, 413, false), (OK, 200, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let downstream = downstream_at(&format!("http://{}/", listener.local_addr().unwrap()));
        let claim = claim(b"\r\n", &vec![b'.'; BODY]);
        let answers = async {
            let mut stream = listener.accept().await.unwrap().0;
            let mut begun = [0; 1];
            stream.read_exact(&mut begun).await.unwrap();
            stream.write_all(answer).await.unwrap();
            stream
        };
        let (reply, mut stream) =
            within(futures::future::join(downstream.send(&claim, ENOUGH), answers)).await;
        let excerpt = Bytes::from_static(b"ok");
        assert_eq!(reply, Reply::Response { status_code, retry_after: None, excerpt });
        let mut received = 0;
        let mut piece = vec![0; 1 << 20];
        while received < BODY {
            match within(stream.read(&mut piece)).await {
                Ok(0) | Err(_) => break,
                Ok(count) => received += count,
            }
        }
        assert_eq!(received >= BODY, is_whole, "{received} bytes after {status_code}");
    }
}

#[tokio::test]
async fn constant_deliveries_follow_a_changed_dns_record() {
    let before = Sink::answering(OK).await;
    let after = Sink::start_at(
        SocketAddr::from(([127, 0, 0, 2], before.address.port())),
        Act::Answer(OK.into()),
    )
    .await;
    let name = Moving(Arc::new(AtomicU8::new(1)));
    let url = format!("http://moves.test:{}/", before.address.port());
    let downstream = downstream(&url, Duration::from_millis(300), name.clone(), None);
    for _ in 0..5 {
        assert!(matches!(
            sent(&downstream, ENOUGH).await,
            Reply::Response { status_code: 200, .. }
        ));
    }
    assert_eq!(
        (before.requests().len(), before.connections.load(Ordering::SeqCst)),
        (5, 1),
        "connections are kept alive"
    );

    name.0.store(2, Ordering::SeqCst);
    within(async {
        while after.requests().is_empty() {
            assert!(matches!(
                sent(&downstream, ENOUGH).await,
                Reply::Response { status_code: 200, .. }
            ));
        }
    })
    .await;
    let sent_before = before.requests().len();
    assert!(matches!(sent(&downstream, ENOUGH).await, Reply::Response { status_code: 200, .. }));
    assert_eq!(
        (before.requests().len(), after.requests().len()),
        (sent_before, 2),
        "no more requests go to the old address"
    );
    until(|| before.closed.load(Ordering::SeqCst) == before.connections.load(Ordering::SeqCst))
        .await;
}

#[tokio::test]
async fn deliveries_after_the_maximum_age_share_one_new_connection() {
    let max_age = Duration::from_secs(2);
    let sink = Sink::answering(OK).await;
    let url = format!("http://moves.test:{}/", sink.address.port());
    let downstream = downstream(&url, max_age, Moving(Arc::new(AtomicU8::new(1))), None);
    for pause in [Duration::ZERO, max_age, Duration::ZERO, Duration::ZERO, Duration::ZERO] {
        tokio::time::sleep(pause).await;
        assert!(matches!(
            sent(&downstream, ENOUGH).await,
            Reply::Response { status_code: 200, .. }
        ));
    }
    assert_eq!(sink.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_delivery_in_flight_continues_after_its_connection_reaches_the_maximum_age() {
    let late = Act::AnswerLateAndHang(Duration::from_millis(500), OK.into());
    let sink = Sink::start(late).await;
    let url = format!("http://moves.test:{}/", sink.address.port());
    let downstream =
        downstream(&url, Duration::from_millis(50), Moving(Arc::new(AtomicU8::new(1))), None);
    let replies = futures::future::join_all((0..4).map(|n| {
        let downstream = &downstream;
        async move {
            tokio::time::sleep(Duration::from_millis(100 * n)).await;
            sent(downstream, ENOUGH).await
        }
    }));
    for reply in replies.await {
        assert!(matches!(reply, Reply::Response { status_code: 200, .. }), "{reply:?}");
    }
}

#[tokio::test]
async fn a_missing_close_notify_does_not_change_the_status() {
    let cases: [(&[u8], Reply); 3] = [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello", response(b"hello")),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", response(b"hello")),
        (b"HTTP/1.1 200 OK\r\ncontent-length", Reply::Failed(DeliveryError::ConnectionReset)),
    ];
    for (answer, expected) in cases {
        let url = tls_that_breaks_off(answer).await;
        let downstream = downstream(
            &url,
            Duration::from_mins(1),
            Moving(Arc::new(AtomicU8::new(1))),
            Some(any_certificate()),
        );
        assert_eq!(
            sent(&downstream, ENOUGH).await,
            expected,
            "{}",
            String::from_utf8_lossy(answer)
        );
    }
}

fn response(excerpt: &'static [u8]) -> Reply {
    Reply::Response { status_code: 200, retry_after: None, excerpt: Bytes::from_static(excerpt) }
}

/// A TLS server that answers and then closes the socket without `close_notify`.
async fn tls_that_breaks_off(answer: &'static [u8]) -> String {
    let (listener, acceptor, url) = tls_server().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"body") {
            stream.read_buf(&mut request).await.unwrap();
        }
        stream.write_all(answer).await.unwrap();
        stream.flush().await.unwrap();
        drop(stream.into_inner().0);
    });
    url
}

async fn tls_server() -> (TcpListener, TlsAcceptor, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let certificate = CertificateDer::from(&include_bytes!("self-signed.der")[..]);
    let key = PrivateKeyDer::try_from(&include_bytes!("self-signed.key.der")[..]).unwrap();
    let _ = ring::default_provider().install_default();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (listener, TlsAcceptor::from(Arc::new(config)), url)
}

/// Accepts every certificate: these tests do not cover trust.
#[derive(Debug)]
struct Trusting(CryptoProvider);

fn any_certificate() -> ClientConfig {
    let _ = ring::default_provider().install_default();
    let verifier = Arc::new(Trusting(ring::default_provider()));
    ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth()
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
