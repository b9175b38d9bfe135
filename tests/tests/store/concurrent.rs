//! The stores of several processes use one database concurrently. Each randomly does what
//! producers, workers, operators and pruning do. All answers and all committed row changes form one
//! history, which the simulation's oracles judge.
//!
//! `STORE_SEED` repeats the choices of a run, but not their interleaving.

use bytes::Bytes;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use surehook::ports::{NewEvent, Redriven, Retention, Store, StoreError};
use surehook::store;
use surehook_core::admission::{Admission, Fingerprint, OnKeyReuse, resolve};
use surehook_core::backoff::Backoff;
use surehook_core::event::{Outcome, Reason, RedrivenBy};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::{Policy, SourceName};
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{AttemptRecord, Claim, Demand, Settlement};
use surehook_model::history::{CallResult, Change, Fault, Posted, Received, What};
use surehook_model::oracles;
use tests::database::Database;
use tests::recording::Recording;
use tests::{audit, wait};
use tokio::task::JoinSet;
use uuid::Uuid;

const SOURCES: [&str; 2] = ["a", "b"];
const KEYS: u32 = 150;
const PROCESSES: usize = 3;
const BATCHES: u32 = 40;

/// The leases of a worker that settles in time, and of one that does not.
const LEASE: Duration = Duration::from_secs(10);
const SHORT_LEASE: Duration = Duration::from_millis(400);
/// How late a trigger of the audit can take its time, while a machine is loaded.
const AUDITED_WITHIN: Duration = Duration::from_secs(2);

tests::on_each_database! { concurrent_processes_keep_every_promise }

async fn concurrent_processes_keep_every_promise(database: Database) {
    let seed = std::env::var("STORE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("STORE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let world = World::new(database).await;
    let (mut producers, mut workers, mut others) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for process in 0..PROCESSES {
        producers.spawn(produce(Arc::clone(&world), process, random.fork()));
        workers.spawn(work(Arc::clone(&world), process, random.fork()));
        workers.spawn(work(Arc::clone(&world), process, random.fork()));
        others.spawn(operate(Arc::clone(&world), process, random.fork()));
    }
    while let Some(done) = producers.join_next().await {
        done.unwrap();
    }
    wait::within(Duration::from_secs(30), "enough redriven events", || async {
        enough(&world.redriven, 10)
    })
    .await;
    // After a key was pruned, posting it again creates another event. So nothing is posted from
    // here on.
    others.spawn(prune(Arc::clone(&world), 0));
    others.spawn(prune(Arc::clone(&world), 1));
    wait::within(Duration::from_secs(30), "enough pruned events", || async {
        enough(&world.pruned, 50)
    })
    .await;
    world.operators_stop.store(true, Ordering::Relaxed);
    while let Some(done) = others.join_next().await {
        done.unwrap();
    }
    wait::within(Duration::from_mins(1), "every event to end", || async {
        let outstanding = audit::statuses(world.recording.database()).await;
        if outstanding.is_empty() {
            Ok(())
        } else {
            Err(format!("{} events have not ended", outstanding.len()))
        }
    })
    .await;
    world.workers_stop.store(true, Ordering::Relaxed);
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    world.judge().await;
}

fn enough(done: &AtomicU64, wanted: u64) -> Result<(), String> {
    let done = done.load(Ordering::Relaxed);
    if done >= wanted { Ok(()) } else { Err(format!("{done} of {wanted}")) }
}

struct World {
    recording: Recording,
    policy: Policy,
    /// Each process's name and store.
    processes: Vec<(String, Arc<dyn Store>)>,
    accepted: Mutex<Vec<EventId>>,
    dead: Mutex<Vec<EventId>>,
    redriven: AtomicU64,
    pruned: AtomicU64,
    workers_stop: AtomicBool,
    operators_stop: AtomicBool,
}

impl World {
    async fn new(database: Database) -> Arc<Self> {
        let recording = Recording::begin(database).await;
        let mut processes = Vec::new();
        for number in 1..=PROCESSES {
            let name = match recording.database() {
                Database::Sqlite(_) => audit::SQLITE_PROCESS.to_owned(),
                Database::Postgres(_) => format!("service-{number}"),
            };
            let url = recording.database().url_of(&name).await;
            processes.push((name, store::open(&url).unwrap().store()));
        }
        // An accepted event has no promise of immediate delivery here: these downstreams answer
        // randomly.
        for source in SOURCES {
            recording.fault(Fault::Downstream {
                source: source.to_owned(),
                what: "random answers".into(),
                broken: true,
            });
        }
        let backoff = Backoff {
            initial_delay: Duration::from_millis(20),
            factor: 2.0,
            max_delay: Duration::from_millis(100),
        };
        let policy = Policy {
            timeout: Duration::from_millis(100),
            max_attempts: 4,
            backoff,
            ..Policy::default()
        };
        let (workers_stop, operators_stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let (accepted, dead) = (Mutex::default(), Mutex::default());
        let (redriven, pruned) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self {
            recording,
            policy,
            processes,
            accepted,
            dead,
            redriven,
            pruned,
            workers_stop,
            operators_stop,
        })
    }

    async fn judge(&self) {
        let mut run = self.recording.judge().await;
        // Judge the run again, with facts that the recording does not know. The length of the
        // leases is judged below: it is not the policy's, so that leases expire.
        let policies = SOURCES.map(|source| (source.to_owned(), self.policy.clone()));
        run.policies = policies.into_iter().collect();
        let mut violations = oracles::judge(&run);
        violations.retain(|violation| !violation.what.contains(" was leased for "));
        for (_, committed) in run.committed() {
            let leased = committed.after.filter(|_| committed.change == Change::Claimed);
            if let Some(due_at) = leased.and_then(|row| row.due_at) {
                let leased = due_at.duration_since(committed.db_time).as_secs_f64();
                let is_one_of = |lease: Duration| {
                    leased <= lease.as_secs_f64() + 0.1
                        && leased + AUDITED_WITHIN.as_secs_f64() >= lease.as_secs_f64()
                };
                assert!(is_one_of(LEASE) || is_one_of(SHORT_LEASE), "a lease of {leased} seconds");
            }
        }
        if !violations.is_empty() {
            let folder = self.recording.failure().keep_run(&run, &violations);
            panic!(
                "{} promises were broken, the first: {}; see {}",
                violations.len(),
                violations[0],
                folder.display()
            );
        }
        let mut seen = BTreeMap::new();
        for (_, committed) in run.committed() {
            let kind = match committed.change {
                Change::Accepted => "accepted",
                Change::Claimed
                    if committed.before.is_some_and(|row| {
                        row.delivery.status == surehook_core::event::Status::Processing
                    }) =>
                {
                    "taken over"
                }
                Change::Claimed => "claimed",
                Change::Settled { .. } => "settled",
                Change::Redriven { .. } => "redriven",
                Change::Discarded => "discarded",
                Change::Pruned => "pruned",
                Change::Erased => "erased",
                Change::Capped => "capped",
                Change::RolledBack | Change::Lost => "taken back",
            };
            *seen.entry(kind).or_insert(0) += 1;
        }
        let refused =
            run.each(|what| matches!(what, What::StaleSettlement { .. }).then_some(())).count();
        println!("{seen:?}, {refused} settlements refused");
        for kind in ["accepted", "claimed", "taken over", "settled", "redriven", "pruned"] {
            assert!(seen.contains_key(kind), "no event was {kind}: {seen:?}");
        }
        assert!(refused > 0, "no settlement was stale");
    }
}

/// Posts batches with keys that other processes post too, some of them with another body.
async fn produce(world: Arc<World>, process: usize, mut random: Rng) {
    let (name, store) = &world.processes[process];
    for _ in 0..BATCHES {
        let mut batch = BTreeMap::new();
        for _ in 0..random.usize(1..8) {
            let (source, key) = (SOURCES[random.usize(..2)], format!("key-{}", random.u32(..KEYS)));
            let body = if random.u8(..10) == 0 { "another" } else { "first" };
            batch.insert((source, key), Bytes::from_static(body.as_bytes()));
        }
        let mut events: Vec<NewEvent> = batch
            .into_iter()
            .map(|((source, key), body)| NewEvent {
                id: EventId::from_uuid(Uuid::now_v7()),
                source: SourceName::parse(source).unwrap(),
                key: IdempotencyKey::parse(key.as_bytes()).unwrap(),
                fingerprint: Fingerprint::of(&body),
                query: Bytes::new(),
                headers: Bytes::new(),
                body,
                lease: None,
            })
            .collect();
        random.shuffle(&mut events);
        let posts: Vec<_> = events.iter().map(|_| world.recording.post_id()).collect();
        for (post, event) in posts.iter().zip(&events) {
            world.recording.record(What::Posted(Posted {
                post: *post,
                producer: format!("producer-{process}"),
                process: name.clone(),
                source: event.source.to_string(),
                key: event.key.to_string(),
                body: event.fingerprint,
                storable: true,
                query: String::new(),
                takes: None,
                headers: BTreeMap::new(),
            }));
        }
        let stored = store.accept(events.clone()).await;
        assert!(
            matches!(stored, Err(StoreError::Conflict(_) | StoreError::Unavailable(_)) | Ok(_)),
            "{stored:?}"
        );
        for (index, (post, event)) in posts.into_iter().zip(&events).enumerate() {
            let Ok(stored) = &stored else {
                world.recording.record(What::Unanswered { post, is_refused: false });
                continue;
            };
            let (id, status, replayed) =
                match resolve(event.id, event.fingerprint, OnKeyReuse::Reject, stored[index]) {
                    Admission::Accepted { id, status } => (id, status, false),
                    Admission::Replayed { id, status } => (id, status, true),
                    Admission::KeyReused { .. } => {
                        world.recording.record(What::Answered {
                            post,
                            status_code: 422,
                            event: None,
                            status: None,
                            replayed: false,
                            problem: None,
                        });
                        continue;
                    }
                };
            world.recording.record(What::Answered {
                post,
                status_code: 202,
                event: Some(id),
                status: Some(status),
                replayed,
                problem: None,
            });
            world.accepted.lock().unwrap().push(id);
        }
    }
}

/// Claims, sends and settles; or releases, or dies, or settles too late.
async fn work(world: Arc<World>, process: usize, mut random: Rng) {
    let (name, store) = &world.processes[process];
    while !world.workers_stop.load(Ordering::Relaxed) {
        let is_slow = random.u8(..5) == 0;
        let lease = if is_slow { SHORT_LEASE } else { LEASE };
        let demands = SOURCES.map(|source| Demand {
            source: SourceName::parse(source).unwrap(),
            limit: random.u32(1..6),
            bytes: random.usize(1..2_000),
            lease,
            max_attempts: world.policy.max_attempts,
        });
        let started = Instant::now();
        let Ok(claims) = store.claim(demands.to_vec()).await else { continue };
        world
            .dead
            .lock()
            .unwrap()
            .extend(claims.dead_lettered.iter().map(|dead_lettered| dead_lettered.event));
        if claims.claimed.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        // An event that the lease may no longer cover is neither sent nor settled. Its lease
        // expires.
        let mut batch: Vec<Settlement> = Vec::new();
        for claim in &claims.claimed {
            if started.elapsed() < lease / 4 {
                batch.extend(send(&world, claim, is_slow, &mut random));
            }
        }
        if is_slow {
            world.recording.fault(Fault::Paused { process: name.clone(), duration: SHORT_LEASE });
            tokio::time::sleep(SHORT_LEASE + Duration::from_millis(random.u64(..100))).await;
        }
        random.shuffle(&mut batch);
        settle(&world, process, batch, &mut random).await;
    }
}

/// Sends one event, or not, and returns its settlement. Returns `None` if its worker, a slow one,
/// dies.
fn send(world: &World, claim: &Claim, is_slow: bool, random: &mut Rng) -> Option<Settlement> {
    let is_last = claim.in_budget.0 >= world.policy.max_attempts;
    let status_code = match random.u8(..20) {
        0 if is_slow => return None,
        1..3 => return Some(claim.settled(Outcome::Release, None)),
        3 => None,
        4..8 => Some(503),
        8..11 => Some(400),
        _ => Some(200),
    };
    let request = world.recording.request_id();
    world.recording.record(What::Received(Received {
        request,
        source: claim.source.to_string(),
        event: claim.event,
        attempt: claim.attempt,
        body: Fingerprint::of(&claim.body),
        query: String::new(),
        headers: surehook::headers::own(claim)
            .into_iter()
            .map(|(name, value)| (name.to_string(), vec![value.as_bytes().to_vec()]))
            .collect(),
    }));
    if let Some(status_code) = status_code {
        world.recording.record(What::Replied { request, status_code, retry_after: None });
    }
    let (outcome, verdict) = match status_code {
        Some(200) => (Outcome::Delivered, Verdict::Delivered),
        Some(400) => (Outcome::DeadLetter(Reason::Permanent), Verdict::Permanent),
        Some(_) if is_last => (Outcome::DeadLetter(Reason::Exhausted), Verdict::Transient),
        Some(_) => (
            Outcome::Retry { after: world.policy.backoff.ceiling(claim.in_budget) },
            Verdict::Transient,
        ),
        None => (Outcome::CutOff, Verdict::Transient),
    };
    let (ended_ago, took) = (Duration::ZERO, Duration::from_millis(1));
    let record =
        AttemptRecord { ended_ago, took, verdict, status_code, error: None, excerpt: Bytes::new() };
    Some(claim.settled(outcome, Some(record)))
}

/// Settles until the outcome is known. Sometimes two processes settle concurrently, and at most one
/// of them may succeed.
async fn settle(world: &World, process: usize, batch: Vec<Settlement>, random: &mut Rng) {
    let events: Vec<EventId> = batch.iter().map(|settlement| settlement.event).collect();
    let (name, store) = &world.processes[process];
    let refused = loop {
        let settled = if random.u8(..4) == 0 {
            let (_, other) = &world.processes[(process + 1) % PROCESSES];
            let mut reversed = batch.clone();
            reversed.reverse();
            let (one, other) = tokio::join!(store.settle(batch.clone()), other.settle(reversed));
            if let (Ok(one), Ok(other)) = (&one, &other) {
                for event in &events {
                    assert!(
                        one.contains(event) || other.contains(event),
                        "{event} was settled twice"
                    );
                }
            }
            // What either process settled is settled.
            match (one, other) {
                (Ok(one), Ok(other)) => {
                    Ok(one.into_iter().filter(|event| other.contains(event)).collect())
                }
                (Ok(_), Err(error)) | (Err(error), _) => Err(error),
            }
        } else {
            store.settle(batch.clone()).await
        };
        let result = if settled.is_ok() { CallResult::Done } else { CallResult::Refused };
        world.recording.record(What::Called {
            process: name.clone(),
            call: "settle",
            result,
            events: events.clone(),
        });
        match settled {
            Ok(refused) => break refused,
            Err(StoreError::Conflict(_) | StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    };
    for settlement in batch {
        let Settlement { event, attempt, outcome, .. } = settlement;
        if refused.contains(&event) {
            world.recording.record(What::StaleSettlement { process: name.clone(), event, attempt });
        } else if matches!(outcome, Outcome::DeadLetter(_)) {
            world.dead.lock().unwrap().push(event);
        }
    }
}

/// Reads events, and redrives dead letters.
async fn operate(world: Arc<World>, process: usize, mut random: Rng) {
    let (_, store) = &world.processes[process];
    while !world.operators_stop.load(Ordering::Relaxed) {
        let event = {
            let accepted = world.accepted.lock().unwrap();
            if accepted.is_empty() { None } else { Some(accepted[random.usize(..accepted.len())]) }
        };
        if let Some(event) = event {
            let asked_at = world.recording.elapsed();
            if let Ok(found) = store.find(event).await {
                let (status, attempts) = (
                    found.as_ref().map(|found| found.status),
                    found.map_or(0, |found| found.attempt),
                );
                world.recording.record(What::Looked { event, asked_at, status, attempts });
            }
        }
        let dead = {
            let mut dead = world.dead.lock().unwrap();
            if dead.is_empty() || random.bool() {
                None
            } else {
                let at = random.usize(..dead.len());
                Some(dead.swap_remove(at))
            }
        };
        if let Some(event) = dead {
            let (_, other) = &world.processes[(process + 1) % PROCESSES];
            // One of the two redrives counts, unless the event is dead-lettered again in between.
            // The oracles check this.
            let (one, other) = tokio::join!(
                store.redrive(event, RedrivenBy::Operator),
                other.redrive(event, RedrivenBy::Operator)
            );
            for redriven in [one, other] {
                world
                    .redriven
                    .fetch_add(u64::from(redriven == Ok(Redriven::Queued)), Ordering::Relaxed);
                assert!(
                    matches!(
                        redriven,
                        Ok(_) | Err(StoreError::Conflict(_) | StoreError::Unavailable(_))
                    ),
                    "{redriven:?}"
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Repeatedly deletes ended events, from the first to the last.
async fn prune(world: Arc<World>, process: usize) {
    let (_, store) = &world.processes[process];
    let everything = Retention {
        delivered: Duration::from_millis(100),
        dead_lettered: Duration::from_millis(100),
    };
    let mut after = None;
    while !world.operators_stop.load(Ordering::Relaxed) {
        if let Ok(pruned) = store.prune(everything, after, 20).await {
            world.pruned.fetch_add(pruned.deleted, Ordering::Relaxed);
            after = pruned.reached.last;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
