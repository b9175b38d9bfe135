//! The answers to operators' questions in a store with many events. Each is a bounded number of
//! index probes, so the size of the store makes no difference.
//!
//! With `SUREHOOK_SOAK` set to any duration, the store has five million events.

use serde_json::Value;
use std::time::{Duration, Instant, SystemTime};
use tests::database::Database;
use tests::http::{Answer, Client};
use tests::program::Service;
use tests::{on_each_database, soak};

on_each_database!(questions_are_answered_at_once_however_many_events_are_stored);

/// The sources of the stored events, which take turns.
const SOURCES: [&str; 3] = ["orders", "github", "stripe"];

/// Of this many events, one is a dead letter and one waits for a retry. The others are delivered.
const EACH: u64 = 100;

/// Questions are repeated this often, and the middle of their times counts.
const REPEATED: usize = 9;

/// The limit for each answer. The short form runs beside other tests, with a program that is not
/// optimised. A scan of the whole store would take longer there, too.
fn at_once() -> Duration {
    soak::either(Duration::from_millis(500), Duration::from_millis(60))
}

async fn questions_are_answered_at_once_however_many_events_are_stored(database: Database) {
    let events = soak::either(100_000, 5_000_000);
    surehook::store::open(&database.url())
        .expect("the test's URL is valid")
        .migrate()
        .await
        .expect("an empty database can be migrated");
    fill(&database, events).await;
    let destinations: String = SOURCES
        .iter()
        .map(|source| format!("[sources.{source}]\ndestination = \"http://127.0.0.1:9/\"\n"))
        .collect();
    let service = Service::start(&database.url(), &destinations).await;
    let client = Client::default();
    let ask = async |path: &str| {
        let answer =
            client.get(&service.url(path)).await.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(answer.status_code, 200, "{path}: {:?}", answer.body);
        answer
    };

    let newest = ask("/events?limit=1").await;
    let newest = newest.json()["events"][0]["event_id"].as_str().expect("an id").to_owned();
    let dead = ask("/events?status=dead_lettered&limit=1").await;
    let dead = dead.json()["events"][0]["event_id"].as_str().expect("an id").to_owned();
    // The first event of all has this key.
    let (oldest_key, its_source) = ("key-1", SOURCES[1]);
    let an_hour_ago =
        humantime::format_rfc3339_seconds(SystemTime::now() - Duration::from_hours(1));
    let questions = [
        ("/events".to_owned(), 1),
        ("/events?source=orders".to_owned(), 1),
        ("/events?status=delivered".to_owned(), 1),
        ("/events?status=dead_lettered".to_owned(), 1),
        ("/events?status=retrying".to_owned(), 1),
        ("/events?status=queued".to_owned(), 0),
        ("/events?status=processing&source=github".to_owned(), 0),
        ("/events?reason=permanent".to_owned(), 1),
        ("/events?reason=permanent&source=stripe".to_owned(), 1),
        ("/events?reason=lost".to_owned(), 0),
        ("/events?status_code=422".to_owned(), 1),
        ("/events?status_code=422&source=github".to_owned(), 1),
        ("/events?status_code=404".to_owned(), 0),
        (format!("/events?since={an_hour_ago}"), 1),
        (format!("/events?until={an_hour_ago}"), 1),
        (format!("/events?after={newest}"), 1),
        (format!("/events?after={dead}&status=dead_lettered"), 1),
        (format!("/events?key={oldest_key}&source={its_source}"), 1),
        (format!("/events?key={oldest_key}"), 1),
        ("/events?key=none".to_owned(), 0),
        (format!("/events/{newest}"), 0),
        (format!("/events/{newest}/request"), 0),
        (format!("/events/{newest}/body"), 0),
        ("/summary".to_owned(), 0),
        (format!("/summary?since={an_hour_ago}"), 0),
        ("/summary?source=orders".to_owned(), 0),
        ("/sources".to_owned(), 0),
    ];
    let mut slow = Vec::new();
    for (question, at_least) in questions {
        let mut times = Vec::new();
        for _ in 0..REPEATED {
            let begun = Instant::now();
            let answer = ask(&question).await;
            times.push(begun.elapsed());
            assert!(found(&answer) >= at_least, "{question}: {:?}", answer.body);
        }
        times.sort_unstable();
        let (middle, most) = (times[REPEATED / 2], times[REPEATED - 1]);
        println!("{middle:>12.3?} (at most {most:>9.3?}) of {events} events: {question}");
        if middle > at_once() {
            slow.push(format!("{question}: {middle:?}"));
        }
    }
    assert!(slow.is_empty(), "{slow:#?}");
}

/// The number of events that an answer lists.
fn found(answer: &Answer) -> usize {
    serde_json::from_slice::<Value>(&answer.body)
        .ok()
        .and_then(|answer| answer["events"].as_array().map(Vec::len))
        .unwrap_or(0)
}

/// Stores events of the last days, ten a second, in the order of their ids. All sources are paused,
/// so that the program changes nothing.
async fn fill(database: &Database, events: u64) {
    let paused = SOURCES.map(|source| format!("('{source}')")).join(", ");
    let sql = match database {
        Database::Postgres(_) => format!(
            "create temporary table series as
             select n, (array['{}', '{}', '{}'])[n % 3 + 1] as source, moment,
                 (lpad(to_hex(floor(extract(epoch from moment) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid as id
             from generate_series(1, {events}) as n
             cross join lateral (select now() - ({events} - n) * interval '100 milliseconds' as moment) as at;
             insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
             select id, source, 'key-' || n, decode(repeat('ab', 32), 'hex'), moment, '\\x0d0a', convert_to(repeat('a body ', 40), 'utf8')
             from series order by n;
             insert into deliveries (event_id, due_at, ended_at, attempt, budget_from, fence, source, status, reason)
             select id, case when n % {EACH} = 1 then now() + interval '10 minutes' end, case when n % {EACH} = 0 then moment end,
                 1, 0, 2, source, case n % {EACH} when 0 then 'dead_lettered' else 'retrying' end, case n % {EACH} when 0 then 'permanent' end
             from series where n % {EACH} <= 1 order by n;
             insert into attempts (event_id, attempt, ended_at, took_us, status_code, verdict, error, excerpt)
             select id, 1, moment, 1000, case n % {EACH} when 0 then 422 when 1 then 503 else 200 end,
                 case n % {EACH} when 0 then 'permanent' when 1 then 'transient' else 'delivered' end, null, convert_to('excerpt ' || n % 7, 'utf8')
             from series order by n;
             insert into paused_sources (source, paused_at) select column1, now() from (values {paused}) as named;
             drop table series;
             analyze",
            SOURCES[0], SOURCES[1], SOURCES[2]
        ),
        Database::Sqlite(_) => format!(
            "begin;
             create temporary table series as
             with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < {events})
             select n, case n % 3 when 0 then '{}' when 1 then '{}' else '{}' end as source, unixepoch() * 1000 - ({events} - n) * 100 as moment
             from numbers;
             alter table series add column id blob;
             update series set id = unhex(printf('%012x70008000%012x', moment, n));
             insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
             select id, source, 'key-' || n, zeroblob(32), moment * 1000, x'0d0a', zeroblob(280) from series order by n;
             insert into deliveries (event_id, due_at, ended_at, attempt, budget_from, fence, source, status, reason)
             select id, case when n % {EACH} = 1 then (unixepoch() + 600) * 1000000 end, case when n % {EACH} = 0 then moment * 1000 end,
                 1, 0, 2, source, case n % {EACH} when 0 then 'dead_lettered' else 'retrying' end, case n % {EACH} when 0 then 'permanent' end
             from series where n % {EACH} <= 1 order by n;
             insert into attempts (event_id, attempt, ended_at, took_us, status_code, verdict, error, excerpt)
             select id, 1, moment * 1000, 1000, case n % {EACH} when 0 then 422 when 1 then 503 else 200 end,
                 case n % {EACH} when 0 then 'permanent' when 1 then 'transient' else 'delivered' end, null, cast('excerpt ' || n % 7 as blob)
             from series order by n;
             insert into paused_sources (source, paused_at) select column1, unixepoch() * 1000000 from (values {paused}) as named;
             drop table series;
             commit;",
            SOURCES[0], SOURCES[1], SOURCES[2]
        ),
    };
    database.execute(&sql).await;
}
