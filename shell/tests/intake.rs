//! The intake alone: the size of a batch, the number of concurrent batches, the limits of the
//! queue, and the handling of a batch that the store does not accept.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{join_all, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook::clock::TokioClock;
use surehook::doorbell::Doorbell;
use surehook::handover::{Handed, Handover};
use surehook::health::{Health, Loop};
use surehook::ids::SystemIds;
use surehook::intake::{Intake, IntakeError, IntakePorts, Limits, intake};
use surehook::ports::{Clock, EventStore, Ids, MaintenanceStore, NewEvent, StoreCall, StoreError};
use surehook_core::admission::{Admission, Fingerprint, OnKeyReuse, Stored};
use surehook_core::event::{Outcome, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::readiness::SLOW_COMMIT;
use surehook_core::reading::SLOW;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use surehook_model::memory::MemoryStore;
use surehook_model::scenario::Call;
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// The answer of the store to a batch.
type Answer = dyn Fn(&[NewEvent]) -> Result<Vec<Stored>, StoreError> + Send + Sync;

/// A store that answers each batch only when the test lets it through.
struct Gated {
    answer: Box<Answer>,
    /// Each permit lets one batch through.
    gate: Semaphore,
    at_once: usize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    under_way: usize,
    most_under_way: usize,
    /// Rows and bytes of each batch.
    batches: Vec<(usize, usize)>,
    /// The ids of each batch.
    ids: Vec<Vec<EventId>>,
    /// The lease that was requested for each event of each batch.
    leases: Vec<Vec<Option<Duration>>>,
    settled: Vec<Settlement>,
}

impl Gated {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    async fn has_begun(&self, batches: usize) {
        while self.seen().batches.len() < batches {
            tokio::task::yield_now().await;
        }
    }
}

impl EventStore for Gated {
    fn accepts_at_once(&self) -> usize {
        self.at_once
    }

    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        async move {
            {
                let mut seen = self.seen();
                seen.under_way += 1;
                seen.most_under_way = seen.most_under_way.max(seen.under_way);
                seen.batches.push((batch.len(), batch.iter().map(NewEvent::size).sum()));
                seen.ids.push(batch.iter().map(|event| event.id).collect());
                seen.leases.push(batch.iter().map(|event| event.lease).collect());
            }
            self.gate.acquire().await.expect("the gate is never closed").forget();
            self.seen().under_way -= 1;
            (self.answer)(&batch)
        }
        .boxed()
    }

    fn claim(&self, _: Vec<Demand>) -> StoreCall<'_, Claims> {
        ready(Ok(Claims::default())).boxed()
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        self.seen().settled.extend(batch);
        ready(Ok(Vec::new())).boxed()
    }
}

/// An intake with these limits, and the store behind it.
fn begin(limits: Limits) -> (Intake, Arc<Gated>) {
    begin_on(2, limits)
}

/// As [`begin`], on a store that accepts this number of batches at once.
fn begin_on(at_once: usize, limits: Limits) -> (Intake, Arc<Gated>) {
    let (intake, store, ..) =
        begin_with(at_once, limits, Box::new(|batch| Ok(vec![Stored::Inserted; batch.len()])));
    (intake, store)
}

/// As [`begin_on`], on a store that gives these answers. Also returns the doorbell and the
/// handover.
fn begin_with(
    at_once: usize,
    limits: Limits,
    answer: Box<Answer>,
) -> (Intake, Arc<Gated>, Arc<Doorbell>, Arc<Handover>) {
    begin_watched(at_once, limits, answer, Arc::default())
}

/// As [`begin_with`]. `health` records what the commits show about the store.
fn begin_watched(
    at_once: usize,
    limits: Limits,
    answer: Box<Answer>,
    health: Arc<Health>,
) -> (Intake, Arc<Gated>, Arc<Doorbell>, Arc<Handover>) {
    let store =
        Arc::new(Gated { answer, gate: Semaphore::new(0), at_once, seen: Mutex::default() });
    let (doorbell, handover) = (Arc::new(Doorbell::default()), Arc::new(Handover::default()));
    let ports = IntakePorts {
        store: store.clone(),
        clock: Arc::new(TokioClock::new()),
        doorbell: Arc::clone(&doorbell),
        handover: Arc::clone(&handover),
        health,
    };
    let (intake, run) = intake(limits, ports, futures::future::pending());
    tokio::spawn(run);
    (intake, store, doorbell, handover)
}

const ROOMY: Limits =
    Limits { max_queued: 4096, max_queued_bytes: 64 << 20, max_request: 1_000, sources: 1 };

/// Submits an event of `bytes` bytes. It reserves memory for it as the HTTP surface does.
async fn submit(intake: &Intake, key: usize, bytes: usize) -> Result<Admission, IntakeError> {
    submit_body(intake, key, Bytes::from(vec![b'x'; bytes])).await
}

async fn submit_body(intake: &Intake, key: usize, body: Bytes) -> Result<Admission, IntakeError> {
    let mut reservation = intake.reservation(&SourceName::parse("orders").unwrap());
    reservation.grow(body.len())?;
    let event = NewEvent {
        id: SystemIds.fresh(),
        source: SourceName::parse("orders").unwrap(),
        key: IdempotencyKey::parse(format!("key-{key}").as_bytes()).unwrap(),
        fingerprint: Fingerprint::of(&body),
        query: Bytes::new(),
        headers: Bytes::new(),
        body,
        lease: None,
    };
    intake.submit(event, OnKeyReuse::Reject, reservation).await
}

/// Submits `events` events at once while two batches are in flight. Returns the batches that they
/// became.
async fn batches_of(events: usize, bytes: usize) -> Vec<(usize, usize)> {
    let (intake, store) = begin(ROOMY);
    let first = tokio::spawn({
        let intake = intake.clone();
        async move { submit(&intake, 100_000, 1).await }
    });
    store.has_begun(1).await;
    let second = tokio::spawn({
        let intake = intake.clone();
        async move { submit(&intake, 100_001, 1).await }
    });
    store.has_begun(2).await;
    let all =
        tokio::spawn(
            async move { join_all((0..events).map(|key| submit(&intake, key, bytes))).await },
        );
    tokio::time::sleep(Duration::from_millis(50)).await;
    store.gate.add_permits(1000);
    for answer in all.await.unwrap() {
        assert!(matches!(answer, Ok(Admission::Accepted { .. })), "{answer:?}");
    }
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    let seen = store.seen();
    assert_eq!(seen.most_under_way, 2, "at most two batches are stored at a time");
    seen.batches[2..].to_vec()
}

#[tokio::test]
async fn a_batch_holds_at_most_256_events() {
    let batches = batches_of(600, 10).await;
    assert_eq!(batches.iter().map(|(rows, _)| rows).sum::<usize>(), 600);
    assert_eq!(batches.iter().map(|(rows, _)| *rows).max(), Some(256), "{batches:?}");
}

#[tokio::test]
async fn a_batch_holds_at_most_four_mebibytes() {
    let batches = batches_of(20, 1 << 20).await;
    assert_eq!(batches.iter().map(|(_, bytes)| bytes).sum::<usize>(), 20 << 20);
    assert_eq!(batches.iter().map(|(_, bytes)| *bytes).max(), Some(4 << 20), "{batches:?}");
    assert!(batches.len() <= 6, "the batches must be full, not one for each event: {batches:?}");
}

#[tokio::test]
async fn an_event_larger_than_a_batch_is_stored_alone() {
    let batches = batches_of(3, 5 << 20).await;
    assert_eq!(batches, [(1, 5 << 20); 3]);
}

#[tokio::test]
async fn requests_beyond_max_queued_are_refused_until_others_are_answered() {
    let (intake, store) = begin(Limits { max_queued: 3, ..ROOMY });
    let taken = tokio::spawn({
        let intake = intake.clone();
        async move { join_all((0..3).map(|key| submit(&intake, key, 1))).await }
    });
    store.has_begun(1).await;
    assert_eq!(submit(&intake, 3, 1).await, Err(IntakeError::Overloaded));
    store.gate.add_permits(1000);
    assert!(taken.await.unwrap().iter().all(Result::is_ok));
    assert!(submit(&intake, 3, 1).await.is_ok());
}

#[tokio::test]
async fn bytes_beyond_max_queued_bytes_are_refused_until_others_are_answered() {
    let (intake, store) = begin(Limits { max_queued_bytes: 1000, ..ROOMY });
    let taken = tokio::spawn({
        let intake = intake.clone();
        async move { join_all((0..4).map(|key| submit(&intake, key, 250))).await }
    });
    store.has_begun(1).await;
    assert_eq!(submit(&intake, 4, 1).await, Err(IntakeError::Overloaded));
    store.gate.add_permits(1000);
    assert!(taken.await.unwrap().iter().all(Result::is_ok));
    assert!(submit(&intake, 4, 1000).await.is_ok());
    let mut reservation = intake.reservation(&SourceName::parse("orders").unwrap());
    assert_eq!(reservation.grow(600), Ok(()));
    assert_eq!(reservation.grow(400), Ok(()), "a reservation grows as its request is read");
    assert_eq!(reservation.grow(1), Err(IntakeError::Overloaded));
}

#[tokio::test]
async fn a_store_with_one_writer_gets_one_batch_at_a_time() {
    let (intake, store) = begin_on(1, ROOMY);
    let first = tokio::spawn({
        let intake = intake.clone();
        async move { submit(&intake, 100_000, 1).await }
    });
    store.has_begun(1).await;
    let others =
        tokio::spawn(async move { join_all((0..50).map(|key| submit(&intake, key, 1))).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(store.seen().batches.len(), 1, "the second batch waits until the first is stored");
    store.gate.add_permits(1000);
    for answer in others.await.unwrap().into_iter().chain([first.await.unwrap()]) {
        assert!(matches!(answer, Ok(Admission::Accepted { .. })), "{answer:?}");
    }
    let seen = store.seen();
    assert_eq!(
        (seen.most_under_way, seen.batches.iter().map(|batch| batch.0).collect::<Vec<_>>()),
        (1, vec![1, 50])
    );
}

const POISON: &[u8] = b"poison";

/// A store that rejects each batch that contains `POISON`.
fn refusing() -> Box<Answer> {
    Box::new(|batch| {
        let is_poisoned = batch.iter().any(|event| event.body == POISON);
        if is_poisoned {
            Err(StoreError::Rejected("poison".to_owned()))
        } else {
            Ok(vec![Stored::Inserted; batch.len()])
        }
    })
}

#[tokio::test]
async fn a_rejected_row_is_found_by_bisection_and_the_others_stored() {
    for (rows, poisoned) in [(32, 0), (32, 13), (33, 32)] {
        let (intake, store, ..) = begin_with(1, ROOMY, refusing());
        store.gate.add_permits(1000);
        let body = |key| {
            if key == poisoned { Bytes::from_static(POISON) } else { Bytes::from_static(b"well") }
        };
        let answers = join_all((0..rows).map(|key| submit_body(&intake, key, body(key)))).await;
        for (key, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.is_ok(), key != poisoned, "{key}: {answer:?}");
            assert!(answer.is_ok() || answer == Err(IntakeError::Refused), "{answer:?}");
        }
        let asked = store.seen().batches.len();
        assert!(asked <= 2 * 6 + 1, "{asked} batches for one bad row of {rows}");
    }
}

#[tokio::test]
async fn the_second_request_of_a_key_is_stored_if_the_first_is_rejected() {
    let (intake, store, ..) = begin_with(1, ROOMY, refusing());
    store.gate.add_permits(1000);
    let bodies = [POISON, b"well"].map(|body| submit_body(&intake, 1, Bytes::from_static(body)));
    let answers = join_all(bodies).await;
    assert!(
        matches!(&answers[..], [Err(IntakeError::Refused), Ok(Admission::Accepted { .. })]),
        "{answers:?}"
    );
    assert_eq!(store.seen().batches.len(), 2);
}

#[tokio::test]
async fn retryable_errors_try_a_batch_three_times_and_others_once() {
    let failing = |error: StoreError| begin_with(1, ROOMY, Box::new(move |_| Err(error.clone())));
    for (error, tries, answer) in [
        (StoreError::Unknown(String::new()), 3, IntakeError::TimedOut),
        (StoreError::Conflict(String::new()), 3, IntakeError::Unavailable),
        (StoreError::Unavailable(String::new()), 1, IntakeError::Unavailable),
        (StoreError::Rejected(String::new()), 1, IntakeError::Refused),
    ] {
        let (intake, store, ..) = failing(error.clone());
        store.gate.add_permits(1000);
        assert_eq!(submit(&intake, 1, 1).await, Err(answer), "{error:?}");
        let seen = store.seen();
        assert!(
            seen.ids.len() == tries && seen.ids.iter().all(|ids| *ids == seen.ids[0]),
            "{error:?}: {:?}",
            seen.ids
        );
    }
}

/// A store that fails with these errors in order, and then always with the last one.
fn failing_in_turn(errors: Vec<StoreError>) -> Box<Answer> {
    let tries = AtomicUsize::new(0);
    Box::new(move |_| {
        Err(errors[tries.fetch_add(1, Ordering::Relaxed).min(errors.len() - 1)].clone())
    })
}

#[tokio::test]
async fn after_an_unknown_outcome_no_later_failure_claims_that_nothing_was_stored() {
    let (unknown, conflict) =
        (|| StoreError::Unknown("reply lost".into()), || StoreError::Conflict("deadlock".into()));
    let (unavailable, rejected) =
        (|| StoreError::Unavailable("away".into()), || StoreError::Rejected("bad row".into()));
    for errors in [
        vec![unknown(), unavailable()],
        vec![unknown(), conflict()],
        vec![unknown(), rejected()],
        vec![conflict(), unknown(), unavailable()],
        // Both halves of a split batch inherit its unknown outcome.
        vec![unknown(), rejected(), unavailable()],
        vec![unknown(), rejected(), rejected()],
    ] {
        let (intake, store, ..) = begin_with(1, ROOMY, failing_in_turn(errors.clone()));
        store.gate.add_permits(1000);
        for answer in join_all((0..2).map(|key| submit(&intake, key, 1))).await {
            assert_eq!(answer, Err(IntakeError::TimedOut), "{errors:?}");
        }
    }
    for (errors, told) in [
        (vec![conflict(), unavailable()], IntakeError::Unavailable),
        (vec![conflict(), rejected()], IntakeError::Refused),
    ] {
        let (intake, store, ..) = begin_with(1, ROOMY, failing_in_turn(errors.clone()));
        store.gate.add_permits(1000);
        assert_eq!(submit(&intake, 1, 1).await, Err(told), "{errors:?}");
    }
}

#[tokio::test]
async fn the_doorbell_rings_only_for_new_unclaimed_events() {
    let there = Stored::Existing {
        id: EventId::MIN,
        fingerprint: Fingerprint::of(b"x"),
        status: Status::Queued,
    };
    for (stored, rings) in [(Stored::Inserted, true), (CLAIMED, false), (there, false)] {
        let (intake, store, doorbell, _) =
            begin_with(1, ROOMY, Box::new(move |_| Ok(vec![stored])));
        store.gate.add_permits(1000);
        assert!(submit(&intake, 1, 1).await.is_ok());
        // The doorbell rings before the answer is given.
        let rung = doorbell.heard().now_or_never().unwrap_or_default();
        assert_eq!(rung.len(), usize::from(rings), "{rung:?}");
    }
}

const LEASE: Duration = Duration::from_secs(20);
const CLAIMED: Stored = Stored::Claimed { received_at: jiff::Timestamp::UNIX_EPOCH };

/// A store that claims every event for which a claim was requested, except events of one byte.
fn claims_all_but_the_small(batch: &[NewEvent]) -> Result<Vec<Stored>, StoreError> {
    let stored = |event: &NewEvent| {
        if event.lease.is_some() && event.body.len() > 1 { CLAIMED } else { Stored::Inserted }
    };
    Ok(batch.iter().map(stored).collect())
}

/// The ids of the events that were handed over.
async fn handed(handover: &Handover) -> Vec<EventId> {
    let all = tokio::time::timeout(Duration::from_secs(5), handover.handed())
        .await
        .expect("events are handed over in time");
    all.into_iter().flat_map(|handed| handed.claims).map(|claim| claim.event).collect()
}

#[tokio::test]
async fn only_events_within_the_offer_are_claimed_on_insert_and_handed_over() {
    let (intake, store, _, handover) = begin_with(1, ROOMY, Box::new(claims_all_but_the_small));
    handover.offer(SourceName::parse("orders").unwrap(), 2, 1_000, LEASE);
    handover.offer(SourceName::parse("others").unwrap(), 5, 1_000, LEASE);
    store.gate.add_permits(1000);
    for (key, bytes, status, lease) in [
        // The store does not claim it, so its part of the offer is free again.
        (0, 1, Status::Queued, Some(LEASE)),
        (1, 2, Status::Processing, Some(LEASE)),
        (2, 2, Status::Processing, Some(LEASE)),
        // The offer is used up until the worker has received the events.
        (3, 2, Status::Queued, None),
    ] {
        let answer = submit(&intake, key, bytes).await;
        assert!(
            matches!(answer, Ok(Admission::Accepted { status: is, .. }) if is == status),
            "{key}: {answer:?}"
        );
        assert_eq!(store.seen().leases[key], [lease], "{key}");
    }
    let ids = store.seen().ids.concat();
    assert_eq!(handed(&handover).await, ids[1..3]);
    assert!(
        matches!(
            submit(&intake, 5, 2).await,
            Ok(Admission::Accepted { status: Status::Queued, .. })
        ),
        "no event is claimed after the offer is used up"
    );
    handover.offer(SourceName::parse("orders").unwrap(), 2, 1_000, LEASE);
    assert!(matches!(
        submit(&intake, 4, 2).await,
        Ok(Admission::Accepted { status: Status::Processing, .. })
    ));
}

#[tokio::test]
async fn the_handover_never_exceeds_the_offered_bytes() {
    let (intake, store, _, handover) = begin_with(1, ROOMY, Box::new(claims_all_but_the_small));
    handover.offer(SourceName::parse("orders").unwrap(), 9, 10, LEASE);
    store.gate.add_permits(1000);
    for (key, bytes, lease) in
        [(0, 11, None), (1, 6, Some(LEASE)), (2, 5, None), (3, 4, Some(LEASE)), (4, 2, None)]
    {
        assert!(submit(&intake, key, bytes).await.is_ok());
        assert_eq!(store.seen().leases[key], [lease], "{key}");
    }
    assert_eq!(handed(&handover).await.len(), 2);
    assert!(submit(&intake, 5, 2).await.is_ok());
    assert_eq!(
        store.seen().leases[5],
        [None],
        "received events stay counted until the worker makes a new offer"
    );
    handover.offer(SourceName::parse("orders").unwrap(), 9, 10, LEASE);
    assert!(submit(&intake, 6, 10).await.is_ok());
    assert_eq!(store.seen().leases[6], [Some(LEASE)]);
}

#[tokio::test]
async fn events_claimed_by_a_try_with_unknown_outcome_are_not_handed_over() {
    let tries = Mutex::new(0);
    let answer = move |batch: &[NewEvent]| {
        *tries.lock().unwrap() += 1;
        let there = |event: &NewEvent| Stored::Existing {
            id: event.id,
            fingerprint: event.fingerprint,
            status: Status::Processing,
        };
        if *tries.lock().unwrap() == 1 {
            Err(StoreError::Unknown(String::new()))
        } else {
            Ok(batch.iter().map(there).collect())
        }
    };
    let (intake, store, _, handover) = begin_with(1, ROOMY, Box::new(answer));
    handover.offer(SourceName::parse("orders").unwrap(), 1, 1_000, LEASE);
    store.gate.add_permits(1000);
    assert!(matches!(
        submit(&intake, 1, 2).await,
        Ok(Admission::Accepted { status: Status::Processing, .. })
    ));
    assert_eq!(store.seen().leases, [[Some(LEASE)], [None]], "the retry requests no claim");
    assert!(handover.handed().now_or_never().is_none());
    assert!(submit(&intake, 2, 2).await.is_ok());
    assert_eq!(
        store.seen().leases.last(),
        Some(&vec![Some(LEASE)]),
        "its part of the offer is free again"
    );
}

#[tokio::test]
async fn events_claimed_for_a_worker_that_has_ended_are_released() {
    let (intake, store, _, handover) = begin_with(1, ROOMY, Box::new(claims_all_but_the_small));
    handover.offer(SourceName::parse("orders").unwrap(), 9, 1_000, LEASE);
    let submitted = tokio::spawn({
        let intake = intake.clone();
        async move { submit(&intake, 1, 2).await }
    });
    store.has_begun(1).await;
    assert_eq!(handover.close(), []);
    store.gate.add_permits(1000);
    assert!(matches!(
        submitted.await.unwrap(),
        Ok(Admission::Accepted { status: Status::Processing, .. })
    ));
    let id = store.seen().ids[0][0];
    {
        let settled = &store.seen().settled;
        assert!(
            matches!(&settled[..], [one] if one.event == id && one.outcome == Outcome::Release && one.record.is_none()),
            "{settled:?}"
        );
    }
    assert!(submit(&intake, 2, 2).await.is_ok());
    assert_eq!(store.seen().leases[1], [None], "a closed handover offers nothing");
}

#[tokio::test]
async fn closing_the_handover_returns_the_events_not_yet_received() {
    let (intake, store, _, handover) = begin_with(1, ROOMY, Box::new(claims_all_but_the_small));
    handover.offer(SourceName::parse("orders").unwrap(), 9, 1_000, LEASE);
    store.gate.add_permits(1000);
    assert!(submit(&intake, 1, 2).await.is_ok());
    let rest: Vec<Handed> = handover.close();
    assert_eq!(
        rest.iter().flat_map(|handed| &handed.claims).map(|claim| claim.event).collect::<Vec<_>>(),
        store.seen().ids.concat()
    );
    assert!(rest[0].claims[0].body == "xx" && store.seen().settled.is_empty());
}

/// Limits with room for one request of 750 bytes, besides the separate share of its source.
const SCARCE: Limits = Limits { max_queued_bytes: 1000, max_request: 750, ..ROOMY };

#[tokio::test(start_paused = true)]
async fn a_slow_request_is_told_to_give_its_memory_to_another() {
    let (intake, _store) = begin(SCARCE);
    let source = SourceName::parse("orders").unwrap();
    let mut slow = intake.reservation(&source);
    slow.grow(750).unwrap();
    let mut gives_way = std::pin::pin!(slow.gives_way());
    sleep(SLOW).await;
    assert!(futures::poll!(&mut gives_way).is_pending());
    intake.reservation(&source).grow(750).unwrap();
    assert!(futures::poll!(&mut gives_way).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_commit_keeps_its_memory() {
    let (intake, store) = begin(SCARCE);
    let _waiting = tokio::spawn({
        let intake = intake.clone();
        async move { submit(&intake, 1, 750).await }
    });
    store.has_begun(1).await;
    sleep(SLOW).await;
    let mut other = intake.reservation(&SourceName::parse("orders").unwrap());
    assert_eq!(other.grow(750), Err(IntakeError::Overloaded));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_commit_raises_no_doubt_if_another_one_ended_after_its_start() {
    let (clock, ids): (Arc<dyn Clock>, Arc<dyn Ids>) =
        (Arc::new(TokioClock::new()), Arc::new(SystemIds));
    let health = Arc::<Health>::default();
    let _alive = health.watch(Loop::Intake);
    let inserted: Box<Answer> = Box::new(|batch| Ok(vec![Stored::Inserted; batch.len()]));
    let (intake, store, ..) = begin_watched(2, ROOMY, inserted, Arc::clone(&health));
    let mut calls = Vec::new();
    for begun in 1..=2 {
        let intake = intake.clone();
        calls.push(tokio::spawn(async move { submit(&intake, begun, 1).await }));
        store.has_begun(begun).await;
        sleep(Duration::from_millis(1)).await;
    }
    store.gate.add_permits(1);
    assert!(calls.remove(0).await.unwrap().is_ok());
    sleep(SLOW_COMMIT).await;
    let refuses_probes = MemoryStore::new().before_each(|call| {
        let failed = Err(StoreError::Unavailable("a probe was sent".into()));
        ready(if call == Call::Probe { failed } else { Ok(()) }).boxed()
    });
    let refuses_probes: Arc<dyn MaintenanceStore> = Arc::new(refuses_probes);
    assert_eq!(health.ready(&refuses_probes, &clock, &ids).await, Ok(()));
}
