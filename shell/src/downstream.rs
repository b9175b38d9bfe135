//! The way to the downstreams: one pooled reqwest client.
//!
//! A delivery is one request, byte for byte what came in. Nothing is followed, retried, decompressed or proxied here:
//! what comes back is told as it is, and the core judges it. (A request that a kept connection closed on before its
//! first byte was written is sent on another: that one was never sent.)
//!
//! The status of a complete response head is the reply. Malformed headers are skipped, and a body that breaks off, hangs
//! or is wrongly framed changes nothing: a response that says `200` would otherwise be sent again until it is dead.

mod clients;
mod failures;

pub use clients::Connecting;

use crate::headers;
use crate::ports::Downstream;
use bytes::Bytes;
use clients::Clients;
use failures::Failure;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use reqwest::{Client, Request, Response, Url};
use std::collections::BTreeMap;
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
/// How long a response's body may take after its head. A slower one is cut off where it is, which costs its connection
/// and the rest of its excerpt.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// A timer that is later than this shows that the process stood still: its machine was stopped, moved, or had no
/// processor for it.
const STOOD_STILL: Duration = Duration::from_millis(100);
/// What a process that stood still gets to read what has arrived meanwhile.
const TO_CATCH_UP: Duration = Duration::from_millis(100);
/// A deadline for a time-out that no clock can name.
const FAR_AWAY: Duration = Duration::from_hours(365 * 24);

/// Deliveries over HTTP/1.1 by reqwest, to one destination for each source.
pub struct ReqwestDownstream {
    clients: Clients,
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
        let tls = destinations.values().any(|url| url.scheme() == "https");
        Self::connecting(
            destinations,
            Connecting::by_the_system(tls).map_err(DownstreamError::Tls)?,
        )
    }

    /// As [`Self::new`], with connections that are made in another way.
    ///
    /// # Errors
    ///
    /// A URL that no request can be made to.
    pub fn connecting(
        destinations: BTreeMap<SourceName, Url>,
        connecting: Connecting,
    ) -> Result<Self, DownstreamError> {
        let clients = Clients::new(connecting)?;
        let client = clients.get();
        let destinations = destinations
            .into_iter()
            .map(|(source, url)| match Destination::new(&client, url) {
                Some(destination) => Ok((source, destination)),
                None => Err(DownstreamError::Destination(source)),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { clients, destinations })
    }
}

/// Why there is no way to the downstreams. Shows no URL, and so no user and no password.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    /// This source's destination is none.
    #[error(
        "the destination of the source `{0}` is not an http or https URL that a request can be made to"
    )]
    Destination(SourceName),
    /// TLS could not be set up.
    #[error("TLS could not be set up; are the system's CA certificates readable?")]
    Tls(#[source] rustls::Error),
    /// The client could not be set up.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
}

impl Destination {
    fn new(client: &Client, url: Url) -> Option<Self> {
        // reqwest moves user and password from the URL into a header.
        let mut request = client.post(url).build().ok()?;
        let url = request.url().clone();
        let sendable =
            matches!(url.scheme(), "http" | "https") && url.as_str().parse::<http::Uri>().is_ok();
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
            let value = HeaderValue::from_str(&value)
                .expect("ids, source names and numbers are visible ASCII");
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
                return futures::future::ready(Reply::Failed(DeliveryError::ConnectionFailed))
                    .boxed();
            }
        };
        let client = self.clients.get();
        async move {
            let now = Instant::now();
            let deadline = now.checked_add(timeout).unwrap_or(now + FAR_AWAY);
            exchange(&client, request, deadline).await.unwrap_or_else(|failure| {
                let Failure { reply, cause } = failure;
                let error = if let Reply::Failed(class) = &reply { class.as_str() } else { "not sent" };
                tracing::debug!(%event_id, %source, attempt, error, cause, "no complete response head");
                reply
            })
        }
        .boxed()
    }
}

/// One request and its response, until `deadline`. Once the response's head is there, its status is the reply: the body
/// only gives the excerpt.
async fn exchange(client: &Client, request: Request, deadline: Instant) -> Result<Reply, Failure> {
    let mut response = match until(deadline, client.execute(request)).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Failure::of(DeliveryError::Timeout)),
    };
    let (status_code, retry_after) = (response.status().as_u16(), asked_delay(response.headers()));
    let excerpt = excerpt(&mut response, deadline.min(Instant::now() + BODY_TIMEOUT)).await;
    Ok(Reply::Response { status_code, retry_after, excerpt })
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

/// The first bytes of a response's body, as far as they come before `deadline` and before the body breaks off. The rest
/// is read as far as [`MAX_RESPONSE_BYTES`], so that the connection can be used again.
async fn excerpt(response: &mut Response, deadline: Instant) -> Bytes {
    let (mut kept, mut read) = (Vec::new(), 0);
    while read <= MAX_RESPONSE_BYTES {
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                kept.extend_from_slice(&chunk[..chunk.len().min(MAX_EXCERPT_BYTES - kept.len())]);
                read += chunk.len();
            }
            Ok(Ok(None)) => break,
            Ok(Err(error)) => {
                tracing::debug!(error = %error.without_url(), "a response's body broke off; its status counts");
                break;
            }
            Err(_) => {
                tracing::debug!("a response's body did not end in time; its status counts");
                break;
            }
        }
    }
    Bytes::from(kept)
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
