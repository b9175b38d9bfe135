//! Searching: pages of events, bulk redrives, and the backlog of each source.

use crate::db::{Db, demand, event_of, settlement, source};
use std::time::Duration;
use surehook::search::{ChangedPage, EventFilter, EventPage, PageSize, Span};
use surehook_core::admission::Stored;
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;

clauses! {
    a_filter_lists_matching_events_newest_first => OldestFirst | ListsEverySource | ListsOneTooFew,
    a_key_and_source_find_one_event => KeyWithoutItsSource,
    a_key_alone_finds_the_event_of_each_source => KeyInOneSource,
    pages_have_no_gaps_and_no_repetitions => ListsWithoutThePage | ListsOnePageTooMany,
    a_page_stops_at_its_scan_limit_and_says_where_to_continue => LooksAtAll,
    a_page_has_its_span_and_scan_limit_on_every_path => ListsWithoutThePage | LooksAtAll | KeyWithoutItsSource,
    an_event_found_by_its_key_must_match_the_whole_filter => KeyWithoutItsSource | ListsOneTooFew,
    a_listed_event_has_its_newest_attempt => ListsTheFirstAttempt,
    a_bulk_redrive_takes_only_matching_dead_letters
        => RedrivesWhatDoesNotMatch | RedrivesEverySource | RedriveOfAllKeepsTheBudget | RedrivesNameOneSource,
    a_bulk_redrive_has_its_span_and_scan_limit_on_every_path => RedrivesOnADryRun,
    a_bulk_redrive_by_key_takes_only_matching_dead_letters => RedrivesEverySource | RedrivesWhatDoesNotMatch,
    a_dry_run_counts_the_redrives_and_changes_nothing => RedrivesOnADryRun,
    concurrent_bulk_redrives_queue_each_letter_once => CountsOnADryRunOnly,
    the_backlog_of_each_source_is_counted_by_status
        => CountsEveryStatusAsQueued | ForgetsSourcesWithoutConfiguration | BehindByWhatIsNotDue,
    the_sources_of_all_stored_events_are_named_once => NamesOnlySourcesWithWork,
    a_source_is_behind_by_the_age_of_its_oldest_due_event => BehindByWhatIsNotDue,
    a_count_that_reaches_its_limit_is_partial => CountsWithoutEnd,
    events_of_a_paused_source_are_not_claimed_until_it_is_resumed
        => ForgetsToPause | NeverResumes | PausesEverySource | PausesSettling,
    a_pause_reports_whether_it_changed_anything_and_is_listed => AlwaysSaysChanged | NeverResumes,
}

const ROOMY: PageSize = PageSize { events: 100, looks: 1000 };
const TWO_LOOKS: PageSize = PageSize { events: 100, looks: 2 };

fn of(name: &str) -> EventFilter {
    EventFilter { source: Some(source(name)), ..EventFilter::default() }
}

fn standing(status: Status) -> EventFilter {
    EventFilter { status: Some(status), ..EventFilter::default() }
}

fn with_key(key: &str, filter: EventFilter) -> EventFilter {
    EventFilter { key: Some(IdempotencyKey::parse(key.as_bytes()).unwrap()), ..filter }
}

fn ids(page: &EventPage) -> Vec<EventId> {
    page.events.iter().map(|event| event.id).collect()
}

impl Db {
    async fn listed(&self, filter: EventFilter) -> Vec<EventId> {
        let page = self.store.list(filter, Span::ALL, ROOMY).await.unwrap();
        assert_eq!(page.next, None, "one page must hold all events");
        ids(&page)
    }

    /// An event of a source in each status, in the order of [`Status::ALL`].
    async fn one_of_each(&self, name: &str) -> Vec<EventId> {
        let mut events = Vec::new();
        for status in Status::ALL {
            // The queued event is accepted last, so that the claims of the others do not take it.
            if status != Status::Queued {
                events.push(self.standing(name, status).await);
            }
        }
        events.insert(0, self.standing(name, Status::Queued).await);
        events
    }

    /// Dead letters of a source, in the order of their ids. Their keys are `k0`, `k1` and so on.
    async fn letters(&self, name: &str, count: usize) -> Vec<EventId> {
        let mut letters = Vec::new();
        for n in 0..count {
            self.store.accept(vec![event_of(name, &format!("k{n}"))]).await.unwrap();
            let claim = self.claim_one(name).await;
            self.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
            letters.push(claim.event);
        }
        letters
    }

    /// The ids of a page of at most two examined events, and where the next page starts.
    async fn two(&self, filter: &EventFilter, span: Span) -> (Vec<EventId>, Option<EventId>) {
        let page = self.store.list(filter.clone(), span, TWO_LOOKS).await.unwrap();
        (ids(&page), page.next)
    }

    /// As [`Self::two`], for a dry run of a bulk redrive. The first number counts its letters.
    async fn two_redriven(&self, filter: &EventFilter, span: Span) -> (u32, Option<EventId>) {
        let page = self.store.redrive_all(filter.clone(), span, TWO_LOOKS, true).await.unwrap();
        (page.count(), page.next)
    }

    async fn standing(&self, name: &str, status: Status) -> EventId {
        let event = event_of(name, &format!("{name}-{}", status.as_str()));
        let id = event.id;
        assert_eq!(self.store.accept(vec![event]).await, Ok(vec![Stored::Inserted]));
        let outcome = match status {
            Status::Queued => return id,
            Status::Processing => None,
            Status::Retrying => Some(Outcome::Retry { after: Duration::from_secs(100) }),
            Status::Delivered => Some(Outcome::Delivered),
            Status::DeadLettered => Some(Outcome::DeadLetter(Reason::Permanent)),
        };
        let claim = self.claim_one(name).await;
        if let Some(outcome) = outcome {
            self.settle(&claim, outcome).await;
        }
        id
    }
}

async fn a_filter_lists_matching_events_newest_first(db: Db) {
    let (a, b) = (db.one_of_each("a").await, db.one_of_each("b").await);
    let newest_first = |mut events: Vec<EventId>| {
        events.sort();
        events.reverse();
        events
    };
    assert_eq!(
        db.listed(EventFilter::default()).await,
        newest_first([a.clone(), b.clone()].concat())
    );
    assert_eq!(db.listed(of("a")).await, newest_first(a.clone()));
    assert_eq!(db.listed(of("nobody")).await, []);
    for (index, status) in Status::ALL.into_iter().enumerate() {
        assert_eq!(
            db.listed(standing(status)).await,
            newest_first(vec![a[index], b[index]]),
            "{status:?}"
        );
        assert_eq!(
            db.listed(EventFilter { status: Some(status), ..of("b") }).await,
            [b[index]],
            "{status:?}"
        );
    }
    let dead = a[4];
    assert_eq!(db.listed(EventFilter { reason: Some(Reason::Permanent), ..of("a") }).await, [dead]);
    assert_eq!(
        db.listed(EventFilter { reason: Some(Reason::Lost), ..EventFilter::default() }).await,
        []
    );
    assert_eq!(
        db.listed(EventFilter { status_code: Some(503), ..standing(Status::Retrying) }).await.len(),
        2
    );
    assert_eq!(
        db.listed(EventFilter { status_code: Some(500), ..standing(Status::Retrying) }).await,
        []
    );
}

async fn a_key_and_source_find_one_event(db: Db) {
    for name in ["a", "b"] {
        db.store.accept(vec![event_of(name, "the-key"), event_of(name, "another")]).await.unwrap();
    }
    let key = Some(IdempotencyKey::parse(b"the-key").unwrap());
    let found =
        db.store.list(EventFilter { key: key.clone(), ..of("b") }, Span::ALL, ROOMY).await.unwrap();
    assert_eq!(
        found
            .events
            .iter()
            .map(|event| (event.source.as_str(), event.key.as_str()))
            .collect::<Vec<_>>(),
        [("b", "the-key")]
    );
    assert_eq!(db.listed(EventFilter { key: key.clone(), ..of("c") }).await, []);
    assert_eq!(db.listed(EventFilter { key, ..EventFilter::default() }).await.len(), 2);
}

async fn a_key_alone_finds_the_event_of_each_source(db: Db) {
    let filter = EventFilter {
        key: Some(IdempotencyKey::parse(b"the-key").unwrap()),
        ..EventFilter::default()
    };
    assert_eq!(db.listed(filter.clone()).await, [], "without an event");
    let mut keyed = Vec::new();
    for name in ["b", "", "a", "c"].map(|name| format!("of-{name}")) {
        let (one, other) = (event_of(&name, "the-key"), event_of(&name, "another"));
        keyed.push(one.id);
        db.store.accept(vec![one]).await.unwrap();
        db.store.accept(vec![other]).await.unwrap();
    }
    // One of them is delivered, and two are dead letters.
    for (name, outcome) in [
        ("of-b", Outcome::Delivered),
        ("of-a", Outcome::DeadLetter(Reason::Permanent)),
        ("of-c", Outcome::DeadLetter(Reason::Permanent)),
    ] {
        let claims = db.store.claim(vec![demand(name, 10)]).await.unwrap().claimed;
        for claim in claims {
            db.settle(&claim, outcome).await;
        }
    }
    db.store.accept(vec![event_of("without-the-key", "another")]).await.unwrap();
    let mut newest_first = keyed.clone();
    newest_first.reverse();
    assert_eq!(db.listed(filter.clone()).await, newest_first);

    for size in [PageSize { events: 3, looks: 3 }, PageSize { events: 100, looks: 3 }] {
        let first = db.store.list(filter.clone(), Span::ALL, size).await.unwrap();
        assert_eq!((ids(&first), first.next), (newest_first[..3].to_vec(), Some(keyed[1])));
        let rest = Span { until: keyed[1], ..Span::ALL };
        let second = db.store.list(filter.clone(), rest, size).await.unwrap();
        assert_eq!((ids(&second), second.next), (vec![keyed[0]], None));
    }
    let dead = EventFilter { status: Some(Status::DeadLettered), ..filter.clone() };
    assert_eq!(db.listed(dead).await, [keyed[3], keyed[2]]);

    let redriven = db.store.redrive_all(filter.clone(), Span::ALL, ROOMY, false).await.unwrap();
    assert_eq!((redriven.count(), redriven.next), (2, None));
    for (event, status) in
        keyed.iter().zip([Status::Delivered, Status::Queued, Status::Queued, Status::Queued])
    {
        assert_eq!(db.found(*event).await.status, status);
    }
}

async fn pages_have_no_gaps_and_no_repetitions(db: Db) {
    let mut events = Vec::new();
    for n in 0..7 {
        events.push(db.claimed(&format!("s{n}")).await.event);
    }
    events.reverse();
    for filter in [EventFilter::default(), standing(Status::Processing)] {
        for limit in [1, 2, 3, 7] {
            let (mut span, mut seen) = (Span::ALL, Vec::new());
            loop {
                let page = db
                    .store
                    .list(filter.clone(), span, PageSize { events: limit, looks: 100 })
                    .await
                    .unwrap();
                assert!(page.events.len() <= limit as usize);
                seen.extend(ids(&page));
                assert!(seen.len() <= events.len(), "{seen:?}");
                let Some(next) = page.next else { break };
                span.until = next;
            }
            assert_eq!(seen, events, "{filter:?} by {limit}");
        }
    }
    let middle = Span { from: events[4], until: events[1] };
    assert_eq!(
        ids(&db.store.list(EventFilter::default(), middle, ROOMY).await.unwrap()),
        events[2..=4]
    );
}

async fn a_page_stops_at_its_scan_limit_and_says_where_to_continue(db: Db) {
    let rare = db.accepted("rare").await;
    let mut others = Vec::new();
    for n in 0..6 {
        others.push(db.accepted(&format!("other{n}")).await);
    }
    let size = PageSize { events: 10, looks: 4 };
    let first = db.store.list(of("rare"), Span::ALL, size).await.unwrap();
    assert_eq!((ids(&first), first.next), (vec![], Some(others[2])));
    let second =
        db.store.list(of("rare"), Span { until: others[2], ..Span::ALL }, size).await.unwrap();
    assert_eq!((ids(&second), second.next), (vec![rare], None));
    let owed = EventFilter { source: Some(source("rare")), ..standing(Status::Queued) };
    assert_eq!(db.store.list(owed, Span::ALL, size).await.unwrap().next, Some(others[2]));
}

async fn a_page_has_its_span_and_scan_limit_on_every_path(db: Db) {
    let letters = db.letters("a", 6).await;
    db.letters("b", 3).await;
    db.standing("a", Status::Queued).await;
    let dead = standing(Status::DeadLettered);
    let dead_of_a = EventFilter { status: dead.status, ..of("a") };
    let span = Span { from: letters[1], until: letters[4] };
    for filter in [&dead_of_a, &dead, &of("a")] {
        let first = (vec![letters[3], letters[2]], Some(letters[2]));
        assert_eq!(db.two(filter, span).await, first, "{filter:?}");
        let rest = Span { until: letters[2], ..span };
        assert_eq!(db.two(filter, rest).await, (vec![letters[1]], None), "{filter:?}");
    }
    let size = PageSize { looks: 7, ..ROOMY };
    let page = db.store.list(dead_of_a, Span::ALL, size).await.unwrap();
    assert_eq!((page.events.len(), page.next), (6, None), "other events are not examined");

    let by_key = with_key("k2", of("a"));
    assert_eq!(db.two(&by_key, Span::ALL).await, (vec![letters[2]], None));
    for (from, until, is_inside) in [(2, 3, true), (1, 2, false), (3, 5, false)] {
        let span = Span { from: letters[from], until: letters[until] };
        let expected = if is_inside { vec![letters[2]] } else { vec![] };
        assert_eq!(db.two(&by_key, span).await, (expected, None), "{from}..{until}");
    }
}

async fn an_event_found_by_its_key_must_match_the_whole_filter(db: Db) {
    for name in ["a", "b"] {
        db.store.accept(vec![event_of(name, "k")]).await.unwrap();
        let claim = db.claim_one(name).await;
        let mut first = settlement(&claim, Outcome::Retry { after: Duration::ZERO });
        first.record.as_mut().unwrap().status_code = Some(500);
        assert_eq!(db.store.settle(vec![first]).await, Ok(vec![]));
        let claim = db.claim_one(name).await;
        db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    }
    let by_key = with_key("k", of("a"));
    let (status, other) = (Some(Status::DeadLettered), Some(Status::Queued));
    for (expected, filter) in [
        (1, by_key.clone()),
        (1, EventFilter { status, ..by_key.clone() }),
        (0, EventFilter { status: other, ..by_key.clone() }),
        (1, EventFilter { reason: Some(Reason::Permanent), ..by_key.clone() }),
        (0, EventFilter { reason: Some(Reason::Lost), ..by_key.clone() }),
        (1, EventFilter { status_code: Some(503), ..by_key.clone() }),
        (0, EventFilter { status_code: Some(500), ..by_key }),
    ] {
        assert_eq!(db.listed(filter.clone()).await.len(), expected, "{filter:?}");
    }
}

async fn a_listed_event_has_its_newest_attempt(db: Db) {
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Retry { after: Duration::ZERO }).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Exhausted)).await;
    let listed = db.store.list(of("a"), Span::ALL, ROOMY).await.unwrap().events;
    let mut found = db.found(claim.event).await;
    found.history.remove(0);
    assert_eq!((found.history[0].attempt, listed), (2, vec![found]));
}

async fn a_bulk_redrive_takes_only_matching_dead_letters(db: Db) {
    let (a, b) = (db.one_of_each("a").await, db.one_of_each("b").await);
    let lost = EventFilter { reason: Some(Reason::Lost), ..EventFilter::default() };
    for filter in [of("c"), lost, EventFilter { status_code: Some(500), ..of("a") }] {
        let page = db.store.redrive_all(filter, Span::ALL, ROOMY, false).await.unwrap();
        assert_eq!((page.count(), page.next), (0, None));
    }
    let refused =
        EventFilter { reason: Some(Reason::Permanent), status_code: Some(503), ..of("a") };
    assert_eq!(db.store.redrive_all(refused, Span::ALL, ROOMY, false).await.unwrap().count(), 1);
    for (index, status) in Status::ALL.into_iter().enumerate() {
        let now = if status == Status::DeadLettered { Status::Queued } else { status };
        assert_eq!(db.found(a[index]).await.status, now);
        assert_eq!(
            db.found(b[index]).await.status,
            status,
            "events of another source must not change"
        );
    }
    let again = db.found(a[4]).await;
    assert_eq!(
        (again.attempt, again.budget_from, again.reason, again.settled_at),
        (1, Some(1), None, None)
    );
    for (dry_run, sources) in
        [(true, vec!["b".into()]), (false, vec!["b".into()]), (true, vec![]), (false, vec![])]
    {
        let redrive = db.store.redrive_all(EventFilter::default(), Span::ALL, ROOMY, dry_run);
        let left = ChangedPage::new(sources, None);
        assert_eq!(redrive.await, Ok(left), "only the other source has a dead letter left");
    }
}

async fn a_bulk_redrive_has_its_span_and_scan_limit_on_every_path(db: Db) {
    db.letters("b", 3).await;
    let letters = db.letters("a", 6).await;
    db.letters("c", 3).await;
    db.standing("a", Status::Queued).await;
    let span = Span { from: letters[1], until: letters[4] };
    for filter in [&of("a"), &EventFilter::default()] {
        assert_eq!(db.two_redriven(filter, span).await, (2, Some(letters[2])), "{filter:?}");
        let rest = Span { from: letters[3], ..span };
        assert_eq!(db.two_redriven(filter, rest).await, (1, None), "{filter:?}");
    }
    let size = PageSize { looks: 7, ..ROOMY };
    let page = db.store.redrive_all(of("a"), Span::ALL, size, true).await.unwrap();
    assert_eq!((page.count(), page.next), (6, None), "other events are not examined");
    let page = db.store.redrive_all(EventFilter::default(), Span::ALL, ROOMY, true).await.unwrap();
    assert_eq!(page.count(), 12, "the queued event is not counted");

    let by_key = with_key("k2", of("a"));
    for (from, until, redriven) in [(0, 5, 1), (2, 3, 1), (1, 2, 0), (3, 5, 0)] {
        let span = Span { from: letters[from], until: letters[until] };
        assert_eq!(db.two_redriven(&by_key, span).await, (redriven, None), "{from}..{until}");
    }
}

async fn a_bulk_redrive_by_key_takes_only_matching_dead_letters(db: Db) {
    let (a, b) = (db.letters("a", 3).await, db.letters("b", 3).await);
    let by_key = with_key("k2", of("a"));
    assert_eq!(db.two_redriven(&by_key, Span::ALL).await, (1, None), "the key of one source");
    let of_both = with_key("k2", EventFilter::default());
    let page = db.store.redrive_all(of_both, Span::ALL, ROOMY, true).await.unwrap();
    assert_eq!(page.count(), 2);
    assert_eq!(db.store.redrive_all(by_key, Span::ALL, ROOMY, false).await.unwrap().count(), 1);
    assert_eq!(db.found(a[2]).await.status, Status::Queued);
    assert_eq!(db.found(b[2]).await.status, Status::DeadLettered);

    let claim = db.claim_one("a").await;
    let mut last = settlement(&claim, Outcome::DeadLetter(Reason::Permanent));
    last.record.as_mut().unwrap().status_code = Some(500);
    assert_eq!(db.store.settle(vec![last]).await, Ok(vec![]));
    for (status_code, redriven) in [(503, 0), (500, 1)] {
        let filter = EventFilter { status_code: Some(status_code), ..with_key("k2", of("a")) };
        assert_eq!(db.two_redriven(&filter, Span::ALL).await.0, redriven, "the newest attempt");
    }
}

async fn a_dry_run_counts_the_redrives_and_changes_nothing(db: Db) {
    let mut letters = Vec::new();
    for n in 0..5 {
        let claim = db.claimed(&format!("s{n}")).await;
        db.settle(&claim, Outcome::DeadLetter(Reason::Exhausted)).await;
        letters.push(claim.event);
    }
    for dry_run in [true, false] {
        let (mut span, mut redriven) = (Span::ALL, Vec::new());
        loop {
            let page = db
                .store
                .redrive_all(
                    EventFilter::default(),
                    span,
                    PageSize { events: 2, looks: 100 },
                    dry_run,
                )
                .await
                .unwrap();
            redriven.push(page.count());
            let Some(next) = page.next else { break };
            span.from = next.successor();
        }
        assert_eq!(redriven, [2, 2, 1], "oldest first, two on each page");
        let status = if dry_run { Status::DeadLettered } else { Status::Queued };
        for letter in &letters {
            assert_eq!(db.found(*letter).await.status, status);
        }
    }
}

async fn concurrent_bulk_redrives_queue_each_letter_once(db: Db) {
    for n in 0..40 {
        let claim = db.claimed(&format!("s{n}")).await;
        db.settle(&claim, Outcome::DeadLetter(Reason::Exhausted)).await;
    }
    let one = db.another();
    let (first, second) = tokio::join!(
        db.store.redrive_all(EventFilter::default(), Span::ALL, ROOMY, false),
        one.redrive_all(EventFilter::default(), Span::ALL, ROOMY, false)
    );
    assert_eq!(first.unwrap().count() + second.unwrap().count(), 40);
    assert_eq!(db.listed(standing(Status::Queued)).await.len(), 40);
}

async fn the_backlog_of_each_source_is_counted_by_status(db: Db) {
    db.one_of_each("b").await;
    db.store.accept(vec![event_of("b", "second"), event_of("b", "third")]).await.unwrap();
    db.standing("a", Status::Retrying).await;
    db.standing("gone", Status::DeadLettered).await;
    let records = db.store.sources(vec![source("z"), source("a")], 10).await.unwrap();
    let numbers = |index: usize| {
        let record = &records[index];
        (
            record.source.as_str(),
            record.queued,
            record.processing,
            record.retrying,
            record.dead_lettered,
            record.is_partial,
        )
    };
    assert_eq!(numbers(0), ("a", 0, 0, 1, 0, false));
    assert_eq!(numbers(1), ("b", 3, 1, 1, 1, false));
    assert_eq!(numbers(2), ("gone", 0, 0, 0, 1, false));
    assert_eq!(numbers(3), ("z", 0, 0, 0, 0, false));
    assert_eq!(records.len(), 4);
    assert_eq!(
        records.iter().map(|record| record.behind.is_some()).collect::<Vec<_>>(),
        [false, true, false, false]
    );
}

async fn the_sources_of_all_stored_events_are_named_once(db: Db) {
    assert_eq!(db.store.stored_sources().await, Ok(vec![]));
    db.standing("delivered", Status::Delivered).await;
    db.one_of_each("each").await;
    db.standing("0", Status::DeadLettered).await;
    db.store.pause(source("paused"), true).await.unwrap();
    let names = ["0", "delivered", "each"].map(str::to_owned).to_vec();
    assert_eq!(db.store.stored_sources().await, Ok(names));
}

async fn a_source_is_behind_by_the_age_of_its_oldest_due_event(db: Db) {
    let old = db.accepted("a").await;
    db.make_due(old, Duration::from_secs(100)).await;
    db.store.accept(vec![event_of("a", "newer")]).await.unwrap();
    let behind = db.store.sources(vec![], 10).await.unwrap()[0].behind.unwrap();
    assert!((100..=110).contains(&behind.as_secs()), "{behind:?}");
    let behind = db.store.sources(vec![], 1).await.unwrap()[0].behind.unwrap();
    assert!(behind.as_secs() >= 100, "the oldest event is counted first: {behind:?}");
    db.store.claim(vec![demand("a", 10)]).await.unwrap();
    assert_eq!(
        db.store.sources(vec![], 10).await.unwrap()[0].behind,
        None,
        "a claimed event is not due"
    );
}

async fn a_count_that_reaches_its_limit_is_partial(db: Db) {
    for n in 0..5 {
        db.store.accept(vec![event_of("a", &format!("{n}"))]).await.unwrap();
    }
    let records = db.store.sources(vec![], 3).await.unwrap();
    assert_eq!((records[0].queued, records[0].is_partial), (3, true));
    let records = db.store.sources(vec![], 6).await.unwrap();
    assert_eq!((records[0].queued, records[0].is_partial), (5, false));

    let claimed = db.store.claim(vec![demand("a", 5)]).await.unwrap().claimed;
    for (count_to, expected) in [(3, (3, true)), (5, (5, true)), (6, (5, false))] {
        let records = db.store.sources(vec![], count_to).await.unwrap();
        assert_eq!((records[0].processing, records[0].is_partial), expected);
    }
    for claim in &claimed {
        db.settle(claim, Outcome::DeadLetter(Reason::Permanent)).await;
    }
    for (count_to, expected) in [(3, (3, true)), (5, (5, true)), (6, (5, false))] {
        let records = db.store.sources(vec![], count_to).await.unwrap();
        assert_eq!((records[0].dead_lettered, records[0].is_partial), expected);
    }
}

async fn events_of_a_paused_source_are_not_claimed_until_it_is_resumed(db: Db) {
    let held = db.claimed("a").await;
    assert_eq!(db.store.pause(source("a"), true).await, Ok(true));
    for name in ["a", "b"] {
        db.store.accept(vec![event_of(name, "later")]).await.unwrap();
    }
    let claims = db.another().claim(vec![demand("a", 10), demand("b", 10)]).await.unwrap();
    assert_eq!(claims.claimed.iter().map(|claim| claim.source.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(
        db.store.settle(vec![settlement(&held, Outcome::Delivered)]).await,
        Ok(vec![]),
        "events in flight can be settled"
    );
    assert_eq!(db.another().pause(source("a"), false).await, Ok(true));
    assert_eq!(db.claim_one("a").await.source.as_str(), "a");
}

async fn a_pause_reports_whether_it_changed_anything_and_is_listed(db: Db) {
    let since = async || db.store.sources(vec![source("a")], 10).await.unwrap()[0].paused_since;
    assert_eq!((db.store.pause(source("a"), false).await, since().await), (Ok(false), None));
    assert_eq!(db.store.pause(source("a"), true).await, Ok(true));
    let paused_since = since().await;
    assert!(paused_since.is_some());
    assert_eq!(
        (db.store.pause(source("a"), true).await, since().await),
        (Ok(false), paused_since),
        "a second pause must not change the time"
    );
    assert_eq!((db.store.pause(source("a"), false).await, since().await), (Ok(true), None));
    assert_eq!(db.store.pause(source("a"), false).await, Ok(false));
    db.store.pause(source("idle"), true).await.unwrap();
    assert_eq!(
        db.store.sources(vec![], 10).await.unwrap()[0].source,
        "idle",
        "a paused source is listed even if it is not requested"
    );
    assert_eq!(since().await, None, "another source is paused");
    db.store.pause(source("a"), true).await.unwrap();
    assert_eq!(db.store.pause(source("a"), false).await, Ok(true));
    let idle = &db.store.sources(vec![], 10).await.unwrap()[0];
    assert!(idle.paused_since.is_some(), "another source was resumed");
}
