//! Discarding: dead letters, and events that no worker will claim, but no others. A discarded event
//! stays, is not counted, and is redriven only by name.

use crate::db::{Db, LEASE, Raw, demand, event_of, settlement, source};
use std::time::Duration;
use surehook::ports::{Discarded, Redriven, Retention};
use surehook::search::{
    ChangedPage, EventFilter, FailureSummary, PageSize, Span, SummaryFilter, SummarySize,
    dead_letter_looks,
};
use surehook_core::admission::Stored;
use surehook_core::event::DiscardScope::{DeadLetters, Unclaimed};
use surehook_core::event::{Outcome, Reason, RedrivenBy, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::verdict::Verdict;
use uuid::Uuid;

clauses! {
    a_discarded_dead_letter_keeps_its_attempts_and_the_time_it_ended
        => DiscardEndsAnew | DiscardForgetsAttempts | DiscardsNothing,
    a_discarded_event_is_redriven_by_its_id => RedriveLeavesDiscarded,
    a_redrive_ends_a_discard => DiscardOutlivesARedrive,
    waiting_events_are_discarded_only_in_their_scope => DiscardsInEveryScope | DiscardsNoWaitingEvents,
    an_event_in_delivery_is_discarded_only_after_its_lease
        => DiscardsInFlight | DiscardKeepsTheFence | DiscardRecordsNoLostAttempt,
    a_delivered_or_unknown_event_is_not_discarded => DiscardsWhatIsNot,
    a_discarded_event_is_a_dead_letter_for_producers_and_retention => DiscardsNothing,
    a_bulk_discard_takes_only_matching_events => DiscardsEverySource | DiscardsWhatDoesNotMatch,
    a_bulk_discard_takes_waiting_events_only_of_a_named_source => DiscardsInEveryScope,
    a_dry_run_counts_the_discards_and_changes_nothing => DiscardsOnADryRun,
    concurrent_bulk_discards_count_each_event_once => DiscardsNothing,
    only_one_of_several_concurrent_discards_counts => DiscardsNothing,
    a_bulk_redrive_leaves_discarded_events_unless_it_names_them => RedrivesDiscardedWithOthers,
    discarded_events_are_neither_counted_nor_summarized => CountsDiscarded | SummarizesDiscarded,
    a_count_behind_many_discarded_events_is_partial => CountsDiscarded,
}

beyond_the_port! {
    a_redrive_by_the_previous_version_ends_a_discard,
}

/// Another program does not know the column of discards. It moves the row as it always did.
async fn a_redrive_by_the_previous_version_ends_a_discard(db: Db) {
    let event = db.discarded("a", "a").await;
    let waiting = db.accepted("b").await;
    assert_eq!(db.store.discard(waiting, Unclaimed).await, Ok(Discarded::Now));
    let exhausted = db.claimed("c").await;
    db.settle(&exhausted, Outcome::DeadLetter(Reason::Exhausted)).await;
    let lost = db.claimed("d").await;
    db.settle(&lost, Outcome::DeadLetter(Reason::Lost)).await;
    db.store.discard(exhausted.event, Unclaimed).await.unwrap();
    let all = EventFilter::default();
    let bulk = db.store.discard_all(all, DeadLetters, Span::ALL, ROOMY, false).await;
    assert_eq!(bulk, page([("d", 1)]));
    db.accepted("e").await;
    let bulk = db.store.discard_all(of("e"), Unclaimed, Span::ALL, ROOMY, false).await;
    assert_eq!(bulk, page([("e", 1)]));
    for (reason, count) in [("permanent", 3), ("exhausted", 1), ("lost", 1)] {
        let readable = format!("select count(*) from deliveries where reason = '{reason}'");
        assert_eq!(db.number(&readable).await, count, "it can read the reason {reason}");
    }
    let now = if matches!(db.raw, Raw::Sqlite(_)) { "ended_at" } else { "now()" };
    db.execute(&format!(
        "update deliveries set status = 'queued', budget_from = attempt, fence = fence + 1, due_at = {now},
         ended_at = null, reason = null where event_id = {}",
        db.id(event)
    ))
    .await;
    let claim = db.claim_one("a").await;
    assert_eq!(claim.event, event);
    db.settle(&claim, Outcome::DeadLetter(Reason::Exhausted)).await;
    assert_eq!(db.found(event).await.reason, Some(Reason::Exhausted));
}

const ROOMY: PageSize = PageSize { events: 100, looks: 1000 };

fn of(name: &str) -> EventFilter {
    EventFilter { source: Some(source(name)), ..EventFilter::default() }
}

fn key(key: &str) -> Option<IdempotencyKey> {
    Some(IdempotencyKey::parse(key.as_bytes()).unwrap())
}

fn because(reason: Reason) -> EventFilter {
    EventFilter { reason: Some(reason), ..EventFilter::default() }
}

impl Db {
    /// A new dead letter of this source.
    async fn dead(&self, name: &str, key: &str) -> EventId {
        let event = event_of(name, key);
        let id = event.id;
        assert_eq!(self.store.accept(vec![event]).await, Ok(vec![Stored::Inserted]));
        let claim = self.claim_one(name).await;
        self.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
        id
    }

    async fn discarded(&self, name: &str, key: &str) -> EventId {
        let event = self.dead(name, key).await;
        assert_eq!(self.store.discard(event, DeadLetters).await, Ok(Discarded::Now));
        event
    }

    async fn is_discarded(&self, event: EventId) -> bool {
        let found = self.found(event).await;
        (found.status, found.reason) == (Status::DeadLettered, Some(Reason::Discarded))
    }

    /// Discards all that match, page by page. Returns the number of each page.
    async fn discard_pages(&self, filter: EventFilter, size: PageSize, dry_run: bool) -> Vec<u32> {
        let (mut span, mut discarded) = (Span::ALL, Vec::new());
        loop {
            let page = self.store.discard_all(filter.clone(), Unclaimed, span, size, dry_run).await;
            let page = page.unwrap();
            discarded.push(page.count());
            let Some(next) = page.next else { return discarded };
            span.from = next.successor();
        }
    }
}

async fn a_discarded_dead_letter_keeps_its_attempts_and_the_time_it_ended(db: Db) {
    let event = db.dead("a", "a").await;
    db.age(event, Duration::from_hours(1)).await;
    let before = db.found(event).await;
    for scope in [DeadLetters, Unclaimed] {
        let first = scope == DeadLetters;
        let expected = if first { Discarded::Now } else { Discarded::Before };
        assert_eq!(db.store.discard(event, scope).await, Ok(expected));
        let found = db.found(event).await;
        let mut expected = before.clone();
        (expected.reason, expected.actions) = (Some(Reason::Discarded), found.actions.clone());
        assert_eq!(found, expected);
    }
    let claims = db.store.claim(vec![demand("a", 10)]).await.unwrap();
    assert!(claims.claimed.is_empty() && claims.dead_lettered.is_empty());
}

async fn a_discarded_event_is_redriven_by_its_id(db: Db) {
    let event = db.discarded("a", "a").await;
    assert_eq!(db.store.redrive(event, RedrivenBy::Operator).await, Ok(Redriven::Queued));
    let claim = db.claim_one("a").await;
    assert_eq!((claim.event, claim.attempt, claim.in_budget.0), (event, 2, 1));
    db.settle(&claim, Outcome::Delivered).await;
    assert_eq!(db.found(event).await.status, Status::Delivered);
}

async fn a_redrive_ends_a_discard(db: Db) {
    let event = db.discarded("a", "a").await;
    assert_eq!(db.store.redrive(event, RedrivenBy::Operator).await, Ok(Redriven::Queued));
    assert_eq!(db.found(event).await.reason, None);
    let refused = db.store.discard(event, DeadLetters).await;
    assert_eq!(refused, Ok(Discarded::WrongStatus(Status::Queued)));
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Exhausted)).await;
    assert_eq!(db.found(event).await.reason, Some(Reason::Exhausted));
    let records = db.store.sources(vec![], 10).await.unwrap();
    assert_eq!(records[0].dead_lettered, 1);
    let filter = SummaryFilter { source: None, since: None };
    let size = SummarySize { looks: 10, groups: 10 };
    let summary = db.store.summary(filter, size).await.unwrap();
    assert_eq!((summary.groups.len(), summary.groups[0].example), (1, event));
    let listed = db.store.list(because(Reason::Exhausted), Span::ALL, ROOMY).await.unwrap();
    assert_eq!(listed.events.len(), 1);
    assert_eq!(db.store.discard(event, DeadLetters).await, Ok(Discarded::Now));
    assert!(db.is_discarded(event).await);
}

async fn waiting_events_are_discarded_only_in_their_scope(db: Db) {
    let queued = db.accepted("a").await;
    let claim = db.claimed("b").await;
    db.settle(&claim, Outcome::Retry { after: Duration::from_secs(100) }).await;
    for (event, status) in [(queued, Status::Queued), (claim.event, Status::Retrying)] {
        let before = db.found(event).await;
        let refused = db.store.discard(event, DeadLetters).await;
        assert_eq!(refused, Ok(Discarded::WrongStatus(status)));
        assert_eq!(db.found(event).await, before);
        assert_eq!(db.store.discard(event, Unclaimed).await, Ok(Discarded::Now));
        assert!(db.is_discarded(event).await);
        let after = db.found(event).await;
        assert_eq!((after.attempt, after.history), (before.attempt, before.history));
        assert!(after.settled_at.is_some() && after.next_attempt_at.is_none());
    }
    let records = db.store.sources(vec![], 10).await.unwrap();
    assert!(records.iter().all(|record| record.behind.is_none()), "{records:?}");
}

async fn an_event_in_delivery_is_discarded_only_after_its_lease(db: Db) {
    let claim = db.claimed("a").await;
    for scope in [DeadLetters, Unclaimed] {
        let refused = db.store.discard(claim.event, scope).await;
        assert_eq!(refused, Ok(Discarded::WrongStatus(Status::Processing)));
        assert_eq!(db.store.discard_all(of("a"), scope, Span::ALL, ROOMY, false).await, page([]));
    }
    db.make_due(claim.event, LEASE).await;
    let refused = db.store.discard(claim.event, DeadLetters).await;
    assert_eq!(refused, Ok(Discarded::WrongStatus(Status::Processing)));
    assert_eq!(db.store.discard(claim.event, Unclaimed).await, Ok(Discarded::Now));
    assert!(db.is_discarded(claim.event).await);
    let found = db.found(claim.event).await;
    let [lost] = &found.history[..] else { panic!("{found:?}") };
    assert_eq!((lost.attempt, lost.verdict, lost.took), (1, Verdict::Lost, None));
    assert_eq!((lost.status_code, &lost.error, lost.excerpt.len()), (None, &None, 0));
    assert_eq!(Some(lost.ended_at), found.settled_at);
    assert_eq!(
        db.store.settle(vec![settlement(&claim, Outcome::Delivered)]).await,
        Ok(vec![claim.event]),
        "its worker can no longer settle it"
    );
}

async fn a_delivered_or_unknown_event_is_not_discarded(db: Db) {
    db.accepted("queued").await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    for scope in [DeadLetters, Unclaimed] {
        let refused = db.store.discard(claim.event, scope).await;
        assert_eq!(refused, Ok(Discarded::WrongStatus(Status::Delivered)));
        let unknown = EventId::from_uuid(Uuid::now_v7());
        assert_eq!(db.store.discard(unknown, scope).await, Ok(Discarded::NotFound));
    }
    assert_eq!(db.found(claim.event).await.status, Status::Delivered);
}

async fn a_discarded_event_is_a_dead_letter_for_producers_and_retention(db: Db) {
    let event = event_of("a", "a");
    db.store.accept(vec![event.clone()]).await.unwrap();
    assert_eq!(db.store.discard(event.id, Unclaimed).await, Ok(Discarded::Now));
    let existing = db.store.accept(vec![event.clone()]).await.unwrap();
    assert!(
        matches!(existing[0], Stored::Existing { status: Status::DeadLettered, .. }),
        "{existing:?}"
    );
    let listed = |filter| db.store.list(filter, Span::ALL, ROOMY);
    let mut found = db.found(event.id).await;
    found.actions.clear();
    for filter in [of("a"), of("a").of_dead_letters()] {
        assert_eq!(listed(filter).await.unwrap().events, [found.clone()]);
    }
    let by_key = EventFilter { key: key("a"), ..of("a") };
    for filter in [EventFilter::default(), of("a"), by_key] {
        let with = |reason| EventFilter { reason: Some(reason), ..filter.clone() };
        assert_eq!(listed(with(Reason::Discarded)).await.unwrap().events, [found.clone()]);
        assert!(listed(with(Reason::Permanent)).await.unwrap().events.is_empty(), "{filter:?}");
    }
    let retention = Retention { delivered: Duration::ZERO, dead_lettered: Duration::from_hours(2) };
    assert_eq!(db.store.prune(retention, None, 10).await.unwrap().deleted, 0);
    assert_eq!(db.store.erase(Duration::ZERO, None, 10).await.unwrap().erased, 0);
    db.age(event.id, Duration::from_hours(3)).await;
    let pruned = db.store.prune(retention, None, 10).await.unwrap();
    assert_eq!((pruned.deleted, pruned.dead_lettered, pruned.discarded), (1, 0, 1));
}

fn page<const N: usize>(
    changed: [(&str, u32); N],
) -> Result<ChangedPage, surehook::ports::StoreError> {
    let changed = changed.into_iter().map(|(source, count)| (source.to_owned(), count));
    Ok(ChangedPage { changed: changed.collect(), next: None })
}

async fn a_bulk_discard_takes_only_matching_events(db: Db) {
    let (a, b) = (db.dead("a", "1").await, db.dead("b", "1").await);
    let discard = |filter| db.store.discard_all(filter, DeadLetters, Span::ALL, ROOMY, false);
    let other_code = EventFilter { status_code: Some(500), ..of("a") };
    for filter in [of("c"), because(Reason::Lost), because(Reason::Discarded), other_code] {
        assert_eq!(discard(filter).await, page([]));
    }
    let mut filter = of("a");
    filter.reason = Some(Reason::Permanent);
    assert_eq!(discard(filter).await, page([("a", 1)]));
    assert!(db.is_discarded(a).await);
    assert!(!db.is_discarded(b).await, "events of another source must not change");
    assert_eq!(discard(EventFilter::default()).await, page([("b", 1)]));
    assert_eq!(discard(EventFilter::default()).await, page([]), "nothing is left to discard");
}

async fn a_bulk_discard_takes_waiting_events_only_of_a_named_source(db: Db) {
    let letter = db.dead("a", "dead").await;
    let events = [event_of("a", "1"), event_of("a", "2"), event_of("b", "1")];
    let ids = events.each_ref().map(|event| event.id);
    db.store.accept(events.into()).await.unwrap();
    let discard = |filter, scope| db.store.discard_all(filter, scope, Span::ALL, ROOMY, false);
    for filter in [because(Reason::Lost), EventFilter { reason: Some(Reason::Lost), ..of("a") }] {
        assert_eq!(discard(filter, Unclaimed).await, page([]), "waiting events have no reason");
    }
    assert_eq!(discard(EventFilter::default(), Unclaimed).await, page([("a", 1)]));
    assert!(db.is_discarded(letter).await);
    assert_eq!(discard(of("a"), DeadLetters).await, page([]));
    let with_key = EventFilter { key: key("2"), ..of("a") };
    assert_eq!(discard(with_key.clone(), DeadLetters).await, page([]));
    assert_eq!(discard(with_key, Unclaimed).await, page([("a", 1)]));
    assert_eq!(discard(of("a"), Unclaimed).await, page([("a", 1)]));
    for event in &ids[..2] {
        assert!(db.is_discarded(*event).await);
    }
    assert_eq!(db.found(ids[2]).await.status, Status::Queued);
}

async fn a_dry_run_counts_the_discards_and_changes_nothing(db: Db) {
    let mut events = Vec::new();
    for n in 0..5 {
        events.push(db.dead("a", &n.to_string()).await);
    }
    for dry_run in [true, false] {
        let size = PageSize { events: 2, looks: 100 };
        assert_eq!(db.discard_pages(of("a"), size, dry_run).await, [2, 2, 1]);
        for event in &events {
            assert_eq!(db.is_discarded(*event).await, !dry_run);
        }
    }
}

async fn concurrent_bulk_discards_count_each_event_once(db: Db) {
    for n in 0..40 {
        db.dead("a", &n.to_string()).await;
    }
    let other = db.another();
    let all = EventFilter::default;
    let (one, two) = tokio::join!(
        db.store.discard_all(all(), DeadLetters, Span::ALL, ROOMY, false),
        other.discard_all(all(), DeadLetters, Span::ALL, ROOMY, false)
    );
    assert_eq!(one.unwrap().count() + two.unwrap().count(), 40);
    let listed = db.store.list(because(Reason::Discarded), Span::ALL, ROOMY).await.unwrap();
    assert_eq!(listed.events.len(), 40);
}

async fn only_one_of_several_concurrent_discards_counts(db: Db) {
    let stores: Vec<_> = (0..4).map(|_| db.another()).collect();
    for n in 0..10 {
        let event = db.dead("a", &n.to_string()).await;
        let discards = stores.iter().map(|store| store.discard(event, DeadLetters));
        let answers = futures::future::join_all(discards).await;
        for (answer, count) in [(Discarded::Now, 1), (Discarded::Before, 3)] {
            let found = answers.iter().filter(|found| **found == Ok(answer)).count();
            assert_eq!(found, count, "{answers:?}");
        }
    }
}

async fn a_bulk_redrive_leaves_discarded_events_unless_it_names_them(db: Db) {
    let junk = db.discarded("a", "junk").await;
    let letter = db.dead("a", "good").await;
    let redrive =
        async |filter| db.store.redrive_all(filter, Span::ALL, ROOMY, false).await.unwrap().count();
    let with_key = EventFilter { key: key("junk"), ..of("a") };
    for (filter, redriven) in [(with_key, 0), (of("a"), 1), (EventFilter::default(), 0)] {
        assert_eq!(redrive(filter).await, redriven);
        assert!(db.is_discarded(junk).await);
    }
    assert_eq!(db.found(letter).await.status, Status::Queued);
    assert_eq!(redrive(because(Reason::Discarded)).await, 1);
    assert_eq!(db.found(junk).await.status, Status::Queued);
}

async fn discarded_events_are_neither_counted_nor_summarized(db: Db) {
    let (kept, junk) = (db.dead("a", "kept").await, db.dead("a", "junk").await);
    let summary = async || {
        let filter = SummaryFilter { source: None, since: None };
        db.store.summary(filter, SummarySize { looks: 10, groups: 10 }).await.unwrap()
    };
    assert_eq!(summary().await.groups[0].events, 2);
    db.store.discard(junk, DeadLetters).await.unwrap();
    assert_eq!((summary().await.groups[0].events, summary().await.groups[0].example), (1, kept));
    let (filter, size) =
        (SummaryFilter { source: None, since: None }, SummarySize { looks: 1, groups: 10 });
    let newest = db.store.summary(filter, size).await.unwrap();
    assert_eq!((newest.groups, newest.partial), (vec![], vec!["a".to_owned()]), "it is looked at");
    let record = db.store.sources(vec![], 10).await.unwrap().remove(0);
    assert_eq!((record.dead_lettered, record.is_partial), (1, false));
    db.store.discard(kept, DeadLetters).await.unwrap();
    assert_eq!(summary().await, FailureSummary::default());
    let record = db.store.sources(vec![], 10).await.unwrap().remove(0);
    assert_eq!((record.source.as_str(), record.dead_lettered), ("a", 0), "it is still listed");
}

async fn a_count_behind_many_discarded_events_is_partial(db: Db) {
    let counted = async || {
        let record = db.store.sources(vec![], 2).await.unwrap().remove(0);
        (record.dead_lettered, record.is_partial)
    };
    // It waits, so it is not one of the dead letters that are examined.
    db.claimed("a").await;
    db.dead("a", "oldest").await;
    for n in 1..dead_letter_looks(2) - 1 {
        db.discarded("a", &n.to_string()).await;
        assert_eq!(counted().await, (1, false), "{n}");
    }
    db.discarded("a", "last").await;
    assert_eq!(counted().await, (1, true), "there may be more behind those that were examined");
    db.discarded("a", "another").await;
    assert_eq!(counted().await, (0, true));
    db.dead("a", "new").await;
    assert_eq!(counted().await, (1, true), "the newest are examined first");
    db.dead("b", "only").await;
    let other = db.store.sources(vec![], 2).await.unwrap().remove(1);
    assert_eq!((other.dead_lettered, other.is_partial), (1, false), "it is another source");
}
