//! The HTTP interface: its routes and their responses.
//!
//! | route | response |
//! |---|---|
//! | `POST /webhooks/{source}` | `202` with the event's id and status; see [`REPLAYED_HEADER`] |
//! | `GET /events/{id}` | `200` with the event, see [`view`] |
//! | `GET /events` | `200` with a page of events, newest first, see [`query`] |
//! | `POST /events/{id}/redrive` | `200` with the event's id and new status, see [`query`] |
//! | `POST /redrive` | `200` with the number of redriven dead letters, see [`query`] |
//! | `GET /sources` | `200` with the work of each source |
//! | `POST /sources/{source}/pause`, `…/resume` | `200`: the source is paused or resumed |
//! | `GET /health` | `200`: the process runs. Never accesses the database |
//! | `GET /ready` | `200`: the process is ready for requests; see [`crate::health`] |
//! | `GET /metrics` | `200` with [`crate::metrics`] in Prometheus' text format |
//! | `GET /openapi.json` | `200` with [`OPENAPI`], the description of this interface |
//!
//! Every other response is a [`problem`]. The checks of a request run in this order: host and
//! framing, route, method, browser origin (operator routes), shutdown, source or id, idempotency
//! key, declared size, body, database. `GET` routes also answer `HEAD`.
//!
//! Path segments are compared as sent. Source names and ids need no percent-encoding, so an encoded
//! one is unknown. A slash at the end of a path is ignored.
//!
//! A draining process answers `503` and closes the connection, except on `/health`, `/ready`,
//! `/metrics` and `/openapi.json`. The client then reaches another process, or this one after its
//! restart.
//!
//! Not here: sockets (see [`crate::http_server`]) and storage (see [`crate::intake`]). This module works
//! with any async runtime.

mod body;
mod gate;
mod monitoring;
mod operator;
pub mod problem;
pub mod query;
pub mod view;
mod webhook;

pub use webhook::REPLAYED_HEADER;

use crate::doorbell::Doorbell;
use crate::health::Health;
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::ports::{Clock, Ids, MaintenanceStore, OperatorStore};
use crate::visible;
use bytes::{Buf, Bytes};
use futures::{FutureExt, Stream, TryFutureExt};
use gate::Line;
use http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::Request;
use hyper::body::Body;
use hyper::service::{Service, service_fn};
use hyper_util::service::TowerToHyperService;
use problem::{Problem, ProblemKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use surehook_core::admission::OnKeyReuse;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::operators::Access;
use surehook_core::source::SourceName;
use warp::reply::Response;
use warp::{Filter, Reply};

/// The OpenAPI 3.1 document of the HTTP interface. It does not depend on the configuration.
pub const OPENAPI: &[u8] = include_bytes!("http/openapi.json");

/// The overload warning is logged at most once in this time.
const OVERLOAD_SAID_EVERY_MS: u64 = 1000;

/// The state that all routes share.
pub struct App {
    /// The sources that webhooks can be posted to.
    pub sources: BTreeMap<SourceName, SourceIntake>,
    /// Stores incoming events; `None` in a process that accepts no webhooks.
    pub intake: Option<Intake>,
    /// The database, for operators' requests.
    pub operators: Arc<dyn OperatorStore>,
    /// The database, for `/ready` and `/metrics`.
    pub maintenance: Arc<dyn MaintenanceStore>,
    pub metrics: Arc<Metrics>,
    /// Whether this process delivers events.
    pub delivers: bool,
    /// The clock for request timeouts.
    pub clock: Arc<dyn Clock>,
    /// Generates event ids.
    pub ids: Arc<dyn Ids>,
    /// Decides the response of `/ready`.
    pub health: Arc<Health>,
    /// Limit of one body, in bytes.
    pub max_body: usize,
    /// How long one body may take to arrive, counted from the start of reading it.
    pub body_timeout: Duration,
    /// Wakes the worker after a redrive or a resume.
    pub doorbell: Arc<Doorbell>,
}

/// The settings of one source that the routes need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIntake {
    /// The header that carries the idempotency key.
    pub idempotency_header: HeaderName,
    /// The response to a known key with another body.
    pub on_key_reuse: OnKeyReuse,
    /// Whether `Authorization` and `Cookie` are stored and forwarded.
    pub forward_credentials: bool,
    /// The attempts that the source's policy allows. Only shown to operators.
    pub max_attempts: u32,
    /// The duration of a lease. A delivery ends within it.
    pub lease: Duration,
}

/// The routes that a listener serves. It answers all others as unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteSet {
    /// All routes.
    Everyone,
    /// `POST /webhooks/{source}`, `/health` and `/ready`.
    Producers,
    /// All routes except `POST /webhooks/{source}`.
    Operators,
}

/// The kind of client that a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    /// Load balancers and other health checks.
    Everyone,
    Producers,
    Operators,
    /// Operators. The route is also served during a shutdown.
    Monitoring,
}

impl RouteSet {
    fn has(self, route: &Route) -> bool {
        match route.audience() {
            Audience::Everyone => true,
            Audience::Producers => self != Self::Operators,
            Audience::Operators | Audience::Monitoring => self != Self::Producers,
        }
    }
}

/// The HTTP interface as a service for any hyper server. It answers every request. `access` decides
/// which requests for operator routes the listener admits.
#[must_use]
pub fn service<B>(
    app: Arc<App>,
    route_set: RouteSet,
    access: Access,
) -> impl Service<Request<B>, Response = Response, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
where
    B: Body + Send + Sync + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let routes = TowerToHyperService::new(warp::service(routes(app, route_set, access)));
    service_fn(move |mut request: Request<B>| {
        let line = Line::of(&request);
        request.extensions_mut().insert(line);
        // Boxed, because the type of warp's future nests one level for each route and callers
        // cannot name it.
        routes.call(request).map_ok(guarded).boxed()
    })
}

/// Adds `no-store`, because each response is true only when it is sent and some contain events.
/// Adds `nosniff`, so that no browser guesses another media type.
fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The routes, as a filter that answers every request.
fn routes(
    app: Arc<App>,
    route_set: RouteSet,
    access: Access,
) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone + Send + Sync + 'static {
    let surface = Arc::new(Surface { app, access, overload_said: AtomicU64::new(0) });
    warp::path!("webhooks" / String)
        .map(Route::Webhook)
        .or(warp::path!("events" / String).map(Route::Event))
        .unify()
        .or(warp::path!("events" / String / "redrive").and(query()).map(Route::Redrive))
        .unify()
        .or(warp::path!("events").and(query()).map(Route::Events))
        .unify()
        .or(warp::path!("redrive").and(query()).map(Route::RedriveAll))
        .unify()
        .or(warp::path!("sources").map(|| Route::Sources))
        .unify()
        .or(warp::path!("sources" / String / "pause").map(Route::Pause))
        .unify()
        .or(warp::path!("sources" / String / "resume").map(Route::Resume))
        .unify()
        .or(warp::path!("health").map(|| Route::Health))
        .unify()
        .or(warp::path!("ready").map(|| Route::Ready))
        .unify()
        .or(warp::path!("metrics").map(|| Route::Metrics))
        .unify()
        .or(warp::path!("openapi.json").map(|| Route::OpenApi))
        .unify()
        .or(warp::any().map(|| Route::Unknown))
        .unify()
        // Without a box, the type of everything below is deeper than the compiler's recursion limit in release builds.
        .boxed()
        .map(move |route| if route_set.has(&route) { route } else { Route::Unknown })
        .and(warp::method())
        .and(warp::ext::get::<Line>())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |route, method, line, headers, body| {
            let surface = Arc::clone(&surface);
            async move { surface.answer(route, method, line, headers, body).await }
        })
        // The filters above match every request, so a rejection is a bug in them.
        .recover(|rejection: warp::Rejection| async move {
            tracing::error!(?rejection, "no route handled the request; answering 500");
            Ok::<_, Infallible>(
                ProblemKind::Internal.with(
                    "The request could not be answered. The log of the process has the cause.",
                ),
            )
        })
}

/// The raw query; empty if there is none.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Clone {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

/// A request's path, with its parameter or its raw query.
#[derive(Debug)]
enum Route {
    Webhook(String),
    Event(String),
    Events(String),
    Redrive(String, String),
    RedriveAll(String),
    Sources,
    Pause(String),
    Resume(String),
    Health,
    Ready,
    Metrics,
    OpenApi,
    Unknown,
}

impl Route {
    fn audience(&self) -> Audience {
        match self {
            Self::Health | Self::Ready | Self::Unknown => Audience::Everyone,
            Self::Webhook(_) => Audience::Producers,
            Self::Event(_)
            | Self::Events(_)
            | Self::Redrive(..)
            | Self::RedriveAll(_)
            | Self::Sources
            | Self::Pause(_)
            | Self::Resume(_) => Audience::Operators,
            Self::Metrics | Self::OpenApi => Audience::Monitoring,
        }
    }

    fn allows(&self, method: &Method) -> Result<(), Problem> {
        let allowed = match self {
            Self::Unknown => return Ok(()),
            Self::Webhook(_)
            | Self::Redrive(..)
            | Self::RedriveAll(_)
            | Self::Pause(_)
            | Self::Resume(_) => "POST",
            Self::Event(_)
            | Self::Events(_)
            | Self::Sources
            | Self::Health
            | Self::Ready
            | Self::Metrics
            | Self::OpenApi => "GET, HEAD",
        };
        if allowed.split(", ").any(|allowed| allowed == method.as_str()) {
            Ok(())
        } else {
            Err(Problem::method_not_allowed(allowed))
        }
    }
}

struct Surface {
    app: Arc<App>,
    /// Decides which requests for operator routes are admitted.
    access: Access,
    /// When the overload warning was last logged, in milliseconds since the clock's origin.
    overload_said: AtomicU64,
}

impl Surface {
    /// Answers one request and logs it at debug level, because there can be tens of thousands per
    /// second. Bodies and header values are never logged.
    async fn answer<B: Buf, E: std::error::Error + 'static>(
        &self,
        route: Route,
        method: Method,
        line: Line,
        headers: HeaderMap,
        body: impl Stream<Item = Result<B, E>>,
    ) -> Response {
        let begun = self.app.clock.now();
        let answer = match self.admit(&route, &method, &line, &headers) {
            Ok(()) => self.app.dispatch(&route, headers, body).await,
            Err(problem) => Err(problem),
        };
        let took_ms = self.app.clock.now().since(begun).as_millis();
        match answer {
            Ok(Answer { status, event_id, response }) => {
                tracing::debug!(?route, %method, status = status.as_u16(), event_id = event_id.map(tracing::field::display), took_ms, "answered");
                response
            }
            Err(problem) => {
                if let Route::Webhook(source) = &route {
                    self.app.metrics.refused(source, problem.kind);
                }
                let (status, kind) = (problem.kind.status().as_u16(), problem.kind.urn());
                tracing::debug!(?route, %method, status, kind, detail = problem.detail, took_ms, "answered with a problem");
                if problem.kind == ProblemKind::Overloaded {
                    self.say_overload();
                }
                problem.into_response()
            }
        }
    }

    /// The checks before any route runs.
    fn admit(
        &self,
        route: &Route,
        method: &Method,
        line: &Line,
        headers: &HeaderMap,
    ) -> Result<(), Problem> {
        gate::well_framed(line, headers)?;
        route.allows(method)?;
        match route.audience() {
            Audience::Operators | Audience::Monitoring => {
                gate::admitted(&self.access, line, headers)
            }
            Audience::Everyone | Audience::Producers => Ok(()),
        }
    }

    fn say_overload(&self) {
        let now =
            u64::try_from(self.app.clock.now().since_origin().as_millis()).unwrap_or(u64::MAX);
        let due = |said: u64| {
            (said == 0 || now >= said.saturating_add(OVERLOAD_SAID_EVERY_MS)).then_some(now.max(1))
        };
        if self.overload_said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok() {
            tracing::warn!(
                "intake queue full; answering 503: `intake.max_queued` or `intake.max_queued_bytes` is reached. Check the latency of the database, or raise the limit."
            );
        }
    }
}

/// A successful response.
struct Answer {
    status: StatusCode,
    event_id: Option<EventId>,
    response: Response,
}

impl Answer {
    fn json(
        status: StatusCode,
        event_id: Option<EventId>,
        body: &impl Serialize,
    ) -> Result<Self, Problem> {
        let body = visible::json(body).map_err(|error| {
            tracing::error!(%error, event_id = event_id.map(tracing::field::display), "response could not be serialized; answering 500");
            ProblemKind::Internal.with(
                "The response could not be serialized. The log of the process has the cause.",
            )
        })?;
        Ok(Self::written(status, event_id, body))
    }

    /// A response with a body that is already serialized JSON.
    fn written(status: StatusCode, event_id: Option<EventId>, body: impl Into<Bytes>) -> Self {
        let mut response = Response::new(body.into().into());
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { status, event_id, response }
    }

    /// The id and the status of one event.
    fn standing(answered: StatusCode, id: EventId, status: Status) -> Result<Self, Problem> {
        #[derive(Serialize)]
        struct Standing {
            event_id: String,
            status: &'static str,
        }
        Self::json(
            answered,
            Some(id),
            &Standing { event_id: id.to_string(), status: status.as_str() },
        )
    }
}

impl App {
    async fn dispatch<B: Buf, E: std::error::Error + 'static>(
        &self,
        route: &Route,
        headers: HeaderMap,
        body: impl Stream<Item = Result<B, E>>,
    ) -> Result<Answer, Problem> {
        if !matches!(route.audience(), Audience::Everyone | Audience::Monitoring)
            && self.health.is_draining()
        {
            return Err(shutting_down());
        }
        match route {
            Route::Unknown => Err(ProblemKind::UnknownRoute
                .with("No route has this path. `GET /openapi.json` lists all routes.")),
            Route::Webhook(source) => self.accept(source, headers, body).await,
            Route::Event(id) => self.show(id).await,
            Route::Redrive(id, query) => self.redrive(id, query).await,
            Route::Events(query) => self.list(query).await,
            Route::RedriveAll(query) => self.redrive_all(query).await,
            Route::Sources => self.source_list().await,
            Route::Pause(source) => self.pause(source, true).await,
            Route::Resume(source) => self.pause(source, false).await,
            Route::Health => monitoring::health(),
            Route::Ready => self.ready().await,
            Route::Metrics => self.metrics().await,
            Route::OpenApi => Ok(monitoring::openapi()),
        }
    }
}

fn shutting_down() -> Problem {
    ProblemKind::ShuttingDown
        .with("The process is shutting down. Send the request again on a new connection.")
}

fn database_unavailable() -> Problem {
    ProblemKind::DatabaseUnavailable
        .with("The database is not available. The request had no effect. Send it again.")
}

fn database_timeout() -> Problem {
    ProblemKind::DatabaseTimeout
        .with("The database did not respond in time. The request may have taken effect. Send the same request again: this is safe.")
}
