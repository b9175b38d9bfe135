//! Far more load than the service can take: requests that cannot wait are answered with `503`,
//! accepted ones are accepted quickly, and memory stays within its limit. Afterwards the service
//! works as before.

use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Post, try_once};
use tests::program::Target;
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, soak};

on_each_database!(overload_is_answered_with_503_and_loses_no_acknowledged_event);

const CONNECTIONS: usize = 96;
const MAX_QUEUED: usize = 16;

/// Refused producers retry after this time, however long `Retry-After` asks them to wait.
const COMES_BACK_AFTER: Duration = Duration::from_millis(20);

const BODY_BYTES: usize = 16 << 10;
const MAX_QUEUED_BYTES: u64 = 1 << 20;

/// The memory by which the process may grow: the queued bodies, several times because they are held
/// as received and as the client of the database sends them; and for each connection, hyper's
/// buffer and the program's data of the request.
const GROWTH_BYTES: u64 = 4 * MAX_QUEUED_BYTES + CONNECTIONS as u64 * (64 << 10) + (16 << 20);

const ACCEPTED_WITHIN: Duration = Duration::from_millis(500);

async fn overload_is_answered_with_503_and_loses_no_acknowledged_event(database: Database) {
    // Two overloads at the same time would affect each other's measurements.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALONE.lock().await;
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| Answer::status(200)).await;
    let service = run.service(&configuration(&sink)).await;
    let target = Arc::new(service.target());
    let client = Client::default();
    post(&run, &client, &target, "warm", 0).await;
    let before = service.usage();

    let time = soak::either(Duration::from_secs(4), Duration::from_secs(30));
    let offered = async {
        let begun = Instant::now();
        let producers = (0..CONNECTIONS).map(|number| {
            let (run, target) = (run.clone(), Arc::clone(&target));
            tokio::spawn(async move {
                let name = format!("producer-{number}");
                let mut answers = Vec::new();
                let client = Client::default();
                while begun.elapsed() < time {
                    answers.push(post(&run, &client, &target, &name, answers.len()).await);
                    tokio::time::sleep(COMES_BACK_AFTER).await;
                }
                answers
            })
        });
        let answers = futures::future::join_all(producers).await;
        (
            answers
                .into_iter()
                .flat_map(|answers| answers.expect("no producer fails"))
                .collect::<Vec<_>>(),
            service.usage(),
        )
    };
    let (answers, during) = run.while_network_is("more load than can be accepted", offered).await;

    let mut accepted: Vec<Duration> =
        answers.iter().filter(|answer| answer.0 == 202).map(|answer| answer.1).collect();
    accepted.sort_unstable();
    let turned_away = answers.iter().filter(|answer| answer.0 == 503).count();
    assert_eq!(
        accepted.len() + turned_away,
        answers.len(),
        "a post was answered with neither 202 nor 503"
    );
    assert!(
        turned_away > answers.len() / 10,
        "only {turned_away} of {} were refused: this was no overload",
        answers.len()
    );
    assert!(accepted.len() > 100, "only {} were accepted", accepted.len());
    let p99 = accepted[accepted.len() * 99 / 100];
    assert!(p99 < ACCEPTED_WITHIN, "the p99 of accepted posts is {p99:?}");
    let growth = during.resident_bytes.saturating_sub(before.resident_bytes);
    assert!(
        growth < GROWTH_BYTES,
        "memory grew by {growth} bytes, and the limit is {GROWTH_BYTES}"
    );
    println!(
        "{} offered, {} accepted, p99 {p99:?}, grown by {} KiB",
        answers.len(),
        accepted.len(),
        growth >> 10
    );

    let over = Instant::now();
    let (status_code, took) = post(&run, &client, &target, "after", 0).await;
    assert_eq!(status_code, 202);
    assert!(over.elapsed() < Duration::from_secs(2), "recovered after {:?}", over.elapsed());
    assert!(took < ACCEPTED_WITHIN, "{took:?}");
    run.judge().await;
}

/// Posts once. Returns the status code and the time to the response.
async fn post(
    run: &Recording,
    client: &Client,
    target: &Target,
    producer: &str,
    number: usize,
) -> (u16, Duration) {
    let key = format!("{producer}-{number}");
    let mut body = key.clone().into_bytes();
    body.resize(BODY_BYTES, b'.');
    let post = Post { producer, source: "github", key: &key, body: body.into() };
    let asked = Instant::now();
    let answer = try_once(run, client, target, &post).await.expect("every post gets a response");
    let took = asked.elapsed();
    match answer {
        Ok(_) => (202, took),
        Err(answer) => {
            assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
            (answer.status_code, took)
        }
    }
}

fn configuration(sink: &Sink) -> String {
    format!(
        "[intake]\nmax_queued = {MAX_QUEUED}\nmax_queued_bytes = {MAX_QUEUED_BYTES}\nmax_body = \"64KiB\"\n{}",
        sink.three_sources()
    )
}
