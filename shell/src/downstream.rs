//! The way to the downstreams: one pooled reqwest client.
//!
//! A delivery is one request, byte for byte what came in. Nothing is followed, retried, decompressed or proxied here:
//! what comes back is told as it is, and the core judges it. (A request that a kept connection closed on before its
//! first byte was written is sent on another: that one was never sent.)

use crate::headers;
use crate::lookups;
use crate::ports::Downstream;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use reqwest::{Client, Request, Response, Url};
use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::pin::pin;
use std::time::Duration;
use surehook_core::forwarding::{ATTEMPT_HEADER, EVENT_ID_HEADER, SOURCE_HEADER};
use surehook_core::retry_after::retry_after;
use surehook_core::source::SourceName;
use surehook_core::verdict::{DeliveryError, MAX_EXCERPT_BYTES, Reply};
use surehook_core::worker::exchange::Claim;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

/// The most bytes of a response's body that are read. A longer body costs its connection, nothing else.
const MAX_RESPONSE_BYTES: usize = 16 << 10;
/// How long a connection is kept for the next delivery.
const KEEP_IDLE: Duration = Duration::from_secs(30);
/// How many connections are kept idle for one host.
const KEEP_IDLE_PER_HOST: usize = 64;
/// A timer that is later than this shows that the process stood still: its machine was stopped, moved, or had no
/// processor for it.
const STOOD_STILL: Duration = Duration::from_millis(100);
/// What a process that stood still gets to read what has arrived meanwhile.
const TO_CATCH_UP: Duration = Duration::from_millis(100);
/// A deadline for a time-out that no clock can name.
const FAR_AWAY: Duration = Duration::from_hours(365 * 24);

/// Deliveries over HTTP/1.1 by reqwest, to one destination for each source.
pub struct ReqwestDownstream {
    client: Client,
    destinations: BTreeMap<SourceName, Destination>,
}

/// Where one source's events go. What a URL holds of user and password is kept as a header, so that no error and no
/// log can show it.
#[derive(Clone)]
struct Destination {
    url: Url,
    authorization: Option<HeaderValue>,
}

impl ReqwestDownstream {
    /// A client for these destinations, which are http or https URLs.
    ///
    /// Certificates are checked against the platform's roots, which are only read if there is an https URL; the process
    /// gets ring as its TLS provider if it has none.
    ///
    /// # Errors
    ///
    /// A URL that no request can be made to, or roots that cannot be read.
    pub fn new(destinations: BTreeMap<SourceName, Url>) -> Result<Self, DownstreamError> {
        // It only fails if a provider is there already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .dns_resolver(lookups::system())
            .referer(false)
            .tcp_nodelay(true)
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(KEEP_IDLE_PER_HOST);
        if destinations.values().all(|url| url.scheme() != "https") {
            // A machine without CA certificates is no reason not to deliver within it.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| DownstreamError::Client(error.without_url()))?;
        let destinations = destinations
            .into_iter()
            .map(|(source, url)| match Destination::new(&client, url) {
                Some(destination) => Ok((source, destination)),
                None => Err(DownstreamError::Destination(source)),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { client, destinations })
    }
}

/// Why there is no way to the downstreams. Shows no URL, and so no user and no password.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    /// This source's destination is none.
    #[error("the destination of the source `{0}` is not an http or https URL that a request can be made to")]
    Destination(SourceName),
    /// The client could not be set up.
    #[error("the HTTP client could not be set up; are the system's CA certificates readable?")]
    Client(#[source] reqwest::Error),
}

impl Destination {
    fn new(client: &Client, url: Url) -> Option<Self> {
        // reqwest moves user and password from the URL into a header.
        let mut request = client.post(url).build().ok()?;
        let url = request.url().clone();
        let sendable = matches!(url.scheme(), "http" | "https") && url.as_str().parse::<http::Uri>().is_ok();
        sendable.then(|| Self { url, authorization: request.headers_mut().remove(AUTHORIZATION) })
    }

    /// The request of one delivery.
    fn request(&self, claim: &Claim) -> Result<Request, headers::Unreadable> {
        let mut request = Request::new(reqwest::Method::POST, self.url.clone());
        let mut forwarded = headers::decode(&claim.headers)?;
        if let Some(authorization) = &self.authorization {
            forwarded.insert(AUTHORIZATION, authorization.clone());
        }
        let own = [
            (EVENT_ID_HEADER, claim.event.to_string()),
            (SOURCE_HEADER, claim.source.to_string()),
            (ATTEMPT_HEADER, claim.attempt.to_string()),
        ];
        for (name, value) in own {
            let value = HeaderValue::from_str(&value).expect("ids, source names and numbers are visible ASCII");
            forwarded.insert(HeaderName::from_static(name), value);
        }
        if claim.body.is_empty() {
            // hyper leaves it out, and a downstream may answer 411 to a post of no length (RFC 9110 §8.6).
            forwarded.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        *request.headers_mut() = forwarded;
        *request.body_mut() = Some(claim.body.clone().into());
        Ok(request)
    }
}

impl Downstream for ReqwestDownstream {
    fn send(&self, claim: &Claim, timeout: Duration) -> BoxFuture<'static, Reply> {
        let (event_id, source, attempt) = (claim.event, claim.source.clone(), claim.attempt);
        let Some(destination) = self.destinations.get(&claim.source) else {
            tracing::error!(%event_id, %source, attempt, "the source has no destination; not sent");
            return futures::future::ready(Reply::Failed(DeliveryError::ConnectionFailed)).boxed();
        };
        let request = match destination.request(claim) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%event_id, %source, attempt, %error, "not sent; somebody changed the stored headers");
                return futures::future::ready(Reply::Failed(DeliveryError::ConnectionFailed)).boxed();
            }
        };
        let client = self.client.clone();
        async move {
            let now = Instant::now();
            let deadline = now.checked_add(timeout).unwrap_or(now + FAR_AWAY);
            exchange(&client, request, deadline).await.unwrap_or_else(|failure| {
                let Failure { class, cause } = failure;
                tracing::debug!(%event_id, %source, attempt, error = class.as_str(), cause, "no complete reply");
                Reply::Failed(class)
            })
        }
        .boxed()
    }
}

/// One request and its response, until `deadline`.
async fn exchange(client: &Client, request: Request, deadline: Instant) -> Result<Reply, Failure> {
    let mut response = match until(deadline, client.execute(request)).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Failure::of(DeliveryError::Timeout)),
    };
    match until(deadline, excerpt(&mut response)).await {
        Ok(excerpt) => {
            Ok(Reply::Response { status_code: response.status().as_u16(), retry_after: asked_delay(response.headers()), excerpt: excerpt? })
        }
        Err(_) => Err(Failure::of(DeliveryError::ResponseTooSlow)),
    }
}

/// Waits for `work` until `deadline`. If that is heard of late, a reply may have come in time and lie unread, and to throw
/// it away would be to send its event again: then there is a moment more to read it.
async fn until<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut work = pin!(work);
    match timeout_at(deadline, &mut work).await {
        Err(_) if deadline.elapsed() > STOOD_STILL => timeout(TO_CATCH_UP, work).await,
        ended => ended,
    }
}

/// The first bytes of a response's body. The rest is read as far as [`MAX_RESPONSE_BYTES`], so that the connection
/// can be used again.
async fn excerpt(response: &mut Response) -> Result<Bytes, reqwest::Error> {
    let (mut kept, mut read) = (Vec::new(), 0);
    while let Some(chunk) = response.chunk().await? {
        kept.extend_from_slice(&chunk[..chunk.len().min(MAX_EXCERPT_BYTES - kept.len())]);
        read += chunk.len();
        if read > MAX_RESPONSE_BYTES {
            break;
        }
    }
    Ok(Bytes::from(kept))
}

/// What `Retry-After` asks for. A reply without a date came when it was received (RFC 9110 §6.6.1).
fn asked_delay(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.as_bytes();
    match headers.get(DATE) {
        Some(date) => retry_after(value, Some(date.as_bytes())),
        None => {
            let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()).ok();
            retry_after(value, now.as_deref().map(str::as_bytes))
        }
    }
}

/// Why an exchange failed: its class, and the chain of errors for the log.
#[derive(Debug)]
struct Failure {
    class: DeliveryError,
    cause: String,
}

impl Failure {
    fn of(class: DeliveryError) -> Self {
        Self { class, cause: String::new() }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let chain: Vec<String> = causes(&error).map(ToString::to_string).collect();
        Self { class: classify(&error), cause: chain.join(": ") }
    }
}

/// The class of an error that reqwest gave. The innermost cause that says anything decides: a reset during a TLS
/// handshake is a reset.
fn classify(error: &reqwest::Error) -> DeliveryError {
    if error.is_dns() {
        return DeliveryError::Dns;
    }
    let causes: Vec<_> = causes(error).collect();
    let told = causes.iter().rev().find_map(|cause| {
        if cause.is::<rustls::Error>() {
            return Some(DeliveryError::Tls);
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return of_io(error.kind());
        }
        let error = cause.downcast_ref::<hyper::Error>()?;
        if error.is_parse() {
            Some(DeliveryError::InvalidResponse)
        } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            Some(DeliveryError::ConnectionReset)
        } else {
            None
        }
    });
    told.unwrap_or_else(|| {
        if error.is_connect() {
            DeliveryError::ConnectionFailed
        } else {
            tracing::warn!(cause = ?causes, "a delivery failed in a way that has no class of its own; it counts as a connection reset");
            DeliveryError::ConnectionReset
        }
    })
}

fn of_io(kind: io::ErrorKind) -> Option<DeliveryError> {
    use io::ErrorKind as Kind;
    if kind == Kind::ConnectionRefused {
        Some(DeliveryError::ConnectionRefused)
    } else if matches!(kind, Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::NotConnected | Kind::UnexpectedEof)
    {
        Some(DeliveryError::ConnectionReset)
    } else if matches!(kind, Kind::InvalidData | Kind::InvalidInput) {
        // hyper's words for a chunk that is not one.
        Some(DeliveryError::InvalidResponse)
    } else {
        None
    }
}

/// An error and what it came of, outermost first, with those that an `io::Error` hides.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(hidden) => Some(hidden as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}
