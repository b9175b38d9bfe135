//! Claiming: due events, each once, under a lease.

use crate::db::{Db, LEASE, Raw, demand, event, event_of, events, settlement};
use bytes::Bytes;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use surehook::ports::{NewEvent, Redriven};
use surehook_core::admission::Fingerprint;
use surehook_core::event::{Outcome, Reason, RedrivenBy, Status};
use surehook_core::id::{EventId, Fence};
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{DeadLettered, Demand, HeldBack};

clauses! {
    the_oldest_due_events_are_claimed_up_to_the_limit => NewestFirst | IgnoresLimits,
    a_claim_sets_processing_and_the_lease_and_increments_attempt_and_fence
        => FenceStaysAtAClaim | AttemptStaysAtAClaim | NoLease,
    each_demand_has_its_own_limit_and_lease => OneLeaseForAll | OneLimitForAll,
    events_are_claimed_while_their_bytes_fit
        => IgnoresBytes | WeighsEachAlone | WeighsBodiesAlone | WeighsNoQueries | SkipsWhatDoesNotFit | SaysNothingOfWhatDoesNotFit,
    each_demand_has_its_own_byte_limit => OneBoundOfBytesForAll,
    events_dead_lettered_by_a_claim_use_no_bytes => WeighsDeadLetters,
    events_that_are_not_due_are_not_claimed => ClaimsWhatIsNotDue,
    after_its_lease_an_event_is_claimed_again_and_the_attempt_lost => ForgetsLostAttempts | KeepsLeasesForEver,
    an_event_without_attempts_left_is_dead_lettered_by_the_claim => NeverDeadLetters | SendsDeadLetters,
    lowering_max_attempts_dead_letters_an_event_as_exhausted => DeadLettersAlwaysAsLost,
    events_dead_lettered_by_a_claim_count_against_the_limit => DeadLettersDoNotCount,
    concurrent_claimers_never_share_an_event => HandsOutTwice,
    binary_bodies_headers_and_queries_are_returned_unchanged => BytesAsText | ForgetsQueries,
    a_claim_contains_the_age_of_its_event_since_reception => AgesFromTheClaim,
    every_claim_contains_the_time_at_which_its_event_was_stored => ReceivedAtTheClaim | ReceivedAtTheRedrive,
    the_longest_lease_stays_within_the_range_of_timestamps => LongLeasesAreRejected,
}

beyond_the_port! {
    a_delivery_without_its_event_row_does_not_block_others,
    a_manually_inserted_attempt_does_not_block_other_events,
}

const HOUR: Duration = Duration::from_hours(1);

async fn the_oldest_due_events_are_claimed_up_to_the_limit(db: Db) {
    let batch = events(0..10);
    db.store.accept(batch.clone()).await.unwrap();
    db.store.accept(vec![event_of("other", "k")]).await.unwrap();
    for (age, event) in (1..).zip(&batch) {
        db.make_due(event.id, HOUR * age).await;
    }
    let claims = db.store.claim(vec![demand("orders", 4)]).await.unwrap();
    let claimed: Vec<EventId> = claims.claimed.iter().map(|claim| claim.event).collect();
    let oldest: Vec<EventId> = batch.iter().rev().take(4).map(|event| event.id).collect();
    assert_eq!(claimed, oldest);
    let claim = &claims.claimed[0];
    assert_eq!(
        (claim.source.as_str(), claim.fence, claim.attempt, claim.in_budget.0),
        ("orders", Fence(1), 1, 1)
    );
    let NewEvent { query, headers, body, .. } = &batch[9];
    assert_eq!((&claim.query, &claim.headers, &claim.body), (query, headers, body));
    assert!(claims.dead_lettered.is_empty());
    assert_eq!(db.found(batch[9].id).await.status, Status::Processing);
    assert_eq!(db.found(batch[0].id).await.status, Status::Queued);
}

async fn a_claim_sets_processing_and_the_lease_and_increments_attempt_and_fence(db: Db) {
    let event = db.accepted("a").await;
    for round in 1..=3 {
        let demand = Demand { lease: HOUR, ..demand("a", 1) };
        let claim = db.store.claim(vec![demand]).await.unwrap().claimed.remove(0);
        // The settlement between two claims also increases the fence.
        let fence = 2 * u64::from(round) - 1;
        assert_eq!((claim.fence, claim.attempt, claim.in_budget.0), (Fence(fence), round, round));
        let found = db.found(event).await;
        assert_eq!(
            (found.status, found.attempt, found.next_attempt_at),
            (Status::Processing, round, None)
        );
        let (row_fence, due) = db.fence_and_due(event).await;
        assert_eq!(row_fence, fence);
        assert!((3590..=3600).contains(&due.unwrap()), "{due:?}");
        db.settle(&claim, Outcome::Retry { after: Duration::ZERO }).await;
    }
}

async fn each_demand_has_its_own_limit_and_lease(db: Db) {
    let batch = (0..30).map(|n| event_of(["a", "b", "c"][n % 3], &format!("k{n}"))).collect();
    db.store.accept(batch).await.unwrap();
    let demands = vec![
        Demand { lease: Duration::from_secs(1000), ..demand("b", 7) },
        Demand { lease: Duration::from_secs(2000), ..demand("a", 2) },
        demand("none", 5),
    ];
    let claims = db.store.claim(demands).await.unwrap();
    let of = |name: &str| {
        claims
            .claimed
            .iter()
            .filter(|claim| claim.source.as_str() == name)
            .map(|claim| claim.event)
            .collect::<Vec<_>>()
    };
    assert_eq!((of("a").len(), of("b").len(), of("c").len()), (2, 7, 0));
    assert!((1990..=2000).contains(&db.fence_and_due(of("a")[0]).await.1.unwrap()));
    assert!((990..=1000).contains(&db.fence_and_due(of("b")[0]).await.1.unwrap()));
}

/// Events of these sizes, of which a tenth are headers, and a tenth the query. The first has been due for the longest
/// time.
async fn sized(db: &Db, source: &str, sizes: &[usize]) -> Vec<EventId> {
    let mut ids = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        let mut event = event_of(source, &format!("sized-{n}"));
        // Incompressible bytes, so that the database stores that many.
        let bytes: Vec<u8> = (0..*size as u64)
            .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let bytes = Bytes::from(bytes);
        let (tenth, rest) = (size / 10, size / 10 * 2);
        event.query = bytes.slice(..tenth);
        (event.headers, event.body) = (bytes.slice(tenth..rest), bytes.slice(rest..));
        event.fingerprint = Fingerprint::of(&event.body);
        db.store.accept(vec![event.clone()]).await.unwrap();
        db.make_due(event.id, HOUR * (100 - u32::try_from(n).unwrap())).await;
        ids.push(event.id);
    }
    ids
}

async fn events_are_claimed_while_their_bytes_fit(db: Db) {
    let ids = sized(&db, "a", &[300_000, 1_000, 0, 500_000, 10, 0]).await;
    let claim = async |bytes: usize| {
        let claims = db.store.claim(vec![Demand { bytes, ..demand("a", 6) }]).await.unwrap();
        let claimed: Vec<EventId> = claims.claimed.iter().map(|claim| claim.event).collect();
        let held_back: Vec<usize> =
            claims.held_back.iter().map(|held_back| held_back.size).collect();
        assert!(claims.held_back.iter().all(|held_back| held_back.source.as_str() == "a"));
        (claimed, held_back)
    };
    assert_eq!(
        claim(299_999).await,
        (vec![], vec![300_000]),
        "headers and query count as bytes too"
    );
    assert_eq!(db.found(ids[0]).await.status, Status::Queued);
    assert_eq!(db.found(ids[0]).await.attempt, 0, "an event that is held back is unchanged");
    assert_eq!(claim(301_000).await, (ids[..3].to_vec(), vec![500_000]));
    assert_eq!(claim(20).await, (vec![], vec![500_000]), "smaller events do not overtake it");
    assert_eq!(claim(500_000).await, (vec![ids[3]], vec![10]));
    assert_eq!(claim(10).await, (ids[4..].to_vec(), vec![]), "an exact fit is claimed");
    let Ok(claims) = db.store.claim(vec![Demand { bytes: 0, ..demand("a", 6) }]).await else {
        panic!("the claim failed")
    };
    assert_eq!((claims.claimed.len(), claims.held_back.len()), (0, 0), "nothing is due");
}

async fn each_demand_has_its_own_byte_limit(db: Db) {
    let (a, b) = (sized(&db, "a", &[10, 10, 10]).await, sized(&db, "b", &[10, 10, 10]).await);
    let demands = vec![
        Demand { bytes: 25, ..demand("a", 3) },
        Demand { bytes: 9, ..demand("none", 3) },
        Demand { bytes: 30, ..demand("b", 3) },
    ];
    let claims = db.store.claim(demands).await.unwrap();
    let claimed: BTreeSet<EventId> = claims.claimed.iter().map(|claim| claim.event).collect();
    assert_eq!(claimed, a[..2].iter().chain(&b).copied().collect());
    assert_eq!(claims.held_back, [HeldBack { source: claims.claimed[0].source.clone(), size: 10 }]);
}

async fn events_dead_lettered_by_a_claim_use_no_bytes(db: Db) {
    let ids = sized(&db, "a", &[1_000, 1_000]).await;
    let claim = db.store.claim(vec![demand("a", 1)]).await.unwrap().claimed.remove(0);
    db.settle(&claim, Outcome::Retry { after: Duration::ZERO }).await;
    db.make_due(claim.event, HOUR * 200).await;
    let claims = db
        .store
        .claim(vec![Demand { bytes: 1_000, max_attempts: 1, ..demand("a", 2) }])
        .await
        .unwrap();
    assert_eq!(
        claims.dead_lettered.iter().map(|dead_lettered| dead_lettered.event).collect::<Vec<_>>(),
        ids[..1]
    );
    assert_eq!(claims.claimed.iter().map(|claim| claim.event).collect::<Vec<_>>(), ids[1..]);
    assert_eq!(claims.held_back, []);
}

async fn events_that_are_not_due_are_not_claimed(db: Db) {
    let claim = db.claimed("a").await;
    assert!(
        db.store.claim(vec![demand("a", 9)]).await.unwrap().claimed.is_empty(),
        "the event is leased"
    );
    db.settle(&claim, Outcome::Retry { after: HOUR }).await;
    assert!(
        db.store.claim(vec![demand("a", 9)]).await.unwrap().claimed.is_empty(),
        "the event is in back-off"
    );
    db.make_due(claim.event, HOUR).await;
    let claim = db.claim_one("a").await;
    db.settle(&claim, Outcome::DeadLetter(Reason::Permanent)).await;
    assert!(
        db.store.claim(vec![demand("a", 9)]).await.unwrap().claimed.is_empty(),
        "the event is dead-lettered"
    );
}

async fn after_its_lease_an_event_is_claimed_again_and_the_attempt_lost(db: Db) {
    let first = db.claimed("a").await;
    db.make_due(first.event, LEASE).await;
    let second = db.claim_one("a").await;
    assert_eq!((second.attempt, second.in_budget.0, second.fence), (2, 2, Fence(2)));
    let found = db.found(first.event).await;
    assert_eq!((found.status, found.history.len()), (Status::Processing, 1));
    let lost = &found.history[0];
    assert_eq!(
        (lost.attempt, lost.verdict, lost.took, lost.status_code, lost.error.as_deref()),
        (1, Verdict::Lost, None, None, None)
    );
    assert!(lost.ended_at >= found.received_at);
}

async fn an_event_without_attempts_left_is_dead_lettered_by_the_claim(db: Db) {
    let mut claim = db.claimed("a").await;
    for attempt in 2..=3 {
        db.make_due(claim.event, LEASE).await;
        claim = db.claim_one("a").await;
        assert_eq!(claim.attempt, attempt);
    }
    db.make_due(claim.event, LEASE).await;
    let claims = db.store.claim(vec![demand("a", 1)]).await.unwrap();
    assert!(claims.claimed.is_empty(), "the event must not be sent");
    assert_eq!(
        claims.dead_lettered,
        [DeadLettered {
            event: claim.event,
            source: claim.source.clone(),
            attempt: 3,
            reason: Reason::Lost
        }]
    );
    let found = db.found(claim.event).await;
    assert_eq!(
        (found.status, found.reason, found.attempt),
        (Status::DeadLettered, Some(Reason::Lost), 3)
    );
    assert_eq!(
        found.history.iter().map(|entry| entry.verdict).collect::<Vec<_>>(),
        [Verdict::Lost; 3]
    );
    assert!(found.settled_at.is_some() && found.next_attempt_at.is_none());
}

async fn lowering_max_attempts_dead_letters_an_event_as_exhausted(db: Db) {
    let claim = db.claimed("a").await;
    db.settle(&claim, Outcome::Retry { after: HOUR }).await;
    db.make_due(claim.event, HOUR).await;
    let claims = db.store.claim(vec![Demand { max_attempts: 1, ..demand("a", 1) }]).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.dead_lettered.len()), (0, 1));
    let found = db.found(claim.event).await;
    assert_eq!(
        (found.status, found.reason, found.history.len()),
        (Status::DeadLettered, Some(Reason::Exhausted), 1)
    );
    assert!(
        found.settled_at >= Some(found.history[0].ended_at),
        "it ended at this claim, not at its last attempt"
    );
}

async fn events_dead_lettered_by_a_claim_count_against_the_limit(db: Db) {
    let batch = events(0..4);
    db.store.accept(batch).await.unwrap();
    let claims = db.store.claim(vec![demand("orders", 2)]).await.unwrap();
    for claim in &claims.claimed {
        db.settle(claim, Outcome::Retry { after: Duration::ZERO }).await;
        db.make_due(claim.event, HOUR).await;
    }
    let claims =
        db.store.claim(vec![Demand { max_attempts: 1, ..demand("orders", 3) }]).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.dead_lettered.len()), (1, 2));
}

async fn concurrent_claimers_never_share_an_event(db: Db) {
    db.store.accept(events(0..500)).await.unwrap();
    let stores = [db.another(), db.another(), Arc::clone(&db.store)];
    let claimers = stores.iter().cycle().take(9).map(|store| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let (mut claimed, mut nothing_in_a_row) = (Vec::new(), 0);
            // Events that another claim is taking are skipped, so an empty claim does not mean that
            // none are left.
            while nothing_in_a_row < 3 {
                let claims = store.claim(vec![demand("orders", 17)]).await.unwrap();
                nothing_in_a_row = if claims.claimed.is_empty() { nothing_in_a_row + 1 } else { 0 };
                claimed.extend(claims.claimed.into_iter().map(|claim| claim.event));
            }
            claimed
        })
    });
    let claimed: Vec<EventId> =
        join_all(claimers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(claimed.len(), 500, "each event is claimed once");
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>().len(), 500);
}

async fn binary_bodies_headers_and_queries_are_returned_unchanged(db: Db) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let bodies: [Bytes; 5] = [
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from(all_bytes),
        Bytes::from_static(b"\\x00'\";--\xff\xfe"),
        vec![0xa5; 1 << 20].into(),
    ];
    let batch: Vec<_> = bodies
        .iter()
        .enumerate()
        .map(|(n, body)| {
            let mut event = event(&format!("!#$%&'()*+,-./:;<=>?@[\\]^_`{{|}}~{n}"));
            (event.body, event.headers, event.fingerprint) =
                (body.clone(), body.slice(..body.len().min(300)), Fingerprint::of(body));
            event.query = body.slice(body.len().saturating_sub(300)..);
            event
        })
        .collect();
    db.store.accept(batch.clone()).await.unwrap();
    let claims = db.store.claim(vec![demand("orders", 9)]).await.unwrap();
    assert_eq!(claims.claimed.len(), batch.len());
    for claim in &claims.claimed {
        let event = batch.iter().find(|event| event.id == claim.event).unwrap();
        assert!(claim.body == event.body && claim.headers == event.headers);
        assert_eq!(claim.query, event.query);
        assert_eq!(db.found(event.id).await.key, event.key.as_str());
    }
    db.store
        .settle(claims.claimed.iter().map(|claim| settlement(claim, Outcome::Delivered)).collect())
        .await
        .unwrap();
    assert_eq!(&db.found(batch[0].id).await.history[0].excerpt[..], b"try \0 later \xff");
}

async fn a_delivery_without_its_event_row_does_not_block_others(db: Db) {
    let batch = events(0..3);
    db.store.accept(batch.clone()).await.unwrap();
    db.execute(&format!("delete from events where id = {}", db.id(batch[1].id))).await;
    let claims = db.store.claim(vec![demand("orders", 9)]).await.unwrap();
    let claimed: BTreeSet<EventId> = claims.claimed.iter().map(|claim| claim.event).collect();
    assert_eq!(claimed, BTreeSet::from([batch[0].id, batch[2].id]));
}

async fn the_longest_lease_stays_within_the_range_of_timestamps(db: Db) {
    let event = db.accepted("a").await;
    let endless =
        Demand { lease: Duration::MAX, max_attempts: u32::MAX, limit: u32::MAX, ..demand("a", 1) };
    let claim = db.store.claim(vec![endless]).await.unwrap().claimed.remove(0);
    db.settle(&claim, Outcome::Retry { after: Duration::MAX }).await;
    let next = db.found(event).await.next_attempt_at.unwrap();
    assert!(next.to_string().starts_with("21"), "{next}");
}

async fn a_manually_inserted_attempt_does_not_block_other_events(db: Db) {
    let (now, nothing) = if matches!(db.raw, Raw::Postgres(_)) {
        ("now()", "''")
    } else {
        ("unixepoch('now') * 1000000", "x''")
    };
    let by_hand = async |event: EventId, attempt: u32| {
        let id = db.id(event);
        db.execute(&format!(
            "insert into attempts (event_id, attempt, ended_at, verdict, error, excerpt)
             values ({id}, {attempt}, {now}, 'transient', 'by hand', {nothing})"
        ))
        .await;
    };
    let claim = db.claimed("a").await;
    by_hand(claim.event, 1).await;
    db.make_due(claim.event, LEASE * 2).await;
    db.accepted("b").await;
    let claimed = db.store.claim(vec![demand("a", 10), demand("b", 10)]).await.unwrap().claimed;
    assert_eq!(claimed.len(), 2, "the existing entry of the lost attempt does not block the claim");
    by_hand(claim.event, 2).await;
    let settled = claimed.iter().map(|claim| settlement(claim, Outcome::Delivered)).collect();
    assert_eq!(db.store.settle(settled).await, Ok(vec![]));
    let found = db.found(claim.event).await;
    assert_eq!(found.status, Status::Delivered);
    assert!(
        found.history.iter().all(|entry| entry.error.as_deref() == Some("by hand")),
        "existing entries must be kept: {found:?}"
    );
}

async fn every_claim_contains_the_time_at_which_its_event_was_stored(db: Db) {
    let event = db.accepted("a").await;
    // So that a store with a clock that stands still cannot take the present time for it.
    db.age(event, HOUR).await;
    let received_at = db.found(event).await.received_at;
    let claim = async || {
        let claim = db.claim_one("a").await;
        assert_eq!(claim.received_at, received_at, "attempt {}", claim.attempt);
        claim
    };
    let retried = claim().await;
    db.settle(&retried, Outcome::Retry { after: Duration::ZERO }).await;
    claim().await;
    db.make_due(event, LEASE).await;
    let after_the_lease = claim().await;
    db.settle(&after_the_lease, Outcome::DeadLetter(Reason::Permanent)).await;
    assert_eq!(db.store.redrive(event, RedrivenBy::Operator).await, Ok(Redriven::Queued));
    let redriven = claim().await;
    db.settle(&redriven, Outcome::Delivered).await;
    assert_eq!(db.store.redrive_delivered(event).await, Ok(Redriven::Queued));
    claim().await;
}

async fn a_claim_contains_the_age_of_its_event_since_reception(db: Db) {
    let event = db.accepted("a").await;
    assert!(db.claim_one("a").await.age < Duration::from_secs(30));
    let hour = Duration::from_hours(1);
    db.age(event, hour).await;
    db.make_due(event, LEASE + hour).await;
    let again = db.claim_one("a").await;
    assert!(
        (hour..hour + Duration::from_secs(30)).contains(&again.age),
        "{:?}: the age counts from reception, not from the due time",
        again.age
    );
}
