//! Bulk redrives and bulk discards: the events that a page examines, their order, and the changes.

use crate::db::{Db, LEASE, event_of, settlement, source};
use std::time::Duration;
use surehook::ports::Retention;
use surehook::search::{ActionEntry, ChangedPage, EventFilter, PageSize, Span};
use surehook_core::event::DiscardScope::{DeadLetters, Unclaimed};
use surehook_core::event::{Action, DiscardScope, Outcome, Reason, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::verdict::Verdict;

clauses! {
    a_bulk_discard_has_its_span_and_scan_limit_on_every_path => DiscardsOnADryRun,
    a_bulk_action_by_key_examines_the_oldest_events_first => DiscardsOnADryRun | RedrivesOnADryRun,
    a_bulk_discard_takes_events_by_their_newest_attempt => DiscardsWhatDoesNotMatch,
    a_bulk_discard_changes_events_as_a_single_one_does
        => DiscardEndsAnew | DiscardRecordsNoLostAttempt | RecordsNoBulkDiscard,
    a_bulk_redrive_records_the_time_at_which_events_are_queued => RecordsNoBulkRedrive,
    a_bulk_action_increases_the_fence_by_one_on_every_path => DiscardsNothing | CountsOnADryRunOnly,
}

const ROOMY: PageSize = PageSize { events: 100, looks: 1000 };

fn of(name: &str) -> EventFilter {
    EventFilter { source: Some(source(name)), ..EventFilter::default() }
}

fn with_key(key: &str, filter: EventFilter) -> EventFilter {
    EventFilter { key: Some(IdempotencyKey::parse(key.as_bytes()).unwrap()), ..filter }
}

impl Db {
    /// Accepts an event, and makes it a dead letter.
    async fn letter(&self, name: &str, key: &str) -> EventId {
        self.store.accept(vec![event_of(name, key)]).await.unwrap();
        let claim = self.claim_one(name).await;
        self.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
        claim.event
    }

    /// The result of a dry run: the number of events, and where the next page starts.
    async fn discardable(
        &self,
        filter: &EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
    ) -> (u32, Option<EventId>) {
        let page = self.store.discard_all(filter.clone(), scope, span, size, true).await.unwrap();
        (page.count(), page.next)
    }

    /// The result of a dry run, which must be the same for redriving and for discarding.
    async fn counted(
        &self,
        filter: &EventFilter,
        span: Span,
        size: PageSize,
    ) -> (u32, Option<EventId>) {
        let redriven = self.store.redrive_all(filter.clone(), span, size, true).await.unwrap();
        let discard = self.store.discard_all(filter.clone(), DeadLetters, span, size, true);
        assert_eq!(redriven, discard.await.unwrap());
        (redriven.count(), redriven.next)
    }

    async fn discarded_of(&self, filter: EventFilter, scope: DiscardScope) -> ChangedPage {
        self.store.discard_all(filter, scope, Span::ALL, ROOMY, false).await.unwrap()
    }
}

async fn a_bulk_discard_has_its_span_and_scan_limit_on_every_path(db: Db) {
    let mut letters = Vec::new();
    for name in ["b", "a", "c"] {
        for n in 0..6 {
            letters.push(db.letter(name, &format!("k{n}")).await);
        }
    }
    let letters = &letters[6..12];
    db.store.accept(vec![event_of("a", "queued")]).await.unwrap();
    let size = PageSize { looks: 2, ..ROOMY };
    let span = Span { from: letters[1], until: letters[4] };
    let paths = [
        (of("a"), DeadLetters),
        (EventFilter::default(), DeadLetters),
        (of("a"), Unclaimed),
        (EventFilter::default(), Unclaimed),
    ];
    for (filter, scope) in &paths {
        let first = db.discardable(filter, *scope, span, size).await;
        assert_eq!(first, (2, Some(letters[2])), "{filter:?}");
        let rest = Span { from: letters[3], ..span };
        assert_eq!(db.discardable(filter, *scope, rest, size).await, (1, None), "{filter:?}");
    }
    let seven = PageSize { looks: 7, ..ROOMY };
    let all = db.discardable(&of("a"), DeadLetters, Span::ALL, seven).await;
    assert_eq!(all, (6, None), "other events are not examined");
    for ((filter, scope), count) in paths.iter().zip([6, 18, 7, 18]) {
        assert_eq!(db.discardable(filter, *scope, Span::ALL, ROOMY).await, (count, None));
    }

    let by_key = with_key("k2", of("a"));
    for (from, until, count) in [(0, 5, 1), (2, 3, 1), (1, 2, 0), (3, 5, 0)] {
        let span = Span { from: letters[from], until: letters[until] };
        for scope in [DeadLetters, Unclaimed] {
            let found = db.discardable(&by_key, scope, span, size).await;
            assert_eq!(found, (count, None), "{from}..{until}");
        }
    }
}

async fn a_bulk_action_by_key_examines_the_oldest_events_first(db: Db) {
    let filter = with_key("k", EventFilter::default());
    assert_eq!(db.counted(&filter, Span::ALL, ROOMY).await, (0, None), "without an event");
    let mut letters = Vec::new();
    for name in ["b", "d", "a", "c"] {
        db.letter(name, "before").await;
        letters.push(db.letter(name, "k").await);
        db.letter(name, "later").await;
    }
    db.letter("without-the-key", "another").await;
    let from = |from: EventId| Span { from, ..Span::ALL };
    let two_looks = PageSize { looks: 2, ..ROOMY };
    let mut span = Span::ALL;
    for expected in [(2, Some(letters[1])), (2, Some(letters[3])), (0, None)] {
        assert_eq!(db.counted(&filter, span, two_looks).await, expected);
        span = from(expected.1.map_or(span.from, EventId::successor));
    }
    let three = PageSize { events: 3, ..ROOMY };
    assert_eq!(db.counted(&filter, Span::ALL, three).await, (3, Some(letters[2])));
    let rest = db.counted(&filter, from(letters[2].successor()), three).await;
    assert_eq!(rest, (1, None));
    let middle = Span { from: letters[1], until: letters[3] };
    assert_eq!(db.counted(&filter, middle, ROOMY).await, (2, None));
    assert_eq!(db.counted(&with_key("k", of("a")), Span::ALL, ROOMY).await, (1, None));
    assert_eq!(db.counted(&EventFilter::default(), Span::ALL, ROOMY).await, (13, None));
    let other_code = EventFilter { status_code: Some(500), ..EventFilter::default() };
    let none = db.counted(&other_code, Span::ALL, two_looks).await;
    assert_eq!(none, (0, Some(letters[0])), "the second of the two events that were examined");
}

async fn a_bulk_discard_takes_events_by_their_newest_attempt(db: Db) {
    db.store.accept(vec![event_of("a", "k")]).await.unwrap();
    let claim = db.claim_one("a").await;
    let mut first = settlement(&claim, Outcome::Retry { after: Duration::ZERO });
    first.record.as_mut().unwrap().status_code = Some(500);
    assert_eq!(db.store.settle(vec![first]).await, Ok(vec![]));
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    db.store.accept(vec![event_of("a", "without-attempts")]).await.unwrap();
    for filter in [of("a"), with_key("k", of("a"))] {
        for (status_code, count) in [(500, 0), (503, 1)] {
            let filter = EventFilter { status_code: Some(status_code), ..filter.clone() };
            for scope in [DeadLetters, Unclaimed] {
                let found = db.discardable(&filter, scope, Span::ALL, ROOMY).await;
                assert_eq!(found, (count, None), "{filter:?}");
            }
        }
    }
    for key in ["1", "2"] {
        db.store.accept(vec![event_of("b", key)]).await.unwrap();
        let claim = db.claim_one("b").await;
        let mut last = settlement(&claim, Outcome::DeadLetter(Reason::Permanent));
        last.record.as_mut().unwrap().status_code = Some(500);
        assert_eq!(db.store.settle(vec![last]).await, Ok(vec![]));
    }
    let filter = EventFilter { status_code: Some(503), ..EventFilter::default() };
    let two = PageSize { events: 2, ..ROOMY };
    assert_eq!(db.counted(&filter, Span::ALL, two).await, (1, None), "the page is not full");
    let with_reason = EventFilter { reason: Some(Reason::Lost), ..with_key("k", of("a")) };
    assert_eq!(db.discardable(&with_reason, DeadLetters, Span::ALL, ROOMY).await, (0, None));
}

async fn a_bulk_discard_changes_events_as_a_single_one_does(db: Db) {
    let letter = db.letter("a", "letter").await;
    db.age(letter, Duration::from_hours(1)).await;
    db.store.accept(vec![event_of("a", "retrying")]).await.unwrap();
    let retrying = db.claim_one("a").await;
    db.settle(&retrying, Outcome::Retry { after: Duration::from_secs(100) }).await;
    let claim = db.claimed("a").await;
    let counted = db.discardable(&of("a"), Unclaimed, Span::ALL, ROOMY).await;
    assert_eq!(counted, (2, None), "the dead letter and the event that waits");
    let refused = db.discarded_of(of("a"), DeadLetters).await;
    assert_eq!(
        refused.changed,
        [("a".to_owned(), 1)].into(),
        "one other waits, and one is in delivery"
    );
    let found = db.found(letter).await;
    assert_eq!((found.status, found.reason), (Status::DeadLettered, Some(Reason::Discarded)));
    assert_eq!((found.attempt, found.history.len()), (1, 1), "{found:?}");
    let ended = found.history[0].ended_at;
    assert!(found.settled_at.unwrap() < ended + Duration::from_mins(1), "{found:?}");
    let [ActionEntry { action: Action::Discarded, at, attempt: 1 }] = found.actions[..] else {
        panic!("{found:?}");
    };
    assert!(at >= ended + Duration::from_mins(59), "{found:?}");

    db.make_due(claim.event, LEASE).await;
    db.store.accept(vec![event_of("a", "queued")]).await.unwrap();
    assert_eq!(db.discarded_of(of("a"), DeadLetters).await.count(), 0);
    let taken = db.discarded_of(of("a"), Unclaimed).await;
    assert_eq!(taken.changed, [("a".to_owned(), 3)].into());
    let found = db.found(claim.event).await;
    assert_eq!((found.status, found.reason), (Status::DeadLettered, Some(Reason::Discarded)));
    let [lost] = &found.history[..] else { panic!("{found:?}") };
    assert_eq!((lost.attempt, lost.verdict, lost.took), (1, Verdict::Lost, None));
    assert_eq!((lost.status_code, &lost.error, lost.excerpt.len()), (None, &None, 0));
    assert_eq!(Some(lost.ended_at), found.settled_at);
    assert_eq!(Some(found.actions[0].at), found.settled_at);
    let stale = db.store.settle(vec![settlement(&claim, Outcome::Delivered)]).await;
    assert_eq!(stale, Ok(vec![claim.event]), "its worker can no longer settle it");
    let listed = db.store.list(of("a"), Span::ALL, ROOMY).await.unwrap().events;
    assert_eq!(listed.iter().map(|event| event.history.len()).collect::<Vec<_>>(), [0, 1, 1, 1]);
}

async fn a_bulk_redrive_records_the_time_at_which_events_are_queued(db: Db) {
    let letter = db.letter("a", "letter").await;
    db.age(letter, Duration::from_hours(1)).await;
    let ended = db.found(letter).await.settled_at.unwrap();
    let page = db.store.redrive_all(of("a"), Span::ALL, ROOMY, false).await.unwrap();
    assert_eq!(page.count(), 1);
    let found = db.found(letter).await;
    assert_eq!((found.settled_at, found.reason, found.budget_from), (None, None, Some(1)));
    let [ActionEntry { action: Action::Redriven, at, attempt: 1 }] = found.actions[..] else {
        panic!("{found:?}");
    };
    assert_eq!(Some(at), found.next_attempt_at);
    assert!(at >= ended + Duration::from_mins(59), "{found:?}");
}

async fn a_bulk_action_increases_the_fence_by_one_on_every_path(db: Db) {
    for (filter, scope) in [
        (with_key("k", of("a")), DeadLetters),
        (of("a"), DeadLetters),
        (EventFilter::default(), DeadLetters),
        (of("a"), Unclaimed),
    ] {
        let letter = db.letter("a", "k").await;
        let found = async || (db.found(letter).await, db.fence_and_due(letter).await.0);
        let (before, fence) = found().await;
        assert_eq!(db.discarded_of(filter.clone(), scope).await.count(), 1);
        let (discarded, fence_discarded) = found().await;
        assert_eq!((discarded.attempt, discarded.budget_from), (1, before.budget_from));
        assert_eq!((discarded.reason, fence_discarded), (Some(Reason::Discarded), fence + 1));
        assert_eq!(db.discarded_of(filter.clone(), scope).await.count(), 0, "it was discarded");

        let filter = EventFilter { reason: Some(Reason::Discarded), ..filter };
        let page = db.store.redrive_all(filter, Span::ALL, ROOMY, false).await.unwrap();
        assert_eq!(page.count(), 1);
        let (queued, fence_queued) = found().await;
        assert_eq!((queued.status, queued.attempt), (Status::Queued, 1));
        assert_eq!((queued.budget_from, fence_queued), (Some(1), fence + 2));
        let actions = queued.actions.iter().map(|entry| (entry.action, entry.attempt));
        let expected = [(Action::Discarded, 1), (Action::Redriven, 1)];
        assert_eq!(actions.collect::<Vec<_>>(), expected);
        let claim = db.claim_one("a").await;
        db.settle(&claim, Outcome::Delivered).await;
        db.age(letter, Duration::from_hours(1)).await;
        let everything = Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO };
        assert_eq!(db.store.prune(everything, None, 10).await.unwrap().deleted, 1);
    }
}
