//! The HTTP interface: its routes and their responses.
//!
//! [`Route`] is the table of routes, with the successful response of each. Every other response is a
//! [`problem`]. The checks of a request run in this order: host and framing, route, method, browser
//! origin (operator routes), source or id, idempotency key, declared size, body, database.
//! An idempotency key that is in the body is looked up after the body was read. A request that its
//! source relays needs none, so this is decided first, by the head or by the body.
//!
//! A draining process answers every request, and `/ready` with `503`. Each response closes its
//! connection. The client then reaches another process, or this one again until its listener closes.
//! So no connection is idle when that happens, except one that had no request during the drain.
//!
//! Not here: sockets (see [`crate::http_server`]) and storage (see [`crate::intake`]). This module works
//! with any async runtime.

mod acknowledgement;
mod body;
mod gate;
mod monitoring;
mod operator;
pub mod problem;
pub mod query;
mod refusals;
mod relay;
mod routes;
mod stored;
pub mod view;
mod webhook;

pub use acknowledgement::{Acknowledgement, Content};
pub use relay::{RELAYED_AT_ONCE, Relays};
pub use routes::{Route, RouteSet};
pub use stored::Bodies;
pub use webhook::REPLAYED_HEADER;

use crate::doorbell::Doorbell;
use crate::health::Health;
use crate::intake::Intake;
use crate::logs::millis;
use crate::metrics::Metrics;
use crate::ports::{Clock, Ids, MaintenanceStore, OperatorStore};
use crate::visible;
use bytes::{Buf, Bytes};
use futures::{FutureExt, Stream, TryFutureExt};
use gate::Line;
use http::header::{CACHE_CONTROL, CONNECTION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use hyper::Request;
use hyper::body::Body;
use hyper::service::{Service, service_fn};
use hyper_util::service::TowerToHyperService;
use problem::{Problem, ProblemKind};
use refusals::Refusals;
use routes::{Audience, Call};
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::admission::OnKeyReuse;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::key::places::KeyPlaces;
use surehook_core::operators::Access;
use surehook_core::relay::{self as relaying, RelayRules};
use surehook_core::source::SourceName;
use tokio::sync::watch;
use warp::reply::Response;
use warp::{Filter, Reply};

/// The OpenAPI 3.1 document of the HTTP interface. It does not depend on the configuration.
pub const OPENAPI: &[u8] = include_bytes!("http/openapi.json");

/// The state that all routes share.
pub struct App {
    /// The part of the configuration that a reload replaces. A request uses what it finds when it
    /// arrives.
    pub configured: watch::Sender<Arc<Configured>>,
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
    /// Wakes the worker after a redrive or a resume.
    pub doorbell: Arc<Doorbell>,
    /// Passes requests on to destinations.
    pub relays: Relays,
    /// Bounds the stored bodies that are in memory for operators.
    pub bodies: Bodies,
}

/// The configuration of the routes.
#[derive(Debug)]
pub struct Configured {
    /// The sources that webhooks can be posted to.
    pub sources: BTreeMap<SourceName, SourceIntake>,
    /// How long one body may take to arrive, counted from the start of reading it.
    pub body_timeout: Duration,
}

impl App {
    fn configured(&self) -> Arc<Configured> {
        Arc::clone(&self.configured.borrow())
    }
}

/// The settings of one source that the routes need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIntake {
    /// Limit of one body, in bytes.
    pub max_body: usize,
    /// Where a request has its idempotency key.
    pub idempotency_key: KeyPlaces,
    /// The response to a known key with another body.
    pub on_key_reuse: OnKeyReuse,
    /// The response to a webhook that is stored.
    pub acknowledgement: Acknowledgement,
    /// Whether a replay of a dead letter queues it again.
    pub redrive_on_replay: bool,
    /// Whether `Authorization` and `Cookie` are stored and forwarded.
    pub forward_credentials: bool,
    /// Whether the query of the posted URL is stored and forwarded.
    pub forward_query: bool,
    /// Which requests are relayed.
    pub relay: RelayRules,
    /// How long a relayed request waits for its response.
    pub relay_timeout: Duration,
    /// The URL of its destination, without secrets. Only shown to operators.
    pub destination: String,
    /// The attempts that the source's policy allows. Only shown to operators.
    pub max_attempts: u32,
    /// The least and the most time that all retries take, without the deliveries. Only shown to
    /// operators.
    pub retries_last: (Duration, Duration),
    /// The duration of a lease. A delivery ends within it.
    pub lease: Duration,
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
    let health = Arc::clone(&app.health);
    let filter = TowerToHyperService::new(warp::service(filter(app, route_set, access)));
    service_fn(move |mut request: Request<B>| {
        let line = Line::of(&request);
        request.extensions_mut().insert(line);
        // Boxed, because callers cannot name the type of warp's future.
        let health = Arc::clone(&health);
        filter.call(request).map_ok(move |response| guarded(response, health.is_draining())).boxed()
    })
}

/// Adds `no-store`, because each response is true only when it is sent and some contain events.
/// Adds `nosniff`, so that no browser guesses another media type. Closes the connection if the
/// process is draining.
fn guarded(mut response: Response, is_draining: bool) -> Response {
    let headers = response.headers_mut();
    if is_draining {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// One filter for all routes, which answers every request.
fn filter(
    app: Arc<App>,
    route_set: RouteSet,
    access: Access,
) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone + Send + Sync + 'static {
    let surface = Arc::new(Surface { app, route_set, access, refusals: Refusals::new() });
    // Not `warp::path::full`: it panics for a target without a path, such as that of `CONNECT`.
    warp::ext::get::<Line>()
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |line: Line, method, headers, body| {
            let surface = Arc::clone(&surface);
            async move {
                let (route, parameter) = surface.route_set.find(line.path()).unzip();
                let parameter = parameter.unwrap_or_default();
                let call = Call { method, parameter, query: line.query(), headers, body };
                surface.answer(route, &line, call).await
            }
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

struct Surface {
    app: Arc<App>,
    route_set: RouteSet,
    /// Decides which requests for operator routes are admitted.
    access: Access,
    refusals: Refusals,
}

impl Surface {
    /// Answers one request and logs it at debug level, because there can be tens of thousands per
    /// second. Bodies and header values are never logged.
    async fn answer<B: Buf, E: Error + 'static>(
        &self,
        route: Option<Route>,
        line: &Line,
        call: Call<'_, impl Stream<Item = Result<B, E>>>,
    ) -> Response {
        let begun = self.app.clock.now();
        self.refusals.log_due(begun);
        let (method, parameter) = (call.method.clone(), call.parameter);
        let query = logged_query(route, call.query);
        let answer = match self.admit(route, line, &call) {
            Ok(route) => route.answer(&self.app, call).await,
            Err(problem) => Err(problem),
        };
        let took_ms = millis(self.app.clock.now().since(begun));
        let path = route.map_or("unknown", Route::path);
        match answer {
            Ok(Answer { status, event_id, response }) => {
                tracing::debug!(route = path, parameter, query, %method, status = status.as_u16(), event_id = event_id.map(tracing::field::display), took_ms, "answered");
                response
            }
            Err(problem) => {
                if route == Some(Route::Webhook) {
                    let source = self.app.metrics.refused(parameter, problem.kind);
                    self.refusals.refused(begun, source, &problem);
                }
                let (status, kind) = (problem.kind.status().as_u16(), problem.kind.urn());
                let event_id = problem.event_id.map(tracing::field::display);
                tracing::debug!(route = path, parameter, query, %method, status, kind, event_id, detail = problem.detail, took_ms, "answered with a problem");
                problem.into_response()
            }
        }
    }

    /// The checks before a handler runs.
    fn admit<S>(
        &self,
        route: Option<Route>,
        line: &Line,
        call: &Call<'_, S>,
    ) -> Result<Route, Problem> {
        let Call { method, parameter, headers, .. } = call;
        gate::well_framed(line, headers)?;
        let route = route.ok_or_else(unknown_route)?;
        route.allows(method, &self.relayed_methods(route, parameter))?;
        if route.audience() == Audience::Operators {
            gate::admitted(&self.access, line, headers)?;
        }
        Ok(route)
    }

    /// The methods besides `POST` that the source of a webhook relays.
    fn relayed_methods(&self, route: Route, parameter: &str) -> Vec<&'static str> {
        let configured = self.app.configured();
        let source = configured.sources.get(parameter).filter(|_| route == Route::Webhook);
        let relays = |method: &relaying::Method| {
            *method != relaying::Method::Post
                && source.is_some_and(|source| source.relay.accepts(*method))
        };
        relaying::Method::ALL.into_iter().filter(relays).map(relaying::Method::as_str).collect()
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

/// The query, if it may be logged. That of a webhook may contain a credential of its producer.
fn logged_query(route: Option<Route>, query: &str) -> Option<&str> {
    route.filter(|route| route.audience() == Audience::Operators).map(|_| query)
}

fn unknown_route() -> Problem {
    ProblemKind::UnknownRoute.with("No route has this path. `GET /openapi.json` lists all routes.")
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
