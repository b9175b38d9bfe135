//! The database goes away, cuts connections, loses the answer to a commit, or is held up by somebody's lock. Meanwhile
//! the intake answers `503` in time and never hangs, refuses nothing for good, and acknowledges nothing that is not
//! stored. Afterwards everything resumes by itself.

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::http::Client;
use tests::postgres::{Cluster, Settings, Stop};
use tests::producer::{Load, Post, Progress, produce, try_once};
use tests::program::Service;
use tests::proxy::Proxy;
use tests::recording::Recording;
use tests::sink::{Answer, Received, Sink};
use tests::soak;

const LOAD: Load = Load { sources: &["github", "stripe", "shopify"], posts: 2_000, duplicates: 200, connections: 32 };

/// A post is answered within this time, whatever the database does: two seconds, and what a busy machine adds.
const ANSWERED_WITHIN: Duration = Duration::from_millis(2_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_is_answered_with_503_and_work_resumes_when_it_is_back() {
    let cluster = Cluster::start(Settings::default());
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let sink = run.sink(behaviour).await;
    let service = run.service(&configuration(&sink)).await;
    let progress = Progress::default();
    let producers = tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
    progress.reaches(LOAD.posts / 3).await;

    let away_for = soak::either(Duration::from_secs(4), Duration::from_secs(60));
    let outage = async {
        cluster.stop(Stop::Fast);
        let answers = posts_during(&run, &service, away_for).await;
        assert!(answers.iter().all(|answer| *answer == 503), "the database was away, and posts were answered {answers:?}");
        let health = Client::default().get(&service.url("/health")).await.expect("the process runs");
        assert_eq!(health.status_code, 200, "a process without its database lives");
        let ready = Client::default().get(&service.url("/ready")).await.expect("the process answers");
        assert_eq!(ready.status_code, 503, "a process without its database is not ready");
        cluster.resume();
    };
    run.while_database_is("stopped", outage).await;

    let back = Instant::now();
    service.ready().await;
    assert!(back.elapsed() < Duration::from_secs(5), "ready {:?} after the database was back", back.elapsed());
    producers.await.expect("every post is accepted at last");
    run.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_at_random_cost_nothing() {
    let cluster = Cluster::start(Settings::default());
    let run = Recording::begin(Database::Postgres(cluster.create_database().await)).await;
    let sink = run.sink(behaviour).await;
    let service = run.service(&configuration(&sink)).await;
    let progress = Progress::default();
    let load = Load { posts: soak::either(4_000, 40_000), ..LOAD };
    let producers = tokio::spawn(produce(run.clone(), vec![service.target()], load, progress.clone()));
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
    run.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_an_accept_makes_one_event_and_says_so() {
    let (run, sink, service, proxy, _cluster) = behind_a_proxy().await;
    let client = Client::default();
    for number in 0..10 {
        let (key, target) = (format!("key-{number}"), service.target());
        let post = Post { producer: "producer", source: "github", key: &key, body: key.clone().into() };
        let cut = run.while_database_is("losing the answer to an accept", proxy.cut_the_answer_to("insert into events"));
        let (answer, ()) = futures::join!(try_once(&run, &client, &target, &post), cut);
        // The batch is asked for again, and is found to be there under its own id.
        let accepted = answer.expect("an answer").unwrap_or_else(|answer| panic!("{key}: {answer:?}"));
        assert!(!accepted.replayed, "{key}: nobody posted it before");
    }
    sink.reaches(10).await;
    run.judge().await;
    assert_eq!(sink.taken().len(), 10);
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_a_settlement_does_not_deliver_again() {
    let (run, sink, service, proxy, _cluster) = behind_a_proxy().await;
    for round in 0..5 {
        let load = Load { posts: 60, duplicates: 0, connections: 8, ..LOAD };
        let cut = run.while_database_is("losing the answer to a settlement", proxy.cut_the_answer_to("-- Settles"));
        let (_, ()) = futures::join!(produce(run.clone(), vec![service.target()], load, Progress::default()), cut);
        run.all_ended().await;
        assert_eq!(sink.taken().len(), 60 * (round + 1));
    }
    run.judge().await;
    assert!(sink.taken().values().all(|&times| times == 1), "an event was delivered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_a_claim_costs_one_lease_and_its_attempt() {
    let (run, sink, service, proxy, _cluster) = behind_a_proxy().await;
    let load = Load { posts: 30, duplicates: 0, connections: 4, ..LOAD };
    // Claims that find nothing come by all the time; the one that matters is one with something in it.
    let cut = run.while_database_is("losing the answer to a claim", async {
        for _ in 0..3 {
            proxy.cut_the_answer_to("-- Claims").await;
        }
    });
    let (sent, ()) = futures::join!(produce(run.clone(), vec![service.target()], load, Progress::default()), cut);
    run.judge().await;
    assert_eq!(sink.taken().len(), sent.len());
    assert!(sink.taken().values().all(|&times| times == 1), "what was claimed and not heard of was never sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebodys_lock_on_the_tables_is_answered_with_503_in_time() {
    let run = Recording::begin(Database::postgres().await).await;
    let sink = run.sink(behaviour).await;
    let service = run.service(&configuration(&sink)).await;
    let Database::Postgres(url) = run.database() else { unreachable!("it was asked for") };
    for table in ["events", "deliveries"] {
        let progress = Progress::default();
        let load = Load { posts: 600, duplicates: 60, ..LOAD };
        let producers = tokio::spawn(produce(run.clone(), vec![service.target()], load, progress.clone()));
        progress.reaches(load.posts / 4).await;
        let locked = async {
            let mut connection = PgConnection::connect(url).await.expect("the test's server is reachable");
            let mut transaction = connection.begin().await.expect("a transaction begins");
            let lock = AssertSqlSafe(format!("lock table {table} in access exclusive mode"));
            sqlx::raw_sql(lock).execute(&mut *transaction).await.expect("the lock is given");
            let answers = posts_during(&run, &service, soak::either(Duration::from_secs(4), Duration::from_secs(30))).await;
            assert!(answers.iter().all(|answer| *answer == 503), "{table} was locked, and posts were answered {answers:?}");
            transaction.rollback().await.expect("the lock is given back");
        };
        run.while_database_is(&format!("locked: {table}"), locked).await;
        producers.await.expect("every post is accepted at last");
    }
    run.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_that_another_process_holds_is_answered_with_503_in_time() {
    let run = Recording::begin(Database::sqlite()).await;
    let sink = run.sink(behaviour).await;
    let service = run.service(&configuration(&sink)).await;
    let progress = Progress::default();
    let producers = tokio::spawn(produce(run.clone(), vec![service.target()], LOAD, progress.clone()));
    progress.reaches(LOAD.posts / 4).await;
    let locked = async {
        let mut connection = SqliteConnection::connect(&run.database().url()).await.expect("the file can be opened");
        let mut transaction = connection.begin_with("begin immediate").await.expect("the lock is given");
        let answers = posts_during(&run, &service, soak::either(Duration::from_secs(5), Duration::from_secs(30))).await;
        assert!(answers.iter().all(|answer| *answer == 503), "the file was locked, and posts were answered {answers:?}");
        sqlx::raw_sql("select 1").execute(&mut *transaction).await.expect("the transaction is still there");
        transaction.rollback().await.expect("the lock is given back");
    };
    run.while_database_is("locked", locked).await;
    producers.await.expect("every post is accepted at last");
    run.judge().await;
}

/// Posts new events one by one for so long. The status codes; each came in time, and each asks to come back.
async fn posts_during(run: &Recording, service: &Service, time: Duration) -> Vec<u16> {
    let client = Client::default();
    let begun = Instant::now();
    let mut answers = Vec::new();
    while begun.elapsed() < time {
        let key = format!("during-{:?}-{}", run.elapsed(), answers.len());
        let post = Post { producer: "prober", source: "stripe", key: &key, body: key.clone().into() };
        let asked = Instant::now();
        let answer = try_once(run, &client, &service.target(), &post).await.expect("the intake never hangs");
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
    let service = run.service_by(|url| proxy.through(&url), &configuration(&sink)).await;
    (run, sink, service, proxy, cluster)
}

fn behaviour(received: &Received) -> Answer {
    Answer::status(if received.is_one_of_a_third_of_first_attempts() { 503 } else { 200 })
}

fn configuration(sink: &Sink) -> String {
    format!(
        r#"
        [defaults]
        timeout = "500ms"
        initial_delay = "50ms"
        max_delay = "200ms"
        {}
        "#,
        sink.three_sources()
    )
}
