//! The work of each source: every source is found once, with its own numbers.

use crate::db::{Db, LEASE, event_of, source};
use std::time::Duration;
use surehook::search::{SourceRecord, SummaryFilter, SummarySize};
use surehook_core::event::{Outcome, Reason};
use surehook_core::id::EventId;

clauses! {
    each_source_is_found_once_with_its_own_work
        => ForgetsSourcesWithoutConfiguration | CountsEveryStatusAsQueued,
    a_cut_count_takes_the_earliest_due_events => CountsWithoutEnd,
    an_event_with_an_expired_lease_is_still_counted_as_processing => CountsEveryStatusAsQueued,
}

impl Db {
    async fn queued(&self, name: &str, key: &str) -> EventId {
        let event = event_of(name, key);
        let id = event.id;
        self.store.accept(vec![event]).await.unwrap();
        id
    }

    /// Accepts an event, and ends its first attempt.
    async fn tried(&self, name: &str, key: &str, outcome: Outcome) {
        self.queued(name, key).await;
        let claim = self.claim_one(name).await;
        self.settle(&claim, outcome).await;
    }
}

fn numbers(record: &SourceRecord) -> (&str, [u32; 4]) {
    let counts = [record.queued, record.processing, record.retrying, record.dead_lettered];
    (record.source.as_str(), counts)
}

async fn each_source_is_found_once_with_its_own_work(db: Db) {
    let dead = Outcome::DeadLetter(Reason::Permanent);
    for (name, key) in [("d3", "1"), ("d2", "1"), ("d1", "1"), ("d2", "2"), ("m", "1")] {
        db.tried(name, key, dead).await;
    }
    db.tried("w1", "1", Outcome::Retry { after: Duration::from_secs(100) }).await;
    db.queued("w2", "1").await;
    db.claim_one("w2").await;
    for (name, key) in [("m", "2"), ("w2", "2"), ("w3", "1"), ("w3", "2")] {
        db.queued(name, key).await;
    }
    for name in ["p", "w2"] {
        db.store.pause(source(name), true).await.unwrap();
    }
    let mut expected = vec![
        ("d1", [0, 0, 0, 1]),
        ("d2", [0, 0, 0, 2]),
        ("d3", [0, 0, 0, 1]),
        ("m", [1, 0, 0, 1]),
        ("p", [0, 0, 0, 0]),
        ("w1", [0, 0, 1, 0]),
        ("w2", [1, 1, 0, 0]),
        ("w3", [2, 0, 0, 0]),
    ];
    let records = db.store.sources(vec![], 10).await.unwrap();
    assert_eq!(records.iter().map(numbers).collect::<Vec<_>>(), expected);
    let named = |is: fn(&SourceRecord) -> bool| {
        let found = records.iter().filter(|record| is(record));
        found.map(|record| record.source.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(named(|record| record.paused_since.is_some()), ["p", "w2"]);
    assert_eq!(named(|record| record.behind.is_some()), ["m", "w2", "w3"]);
    assert_eq!(named(|record| record.is_partial), [""; 0]);

    let configured = ["z", "w3", "d1"].map(source).to_vec();
    let records = db.store.sources(configured, 10).await.unwrap();
    expected.push(("z", [0, 0, 0, 0]));
    assert_eq!(records.iter().map(numbers).collect::<Vec<_>>(), expected);

    let all = SummaryFilter { source: None, since: None };
    let summary = db.store.summary(all, SummarySize { looks: 100, groups: 100 }).await.unwrap();
    let groups = summary.groups.iter().map(|group| (group.source.as_str(), group.events));
    let mut groups: Vec<_> = groups.collect();
    groups.sort_unstable();
    assert_eq!(groups, [("d1", 1), ("d2", 2), ("d3", 1), ("m", 1), ("w1", 1)]);
}

async fn a_cut_count_takes_the_earliest_due_events(db: Db) {
    db.tried("a", "last", Outcome::Retry { after: Duration::from_secs(1000) }).await;
    db.queued("a", "processing").await;
    db.claim_one("a").await;
    db.tried("a", "first", Outcome::Retry { after: Duration::ZERO }).await;
    db.queued("a", "second").await;
    for (count_to, counts, is_partial) in
        [(1, [0, 1, 1, 0], true), (2, [1, 1, 2, 0], true), (3, [1, 1, 2, 0], false)]
    {
        let records = db.store.sources(vec![], count_to).await.unwrap();
        assert_eq!(numbers(&records[0]), ("a", counts), "{count_to}");
        assert_eq!(records[0].is_partial, is_partial, "{count_to}");
    }
}

async fn an_event_with_an_expired_lease_is_still_counted_as_processing(db: Db) {
    db.queued("a", "held").await;
    db.claim_one("a").await;
    db.queued("a", "expired").await;
    let expired = db.claim_one("a").await;
    db.make_due(expired.event, LEASE + Duration::from_secs(10)).await;
    let records = db.store.sources(vec![], 10).await.unwrap();
    assert_eq!(numbers(&records[0]), ("a", [0, 2, 0, 0]));
    let behind = records[0].behind.unwrap();
    assert!((10..=20).contains(&behind.as_secs()), "{behind:?}");
}
