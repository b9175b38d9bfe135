//! Shared parts of the tests in this folder: the reference database with faults, the application on
//! top of it, and checks of responses.

use crate::document::Document;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::Service;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use surehook::clock::TokioClock;
use surehook::doorbell::Doorbell;
use surehook::health::Health;
use surehook::http::{
    Acknowledgement, App, Bodies, Configured, Relays, Route, RouteSet, SourceIntake,
};
use surehook::ids::SystemIds;
use surehook::intake::{IntakePorts, Limits, intake};
use surehook::metrics::Metrics;
use surehook::ports::{NewEvent, Relay, RelayFailed, Relayed, StoreError};
use surehook::search::AttemptEntry;
use surehook_core::admission::OnKeyReuse;
use surehook_core::event::{DeliveryState, Reason, Status};
use surehook_core::id::EventId;
use surehook_core::key::places::{Entry, KeyPlaces};
use surehook_core::operators::Access;
use surehook_core::relay::{RelayRules, Rule};
use surehook_core::source::SourceName;
use surehook_model::database::DeliveryRow;
use surehook_model::memory::MemoryStore;
use surehook_model::scenario::Call;
use tokio::sync::watch;

/// How the store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Works,
    /// Does not answer until the mode changes.
    Hangs,
    Unavailable,
    Conflict,
    Unknown,
    Rejects,
}

/// The reference database, with faults.
pub(crate) struct Memory {
    pub(crate) database: Arc<MemoryStore>,
    faults: Arc<Faults>,
}

struct Faults {
    mode: watch::Sender<Mode>,
    /// How the store answers calls that store new events, unless `mode` already fails or hangs.
    storing: watch::Sender<Mode>,
    /// How the store answers redrives, unless `mode` already fails or hangs.
    redriving: watch::Sender<Mode>,
    /// The number of calls of each kind.
    calls: Mutex<BTreeMap<Call, usize>>,
}

impl Memory {
    fn new() -> Self {
        let faults = Arc::new(Faults {
            mode: watch::channel(Mode::Works).0,
            storing: watch::channel(Mode::Works).0,
            redriving: watch::channel(Mode::Works).0,
            calls: Mutex::default(),
        });
        let before = Arc::clone(&faults);
        let database = MemoryStore::at(Timestamp::UNIX_EPOCH).before_each(move |call| {
            let faults = Arc::clone(&before);
            async move { faults.obey(call).await }.boxed()
        });
        Self { database: Arc::new(database), faults }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.faults.mode.send_replace(mode);
    }

    /// Sets how the store answers calls that store new events.
    pub(crate) fn set_storing(&self, mode: Mode) {
        self.faults.storing.send_replace(mode);
    }

    /// Sets how the store answers redrives.
    pub(crate) fn set_redriving(&self, mode: Mode) {
        self.faults.redriving.send_replace(mode);
    }

    /// The number of calls of one kind.
    pub(crate) fn calls(&self, call: Call) -> usize {
        self.faults.calls.lock().unwrap().get(&call).copied().unwrap_or(0)
    }

    /// The stored events, in order.
    pub(crate) fn stored(&self) -> Vec<NewEvent> {
        self.database.tables().events.into_values().map(|row| row.event).collect()
    }

    /// Gives an event this status, and its attempts.
    pub(crate) fn put(&self, id: EventId, status: Status, history: Vec<AttemptEntry>) {
        let reason = (status == Status::DeadLettered).then_some(Reason::Exhausted);
        let attempt = history.last().map_or(0, |entry| entry.attempt);
        let delivery = DeliveryState { status, reason, attempt, ..DeliveryState::accepted() };
        self.database.transact(|tables, now| {
            tables.attempts.extend(history.into_iter().map(|entry| ((id, entry.attempt), entry)));
            tables.deliveries.remove(&id);
            let due_at = (status != Status::DeadLettered).then_some(now);
            if status != Status::Delivered {
                tables.deliveries.insert(id, DeliveryRow { delivery, due_at });
            }
            if status == Status::DeadLettered {
                tables.ended.insert(id, now);
            }
        });
    }
}

impl Faults {
    async fn obey(&self, call: Call) -> Result<(), StoreError> {
        *self.calls.lock().unwrap().entry(call).or_default() += 1;
        Self::answer(&self.mode).await?;
        if matches!(call, Call::Accept | Call::Probe) {
            Self::answer(&self.storing).await?;
        }
        if call == Call::Redrive {
            Self::answer(&self.redriving).await?;
        }
        Ok(())
    }

    async fn answer(mode: &watch::Sender<Mode>) -> Result<(), StoreError> {
        let mut mode = mode.subscribe();
        let mode = *mode.wait_for(|mode| *mode != Mode::Hangs).await.unwrap();
        let detail = || String::from("SELECT secret FROM somewhere");
        match mode {
            Mode::Works | Mode::Hangs => Ok(()),
            Mode::Unavailable => Err(StoreError::Unavailable(detail())),
            Mode::Conflict => Err(StoreError::Conflict(detail())),
            Mode::Unknown => Err(StoreError::Unknown(detail())),
            Mode::Rejects => Err(StoreError::Rejected(detail())),
        }
    }
}

/// The destination of relayed requests.
#[derive(Default)]
pub(crate) struct Destination {
    answer: Mutex<Option<Result<Response<Bytes>, RelayFailed>>>,
    /// The requests so far.
    requests: Mutex<Vec<(String, Relayed)>>,
}

impl Destination {
    /// Sets the answer to further requests. Before the first one is set, it does not answer.
    pub(crate) fn answers(&self, answer: Result<Response<Bytes>, RelayFailed>) {
        *self.answer.lock().unwrap() = Some(answer);
    }

    /// The requests so far, each with its source.
    pub(crate) fn requests(&self) -> Vec<(String, Relayed)> {
        self.requests.lock().unwrap().clone()
    }
}

impl Relay for Destination {
    fn relay(
        &self,
        source: &SourceName,
        request: Relayed,
    ) -> BoxFuture<'static, Result<Response<Bytes>, RelayFailed>> {
        self.requests.lock().unwrap().push((source.to_string(), request));
        match self.answer.lock().unwrap().clone() {
            Some(answer) => futures::future::ready(answer).boxed(),
            None => futures::future::pending().boxed(),
        }
    }
}

/// The settings that a test can choose.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    /// The limit of a body, for each source but `github`, which accepts twice as much.
    pub(crate) max_body: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) takes_webhooks: bool,
    pub(crate) delivers: bool,
    /// Where the source `plain` has its idempotency keys.
    pub(crate) idempotency_key: &'static [&'static str],
    pub(crate) redrive_on_replay: bool,
    /// Whether queries are stored and forwarded.
    pub(crate) forward_query: bool,
    /// Which requests the source `plain` relays.
    pub(crate) relay: Vec<Rule>,
    pub(crate) relay_timeout: Duration,
    /// What the source `plain` answers to events that are stored.
    pub(crate) acknowledgement: Acknowledgement,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits {
                max_queued: 100,
                max_queued_bytes: 1 << 20,
                max_request: 1 << 20,
                sources: 3,
            },
            max_body: 1024,
            body_timeout: Duration::from_secs(10),
            takes_webhooks: true,
            delivers: true,
            idempotency_key: &["header:idempotency-key"],
            redrive_on_replay: false,
            forward_query: true,
            relay: Vec::new(),
            relay_timeout: Duration::from_secs(10),
            acknowledgement: Acknowledgement::default(),
        }
    }
}

/// The destination of each source, as operators see it.
pub(crate) const DESTINATION: &str = "https://app.example/hooks?…";

/// The application with three sources: `plain`, `github` (its own key header, credentials
/// forwarded) and `restamp` (the first body wins).
pub(crate) struct World {
    pub(crate) app: Arc<App>,
    pub(crate) store: Memory,
    pub(crate) destination: Arc<Destination>,
    pub(crate) route_set: RouteSet,
    pub(crate) access: Access,
}

impl World {
    pub(crate) fn start(setup: Setup) -> Self {
        let store = Memory::new();
        let clock = Arc::new(TokioClock::new());
        let doorbell = Arc::new(Doorbell::default());
        let health: Arc<Health> = Arc::default();
        let ports = IntakePorts {
            store: store.database.clone(),
            clock: Arc::clone(&clock) as _,
            doorbell: Arc::clone(&doorbell),
            handover: Arc::default(),
            health: Arc::clone(&health),
        };
        let (handle, run) = intake(setup.limits, ports, futures::future::pending());
        tokio::spawn(run);
        let source = |key: &[&str], on_key_reuse, forward_credentials| SourceIntake {
            max_body: setup.max_body,
            idempotency_key: places(key),
            on_key_reuse,
            acknowledgement: Acknowledgement::default(),
            redrive_on_replay: setup.redrive_on_replay,
            forward_credentials,
            forward_query: setup.forward_query,
            relay: RelayRules::default(),
            relay_timeout: setup.relay_timeout,
            destination: DESTINATION.to_owned(),
            max_attempts: 20,
            retries_last: (Duration::from_secs(90), Duration::from_mins(3)),
            lease: Duration::from_secs(20),
        };
        let sources = BTreeMap::from([
            (
                name("plain"),
                SourceIntake {
                    acknowledgement: setup.acknowledgement,
                    relay: RelayRules::new(setup.relay).unwrap(),
                    ..source(setup.idempotency_key, OnKeyReuse::Reject, false)
                },
            ),
            (
                name("github"),
                SourceIntake {
                    max_body: 2 * setup.max_body,
                    ..source(&["header:x-github-delivery"], OnKeyReuse::Reject, true)
                },
            ),
            (name("restamp"), source(&["header:idempotency-key"], OnKeyReuse::FirstWins, false)),
        ]);
        let destination = Arc::new(Destination::default());
        let port: Arc<dyn Relay> = destination.clone();
        let app = Arc::new(App {
            configured: watch::Sender::new(Arc::new(Configured {
                sources,
                body_timeout: setup.body_timeout,
            })),
            intake: setup.takes_webhooks.then_some(handle),
            operators: store.database.clone(),
            maintenance: store.database.clone(),
            metrics: Metrics::new(["plain", "github", "restamp"].map(name)),
            delivers: setup.delivers,
            clock,
            ids: Arc::new(SystemIds),
            health,
            doorbell,
            relays: Relays::new(port),
            bodies: Bodies::default(),
        });
        Self { app, store, destination, route_set: RouteSet::Everyone, access: Access::default() }
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response<Bytes> {
        let is_host = |(name, _): &(&str, &str)| name.eq_ignore_ascii_case("host");
        let request = Request::builder().method(method).uri(path);
        let request =
            if headers.iter().any(is_host) { request } else { request.header("host", "test") };
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.answer(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await
    }

    /// The response of the routes, without a server. It must match the document.
    pub(crate) async fn answer(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let service =
            surehook::http::service(Arc::clone(&self.app), self.route_set, self.access.clone());
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let (head, body) = service.call(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        // Only responses of destinations have this header. The document does not describe them.
        if head.headers.contains_key("content-security-policy") {
            return Response::from_parts(head, body);
        }
        // The server sends no body in response to `HEAD`.
        let sent = if method == "HEAD" { Bytes::new() } else { body.clone() };
        document().assert_describes(&method, &path, head.status.as_u16(), &head.headers, &sent);
        Response::from_parts(head, body)
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Bytes> {
        self.request("GET", path, &[], b"").await
    }

    /// Posts to the source `plain`.
    pub(crate) async fn post(&self, key: &str, body: &[u8]) -> Response<Bytes> {
        self.request("POST", "/webhooks/plain", &[("idempotency-key", key)], body).await
    }

    /// Stores one event and returns its id.
    pub(crate) async fn accepted(&self, key: &str) -> EventId {
        let response = self.post(key, b"body").await;
        assert_eq!(response.status(), 202);
        json(&response)["event_id"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) async fn delivered(&self, key: &str) -> EventId {
        let id = self.accepted(key).await;
        self.store.put(id, Status::Delivered, vec![]);
        id
    }

    pub(crate) async fn dead_lettered(&self, key: &str) -> EventId {
        let id = self.accepted(key).await;
        self.store.put(id, Status::DeadLettered, vec![]);
        id
    }
}

/// The paths that are not for operators: webhooks, and the health checks of load balancers.
pub(crate) const NOT_FOR_OPERATORS: [&str; 3] = ["/webhooks/{source}", "/health", "/ready"];

/// A request for this route: the first of its methods, and its path, with the source `plain` or the
/// id of an unknown event.
pub(crate) fn request_for(route: Route) -> (&'static str, String) {
    let method = route.methods().split(", ").next().unwrap();
    let path = route.path().replace("{source}", "plain");
    (method, path.replace("{id}", "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"))
}

/// The description of the HTTP surface that the program serves.
pub(crate) fn document() -> &'static Document {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| Document::read(surehook::http::OPENAPI));
    &DOCUMENT
}

/// The places of an idempotency key, as in the setting.
fn places(entries: &[&str]) -> KeyPlaces {
    KeyPlaces::new(entries.iter().map(|entry| Entry::parse(entry).unwrap()).collect()).unwrap()
}

pub(crate) fn name(text: &str) -> SourceName {
    SourceName::parse(text).unwrap()
}

pub(crate) fn json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body())
        .unwrap_or_else(|error| panic!("{error}: {:?}", response.body()))
}

/// Checks that a response is the complete problem `slug` with this status code and the right media
/// type.
#[track_caller]
pub(crate) fn assert_problem(response: &Response<Bytes>, status: u16, slug: &str) {
    let what = format!("{response:?}");
    assert_eq!(response.status(), status, "{what}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{what}");
    assert_eq!(
        (
            header(response.headers(), "cache-control"),
            header(response.headers(), "x-content-type-options")
        ),
        (Some("no-store"), Some("nosniff")),
        "{what}"
    );
    let problem = json(response);
    document().assert_is(&format!("problem.{slug}"), &problem);
    assert_eq!(problem["type"], format!("urn:surehook:problem:{slug}"), "{what}");
    assert_eq!(problem["status"], status, "{what}");
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{what}");
    assert!(
        problem["detail"]
            .as_str()
            .is_some_and(|detail| !detail.is_empty() && !detail.contains("SELECT")),
        "{what}"
    );
    assert_eq!(header(response.headers(), "retry-after"), (status == 503).then_some("1"), "{what}");
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}
