//! Summaries: the failures of undelivered events in groups.

use crate::db::{Db, event_of, record, source};
use bytes::Bytes;
use std::time::Duration;
use surehook::ports::Redriven;
use surehook::search::{BEGINNING_BYTES, FailureGroup, FailureSummary, SummaryFilter, SummarySize};
use surehook_core::admission::Stored;
use surehook_core::event::{Outcome, Reason};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::verdict::{DeliveryError, Verdict};
use surehook_core::worker::claims::AttemptRecord;

clauses! {
    failures_are_grouped_by_source_and_by_how_they_failed
        => GroupsWhatIsDelivered | GroupsEverySource | GroupsByTheWholeExcerpt | GroupsWithoutTheExcerpt | GroupsSmallestFirst,
    a_group_counts_events_by_their_newest_attempt => GroupsByTheFirstAttempt | GroupsWhatIsDelivered,
    only_failures_since_a_time_are_grouped => GroupsWhatFailedBefore,
    a_summary_stops_at_its_limits_and_says_so => SaysThatAllWasExamined | LooksAtAllFailures,
    waiting_events_are_examined_at_both_ends => LooksAtOneEndOnly,
}

const ALL: SummaryFilter = SummaryFilter { source: None, since: None };
const ROOMY: SummarySize = SummarySize { looks: 100, groups: 100 };
const DEAD: Outcome = Outcome::DeadLetter(Reason::Permanent);
const LATER: Outcome = Outcome::Retry { after: Duration::from_secs(100) };

/// The beginnings of these excerpts are equal, but not their ends.
const ONE: &[u8] = b"unknown field `tax`, in the body of the request 1";
const OTHER: &[u8] = b"unknown field `tax`, in the body of the request 2";

fn refused(status_code: u16, excerpt: &'static [u8]) -> AttemptRecord {
    let excerpt = Bytes::from_static(excerpt);
    AttemptRecord { status_code: Some(status_code), excerpt, ..record(Verdict::Permanent) }
}

impl Db {
    /// Accepts an event of this source, and ends its first attempt.
    async fn fails(&self, name: &str, outcome: Outcome, record: AttemptRecord) -> EventId {
        let mut event = event_of(name, "replaced");
        event.key = IdempotencyKey::parse(event.id.to_string().as_bytes()).unwrap();
        let id = event.id;
        assert_eq!(self.store.accept(vec![event]).await, Ok(vec![Stored::Inserted]));
        self.ends(name, outcome, record).await;
        id
    }

    /// Claims the only due event of this source, and ends its attempt.
    async fn ends(&self, name: &str, outcome: Outcome, record: AttemptRecord) {
        let claim = self.claim_one(name).await;
        assert_eq!(self.store.settle(vec![claim.settled(outcome, Some(record))]).await, Ok(vec![]));
    }

    async fn summary(&self, filter: SummaryFilter, size: SummarySize) -> FailureSummary {
        self.store.summary(filter, size).await.unwrap()
    }
}

fn numbers(summary: &FailureSummary) -> Vec<(&str, Option<u16>, u32)> {
    let groups = summary.groups.iter();
    groups.map(|group| (group.source.as_str(), group.status_code, group.events)).collect()
}

async fn failures_are_grouped_by_source_and_by_how_they_failed(db: Db) {
    assert_eq!(db.summary(ALL, ROOMY).await, FailureSummary::default());
    let first = db.fails("a", DEAD, refused(422, ONE)).await;
    db.fails("a", LATER, refused(422, OTHER)).await;
    let last = db.fails("a", DEAD, refused(422, ONE)).await;
    db.fails("a", DEAD, refused(400, ONE)).await;
    db.fails("a", DEAD, refused(422, b"unknown")).await;
    let unanswered = AttemptRecord {
        status_code: None,
        error: Some(DeliveryError::Timeout),
        excerpt: Bytes::new(),
        ..record(Verdict::Transient)
    };
    db.fails("a", LATER, unanswered).await;
    let elsewhere = db.fails("b", DEAD, refused(422, ONE)).await;
    db.fails("a", Outcome::Delivered, refused(422, ONE)).await;
    db.store.accept(vec![event_of("a", "queued")]).await.unwrap();

    let summary = db.summary(ALL, ROOMY).await;
    let (first, last) = (db.found(first).await, db.found(last).await);
    let largest = FailureGroup {
        source: "a".to_owned(),
        verdict: Verdict::Permanent,
        status_code: Some(422),
        error: None,
        beginning: Bytes::from_static(&ONE[..BEGINNING_BYTES]),
        events: 3,
        dead_lettered: 2,
        first: first.history[0].ended_at,
        last: last.history[0].ended_at,
        example: last.id,
    };
    assert_eq!(summary.groups[0], largest);
    let newest_first = [
        ("a", Some(422), 3),
        ("b", Some(422), 1),
        ("a", None, 1),
        ("a", Some(422), 1),
        ("a", Some(400), 1),
    ];
    assert_eq!(numbers(&summary), newest_first);
    assert_eq!(summary.groups[2].error.as_deref(), Some(DeliveryError::Timeout.as_str()));
    assert_eq!((summary.has_more, &summary.partial[..]), (false, &[][..]));

    let of = |name| SummaryFilter { source: Some(source(name)), ..ALL };
    let summary = db.summary(of("b"), ROOMY).await;
    assert_eq!(numbers(&summary), [("b", Some(422), 1)]);
    assert_eq!(summary.groups[0].example, elsewhere);
    assert_eq!(db.summary(of("unused"), ROOMY).await, FailureSummary::default());

    for (verdict, error) in [
        (Verdict::Permanent, None),
        (Verdict::Transient, None),
        (Verdict::Transient, Some(DeliveryError::Timeout)),
        (Verdict::Transient, Some(DeliveryError::ConnectionReset)),
    ] {
        db.fails("c", DEAD, AttemptRecord { verdict, error, ..refused(422, ONE) }).await;
    }
    let apart = [("c", Some(422), 1); 4];
    assert_eq!(numbers(&db.summary(of("c"), ROOMY).await), apart, "by verdict and error, too");
}

async fn a_group_counts_events_by_their_newest_attempt(db: Db) {
    db.fails("a", Outcome::Retry { after: Duration::ZERO }, refused(503, b"")).await;
    db.ends("a", DEAD, refused(422, b"")).await;
    assert_eq!(numbers(&db.summary(ALL, ROOMY).await), [("a", Some(422), 1)]);

    let claim = db.claimed("b").await;
    db.settle(&claim, Outcome::Delivered).await;
    assert_eq!(db.store.redrive_delivered(claim.event).await, Ok(Redriven::Queued));
    let summary = db.summary(ALL, ROOMY).await;
    assert_eq!(numbers(&summary), [("a", Some(422), 1)], "its newest attempt did not fail");
}

async fn only_failures_since_a_time_are_grouped(db: Db) {
    let old = db.fails("a", DEAD, refused(422, b"")).await;
    db.age(old, Duration::from_hours(1)).await;
    let new = db.fails("a", LATER, refused(422, b"")).await;
    for (event, events) in [(old, 2), (new, 1)] {
        let since = Some(db.found(event).await.history[0].ended_at);
        let summary = db.summary(SummaryFilter { since, ..ALL }, ROOMY).await;
        assert_eq!(numbers(&summary), [("a", Some(422), events)]);
    }
    let later = db.found(new).await.history[0].ended_at + Duration::from_micros(1);
    let summary = db.summary(SummaryFilter { since: Some(later), ..ALL }, ROOMY).await;
    assert_eq!(summary, FailureSummary::default());
}

async fn a_summary_stops_at_its_limits_and_says_so(db: Db) {
    let mut letters = Vec::new();
    for _ in 0..5 {
        letters.push(db.fails("a", DEAD, refused(422, b"")).await);
    }
    db.fails("b", DEAD, refused(422, b"")).await;
    let cut = db.summary(ALL, SummarySize { looks: 3, groups: 2 }).await;
    assert_eq!(numbers(&cut), [("a", Some(422), 3), ("b", Some(422), 1)]);
    assert_eq!(
        (cut.groups[0].example, cut.has_more),
        (letters[4], false),
        "the newest are examined"
    );
    assert_eq!(cut.partial, ["a"]);
    let cut = db.summary(ALL, SummarySize { looks: 6, groups: 1 }).await;
    assert_eq!((numbers(&cut), cut.has_more), (vec![("a", Some(422), 5)], true));
    assert_eq!(cut.partial, [""; 0]);

    // The largest groups are kept, and of equal groups those with the newest examples.
    for status_code in [422, 422, 400, 401, 403] {
        db.fails("c", DEAD, refused(status_code, b"")).await;
    }
    let of_c = SummaryFilter { source: Some(source("c")), ..ALL };
    for (groups, expected) in
        [(1, vec![("c", Some(422), 2)]), (2, vec![("c", Some(422), 2), ("c", Some(403), 1)])]
    {
        let cut = db.summary(of_c.clone(), SummarySize { looks: 6, groups }).await;
        assert_eq!((numbers(&cut), cut.has_more), (expected, true));
    }
}

async fn waiting_events_are_examined_at_both_ends(db: Db) {
    for after in 1..=5u16 {
        let outcome = Outcome::Retry { after: Duration::from_secs(100 * u64::from(after)) };
        db.fails("a", outcome, refused(500 + after, b"")).await;
    }
    let cut = db.summary(ALL, SummarySize { looks: 1, groups: 9 }).await;
    assert_eq!(numbers(&cut), [("a", Some(505), 1), ("a", Some(501), 1)]);
    assert_eq!(cut.partial, ["a"]);
    let whole = db.summary(ALL, SummarySize { looks: 3, groups: 9 }).await;
    assert_eq!(whole.groups.len(), 5, "no event is in two groups, or counted twice");
    assert!(whole.groups.iter().all(|group| group.events == 1), "{whole:?}");
    assert_eq!(whole.partial, [""; 0]);
}
