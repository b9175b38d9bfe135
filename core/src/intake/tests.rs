//! Tests of the intake's decisions, without a driver.

use super::*;
use crate::admission::{Fingerprint, OnKeyReuse};
use alloc::format;
use core::time::Duration;
use jiff::Timestamp;
use uuid::Uuid;

const SETTINGS: Settings =
    Settings { max_queued: 1000, batches_at_once: 2, request_timeout: Duration::from_millis(1800) };

const RECEIVED_AT: Timestamp = Timestamp::UNIX_EPOCH;
const CLAIMED: Stored = Stored::Claimed { received_at: RECEIVED_AT };

fn at(milliseconds: u64) -> Instant {
    Instant::from_origin(Duration::from_millis(milliseconds))
}

fn source() -> SourceName {
    SourceName::parse("orders").unwrap()
}

/// The `n`th event. Its idempotency key is unique, and its body has ten bytes.
fn request(n: u128) -> Request {
    Request {
        event: EventId::from_uuid(Uuid::from_u128(n)),
        source: source(),
        key: IdempotencyKey::parse(format!("key-{n:05}").as_bytes()).unwrap(),
        fingerprint: Fingerprint::of(&n.to_be_bytes()),
        on_key_reuse: OnKeyReuse::Reject,
        size: 10,
    }
}

fn submit(intake: &mut Intake, requests: impl IntoIterator<Item = Request>) -> Vec<Ticket> {
    requests.into_iter().map(|request| intake.submit(at(0), request).unwrap()).collect()
}

/// All actions that are due now.
fn actions(intake: &mut Intake, now: Instant) -> Vec<Action> {
    let actions = core::iter::from_fn(|| intake.poll(now)).collect();
    intake.invariants();
    actions
}

/// The next action, which must be a call to the store, and its events.
fn call(intake: &mut Intake) -> (BatchId, Vec<(Ticket, Option<Duration>)>) {
    match intake.poll(at(0)) {
        Some(Action::Store { batch, events }) => (batch, events),
        other => panic!("expected a call to the store, got {other:?}"),
    }
}

fn stored(intake: &mut Intake, batch: BatchId, result: Result<Vec<Stored>, StoreFailure>) {
    intake.handle(Input::Stored { batch, result });
    intake.invariants();
}

fn answers(actions: &[Action]) -> Vec<(Ticket, Result<Admission, Refusal>)> {
    let answer = |action: &Action| {
        if let Action::Answer { ticket, answer } = action { Some((*ticket, *answer)) } else { None }
    };
    actions.iter().filter_map(answer).collect()
}

const LEASE: Duration = Duration::from_mins(1);

fn offer(intake: &mut Intake, events: u32, bytes: usize) {
    intake.handle(Input::Offered {
        source: source(),
        capacity: Capacity { events, bytes },
        lease: LEASE,
    });
}

#[test]
fn an_idle_intake_stores_at_once_and_answers_after_the_commit() {
    let mut intake = Intake::new(SETTINGS);
    let tickets = submit(&mut intake, [request(1)]);
    let (batch, events) = call(&mut intake);
    assert_eq!(events, [(tickets[0], None)]);
    assert_eq!(actions(&mut intake, at(0)), [], "no answer before the commit");
    stored(&mut intake, batch, Ok(vec![Stored::Inserted]));
    let accepted = Admission::Accepted { id: request(1).event, status: Status::Queued };
    assert_eq!(
        actions(&mut intake, at(1)),
        [
            Action::Ring(BTreeSet::from([source()])),
            Action::Answer { ticket: tickets[0], answer: Ok(accepted) }
        ]
    );
    assert_eq!((intake.waiting(), intake.wake_at()), (0, None));
}

#[test]
fn requests_queued_during_calls_become_a_batch_of_at_most_256() {
    let mut intake = Intake::new(SETTINGS);
    submit(&mut intake, [request(1)]);
    let (first, _) = call(&mut intake);
    submit(&mut intake, [request(2)]);
    call(&mut intake);
    submit(&mut intake, (3..303).map(request));
    assert_eq!(intake.poll(at(0)), None, "two calls are in flight");
    stored(&mut intake, first, Ok(vec![Stored::Inserted]));
    let sizes: Vec<usize> = actions(&mut intake, at(0))
        .iter()
        .filter_map(|action| {
            if let Action::Store { events, .. } = action { Some(events.len()) } else { None }
        })
        .collect();
    assert_eq!(sizes, [BATCH_ROWS]);
}

#[test]
fn a_batch_ends_before_an_event_that_exceeds_its_size() {
    let mut intake = Intake::new(SETTINGS);
    let large = |n| Request { size: BATCH_BYTES / 2 + 1, ..request(n) };
    submit(&mut intake, [large(1), large(2), Request { size: BATCH_BYTES * 2, ..request(3) }]);
    assert_eq!((call(&mut intake).1.len(), call(&mut intake).1.len()), (1, 1));
}

#[test]
fn requests_with_the_same_key_share_one_row() {
    let mut intake = Intake::new(SETTINGS);
    let again = Request { event: EventId::from_uuid(Uuid::from_u128(99)), ..request(1) };
    let other_body = Request {
        fingerprint: Fingerprint::of(b"other"),
        event: EventId::from_uuid(Uuid::from_u128(98)),
        ..request(1)
    };
    let tickets = submit(&mut intake, [request(1), again, other_body]);
    let (batch, events) = call(&mut intake);
    assert_eq!(events.len(), 1);
    stored(&mut intake, batch, Ok(vec![Stored::Inserted]));
    let (id, status) = (request(1).event, Status::Queued);
    assert_eq!(
        answers(&actions(&mut intake, at(0))),
        [
            (tickets[0], Ok(Admission::Accepted { id, status })),
            (tickets[1], Ok(Admission::Replayed { id, status })),
            (tickets[2], Ok(Admission::KeyReused { first: id })),
        ]
    );
}

#[test]
fn an_unknown_result_is_retried_with_the_same_id_without_a_lease() {
    let mut intake = Intake::new(SETTINGS);
    offer(&mut intake, 5, 1000);
    let tickets = submit(&mut intake, [request(1)]);
    let (batch, events) = call(&mut intake);
    assert_eq!(events, [(tickets[0], Some(LEASE))]);
    stored(&mut intake, batch, Err(StoreFailure::Unknown));
    assert_eq!(intake.capacity_taken(), 0, "the capacity is free again");
    let (batch, events) = call(&mut intake);
    assert_eq!(events, [(tickets[0], None)], "the claims of the first attempt are unknown");
    let id = request(1).event;
    stored(
        &mut intake,
        batch,
        Ok(vec![Stored::Existing {
            id,
            fingerprint: request(1).fingerprint,
            status: Status::Processing,
        }]),
    );
    let accepted = Admission::Accepted { id, status: Status::Processing };
    assert_eq!(answers(&actions(&mut intake, at(0))), [(tickets[0], Ok(accepted))]);
}

#[test]
fn a_failure_after_an_unknown_result_is_answered_as_unknown() {
    for last in [
        StoreFailure::Unavailable,
        StoreFailure::Rejected,
        StoreFailure::Unknown,
        StoreFailure::Conflict,
    ] {
        let mut intake = Intake::new(SETTINGS);
        submit(&mut intake, [request(1)]);
        let mut failure = StoreFailure::Unknown;
        let answer = loop {
            match intake.poll(at(0)) {
                Some(Action::Store { batch, .. }) => stored(&mut intake, batch, Err(failure)),
                Some(Action::Answer { answer, .. }) => break answer,
                other => panic!("{other:?}"),
            }
            failure = last;
        };
        assert_eq!(answer, Err(Refusal::NotStored(NotStored::Unknown)), "{last:?}");
    }
}

#[test]
fn a_conflict_is_tried_three_times_and_an_unavailable_store_once() {
    for (failure, calls) in [(StoreFailure::Conflict, 3), (StoreFailure::Unavailable, 1)] {
        let mut intake = Intake::new(SETTINGS);
        let tickets = submit(&mut intake, [request(1)]);
        for _ in 0..calls {
            let (batch, _) = call(&mut intake);
            stored(&mut intake, batch, Err(failure));
        }
        let refusal = Refusal::NotStored(NotStored::Unavailable);
        assert_eq!(
            answers(&actions(&mut intake, at(0))),
            [(tickets[0], Err(refusal))],
            "{failure:?}"
        );
    }
}

#[test]
fn a_rejected_row_is_isolated_in_logarithmic_calls() {
    for bad in [0, 100, 255] {
        let mut intake = Intake::new(SETTINGS);
        let tickets = submit(&mut intake, (0..256).map(request));
        let (mut calls, mut given) = (0, Vec::new());
        while let Some(action) = intake.poll(at(0)) {
            match action {
                Action::Store { batch, events } => {
                    calls += 1;
                    let is_bad = events.iter().any(|(ticket, _)| *ticket == tickets[bad]);
                    let result = if is_bad {
                        Err(StoreFailure::Rejected)
                    } else {
                        Ok(vec![Stored::Inserted; events.len()])
                    };
                    stored(&mut intake, batch, result);
                }
                Action::Answer { ticket, answer } => given.push((ticket, answer.is_ok())),
                Action::HandOver { .. }
                | Action::Release(_)
                | Action::Ring(_)
                | Action::Forget(_)
                | Action::Done => {}
            }
        }
        assert_eq!(calls, 1 + 2 * 8, "rejected row {bad}: each of 8 halvings takes two calls");
        given.sort_unstable();
        let expected: Vec<_> =
            tickets.iter().enumerate().map(|(n, ticket)| (*ticket, n != bad)).collect();
        assert_eq!(given, expected);
    }
}

#[test]
fn after_a_rejected_row_the_next_with_its_key_is_stored() {
    let mut intake = Intake::new(SETTINGS);
    let good = Request {
        fingerprint: Fingerprint::of(b"good"),
        event: EventId::from_uuid(Uuid::from_u128(99)),
        ..request(1)
    };
    let tickets = submit(&mut intake, [request(1), good]);
    let (batch, _) = call(&mut intake);
    stored(&mut intake, batch, Err(StoreFailure::Rejected));
    assert_eq!(
        answers(&[intake.poll(at(0)).unwrap()]),
        [(tickets[0], Err(Refusal::NotStored(NotStored::Refused)))]
    );
    let (_, events) = call(&mut intake);
    assert_eq!(events, [(tickets[1], None)]);
}

#[test]
fn events_claimed_on_insert_are_handed_over_before_their_answers() {
    let mut intake = Intake::new(SETTINGS);
    offer(&mut intake, 1, 1000);
    let tickets = submit(&mut intake, [request(1), request(2)]);
    let (batch, events) = call(&mut intake);
    assert_eq!(
        events,
        [(tickets[0], Some(LEASE)), (tickets[1], None)],
        "the offer has capacity for one"
    );
    stored(&mut intake, batch, Ok(vec![CLAIMED, Stored::Inserted]));
    let all = actions(&mut intake, at(5));
    assert_eq!(all[0], Action::HandOver { since: at(0), events: vec![(tickets[0], RECEIVED_AT)] });
    assert_eq!(answers(&all).len(), 2);

    submit(&mut intake, [request(3)]);
    assert_eq!(call(&mut intake).1[0].1, None, "the capacity is still in use");
    intake.handle(Input::TakenOver { source: source(), size: 10 });
    submit(&mut intake, [request(4)]);
    assert_eq!(
        call(&mut intake).1[0].1,
        None,
        "the worker counts the event and has made no new offer"
    );
}

#[test]
fn the_offered_bytes_limit_claims_on_insert() {
    let mut intake = Intake::new(SETTINGS);
    offer(&mut intake, 10, 15);
    submit(&mut intake, [request(1), request(2)]);
    let leased = call(&mut intake).1.iter().filter(|(_, lease)| lease.is_some()).count();
    assert_eq!(leased, 1);
}

#[test]
fn claims_for_an_ended_worker_are_released_before_shutdown_completes() {
    let mut intake = Intake::new(SETTINGS);
    offer(&mut intake, 1, 1000);
    let tickets = submit(&mut intake, [request(1)]);
    let (batch, _) = call(&mut intake);
    intake.handle(Input::HandoverClosed);
    intake.handle(Input::ShutDown);
    stored(&mut intake, batch, Ok(vec![CLAIMED]));
    let all = actions(&mut intake, at(0));
    assert_eq!(all[0], Action::Release(vec![(tickets[0], RECEIVED_AT)]));
    assert_eq!((answers(&all).len(), intake.wake_at()), (1, None));
    intake.handle(Input::Released);
    assert_eq!(actions(&mut intake, at(0)), [Action::Done]);
}

#[test]
fn nothing_is_claimed_on_insert_for_a_worker_that_drains() {
    let mut intake = Intake::new(SETTINGS);
    offer(&mut intake, 10, 1000);
    intake.handle(Input::HandoverClosed);
    // An offer that was made before the drain can arrive after it.
    offer(&mut intake, 10, 1000);
    let tickets = submit(&mut intake, [request(1)]);
    let (batch, events) = call(&mut intake);
    assert_eq!(events, [(tickets[0], None)], "another process can claim the event at once");
    stored(&mut intake, batch, Ok(vec![Stored::Inserted]));
    assert!(matches!(answers(&actions(&mut intake, at(0)))[..], [(_, Ok(_))]));
}

#[test]
fn a_timed_out_request_counts_against_the_limit_until_stored() {
    let mut intake = Intake::new(Settings { max_queued: 1, ..SETTINGS });
    let tickets = submit(&mut intake, [request(1)]);
    let (batch, _) = call(&mut intake);
    assert_eq!(intake.wake_at(), Some(at(1800)));
    assert_eq!(actions(&mut intake, at(1799)), []);
    assert_eq!(
        actions(&mut intake, at(1800)),
        [Action::Answer { ticket: tickets[0], answer: Err(Refusal::TimedOut) }]
    );
    assert_eq!(intake.submit(at(1800), request(2)), Err(Refusal::Overloaded));
    stored(&mut intake, batch, Ok(vec![Stored::Inserted]));
    assert_eq!(
        actions(&mut intake, at(1900)),
        [Action::Ring(BTreeSet::from([source()])), Action::Forget(tickets[0])]
    );
    assert!(intake.submit(at(1900), request(2)).is_ok());
}

#[test]
fn a_new_limit_keeps_waiting_requests() {
    let mut intake = Intake::new(Settings { max_queued: 2, ..SETTINGS });
    submit(&mut intake, [request(1), request(2)]);
    intake.handle(Input::Limited { max_queued: 1 });
    let (batch, events) = call(&mut intake);
    assert_eq!(events.len(), 2);
    assert_eq!(intake.submit(at(0), request(3)), Err(Refusal::Overloaded));
    intake.handle(Input::Limited { max_queued: 3 });
    assert!(intake.submit(at(0), request(3)).is_ok());
    stored(&mut intake, batch, Ok(vec![Stored::Inserted, Stored::Inserted]));
    let answered = answers(&actions(&mut intake, at(0)));
    assert!(matches!(answered[..], [(_, Ok(_)), (_, Ok(_))]), "{answered:?}");
}

#[test]
fn a_shutdown_stores_waiting_requests_and_refuses_new_ones() {
    let mut intake = Intake::new(SETTINGS);
    let tickets = submit(&mut intake, [request(1)]);
    intake.handle(Input::ShutDown);
    assert_eq!(intake.submit(at(0), request(2)), Err(Refusal::ShuttingDown));
    let (batch, _) = call(&mut intake);
    assert_eq!(actions(&mut intake, at(0)), []);
    stored(&mut intake, batch, Ok(vec![Stored::Inserted]));
    let all = actions(&mut intake, at(0));
    assert_eq!((answers(&all)[0].0, all.last()), (tickets[0], Some(&Action::Done)));
    assert_eq!(intake.poll(at(0)), None);
}
