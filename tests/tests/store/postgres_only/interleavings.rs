//! Two concurrent calls of the port. The first is stopped when its statement has finished but not
//! committed. Then it continues, or its session is terminated. The simulation's oracles judge the
//! row changes.

use super::races::wait_for_waiting;
use crate::db::{Db, demand, event, events, settlement, source};
use sqlx::{Connection, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook::ports::{Discarded, NewEvent, Pruned, Redriven, Retention, StoreError};
use surehook::search::{ChangedPage, EventFilter, PageSize, Span};
use surehook_core::admission::Stored;
use surehook_core::event::{DiscardScope, Outcome, Reason, RedrivenBy, Status};
use surehook_core::id::EventId;
use surehook_core::retention::Reached;
use surehook_core::worker::claims::{Claim, Claims, Demand, Settlement};
use surehook_model::history::{Entry, Run, What};
use surehook_model::oracles;
use tests::audit;
use tests::database::Database;
use tokio::task::JoinHandle;

const EVERYTHING: Retention =
    Retention { delivered: Duration::ZERO, dead_lettered: Duration::ZERO };

/// The first call that writes to `deliveries` stops before its commit. Later calls are not stopped.
struct Gate<'a> {
    db: &'a Db,
    connection: PgConnection,
}

impl<'a> Gate<'a> {
    async fn closed(db: &'a Db) -> Self {
        db.execute(
            "create function stop() returns trigger language plpgsql as $$
             begin
                 if pg_try_advisory_xact_lock(2) then
                     perform pg_advisory_xact_lock(1);
                 end if;
                 return null;
             end $$;
             create trigger stop after insert or update or delete on deliveries for each statement execute function stop()",
        )
        .await;
        let mut connection = PgConnection::connect(&db.url).await.unwrap();
        sqlx::raw_sql("select pg_advisory_lock(1)").execute(&mut connection).await.unwrap();
        Self { db, connection }
    }

    /// Waits until this number of calls wait, including the stopped one.
    async fn waiting(&self, calls: i64) {
        wait_for_waiting(self.db, calls).await;
    }

    /// Lets the stopped call continue.
    async fn open(mut self) {
        sqlx::raw_sql("select pg_advisory_unlock(1)").execute(&mut self.connection).await.unwrap();
    }

    /// Rolls the stopped call back.
    async fn cut(self) {
        let stopped = "select pg_terminate_backend(pid) from pg_locks
                       where locktype = 'advisory' and objid = 1 and not granted
                       and database = (select oid from pg_database where datname = current_database())";
        self.db.execute(stopped).await;
        self.open().await;
    }
}

/// A fresh database whose changes are recorded.
async fn recorded() -> Db {
    let db = Db::postgres().await;
    audit::install(&Database::Postgres(db.url.clone())).await;
    db
}

/// Runs the oracles on every committed change.
async fn judge(db: &Db) {
    let database = Database::Postgres(db.url.clone());
    let mut run = Run::default();
    let changes = audit::read(&database).await;
    let begun_at =
        changes.iter().map(|(at, _)| *at).min().expect("at least one change was committed");
    for (at, committed) in changes {
        let at = Duration::try_from(at.duration_since(begun_at)).unwrap();
        run.entries.push(Entry { at, what: What::Committed(committed) });
    }
    let mut found = BTreeMap::new();
    for event in audit::events(&database).await {
        found.insert(event, db.found(event).await);
    }
    run.events = found;
    assert_eq!(oracles::judge(&run), []);
}

// Each call uses its own store, as in another process.

fn accept(db: &Db, batch: Vec<NewEvent>) -> JoinHandle<Result<Vec<Stored>, StoreError>> {
    let store = db.another();
    tokio::spawn(async move { store.accept(batch).await })
}

fn claim(db: &Db, source: &str, limit: u32) -> JoinHandle<Result<Claims, StoreError>> {
    let (store, demand) = (db.another(), demand(source, limit));
    tokio::spawn(async move { store.claim(vec![demand]).await })
}

fn settle(
    db: &Db,
    claim: &Claim,
    outcome: Outcome,
) -> JoinHandle<Result<Vec<EventId>, StoreError>> {
    let (store, settlement) = (db.another(), settlement(claim, outcome));
    tokio::spawn(async move { store.settle(vec![settlement]).await })
}

fn prune(db: &Db) -> JoinHandle<Result<Pruned, StoreError>> {
    let store = db.another();
    tokio::spawn(async move { store.prune(EVERYTHING, None, 100).await })
}

fn redrive_all(db: &Db) -> JoinHandle<Result<ChangedPage, StoreError>> {
    let (store, size) = (db.another(), PageSize { events: 100, looks: 1000 });
    tokio::spawn(
        async move { store.redrive_all(EventFilter::default(), Span::ALL, size, false).await },
    )
}

fn discard(
    db: &Db,
    event: EventId,
    scope: DiscardScope,
) -> JoinHandle<Result<Discarded, StoreError>> {
    let store = db.another();
    tokio::spawn(async move { store.discard(event, scope).await })
}

fn discard_all(db: &Db, name: &str) -> JoinHandle<Result<ChangedPage, StoreError>> {
    let (store, size) = (db.another(), PageSize { events: 100, looks: 1000 });
    let (filter, scope) = (of(name), DiscardScope::Unclaimed);
    tokio::spawn(async move { store.discard_all(filter, scope, Span::ALL, size, false).await })
}

fn of(name: &str) -> EventFilter {
    EventFilter { source: Some(source(name)), ..EventFilter::default() }
}

fn redrive(db: &Db, event: EventId) -> JoinHandle<Result<Redriven, StoreError>> {
    let store = db.another();
    tokio::spawn(async move { store.redrive(event, RedrivenBy::Operator).await })
}

/// Accepts one event and claims it under a lease that has expired.
async fn claimed_without_lease(db: &Db) -> Claim {
    db.accepted("a").await;
    let demand = Demand { lease: Duration::ZERO, ..demand("a", 1) };
    db.store.claim(vec![demand]).await.unwrap().claimed.remove(0)
}

fn was_cut<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
}

fn ids(claims: &Claims) -> BTreeSet<EventId> {
    claims.claimed.iter().map(|claim| claim.event).collect()
}

#[tokio::test]
async fn an_accept_finds_the_event_when_a_concurrent_accept_of_its_key_commits() {
    let db = recorded().await;
    let gate = Gate::closed(&db).await;
    let (one, other) = (event("k"), event("k"));
    let first = accept(&db, vec![one.clone()]);
    gate.waiting(1).await;
    let second = accept(&db, vec![event("another"), other]);
    gate.waiting(2).await;
    gate.open().await;
    assert_eq!(first.await.unwrap(), Ok(vec![Stored::Inserted]));
    let existing =
        Stored::Existing { id: one.id, fingerprint: one.fingerprint, status: Status::Queued };
    assert_eq!(second.await.unwrap(), Ok(vec![Stored::Inserted, existing]));
    assert_eq!((db.count("events").await, db.count("deliveries").await), (2, 2));
    judge(&db).await;
}

#[tokio::test]
async fn an_accept_stores_when_a_concurrent_accept_of_its_key_rolls_back() {
    let db = recorded().await;
    let gate = Gate::closed(&db).await;
    let (one, other) = (event("k"), event("k"));
    let first = accept(&db, vec![one.clone()]);
    gate.waiting(1).await;
    let second = accept(&db, vec![event("another"), other.clone()]);
    gate.waiting(2).await;
    gate.cut().await;
    was_cut(first.await.unwrap());
    assert_eq!(second.await.unwrap(), Ok(vec![Stored::Inserted, Stored::Inserted]));
    assert_eq!(
        (db.store.find(one.id).await, db.found(other.id).await.status),
        (Ok(None), Status::Queued)
    );
    judge(&db).await;
}

#[tokio::test]
async fn a_claim_skips_events_that_another_claim_is_taking() {
    let db = recorded().await;
    let batch = events(0..4);
    db.store.accept(batch.clone()).await.unwrap();
    let gate = Gate::closed(&db).await;
    let first = claim(&db, "orders", 2);
    gate.waiting(1).await;
    // It must not wait.
    let second = claim(&db, "orders", 9).await.unwrap().unwrap();
    gate.open().await;
    let first = first.await.unwrap().unwrap();
    assert_eq!((first.claimed.len(), second.claimed.len()), (2, 2));
    assert_eq!(&ids(&first) | &ids(&second), batch.iter().map(|event| event.id).collect());
    judge(&db).await;
}

#[tokio::test]
async fn events_of_a_rolled_back_claim_are_claimable_again() {
    let db = recorded().await;
    let batch = events(0..4);
    db.store.accept(batch.clone()).await.unwrap();
    let gate = Gate::closed(&db).await;
    let first = claim(&db, "orders", 2);
    gate.waiting(1).await;
    gate.cut().await;
    was_cut(first.await.unwrap());
    let claims = claim(&db, "orders", 9).await.unwrap().unwrap();
    assert_eq!(claims.claimed.iter().map(|claim| claim.attempt).collect::<Vec<_>>(), [1; 4]);
    judge(&db).await;
}

#[tokio::test]
async fn a_settlement_is_refused_when_a_concurrent_claim_commits() {
    let db = recorded().await;
    let slow = claimed_without_lease(&db).await;
    let gate = Gate::closed(&db).await;
    let taking_over = claim(&db, "a", 1);
    gate.waiting(1).await;
    let late = settle(&db, &slow, Outcome::Delivered);
    gate.waiting(2).await;
    gate.open().await;
    assert_eq!(taking_over.await.unwrap().unwrap().claimed[0].attempt, 2);
    assert_eq!(late.await.unwrap(), Ok(vec![slow.event]));
    let found = db.found(slow.event).await;
    assert_eq!(
        (found.status, found.history.len()),
        (Status::Processing, 1),
        "the history has only the lost attempt"
    );
    judge(&db).await;
}

#[tokio::test]
async fn a_claim_skips_an_event_that_is_being_settled() {
    let db = recorded().await;
    let slow = claimed_without_lease(&db).await;
    let gate = Gate::closed(&db).await;
    let settling = settle(&db, &slow, Outcome::Delivered);
    gate.waiting(1).await;
    assert_eq!(claim(&db, "a", 1).await.unwrap(), Ok(Claims::default()));
    gate.open().await;
    assert_eq!(settling.await.unwrap(), Ok(vec![]));
    assert_eq!(claim(&db, "a", 1).await.unwrap(), Ok(Claims::default()));
    assert_eq!(
        (db.found(slow.event).await.status, db.count("attempts").await),
        (Status::Delivered, 1)
    );
    judge(&db).await;
}

#[tokio::test]
async fn a_settlement_is_refused_when_a_concurrent_settlement_commits() {
    let db = recorded().await;
    let held = db.claimed("a").await;
    for (first, second) in
        [(Outcome::Delivered, Outcome::Release), (Outcome::Release, Outcome::Delivered)]
    {
        let held = if first == Outcome::Delivered { held.clone() } else { db.claimed("b").await };
        let gate = Gate::closed(&db).await;
        let one = settle(&db, &held, first);
        gate.waiting(1).await;
        let other = settle(&db, &held, second);
        gate.waiting(2).await;
        gate.open().await;
        assert_eq!((one.await.unwrap(), other.await.unwrap()), (Ok(vec![]), Ok(vec![held.event])));
        let expected = if first == Outcome::Delivered { Status::Delivered } else { Status::Queued };
        assert_eq!(db.found(held.event).await.status, expected);
        db.execute("drop function stop cascade").await;
    }
    judge(&db).await;
}

#[tokio::test]
async fn a_settlement_counts_when_a_concurrent_settlement_rolls_back() {
    let db = recorded().await;
    let held = db.claimed("a").await;
    let gate = Gate::closed(&db).await;
    let one = settle(&db, &held, Outcome::Release);
    gate.waiting(1).await;
    let other = settle(&db, &held, Outcome::Delivered);
    gate.waiting(2).await;
    gate.cut().await;
    was_cut(one.await.unwrap());
    assert_eq!(other.await.unwrap(), Ok(vec![]));
    assert_eq!(
        (db.found(held.event).await.status, db.count("attempts").await),
        (Status::Delivered, 1)
    );
    judge(&db).await;
}

#[tokio::test]
async fn two_batches_of_settlements_in_opposite_orders_do_not_deadlock() {
    let db = recorded().await;
    db.store.accept(events(0..20)).await.unwrap();
    let claimed = db.store.claim(vec![demand("orders", 20)]).await.unwrap().claimed;
    let batch: Vec<Settlement> =
        claimed.iter().map(|claim| settlement(claim, Outcome::Delivered)).collect();
    let gate = Gate::closed(&db).await;
    let (store, forwards) = (db.another(), batch.clone());
    let first = tokio::spawn(async move { store.settle(forwards).await });
    gate.waiting(1).await;
    let (store, backwards) = (db.another(), batch.iter().rev().cloned().collect());
    let second = tokio::spawn(async move { store.settle(backwards).await });
    gate.waiting(2).await;
    gate.open().await;
    assert_eq!(first.await.unwrap(), Ok(vec![]));
    assert_eq!(second.await.unwrap().unwrap().len(), 20);
    judge(&db).await;
}

#[tokio::test]
async fn an_accept_during_pruning_of_its_key_follows_the_outcome() {
    let db = recorded().await;
    for is_committed in [false, true] {
        let old = event("k");
        let stored = db.store.accept(vec![old.clone()]).await.unwrap().remove(0);
        let old_id = if let Stored::Existing { id, .. } = stored { id } else { old.id };
        if stored == Stored::Inserted {
            let claim = db.claim_one("orders").await;
            db.settle(&claim, Outcome::Delivered).await;
        }
        let gate = Gate::closed(&db).await;
        let pruning = prune(&db);
        gate.waiting(1).await;
        let new = event("k");
        let accepting = accept(&db, vec![new.clone()]);
        gate.waiting(2).await;
        if is_committed {
            gate.open().await;
            assert_eq!(
                pruning.await.unwrap(),
                Ok(Pruned { deleted: 1, dead_lettered: 0, discarded: 0, reached: Reached::END })
            );
            assert_eq!(accepting.await.unwrap(), Ok(vec![Stored::Inserted]));
            assert_eq!(
                (db.store.find(old_id).await, db.found(new.id).await.status),
                (Ok(None), Status::Queued)
            );
        } else {
            gate.cut().await;
            was_cut(pruning.await.unwrap());
            let existing = Stored::Existing {
                id: old_id,
                fingerprint: old.fingerprint,
                status: Status::Delivered,
            };
            assert_eq!(accepting.await.unwrap(), Ok(vec![existing]));
            assert_eq!(
                db.found(old_id).await.history.len(),
                1,
                "the rolled-back pruning deleted nothing"
            );
        }
        db.execute("drop function stop cascade").await;
    }
    judge(&db).await;
}

#[tokio::test]
async fn only_one_of_two_concurrent_redrives_counts() {
    let db = recorded().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let gate = Gate::closed(&db).await;
    let first = redrive(&db, claim.event);
    gate.waiting(1).await;
    let second = redrive(&db, claim.event);
    gate.waiting(2).await;
    gate.open().await;
    assert_eq!(
        (first.await.unwrap(), second.await.unwrap()),
        (Ok(Redriven::Queued), Ok(Redriven::WrongStatus(Status::Queued)))
    );
    let (fence, _) = db.fence_and_due(claim.event).await;
    assert_eq!(
        fence,
        claim.fence.0 + 2,
        "the settlement and one redrive increase the fence by one each"
    );
    judge(&db).await;
}

#[tokio::test]
async fn a_bulk_redrive_skips_letters_that_another_is_redriving() {
    let db = recorded().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let gate = Gate::closed(&db).await;
    let first = redrive_all(&db);
    gate.waiting(1).await;
    // It must not wait.
    assert_eq!(redrive_all(&db).await.unwrap().unwrap().count(), 0);
    gate.open().await;
    assert_eq!(first.await.unwrap().unwrap().count(), 1);
    let (fence, _) = db.fence_and_due(claim.event).await;
    assert_eq!(
        fence,
        claim.fence.0 + 2,
        "the settlement and one redrive increase the fence by one each"
    );
    judge(&db).await;
}

#[tokio::test]
async fn pruning_skips_a_dead_letter_that_is_being_redriven() {
    let db = recorded().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let gate = Gate::closed(&db).await;
    let redriving = redrive(&db, claim.event);
    gate.waiting(1).await;
    assert_eq!(
        prune(&db).await.unwrap(),
        Ok(Pruned { deleted: 0, dead_lettered: 0, discarded: 0, reached: Reached::END })
    );
    gate.open().await;
    assert_eq!(redriving.await.unwrap(), Ok(Redriven::Queued));
    assert_eq!(db.found(claim.event).await.history.len(), 1);
    judge(&db).await;
}

#[tokio::test]
async fn a_discard_during_a_claim_follows_its_outcome() {
    for is_committed in [false, true] {
        let db = recorded().await;
        let event = db.accepted("a").await;
        let gate = Gate::closed(&db).await;
        let claiming = claim(&db, "a", 1);
        gate.waiting(1).await;
        let discarding = discard(&db, event, DiscardScope::Unclaimed);
        gate.waiting(2).await;
        if is_committed {
            gate.open().await;
            assert_eq!(claiming.await.unwrap().unwrap().claimed.len(), 1);
            let refused = Discarded::WrongStatus(Status::Processing);
            assert_eq!(discarding.await.unwrap(), Ok(refused));
        } else {
            gate.cut().await;
            was_cut(claiming.await.unwrap());
            assert_eq!(discarding.await.unwrap(), Ok(Discarded::Now));
        }
        judge(&db).await;
    }
}

#[tokio::test]
async fn a_discard_during_a_redrive_evaluates_the_row_again() {
    let db = recorded().await;
    for (scope, expected) in [
        (DiscardScope::DeadLetters, Discarded::WrongStatus(Status::Queued)),
        (DiscardScope::Unclaimed, Discarded::Now),
    ] {
        let claim = db.claimed(&format!("{scope:?}").to_lowercase()).await;
        db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
        let gate = Gate::closed(&db).await;
        let redriving = redrive(&db, claim.event);
        gate.waiting(1).await;
        let discarding = discard(&db, claim.event, scope);
        gate.waiting(2).await;
        gate.open().await;
        assert_eq!(redriving.await.unwrap(), Ok(Redriven::Queued));
        assert_eq!(discarding.await.unwrap(), Ok(expected), "{scope:?}");
        db.execute("drop function stop cascade").await;
    }
    judge(&db).await;
}

#[tokio::test]
async fn only_one_of_two_concurrent_discards_counts() {
    let db = recorded().await;
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    let gate = Gate::closed(&db).await;
    let first = discard(&db, claim.event, DiscardScope::DeadLetters);
    gate.waiting(1).await;
    let second = discard(&db, claim.event, DiscardScope::DeadLetters);
    gate.waiting(2).await;
    gate.open().await;
    assert_eq!(
        (first.await.unwrap(), second.await.unwrap()),
        (Ok(Discarded::Now), Ok(Discarded::Before))
    );
    assert_eq!(db.found(claim.event).await.actions.len(), 1);
    judge(&db).await;
}

#[tokio::test]
async fn a_bulk_discard_skips_events_that_are_being_claimed() {
    let db = recorded().await;
    db.accepted("a").await;
    let gate = Gate::closed(&db).await;
    let claiming = claim(&db, "a", 1);
    gate.waiting(1).await;
    // It must not wait.
    assert_eq!(discard_all(&db, "a").await.unwrap(), Ok(ChangedPage::default()));
    gate.open().await;
    let claimed = claiming.await.unwrap().unwrap().claimed;
    assert_eq!(db.found(claimed[0].event).await.status, Status::Processing);
    judge(&db).await;
}
