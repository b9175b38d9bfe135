//! Passes the bytes of one connection through hyper's HTTP/1 server to the production routes and
//! the production intake, with a store in memory. There are no sockets and no threads, and time
//! does not pass, so no timeout fires.

mod answers;
mod watched;

use bytes::Bytes;
use futures::FutureExt;
use futures::executor::LocalPool;
use futures::future::BoxFuture;
use futures::task::LocalSpawnExt;
use http::{HeaderValue, StatusCode};
use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant as StdInstant};
use surehook::doorbell::Doorbell;
use surehook::health::Health;
use surehook::http::{Acknowledgement, App, Bodies, Configured, Content, Relays, SourceIntake};
use surehook::http_server::protocol;
use surehook::intake::{IntakePorts, Limits, intake};
use surehook::metrics::Metrics;
use surehook::ports::{Clock, Ids, NewEvent, Relay, RelayFailed, Relayed};
use surehook_core::admission::{Fingerprint, OnKeyReuse};
use surehook_core::event::{Outcome, Reason};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::key::places::{Entry, KeyPlaces};
use surehook_core::relay::RelayRules;
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{AttemptRecord, Demand, Settlement};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use uuid::Uuid;

use crate::memory::MemoryStore;
use watched::Requests;

/// Small, so that a short input can exceed it.
const MAX_BODY: usize = 4096;
const MAX_QUEUED_BYTES: usize = 8192;
/// What the lenient source answers to every event.
const LENIENT_MEDIA_TYPE: &str = "text/plain";
const LENIENT_BODY: &[u8] = b"[accepted]";
/// More bytes than all responses to one input.
const PIPE: usize = 1 << 20;

/// The connection's properties, from the first byte of the data. The other bytes are what the
/// client sends.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// The client closes its side after its last byte, instead of waiting for the responses.
    hangs_up: bool,
    /// The process is shutting down.
    draining: bool,
    /// The process does not accept webhooks.
    only_delivers: bool,
    /// The number of bytes that arrive at a time. The client always reads responses immediately. If
    /// a client does not read, and sends bytes that are not HTTP after a request, hyper 1.12 may
    /// write its refusal into the middle of the response before. A build with debug assertions
    /// panics then (`can_write_head`). Only that client is affected.
    piece: usize,
}

impl Manner {
    fn read(byte: u8) -> Self {
        let piece = 1 << (((byte >> 3) & 0b111) * 2);
        Self {
            hangs_up: byte & 1 != 0,
            draining: byte & 2 != 0,
            only_delivers: byte & 4 != 0,
            piece,
        }
    }
}

/// Sends `data` to the server.
///
/// # Panics
///
/// If the server panics or hangs, if a response is malformed or an error is undocumented, or if an
/// acknowledgement is sent for a webhook that is not stored byte for byte.
pub fn run(data: &[u8]) {
    let Some((manner, sent)) = data.split_first() else { return };
    let manner = Manner::read(*manner);
    let store = Arc::new(MemoryStore::new());
    ended_before(&store);
    let before = store.tables().events.len();
    let requests = Requests::default();
    let received = converse(manner, sent.to_vec(), &store, &requests);
    answers::check(manner, &received, &requests.take(), &store.tables(), before);
}

/// Serves one connection to its end. Returns what the client received.
fn converse(
    manner: Manner,
    sent: Vec<u8>,
    store: &Arc<MemoryStore>,
    requests: &Requests,
) -> Vec<u8> {
    let clock: Arc<dyn Clock> = Arc::new(Still);
    let limits = Limits {
        max_queued: 8,
        max_queued_bytes: MAX_QUEUED_BYTES,
        max_request: MAX_QUEUED_BYTES,
        sources: 1,
    };
    let doorbell = Arc::new(Doorbell::default());
    let ports = IntakePorts {
        store: store.clone(),
        clock: Arc::clone(&clock),
        doorbell: Arc::clone(&doorbell),
        handover: Arc::default(),
        health: Arc::default(),
    };
    let (handle, intake_loop) = intake(limits, ports, futures::future::pending());
    let health = Arc::new(Health::default());
    if manner.draining {
        health.drain();
    }
    let app = App {
        configured: watch::Sender::new(Arc::new(Configured {
            sources: sources(),
            body_timeout: Duration::from_secs(30),
        })),
        intake: (!manner.only_delivers).then_some(handle),
        operators: store.clone(),
        maintenance: store.clone(),
        metrics: Metrics::new([]),
        delivers: false,
        clock,
        ids: Arc::new(Counted::default()),
        health,
        doorbell,
        relays: Relays::new(Arc::new(NoDestination)),
        bodies: Bodies::default(),
    };

    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let (peer, server) = tokio::io::duplex(PIPE);
    let (mut from_server, mut to_server) = tokio::io::split(peer);
    let connection = protocol(Never, Duration::from_secs(10))
        .serve_connection(TokioIo::new(server), requests.clone().watch(app));
    let (served, stored) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let received = Rc::new(RefCell::new(Vec::new()));
    let (close, closed) = futures::channel::oneshot::channel::<()>();

    let spawned = [
        spawner.spawn_local({
            let served = Rc::clone(&served);
            // The connection may end in an error if the client broke it; that is correct.
            connection.map(move |_| served.set(true))
        }),
        spawner.spawn_local({
            let stored = Rc::clone(&stored);
            intake_loop.map(move |()| stored.set(true))
        }),
        spawner.spawn_local({
            let received = Rc::clone(&received);
            async move {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = from_server.read(&mut piece).await {
                    received.borrow_mut().extend_from_slice(&piece[..count]);
                }
            }
        }),
        spawner.spawn_local(async move {
            // The server may have refused the rest and closed.
            for piece in sent.chunks(manner.piece) {
                if to_server.write_all(piece).await.is_err() {
                    break;
                }
                // The server must see this piece before the next one is sent.
                give_way().await;
            }
            if !manner.hangs_up {
                let _ = closed.await;
            }
            let _ = to_server.shutdown().await;
        }),
    ];
    assert!(spawned.iter().all(Result::is_ok), "the pool accepts tasks");
    pool.run_until_stalled();
    let _ = close.send(());
    pool.run_until_stalled();
    assert!(
        served.get(),
        "the client has closed its side, but the server still serves the connection"
    );
    assert!(stored.get(), "the connection has ended, but the intake does not end");
    received.take()
}

/// The sources relay nothing.
struct NoDestination;

impl Relay for NoDestination {
    fn relay(
        &self,
        source: &SourceName,
        _: Relayed,
    ) -> BoxFuture<'static, Result<http::Response<Bytes>, RelayFailed>> {
        panic!("a request of the source {source} was relayed")
    }
}

/// Lets every other task run first.
async fn give_way() {
    let mut asked = false;
    futures::future::poll_fn(|context| {
        if asked {
            return Poll::Ready(());
        }
        asked = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A source with strict settings and one with lenient settings.
fn sources() -> BTreeMap<SourceName, SourceIntake> {
    let strict = SourceIntake {
        max_body: MAX_BODY,
        idempotency_key: KeyPlaces::default(),
        on_key_reuse: OnKeyReuse::Reject,
        acknowledgement: Acknowledgement::default(),
        redrive_on_replay: true,
        forward_credentials: false,
        forward_query: true,
        relay: RelayRules::default(),
        relay_timeout: Duration::from_secs(3),
        destination: "http://strict.example/".to_owned(),
        max_attempts: 20,
        retries_last: (Duration::from_secs(90), Duration::from_mins(3)),
        lease: Duration::from_secs(20),
    };
    let lenient = SourceIntake {
        max_body: MAX_BODY,
        idempotency_key: KeyPlaces::new(vec![
            Entry::parse("header:X-GitHub-Delivery").expect("the place is valid"),
        ])
        .expect("the list is valid"),
        on_key_reuse: OnKeyReuse::FirstWins,
        acknowledgement: Acknowledgement {
            status: StatusCode::OK,
            content: Content::Fixed {
                content_type: Some(HeaderValue::from_static(LENIENT_MEDIA_TYPE)),
                body: Bytes::from_static(LENIENT_BODY),
            },
        },
        redrive_on_replay: false,
        forward_credentials: true,
        forward_query: false,
        relay: RelayRules::default(),
        relay_timeout: Duration::from_secs(3),
        destination: "http://lenient.example/".to_owned(),
        max_attempts: 3,
        retries_last: (Duration::from_secs(1), Duration::from_secs(2)),
        lease: Duration::from_secs(11),
    };
    [("strict", strict), ("lenient", lenient)]
        .into_iter()
        .map(|(name, source)| (name_of(name), source))
        .collect()
}

fn name_of(source: &str) -> SourceName {
    SourceName::parse(source).expect("the source name is valid")
}

/// The ids of the events that exist at the start: a dead letter, and a delivered event of a source
/// that is not configured any more.
const DEAD: u128 = 0x019a_b000_0000_7000_8000_0000_0000_00dd;
const GONE: u128 = 0x019a_b000_0000_7000_8000_0000_0000_00ee;
/// The id before the first id of a new event.
const FIRST: u128 = 0x019a_b000_0000_7000_8000_0000_0000_0000;

/// Stores two events that have ended, so that they can be looked up and redriven.
fn ended_before(store: &MemoryStore) {
    let ends = [
        (DEAD, "strict", Outcome::DeadLetter(Reason::Permanent), Verdict::Permanent, 422),
        (GONE, "gone", Outcome::Delivered, Verdict::Delivered, 200),
    ];
    for (id, source, outcome, verdict, status_code) in ends {
        let body = Bytes::from_static(b"before");
        let event = NewEvent {
            id: EventId::from_uuid(Uuid::from_u128(id)),
            source: name_of(source),
            key: IdempotencyKey::parse(b"before").expect("the key is valid"),
            fingerprint: Fingerprint::of(&body),
            query: Bytes::new(),
            headers: Bytes::from_static(b"\r\n"),
            body,
            lease: None,
        };
        let demand = Demand {
            source: event.source.clone(),
            limit: 1,
            bytes: usize::MAX,
            lease: Duration::from_secs(20),
            max_attempts: 20,
        };
        let record = AttemptRecord {
            ended_ago: Duration::from_millis(1),
            took: Duration::from_millis(2),
            verdict,
            status_code: Some(status_code),
            error: None,
            excerpt: Bytes::from_static(b"not \xff text \0 \" \\ \x1b"),
        };
        store.transact(|tables, now| {
            tables.accept(now, vec![event]).expect("a new event can be accepted");
            let claim = tables.claim(now, &[demand]).claimed.remove(0);
            let (event, source, fence, attempt) =
                (claim.event, claim.source, claim.fence, claim.attempt);
            let refused = tables.settle(
                now,
                &[Settlement {
                    event,
                    source,
                    fence,
                    attempt,
                    outcome,
                    age: Duration::ZERO,
                    record: Some(record),
                }],
            );
            assert!(refused.is_empty(), "the newest claim can be settled");
        });
    }
}

/// Sequential ids, so that the data can contain them.
#[derive(Default)]
struct Counted(AtomicU64);

impl Ids for Counted {
    fn fresh(&self) -> EventId {
        EventId::from_uuid(Uuid::from_u128(
            FIRST + 1 + u128::from(self.0.fetch_add(1, Ordering::Relaxed)),
        ))
    }
}

/// A clock that does not advance.
struct Still;

impl Clock for Still {
    fn now(&self) -> Instant {
        Instant::from_origin(Duration::from_secs(1))
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        if deadline <= self.now() {
            futures::future::ready(()).boxed()
        } else {
            futures::future::pending().boxed()
        }
    }
}

/// A timer for hyper that never fires.
struct Never;

impl Timer for Never {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Self)
    }

    fn sleep_until(&self, _: StdInstant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Self)
    }
}

impl Future for Never {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Sleep for Never {}
