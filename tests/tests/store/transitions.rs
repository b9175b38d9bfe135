//! Each store compared with the core: after any operations on an event, in any order, its row must
//! be what `surehook_core::event::DeliveryState` computes.

use crate::db::{Db, demand, event_of, settlement};
use futures::future::join_all;
use std::time::Duration;
use surehook::ports::{Discarded, Redriven, StoreError};
use surehook_core::event::{
    DeliveryState, DiscardScope, Due, Illegal, Outcome, Reason, RedrivenBy, Status,
};
use surehook_core::id::{BudgetAttempt, EventId, Fence};
use surehook_core::source::SourceName;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{Claim, Demand};

clauses! {
    every_transition_matches_the_core => ForgetsTheFence | RetriesAtOnce | ReleaseBurnsItsAttempt,
}

const SEQUENCES: u64 = 24;
const STEPS: usize = 25;
const LEASE: Duration = Duration::from_secs(500);
const DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_micros(1), Duration::from_mins(50)];
/// Longer than any lease or delay.
const LONG: Duration = Duration::from_secs(10_000);

/// The expected state of one event.
struct Expected {
    row: DeliveryState,
    due: Due,
    history: Vec<(u32, Verdict)>,
}

async fn every_transition_matches_the_core(db: Db) {
    join_all((0..SEQUENCES).map(|seed| sequence(&db, seed))).await;
}

async fn sequence(db: &Db, seed: u64) {
    let mut random = Random(seed);
    let name = format!("source-{seed}");
    let new = event_of(&name, "k");
    let (event, source) = (new.id, new.source.clone());
    db.store.accept(vec![new]).await.unwrap();
    let mut expected = Expected {
        row: DeliveryState::accepted(),
        due: Due::After(Duration::ZERO),
        history: vec![],
    };
    check(db, event, &expected, "accepted").await;
    for step in 0..STEPS {
        let place = match random.below(10) {
            0..4 => claim(db, &mut random, event, &source, &mut expected).await,
            4..8 => settle(db, &mut random, event, &source, &mut expected).await,
            8 => discard(db, &mut random, event, &mut expected).await,
            _ => redrive(db, event, &mut expected).await,
        };
        check(db, event, &expected, &format!("seed {seed}, step {step}: {place}")).await;
    }
}

async fn claim(
    db: &Db,
    random: &mut Random,
    event: EventId,
    source: &SourceName,
    expected: &mut Expected,
) -> String {
    if random.below(3) > 0 {
        db.make_due(event, LONG).await;
        expected.due =
            if expected.due == Due::Never { Due::Never } else { Due::After(Duration::ZERO) };
    }
    let max_attempts = 1 + random.below(4);
    let demand = Demand { lease: LEASE, max_attempts, limit: 1, ..demand(source.as_str(), 1) };
    let claims = db.store.claim(vec![demand]).await.unwrap();
    let is_due = matches!(expected.due, Due::After(duration) if duration < Duration::from_secs(1));
    match expected.row.claim(LEASE, max_attempts) {
        Ok(claimed) if is_due => {
            (expected.row, expected.due) = (claimed.delivery, claimed.due);
            expected.history.extend(claimed.lost.map(|attempt| (attempt, Verdict::Lost)));
            let given: Vec<_> = claims
                .claimed
                .iter()
                .map(|claim| (claim.event, claim.fence, claim.attempt, claim.in_budget.0))
                .collect();
            let dead_lettered: Vec<_> = claims
                .dead_lettered
                .iter()
                .map(|dead_lettered| (dead_lettered.event, dead_lettered.attempt))
                .collect();
            if claimed.delivery.status == Status::Processing {
                assert_eq!(
                    given,
                    [(
                        event,
                        expected.row.fence,
                        expected.row.attempt,
                        expected.row.attempts_used()
                    )]
                );
                assert!(dead_lettered.is_empty());
            } else {
                assert_eq!(dead_lettered, [(event, expected.row.attempt)]);
                assert!(given.is_empty());
            }
        }
        _ => assert!(
            claims.claimed.is_empty() && claims.dead_lettered.is_empty(),
            "{:?}",
            expected.row
        ),
    }
    format!("claim with {max_attempts} attempts")
}

async fn settle(
    db: &Db,
    random: &mut Random,
    event: EventId,
    source: &SourceName,
    expected: &mut Expected,
) -> String {
    let outcome = match random.below(12) {
        // Deliver rarely, because that ends the sequence.
        0 => Outcome::Delivered,
        1..5 => Outcome::Retry { after: DELAYS[random.below(3) as usize] },
        5..7 => Outcome::DeadLetter(Reason::OF_ATTEMPTS[random.below(3) as usize]),
        7..10 => Outcome::Release,
        _ => Outcome::CutOff,
    };
    let fence = Fence(
        (expected.row.fence.0 + 1).saturating_sub([1, 1, 1, 1, 0, 2][random.below(6) as usize]),
    );
    let (query, headers, body) = Default::default();
    let held = Claim {
        event,
        source: source.clone(),
        fence,
        attempt: expected.row.attempt,
        in_budget: BudgetAttempt(1),
        age: Duration::ZERO,
        received_at: jiff::Timestamp::UNIX_EPOCH,
        query,
        headers,
        body,
    };
    let settlement = settlement(&held, outcome);
    let refused = db.store.settle(vec![settlement.clone()]).await.unwrap();
    match expected.row.settle(fence, outcome) {
        Ok((row, due)) => {
            assert!(refused.is_empty(), "{:?} {outcome:?}", expected.row);
            expected
                .history
                .extend(settlement.record.map(|record| (expected.row.attempt, record.verdict)));
            (expected.row, expected.due) = (row, due);
        }
        Err(_) => assert_eq!(refused, [event], "{:?} {outcome:?}", expected.row),
    }
    format!("{outcome:?} under {fence:?}")
}

async fn redrive(db: &Db, event: EventId, expected: &mut Expected) -> String {
    let answer = loop {
        match db.store.redrive(event, RedrivenBy::Operator).await {
            // The calls of other sequences have all turns. This one has changed nothing.
            Err(StoreError::Unavailable(_)) => {}
            done => break done.unwrap(),
        }
    };
    match expected.row.redrive() {
        Ok((row, due)) => {
            assert_eq!(answer, Redriven::Queued);
            (expected.row, expected.due) = (row, due);
        }
        Err(_) => assert_eq!(answer, Redriven::WrongStatus(expected.row.status)),
    }
    "redrive".into()
}

async fn discard(db: &Db, random: &mut Random, event: EventId, expected: &mut Expected) -> String {
    let scope = DiscardScope::of_source(random.below(4) > 0);
    let is_due = matches!(expected.due, Due::After(duration) if duration < Duration::from_secs(1));
    let answer = loop {
        match db.store.discard(event, scope).await {
            // The calls of other sequences have all turns. This one has changed nothing.
            Err(StoreError::Unavailable(_)) => {}
            done => break done.unwrap(),
        }
    };
    match expected.row.discard(scope, is_due) {
        Ok(discarded) => {
            assert_eq!(answer, Discarded::Now, "{:?} {scope:?}", expected.row);
            (expected.row, expected.due) = (discarded.delivery, Due::Never);
            expected.history.extend(discarded.lost.map(|attempt| (attempt, Verdict::Lost)));
        }
        Err(Illegal::AlreadyDiscarded) => assert_eq!(answer, Discarded::Before),
        Err(_) => assert_eq!(answer, Discarded::WrongStatus(expected.row.status)),
    }
    format!("discard of {scope:?}")
}

async fn check(db: &Db, event: EventId, expected: &Expected, place: &str) {
    let (found, row) = (db.found(event).await, expected.row);
    assert_eq!((found.status, found.reason), (row.status, row.reason), "{place}");
    assert_eq!(
        found.history.iter().map(|entry| (entry.attempt, entry.verdict)).collect::<Vec<_>>(),
        expected.history,
        "{place}"
    );
    assert_eq!(
        found.settled_at.is_some(),
        matches!(row.status, Status::Delivered | Status::DeadLettered),
        "{place}"
    );
    assert_eq!(
        found.next_attempt_at.is_some(),
        matches!(row.status, Status::Queued | Status::Retrying),
        "{place}"
    );
    if row.status == Status::Delivered {
        return;
    }
    assert_eq!((found.attempt, found.budget_from), (row.attempt, Some(row.budget_from)), "{place}");
    let (fence, due) = db.fence_and_due(event).await;
    assert_eq!(fence, row.fence.0, "{place}");
    match (expected.due, due) {
        (Due::Never, None) => {}
        // The row may have been made due by moving its time back.
        (Due::After(duration), Some(due)) if duration < Duration::from_secs(1) => {
            assert!(due <= 1, "{place}: due in {due} s");
        }
        (Due::After(duration), Some(due)) => {
            let expected = i64::try_from(duration.as_secs()).unwrap();
            assert!((expected - 30..=expected + 1).contains(&due), "{place}: due in {due} s");
        }
        (expected, due) => panic!("{place}: {expected:?} is not {due:?}"),
    }
}

/// A deterministic random generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((mixed ^ (mixed >> 31)) % u64::from(bound)).unwrap()
    }
}
