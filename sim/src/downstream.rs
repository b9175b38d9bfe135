//! The downstreams: nodes that accept, refuse, hang and break connections as the scenario requires,
//! and the port that sends to them.

use crate::bugs::Bug;
use crate::effects::Effects;
use crate::held::HeldBytes;
use crate::net;
use crate::recorder::{Recorder, elapsed};
use crate::timer::{Elapsed, sleep, timeout};
use crate::waits::Wait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, select_biased};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use surehook::ports::{Downstream, MAX_RELAYED_BODY, Relay, RelayFailed, Relayed};
use surehook_core::admission::Fingerprint;
use surehook_core::forwarding::query::joined;
use surehook_core::forwarding::{ATTEMPT_HEADER, EVENT_ID_HEADER, SOURCE_HEADER};
use surehook_core::retry_after::retry_after;
use surehook_core::source::SourceName;
use surehook_core::verdict::{DeliveryError, MAX_EXCERPT_BYTES, Reply};
use surehook_core::worker::claims::Claim;
use surehook_model::history::{Handshake, PostId, Received, Sending, What};
use surehook_model::scenario::{Behaviour, Source};
use tokio::sync::watch;

/// Names a handshake, by the id of its request.
pub(crate) const HANDSHAKE_HEADER: &str = "x-handshake";
/// Limit for reading a response's body.
const MAX_READ_BYTES: usize = 16 * 1024;
/// Limit for the time that a response's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs one source's downstream. It is healthy from `healed_at` on.
pub(crate) async fn serve(at: SocketAddr, source: Source, healed_at: Duration, recorder: Recorder) {
    let listener = net::listen(at).await;
    let node = Arc::new(Node { source, healed_at, recorder, served: AtomicU64::new(0) });
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        if node.behaviour() == Behaviour::Refuses {
            continue; // dropping the stream closes the connection
        }
        let node = Arc::clone(&node);
        madsim::task::spawn(async move {
            let service = hyper::service::service_fn(|request| Arc::clone(&node).answer(request));
            net::serve_until(stream, service, futures::future::pending().boxed().shared()).await;
        });
    }
}

struct Node {
    source: Source,
    healed_at: Duration,
    recorder: Recorder,
    served: AtomicU64,
}

/// Ends the connection without a response.
#[derive(Debug)]
struct BrokenOff;

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection closed without a response")
    }
}

impl std::error::Error for BrokenOff {}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Node {
    fn behaviour(&self) -> Behaviour {
        let now = elapsed();
        if now >= self.healed_at {
            return Behaviour::Takes;
        }
        let in_force = self
            .source
            .behaves
            .iter()
            .rev()
            .find(|behaves| Duration::from_millis(behaves.at_ms) <= now);
        in_force.map_or(Behaviour::Takes, |behaves| behaves.how)
    }

    /// Answers a relayed request.
    async fn shake(&self) -> Result<Response<Body>, BrokenOff> {
        let status_code = match self.behaviour() {
            Behaviour::Answers { status_code, .. } => status_code,
            Behaviour::Hangs => return futures::future::pending().await,
            Behaviour::BreaksOff => return Err(BrokenOff),
            _ => 200,
        };
        let body = Full::new(Bytes::from_static(b"challenge")).boxed_unsync();
        Ok(Response::builder().status(status_code).body(body).expect("the response is valid"))
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, BrokenOff> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| BrokenOff)?.to_bytes();
        let text = |name: &str| {
            head.headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        if !head.headers.contains_key(EVENT_ID_HEADER) {
            let post = text(HANDSHAKE_HEADER).parse().ok().map(PostId);
            let source = text(SOURCE_HEADER);
            self.recorder.record(What::Handshake(Handshake::Relayed { source, post }));
            return self.shake().await;
        }
        let attempt = text(ATTEMPT_HEADER).parse().expect("a delivery has an attempt header");
        let request = self.recorder.request_id();
        self.recorder.record(What::Received(Received {
            request,
            source: text(SOURCE_HEADER),
            event: text(EVENT_ID_HEADER).parse().expect("a delivery has an event id header"),
            attempt,
            body: Fingerprint::of(&body),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: values(&head.headers),
        }));
        let behaviour = self.behaviour();
        let even = self.served.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        let (status_code, asked) = match behaviour {
            Behaviour::Answers { status_code, retry_after_s } => (status_code, retry_after_s),
            Behaviour::FailsFirst if attempt == 1 => (503, None),
            Behaviour::Flaps if even => (500, None),
            Behaviour::Hangs => return futures::future::pending().await,
            _ => (200, None),
        };
        let retry_after = asked.map(Duration::from_secs);
        self.recorder.record(What::Replied { request, status_code, retry_after });
        match behaviour {
            Behaviour::TakesLate { after_ms } => sleep(Duration::from_millis(after_ms)).await,
            Behaviour::BreaksOff => return Err(BrokenOff),
            _ => {}
        }
        let mut response = Response::builder().status(status_code);
        if let Some(seconds) = asked {
            response = response.header("retry-after", seconds);
        }
        let body = match behaviour {
            Behaviour::NeverEnds => endless(),
            _ => Full::new(Bytes::from_static(b"said the downstream")).boxed_unsync(),
        };
        Ok(response.body(body).expect("the response is valid"))
    }
}

fn endless() -> Body {
    let chunks = futures::stream::unfold((), |()| async {
        sleep(Duration::from_millis(500)).await;
        Some((Ok(Frame::data(Bytes::from_static(&[b'.'; 100]))), ()))
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// All values of each header, by name.
pub(crate) fn values(headers: &HeaderMap) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut values: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for (name, value) in headers {
        values.entry(name.as_str().to_owned()).or_default().push(value.as_bytes().to_vec());
    }
    values
}

pub(crate) struct SimDownstream {
    pub(crate) process: String,
    pub(crate) addresses: BTreeMap<String, SocketAddr>,
    pub(crate) recorder: Recorder,
    pub(crate) effects: Arc<Effects>,
    pub(crate) index: usize,
    pub(crate) held: Arc<HeldBytes>,
    /// The time of the process's last reload.
    pub(crate) reloaded: watch::Receiver<Duration>,
    pub(crate) bug: Option<Bug>,
}

impl Downstream for SimDownstream {
    fn send(&self, claim: &Claim, timeout: Duration) -> BoxFuture<'static, Reply> {
        let address = self.addresses[claim.source.as_str()];
        let (process, recorder, bug) = (self.process.clone(), self.recorder.clone(), self.bug);
        let (effects, index) = (Arc::clone(&self.effects), self.index);
        let (claim, holding) = (claim.clone(), self.held.hold(claim));
        let mut reloaded = self.reloaded.clone();
        reloaded.mark_unchanged();
        async move {
            let _holding = holding;
            let deadline =
                elapsed() + if bug == Some(Bug::DeadlineForgotten) { timeout * 8 } else { timeout };
            let (source, event, attempt) = (claim.source.to_string(), claim.event, claim.attempt);
            let sending = Sending { process: process.clone(), source, event, attempt };
            recorder.record(What::Sending(sending.clone()));
            let _waiting = recorder.waits().begin(index, Wait::Reply(event, attempt));
            let first = exchange(address, request(&claim, bug), deadline);
            let cut_off = async move {
                if bug != Some(Bug::ReloadCutsDeliveries) || reloaded.changed().await.is_err() {
                    futures::future::pending::<()>().await;
                }
                Reply::Failed(DeliveryError::ConnectionReset)
            };
            let reply = effects.pass(index, async move {
                select_biased! {
                    reply = Box::pin(first).fuse() => reply,
                    reply = Box::pin(cut_off).fuse() => reply,
                }
            });
            let (status_code, reply) = match reply.await {
                Reply::Failed(DeliveryError::Timeout) if bug == Some(Bug::SlotNeverFrees) => {
                    futures::future::pending().await
                }
                Reply::Response { status_code, excerpt, .. }
                    if bug == Some(Bug::IgnoreRetryAfter) =>
                {
                    (Some(status_code), Reply::Response { status_code, retry_after: None, excerpt })
                }
                reply @ Reply::Response { status_code, .. } => (Some(status_code), reply),
                reply @ (Reply::Failed(_) | Reply::NotSent) => (None, reply),
            };
            let sent = What::Sent { process, event, attempt, status_code };
            recorder.record(sent.clone());
            if bug == Some(Bug::DeliversTwice) && matches!(status_code, Some(200..=299)) {
                recorder.record(What::Sending(sending));
                let _ = exchange(address, request(&claim, bug), deadline).await;
                recorder.record(sent);
            }
            reply
        }
        .boxed()
    }
}

impl Relay for SimDownstream {
    fn relay(
        &self,
        source: &SourceName,
        request: Relayed,
    ) -> BoxFuture<'static, Result<Response<Bytes>, RelayFailed>> {
        let address = self.addresses[source.as_str()];
        let (effects, index) = (Arc::clone(&self.effects), self.index);
        let mut request = request;
        let (name, value) = surehook::headers::source(source);
        request.headers.insert(name, value);
        let exchange = relayed(address, request);
        async move { effects.pass(index, exchange).await }.boxed()
    }
}

/// Sends one relayed request and reads its response.
async fn relayed(address: SocketAddr, request: Relayed) -> Result<Response<Bytes>, RelayFailed> {
    let Relayed { method, query, headers, body } = request;
    let query = std::str::from_utf8(&query).expect("a query is text");
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = format!("/?{query}").parse().expect("the query is that of a request");
    *request.headers_mut() = headers;
    request.headers_mut().insert("host", HeaderValue::from_static("downstream"));
    let failed = |class| RelayFailed::NoResponse(class);
    let (response, _connection) =
        net::send(address, request).await.map_err(|error| match error {
            net::SendError::Connect(_) => failed(DeliveryError::ConnectionFailed),
            net::SendError::Http => failed(DeliveryError::ConnectionReset),
        })?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_RELAYED_BODY).collect().await;
    let body = body.map_err(|_| failed(DeliveryError::ConnectionReset))?.to_bytes();
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    Ok(response)
}

fn request(claim: &Claim, bug: Option<Bug>) -> Request<Full<Bytes>> {
    let mut headers =
        surehook::headers::decode(&claim.headers).expect("stored headers can be decoded");
    if bug == Some(Bug::HeadersFolded) {
        headers = headers.keys().map(|name| (name.clone(), headers[name].clone())).collect();
    }
    let body = match bug {
        Some(Bug::BodyThroughText) => {
            Bytes::from(String::from_utf8_lossy(&claim.body).into_owned())
        }
        _ => claim.body.clone(),
    };
    let query = match bug {
        Some(Bug::QueryDropped) => "",
        _ => std::str::from_utf8(&claim.query).expect("a stored query is text"),
    };
    let mut request = Request::post(format!("/?{}", joined("", query)))
        .header("host", "downstream")
        .body(Full::new(body))
        .expect("the request is valid");
    let host = request.headers().clone();
    *request.headers_mut() = headers;
    request.headers_mut().extend(host);
    for (name, value) in surehook::headers::own(claim) {
        request.headers_mut().insert(name, value);
    }
    request
}

/// Runs a future until the deadline.
async fn timeout_at<T>(deadline: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    timeout(deadline.saturating_sub(elapsed()), future).await
}

/// Sends one request and reads its response, within one deadline.
async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>, deadline: Duration) -> Reply {
    let (response, _connection) = match timeout_at(deadline, net::send(address, request)).await {
        Err(_) => return Reply::Failed(DeliveryError::Timeout),
        Ok(Err(net::SendError::Connect(error)))
            if error.kind() == std::io::ErrorKind::ConnectionRefused =>
        {
            return Reply::Failed(DeliveryError::ConnectionRefused);
        }
        Ok(Err(net::SendError::Connect(_))) => {
            return Reply::Failed(DeliveryError::ConnectionFailed);
        }
        Ok(Err(net::SendError::Http)) => return Reply::Failed(DeliveryError::ConnectionReset),
        Ok(Ok(answered)) => answered,
    };
    let status_code = response.status().as_u16();
    let value = |name: &str| response.headers().get(name).map(http::HeaderValue::as_bytes);
    let retry_after = value("retry-after").and_then(|asked| retry_after(asked, value("date")));
    let mut body = response.into_body();
    let mut read = Vec::new();
    let deadline = deadline.min(elapsed() + BODY_TIMEOUT);
    while read.len() < MAX_READ_BYTES {
        match timeout_at(deadline, body.frame()).await {
            Err(_) | Ok(None | Some(Err(_))) => break,
            Ok(Some(Ok(frame))) => {
                read.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            }
        }
    }
    read.truncate(MAX_EXCERPT_BYTES);
    Reply::Response { status_code, retry_after, excerpt: Bytes::from(read) }
}
