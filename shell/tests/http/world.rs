//! Shared parts of the tests in this folder: a store in memory, the application on top of it, and
//! checks of responses.

use crate::document::Document;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::Service;
use jiff::Timestamp;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use surehook::clock::TokioClock;
use surehook::doorbell::Doorbell;
use surehook::health::Health;
use surehook::http::{App, RouteSet, SourceIntake};
use surehook::ids::SystemIds;
use surehook::intake::{IntakePorts, Limits, intake};
use surehook::metrics::Metrics;
use surehook::ports::{Erased, NewEvent, Pruned, Redriven, Retention, Store, StoreError};
use surehook::search::{
    EventFilter, EventPage, EventRecord, PageSize, RedrivenPage, SourceRecord, Span,
};
use surehook_core::admission::{OnKeyReuse, Stored};
use surehook_core::event::{Reason, Status};
use surehook_core::id::EventId;
use surehook_core::operators::Access;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};
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

/// A store in memory, with only the calls that the HTTP surface makes.
pub(crate) struct Memory {
    mode: watch::Sender<Mode>,
    /// How the store answers calls that store new events, unless `mode` already fails or hangs.
    storing: watch::Sender<Mode>,
    events: Mutex<Vec<(NewEvent, EventRecord)>>,
    pub(crate) pings: AtomicUsize,
    pub(crate) probes: AtomicUsize,
    /// The number of batches that were submitted.
    pub(crate) batches: AtomicUsize,
    /// The searches that were made.
    pub(crate) asked: Mutex<Vec<(EventFilter, Span, PageSize)>>,
    paused: Mutex<BTreeSet<SourceName>>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self {
            mode: watch::channel(Mode::Works).0,
            storing: watch::channel(Mode::Works).0,
            events: Mutex::default(),
            pings: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            batches: AtomicUsize::new(0),
            asked: Mutex::default(),
            paused: Mutex::default(),
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// The stored events, in order.
    pub(crate) fn stored(&self) -> Vec<NewEvent> {
        self.events.lock().unwrap().iter().map(|(event, _)| event.clone()).collect()
    }

    pub(crate) fn change(&self, id: EventId, change: impl FnOnce(&mut EventRecord)) {
        let mut events = self.events.lock().unwrap();
        change(
            &mut events
                .iter_mut()
                .find(|(event, _)| event.id == id)
                .expect("the event is stored")
                .1,
        );
    }

    /// Sets how the store answers calls that store new events.
    pub(crate) fn set_storing(&self, mode: Mode) {
        self.storing.send_replace(mode);
    }

    async fn obey(&self) -> Result<(), StoreError> {
        Self::answer(&self.mode).await
    }

    async fn obey_storing(&self) -> Result<(), StoreError> {
        self.obey().await?;
        Self::answer(&self.storing).await
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

impl Store for Memory {
    fn accept(&self, batch: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        async move {
            self.obey_storing().await?;
            let mut events = self.events.lock().unwrap();
            let mut answers = Vec::new();
            for event in batch {
                let there = events
                    .iter()
                    .find(|(there, _)| (&there.source, &there.key) == (&event.source, &event.key));
                answers.push(match there {
                    Some((there, record)) => Stored::Existing {
                        id: there.id,
                        fingerprint: there.fingerprint,
                        status: record.status,
                    },
                    None => {
                        let record = new_record(&event);
                        events.push((event, record));
                        Stored::Inserted
                    }
                });
            }
            Ok(answers)
        }
        .boxed()
    }

    fn find(&self, event: EventId) -> BoxFuture<'_, Result<Option<EventRecord>, StoreError>> {
        async move {
            self.obey().await?;
            Ok(self
                .events
                .lock()
                .unwrap()
                .iter()
                .find(|(there, _)| there.id == event)
                .map(|(_, record)| record.clone()))
        }
        .boxed()
    }

    fn redrive(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        async move {
            self.obey().await?;
            let mut events = self.events.lock().unwrap();
            let Some((_, record)) = events.iter_mut().find(|(there, _)| there.id == event) else {
                return Ok(Redriven::NotFound);
            };
            if record.status != Status::DeadLettered {
                return Ok(Redriven::WrongStatus(record.status));
            }
            (record.status, record.reason) = (Status::Queued, None);
            (record.next_attempt_at, record.settled_at) = (Some(Timestamp::UNIX_EPOCH), None);
            Ok(Redriven::Queued)
        }
        .boxed()
    }

    fn redrive_delivered(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        async move {
            self.obey().await?;
            let mut events = self.events.lock().unwrap();
            let Some((_, record)) = events.iter_mut().find(|(there, _)| there.id == event) else {
                return Ok(Redriven::NotFound);
            };
            if record.status != Status::Delivered {
                return Ok(Redriven::WrongStatus(record.status));
            }
            (record.status, record.next_attempt_at, record.settled_at) =
                (Status::Queued, Some(Timestamp::UNIX_EPOCH), None);
            Ok(Redriven::Queued)
        }
        .boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.pings.fetch_add(1, Ordering::SeqCst);
        self.obey().boxed()
    }

    fn probe(&self, _: NewEvent) -> BoxFuture<'_, Result<(), StoreError>> {
        self.probes.fetch_add(1, Ordering::SeqCst);
        self.obey_storing().boxed()
    }

    fn claim(&self, _: Vec<Demand>) -> BoxFuture<'_, Result<Claims, StoreError>> {
        unreachable!("the HTTP surface does not claim")
    }

    fn settle(&self, _: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        unreachable!("the HTTP surface does not settle")
    }

    fn list(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
    ) -> BoxFuture<'_, Result<EventPage, StoreError>> {
        async move {
            self.obey().await?;
            let mut events: Vec<EventRecord> =
                self.events.lock().unwrap().iter().map(|(_, record)| record.clone()).collect();
            events.retain(|event| {
                span.from <= event.id && event.id < span.until && filter.matches(event)
            });
            events.sort_by_key(|event| Reverse(event.id));
            events.truncate(size.events as usize);
            let next = events
                .last()
                .map(|event| event.id)
                .filter(|_| events.len() == size.events as usize);
            self.asked.lock().unwrap().push((filter, span, size));
            Ok(EventPage { events, next })
        }
        .boxed()
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> BoxFuture<'_, Result<RedrivenPage, StoreError>> {
        async move {
            self.obey().await?;
            let mut events = self.events.lock().unwrap();
            let is_meant =
                |event: &EventRecord| event.status == Status::DeadLettered && filter.matches(event);
            let mut letters: Vec<&mut EventRecord> =
                events.iter_mut().map(|(_, record)| record).collect();
            letters
                .retain(|event| span.from <= event.id && event.id < span.until && is_meant(event));
            letters.sort_by_key(|event| event.id);
            letters.truncate(size.events as usize);
            let next = letters
                .last()
                .map(|event| event.id)
                .filter(|_| letters.len() == size.events as usize);
            let redriven = u32::try_from(letters.len()).unwrap();
            for letter in letters.into_iter().filter(|_| !dry_run) {
                (letter.status, letter.reason, letter.settled_at) = (Status::Queued, None, None);
                letter.next_attempt_at = Some(Timestamp::UNIX_EPOCH);
            }
            Ok(RedrivenPage { redriven, next })
        }
        .boxed()
    }

    fn sources(
        &self,
        names: Vec<SourceName>,
        count_to: u32,
    ) -> BoxFuture<'_, Result<Vec<SourceRecord>, StoreError>> {
        async move {
            self.obey().await?;
            let paused = self.paused.lock().unwrap();
            let events = self.events.lock().unwrap();
            let all: BTreeSet<SourceName> =
                names.into_iter().chain(paused.iter().cloned()).collect();
            let record = |source: SourceName| {
                let count = |status| {
                    let of_source = events.iter().filter(|(event, record)| {
                        event.source == source && record.status == status
                    });
                    u32::try_from(of_source.count()).unwrap()
                };
                SourceRecord {
                    source: source.to_string(),
                    queued: count(Status::Queued),
                    processing: count(Status::Processing),
                    retrying: count(Status::Retrying),
                    dead_lettered: count(Status::DeadLettered),
                    is_partial: count(Status::Queued) >= count_to,
                    behind: (count(Status::Queued) > 0).then_some(Duration::from_millis(1500)),
                    paused_since: paused.contains(&source).then_some(Timestamp::UNIX_EPOCH),
                }
            };
            Ok(all.into_iter().map(record).collect())
        }
        .boxed()
    }

    fn pause(&self, source: SourceName, paused: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            self.obey().await?;
            let mut all = self.paused.lock().unwrap();
            Ok(if paused { all.insert(source) } else { all.remove(&source) })
        }
        .boxed()
    }

    fn prune(
        &self,
        _: Retention,
        _: Option<EventId>,
        _: u32,
    ) -> BoxFuture<'_, Result<Pruned, StoreError>> {
        unreachable!("the HTTP surface does not prune")
    }

    fn erase(
        &self,
        _: Duration,
        _: Option<EventId>,
        _: u32,
    ) -> BoxFuture<'_, Result<Erased, StoreError>> {
        unreachable!("the HTTP surface does not erase")
    }
}

fn new_record(event: &NewEvent) -> EventRecord {
    EventRecord {
        id: event.id,
        source: event.source.to_string(),
        key: event.key.to_string(),
        received_at: Timestamp::UNIX_EPOCH,
        status: Status::Queued,
        attempt: 0,
        budget_from: Some(0),
        next_attempt_at: Some(Timestamp::UNIX_EPOCH),
        settled_at: None,
        reason: None,
        history: vec![],
    }
}

/// The settings that a test can choose.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) max_body: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) takes_webhooks: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits {
                max_queued: 100,
                max_queued_bytes: 1 << 20,
                max_body: 1 << 20,
                sources: 3,
            },
            max_body: 1024,
            body_timeout: Duration::from_secs(10),
            takes_webhooks: true,
        }
    }
}

/// The application with three sources: `plain`, `github` (its own key header, credentials
/// forwarded) and `restamp` (the first body wins).
pub(crate) struct World {
    pub(crate) app: Arc<App>,
    pub(crate) store: Arc<Memory>,
    pub(crate) route_set: RouteSet,
    pub(crate) access: Access,
}

impl World {
    pub(crate) fn start(setup: Setup) -> Self {
        let store = Arc::new(Memory::new());
        let clock = Arc::new(TokioClock::new());
        let doorbell = Arc::new(Doorbell::default());
        let health: Arc<Health> = Arc::default();
        let ports = IntakePorts {
            store: Arc::clone(&store) as _,
            clock: Arc::clone(&clock) as _,
            doorbell: Arc::clone(&doorbell),
            handover: Arc::default(),
            health: Arc::clone(&health),
        };
        let (handle, run) = intake(setup.limits, ports, futures::future::pending());
        tokio::spawn(run);
        let source = |key_header: &'static str, on_key_reuse, forward_credentials| SourceIntake {
            idempotency_header: http::HeaderName::from_static(key_header),
            on_key_reuse,
            forward_credentials,
            max_attempts: 20,
            lease: Duration::from_secs(20),
        };
        let sources = BTreeMap::from([
            (name("plain"), source("idempotency-key", OnKeyReuse::Reject, false)),
            (name("github"), source("x-github-delivery", OnKeyReuse::Reject, true)),
            (name("restamp"), source("idempotency-key", OnKeyReuse::FirstWins, false)),
        ]);
        let app = Arc::new(App {
            sources,
            intake: setup.takes_webhooks.then_some(handle),
            store: Arc::clone(&store) as _,
            metrics: Metrics::new(["plain", "github", "restamp"].map(name)),
            delivers: true,
            clock,
            ids: Arc::new(SystemIds),
            health,
            max_body: setup.max_body,
            body_timeout: setup.body_timeout,
            doorbell,
        });
        Self { app, store, route_set: RouteSet::Everyone, access: Access::default() }
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
        self.store.change(id, |record| {
            (record.status, record.next_attempt_at, record.settled_at) =
                (Status::Delivered, None, Some(Timestamp::UNIX_EPOCH));
        });
        id
    }

    pub(crate) async fn dead_lettered(&self, key: &str) -> EventId {
        let id = self.accepted(key).await;
        self.store.change(id, |record| {
            (record.status, record.reason) = (Status::DeadLettered, Some(Reason::Exhausted));
            (record.next_attempt_at, record.settled_at) = (None, Some(Timestamp::UNIX_EPOCH));
        });
        id
    }
}

/// The description of the HTTP surface that the program serves.
pub(crate) fn document() -> &'static Document {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| Document::read(surehook::http::OPENAPI));
    &DOCUMENT
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
