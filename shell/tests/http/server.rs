//! The real server over TCP: framing, slow clients, disconnects, limits and shutdown.

use crate::sockets::{LIMITS, Server, head, until, within};
use crate::world::{Mode, Setup, World, assert_problem, header};
use std::time::Duration;
use surehook::headers::decode;
use surehook::http_server::ServerLimits;
use surehook::intake::Limits;
use surehook_model::scenario::Call;
use tokio::net::TcpStream;
use tokio::time::Instant;

const SOON: Duration = Duration::from_millis(400);

#[tokio::test]
async fn every_framing_of_a_body_is_accepted_on_one_connection() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    client.post("declared", b"hello").await;
    assert_eq!(client.response().await.status(), 202);
    client.send(head("chunked", "transfer-encoding: chunked\r\n")).await;
    client.send("3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nx-trailer: t\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 202);
    for (key, framing) in [("none", ""), ("zero", "content-length: 0\r\n")] {
        client.send(head(key, framing)).await;
        assert_eq!(client.response().await.status(), 202);
    }
    client.send(head("empty-chunked", "transfer-encoding: chunked\r\n") + "0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 202);
    let bodies: Vec<_> = world.store.stored().into_iter().map(|event| event.body).collect();
    assert_eq!(bodies, [&b"hello"[..], b"hello", b"", b"", b""]);
}

#[tokio::test]
async fn a_body_in_many_chunks_is_reassembled() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    client.send(head("k1", "transfer-encoding: chunked\r\n")).await;
    for byte in 0..=255u8 {
        client.send([&b"1\r\n"[..], &[byte], b"\r\n"].concat()).await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 202);
    assert_eq!(world.store.stored()[0].body, (0..=255).collect::<Vec<u8>>());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    let post = |key: &str| head(key, "content-length: 1\r\n") + "x";
    client
        .send(
            post("k1")
                + "GET /health HTTP/1.1\r\nhost: t\r\n\r\n"
                + &post("k1")
                + "HEAD /ready HTTP/1.1\r\nhost: t\r\n\r\n",
        )
        .await;
    let statuses = [client.response().await, client.response().await, client.response().await];
    assert_eq!(statuses.each_ref().map(|response| response.status().as_u16()), [202, 200, 202]);
    assert_eq!(header(statuses[2].headers(), "idempotent-replayed"), Some("true"));
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_as_soon_as_possible() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;

    let mut declared = server.client().await;
    declared.send(head("k1", "content-length: 1025\r\nexpect: 100-continue\r\n")).await;
    let response = declared.response().await;
    assert_problem(&response, 413, "body-too-large");
    assert_eq!(header(response.headers(), "connection"), Some("close"));
    assert!(declared.closed().await);

    let mut undeclared = server.client().await;
    undeclared.send(head("k2", "transfer-encoding: chunked\r\n")).await;
    undeclared.send("400\r\n".to_owned() + &"a".repeat(1024) + "\r\n1\r\nb\r\n").await;
    assert_problem(&undeclared.response().await, 413, "body-too-large");
    assert!(undeclared.closed().await);
    assert_eq!(world.store.stored(), []);
}

#[tokio::test]
async fn a_client_still_sending_a_refused_body_can_read_the_response() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    for framing in ["content-length: 8388608\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = server.client().await;
        client.send(head("k1", framing)).await;
        client.send("800000\r\n").await;
        for _ in 0..128 {
            client
                .try_send([7; 64 << 10])
                .await
                .expect("the server continues to read after its response");
        }
        assert_problem(&client.response().await, 413, "body-too-large");
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_with_100() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    client.send(head("k1", "content-length: 5\r\nexpect: 100-continue\r\n")).await;
    assert_eq!(client.response().await.status(), 100);
    client.send("hello").await;
    assert_eq!(client.response().await.status(), 202);
}

#[tokio::test]
async fn a_body_that_arrives_too_slowly_is_408_and_not_stored() {
    let world = World::start(Setup { body_timeout: SOON, ..Setup::default() });
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    client.send(head("k1", "content-length: 5\r\n") + "hell").await;
    assert_problem(&client.response().await, 408, "too-slow");
    assert!(client.closed().await);
    assert_eq!(world.store.stored(), []);
}

#[tokio::test]
async fn a_header_section_that_arrives_too_slowly_is_408() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, ServerLimits { header_read_timeout: SOON, ..LIMITS }).await;
    let mut client = server.client().await;
    client.send("POST /webhooks/plain HTTP/1.1\r\nidempotency-key: ").await;
    assert_problem(&client.response().await, 408, "too-slow");
    assert!(client.closed().await);
}

#[tokio::test]
async fn an_idle_connection_is_closed_before_and_between_requests() {
    let world = World::start(Setup::default());
    let limits = ServerLimits { header_read_timeout: SOON, idle_timeout: SOON, ..LIMITS };
    let server = Server::start(&world, limits).await;
    let (mut silent, mut done) = (server.client().await, server.client().await);
    done.post("k1", b"").await;
    assert_eq!(done.response().await.status(), 202);
    assert!(silent.closed().await);
    assert!(done.closed().await);
}

#[tokio::test]
async fn a_kept_connection_lives_longer_than_a_head_may_take() {
    let world = World::start(Setup::default());
    let limits = ServerLimits { header_read_timeout: SOON, idle_timeout: 5 * SOON, ..LIMITS };
    let server = Server::start(&world, limits).await;
    let mut kept = server.client().await;
    kept.post("k1", b"").await;
    assert_eq!(kept.response().await.status(), 202);
    tokio::time::sleep(2 * SOON).await;
    kept.post("k2", b"").await;
    assert_eq!(kept.response().await.status(), 202);
    let begun = Instant::now();
    assert!(kept.closed().await);
    assert!(begun.elapsed() > 4 * SOON, "closed after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_head_that_begins_on_a_kept_connection_has_its_own_timeout() {
    let world = World::start(Setup::default());
    let limits =
        ServerLimits { header_read_timeout: SOON, idle_timeout: Duration::from_hours(1), ..LIMITS };
    let server = Server::start(&world, limits).await;
    let mut kept = server.client().await;
    for pause in [Duration::ZERO, 2 * SOON] {
        kept.post("k1", b"").await;
        assert_eq!(kept.response().await.status(), 202);
        tokio::time::sleep(pause).await;
    }
    kept.send("POST /webhooks/plain HTTP/1.1\r\nidempotency-key: ").await;
    let begun = Instant::now();
    assert_problem(&kept.response().await, 408, "too-slow");
    assert!(begun.elapsed() > SOON / 2, "after {:?}", begun.elapsed());
    assert!(kept.closed().await);
}

#[tokio::test]
async fn a_truncated_body_stores_nothing_and_its_key_stays_usable() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    for (framing, body) in
        [("content-length: 10\r\n", "hello"), ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n")]
    {
        let mut client = server.client().await;
        client.send(head("k1", framing) + body).await;
        drop(client);
    }
    let mut client = server.client().await;
    client.post("k1", b"hello world").await;
    let response = client.response().await;
    assert_eq!(
        (response.status().as_u16(), header(response.headers(), "idempotent-replayed")),
        (202, None)
    );
    assert_eq!(world.store.stored().len(), 1);
}

#[tokio::test]
async fn a_malformed_chunk_is_400_and_stores_nothing() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    client.send(head("k1", "transfer-encoding: chunked\r\n") + "2\r\nab\r\nnonsense\r\n").await;
    assert_problem(&client.response().await, 400, "body-incomplete");
    assert!(client.closed().await);
    assert_eq!(world.store.stored(), []);
}

#[tokio::test]
async fn a_disconnected_producer_does_not_cancel_its_commit() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    world.store.set(Mode::Hangs);
    let mut client = server.client().await;
    client.post("k1", b"body").await;
    until(|| world.store.calls(Call::Accept) == 1).await;
    drop(client);
    world.store.set(Mode::Works);
    until(|| world.store.stored().len() == 1).await;
    let mut other = server.client().await;
    other.post("k1", b"body").await;
    assert_eq!(header(other.response().await.headers(), "idempotent-replayed"), Some("true"));
}

#[tokio::test]
async fn a_half_closed_client_gets_its_response() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    world.store.set(Mode::Hangs);
    let mut client = server.client().await;
    client.post("k1", b"body").await;
    client.finish_sending().await;
    until(|| world.store.calls(Call::Accept) == 1).await;
    // A later connection is served, so the server has had time to see the end of this client's
    // stream.
    let mut other = server.client().await;
    other.send("GET /health HTTP/1.1\r\nhost: t\r\n\r\n").await;
    assert_eq!(other.response().await.status(), 200);
    world.store.set(Mode::Works);
    assert_eq!(client.response().await.status(), 202);
    assert!(client.closed().await, "the server closes the connection after the response");
}

#[tokio::test]
async fn a_client_that_half_closes_within_its_body_gets_400() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    for (framing, body) in
        [("content-length: 10\r\n", "hello"), ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n")]
    {
        let mut client = server.client().await;
        client.send(head("k1", framing) + body).await;
        client.finish_sending().await;
        assert_problem(&client.response().await, 400, "body-incomplete");
        assert!(client.closed().await);
    }
    assert_eq!(world.store.stored(), []);
}

#[tokio::test]
async fn memory_is_reserved_as_bodies_arrive_and_released_afterwards() {
    let limits =
        Limits { max_queued: 100, max_queued_bytes: 100_000, max_request: 80_000, sources: 1 };
    let world = World::start(Setup { limits, max_body: 80_000, ..Setup::default() });
    let server = Server::start(&world, LIMITS).await;
    let mut half = server.client().await;
    half.send(head("k1", "content-length: 60000\r\n")).await;
    half.send(vec![0; 59_999]).await;
    within(async {
        loop {
            let mut other = server.client().await;
            other.post("k2", &[0; 60_000]).await;
            let response = other.response().await;
            if response.status() == 503 {
                return assert_problem(&response, 503, "overloaded");
            }
            assert_eq!(response.status(), 202);
        }
    })
    .await;
    drop(half);
    within(async {
        loop {
            let mut other = server.client().await;
            other.post("k3", &[0; 60_000]).await;
            if other.response().await.status() == 202 {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn forwarded_headers_keep_their_bytes_and_order() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    let fields: &[u8] = b"X-Sig: one\r\nX-MIXED-case: a\r\nX-Sig: two\r\nx-bytes: caf\xc3\xa9 \xff\r\nX-Hop: h\r\nConnection: keep-alive, X-Hop\r\n\
        Authorization: Bearer s\r\nCookie: c=1\r\nTE: trailers\r\nContent-Type: text/x; q=\"1\"\r\nSurehook-Attempt: 9\r\nSurehook_Source: other\r\n\
        SUREHOOK_EVENT-ID: other\r\nContent_Length: 9\r\nProxy: http://other\r\nX-Empty:\r\ncontent-length: 1\r\n";
    for (source, key) in [("plain", "idempotency-key: k"), ("github", "x-github-delivery: k")] {
        client
            .send(
                [
                    format!("POST /webhooks/{source} HTTP/1.1\r\nHost: h\r\n{key}\r\n").as_bytes(),
                    fields,
                    b"\r\nx",
                ]
                .concat(),
            )
            .await;
        assert_eq!(client.response().await.status(), 202);
    }
    let [plain, github] = &world.store.stored()[..] else { panic!("there must be two events") };
    let of = |event: &surehook::ports::NewEvent| {
        let headers = decode(&event.headers).unwrap();
        headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect::<Vec<_>>()
    };
    let mut expected: Vec<(String, Vec<u8>)> = [
        ("idempotency-key", &b"k"[..]),
        ("x-sig", b"one"),
        ("x-sig", b"two"),
        ("x-mixed-case", b"a"),
        ("x-bytes", b"caf\xc3\xa9 \xff"),
        ("content-type", b"text/x; q=\"1\""),
        ("x-empty", b""),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    assert_eq!(of(plain), expected);
    expected[0].0 = "x-github-delivery".to_owned();
    let mut with_credentials = of(github);
    with_credentials.retain(|(name, _)| !["authorization", "cookie"].contains(&&**name));
    assert_eq!((with_credentials, of(github).len()), (expected, 9));
}

#[tokio::test]
async fn requests_without_a_valid_path_and_malformed_requests_are_answered() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    for line in [
        "OPTIONS * HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "GET http://else.where/nothing HTTP/1.1",
        "GET /?a=/health HTTP/1.1",
    ] {
        let mut client = server.client().await;
        client.send(format!("{line}\r\nhost: t\r\n\r\n")).await;
        assert_problem(&client.response().await, 404, "unknown-route");
    }
    for nonsense in [
        "nonsense\r\n\r\n",
        "GET /health HTTP/3.0\r\n\r\n",
        "POST /webhooks/plain HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        "\u{16}\u{3}\u{1}\0\r\n\r\n",
    ] {
        let mut client = server.client().await;
        client.send(nonsense).await;
        assert_eq!(client.response().await.status(), 400, "{nonsense:?}");
    }
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_refused() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let many = (0..101).map(|n| format!("x-{n}: v\r\n")).collect::<String>();
    let large = format!("x-large: {}\r\n", "v".repeat(33 << 10));
    for headers in [many, large] {
        let mut client = server.client().await;
        client.send(head("k1", &headers)).await;
        assert_eq!(client.response().await.status(), 431);
    }
    let most = (0..98).map(|n| format!("x-{n}: v\r\n")).collect::<String>();
    let mut client = server.client().await;
    client.send(head("k1", &most)).await;
    assert_eq!(client.response().await.status(), 202);
    assert_eq!(decode(&world.store.stored()[0].headers).unwrap().len(), 99, "all but host");
}

#[tokio::test]
async fn keep_alive_connections_close_to_make_room_for_new_ones() {
    let world = World::start(Setup::default());
    // Longer than the test, so that no connection is closed because it is idle.
    let limits =
        ServerLimits { max_connections: 2, header_read_timeout: Duration::from_mins(10), ..LIMITS };
    let server = Server::start(&world, limits).await;
    let mut kept = Vec::new();
    for key in ["k1", "k2", "k3", "k4"] {
        let mut client = server.client().await;
        client.post(key, b"").await;
        assert_eq!(client.response().await.status(), 202, "{key}");
        kept.push(client);
    }
    assert!(kept[0].closed().await);
}

#[tokio::test]
async fn a_request_that_has_arrived_is_answered_before_its_connection_makes_room() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, ServerLimits { max_connections: 1, ..LIMITS }).await;
    let mut kept = server.client().await;
    kept.post("k1", b"").await;
    assert_eq!(kept.response().await.status(), 202);
    // The server learns of both at once, and of the new connection first.
    let new = std::net::TcpStream::connect(server.address).unwrap();
    kept.send_at_once(head("k2", "content-length: 0\r\n"));
    let response = kept.response().await;
    assert_eq!(response.status(), 202);
    assert_eq!(header(response.headers(), "connection"), Some("close"), "a connection waits");
    drop(new);
}

#[tokio::test]
async fn silent_connections_are_closed_after_the_header_timeout() {
    let world = World::start(Setup::default());
    let server = Server::start(
        &world,
        ServerLimits { max_connections: 2, header_read_timeout: SOON, ..LIMITS },
    )
    .await;
    let silent = [server.client().await, server.client().await];
    let mut client = server.client().await;
    client.post("k1", b"").await;
    assert_eq!(client.response().await.status(), 202);
    drop(silent);
}

#[tokio::test]
async fn silent_connections_close_early_when_new_ones_wait() {
    let world = World::start(Setup::default());
    let limits =
        ServerLimits { max_connections: 2, header_read_timeout: Duration::from_mins(10), ..LIMITS };
    let server = Server::start(&world, limits).await;
    let (mut silent, mut slow) = (server.client().await, server.client().await);
    slow.send("POST /webhooks/pl").await;
    let mut client = server.client().await;
    client.post("k1", b"").await;
    assert_eq!(client.response().await.status(), 202);
    assert!(silent.closed().await);
    assert_eq!(
        slow.response().await.status(),
        408,
        "a client that has sent part of a request gets a response"
    );
}

#[tokio::test]
async fn a_request_that_just_began_is_not_cancelled_for_a_new_connection() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, ServerLimits { max_connections: 1, ..LIMITS }).await;
    let mut begun = server.client().await;
    begun.begins("k1", "hell").await;
    let mut new = server.client().await;
    new.post("k2", b"").await;
    tokio::time::sleep(SOON / 4).await;
    begun.send("o").await;
    assert_eq!(begun.response().await.status(), 202);
    assert_eq!(new.response().await.status(), 202);
}

#[tokio::test]
async fn connections_that_have_ended_do_not_count_towards_the_limit() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, ServerLimits { max_connections: 4, ..LIMITS }).await;
    let mut kept = server.client().await;
    kept.post("k", b"").await;
    kept.response().await;
    for n in 0..8 {
        let mut other = server.client().await;
        other.post(&format!("k{n}"), b"").await;
        assert_eq!(other.response().await.status(), 202);
        drop(other);
        tokio::time::sleep(SOON / 8).await;
    }
    kept.post("k", b"").await;
    assert_eq!(header(kept.response().await.headers(), "connection"), None, "no room is needed");
}

#[tokio::test]
async fn a_shutdown_finishes_a_request_in_flight() {
    let world = World::start(Setup::default());
    let mut server = Server::start(&world, LIMITS).await;
    let (mut idle, mut fresh, mut busy) =
        (server.client().await, server.client().await, server.client().await);
    idle.post("k0", b"").await;
    idle.response().await;
    world.store.set(Mode::Hangs);
    busy.post("k1", b"").await;
    until(|| world.store.calls(Call::Accept) == 2).await;

    server.shut_down();
    assert!(idle.closed().await);
    assert!(fresh.closed().await);
    assert!(TcpStream::connect(server.address).await.is_err(), "the listener is closed");
    world.store.set(Mode::Works);
    let response = busy.response().await;
    assert_eq!(
        (response.status().as_u16(), header(response.headers(), "connection")),
        (202, Some("close"))
    );
    drop((idle, fresh));
    assert!(busy.closed().await);
    drop(busy);
    server.ended().await;
}

/// hyper holds the end of a response that the socket does not take yet.
#[tokio::test]
async fn a_response_that_waits_for_its_client_is_sent_whole_before_the_connection_closes() {
    // More than the buffers of two sockets.
    let body = vec![7; 16 << 20];
    let limits = Limits {
        max_request: body.len(),
        max_queued_bytes: 2 * body.len(),
        ..Setup::default().limits
    };
    let world = World::start(Setup { limits, max_body: body.len(), ..Setup::default() });
    for is_shut_down in [false, true] {
        let mut server = Server::start(&world, ServerLimits { max_connections: 1, ..LIMITS }).await;
        let mut client = server.client().await;
        client.post("k1", &body).await;
        assert_eq!(client.response().await.status(), 202);
        let id = world.store.stored()[0].id;
        let request =
            format!("GET /events/{id}/body HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        client.send(request).await;
        client.readable().await;
        let new = if is_shut_down {
            server.shut_down();
            None
        } else {
            Some(server.client().await)
        };
        // Longer than a connection without a request is kept in either case.
        tokio::time::sleep(2 * SOON).await;
        let response = client.response().await;
        assert_eq!((response.status().as_u16(), response.body().len()), (200, body.len()));
        drop(new);
    }
}

#[tokio::test]
async fn a_shutdown_aborts_requests_when_its_time_is_over() {
    let world = World::start(Setup::default());
    let mut server = Server::start(&world, LIMITS).await;
    let mut stalled = server.client().await;
    stalled.begins("k1", "hell").await;
    let begun = Instant::now();
    server.shut_down_within(SOON);
    server.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(stalled.closed().await);
    assert_eq!(world.store.stored(), []);
}

#[tokio::test]
async fn a_draining_process_accepts_events_and_closes_each_connection() {
    let world = World::start(Setup::default());
    let server = Server::start(&world, LIMITS).await;
    let mut client = server.client().await;
    client.post("k1", b"").await;
    assert_eq!(header(client.response().await.headers(), "connection"), None);
    world.app.health.drain();
    let new = server.client().await;
    for (key, mut client) in [("k2", client), ("k3", new)] {
        client.post(key, b"").await;
        let response = client.response().await;
        assert_eq!(response.status(), 202);
        assert_eq!(header(response.headers(), "connection"), Some("close"));
        assert!(client.closed().await);
    }
    assert_eq!(world.store.stored().len(), 3);
}

#[tokio::test]
async fn requests_that_cross_the_closing_of_the_listener_are_answered() {
    let world = World::start(Setup::default());
    let mut server = Server::start(&world, ServerLimits { max_connections: 3, ..LIMITS }).await;
    let (mut idle, fresh) = (server.client().await, server.client().await);
    idle.post("k1", b"").await;
    assert_eq!(idle.response().await.status(), 202);
    // The server has not yet accepted this one when it closes its listener.
    let queued = server.client().await;
    server.shut_down();
    for (key, mut client) in [("k2", idle), ("k3", fresh), ("k4", queued)] {
        client.post(key, b"").await;
        let response = client.response().await;
        assert_eq!(response.status(), 202, "{key}");
        assert_eq!(header(response.headers(), "connection"), Some("close"), "{key}");
    }
    server.ended().await;
    assert_eq!(world.store.stored().len(), 4);
}
