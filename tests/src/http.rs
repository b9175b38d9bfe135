//! Two ways to send HTTP to the program: a well-behaved client, and raw bytes on a socket for
//! requests that no client would send.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::error::Error as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The time limit for a complete answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client with its own keep-alive connections.
#[derive(Clone, Debug)]
pub struct Client(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status_code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Default for Client {
    fn default() -> Self {
        Self::with(RootCertStore::empty())
    }
}

impl Client {
    /// A client that accepts the certificates of this authority, which is in PEM.
    ///
    /// # Panics
    ///
    /// If it is not the certificate of an authority.
    #[must_use]
    pub fn trusting(authority: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority).expect("a certificate"))
            .expect("a certificate of an authority");
        Self::with(roots)
    }

    fn with(roots: RootCertStore) -> Self {
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        Self(legacy::Client::builder(TokioExecutor::new()).build(connector.build()))
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    ///
    /// Describes what happened if there is no complete answer.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        for (name, value) in headers {
            let name =
                HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
            request
                .headers_mut()
                .append(name, HeaderValue::from_str(value).map_err(|error| error.to_string())?);
        }
        let answer = async {
            let (head, body) = self
                .0
                .request(request)
                .await
                .map_err(|error| format!("{error}: {:?}", error.source()))?
                .into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status_code: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(TIMEOUT, answer)
            .await
            .map_err(|_| format!("no answer from {url} within {TIMEOUT:?}"))?
    }

    /// Sends a `GET`.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn get(&self, url: &str) -> Result<Answer, String> {
        self.send(Method::GET, url, &[], Bytes::new()).await
    }

    /// Sends a `POST`.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn post(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        self.send(Method::POST, url, headers, body.into()).await
    }
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// If it is not JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// A header's value as text, or an empty string if the header is missing.
    ///
    /// # Panics
    ///
    /// If it is not ASCII, which the program's own headers are.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("the program's own headers are ASCII"))
    }

    /// The `type` of a problem. Checks that the answer is a complete and consistent problem.
    ///
    /// # Panics
    ///
    /// If the answer is not `application/problem+json`, or its `status` is not the answer's.
    #[must_use]
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status_code, "{problem}");
        for field in ["title", "detail"] {
            assert!(
                problem[field].as_str().is_some_and(|text| !text.is_empty()),
                "no {field}: {problem}"
            );
        }
        problem["type"].as_str().unwrap_or_else(|| panic!("no type: {problem}")).to_owned()
    }
}

/// Writes bytes to a new connection and reads until the server closes it. The bytes must request
/// that (`Connection: close`) or be so invalid that the server closes.
///
/// # Panics
///
/// If there is no answer in time, or it is not HTTP.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("the program listens");
    // A server that has already answered can close while bytes are still in transit. Only the
    // answer matters.
    let written = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer))
        .await
        .expect("the program answers and closes the connection in time");
    parse(&answer).unwrap_or_else(|| {
        panic!(
            "no answer: wrote {written:?}, read {read:?}: {:?}",
            String::from_utf8_lossy(&answer)
        )
    })
}

/// Writes any bytes to a new connection and reads every answer until the server closes it.
///
/// # Panics
///
/// If the server does not close in time, or an answer is incomplete, without a declared length, or
/// not HTTP.
pub async fn converse(address: SocketAddr, bytes: &[u8]) -> Vec<Answer> {
    let mut stream = TcpStream::connect(address).await.expect("the program listens");
    let (mut reading, mut writing) = stream.split();
    let mut read = Vec::new();
    // Both can fail, because the server can close while bytes are in transit. The answers before
    // that count.
    let both = futures::future::join(writing.write_all(bytes), reading.read_to_end(&mut read));
    let _ = tokio::time::timeout(TIMEOUT, both)
        .await
        .expect("the program closes the connection in time");
    let (mut answers, mut rest) = (Vec::new(), read.as_slice());
    while !rest.is_empty() {
        let whole = parse(rest).and_then(|mut answer| {
            let head = rest.len() - answer.body.len();
            let length: usize = answer.header("content-length").parse().ok()?;
            answer.body = (length <= answer.body.len()).then(|| answer.body.split_to(length))?;
            Some((answer, &rest[head + length..]))
        });
        let (answer, after) = whole
            .unwrap_or_else(|| panic!("incomplete answer: {:?}", String::from_utf8_lossy(rest)));
        answers.push(answer);
        rest = after;
    }
    answers
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).ok()? else { return None };
    let headers = response
        .headers
        .iter()
        .map(|header| {
            Some((
                HeaderName::from_bytes(header.name.as_bytes()).ok()?,
                HeaderValue::from_bytes(header.value).ok()?,
            ))
        })
        .collect::<Option<HeaderMap>>()?;
    Some(Answer {
        status_code: response.code?,
        headers,
        body: Bytes::copy_from_slice(&bytes[head..]),
    })
}
