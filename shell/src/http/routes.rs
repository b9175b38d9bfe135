//! The table of routes: for each, its method, its path, its clients and its handler.
//!
//! A new route is a row here, a handler, and a description in `openapi.json` and the README.
//!
//! Paths are matched as warp's path filters match them. Segments are compared as sent: source names
//! and ids need no percent-encoding, so an encoded one is unknown. A parameter is not empty. One
//! slash at the end of a path is ignored.

use super::{Answer, App, monitoring};
use crate::http::problem::Problem;
use bytes::Buf;
use futures::Stream;
use http::{HeaderMap, Method};
use std::error::Error;
use std::future::ready;

const GET: &str = "GET, HEAD";
const POST: &str = "POST";

/// The routes that a listener serves. It answers all others as unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteSet {
    /// All routes.
    Everyone,
    /// The routes for producers and for health checks.
    Producers,
    /// All routes except those for producers.
    Operators,
}

/// The kind of client that a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Load balancers and other health checks.
    Everyone,
    Producers,
    Operators,
}

/// What a handler receives of a request.
pub(super) struct Call<'a, S> {
    pub(super) method: Method,
    /// The value of the path's parameter; empty if the path has none.
    pub(super) parameter: &'a str,
    /// The raw query; empty if there is none.
    pub(super) query: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) body: S,
}

macro_rules! routes {
    ($($(#[$doc:meta])* $route:ident = $methods:ident $path:literal for $audience:ident, |$app:pat_param, $call:pat_param| $handler:expr;)*) => {
        /// The routes. The documentation of each is its successful response. Every other response is
        /// a [`Problem`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Route {
            $($(#[$doc])* $route,)*
        }

        impl Route {
            pub const ALL: &[Self] = &[$(Self::$route,)*];

            /// Its methods, as in `Allow`.
            #[must_use]
            pub fn methods(self) -> &'static str {
                match self { $(Self::$route => $methods,)* }
            }

            /// Its path. At most one segment is a parameter, in braces.
            #[must_use]
            pub fn path(self) -> &'static str {
                match self { $(Self::$route => $path,)* }
            }

            pub(super) fn audience(self) -> Audience {
                match self { $(Self::$route => Audience::$audience,)* }
            }

            /// Runs its handler.
            pub(super) async fn answer<B: Buf, E: Error + 'static>(
                self,
                app: &App,
                call: Call<'_, impl Stream<Item = Result<B, E>>>,
            ) -> Result<Answer, Problem> {
                match self {
                    $(Self::$route => {
                        let $app = app;
                        let $call = call;
                        $handler.await
                    })*
                }
            }
        }
    };
}

routes! {
    /// `202` with the event's id and status, or the [`Acknowledgement`](super::Acknowledgement) of
    /// the source; see [`REPLAYED_HEADER`](super::REPLAYED_HEADER). Or the response of the destination
    /// to a relayed request, which can have other methods too.
    Webhook = POST "/webhooks/{source}" for Producers, |app, call| app.accept(call);
    /// `200` with a page of events, newest first; see [`query`](super::query).
    Events = GET "/events" for Operators, |app, call| app.list(call.query);
    /// `200` with the event; see [`view`](super::view).
    Event = GET "/events/{id}" for Operators, |app, call| app.show(call.parameter);
    /// `200` with the stored request of the event, without its body; see [`view`](super::view).
    Request = GET "/events/{id}/request" for Operators, |app, call| app.stored_request(call.parameter);
    /// `200` with the body of the event, byte for byte.
    Body = GET "/events/{id}/body" for Operators, |app, call| app.stored_body(call.parameter);
    /// `200` with the failures of undelivered events, in groups; see [`query`](super::query).
    Summary = GET "/summary" for Operators, |app, call| app.summary(call.query);
    /// `200` with the event's id and new status; see [`query`](super::query).
    Redrive = POST "/events/{id}/redrive" for Operators, |app, call| app.redrive(call.parameter, call.query);
    /// `200` with the number of redriven dead letters; see [`query`](super::query).
    RedriveAll = POST "/redrive" for Operators, |app, call| app.redrive_all(call.query);
    /// `200` with the event's id, status and reason.
    Discard = POST "/events/{id}/discard" for Operators, |app, call| app.discard(call.parameter);
    /// `200` with the number of discarded events; see [`query`](super::query).
    DiscardAll = POST "/discard" for Operators, |app, call| app.discard_all(call.query);
    /// `200` with the work of each source.
    Sources = GET "/sources" for Operators, |app, _| app.source_list();
    /// `200`: the source is paused.
    Pause = POST "/sources/{source}/pause" for Operators, |app, call| app.pause(call.parameter, true);
    /// `200`: the source is resumed.
    Resume = POST "/sources/{source}/resume" for Operators, |app, call| app.pause(call.parameter, false);
    /// `200`: the process runs. Never accesses the database.
    Health = GET "/health" for Everyone, |_, _| ready(monitoring::health());
    /// `200`: the process is ready for requests; see [`crate::health`].
    Ready = GET "/ready" for Everyone, |app, _| app.ready();
    /// `200` with [`crate::metrics`] in Prometheus' text format.
    Metrics = GET "/metrics" for Operators, |app, _| app.metrics();
    /// `200` with [`OPENAPI`](super::OPENAPI), the description of this interface.
    OpenApi = GET "/openapi.json" for Operators, |_, _| ready(Ok(monitoring::openapi()));
}

impl RouteSet {
    /// The route that serves a path, and the value of its parameter (empty if it has none).
    pub(super) fn find(self, path: &str) -> Option<(Route, &str)> {
        Route::ALL
            .iter()
            .filter(|route| self.serves(**route))
            .find_map(|route| Some((*route, route.parameter(path)?)))
    }

    fn serves(self, route: Route) -> bool {
        match route.audience() {
            Audience::Everyone => true,
            Audience::Producers => self != Self::Operators,
            Audience::Operators => self != Self::Producers,
        }
    }
}

impl Route {
    /// Refuses a method that the route does not have. `others` are methods that it has in addition
    /// for this request.
    pub(super) fn allows(self, method: &Method, others: &[&'static str]) -> Result<(), Problem> {
        let mut methods = self.methods().split(", ").chain(others.iter().copied());
        if methods.any(|allowed| allowed == method.as_str()) {
            Ok(())
        } else {
            Err(Problem::method_not_allowed([&[self.methods()], others].concat().join(", ")))
        }
    }

    /// The value of its parameter if `path` is one of its paths (empty if it has no parameter).
    fn parameter(self, path: &str) -> Option<&str> {
        // `*` and the empty path of `CONNECT` do not begin with a slash.
        let path = path.strip_prefix('/')?;
        let mut segments = path.strip_suffix('/').unwrap_or(path).split('/');
        let mut parameter = "";
        for expected in self.path().split('/').skip(1) {
            let segment = segments.next()?;
            if expected.starts_with('{') && !segment.is_empty() {
                parameter = segment;
            } else if expected != segment {
                return None;
            }
        }
        segments.next().is_none().then_some(parameter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::executor::block_on;
    use http::{Request, StatusCode};
    use http_body_util::{BodyExt, Empty};
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use proptest::prelude::*;
    use proptest::sample::select;
    use warp::Filter;
    use warp::filters::BoxedFilter;

    fn found(path: &str) -> Option<(Route, &str)> {
        RouteSet::Everyone.find(path)
    }

    /// The literal segments of all paths.
    fn words() -> Vec<&'static str> {
        let segments = Route::ALL.iter().flat_map(|route| route.path().split('/').skip(1));
        segments.filter(|segment| !segment.starts_with('{')).collect()
    }

    /// A path of `route`, with `value` in place of its parameter.
    fn path_with(route: Route, value: &str) -> String {
        let segments = route.path().split('/');
        let segments =
            segments.map(|segment| if segment.starts_with('{') { value } else { segment });
        segments.collect::<Vec<_>>().join("/")
    }

    #[test]
    fn one_slash_at_the_end_of_a_path_is_ignored() {
        for path in ["/events", "/events/"] {
            assert_eq!(found(path), Some((Route::Events, "")), "{path}");
        }
        for path in ["/events/x", "/events/x/"] {
            assert_eq!(found(path), Some((Route::Event, "x")), "{path}");
        }
        for path in ["/events/x/redrive", "/events/x/redrive/"] {
            assert_eq!(found(path), Some((Route::Redrive, "x")), "{path}");
        }
        for path in
            ["/events//", "/events/x//", "/events/x/redrive//", "/health//", "/", "//", "///"]
        {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn an_empty_segment_is_neither_ignored_nor_a_parameter() {
        for path in [
            "//events",
            "//health",
            "/events//redrive",
            "/events//x",
            "/webhooks",
            "/webhooks/",
            "/webhooks//",
            "//webhooks/x",
            "/sources//pause",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn segments_are_compared_as_sent() {
        for path in
            ["/Health", "/%68ealth", "/health%2F", "/health;v=1", "/events%2Fx", "/.", "/./health"]
        {
            assert_eq!(found(path), None, "{path}");
        }
        for value in
            ["%70lain", "%00", "%ff", "%", "a%2Fb", "..", "a+b", "a;v=1", "*", "{source}", "é"]
        {
            let path = format!("/webhooks/{value}");
            assert_eq!(found(&path), Some((Route::Webhook, value)), "{path}");
        }
    }

    #[test]
    fn a_target_that_is_not_a_path_is_unknown() {
        for path in ["", "*", "health", "localhost:80"] {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn each_path_has_one_route_and_at_most_one_parameter() {
        for route in Route::ALL.iter().copied() {
            assert!(route.path().matches('{').count() <= 1, "{route:?}");
            for value in words().into_iter().chain(["x"]) {
                let path = path_with(route, value);
                let serving = Route::ALL.iter().filter(|other| other.parameter(&path).is_some());
                assert_eq!(serving.collect::<Vec<_>>(), [&route], "{path}");
            }
        }
    }

    /// The filters that `warp::path!` builds for the path of `route`. They extract its parameter.
    fn filters_of(route: Route) -> BoxedFilter<(String,)> {
        let any = warp::any().map(String::new).boxed();
        let segments = route.path().split('/').skip(1).fold(any, |filters, segment| {
            if segment.starts_with('{') {
                filters
                    .and(warp::path::param::<String>())
                    .map(|_: String, value: String| value)
                    .boxed()
            } else {
                filters.and(warp::path(segment)).boxed()
            }
        });
        segments.and(warp::path::end()).boxed()
    }

    /// The route that warp's filters find, and its parameter.
    fn found_by_warp(path: &str) -> Option<(Route, String)> {
        Route::ALL.iter().find_map(|route| {
            let service = TowerToHyperService::new(warp::service(filters_of(*route)));
            let request = Request::builder().uri(path).body(Empty::<Bytes>::new()).unwrap();
            let response = block_on(service.call(request)).unwrap();
            (response.status() == StatusCode::OK).then(|| {
                let value = block_on(response.into_body().collect()).unwrap().to_bytes();
                (*route, String::from_utf8(value.to_vec()).unwrap())
            })
        })
    }

    fn segment() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            select(words()).prop_map(str::to_owned),
            "(%[0-9a-fA-F]{2}|[!$&-.0-9:;=@A-Z_a-z~%]){1,5}",
        ]
    }

    fn path() -> impl Strategy<Value = String> {
        let nearly = (
            select(vec!["", "/", "/x"]),
            (select(Route::ALL), segment()).prop_map(|(route, value)| path_with(route, &value)),
            select(vec!["", "/", "//", "/x"]),
        );
        prop_oneof![
            3 => nearly.prop_map(|(before, path, after)| format!("{before}{path}{after}")),
            1 => proptest::collection::vec(segment(), 1..5).prop_map(|segments| format!("/{}", segments.join("/"))),
        ]
    }

    proptest! {
        #[test]
        fn a_path_is_matched_as_warps_filters_match_it(path in path()) {
            let expected = found_by_warp(&path);
            prop_assert_eq!(found(&path).map(|(route, value)| (route, value.to_owned())), expected);
        }
    }
}
