//! Checks of a request's head that come before its route: its host, its framing, and that no web
//! page in a browser sent it to an operators' route.

use crate::sockets::{LIMITS, Server};
use crate::world::{NOT_FOR_OPERATORS, Setup, World, assert_problem, request_for};
use surehook::http::{Route, RouteSet};
use surehook_core::operators::Access;

/// A request for each operator route.
fn operator_requests() -> impl Iterator<Item = (&'static str, String)> {
    let routes = Route::ALL.iter().filter(|route| !NOT_FOR_OPERATORS.contains(&route.path()));
    routes.map(|route| request_for(*route))
}

async fn answered(
    world: &World,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> http::Response<bytes::Bytes> {
    world.request(method, path, headers, b"").await
}

#[tokio::test]
async fn a_page_of_another_site_cannot_use_operator_routes() {
    let mut world = World::start(Setup::default());
    for route_set in [RouteSet::Everyone, RouteSet::Operators] {
        world.route_set = route_set;
        for (method, path) in operator_requests() {
            for header in [
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
                ("origin", "http://evil.example"),
                ("origin", "null"),
            ] {
                assert_problem(
                    &answered(&world, method, &path, &[header]).await,
                    403,
                    "cross-site",
                );
            }
            // A page that this listener served, and clients that are not browsers.
            for headers in [
                &[("sec-fetch-site", "same-origin"), ("origin", "http://test")][..],
                &[("sec-fetch-site", "none")],
                &[],
            ] {
                assert_ne!(
                    answered(&world, method, &path, headers).await.status(),
                    403,
                    "{method} {path} {headers:?}"
                );
            }
        }
    }
    let sources = answered(&world, "GET", "/sources", &[]).await;
    assert!(
        String::from_utf8_lossy(sources.body()).contains("\"paused_since\":null"),
        "the last allowed request has resumed the source"
    );
}

#[tokio::test]
async fn dns_rebinding_cannot_reach_operator_routes_of_a_loopback_listener() {
    let mut world = World::start(Setup::default());
    world.access = Access::new(true, ["ops.example".to_owned()]);
    for (method, path) in operator_requests() {
        let rebound = [
            ("host", "evil.example:8080"),
            ("origin", "http://evil.example:8080"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert_problem(&answered(&world, method, &path, &rebound).await, 403, "foreign-host");
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "ops.example"] {
            assert_ne!(
                answered(&world, method, &path, &[("host", host)]).await.status(),
                403,
                "{method} {path} {host}"
            );
        }
    }
    assert_problem(
        &answered(&world, "GET", "http://evil.example/events", &[("host", "localhost")]).await,
        403,
        "foreign-host",
    );
}

#[tokio::test]
async fn producers_and_load_balancers_may_use_any_host_and_origin() {
    let mut world = World::start(Setup::default());
    world.access = Access::new(true, []);
    let foreign = [
        ("host", "hooks.example"),
        ("origin", "http://evil.example"),
        ("sec-fetch-site", "cross-site"),
        ("idempotency-key", "k"),
    ];
    for path in ["/health", "/ready"] {
        assert_eq!(answered(&world, "GET", path, &foreign).await.status(), 200, "{path}");
    }
    assert_eq!(answered(&world, "POST", "/webhooks/plain", &foreign).await.status(), 202);
    assert_problem(
        &answered(&world, "OPTIONS", "/events", &foreign).await,
        405,
        "method-not-allowed",
    );
}

#[tokio::test]
async fn a_request_must_have_exactly_one_valid_host() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let lines = [
        "POST /webhooks/plain HTTP/1.1",
        "GET /health HTTP/1.1",
        "GET /nowhere HTTP/1.1",
        "GET /events HTTP/1.1",
    ];
    for line in lines {
        for host in [
            "",
            "Host: a\r\nHost: a\r\n",
            "Host: a\r\nhost: b\r\n",
            "Host: a b\r\n",
            "Host: user@a\r\n",
            "Host: a:x\r\n",
        ] {
            let mut client = server.client().await;
            client
                .send(format!("{line}\r\n{host}Idempotency-Key: k\r\nContent-Length: 1\r\n\r\nx"))
                .await;
            assert_problem(&client.response().await, 400, "host-invalid");
            assert!(client.closed().await);
        }
    }
    let mut client = server.client().await;
    client
        .send("POST /webhooks/plain HTTP/1.0\r\nIdempotency-Key: k\r\nContent-Length: 1\r\n\r\nx")
        .await;
    assert_eq!(client.response().await.status(), 202, "HTTP/1.0 does not require `Host`");
    assert_eq!(world.store.stored().len(), 1);
}

#[tokio::test]
async fn unsupported_transfer_codings_are_refused() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    for codings in [
        "gzip, chunked",
        "gzip\r\ntransfer-encoding: chunked",
        "x-unheard-of;q=1, chunked",
        "identity, chunked",
        "chunked, chunked",
    ] {
        let mut client = server.client().await;
        client
            .send(
                crate::sockets::head("k", &format!("transfer-encoding: {codings}\r\n"))
                    + "1\r\nx\r\n0\r\n\r\n",
            )
            .await;
        assert_problem(&client.response().await, 501, "transfer-coding");
        assert!(client.closed().await);
    }
    assert_eq!(world.store.stored(), []);
    let mut client = server.client().await;
    client
        .send(crate::sockets::head("k", "Transfer-Encoding: , Chunked\r\n") + "1\r\nx\r\n0\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status(), 202);
}
