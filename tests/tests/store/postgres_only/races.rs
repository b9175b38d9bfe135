//! Races between two statements, provoked by triggers and by transactions that are held open.

use crate::db::{Db, LEASE, demand, event, events, settlement, source};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use surehook::ports::{Discarded, NewEvent, Pruned, Redriven, Retention, StoreError};
use surehook::store;
use surehook::store::postgres::sql;
use surehook_core::admission::Stored;
use surehook_core::due::Bound;
use surehook_core::event::{DiscardScope, Outcome, Reason, RedrivenBy, Status};
use surehook_core::retention::Reached;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// From now on, the next statement that inserts into `events` (even zero rows) deletes `key` at its
/// end, once.
async fn prune_between_insert_and_look(db: &Db, key: &str) {
    db.execute(&format!(
        "create table provoke as select '{key}'::text as key;
         create function provoke() returns trigger language plpgsql as $$
         declare doomed text;
         begin
             delete from provoke returning key into doomed;
             delete from deliveries using events where id = event_id and idempotency_key = doomed;
             delete from events where idempotency_key = doomed;
             return null;
         end $$;
         create trigger provoke after insert on events for each statement execute function provoke()"
    ))
    .await;
}

pub(super) async fn held_open(db: &Db, statements: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&db.url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("begin; {statements}")))
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

pub(super) async fn end(connection: &mut PgConnection, how: &'static str) {
    sqlx::raw_sql(how).execute(connection).await.unwrap();
}

/// Waits until this number of the store's sessions wait for a lock.
pub(super) async fn wait_for_waiting(db: &Db, sessions: i64) {
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'surehook' and wait_event_type = 'Lock'";
    let deadline = Instant::now() + Duration::from_secs(2);
    while db.number(waiting).await < sessions {
        assert!(Instant::now() < deadline, "too few sessions wait for a lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Inserts an uncommitted event with the key of another, so that inserting that key waits.
fn uncommitted(event: &NewEvent) -> String {
    let id = uuid::Uuid::now_v7();
    format!(
        "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
         values ('{id}', '{}', '{}', sha256(''), now(), '', '')",
        event.source, event.key
    )
}

#[tokio::test]
async fn a_conflicting_row_pruned_before_it_is_read_is_inserted_anew() {
    let db = Db::postgres().await;
    let old = event("key-00002");
    db.store.accept(vec![old.clone()]).await.unwrap();
    prune_between_insert_and_look(&db, "key-00002").await;
    assert_eq!(db.store.accept(events(0..5)).await, Ok(vec![Stored::Inserted; 5]));
    assert_eq!(db.count("provoke").await, 0, "the race was provoked");
    assert_eq!(
        (db.store.find(old.id).await, db.count("events").await, db.count("deliveries").await),
        (Ok(None), 5, 5)
    );
}

#[tokio::test]
async fn an_error_after_a_partial_commit_is_unknown() {
    let db = Db::postgres().await;
    let (old, other) = (event("key-00002"), event("other"));
    db.store.accept(vec![old, other.clone()]).await.unwrap();
    prune_between_insert_and_look(&db, "key-00002").await;
    // At first the key conflicts. When it is gone, the id conflicts with another event.
    let mut batch = events(0..5);
    batch[2].id = other.id;
    let answer = db.store.accept(batch).await;
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
    assert_eq!(db.count("events").await, 5);
}

#[tokio::test]
async fn a_dead_letter_that_is_being_redriven_is_not_pruned() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let everything = Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO };
    let redrive = "update deliveries set status = 'queued', due_at = now(), ended_at = null, reason = null, fence = fence + 1";
    let mut redriving = held_open(&db, redrive).await;
    assert_eq!(
        db.store.prune(everything, None, 10).await,
        Ok(Pruned { deleted: 0, dead_lettered: 0, discarded: 0, reached: Reached::END }),
        "pruning must not wait"
    );
    end(&mut redriving, "commit").await;
    assert_eq!(
        db.store.prune(everything, None, 10).await,
        Ok(Pruned { deleted: 0, dead_lettered: 0, discarded: 0, reached: Reached::END })
    );
    let found = db.found(claim.event).await;
    assert_eq!((found.status, found.history.len()), (Status::Queued, 1));
}

#[tokio::test]
async fn a_redrive_finds_nothing_after_a_concurrent_pruning() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let mut pruning =
        held_open(&db, "delete from deliveries; delete from attempts; delete from events").await;
    let store = Arc::clone(&db.store);
    let redrive =
        tokio::spawn(async move { store.redrive(claim.event, RedrivenBy::Operator).await });
    wait_for_waiting(&db, 1).await;
    end(&mut pruning, "commit").await;
    assert_eq!(redrive.await.unwrap(), Ok(Redriven::NotFound));
}

#[tokio::test]
async fn a_redrive_of_an_event_that_was_queued_by_hand_is_refused() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    // Unlike a redrive, this does not lock the row of the event.
    let queue =
        "insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
                 select id, now(), 1, 1, 1, source, 'queued' from events";
    let mut hand = held_open(&db, queue).await;
    let store = Arc::clone(&db.store);
    let redrive = tokio::spawn(async move { store.redrive_delivered(claim.event).await });
    wait_for_waiting(&db, 1).await;
    end(&mut hand, "commit").await;
    assert_eq!(redrive.await.unwrap(), Ok(Redriven::WrongStatus(Status::Queued)));
}

#[tokio::test]
async fn a_settlement_is_refused_when_the_row_is_claimed_first() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    let mut claiming = held_open(
        &db,
        "update deliveries set attempt = 2, fence = 2, due_at = now() + interval '1 hour'",
    )
    .await;
    let (store, settlement) =
        (Arc::clone(&db.store), crate::db::settlement(&claim, Outcome::Delivered));
    let settle = tokio::spawn(async move { store.settle(vec![settlement]).await });
    wait_for_waiting(&db, 1).await;
    end(&mut claiming, "commit").await;
    assert_eq!(settle.await.unwrap(), Ok(vec![claim.event]));
    assert_eq!((db.count("deliveries").await, db.count("attempts").await), (1, 0));
}

/// A batch is two statements: one for the delivered events, and one for the others.
#[tokio::test]
async fn a_settlement_of_which_a_part_is_committed_is_unknown_and_can_be_repeated() {
    let db = Db::postgres().await;
    let (delivered, refused) = (db.claimed("a").await, db.claimed("b").await);
    let batch = || {
        vec![
            settlement(&delivered, Outcome::Delivered),
            settlement(&refused, Outcome::DeadLetter(Reason::Permanent)),
        ]
    };
    let lock = format!("select from deliveries where event_id = '{}' for update", refused.event);
    let mut locking = held_open(&db, &lock).await;
    let answer = db.store.settle(batch()).await;
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
    assert_eq!((db.count("deliveries").await, db.count("attempts").await), (1, 1));
    end(&mut locking, "rollback").await;
    assert_eq!(db.store.settle(batch()).await, Ok(vec![delivered.event]));
    assert_eq!(db.found(delivered.event).await.status, Status::Delivered);
    assert_eq!(db.found(refused.event).await.status, Status::DeadLettered);
    assert_eq!(db.count("attempts").await, 2);
}

#[tokio::test]
async fn a_claim_skips_locked_rows_without_waiting() {
    let db = Db::postgres().await;
    let batch = events(0..4);
    db.store.accept(batch.clone()).await.unwrap();
    let mut locking = held_open(
        &db,
        &format!("select from deliveries where event_id = '{}' for update", batch[0].id),
    )
    .await;
    assert_eq!(db.store.claim(vec![demand("orders", 9)]).await.unwrap().claimed.len(), 3);
    end(&mut locking, "rollback").await;
    assert_eq!(db.store.claim(vec![demand("orders", 9)]).await.unwrap().claimed.len(), 1);
}

#[tokio::test]
async fn claims_start_a_second_before_the_last_claimed_row() {
    let db = Db::postgres().await;
    let store = store::open(&db.url).unwrap().store();
    let due = "timestamptz '2020-01-01' + place * interval '1 second'";
    let batch = events(0..60);
    db.store.accept(batch.clone()).await.unwrap();
    db.execute(&format!(
        "update deliveries set due_at = {due}
         from (select event_id as id, row_number() over (order by event_id) as place from deliveries) as row
         where event_id = id"
    ))
    .await;
    let claimed = async |limit: u32| {
        let claims = store.claim(vec![demand("orders", limit)]).await.unwrap();
        claims.claimed.iter().map(|claim| claim.event).collect::<BTreeSet<_>>()
    };
    let in_order =
        |range: Range<usize>| batch[range].iter().map(|event| event.id).collect::<BTreeSet<_>>();
    assert_eq!(claimed(10).await, in_order(0..10), "a period starts at the front");
    // Rows that another claim had locked, and has released since.
    let mut released = Vec::new();
    for place in [8, 9] {
        let event = event(&format!("due-{place}"));
        db.store.accept(vec![event.clone()]).await.unwrap();
        let due = due.replace("place", &place.to_string());
        db.execute(&format!(
            "update deliveries set due_at = {due} where event_id = '{}'",
            event.id
        ))
        .await;
        released.push(event.id);
    }
    let mut expected = in_order(10..40);
    expected.insert(released[1]);
    assert_eq!(claimed(31).await, expected, "the last claimed row is due at place 10");
    next_period().await;
    let mut expected = in_order(40..60);
    expected.insert(released[0]);
    assert_eq!(claimed(31).await, expected, "the next period finds the row at place 8");
}

/// Moves the clock of the store forward by the longest period of the cursors.
async fn next_period() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_mins(1)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn settlements_lock_their_rows_in_the_order_of_ids() {
    for outcome in [Outcome::Delivered, Outcome::Retry { after: LEASE }] {
        let db = Db::postgres().await;
        db.store.accept(events(0..21)).await.unwrap();
        let mut claimed = db.store.claim(vec![demand("orders", 21)]).await.unwrap().claimed;
        claimed.sort_by_key(|claim| claim.event);
        let middle = claimed[10].event;
        let lock = format!("select from deliveries where event_id = '{middle}' for update");
        let mut holding = held_open(&db, &lock).await;
        let batch = claimed.iter().rev().map(|claim| settlement(claim, outcome)).collect();
        let store = db.another();
        let settling = tokio::spawn(async move { store.settle(batch).await });
        wait_for_waiting(&db, 1).await;
        for (side, unlocked) in [("<", 0), (">", 10)] {
            let free = format!(
                "select count(*) from (select from deliveries where event_id {side} '{middle}' for update skip locked) as free"
            );
            assert_eq!(db.number(&free).await, unlocked, "rows {side} the locked one, {outcome:?}");
        }
        end(&mut holding, "rollback").await;
        assert_eq!(settling.await.unwrap(), Ok(vec![]));
    }
}

#[tokio::test]
async fn a_lock_timeout_is_a_conflict_and_stores_nothing() {
    let db = Db::postgres().await;
    let batch = events(0..3);
    let mut inserting = held_open(&db, &uncommitted(&batch[1])).await;
    let answer = db.store.accept(batch.clone()).await;
    assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    end(&mut inserting, "rollback").await;
    assert_eq!((db.count("events").await, db.count("deliveries").await), (0, 0));
    assert_eq!(db.store.accept(batch).await, Ok(vec![Stored::Inserted; 3]));
}

#[tokio::test]
async fn a_blocked_intake_fails_in_time_and_leaves_the_worker_its_connections() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    let batch = events(0..1);
    let mut inserting = held_open(&db, &uncommitted(&batch[0])).await;
    let stuck: Vec<_> = (0..5)
        .map(|_| {
            let (store, batch) = (Arc::clone(&db.store), events(0..1));
            tokio::spawn(async move { store.accept(batch).await })
        })
        .collect();
    wait_for_waiting(&db, 5).await;
    db.make_due(claim.event, LEASE).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    db.store.ping().await.unwrap();
    let started = Instant::now();
    let answer = db.store.accept(events(5..6)).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    assert!((1400..1900).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    end(&mut inserting, "rollback").await;
    for accept in stuck {
        let answer = accept.await.unwrap();
        assert!(matches!(answer, Ok(_) | Err(StoreError::Conflict(_))), "{answer:?}");
    }
    assert_eq!(db.store.accept(events(5..6)).await, Ok(vec![Stored::Inserted]));
}

#[tokio::test]
async fn a_call_dropped_while_waiting_for_a_lock_ends_with_it() {
    let db = Db::postgres().await;
    let batch = events(0..1);
    let mut inserting = held_open(&db, &uncommitted(&batch[0])).await;
    let (store, dropped) = (Arc::clone(&db.store), batch.clone());
    let accept = tokio::spawn(async move { store.accept(dropped).await });
    wait_for_waiting(&db, 1).await;
    accept.abort();
    assert!(accept.await.unwrap_err().is_cancelled());
    end(&mut inserting, "rollback").await;
    db.wait_for_no_transaction().await;
    assert_eq!(db.store.accept(batch.clone()).await.unwrap().len(), 1);
    assert_eq!(db.found(batch[0].id).await.status, Status::Queued);
}

#[tokio::test]
async fn a_call_with_a_terminated_session_is_unknown() {
    let db = Db::postgres().await;
    let batch = events(0..1);
    let mut inserting = held_open(&db, &uncommitted(&batch[0])).await;
    let (store, cut) = (Arc::clone(&db.store), batch.clone());
    let accept = tokio::spawn(async move { store.accept(cut).await });
    wait_for_waiting(&db, 1).await;
    db.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'surehook'",
    )
    .await;
    let answer = accept.await.unwrap();
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
    end(&mut inserting, "rollback").await;
    assert_eq!(
        db.store.accept(batch).await,
        Ok(vec![Stored::Inserted]),
        "the next call uses a new session"
    );
}

#[tokio::test]
async fn a_manual_change_during_a_settlement_leaves_it_complete_or_refused() {
    for outcome in [
        Outcome::Delivered,
        Outcome::Retry { after: LEASE },
        Outcome::DeadLetter(Reason::Permanent),
        Outcome::Release,
    ] {
        let db = Db::postgres().await;
        let claim = db.claimed("a").await;
        // Unlike every transition of the store, this leaves the fence unchanged.
        let mut hand =
            held_open(&db, "update deliveries set due_at = due_at - interval '1 hour'").await;
        let (store, batch) = (db.another(), vec![settlement(&claim, outcome)]);
        let settling = tokio::spawn(async move { store.settle(batch).await });
        wait_for_waiting(&db, 1).await;
        end(&mut hand, "commit").await;
        let refused = settling.await.unwrap().unwrap();
        let found = db.found(claim.event).await;
        if refused.is_empty() {
            assert_ne!(found.status, Status::Processing, "{outcome:?}");
        } else {
            assert_eq!(
                (refused, found.status, found.history.len()),
                (vec![claim.event], Status::Processing, 0),
                "{outcome:?}"
            );
            assert_eq!(db.claim_one("a").await.attempt, 2, "it is claimable again after its lease");
        }
    }
}

#[tokio::test]
async fn a_due_time_capped_during_a_settlement_does_not_refuse_it() {
    for outcome in [Outcome::Delivered, Outcome::Retry { after: LEASE }, Outcome::Release] {
        let db = Db::postgres().await;
        let claim = db.claimed("a").await;
        let mut capping = held_open(&db, "").await;
        let capped: i64 = sqlx::query_scalar(sql::CAP_DUE_TIMES)
            .bind(vec!["a"])
            .bind(vec![0i64])
            .bind(vec![1_000_000i64])
            .bind(100i64)
            .fetch_one(&mut capping)
            .await
            .unwrap();
        assert_eq!(capped, 1);
        let stale = db.claimed("b").await;
        let again = db.another();
        db.make_due(stale.event, LEASE).await;
        assert_eq!(again.claim(vec![demand("b", 1)]).await.unwrap().claimed.len(), 1);
        let batch = vec![settlement(&claim, outcome), settlement(&stale, outcome)];
        let settling = tokio::spawn(async move { again.settle(batch).await });
        wait_for_waiting(&db, 1).await;
        end(&mut capping, "commit").await;
        assert_eq!(settling.await.unwrap(), Ok(vec![stale.event]), "{outcome:?}");
        assert_ne!(db.found(claim.event).await.status, Status::Processing, "{outcome:?}");
    }
}

#[tokio::test]
async fn capping_skips_locked_rows_without_waiting() {
    let db = Db::postgres().await;
    let claims = [db.claimed("a").await, db.claimed("b").await];
    let bounds = ["a", "b"].map(|name| Bound {
        source: source(name),
        horizon: Duration::ZERO,
        lease: Duration::from_secs(1),
    });
    let mut settling = held_open(&db, "update deliveries set fence = 2 where source = 'a'").await;
    assert_eq!(db.store.cap_due_times(bounds.to_vec(), 100).await, Ok(1), "one row is locked");
    end(&mut settling, "rollback").await;
    assert!(db.fence_and_due(claims[0].event).await.1.unwrap() > 30);
    assert!(db.fence_and_due(claims[1].event).await.1.unwrap() <= 1);
}

#[tokio::test]
async fn a_manual_change_during_pruning_leaves_the_event_whole_or_deleted() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let mut hand = held_open(&db, "update deliveries set reason = 'lost'").await;
    let everything = Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO };
    assert_eq!(
        db.store.prune(everything, None, 100).await.unwrap().deleted,
        0,
        "the row is locked"
    );
    end(&mut hand, "commit").await;
    assert_eq!((db.count("events").await, db.count("deliveries").await), (1, 1));
    assert_eq!(db.store.prune(everything, None, 100).await.unwrap().deleted, 1);
    assert_eq!(
        (db.count("events").await, db.count("deliveries").await, db.count("attempts").await),
        (0, 0, 0)
    );
}

/// Starts a retention step that sees the present rows, and waits a second before it acts. Returns
/// the number of events that it changed.
async fn slowly(
    db: &Db,
    statement: &'static str,
    retentions: impl FnOnce(Query<'_, Postgres, PgArguments>) -> Query<'_, Postgres, PgArguments>,
) -> JoinHandle<i64> {
    let slow = statement.replacen(
        "limit $2",
        "limit $2 + (select count(*) - 1 from (select pg_sleep(1)) as nap)",
        1,
    );
    assert_ne!(slow, statement);
    let mut session = PgConnection::connect(&db.url).await.unwrap();
    let query = retentions(sqlx::query(AssertSqlSafe(slow)).bind(None::<Uuid>).bind(100i64));
    let step = tokio::spawn(async move {
        query.fetch_one(&mut session).await.unwrap().get::<i64, _>("changed")
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    step
}

#[tokio::test]
async fn erasing_skips_an_event_redriven_after_it_was_selected() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    let erased = db.claimed("b").await;
    db.settle(&erased, Outcome::Delivered).await;
    let erasing = slowly(&db, sql::ERASE, |query| query.bind(0i64)).await;
    assert_eq!(db.store.redrive_delivered(claim.event).await, Ok(Redriven::Queued));
    assert_eq!(erasing.await.unwrap(), 1, "only the other event is changed");
    assert_eq!(db.claim_one("a").await.body, claim.body);
    assert_eq!(db.store.redrive_delivered(erased.event).await, Ok(Redriven::Erased));
}

#[tokio::test]
async fn pruning_skips_an_event_redriven_after_it_was_selected() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    let again = db.claimed("b").await;
    db.settle(&again, Outcome::Delivered).await;
    let pruning = slowly(&db, sql::PRUNE, |query| query.bind(0i64).bind(0i64)).await;
    assert_eq!(db.store.redrive_delivered(claim.event).await, Ok(Redriven::Queued));
    assert_eq!(pruning.await.unwrap(), 1, "only the other event is changed");
    assert_eq!(
        (db.count("events").await, db.count("deliveries").await, db.count("attempts").await),
        (1, 1, 1)
    );
    assert_eq!(db.claim_one("a").await.body, claim.body);
}

#[tokio::test]
async fn pruning_skips_a_letter_dead_lettered_again_after_it_was_selected() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let pruned = db.claimed("b").await;
    db.settle(&pruned, Outcome::DeadLetter(Reason::Permanent)).await;
    let pruning = slowly(&db, sql::PRUNE, |query| query.bind(0i64).bind(0i64)).await;
    assert_eq!(db.store.redrive(claim.event, RedrivenBy::Operator).await, Ok(Redriven::Queued));
    let again = db.claim_one("a").await;
    db.settle(&again, Outcome::DeadLetter(Reason::Permanent)).await;
    assert_eq!(pruning.await.unwrap(), 1, "only the other event is deleted");
    assert_eq!(
        (db.count("events").await, db.count("deliveries").await, db.count("attempts").await),
        (1, 1, 2)
    );
    assert_eq!(db.found(claim.event).await.status, Status::DeadLettered);
}

#[tokio::test]
async fn retention_skips_locked_events_without_waiting() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    let other = db.claimed("b").await;
    db.settle(&other, Outcome::Delivered).await;
    // As a replay of the event's key locks it.
    let lock = format!("select from events where id = '{}' for key share", claim.event);
    let mut replaying = held_open(&db, &lock).await;
    let everything = Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO };
    assert_eq!(db.store.erase(Duration::ZERO, None, 10).await.unwrap().erased, 1);
    assert_eq!(db.store.prune(everything, None, 10).await.unwrap().deleted, 1);
    assert!(db.store.find(claim.event).await.unwrap().is_some());
    end(&mut replaying, "rollback").await;
    assert_eq!(db.store.erase(Duration::ZERO, None, 10).await.unwrap().erased, 1);
    assert_eq!(db.store.prune(everything, None, 10).await.unwrap().deleted, 1);
}

#[tokio::test]
async fn a_waiting_redrive_of_a_delivered_event_evaluates_the_row_again() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    // The other operator has queued it, and it was delivered again. The waiting statement must
    // evaluate the row again.
    let other = "update events set redrives = 1; insert into attempts
                 select event_id, 2, ended_at, took_us, status_code, verdict, error, excerpt from attempts";
    let mut redriving = held_open(&db, other).await;
    let (store, event) = (Arc::clone(&db.store), claim.event);
    let waiting = tokio::spawn(async move { store.redrive_delivered(event).await });
    wait_for_waiting(&db, 1).await;
    end(&mut redriving, "commit").await;
    assert_eq!(waiting.await.unwrap(), Ok(Redriven::Queued));
    assert_eq!(db.claim_one("a").await.attempt, 3, "the waiting redrive must see the new attempt");
}

#[tokio::test]
async fn a_redrive_that_waits_for_the_erasure_of_its_event_finds_it_erased() {
    let db = Db::postgres().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Delivered).await;
    let erasure =
        "update events set query = '', headers = '', body = '', erased_at = statement_timestamp()";
    let mut erasing = held_open(&db, erasure).await;
    let (store, event) = (Arc::clone(&db.store), claim.event);
    let waiting = tokio::spawn(async move { store.redrive_delivered(event).await });
    wait_for_waiting(&db, 1).await;
    end(&mut erasing, "commit").await;
    assert_eq!(waiting.await.unwrap(), Ok(Redriven::Erased));
}

#[tokio::test]
async fn calls_that_wait_for_the_same_event_do_not_deadlock() {
    let db = Db::postgres().await;
    let delivered = db.claimed("a").await;
    db.settle(&delivered, Outcome::Delivered).await;
    let dead = db.claimed("b").await;
    db.settle(&dead, Outcome::DeadLetter(Reason::Permanent)).await;
    let lock = "select from events for update; select from deliveries for update";
    let mut holding = held_open(&db, lock).await;
    let stores = [db.another(), db.another()];
    let redrives = stores
        .clone()
        .map(|store| tokio::spawn(async move { store.redrive_delivered(delivered.event).await }));
    let discards = stores.map(|store| {
        tokio::spawn(async move { store.discard(dead.event, DiscardScope::DeadLetters).await })
    });
    wait_for_waiting(&db, 4).await;
    end(&mut holding, "rollback").await;
    let mut answers = (Vec::new(), Vec::new());
    for (redrive, discard) in redrives.into_iter().zip(discards) {
        answers.0.push(redrive.await.unwrap());
        answers.1.push(discard.await.unwrap());
    }
    for expected in [Redriven::Queued, Redriven::WrongStatus(Status::Queued)] {
        assert!(answers.0.contains(&Ok(expected)), "{answers:?}");
    }
    for expected in [Discarded::Now, Discarded::Before] {
        assert!(answers.1.contains(&Ok(expected)), "{answers:?}");
    }
}
