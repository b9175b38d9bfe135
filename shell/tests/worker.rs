//! The worker loop on a store and a downstream that take time and fail as a test says, in virtual
//! time.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, FusedStream};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook::clock::TokioClock;
use surehook::doorbell::Doorbell;
use surehook::handover::{Handed, Handover};
use surehook::metrics::Metrics;
use surehook::ports::{Clock, Downstream, EventStore, NewEvent, StoreCall, StoreError};
use surehook::worker::{Order, WorkerPorts, run};
use surehook_core::admission::Stored;
use surehook_core::event::Outcome;
use surehook_core::id::EventId;
use surehook_core::shutdown::Deadlines;
use surehook_core::source::{Policy, SourceName};
use surehook_core::verdict::Reply;
use surehook_core::worker::claims::{Claim, Claims, Demand, Settlement};
use surehook_core::worker::{Settings, Worker};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

fn source(name: &str) -> SourceName {
    SourceName::parse(name).unwrap()
}

/// Answers claims, by the number of the claim.
type Answer = dyn Fn(usize) -> Result<Claims, StoreError> + Send + Sync;

/// A store whose claims answer as the test says. All settlements succeed.
struct Scripted {
    answer: Box<Answer>,
    began: Instant,
    /// When each claim was sent, and its sources.
    claims: Mutex<Vec<(Duration, Vec<SourceName>)>>,
    settled: Mutex<Vec<Settlement>>,
}

impl Scripted {
    #[expect(clippy::disallowed_methods, reason = "the time of the tests is virtual")]
    fn new(answer: Box<Answer>) -> Arc<Self> {
        let (claims, settled) = (Mutex::default(), Mutex::default());
        Arc::new(Self { answer, began: Instant::now(), claims, settled })
    }
}

impl EventStore for Scripted {
    fn accept(&self, _: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        unreachable!("these tests have no intake")
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        let mut claims = self.claims.lock().unwrap();
        let sources = demands.into_iter().map(|demand| demand.source).collect();
        claims.push((self.began.elapsed(), sources));
        let answer = (self.answer)(claims.len() - 1);
        async move {
            sleep(Duration::from_millis(1)).await;
            answer
        }
        .boxed()
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        self.settled.lock().unwrap().extend(batch);
        std::future::ready(Ok(Vec::new())).boxed()
    }
}

/// A downstream whose replies take this time.
struct After(Duration);

impl Downstream for After {
    fn send(&self, _: &Claim, _: Duration) -> BoxFuture<'static, Reply> {
        let reply = Reply::Response { status_code: 200, retry_after: None, excerpt: Bytes::new() };
        sleep(self.0).map(|()| reply).boxed()
    }
}

/// Runs a worker for the sources `a` and `b` for this time.
async fn run_for(time: Duration, downstream: After, answer: Box<Answer>) -> Arc<Scripted> {
    let store = Scripted::new(answer);
    let running = worker(&store, downstream, Arc::default(), stream::pending());
    let _ = tokio::time::timeout(time, running).await;
    store
}

/// The loop of a worker for the sources `a` and `b`.
fn worker(
    store: &Arc<Scripted>,
    downstream: After,
    handover: Arc<Handover>,
    orders: impl FusedStream<Item = Order> + Unpin + Send,
) -> impl Future<Output = ()> {
    let sources = ["a", "b"].map(source);
    let clock = TokioClock::new();
    let policies = sources.clone().map(|name| (name, Policy::default()));
    let ports = WorkerPorts {
        store: store.clone(),
        downstream: Arc::new(downstream),
        clock: Arc::new(clock),
        doorbell: Arc::new(Doorbell::default()),
        handover,
        metrics: Metrics::new(sources),
    };
    let worker = Worker::new(clock.now(), Settings::default(), policies);
    run(worker, ports, orders)
}

fn first() -> Claim {
    let event = EventId::from_uuid(Uuid::from_u128(1));
    let body = Bytes::from_static(b"body");
    Claim::first(event, source("a"), Timestamp::UNIX_EPOCH, Bytes::new(), Bytes::new(), body)
}

/// Answers every claim with no events.
fn no_event(_: usize) -> Result<Claims, StoreError> {
    Ok(Claims::default())
}

/// Answers the first claim with one event of `a`, and the others with none.
fn one_event(nth: usize) -> Result<Claims, StoreError> {
    let claimed = if nth == 0 { vec![first()] } else { Vec::new() };
    Ok(Claims { claimed, ..Claims::default() })
}

#[tokio::test(start_paused = true)]
async fn claims_that_fail_follow_each_other_more_and_more_slowly() {
    let fails = |_| Err(StoreError::Unavailable("as the test wants it".into()));
    let store = run_for(Duration::from_mins(1), After(Duration::ZERO), Box::new(fails)).await;
    let claims = store.claims.lock().unwrap();
    let [.., before, last] = &claims[..] else { panic!("{claims:?}") };
    assert!(last.0 - before.0 >= Duration::from_millis(2_500), "{claims:?}");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_timed_from_its_start_to_its_reply() {
    let takes = Duration::from_secs(2);
    let store = run_for(Duration::from_mins(1), After(takes), Box::new(one_event)).await;
    let settled = store.settled.lock().unwrap();
    let [settlement] = &settled[..] else { panic!("{settled:?}") };
    let took = settlement.record.as_ref().unwrap().took;
    assert!(took >= takes && took < takes + Duration::from_millis(100), "{took:?}");
    assert!(settlement.age >= takes, "{:?}", settlement.age);
}

#[tokio::test(start_paused = true)]
async fn sources_are_polled_while_a_delivery_hangs() {
    let hangs = After(Duration::from_hours(1));
    let store = run_for(Duration::from_secs(20), hangs, Box::new(one_event)).await;
    let claims = store.claims.lock().unwrap();
    let late = claims.iter().filter(|(at, _)| *at >= Duration::from_secs(10));
    let of_other = late.filter(|(_, sources)| sources.contains(&source("b"))).count();
    assert!(of_other >= 5, "{claims:?}");
}

#[tokio::test(start_paused = true)]
async fn events_handed_over_at_the_shutdown_are_released_and_later_ones_refused() {
    let (store, handover) = (Scripted::new(Box::new(no_event)), Arc::<Handover>::default());
    let since = TokioClock::new().now();
    assert!(handover.hand(Handed { since, claims: vec![first()] }).is_ok());
    let give_up_at = since + Duration::from_secs(10);
    let deadlines = Deadlines { cut_off_at: give_up_at, give_up_at };
    let orders = stream::iter([Order::ShutDown(deadlines)]).fuse();

    worker(&store, After(Duration::ZERO), Arc::clone(&handover), orders).await;

    let settled = store.settled.lock().unwrap();
    assert!(matches!(&settled[..], [Settlement { outcome: Outcome::Release, .. }]), "{settled:?}");
    assert!(handover.hand(Handed { since, claims: vec![first()] }).is_err());
}
