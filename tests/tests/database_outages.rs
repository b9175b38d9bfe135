//! The database goes away, cuts connections, loses the answer to a commit, or is held up by somebody's lock. Meanwhile
//! the intake answers `503` in time and never hangs, refuses nothing for good, and acknowledges nothing that is not
//! stored. Afterwards everything resumes by itself.

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use std::time::{Duration, Instant};
use surehook::ports::AttemptEntry;
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

/// A post is answered within this time, whatever the database does: two seconds, and one for what a busy machine adds.
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
    // Connections to it stay open, and new ones are taken: nothing tells that it is away but its silence.
    let cluster = Cluster::start(Settings::default());
    for seconds in soak::either(vec![5], vec![10, 60]) {
        let away = Away {
            is: "standing still",
            goes: &|| cluster.freeze(),
            comes_back: &|| cluster.thaw(),
        };
        while_away(&cluster, &away, Duration::from_secs(seconds)).await;
    }
}

/// A way for a server to be away, and to come back.
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
        assert_eq!(health.status_code, 200, "a process without its database lives");
        let ready =
            Client::default().get(&service.url("/ready")).await.expect("the process answers");
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
    producers.await.expect("every post is accepted at last");
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
    assert!(cuts >= 5, "the load was over after {cuts} cuts");
    producers.await.expect("every post is accepted at last");
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
            "losing the answer to an accept",
            proxy.cut_the_answer_to("insert into events"),
        );
        let ((), answer) = futures::join!(cut, try_once(&run, &client, &target, &post));
        // The batch is asked for again, and is found to be there under its own id.
        match answer.expect("an answer") {
            Ok(accepted) => {
                assert!(!accepted.replayed, "{key}: nobody posted it before");
                at_once += 1;
            }
            // Too busy a machine to ask again in time: then the producer does, and hears that it is known.
            Err(answer) => {
                assert_eq!(answer.status_code, 503, "{key}: {answer:?}");
                let again = wait::until("the event to be accepted", || async {
                    try_once(&run, &client, &target, &post)
                        .await?
                        .map_err(|answer| format!("{answer:?}"))
                });
                assert!(again.await.replayed, "{key}: it was stored by the first");
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
    // Some are settled as delivered, which leaves no row behind, and some as to be tried again, which leaves one.
    sink.behave(Answer::refusing_a_third_at_first);
    for round in 0..5 {
        let load = Load { posts: 60, duplicates: 0, connections: 8, ..LOAD };
        let cut = run.while_database_is(
            "losing the answer to a settlement",
            proxy.cut_the_answer_to("-- Settles"),
        );
        let ((), _) = futures::join!(
            cut,
            produce(run.clone(), vec![service.target()], load, Progress::default())
        );
        run.all_ended().await;
        assert_eq!(sink.taken().len(), 60 * (round + 1));
    }
    wait::until("the process to have asked again, and to have heard that it was done", || async {
        let log = service.log();
        if log.contains("settling failed") && log.contains("settlement refused") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    let judged = run.judge().await;
    let attempts: usize = judged.events.values().map(|event| event.history.len()).sum();
    assert_eq!(attempts, sink.count(), "an attempt was counted twice, or not at all");
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_claim_response_costs_one_lease_and_one_attempt() {
    let (run, sink, service, proxy, _cluster) = behind_a_proxy().await;
    // What is tried again is claimed, even if it was claimed as it was stored at first.
    sink.behave(Answer::refusing_a_third_at_first);
    let load = Load { posts: 30, duplicates: 0, connections: 4, ..LOAD };
    let cut =
        run.while_database_is("losing the answer to a claim", proxy.cut_the_answer_to("-- Claims"));
    let ((), sent) = futures::join!(
        cut,
        produce(run.clone(), vec![service.target()], load, Progress::default())
    );
    let judged = run.judge().await;
    assert_eq!(sink.taken().len(), sent.len());
    assert!(
        sink.taken().values().all(|&times| times == 1),
        "what was claimed and not heard of was never sent"
    );
    let is_lost = |entry: &AttemptEntry| entry.verdict == Verdict::Lost;
    let lost: Vec<_> =
        judged.events.values().filter(|event| event.history.iter().any(is_lost)).collect();
    assert!(!lost.is_empty(), "the claim took nothing");
    for event in lost {
        assert_eq!(
            event.history.iter().filter(|entry| is_lost(entry)).count(),
            1,
            "one lease and one attempt: {event:?}"
        );
        assert_eq!(
            sink.of(event.id.as_uuid()).len(),
            event.history.len() - 1,
            "the lost attempt was never sent: {event:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_locks_of_another_session_cause_503_in_time() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let service = run.service(&sink.three_impatient_sources("2s", "")).await;
    let Database::Postgres(url) = run.database() else { unreachable!("it was asked for") };
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
            sqlx::raw_sql(lock).execute(&mut *transaction).await.expect("the lock is given");
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
            transaction.rollback().await.expect("the lock is given back");
        };
        run.while_database_is(&format!("locked: {table}"), locked).await;
        producers.await.expect("every post is accepted at last");
    }
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_locks_of_another_session_delay_only_their_own_events() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(|_| Answer::status(200).after(Duration::from_millis(100))).await;
    // A busy machine must not make a time-out of it, which would repeat an event for a reason of its own.
    let service =
        run.service(&sink.three_impatient_sources("2s", "").replace("\"2s\"", "\"5s\"")).await;
    let Database::Postgres(url) = run.database() else { unreachable!("it was asked for") };
    let progress = Progress::default();
    let producers =
        tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
    progress.reaches(LOAD.posts / 4).await;

    // Every delivery that is owed: none can be settled, new ones come in and are delivered.
    let mut connection = PgConnection::connect(url).await.expect("the test's server is reachable");
    let owed = async {
        let mut transaction = connection.begin().await.expect("a transaction begins");
        let locked = sqlx::query("select 1 from deliveries for update")
            .execute(&mut *transaction)
            .await
            .expect("the locks are given");
        assert!(locked.rows_affected() > 0, "nothing was owed");
        // Shorter than the lease, so that what was delivered can still be written down.
        let answers = posts_during(&run, &service, Duration::from_secs(4)).await;
        assert!(
            answers.iter().all(|answer| *answer == 202),
            "the intake needs no row that is locked, and answered {answers:?}"
        );
        transaction.rollback().await.expect("the locks are given back");
    };
    run.while_database_is("locked: the rows of what is owed", owed).await;
    producers.await.expect("every post is accepted at last");
    run.all_ended().await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");

    // A key that somebody inserts and does not commit: whether it is new is not known until then.
    let client = Client::default();
    let target = service.target();
    let post = Post { producer: "producer", source: "github", key: "held", body: "held".into() };
    let held = async {
        let mut transaction = connection.begin().await.expect("a transaction begins");
        let insert = "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
                      select gen_random_uuid(), 'github', 'held', fingerprint, now(), headers, body from events limit 1";
        sqlx::query(insert).execute(&mut *transaction).await.expect("a row like others");
        let held_for = Instant::now();
        while held_for.elapsed() < Duration::from_secs(4) {
            let answer =
                try_once(&run, &client, &target, &post).await.expect("the intake never hangs");
            assert_eq!(
                answer.expect_err("nobody knows yet whether the key is new").status_code,
                503
            );
        }
        transaction.rollback().await.expect("the row is taken back");
    };
    run.while_database_is("locked: a key", held).await;
    let accepted = wait::until("the key to be free", || async {
        try_once(&run, &client, &target, &post).await?.map_err(|answer| format!("{answer:?}"))
    })
    .await;
    assert!(
        !sink.of(accepted.event.as_uuid()).iter().any(|received| received.attempt > 1),
        "one key, one event"
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
            connection.begin_with("begin immediate").await.expect("the lock is given");
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
            .expect("the transaction is still there");
        transaction.rollback().await.expect("the lock is given back");
    };
    run.while_database_is("locked", locked).await;
    producers.await.expect("every post is accepted at last");
    let judged = run.judge().await;
    verdicts::every_post_is_answered(&judged, ANSWERED_WITHIN);
}

/// Posts new events one by one for so long. The status codes; each came in time, and each asks to come back.
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

/// A process whose way to the database can be cut.
async fn behind_a_proxy() -> (Recording, Sink, Service, Proxy, Cluster) {
    let cluster = Cluster::start(Settings::default());
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let proxy = Proxy::start(cluster.port()).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service =
        run.service_by(|url| proxy.through(&url), &sink.three_impatient_sources("2s", "")).await;
    (run, sink, service, proxy, cluster)
}
