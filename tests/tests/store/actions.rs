//! Recorded actions: each redrive and each discard is in the history of its event, with its time, and is
//! deleted with it.

use crate::db::{Db, LEASE, Raw, event_of, source};
use jiff::Timestamp;
use std::time::Duration;
use surehook::ports::{Discarded, Redriven, Retention};
use surehook::search::{EventFilter, PageSize, Span};
use surehook_core::event::DiscardScope::{DeadLetters, Unclaimed};
use surehook_core::event::{Action, Outcome, Reason, RedrivenBy};
use surehook_core::id::EventId;
use uuid::Uuid;

clauses! {
    each_redrive_and_discard_is_recorded_in_order
        => RecordsNoRedrive | RecordsNoRedelivery | RecordsNoDiscard | RecordsReplaysAsOperators | ActionsNewestFirst
        | ActionsWithoutAttempts,
    each_event_of_a_bulk_action_records_it => RecordsNoBulkRedrive | RecordsNoBulkDiscard,
    an_action_has_the_time_of_its_transition => RecordsTheTimeOfTheEnd,
    an_action_that_changes_nothing_is_not_recorded => RecordsRefusedActions | RecordsOnADryRun,
    only_the_record_of_one_event_has_its_actions => ListsActions,
    actions_are_deleted_with_their_event => LeavesActions,
}

beyond_the_port! {
    manually_inserted_rows_do_not_block_actions,
}

const ROOMY: PageSize = PageSize { events: 100, looks: 1000 };

impl Db {
    /// The actions of an event, each with the attempts before it.
    async fn actions(&self, event: EventId) -> Vec<(Action, u32)> {
        let actions = self.found(event).await.actions;
        actions.into_iter().map(|entry| (entry.action, entry.attempt)).collect()
    }

    /// Makes the only due event of its source a dead letter.
    async fn dies(&self, source: &str) -> EventId {
        let claim = self.claim_one(source).await;
        self.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
        claim.event
    }

    /// A new dead letter of a separate source.
    async fn dead_letter(&self, source: &str) -> EventId {
        self.accepted(source).await;
        self.dies(source).await
    }

    async fn redriven(&self, event: EventId, by: RedrivenBy) {
        assert_eq!(self.store.redrive(event, by).await, Ok(Redriven::Queued));
    }
}

async fn each_redrive_and_discard_is_recorded_in_order(db: Db) {
    let event = db.dead_letter("a").await;
    let other = db.dead_letter("b").await;
    assert!(db.actions(event).await.is_empty());
    let mut expected = Vec::new();

    db.redriven(event, RedrivenBy::Operator).await;
    expected.push((Action::Redriven, 1));
    assert_eq!(db.actions(event).await, expected);

    db.dies("a").await;
    assert_eq!(db.store.discard(event, DeadLetters).await, Ok(Discarded::Now));
    db.redriven(event, RedrivenBy::Replay).await;
    expected.extend([(Action::Discarded, 2), (Action::RedrivenByReplay, 2)]);
    assert_eq!(db.actions(event).await, expected);

    // Its source has left the configuration.
    assert_eq!(db.store.discard(event, Unclaimed).await, Ok(Discarded::Now));
    db.redriven(event, RedrivenBy::Operator).await;
    expected.extend([(Action::Discarded, 2), (Action::Redriven, 2)]);
    assert_eq!(db.actions(event).await, expected);

    for attempt in 3..5 {
        let claim = db.claim_one("a").await;
        db.settle(&claim, Outcome::Delivered).await;
        assert_eq!(db.actions(event).await, expected, "a delivered event keeps its actions");
        assert_eq!(db.store.redrive_delivered(event).await, Ok(Redriven::Queued));
        expected.push((Action::Redriven, attempt));
        assert_eq!(db.actions(event).await, expected);
    }
    assert_eq!(db.store.discard(event, Unclaimed).await, Ok(Discarded::Now));
    expected.push((Action::Discarded, 4));
    assert_eq!(db.actions(event).await, expected);
    assert!(db.actions(other).await.is_empty(), "another event has no actions");
}

async fn each_event_of_a_bulk_action_records_it(db: Db) {
    let events = [db.dead_letter("a").await, db.dead_letter("b").await, db.dead_letter("c").await];
    let all = EventFilter::default;
    let size = PageSize { events: 2, looks: 1000 };
    let page = db.store.redrive_all(all(), Span::ALL, size, false).await.unwrap();
    assert_eq!(page.count(), 2);
    for (event, recorded) in events.iter().zip([true, true, false]) {
        let expected = if recorded { vec![(Action::Redriven, 1)] } else { vec![] };
        assert_eq!(db.actions(*event).await, expected);
    }
    db.dies("a").await;
    let page = db.store.discard_all(all(), DeadLetters, Span::ALL, ROOMY, false).await.unwrap();
    assert_eq!(page.count(), 2);
    assert_eq!(db.actions(events[0]).await, [(Action::Redriven, 1), (Action::Discarded, 2)]);
    assert_eq!(db.actions(events[1]).await, [(Action::Redriven, 1)], "it is not a dead letter");
    assert_eq!(db.actions(events[2]).await, [(Action::Discarded, 1)]);
}

async fn an_action_has_the_time_of_its_transition(db: Db) {
    let event = db.dead_letter("a").await;
    db.age(event, Duration::from_hours(1)).await;
    let ended = db.found(event).await.settled_at.unwrap();
    let is_new = |at: Timestamp| at >= ended + Duration::from_mins(59);
    assert_eq!(db.store.discard(event, DeadLetters).await, Ok(Discarded::Now));
    let found = db.found(event).await;
    assert_eq!(found.settled_at, Some(ended));
    assert!(is_new(found.actions[0].at), "{found:?}");

    db.redriven(event, RedrivenBy::Operator).await;
    let found = db.found(event).await;
    assert_eq!(Some(found.actions[1].at), found.next_attempt_at, "{found:?}");
    assert!(found.actions[0].at <= found.actions[1].at && is_new(found.actions[1].at), "{found:?}");

    assert_eq!(db.store.discard(event, Unclaimed).await, Ok(Discarded::Now));
    let found = db.found(event).await;
    assert_eq!(Some(found.actions[2].at), found.settled_at, "{found:?}");
}

async fn an_action_that_changes_nothing_is_not_recorded(db: Db) {
    let waiting = db.accepted("waiting").await;
    let dead = db.dead_letter("dead").await;
    for by in [RedrivenBy::Operator, RedrivenBy::Replay] {
        assert!(matches!(db.store.redrive(waiting, by).await, Ok(Redriven::WrongStatus(_))));
    }
    for event in [waiting, dead] {
        assert!(matches!(db.store.redrive_delivered(event).await, Ok(Redriven::WrongStatus(_))));
    }
    let refused = db.store.discard(waiting, DeadLetters).await;
    assert!(matches!(refused, Ok(Discarded::WrongStatus(_))), "{refused:?}");
    let all = EventFilter::default;
    let counted = db.store.redrive_all(all(), Span::ALL, ROOMY, true).await.unwrap();
    assert_eq!(counted.count(), 1);
    let counted = db.store.discard_all(all(), DeadLetters, Span::ALL, ROOMY, true).await.unwrap();
    assert_eq!(counted.count(), 1);
    let unknown = EventId::from_uuid(Uuid::now_v7());
    assert_eq!(db.store.redrive(unknown, RedrivenBy::Operator).await, Ok(Redriven::NotFound));
    assert_eq!(db.count("actions").await, 0);

    assert_eq!(db.store.discard(dead, DeadLetters).await, Ok(Discarded::Now));
    assert_eq!(db.store.discard(dead, DeadLetters).await, Ok(Discarded::Before));
    assert_eq!(db.actions(dead).await, [(Action::Discarded, 1)]);
}

async fn only_the_record_of_one_event_has_its_actions(db: Db) {
    let event = db.dead_letter("a").await;
    db.redriven(event, RedrivenBy::Operator).await;
    let mut found = db.found(event).await;
    assert_eq!(found.actions.len(), 1);
    found.actions.clear();
    let page = db.store.list(EventFilter::default(), Span::ALL, ROOMY).await.unwrap();
    assert_eq!(page.events, [found]);
}

async fn actions_are_deleted_with_their_event(db: Db) {
    let everything = Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO };
    let discarded = db.dead_letter("a").await;
    for _ in 0..2 {
        assert_eq!(db.store.discard(discarded, DeadLetters).await, Ok(Discarded::Now));
        db.redriven(discarded, RedrivenBy::Operator).await;
        db.dies("a").await;
    }
    let delivered = db.dead_letter("b").await;
    db.redriven(delivered, RedrivenBy::Operator).await;
    let claim = db.claim_one("b").await;
    db.settle(&claim, Outcome::Delivered).await;
    let waiting = db.dead_letter("c").await;
    db.redriven(waiting, RedrivenBy::Operator).await;
    let new = event_of("d", "d");
    db.store.accept(vec![new]).await.unwrap();
    for event in [discarded, delivered, waiting] {
        db.age(event, Duration::from_hours(1)).await;
    }
    assert_eq!(db.store.prune(everything, None, 10).await.unwrap().deleted, 2);
    assert_eq!(db.count("actions").await, 1);
    assert_eq!(db.actions(waiting).await, [(Action::Redriven, 1)]);
}

/// The fences of the next actions have rows already, and so has the attempt that is lost.
async fn manually_inserted_rows_do_not_block_actions(db: Db) {
    let event = db.dead_letter("a").await;
    let lost = [db.claimed("b").await.event, db.claimed("c").await.event];
    let (fence, _) = db.fence_and_due(event).await;
    let redelivered = 2_u64 << 31;
    let (now, nothing) =
        if matches!(db.raw, Raw::Postgres(_)) { ("now()", "''") } else { ("0", "x''") };
    for fence in (fence + 1..=fence + 5).chain([redelivered]) {
        let id = db.id(event);
        db.execute(&format!("insert into actions values ({id}, {fence}, {now}, 99, 'discarded')"))
            .await;
    }
    for event in lost {
        let id = db.id(event);
        db.execute(&format!(
            "insert into attempts (event_id, attempt, ended_at, verdict, error, excerpt)
             values ({id}, 1, {now}, 'transient', 'by hand', {nothing})"
        ))
        .await;
    }

    let all = || EventFilter { source: Some(source("a")), ..EventFilter::default() };
    let discarded = || EventFilter { reason: Some(Reason::Discarded), ..all() };
    db.redriven(event, RedrivenBy::Operator).await;
    assert_eq!(db.store.discard(event, Unclaimed).await, Ok(Discarded::Now));
    let page = db.store.redrive_all(discarded(), Span::ALL, ROOMY, false).await.unwrap();
    assert_eq!(page.count(), 1);
    let page = db.store.discard_all(all(), Unclaimed, Span::ALL, ROOMY, false).await.unwrap();
    assert_eq!(page.count(), 1);
    db.redriven(event, RedrivenBy::Replay).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    assert_eq!(db.store.redrive_delivered(event).await, Ok(Redriven::Queued));
    assert_eq!(db.actions(event).await, [(Action::Discarded, 99); 6], "existing rows are kept");

    for event in lost {
        db.make_due(event, LEASE).await;
    }
    assert_eq!(db.store.discard(lost[0], Unclaimed).await, Ok(Discarded::Now));
    let of_other = EventFilter { source: Some(source("c")), ..EventFilter::default() };
    let page = db.store.discard_all(of_other, Unclaimed, Span::ALL, ROOMY, false).await.unwrap();
    assert_eq!(page.count(), 1);
    for event in lost {
        let found = db.found(event).await;
        assert_eq!(found.history.len(), 1);
        assert_eq!(found.history[0].error.as_deref(), Some("by hand"), "the entry is kept");
    }
}
