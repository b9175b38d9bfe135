//! The cost of core's decisions, in time and allocations. Run it with
//! `cargo bench -p surehook-core --bench decisions`.

use bytes::Bytes;
use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use std::time::Duration;
use surehook_core::admission::Fingerprint;
use surehook_core::event::Outcome;
use surehook_core::id::{BudgetAttempt, EventId, Fence};
use surehook_core::key::places::{Entry, Head, KeyPlaces, Received};
use surehook_core::retry_after::retry_after;
use surehook_core::source::{Policy, SourceName};
use surehook_core::time::Instant;
use surehook_core::verdict::{Reply, decide};
use surehook_core::worker::claims::{Claim, Claims};
use surehook_core::worker::{Action, Input, Settings, Worker};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const START: Instant = Instant::ZERO;

fn source(number: usize) -> SourceName {
    SourceName::parse(&format!("s{number}")).expect("a valid name")
}

fn reply(status_code: u16) -> Reply {
    Reply::Response { status_code, retry_after: None, excerpt: Bytes::new() }
}

/// Claims, deliveries and settlements of 512 events, all accepted by the downstream, for `sources`
/// sources.
#[divan::bench(args = [1, 10, 1000])]
fn a_batch_through_the_worker(bencher: Bencher, sources: usize) {
    const EVENTS: u32 = 512;
    let prepare = || {
        let policy = Policy { concurrency: 512, ..Policy::default() };
        // The clock does not advance here, so nothing may wait for its pace.
        let settings = Settings {
            claim_pace: Duration::ZERO,
            settle_pace: Duration::ZERO,
            ..Settings::default()
        };
        let mut worker = Worker::new(
            START,
            settings,
            (0..sources).map(|number| (source(number), policy.clone())),
        );
        while worker.poll(START).is_some() {}
        let claimed = (0..EVENTS).map(|n| Claim {
            event: EventId::from_uuid(Uuid::from_u128(n.into())),
            source: source(n as usize % sources),
            fence: Fence(1),
            attempt: 1,
            in_budget: BudgetAttempt(1),
            age: Duration::ZERO,
            received_at: jiff::Timestamp::UNIX_EPOCH,
            query: Bytes::new(),
            headers: Bytes::new(),
            body: Bytes::from_static(b"body"),
        });
        (worker, Claims { claimed: claimed.collect(), ..Claims::default() })
    };
    bencher.counter(ItemsCount::new(EVENTS)).with_inputs(prepare).bench_values(
        |(mut worker, claims)| {
            worker.handle(START, Input::Claimed(claims));
            let mut settled = 0;
            loop {
                match worker.poll(START) {
                    Some(Action::Deliver(delivery)) => worker.handle(
                        START,
                        Input::Finished { ticket: delivery.ticket, reply: reply(200) },
                    ),
                    Some(Action::Settle(batch)) => {
                        settled += batch.len();
                        worker.handle(START, Input::Settled);
                    }
                    Some(
                        Action::Claim(_)
                        | Action::Offer { .. }
                        | Action::Breaker(..)
                        | Action::Suspended { .. },
                    ) => {}
                    Some(Action::Abandoned(_) | Action::Done) | None => break,
                }
            }
            assert_eq!(settled, EVENTS as usize);
            worker
        },
    );
}

#[divan::bench(args = [200, 422, 503])]
fn a_verdict_with_its_back_off(bencher: Bencher, status_code: u16) {
    let (policy, event) = (Policy::default(), EventId::from_uuid(Uuid::from_u128(7)));
    bencher
        .with_inputs(|| reply(status_code))
        .bench_values(|reply| -> Outcome { judged(&policy, event, &reply) });
}

fn judged(policy: &Policy, event: EventId, reply: &Reply) -> Outcome {
    decide(reply, black_box(policy), event, 3, BudgetAttempt(3)).1
}

#[divan::bench]
fn a_retry_after_that_is_a_date() -> Option<Duration> {
    retry_after(
        black_box(b"Wed, 25 Nov 2026 00:01:00 GMT"),
        Some(black_box(b"Wed, 25 Nov 2026 00:00:00 GMT")),
    )
}

#[divan::bench(args = [1 << 10, 64 << 10])]
fn a_fingerprint(bencher: Bencher, length: usize) {
    let body = vec![7; length];
    bencher
        .counter(divan::counter::BytesCount::new(length))
        .bench(|| Fingerprint::of(black_box(&body)));
}

/// A key in a header is found without the body.
#[divan::bench]
fn a_key_in_a_header(bencher: Bencher) {
    let places = KeyPlaces::default();
    let head = Head { header: |_: &str| [&b"evt_1"[..]].into_iter(), query: "" };
    bencher.bench(|| black_box(&places).find_in_head(&head));
}

/// A key in a JSON body. Its allocations do not grow with the body.
#[divan::bench(args = [1 << 10, 256 << 10])]
fn a_key_in_a_json_body(bencher: Bencher, length: usize) {
    let entry = Entry::parse("json:/id").expect("a valid place");
    let places = KeyPlaces::new(vec![entry]).expect("a valid list");
    let item = r#"{"amount": 100, "currency": "eur", "note": "a \"quoted\" word", "tags": [1, 2]}"#;
    let items = vec![item; length / item.len()].join(",");
    let body = format!(r#"{{"object": "event", "items": [{items}], "id": "evt_1"}}"#);
    let head = Head { header: |_: &str| std::iter::empty::<&[u8]>(), query: "" };
    let received = Received {
        body: body.as_bytes(),
        fingerprint: Fingerprint::of(body.as_bytes()),
        id: EventId::MIN,
    };
    bencher
        .counter(divan::counter::BytesCount::new(body.len()))
        .bench(|| black_box(&places).find(&head, black_box(received)));
}
