//! Delivers events to the downstreams with one pooled HTTP client.
//!
//! A delivery is one request with the query, the headers and the body as they were received. This
//! module follows no redirects, does not retry or decompress, and uses no proxy. It reports each
//! outcome unchanged, and the core judges it. (If a pooled connection closes before the first byte
//! of a request is written, the request is sent on another connection. On the first one it was
//! never sent.)
//!
//! The status of a complete response head is the reply. Malformed headers are skipped. A body that
//! ends early, hangs or has wrong framing changes nothing: otherwise an event whose response says
//! `200` would be retried until it is dead-lettered.

mod clients;
mod destination;
mod ended;
mod failures;
mod once;
mod pieces;
mod tls;

pub use clients::Connecting;
pub use once::{Exchange, NotSent, send_once};

use crate::config::Source;
use crate::headers;
use crate::ports::{Downstream, MAX_RELAYED_BODY, Relay, RelayFailed, Relayed};
use bytes::Bytes;
use clients::{Client, Clients};
use destination::Destination;
use failures::Failure;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use http::header::{CONNECTION, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use pieces::Pieces;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::forwarding::Forwarding;
use surehook_core::retry_after::retry_after;
use surehook_core::source::SourceName;
use surehook_core::verdict::{DeliveryError, MAX_EXCERPT_BYTES, Reply};
use surehook_core::worker::claims::Claim;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

/// Maximum bytes of a response body that are read. A longer body costs its connection, and nothing
/// else.
const MAX_RESPONSE_BYTES: usize = 16 << 10;
/// How long a response body may take after the head. At the timeout, the rest of the excerpt and
/// the connection are lost.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// A timer that fires more than this after its deadline shows that the process was stopped: its
/// machine was suspended or moved, or had no processor time for it.
const STOOD_STILL: Duration = Duration::from_millis(100);
/// Extra time, after such a stop, to read what has arrived in the socket buffers.
const TO_CATCH_UP: Duration = Duration::from_millis(100);
/// The deadline of a timeout that is beyond the range of the clock.
const FAR_AWAY: Duration = Duration::from_hours(365 * 24);

/// Delivers over HTTP/1.1, to one destination for each source.
pub struct HttpDownstream(watch::Sender<Arc<Configured>>);

/// What a reload replaces.
struct Configured {
    clients: Clients,
    destinations: BTreeMap<SourceName, Destination>,
}

impl HttpDownstream {
    /// Creates a client for the destinations of these sources, which are http or https URLs.
    ///
    /// Certificates are verified with the root certificates of the platform, which are read only if
    /// there is an https URL. The process gets ring as its TLS provider if it has none.
    ///
    /// # Errors
    ///
    /// A URL is not usable for requests, or the root certificates cannot be read.
    pub fn new(sources: &BTreeMap<SourceName, Source>) -> Result<Self, DownstreamError> {
        Self::connecting(sources, by_the_system(sources)?)
    }

    /// As [`Self::new`], with other connection settings.
    ///
    /// # Errors
    ///
    /// A URL is not usable for requests.
    pub fn connecting(
        sources: &BTreeMap<SourceName, Source>,
        connecting: Connecting,
    ) -> Result<Self, DownstreamError> {
        let destinations = destinations(sources)?;
        let configured = Configured { clients: Clients::new(connecting), destinations };
        Ok(Self(watch::Sender::new(Arc::new(configured))))
    }

    /// Replaces the destinations, and reads the root certificates again. Requests in flight keep
    /// their connections. The destinations of sources that are no longer configured are kept, because
    /// the worker may still be about to send an event of theirs.
    ///
    /// # Errors
    ///
    /// Those of [`Self::new`]. Nothing is replaced then.
    pub fn reload(&self, sources: &BTreeMap<SourceName, Source>) -> Result<(), DownstreamError> {
        let clients = Clients::new(by_the_system(sources)?);
        let mut destinations = destinations(sources)?;
        for (name, destination) in &self.configured().destinations {
            destinations.entry(name.clone()).or_insert_with(|| destination.clone());
        }
        self.0.send_replace(Arc::new(Configured { clients, destinations }));
        Ok(())
    }

    fn configured(&self) -> Arc<Configured> {
        Arc::clone(&self.0.borrow())
    }
}

fn by_the_system(sources: &BTreeMap<SourceName, Source>) -> Result<Connecting, DownstreamError> {
    let tls = sources.values().any(|source| source.destination.secret().scheme() == "https");
    Connecting::by_the_system(tls).map_err(DownstreamError::Tls)
}

fn destinations(
    sources: &BTreeMap<SourceName, Source>,
) -> Result<BTreeMap<SourceName, Destination>, DownstreamError> {
    let destination = |(name, source): (&SourceName, &Source)| match Destination::new(
        source.destination.secret(),
        &source.headers,
    ) {
        Some(destination) => Ok((name.clone(), destination)),
        None => Err(DownstreamError::Destination(name.clone())),
    };
    sources.iter().map(destination).collect()
}

/// Why the client cannot be created. Contains no URL, and so no user and no password.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    /// The destination of this source is not usable.
    #[error("the destination of the source `{0}` is not a usable http or https URL")]
    Destination(SourceName),
    #[error(
        "cannot set up TLS; check that the system's CA certificates are readable, or those of SSL_CERT_FILE if it is set"
    )]
    Tls(#[source] rustls::Error),
}

impl Downstream for HttpDownstream {
    fn send(&self, claim: &Claim, timeout: Duration) -> BoxFuture<'static, Reply> {
        let (event_id, source, attempt) = (claim.event, claim.source.clone(), claim.attempt);
        let configured = self.configured();
        let Some(destination) = configured.destinations.get(&claim.source) else {
            tracing::error!(%event_id, %source, attempt, "event not sent: its source has no destination");
            return ready(Reply::Failed(DeliveryError::ConnectionFailed)).boxed();
        };
        let request = match destination.request(claim) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%event_id, %source, attempt, %error, "event not sent: its request cannot be built");
                return ready(Reply::Failed(DeliveryError::ConnectionFailed)).boxed();
            }
        };
        let client = configured.clients.get();
        async move {
            let now = Instant::now();
            let deadline = now.checked_add(timeout).unwrap_or(now + FAR_AWAY);
            exchange(&client, request, deadline, MAX_EXCERPT_BYTES).await.unwrap_or_else(|failure| {
                let Failure { reply, cause, tls } = failure;
                let error = if let Reply::Failed(class) = &reply { class.as_str() } else { "not sent" };
                tracing::debug!(%event_id, %source, attempt, error, cause, "no complete response head");
                if let Some(cause) = tls {
                    tracing::warn!(%event_id, %source, attempt, error, cause, "TLS with the destination failed");
                }
                reply
            })
        }
        .boxed()
    }
}

impl Relay for HttpDownstream {
    fn relay(
        &self,
        source: &SourceName,
        request: Relayed,
    ) -> BoxFuture<'static, Result<Response<Bytes>, RelayFailed>> {
        let unsendable = || ready(Err(RelayFailed::Unsendable)).boxed();
        let configured = self.configured();
        let Some(destination) = configured.destinations.get(source) else {
            tracing::error!(%source, "request not relayed: its source has no destination");
            return unsendable();
        };
        let request = match destination.relayed(source, request) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%source, %error, "request not relayed: it cannot be built");
                return unsendable();
            }
        };
        let (client, source) = (configured.clients.get(), source.clone());
        async move {
            relayed(&client, request).await.map_err(|(error, cause)| {
                tracing::debug!(%source, %error, cause, "no response to a relayed request");
                error
            })
        }
        .boxed()
    }
}

/// Sends one request and reads its response. A failure has its cause, for the log.
async fn relayed(
    client: &Client,
    request: Request<Pieces>,
) -> Result<Response<Bytes>, (RelayFailed, String)> {
    let failed = |Failure { reply, cause, tls }| match reply {
        Reply::Failed(class) => (RelayFailed::NoResponse(class), tls.unwrap_or(cause)),
        Reply::NotSent | Reply::Response { .. } => (RelayFailed::NoResource, cause),
    };
    let _ends = request.body().ends();
    let (head, body) =
        client.request(request).await.map_err(|error| failed(error.into()))?.into_parts();
    if head.status.is_informational() {
        // `101`: this connection speaks another protocol now, although the request has no `Upgrade`.
        return Err((RelayFailed::NoResponse(DeliveryError::InvalidResponse), String::new()));
    }
    let body = match Limited::new(body, MAX_RELAYED_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return Err(match error.downcast::<hyper::Error>() {
                Ok(error) => failed((*error).into()),
                Err(_) => (RelayFailed::TooLarge, String::new()),
            });
        }
    };
    let connection = head.headers.get_all(CONNECTION);
    let forwarding = Forwarding::of_response(connection.iter().map(HeaderValue::as_bytes));
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = headers::forwarded(&head.headers, &forwarding);
    Ok(response)
}

/// Sends one request and reads its response, until `deadline`. Once the response head is complete,
/// its status is the reply. The body only provides the excerpt, of at most `kept` bytes.
async fn exchange(
    client: &Client,
    request: Request<Pieces>,
    deadline: Instant,
    kept: usize,
) -> Result<Reply, Failure> {
    let ends = request.body().ends();
    let mut response = match until(deadline, client.request(request)).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Failure::of(DeliveryError::Timeout)),
    };
    let (status_code, retry_after) = (response.status().as_u16(), asked_delay(response.headers()));
    if response.status().is_success() {
        ends.never();
    }
    let deadline = deadline.min(Instant::now() + BODY_TIMEOUT);
    let excerpt = excerpt(response.body_mut(), deadline, kept).await;
    Ok(Reply::Response { status_code, retry_after, excerpt })
}

/// Waits for `work` until `deadline`. If the timer fires late (the process was stopped), a response
/// may already be in the socket buffer. Discarding it would cause a duplicate delivery, so there is
/// a short extra time to read it.
async fn until<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut work = pin!(work);
    match timeout_at(deadline, &mut work).await {
        Err(_) if deadline.elapsed() > STOOD_STILL => timeout(TO_CATCH_UP, work).await,
        ended => ended,
    }
}

/// The first `most` bytes of a response body, as far as they arrive before `deadline` and before the
/// body ends early. The rest is read up to [`MAX_RESPONSE_BYTES`], so that the connection can be
/// reused.
async fn excerpt(body: &mut Incoming, deadline: Instant, most: usize) -> Bytes {
    let (mut kept, mut read) = (Vec::new(), 0);
    while read <= MAX_RESPONSE_BYTES {
        match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                let chunk = frame.into_data().unwrap_or_default();
                kept.extend_from_slice(&chunk[..chunk.len().min(most - kept.len())]);
                read += chunk.len();
            }
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "response body ended early; its status is used");
                break;
            }
            Err(_) => {
                tracing::debug!("response body timed out; its status is used");
                break;
            }
        }
    }
    Bytes::from(kept)
}

/// The delay in `Retry-After`. If the response has no `Date`, the time of receipt is used (RFC 9110
/// §6.6.1).
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
