//! A downstream in the test process. It answers as the test chooses, and records every request.

use crate::recording::Recording;
use crate::wait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook_core::admission::Fingerprint;
use surehook_core::id::EventId;
use surehook_model::history::{self, RequestId, What};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

/// One request, as it was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The path, which identifies the source's destination.
    pub path: String,
    /// The query; empty if there is none.
    pub query: String,
    /// The event id in its headers.
    pub event: Uuid,
    /// The source in its headers.
    pub source: String,
    /// The attempt in its headers.
    pub attempt: u32,
    /// The digest of the body.
    pub body_sha256: [u8; 32],
    /// All headers in order, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The status code of the response, or `None` if there is none (yet).
    pub answered: Option<u16>,
}

impl Received {
    /// An unanswered request with this target, these headers and this body.
    pub(crate) fn new(target: &Uri, headers: Vec<(String, Vec<u8>)>, body: &[u8]) -> Self {
        let first = |name: &str| {
            headers
                .iter()
                .find(|header| header.0 == name)
                .and_then(|header| std::str::from_utf8(&header.1).ok())
        };
        Self {
            event: first("surehook-event-id").and_then(|id| id.parse().ok()).unwrap_or_default(),
            source: first("surehook-source").unwrap_or_default().to_owned(),
            attempt: first("surehook-attempt")
                .and_then(|attempt| attempt.parse().ok())
                .unwrap_or_default(),
            body_sha256: Sha256::digest(body).into(),
            path: target.path().to_owned(),
            query: target.query().unwrap_or_default().to_owned(),
            headers,
            answered: None,
        }
    }

    /// Adds the request to the recording.
    pub(crate) fn record(&self, recording: &Recording, body: &[u8]) -> RequestId {
        let request = recording.request_id();
        recording.record(What::Received(history::Received {
            request,
            source: self.source.clone(),
            event: EventId::from_uuid(self.event),
            attempt: self.attempt,
            body: Fingerprint::of(body),
            query: self.query.clone(),
            headers: self.headers_by_name(),
        }));
        request
    }

    /// The values of one header, in order.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&[u8]> {
        self.headers
            .iter()
            .filter(|header| header.0 == name)
            .map(|header| header.1.as_slice())
            .collect()
    }

    /// The values of all headers, by name.
    fn headers_by_name(&self) -> BTreeMap<String, Vec<Vec<u8>>> {
        let mut values: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for (name, value) in &self.headers {
            values.entry(name.clone()).or_default().push(value.clone());
        }
        values
    }

    /// Whether the response accepted the event.
    #[must_use]
    pub fn taken(&self) -> bool {
        self.answered.is_some_and(|status_code| (200..300).contains(&status_code))
    }
}

/// The response to a request.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    status_code: u16,
    after: Option<Duration>,
    body: &'static str,
}

impl Answer {
    /// Immediately, with this status code.
    #[must_use]
    pub const fn status(status_code: u16) -> Self {
        Self { status_code, after: Some(Duration::ZERO), body: "" }
    }

    /// `503` to the first attempt of a third of the events, and `200` to everything else.
    #[must_use]
    pub fn refusing_a_third_at_first(received: &Received) -> Self {
        let refuses = received.attempt == 1 && received.event.as_bytes()[15].is_multiple_of(3);
        Self::status(if refuses { 503 } else { 200 })
    }

    /// Not before this time has passed.
    #[must_use]
    pub const fn after(self, delay: Duration) -> Self {
        Self { after: Some(delay), ..self }
    }

    #[must_use]
    pub const fn body(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    /// No response. The connection stays open.
    #[must_use]
    pub const fn never() -> Self {
        Self { status_code: 200, after: None, body: "" }
    }
}

type Behaviour = Arc<dyn Fn(&Received) -> Answer + Send + Sync>;

/// A downstream that listens until it is dropped.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    state: Arc<State>,
    server: JoinHandle<()>,
}

struct State {
    connections: AtomicUsize,
    recording: Option<Recording>,
    received: Mutex<Vec<Received>>,
    behaviour: Mutex<Behaviour>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl Sink {
    /// Starts to listen on a free port of the loopback interface.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn start(behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::recorded(None, behaviour).await
    }

    pub(crate) async fn recorded(
        recording: Option<Recording>,
        behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State {
            connections: AtomicUsize::new(0),
            recording,
            received: Mutex::default(),
            behaviour: Mutex::new(Arc::new(behaviour)),
        });
        let server = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self { address, state, server }
    }

    /// Changes the behaviour from now on.
    ///
    /// # Panics
    ///
    /// If an earlier behaviour has panicked.
    pub fn behave(&self, behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) {
        *self.state.behaviour.lock().expect("no behaviour has panicked") = Arc::new(behaviour);
    }

    /// The configuration of three sources, `github`, `stripe` and `shopify`, each with its own path
    /// here.
    #[must_use]
    pub fn three_sources(&self) -> String {
        ["github", "stripe", "shopify"]
            .map(|name| {
                format!("[sources.{name}]\ndestination = \"{}\"", self.url(&format!("/{name}")))
            })
            .join("\n")
    }

    /// As [`Self::three_sources`], with short timeouts. `timeout` limits a delivery. Its lease is
    /// 10 s longer, so events in flight become claimable soon. Retries follow within 200 ms. `more`
    /// adds settings to `[defaults]`.
    #[must_use]
    pub fn three_impatient_sources(&self, timeout: &str, more: &str) -> String {
        let defaults = "initial_delay = \"50ms\"\nmax_delay = \"200ms\"";
        format!("[defaults]\ntimeout = \"{timeout}\"\n{defaults}\n{more}\n{}", self.three_sources())
    }

    /// The URL of a path of this downstream.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every request so far, in order.
    ///
    /// # Panics
    ///
    /// If a behaviour has panicked.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().expect("no behaviour has panicked").clone()
    }

    /// The number of connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// The number of requests so far.
    ///
    /// # Panics
    ///
    /// If a behaviour has panicked.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state.received.lock().expect("no behaviour has panicked").len()
    }

    /// Waits until there were this number of requests.
    ///
    /// # Panics
    ///
    /// If there were fewer in time.
    pub async fn reaches(&self, requests: usize) {
        wait::until("requests to the downstream", || async {
            let count = self.count();
            if count >= requests { Ok(()) } else { Err(format!("{count} of {requests}")) }
        })
        .await;
    }

    /// How often each event was accepted, with a status of 200 to 299.
    ///
    /// # Panics
    ///
    /// If a behaviour has panicked.
    #[must_use]
    pub fn taken(&self) -> BTreeMap<Uuid, usize> {
        let mut taken = BTreeMap::new();
        for received in self
            .state
            .received
            .lock()
            .expect("no behaviour has panicked")
            .iter()
            .filter(|received| received.taken())
        {
            *taken.entry(received.event).or_default() += 1;
        }
        taken
    }

    /// The requests for one event, in order.
    #[must_use]
    pub fn of(&self, event: Uuid) -> Vec<Received> {
        self.received().into_iter().filter(|received| received.event == event).collect()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        state.connections.fetch_add(1, Ordering::Relaxed);
        let state = Arc::clone(&state);
        let service = service_fn(move |request| answer(Arc::clone(&state), request));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .max_headers(200)
            .serve_connection(TokioIo::new(stream), service);
        // In some tests the program resets connections. The requests are recorded in any case.
        connections.spawn(async move { drop(connection.await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    let received = Received::new(&head.uri, headers, &body);
    let recorded =
        state.recording.as_ref().map(|recording| (recording, received.record(recording, &body)));
    let behaviour = Arc::clone(&state.behaviour.lock().expect("no behaviour has panicked"));
    let answer = behaviour(&received);
    let index = {
        let mut all = state.received.lock().expect("no behaviour has panicked");
        all.push(received);
        all.len() - 1
    };
    match answer.after {
        Some(Duration::ZERO) => {}
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
    // From here on the response is sent without another await. A request whose connection breaks
    // earlier is dropped above, and stays unanswered.
    state.received.lock().expect("no behaviour has panicked")[index].answered =
        Some(answer.status_code);
    if let Some((recording, request)) = recorded {
        recording.record(What::Replied {
            request,
            status_code: answer.status_code,
            retry_after: None,
        });
    }
    let mut response = Response::new(Full::new(Bytes::from_static(answer.body.as_bytes())));
    *response.status_mut() = http::StatusCode::from_u16(answer.status_code)
        .expect("tests answer with real status codes");
    Ok(response)
}
