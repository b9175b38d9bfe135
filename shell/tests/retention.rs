//! The retention loop on the reference database, in virtual time: days pass in milliseconds.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use surehook::ports::{
    Clock, Erased, EventStore, MaintenanceStore, NewEvent, Pruned, Retention, StoreCall, StoreError,
};
use surehook::retention;
use surehook_core::admission::Fingerprint;
use surehook_core::due::Bound;
use surehook_core::event::Outcome;
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::retention::{PASS_PAUSE, Reached};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::worker::claims::{Claim, Demand};
use surehook_model::memory::MemoryStore;
use uuid::Uuid;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// The start of the store's clock, in milliseconds.
const RIGHT: u128 = 1_767_225_600_000;

/// The store's time, and the deadlines that are waited for.
#[derive(Default)]
struct Time {
    now: Duration,
    waited_for: Vec<Instant>,
}

#[derive(Clone, Default)]
struct Hourglass(Arc<Mutex<Time>>);

impl Clock for Hourglass {
    fn now(&self) -> Instant {
        Instant::from_origin(self.0.lock().unwrap().now)
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let time = Arc::clone(&self.0);
        std::future::poll_fn(move |_| {
            let mut time = time.lock().unwrap();
            if Instant::from_origin(time.now) >= deadline {
                return Poll::Ready(());
            }
            time.waited_for.push(deadline);
            Poll::Pending
        })
        .boxed()
    }
}

/// The retention loop and its database.
struct World {
    store: Arc<MemoryStore>,
    clock: Hourglass,
    running: BoxFuture<'static, ()>,
}

impl World {
    fn start(retention: Retention, delivered_payload: Duration) -> Self {
        let (store, clock) = (Arc::new(MemoryStore::new()), Hourglass::default());
        let running =
            retention::run(store.clone(), Arc::new(clock.clone()), retention, delivered_payload)
                .boxed();
        Self { store, clock, running }
    }

    /// Lets the loop run until `end`.
    fn run_until(&mut self, end: Duration) {
        loop {
            self.clock.0.lock().unwrap().waited_for.clear();
            assert!(
                self.running.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending(),
                "the loop has ended"
            );
            let mut time = self.clock.0.lock().unwrap();
            let next = time
                .waited_for
                .iter()
                .min()
                .expect("the loop waits for a time")
                .since_origin()
                .min(end);
            self.store.advance(next - time.now);
            time.now = next;
            if next == end {
                return;
            }
        }
    }

    /// Accepts events and claims them.
    fn claimed(&self, keys: std::ops::Range<u32>) -> Vec<Claim> {
        self.claimed_by(RIGHT, keys)
    }

    /// Like [`Self::claimed`], with ids from a clock that shows the given time in milliseconds.
    fn claimed_by(&self, clock: u128, keys: std::ops::Range<u32>) -> Vec<Claim> {
        let source = SourceName::parse("orders").unwrap();
        let event = |key: u32| NewEvent {
            id: EventId::from_uuid(Uuid::from_u128(
                (clock << 80) + (7 << 76) + (2 << 62) + u128::from(key),
            )),
            source: source.clone(),
            key: IdempotencyKey::parse(key.to_string().as_bytes()).unwrap(),
            fingerprint: Fingerprint::of(b"body"),
            query: Bytes::new(),
            headers: Bytes::from_static(b"a: b"),
            body: Bytes::from_static(b"body"),
            lease: None,
        };
        let demand = Demand {
            source: source.clone(),
            limit: keys.end - keys.start,
            bytes: usize::MAX,
            lease: DAY * 300,
            max_attempts: 5,
        };
        self.store.accept(keys.map(event).collect()).now_or_never().unwrap().unwrap();
        self.store.claim(vec![demand]).now_or_never().unwrap().unwrap().claimed
    }

    fn deliver(&self, claims: &[Claim]) {
        let settlements =
            claims.iter().map(|claim| claim.settled(Outcome::Delivered, None)).collect();
        let refused = self.store.settle(settlements).now_or_never().unwrap().unwrap();
        assert!(refused.is_empty());
    }

    /// The numbers of events with and without their payloads.
    fn kept(&self) -> (usize, usize) {
        let tables = self.store.tables();
        let erased = tables
            .events
            .values()
            .filter(|row| row.event.body.is_empty() && row.event.headers.is_empty())
            .count();
        (tables.events.len() - erased, erased)
    }
}

#[test]
fn payloads_are_erased_and_records_pruned_after_their_retention() {
    let mut world = World::start(Retention { delivered: DAY, dead_lettered: DAY }, HOUR);
    // It has the smallest id of all, and is delivered last.
    let late = world.claimed(0..1);
    let others = world.claimed(1..2_000);
    world.deliver(&others);
    world.run_until(HOUR - Duration::from_secs(61));
    assert_eq!(world.kept(), (2_000, 0));
    world.run_until(HOUR + Duration::from_secs(70));
    assert_eq!(world.kept(), (1, 1_999));
    world.run_until(HOUR * 2);
    world.deliver(&late);
    world.run_until(HOUR * 3 - Duration::from_secs(61));
    assert_eq!(world.kept(), (1, 1_999));
    world.run_until(HOUR * 3 + Duration::from_secs(70));
    assert_eq!(world.kept(), (0, 2_000), "each pass looks at all events");
    world.run_until(DAY - Duration::from_secs(61));
    assert_eq!(world.kept(), (0, 2_000));
    world.run_until(DAY + Duration::from_secs(70));
    assert_eq!(world.kept(), (0, 1));
    world.run_until(DAY + HOUR * 3);
    assert_eq!(world.kept(), (0, 0));
}

#[test]
fn payloads_with_the_retention_of_their_records_are_never_erased() {
    for kept in [DAY, DAY * 36_500] {
        let mut world = World::start(Retention { delivered: DAY, dead_lettered: DAY }, kept);
        let claims = world.claimed(0..700);
        world.deliver(&claims);
        world.run_until(DAY - Duration::from_secs(61));
        assert_eq!(world.kept(), (700, 0));
        world.run_until(DAY + Duration::from_secs(70));
        assert_eq!(world.kept(), (0, 0));
    }
}

#[test]
fn wrong_clocks_delay_neither_pruning_nor_erasing() {
    for off in [DAY * 400, HOUR * 6] {
        let off = off.as_millis();
        let mut world = World::start(Retention { delivered: DAY, dead_lettered: DAY }, HOUR);
        for (clock, keys) in [(RIGHT - off, 0..300), (RIGHT, 300..600), (RIGHT + off, 600..900)] {
            let claims = world.claimed_by(clock, keys);
            world.deliver(&claims);
        }
        // Enough events for several steps, with the first and the last ids, and still within their
        // retention when that of the others ends.
        let mut young = |at: Duration, keys: std::ops::Range<u32>| {
            world.run_until(at);
            let at = at.as_millis();
            let middle = keys.start + (keys.end - keys.start) / 2;
            for (clock, keys) in
                [(RIGHT + at - off - 1, keys.start..middle), (RIGHT + at + off, middle..keys.end)]
            {
                let claims = world.claimed_by(clock, keys);
                world.deliver(&claims);
            }
        };
        young(HOUR - Duration::from_mins(10), 1_000..1_600);
        world.run_until(HOUR + Duration::from_secs(90));
        assert_eq!(world.kept(), (600, 900), "{off} ms off");
        let mut young = |at: Duration, keys: std::ops::Range<u32>| {
            world.run_until(at);
            let claims = world.claimed_by(RIGHT + at.as_millis() - off - 1, keys);
            world.deliver(&claims);
        };
        young(DAY - Duration::from_mins(10), 2_000..2_300);
        world.run_until(DAY + Duration::from_secs(90));
        assert_eq!(world.kept(), (300, 600), "{off} ms off");
    }
}

/// A store whose steps take time and fail as the test says.
struct Scripted {
    clock: Hourglass,
    /// How long each prune takes, and where it ends. Further ones never end.
    prunes: Mutex<VecDeque<(Duration, Result<Reached, StoreError>)>>,
    /// When each step started, and where.
    pruned: Mutex<Vec<(Duration, Option<EventId>)>>,
    erased: Mutex<Vec<Duration>>,
}

impl Scripted {
    fn new(
        clock: &Hourglass,
        prunes: impl IntoIterator<Item = (Duration, Result<Reached, StoreError>)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            prunes: Mutex::new(prunes.into_iter().collect()),
            pruned: Mutex::default(),
            erased: Mutex::default(),
        })
    }

    /// The waits from the end of each prune to the start of the next one, and where that starts.
    fn pauses(&self, took: &[Duration]) -> Vec<(Duration, Option<EventId>)> {
        let pruned = self.pruned.lock().unwrap();
        let pairs = pruned.iter().zip(pruned.iter().skip(1));
        pairs.zip(took).map(|((one, next), took)| (next.0 - one.0 - *took, next.1)).collect()
    }
}

impl MaintenanceStore for Scripted {
    fn prune(&self, _: Retention, after: Option<EventId>, _: u32) -> StoreCall<'_, Pruned> {
        let now = self.clock.now();
        self.pruned.lock().unwrap().push((now.since_origin(), after));
        let next = self.prunes.lock().unwrap().pop_front();
        async move {
            let Some((takes, ends)) = next else { return std::future::pending().await };
            self.clock.sleep_until(now + takes).await;
            ends.map(|reached| Pruned { deleted: 0, dead_lettered: 0, discarded: 0, reached })
        }
        .boxed()
    }

    fn erase(&self, _: Duration, _: Option<EventId>, _: u32) -> StoreCall<'_, Erased> {
        self.erased.lock().unwrap().push(self.clock.now().since_origin());
        std::future::ready(Ok(Erased { erased: 0, reached: Reached::END })).boxed()
    }

    fn cap_due_times(&self, _: Vec<Bound>, _: u32) -> StoreCall<'_, u64> {
        std::future::ready(Ok(0)).boxed()
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        std::future::ready(Ok(())).boxed()
    }

    fn probe(&self, _: NewEvent) -> StoreCall<'_, ()> {
        std::future::ready(Ok(())).boxed()
    }
}

/// Runs the loop on a scripted store until `end`.
fn run_on(store: &Arc<Scripted>, clock: Hourglass, end: Duration) {
    let retention = Retention { delivered: DAY, dead_lettered: DAY };
    let running = retention::run(store.clone(), Arc::new(clock.clone()), retention, HOUR).boxed();
    World { store: Arc::new(MemoryStore::new()), clock, running }.run_until(end);
}

#[test]
fn a_prune_that_hangs_delays_no_erasing() {
    let clock = Hourglass::default();
    let store = Scripted::new(&clock, []);
    run_on(&store, clock, HOUR);
    assert_eq!(store.pruned.lock().unwrap().len(), 1);
    let minutes: Vec<Duration> = (0..60).map(|n| PASS_PAUSE * n).collect();
    assert_eq!(*store.erased.lock().unwrap(), minutes);
}

#[test]
fn the_pause_after_a_step_starts_when_it_ends_and_a_failed_step_is_repeated() {
    let clock = Hourglass::default();
    let middle = Some(EventId::from_uuid(Uuid::from_u128(7)));
    let took = [1, 90, 600, 120].map(Duration::from_secs);
    let ends = [
        Ok(Reached { last: middle, behind: None }),
        Err(StoreError::Unavailable("as the test wants it".into())),
        Ok(Reached::END),
        Ok(Reached::END),
    ];
    let store = Scripted::new(&clock, took.into_iter().zip(ends));
    run_on(&store, clock, HOUR);
    assert_eq!(
        store.pauses(&took),
        [
            (Duration::ZERO, None),   // the front
            (PASS_PAUSE, None),       // the front again, because it failed
            (Duration::ZERO, middle), // the round
            (Duration::ZERO, None),   // the front, which became due during the round's step
        ],
    );
}
