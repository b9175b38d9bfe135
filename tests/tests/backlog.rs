//! The cost of a deep backlog, of a transaction that is left open, and of operators who redrive and
//! prune during the work. None of them slows the work much, and none of them deadlocks.
//!
//! With `SUREHOOK_SOAK` set to any duration, a million rows are due, a million are in the future,
//! and the transaction stays open for a minute.

use bytes::Bytes;
use futures::future::join_all;
use sqlx::{Connection, PgConnection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use surehook::ids::SystemIds;
use surehook::ports::{Ids, NewEvent, Redriven, Retention, Store};
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::event::{Outcome, Reason, RedrivenBy};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{AttemptRecord, Claim, Demand};
use tests::database::Database;
use tests::postgres::{Cluster, Settings};
use tests::{on_each_database, soak};

on_each_database!(
    claim_time_does_not_grow_with_the_backlog,
    redriving_and_pruning_do_not_deadlock_with_other_work,
);

/// Rows of one claim.
const BATCH: u32 = 100;
const LEASE: Duration = Duration::from_hours(1);
/// Claims measured for each median.
const CLAIMS: usize = 60;

async fn claim_time_does_not_grow_with_the_backlog(database: Database) {
    let rows = soak::either(100_000, 1_000_000);
    let shallow = match database {
        Database::Sqlite(_) => Database::sqlite(),
        Database::Postgres(_) => Database::postgres().await,
    };
    fill(&shallow, CLAIMS * BATCH as usize, 0).await;
    fill(&database, rows, rows).await;
    let (shallow_store, deep_store) = (open(&shallow), open(&database));
    let (mut shallow_times, mut deep_times) = (Vec::new(), Vec::new());
    // Alternate, so that both are measured under the same load of the machine.
    for _ in 0..CLAIMS {
        shallow_times.push(timed_claim(&*shallow_store).await);
        deep_times.push(timed_claim(&*deep_store).await);
    }
    let (shallow, deep) = (median(&mut shallow_times), median(&mut deep_times));
    println!(
        "claiming {BATCH}: {shallow:?} from a shallow backlog, {deep:?} with {rows} due and {rows} in the future"
    );
    // 1.5 times the shallow figure, plus the jitter of a busy machine.
    let most = shallow * 3 / 2 + Duration::from_millis(2);
    assert!(
        deep < most,
        "claiming {BATCH} takes {deep:?} with {rows} due, and {shallow:?} with few"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_open_transaction_slows_work_by_less_than_a_fifth() {
    let cluster = Cluster::start(Settings::default());
    let (kept, left) = (
        Database::Postgres(cluster.create_database().await),
        Database::Postgres(cluster.create_database().await),
    );
    let (kept_store, left_store) = (migrated(&kept).await, migrated(&left).await);
    let Database::Postgres(url) = &left else { unreachable!("the database is PostgreSQL") };
    let mut idle = PgConnection::connect(url).await.expect("the test's server is reachable");
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from events")
        .execute(&mut idle)
        .await
        .expect("the transaction takes a snapshot");

    let time = soak::either(Duration::from_secs(16), Duration::from_mins(1));
    let (mut kept_times, mut left_times, begun) = (Vec::new(), Vec::new(), Instant::now());
    while begun.elapsed() < time {
        kept_times.push(timed_life(&*kept_store).await);
        left_times.push(timed_life(&*left_store).await);
    }
    let rounds = kept_times.len();
    // Dead rows accumulate, so their effect is greatest in the last quarter.
    let (kept, left) = (
        median(&mut kept_times.split_off(rounds * 3 / 4)),
        median(&mut left_times.split_off(rounds * 3 / 4)),
    );
    println!(
        "accepting, claiming and settling {BATCH} events: {kept:?}, and {left:?} after a transaction was open for {rounds} rounds, {time:?}"
    );
    drop(idle);
    assert!(
        left < kept * 6 / 5 + Duration::from_millis(1),
        "{left:?} beside an open transaction, {kept:?} without"
    );
}

async fn redriving_and_pruning_do_not_deadlock_with_other_work(database: Database) {
    let time = soak::either(Duration::from_secs(4), Duration::from_mins(1));
    let store = migrated(&database).await;
    let over = Arc::new(AtomicBool::new(false));
    let goes_on = || !over.load(Ordering::Relaxed);
    // Two tasks work and dead-letter every other batch, two redrive these dead letters, and two
    // prune.
    let dead: tokio::sync::Mutex<Vec<EventId>> = tokio::sync::Mutex::default();
    let work = async |number: usize| {
        let mut lives = 0;
        while goes_on() {
            accept(&*store).await;
            let claimed = claim(&*store).await;
            let events: Vec<EventId> = claimed.iter().map(|claim| claim.event).collect();
            if (lives + number).is_multiple_of(2) {
                settle(&*store, claimed, Outcome::DeadLetter(Reason::Permanent)).await;
                dead.lock().await.extend(events);
            } else {
                settle(&*store, claimed, Outcome::Delivered).await;
            }
            lives += 1;
        }
        lives
    };
    let redrive = async || {
        let mut redriven = 0;
        while goes_on() {
            let next = dead.lock().await.pop();
            let Some(event) = next else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let done = store.redrive(event, RedrivenBy::Operator).await.expect("no deadlock");
            assert!(matches!(done, Redriven::Queued | Redriven::NotFound), "{done:?}");
            redriven += usize::from(done == Redriven::Queued);
        }
        redriven
    };
    let prune = async || {
        let (mut pruned, mut after) = (0, None);
        let retention = Retention {
            delivered: Duration::from_millis(500),
            dead_lettered: Duration::from_millis(500),
        };
        while goes_on() {
            let step = store.prune(retention, after, 500).await.expect("no deadlock");
            pruned += step.deleted;
            after = step.reached.last;
        }
        pruned
    };
    let stop = async {
        tokio::time::sleep(time).await;
        over.store(true, Ordering::Relaxed);
    };
    let (lives, redriven, pruned, ()) = futures::join!(
        join_all([work(0), work(1)]),
        join_all([redrive(), redrive()]),
        join_all([prune(), prune()]),
        stop
    );
    println!("{lives:?} batches, {redriven:?} redriven, {pruned:?} pruned");
    assert!(lives.iter().all(|lives| *lives > 2), "the work stopped: {lives:?}");
    assert!(
        redriven.iter().sum::<usize>() > 0 && pruned.iter().sum::<u64>() > 0,
        "nothing was redriven, or nothing was pruned"
    );
    if let Database::Postgres(url) = &database {
        let mut connection =
            PgConnection::connect(url).await.expect("the test's server is reachable");
        let deadlocks: i64 = sqlx::query_scalar(
            "select deadlocks from pg_stat_database where datname = current_database()",
        )
        .fetch_one(&mut connection)
        .await
        .expect("the server counts its deadlocks");
        assert_eq!(deadlocks, 0);
    }
}

/// Inserts events and their deliveries: `due` of them have been due for an hour, `future` are due
/// in an hour. The ids are in the order of time, as UUIDv7 are.
async fn fill(database: &Database, due: usize, future: usize) {
    migrated(database).await;
    match database {
        Database::Postgres(_) => {
            let sql = format!(
                "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
                 select ('01930000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'orders', 'key-' || n, decode(repeat('ab', 32), 'hex'), now() - interval '1 day', '', 'body'
                 from generate_series(1, {due} + {future}) as n;
                 insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
                 select id, now() + case when substr(idempotency_key, 5)::int <= {due} then interval '-1 hour' else interval '1 hour' end
                        + substr(idempotency_key, 5)::int * interval '1 millisecond' * case when substr(idempotency_key, 5)::int <= {due} then 0.001 else 1 end,
                        0, 0, 0, source, 'queued'
                 from events;
                 analyze"
            );
            database.execute(&sql).await;
        }
        Database::Sqlite(_) => {
            let sql = format!(
                "begin;
                 insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
                 with recursive series(n) as (select 1 union all select n + 1 from series where n < {due} + {future})
                 select unhex(printf('01930000000070008000%012x', n)), 'orders', 'key-' || n, zeroblob(32), (unixepoch() - 86400) * 1000000, x'', x'00' from series;
                 insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
                 select id, (unixepoch() + case when cast(substr(idempotency_key, 5) as integer) <= {due} then -3600 else 3600 end) * 1000000
                        + cast(substr(idempotency_key, 5) as integer), 0, 0, 0, source, 'queued'
                 from events;
                 commit;"
            );
            database.execute(&sql).await;
        }
    }
}

async fn migrated(database: &Database) -> Arc<dyn Store> {
    surehook::store::open(&database.url())
        .expect("the test's URL is valid")
        .migrate()
        .await
        .expect("an empty database can be migrated");
    open(database)
}

fn open(database: &Database) -> Arc<dyn Store> {
    surehook::store::open(&database.url()).expect("the test's URL is valid").store()
}

async fn timed_claim(store: &dyn Store) -> Duration {
    let begun = Instant::now();
    let claimed = claim(store).await;
    let took = begun.elapsed();
    assert_eq!(claimed.len(), BATCH as usize, "more events are due than one claim takes");
    took
}

/// Accepts, claims and settles one batch of events.
async fn timed_life(store: &dyn Store) -> Duration {
    let begun = Instant::now();
    accept(store).await;
    let claimed = claim(store).await;
    settle(store, claimed, Outcome::Delivered).await;
    begun.elapsed()
}

async fn accept(store: &dyn Store) {
    let source = SourceName::parse("orders").expect("a valid source name");
    let event = |_| {
        let id = SystemIds.fresh();
        NewEvent {
            id,
            source: source.clone(),
            key: IdempotencyKey::parse(id.to_string().as_bytes()).expect("a valid key"),
            fingerprint: Fingerprint::of(b"body"),
            query: Bytes::new(),
            headers: Bytes::new(),
            body: Bytes::from_static(b"body"),
            lease: None,
        }
    };
    let stored =
        store.accept((0..BATCH).map(event).collect()).await.expect("the database is reachable");
    assert!(stored.iter().all(|stored| *stored == Stored::Inserted));
}

async fn claim(store: &dyn Store) -> Vec<Claim> {
    let source = SourceName::parse("orders").expect("a valid source name");
    let demand = Demand { source, limit: BATCH, bytes: usize::MAX, lease: LEASE, max_attempts: 5 };
    store.claim(vec![demand]).await.expect("the database is reachable").claimed
}

async fn settle(store: &dyn Store, claims: Vec<Claim>, outcome: Outcome) {
    let verdict =
        if outcome == Outcome::Delivered { Verdict::Delivered } else { Verdict::Permanent };
    let record = AttemptRecord {
        ended_ago: Duration::ZERO,
        took: Duration::from_millis(1),
        verdict,
        status_code: Some(200),
        error: None,
        excerpt: Bytes::new(),
    };
    let settlements =
        claims.iter().map(|claim| claim.settled(outcome, Some(record.clone()))).collect();
    let refused = store.settle(settlements).await.expect("the database is reachable");
    assert!(
        refused.is_empty(),
        "a settlement was refused, although no other worker has these claims"
    );
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
