//! Producers that misbehave on raw sockets. Each gets an error response, or none, in time. The
//! program's memory stays bounded, and well-behaved producers are not affected. `bad_input.rs`
//! tests single invalid requests.

use bytes::Bytes;
use futures::{StreamExt, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use surehook_core::admission::Fingerprint;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_model::history::{PostId, Posted, Run, What};
use tests::database::Database;
use tests::http::{Answer, Client, converse};
use tests::on_each_database;
use tests::producer::{Post, try_once};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::{self, Sink};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

on_each_database!(
    a_burst_of_connections_waits_in_the_queue,
    idle_connections_do_not_block_other_producers,
    a_request_sent_too_slowly_gets_408_in_time,
    no_bytes_from_producers_break_the_program,
    pipelined_requests_are_answered_in_order,
    producers_that_hang_up_leave_whole_events_or_none,
);

/// The longest time of a good post during an attack. It is shorter than the timeouts, so that the
/// test fails if a good post waits for a connection of an attacker.
const UNHARMED: Duration = Duration::from_secs(2);
/// The timeout of the head and of the body of a request.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The limits for the growth of memory, after an attack and during it: 1,000 connections with a
/// read buffer each.
const KEEPS_AT_MOST: u64 = 20 << 20;
const NEEDS_AT_MOST: u64 = 32 << 20;

/// Less than the second after which a client's kernel retries, if the listener's queue is full.
const BEFORE_SYN_IS_SENT_AGAIN: Duration = Duration::from_millis(900);

/// Good posts before the attack, so that the memory for the first requests does not count.
const WARM_UP: usize = 200;
/// The interval between good posts during the attack.
const EVERY: Duration = Duration::from_millis(20);

async fn a_burst_of_connections_waits_in_the_queue(database: Database) {
    let siege = Siege::begin(database, TIMEOUT).await;
    let room = fs::read_to_string("/proc/sys/net/core/somaxconn")
        .expect("Linux has a limit for the length of a queue");
    let connections = room.trim().parse::<usize>().expect("a number").min(1_000);
    siege.service.signal(Signal::SIGSTOP);
    let connect = |_| {
        tokio::time::timeout(BEFORE_SYN_IS_SENT_AGAIN, TcpStream::connect(siege.service.address()))
    };
    let burst: Vec<_> =
        stream::iter(0..connections).map(connect).buffer_unordered(50).collect().await;
    siege.service.signal(Signal::SIGCONT);
    let waiting = burst.iter().filter(|connected| matches!(connected, Ok(Ok(_)))).count();
    assert_eq!(waiting, connections, "not every connection fits into the queue");
    drop(burst);
    siege.good(&Client::default(), "good", "after-the-burst", Bytes::from_static(b"good")).await;
    siege.run.judge().await;
}

async fn idle_connections_do_not_block_other_producers(database: Database) {
    let siege = Siege::begin(database, Duration::from_secs(10)).await;
    let connections = 1_000 + 200;
    let lifted = siege
        .beside_good_posts(async {
            let open = stream::iter(0..connections)
                .map(|_| TcpStream::connect(siege.service.address()))
                .buffer_unordered(50);
            let silent: Vec<_> = open
                .map(|stream| stream.expect("the program's socket accepts connections"))
                .collect()
                .await;
            // Longer than a good post may take, and shorter than the program's timeout for silent
            // connections.
            tokio::time::sleep(UNHARMED * 2).await;
            drop(silent);
        })
        .await;
    // The program may close a keep-alive connection to make space, just when its producer posts on
    // it.
    println!("{} good posts were retried", lifted.again);
}

async fn a_request_sent_too_slowly_gets_408_in_time(database: Database) {
    let siege = Siege::begin(database, TIMEOUT).await;
    let head = b"POST /webhooks/orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: dribbled\r\nContent-Length: 1000\r\n".to_vec();
    let body = [head.as_slice(), b"\r\n"].concat();
    let dribbles = (0..200_usize)
        .map(|index| dribble(&siege.service, if index.is_multiple_of(2) { b"" } else { &body }));
    siege
        .beside_good_posts(async {
            for (answer, took) in futures::future::join_all(dribbles).await {
                assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
                assert!((TIMEOUT / 2..TIMEOUT * 2).contains(&took), "timed out after {took:?}");
            }
        })
        .await
        .all_at_once();
}

/// Sends `begin` at once, and then a byte every 100 ms until the program closes the connection.
/// Returns the response and the time.
async fn dribble(service: &Service, begin: &[u8]) -> (String, Duration) {
    let mut stream = TcpStream::connect(service.address()).await.expect("the program listens");
    let begun = Instant::now();
    stream.write_all(begin).await.expect("the program reads");
    let (mut reading, mut writing) = stream.into_split();
    let dribbling = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        loop {
            pace.tick().await;
            if writing.write_all(b"P").await.is_err() {
                return;
            }
        }
    });
    let mut answer = String::new();
    // The program may close the connection while a byte is in transit. The response can still be
    // read.
    let _ = reading.read_to_string(&mut answer).await;
    dribbling.abort();
    (answer, begun.elapsed())
}

async fn no_bytes_from_producers_break_the_program(database: Database) {
    let siege = Siege::begin(database, Duration::from_secs(1)).await;
    siege
        .beside_good_posts(async {
            let mut wrong = Vec::new();
            for (index, (request, expected)) in requests().into_iter().enumerate() {
                let bytes = replace(&request, b"@", format!("odd-{index}").as_bytes());
                let told = siege.post_raw(&format!("odd-{index}"), b"{}", &bytes).await;
                if told != *expected {
                    wrong.push(format!("{:?}: {told:?}, not {expected:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(150)])));
                }
            }
            for (key, expected) in keys() {
                let request = [
                    b"POST /webhooks/orders HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\nIdempotency-Key: ",
                    key.as_slice(),
                    b"\r\n\r\n{}",
                ];
                let told = siege.post_raw(&String::from_utf8_lossy(&key), b"{}", &request.concat()).await;
                if told != [expected] {
                    wrong.push(format!("the key {key:?}: {told:?}, not {expected}"));
                }
            }
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        })
        .await
        .all_at_once();
}

/// The query in the request line.
fn query_of(request: &[u8]) -> String {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let target = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let query = target.splitn(2, |byte| *byte == b'?').nth(1).unwrap_or_default();
    String::from_utf8_lossy(query).into_owned()
}

/// Requests, each with the status codes of the responses. `@` is replaced by a unique key.
fn requests() -> Vec<(Vec<u8>, &'static [u16])> {
    let post = |path: &str, more: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nIdempotency-Key: @\r\n{more}\r\n").into_bytes()
    };
    let with = |head: &str, body: &str| {
        [post("/webhooks/orders", head), body.as_bytes().to_vec()].concat()
    };
    let at = |path: &str| [post(path, "Content-Length: 2\r\n"), b"{}".to_vec()].concat();
    let bare = |text: &str| text.as_bytes().to_vec();
    let chunks = "2\r\n{}\r\n0\r\n\r\n";
    let many: String = (0..90).map(|n| format!("X-Many-{n}: {}\r\n", "v".repeat(720))).collect();
    vec![
        // Lengths.
        (
            bare(
                "POST /webhooks/orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: @\r\nContent-Length: 2\r\n\r\n{}and more",
            ),
            &[202, 408],
        ),
        (with("Content-Length: 2\r\n", "{}and more"), &[202]),
        (with("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"), &[202]),
        (with("Content-Length: 2\r\nContent-Length: 3\r\n", "{}x"), &[400]),
        (with("Content-Length: 2, 2\r\n", "{}"), &[400]),
        (with("Content-Length: +2\r\n", "{}"), &[400]),
        (with("Content-Length: 0x2\r\n", "{}"), &[400]),
        (with("Content-Length: 18446744073709551616\r\n", "{}"), &[400]),
        (with("Content-Length: 18446744073709551613\r\n", "{}"), &[413]),
        (with("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", chunks), &[202]),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", chunks), &[202]),
        (with("Transfer-Encoding: chunked, identity\r\n", chunks), &[400]),
        (with("Transfer-Encoding: identity\r\n", "{}"), &[400]),
        (with("Transfer-Encoding: gzip, chunked\r\n", chunks), &[501]),
        (with("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", chunks), &[501]),
        (with("Transfer-Encoding: chunked, chunked\r\n", chunks), &[501]),
        (with("Transfer-Encoding: chunked\r\n", "FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"), &[400]),
        (with("Transfer-Encoding: chunked\r\n", "-2\r\n{}\r\n0\r\n\r\n"), &[400]),
        (
            with(
                "Transfer-Encoding: chunked\r\n",
                &format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(64 << 10)),
            ),
            &[400],
        ),
        (with("Transfer-Encoding: chunked\r\n", &format!("2\r\n{{}}\r\n0\r\n{many}\r\n")), &[400]),
        // Versions.
        (
            bare(
                "POST /webhooks/orders HTTP/1.0\r\nIdempotency-Key: @\r\nContent-Length: 2\r\n\r\n{}",
            ),
            &[202],
        ),
        (
            bare(
                "POST /webhooks/orders HTTP/1.0\r\nIdempotency-Key: @\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            ),
            &[400],
        ),
        (
            bare(
                "POST /webhooks/orders HTTP/1.2\r\nIdempotency-Key: @\r\nContent-Length: 2\r\n\r\n{}",
            ),
            &[400],
        ),
        (
            bare(
                "POST /webhooks/orders http/1.1\r\nIdempotency-Key: @\r\nContent-Length: 2\r\n\r\n{}",
            ),
            &[400],
        ),
        (bare("POST /webhooks/orders\r\n\r\n"), &[400]),
        (bare("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"), &[]),
        // Header names in any case, and repeated.
        (
            bare(
                "POST /webhooks/orders HTTP/1.1\r\nHOST: a\r\nCONNECTION: CLOSE\r\nIDEMPOTENCY-KEY: @\r\nCONTENT-LENGTH: 2\r\n\r\n{}",
            ),
            &[202],
        ),
        (with("X-Same: 1\r\nx-same: 2\r\nX-SAME: 3\r\nContent-Length: 2\r\n", "{}"), &[202]),
        // Exactly one `Host` header is required.
        (with("host: a\r\nContent-Length: 2\r\n", "{}"), &[400]),
        (
            bare(
                "POST /webhooks/orders HTTP/1.1\r\nConnection: close\r\nIdempotency-Key: @\r\nContent-Length: 2\r\n\r\n{}",
            ),
            &[400],
        ),
        (
            bare(
                "post /webhooks/orders HTTP/1.1\r\nHost: a\r\nConnection: close\r\nIdempotency-Key: @\r\nContent-Length: 2\r\n\r\n{}",
            ),
            &[405],
        ),
        // Invalid headers, and too many bytes of headers.
        (with("X-Folded: a\r\n b\r\nContent-Length: 2\r\n", "{}"), &[400]),
        (with("X-Space : a\r\nContent-Length: 2\r\n", "{}"), &[400]),
        (with("X-Nul: a\0b\r\nContent-Length: 2\r\n", "{}"), &[400]),
        (with("X-\u{e9}: a\r\nContent-Length: 2\r\n", "{}"), &[400]),
        (with(": a\r\nContent-Length: 2\r\n", "{}"), &[400]),
        (with(&format!("{many}Content-Length: 2\r\n"), "{}"), &[431]),
        // Paths.
        (at("/webhooks/orders?at=%00"), &[202]),
        (at("http://elsewhere/webhooks/orders"), &[202]),
        (at("/webhooks/orders%00"), &[404]),
        (at("/webhooks/%00"), &[404]),
        (at("/webhooks/%6frders"), &[404]),
        (at("/webhooks/..%2forders"), &[404]),
        (at("/webhooks/%ff%fe"), &[404]),
        (at("//webhooks/orders"), &[404]),
        (at("/events/%00/redrive"), &[400]),
        (at("*"), &[404]),
        (at("/webhooks/orders\0"), &[400]),
        (at("/webhooks/or ders"), &[400]),
        (at(""), &[400]),
        (at(&format!("/webhooks/{}", "o".repeat(64 << 10))), &[431]),
        // Bytes that are no request at all.
        (vec![0; 64 << 10], &[400]),
        (vec![0xff; 64 << 10], &[400]),
        (vec![b'\n'; 200 << 10], &[431]),
        ((0..=255).collect(), &[400]),
    ]
}

/// Pseudo-random keys of 255 and 256 bytes: lower-case letters, or any bytes.
fn keys() -> Vec<(Vec<u8>, u16)> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |length: usize, visible: bool| -> Vec<u8> {
        let mut byte = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let byte = state.to_be_bytes()[0];
            if visible { b'a' + byte % 26 } else { byte }
        };
        (0..length).map(|_| byte()).collect()
    };
    let mut keys = Vec::new();
    for _ in 0..50 {
        keys.extend([
            (random(255, true), 202),
            (random(256, true), 400),
            (random(255, false), 400),
            (random(256, false), 400),
        ]);
    }
    keys
}

async fn pipelined_requests_are_answered_in_order(database: Database) {
    const AHEAD: usize = 100;
    let siege = Siege::begin(database, TIMEOUT).await;
    let request = |key: &str, body: &str| {
        format!("POST /webhooks/orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    };
    let answered = siege
        .beside_good_posts(async {
            let mut answered: Vec<(String, EventId)> = Vec::new();
            for batch in 0..10 {
                let posts: Vec<(String, String)> = (0..AHEAD)
                    .map(|n| (format!("ahead-{batch}-{n}"), format!("body {n}")))
                    .collect();
                let named: Vec<_> =
                    posts.iter().map(|(key, body)| siege.posted(key, body.as_bytes())).collect();
                let mut bytes: Vec<u8> =
                    posts.iter().flat_map(|(key, body)| request(key, body)).collect();
                bytes.extend_from_slice(b"and nothing that follows\r\n\r\n");
                let mut answers = converse(siege.service.address(), &bytes).await;
                assert_eq!(answers.pop().map(|last| last.status_code), Some(400));
                assert_eq!(answers.len(), AHEAD, "not every request has a response");
                for (((key, _), post), answer) in posts.into_iter().zip(named).zip(&answers) {
                    answered.push((
                        key,
                        siege.answered(post, answer).unwrap_or_else(|| panic!("{answer:?}")),
                    ));
                }
            }
            answered
        })
        .await
        .all_at_once();
    for (key, event) in answered.out {
        assert_eq!(answered.run.events[&event].key, key, "a response went to another request");
    }
}

async fn producers_that_hang_up_leave_whole_events_or_none(database: Database) {
    let siege = Siege::begin(database, TIMEOUT).await;
    let body = vec![b'x'; 4 << 10];
    let hang_up = |index: usize| {
        let (siege, body) = (&siege, &body);
        async move {
            let key = format!("gone-{index}");
            let post = siege.posted(&key, body);
            let mut stream =
                TcpStream::connect(siege.service.address()).await.expect("the program listens");
            let head = format!(
                "POST /webhooks/orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(&[head.as_bytes(), body].concat()).await.expect("the program reads");
            tokio::time::sleep(Duration::from_millis(1)).await;
            if index.is_multiple_of(2) {
                stream.set_zero_linger().expect("the connection can be reset");
            }
            drop(stream);
            siege.run.record(What::Unanswered { post, is_refused: false });
            // Some retry later, as producers do.
            if index.is_multiple_of(10) {
                siege.good(&Client::default(), "orders", &key, Bytes::copy_from_slice(body)).await;
            }
        }
    };
    let answered = siege
        .beside_good_posts(async {
            stream::iter(0..1_000).map(hang_up).buffer_unordered(20).collect::<Vec<()>>().await;
        })
        .await
        .all_at_once();
    let stored =
        answered.run.events.values().filter(|event| event.key.starts_with("gone-")).count();
    assert!(stored >= 100, "only {stored} of 1,000 were stored, although 100 were retried");
}

/// The program under attack, with a source for attackers and one for well-behaved producers.
struct Siege {
    run: Recording,
    sink: Sink,
    service: Service,
}

/// The result of a siege.
struct Lifted<T> {
    out: T,
    run: Run,
    /// The number of retries of good posts that got no response.
    again: usize,
}

impl<T> Lifted<T> {
    /// Asserts that each good post was answered at its first try.
    fn all_at_once(self) -> Self {
        assert_eq!(self.again, 0, "good posts were not answered");
        self
    }
}

impl Siege {
    async fn begin(database: Database, timeout: Duration) -> Self {
        let (_, most) =
            getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files can be read");
        setrlimit(Resource::RLIMIT_NOFILE, most, most)
            .expect("the soft limit can be raised to the hard limit");
        let run = Recording::begin(database).await;
        let sink = run.sink(|_| sink::Answer::status(200)).await;
        let configuration = format!(
            r#"
            [intake]
            max_body = "64KiB"
            idle_timeout = "{timeout:?}"
            header_timeout = "{timeout:?}"
            body_timeout = "{timeout:?}"
            [sources.orders]
            destination = "{}"
            [sources.good]
            destination = "{}"
            "#,
            sink.url("/orders"),
            sink.url("/good")
        );
        let service = run.service(&configuration).await;
        Self { run, sink, service }
    }

    /// Runs an attack while good producers post, on keep-alive connections and on new ones. Asserts
    /// that none of them is slowed, that the memory of the program stays bounded, and that no
    /// promise is broken.
    async fn beside_good_posts<T>(&self, attack: impl Future<Output = T>) -> Lifted<T> {
        let client = Client::default();
        for _ in 0..WARM_UP {
            self.good(&client, "good", &Uuid::now_v7().to_string(), Bytes::from_static(b"warm"))
                .await;
        }
        let before = self.service.usage();
        let over = AtomicBool::new(false);
        let attack = async {
            let out = attack.await;
            over.store(true, Ordering::Relaxed);
            out
        };
        let good = async {
            let mut pace = tokio::time::interval(EVERY);
            let (mut posts, mut again, mut slowest) = (0_usize, 0, Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                pace.tick().await;
                let fresh = Client::default();
                let client = if posts.is_multiple_of(2) { &client } else { &fresh };
                let begun = Instant::now();
                again += self
                    .good(client, "good", &Uuid::now_v7().to_string(), Bytes::from_static(b"good"))
                    .await;
                slowest = slowest.max(begun.elapsed());
                posts += 1;
            }
            (posts, again, slowest)
        };
        let (out, (posts, again, slowest)) = futures::join!(attack, good);
        let after = self.service.usage();
        println!("{posts} good posts, the slowest took {slowest:?}; {before:?}, then {after:?}");
        assert!(posts > 0 && slowest < UNHARMED, "a good post took {slowest:?}");
        assert!(
            after.resident_bytes <= before.resident_bytes + KEEPS_AT_MOST,
            "{before:?} became {after:?}"
        );
        assert!(
            after.peak_bytes <= before.resident_bytes + NEEDS_AT_MOST,
            "{before:?} became {after:?}"
        );
        assert_eq!(self.service.mishaps(), [""; 0]);
        let run = self.run.judge().await;
        assert_eq!(
            self.sink.taken().len(),
            run.events.len(),
            "not exactly the stored events were delivered"
        );
        Lifted { out, run, again }
    }

    /// Posts until there is a response, which must be an acceptance. Returns the number of retries.
    async fn good(&self, client: &Client, source: &str, key: &str, body: Bytes) -> usize {
        let post = Post { producer: "good", source, key, body };
        let mut again = 0;
        loop {
            match try_once(&self.run, client, &self.service.target(), &post).await {
                Ok(Ok(_)) => return again,
                Err(_) if again < 10 => again += 1,
                other => panic!("a good post was not accepted: {other:?}"),
            }
        }
    }

    /// Sends bytes that may be a post to `orders`. Returns the status codes of the responses.
    async fn post_raw(&self, key: &str, body: &[u8], bytes: &[u8]) -> Vec<u16> {
        let post = self.posted_with_query(key, body, query_of(bytes));
        let answers = converse(self.service.address(), bytes).await;
        match answers.first() {
            Some(first) => drop(self.answered(post, first)),
            None => self.run.record(What::Unanswered { post, is_refused: false }),
        }
        answers.iter().map(|answer| answer.status_code).collect()
    }

    fn posted(&self, key: &str, body: &[u8]) -> PostId {
        self.posted_with_query(key, body, String::new())
    }

    fn posted_with_query(&self, key: &str, body: &[u8], query: String) -> PostId {
        let post = self.run.post_id();
        self.run.record(What::Posted(Posted {
            post,
            producer: "attacker".to_owned(),
            process: self.service.target().name,
            source: "orders".to_owned(),
            key: key.to_owned(),
            body: Fingerprint::of(body),
            storable: true,
            query,
            takes: None,
            headers: BTreeMap::new(),
        }));
        post
    }

    /// Records a response. Returns the event that it names, if it is an acceptance.
    fn answered(&self, post: PostId, answer: &Answer) -> Option<EventId> {
        let accepted = (answer.status_code == 202).then(|| answer.json());
        let event = accepted.as_ref().and_then(|said| said["event_id"].as_str()?.parse().ok());
        let status = accepted.as_ref().and_then(|said| Status::from_name(said["status"].as_str()?));
        let replayed = answer.header("idempotent-replayed") == "true";
        self.run.record(What::Answered {
            post,
            status_code: answer.status_code,
            event,
            status,
            replayed,
            problem: None,
        });
        event
    }
}

fn replace(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    match bytes.windows(what.len()).position(|window| window == what) {
        Some(at) => [&bytes[..at], with, &bytes[at + what.len()..]].concat(),
        None => bytes.to_vec(),
    }
}
