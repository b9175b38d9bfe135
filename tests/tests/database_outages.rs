//! Database outages: the server is down or frozen, cuts connections, loses the response to a
//! commit, or is blocked by a lock of another session. During the outage the intake answers `503`
//! in time and never hangs, refuses nothing permanently, and acknowledges nothing that is not
//! stored. Afterwards the work resumes without intervention.

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use std::time::{Duration, Instant};
use surehook::search::AttemptEntry;
use surehook_core::verdict::Verdict;
use tests::database::Database;
use tests::http::Client;
use tests::postgres::{Cluster, Settings, Stop};
use tests::producer::{Load, Post, Progress, produce, try_once};
use tests::program::Service;
use tests::proxy::Proxy;
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{soak, verdicts, wait};

const LOAD: Load = Load {
    sources: &["github", "stripe", "shopify"],
    posts: 2_000,
    duplicates: 200,
    connections: 32,
};

/// The longest time to a response, whatever the database does: two seconds, plus one for a busy
/// machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_causes_503_and_work_resumes_afterwards() {
    let cluster = Cluster::start(Settings::default());
    for seconds in soak::either(vec![4], vec![10, 60]) {
        let away = Away {
            is: "stopped",
            goes: &|| cluster.stop(Stop::Fast),
            comes_back: &|| cluster.resume(),
        };
        while_away(&cluster, &away, Duration::from_secs(seconds)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_causes_503_and_work_resumes_afterwards() {
    // Connections stay open and new ones are accepted, so only the missing responses show that the
    // server is frozen.
    let cluster = Cluster::start(Settings::default());
    for seconds in soak::either(vec![5], vec![10, 60]) {
        let away =
            Away { is: "frozen", goes: &|| cluster.freeze(), comes_back: &|| cluster.thaw() };
        while_away(&cluster, &away, Duration::from_secs(seconds)).await;
    }
}

/// A kind of outage: how it starts and how it ends.
struct Away<'a> {
    is: &'a str,
    goes: &'a dyn Fn(),
    comes_back: &'a dyn Fn(),
}

async fn while_away(cluster: &Cluster, away: &Away<'_>, time: Duration) {
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&sink.three_impatient_sources("2s", "")).await;
    let progress = Progress::default();
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
    progress.reaches(LOAD.posts / 3).await;

    let outage = async {
        tokio::task::block_in_place(away.goes);
        let answers = posts_during(&run, &service, time).await;
        assert!(
            answers.iter().all(|answer| *answer == 503),
            "the database was {}, and posts were answered {answers:?}",
            away.is
        );
        let health =
            Client::default().get(&service.url("/health")).await.expect("the process runs");
        assert_eq!(health.status_code, 200, "a process without its database stays alive");
        let ready =
            Client::default().get(&service.url("/ready")).await.expect("the process responds");
        assert_eq!(ready.status_code, 503, "a process without its database is not ready");
        tokio::task::block_in_place(away.comes_back);
    };
    run.while_database_is(away.is, outage).await;

    let back = Instant::now();
    service.ready().await;
    assert!(
        back.elapsed() < Duration::from_secs(5),
        "ready {:?} after the database was back",
        back.elapsed()
    );
    producers.await.expect("every post is accepted eventually");
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_connections_cut_at_random_break_no_promise() {
    let cluster = Cluster::start(Settings::default());
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&sink.three_impatient_sources("2s", "")).await;
    let progress = Progress::default();
    let load = Load { posts: soak::either(4_000, 40_000), ..LOAD };
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], load, progress.clone()));
    progress.reaches(1).await;

    let cuts = async {
        let mut cuts = 0;
        while progress.answered() < load.posts * 9 / 10 {
            cluster
                .execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity
                     where usename = 'service-1' order by random() limit 1",
                )
                .await;
            cuts += 1;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        cuts
    };
    let cuts = run.while_database_is("cutting connections", cuts).await;
    assert!(cuts >= 5, "the load ended after only {cuts} cuts");
    producers.await.expect("every post is accepted eventually");
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_accept_response_leaves_exactly_one_event() {
    let (run, sink, service, proxy, _cluster) = behind_a_proxy().await;
    let client = Client::default();
    let mut at_once = 0;
    for number in 0..10 {
        let (key, target) = (format!("key-{number}"), service.target());
        let post =
            Post { producer: "producer", source: "github", key: &key, body: key.clone().into() };
        let cut = run.while_database_is(
            "losing the response to an accept",
            proxy.cut_the_answer_to("insert into events"),
        );
        let ((), answer) = futures::join!(cut, try_once(&run, &client, &target, &post));
        // The intake retries the batch, and finds the event stored under its own id.
        match answer.expect("a response") {
            Ok(accepted) => {
                assert!(!accepted.replayed, "{key}: the first post of a key is not a replay");
                at_once += 1;
            }
            // On a busy machine the retry may not finish in time. Then the producer retries, and
            // the response says that the event is known.
            Err(answer) => {
                assert_eq!(answer.status_code, 503, "{key}: {answer:?}");
                let again = wait::until("the event to be accepted", || async {
                    try_once(&run, &client, &target, &post)
                        .await?
                        .map_err(|answer| format!("{answer:?}"))
                });
                assert!(again.await.replayed, "{key}: the first post had stored the event");
            }
        }
    }
    assert!(at_once >= 5, "only {at_once} of 10 were accepted without being posted again");
    sink.reaches(10).await;
    run.judge().await;
    assert_eq!(sink.taken().len(), 10);
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_settlement_response_repeats_no_delivery() {
    let (run, sink, service, proxy, _cluster) = behind_a_proxy().await;
    // Settling as delivered deletes the row, and settling as a retry keeps it. This load has both.
    sink.behave(Answer::refusing_a_third_at_first);
    for round in 0..5 {
        let load = Load { posts: 60, duplicates: 0, connections: 8, ..LOAD };
        let cut = run.while_database_is(
            "losing the response to a settlement",
            proxy.cut_the_answer_to("-- Settles"),
        );
        let ((), _) = futures::join!(
            cut,
            produce(run.clone(), vec![service.target()], load, Progress::default())
        );
        run.all_ended().await;
        assert_eq!(sink.taken().len(), 60 * (round + 1));
    }
    wait::until(
        "the process to retry a settlement and to log that the retry was refused",
        || async {
            let log = service.log();
            if log.contains("settling failed") && log.contains("settlement refused") {
                Ok(())
            } else {
                Err(log)
            }
        },
    )
    .await;
    let judged = run.judge().await;
    let attempts: usize = judged.events.values().map(|event| event.history.len()).sum();
    assert_eq!(attempts, sink.count(), "an attempt was counted twice, or not at all");
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_claim_response_costs_one_lease_and_one_attempt() {
    let (run, sink, service, proxy, _cluster) = behind_a_proxy().await;
    // Retries need a claim, even if the event was claimed on insert at first.
    sink.behave(Answer::refusing_a_third_at_first);
    let load = Load { posts: 30, duplicates: 0, connections: 4, ..LOAD };
    let cut = run
        .while_database_is("losing the response to a claim", proxy.cut_the_answer_to("-- Claims"));
    let ((), sent) = futures::join!(
        cut,
        produce(run.clone(), vec![service.target()], load, Progress::default())
    );
    let judged = run.judge().await;
    assert_eq!(sink.taken().len(), sent.len());
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
    let is_lost = |entry: &AttemptEntry| entry.verdict == Verdict::Lost;
    let lost: Vec<_> =
        judged.events.values().filter(|event| event.history.iter().any(is_lost)).collect();
    assert!(!lost.is_empty(), "the claim whose response was lost claimed no event");
    for event in lost {
        assert_eq!(
            event.history.iter().filter(|entry| is_lost(entry)).count(),
            1,
            "not exactly one attempt was lost: {event:?}"
        );
        assert_eq!(
            sink.of(event.id.as_uuid()).len(),
            event.history.len() - 1,
            "the lost attempt was sent: {event:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_locks_of_another_session_cause_503_in_time() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&sink.three_impatient_sources("2s", "")).await;
    let Database::Postgres(url) = run.database() else {
        unreachable!("the database is PostgreSQL")
    };
    for table in ["events", "deliveries"] {
        let progress = Progress::default();
        let load = Load { posts: 600, duplicates: 60, ..LOAD };
        let producers =
            tokio::spawn(produce(run.clone(), vec![service.target()], load, progress.clone()));
        progress.reaches(load.posts / 4).await;
        let locked = async {
            let mut connection =
                PgConnection::connect(url).await.expect("the test's server is reachable");
            let mut transaction = connection.begin().await.expect("a transaction begins");
            let lock = AssertSqlSafe(format!("lock table {table} in access exclusive mode"));
            sqlx::raw_sql(lock).execute(&mut *transaction).await.expect("the lock is acquired");
            let answers = posts_during(
                &run,
                &service,
                soak::either(Duration::from_secs(4), Duration::from_secs(30)),
            )
            .await;
            assert!(
                answers.iter().all(|answer| *answer == 503),
                "{table} was locked, and posts were answered {answers:?}"
            );
            transaction.rollback().await.expect("the lock is released");
        };
        run.while_database_is(&format!("locked: {table}"), locked).await;
        producers.await.expect("every post is accepted eventually");
    }
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_locks_of_another_session_delay_only_their_own_events() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(|_| Answer::status(200).after(Duration::from_millis(100))).await;
    // A delivery must not time out on a busy machine: that would repeat an event for another
    // reason.
    let service =
        run.service(&sink.three_impatient_sources("2s", "").replace("\"2s\"", "\"5s\"")).await;
    let Database::Postgres(url) = run.database() else {
        unreachable!("the database is PostgreSQL")
    };
    let progress = Progress::default();
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
    progress.reaches(LOAD.posts / 4).await;

    // Locks the row of every unfinished event. None of these can be settled; new events arrive and
    // are delivered.
    let mut connection = PgConnection::connect(url).await.expect("the test's server is reachable");
    let owed = async {
        let mut transaction = connection.begin().await.expect("a transaction begins");
        let locked = sqlx::query("select 1 from deliveries for update")
            .execute(&mut *transaction)
            .await
            .expect("the locks are acquired");
        assert!(locked.rows_affected() > 0, "no event was unfinished");
        // Shorter than the lease, so that deliveries made before can still be settled.
        let answers = posts_during(&run, &service, Duration::from_secs(4)).await;
        assert!(
            answers.iter().all(|answer| *answer == 202),
            "the intake needs none of the locked rows, but answered {answers:?}"
        );
        transaction.rollback().await.expect("the locks are released");
    };
    run.while_database_is("locked: the rows of unfinished events", owed).await;
    producers.await.expect("every post is accepted eventually");
    run.all_ended().await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");

    // Another session inserts a key and does not commit, so it is not yet known whether the key is
    // new.
    let client = Client::default();
    let target = service.target();
    let post = Post { producer: "producer", source: "github", key: "held", body: "held".into() };
    let held = async {
        let mut transaction = connection.begin().await.expect("a transaction begins");
        let insert = "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
                      select gen_random_uuid(), 'github', 'held', fingerprint, now(), headers, body from events limit 1";
        sqlx::query(insert).execute(&mut *transaction).await.expect("the row can be inserted");
        let held_for = Instant::now();
        while held_for.elapsed() < Duration::from_secs(4) {
            let answer =
                try_once(&run, &client, &target, &post).await.expect("the intake never hangs");
            assert_eq!(
                answer
                    .expect_err("a post is refused while another session inserts its key")
                    .status_code,
                503
            );
        }
        transaction.rollback().await.expect("the insert is rolled back");
    };
    run.while_database_is("locked: a key", held).await;
    let accepted = wait::until("the key to be free", || async {
        try_once(&run, &client, &target, &post).await?.map_err(|answer| format!("{answer:?}"))
    })
    .await;
    assert!(
        !sink.of(accepted.event.as_uuid()).iter().any(|received| received.attempt > 1),
        "the event of the key needed a second attempt"
    );
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_sqlite_file_causes_503_in_time() {
    let run = Recording::begin(Database::sqlite()).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&sink.three_impatient_sources("2s", "")).await;
    let progress = Progress::default();
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
    progress.reaches(LOAD.posts / 4).await;
    let locked = async {
        let mut connection =
            SqliteConnection::connect(&run.database().url()).await.expect("the file can be opened");
        let mut transaction =
            connection.begin_with("begin immediate").await.expect("the lock is acquired");
        let answers = posts_during(
            &run,
            &service,
            soak::either(Duration::from_secs(5), Duration::from_secs(30)),
        )
        .await;
        assert!(
            answers.iter().all(|answer| *answer == 503),
            "the file was locked, and posts were answered {answers:?}"
        );
        sqlx::raw_sql("select 1")
            .execute(&mut *transaction)
            .await
            .expect("the transaction is still open");
        transaction.rollback().await.expect("the lock is released");
    };
    run.while_database_is("locked", locked).await;
    producers.await.expect("every post is accepted eventually");
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

/// Posts new events one after another for this time, and returns the status codes. Asserts that
/// each response came in time, and that each refusal has `Retry-After`.
async fn posts_during(run: &Recording, service: &Service, time: Duration) -> Vec<u16> {
    let client = Client::default();
    let begun = Instant::now();
    let mut answers = Vec::new();
    while begun.elapsed() < time {
        let key = format!("during-{:?}-{}", run.elapsed(), answers.len());
        let post =
            Post { producer: "prober", source: "stripe", key: &key, body: key.clone().into() };
        let asked = Instant::now();
        let answer =
            try_once(run, &client, &service.target(), &post).await.expect("the intake never hangs");
        assert!(asked.elapsed() < ANSWERED_WITHIN, "answered after {:?}", asked.elapsed());
        match answer {
            Ok(_) => answers.push(202),
            Err(answer) => {
                assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
                answers.push(answer.status_code);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    answers
}

/// A process that reaches its database through a proxy, which can cut connections.
async fn behind_a_proxy() -> (Recording, Sink, Service, Proxy, Cluster) {
    let cluster = Cluster::start(Settings::default());
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let proxy = Proxy::start(cluster.port()).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service =
        run.service_by(|url| proxy.through(&url), &sink.three_impatient_sources("2s", "")).await;
    (run, sink, service, proxy, cluster)
}
