//! Tests of a worker whose process lacks a resource to send.

use super::*;

fn not_sent(worker: &mut Worker, now: Instant, ticket: Ticket) -> Vec<Action> {
    worker.handle(now, Input::Finished { ticket, reply: Reply::NotSent });
    actions(worker, now)
}

/// A worker that has just started two deliveries, and holds a third event.
fn delivering() -> (Worker, Vec<Ticket>) {
    let mut worker = worker(2);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..3));
    let tickets = tickets(&actions(&mut worker, START));
    assert_eq!(tickets.len(), 2);
    (worker, tickets)
}

fn suspended(actions: &[Action]) -> Vec<Duration> {
    actions
        .iter()
        .filter_map(
            |action| if let Action::Suspended { wait } = action { Some(*wait) } else { None },
        )
        .collect()
}

/// When the suspension ends.
fn resumes(worker: &Worker) -> Instant {
    worker.shortage.until.expect("deliveries are suspended")
}

#[test]
fn an_unsent_event_is_released_without_a_history_entry() {
    let (mut worker, tickets) = delivering();
    let done = not_sent(&mut worker, at(1), tickets[0]);
    assert_eq!(outcomes(&done), [Outcome::Release]);
    let Some(Action::Settle(batch)) =
        done.iter().find(|action| matches!(action, Action::Settle(_)))
    else {
        panic!("expected a batch of settlements")
    };
    assert_eq!((batch[0].attempt, batch[0].record.is_none()), (1, true));
    assert_eq!(
        worker.load(),
        Load { in_flight: 1, ahead: 1, unsettled: 1, held_bytes: 8 },
        "its slot is free"
    );
}

#[test]
fn deliveries_and_claims_wait_while_the_process_cannot_send() {
    let (mut worker, tickets) = delivering();
    let first = not_sent(&mut worker, at(1), tickets[0]);
    let waits = suspended(&first);
    assert_eq!(waits.len(), 1);
    let again = not_sent(&mut worker, at(2), tickets[1]);
    assert_eq!(suspended(&again), [], "one suspension for deliveries that started together");
    worker.handle(at(3), Input::Settled);
    worker.handle(at(3), Input::Woken(vec![source("a")]));
    let until = resumes(&worker);
    assert_eq!(until, at(1) + waits[0]);
    let before = Instant::from_origin(until.since(START) - Duration::from_nanos(1));
    let meanwhile = [actions(&mut worker, at(3)), actions(&mut worker, before)].concat();
    assert!(
        !meanwhile.iter().any(|action| matches!(action, Action::Deliver(_) | Action::Claim(_))),
        "{meanwhile:?}"
    );
    let after = actions(&mut worker, until);
    assert_eq!(super::tickets(&after).len(), 1, "the waiting event is sent");
    assert!(after.iter().any(|action| matches!(action, Action::Claim(_))), "{after:?}");
}

#[test]
fn nothing_is_offered_while_the_process_cannot_send() {
    let mut worker = worker(2);
    let all =
        |worker: &mut Worker, now| core::iter::from_fn(|| worker.poll(now)).collect::<Vec<_>>();
    let room = |actions: &[Action]| {
        actions
            .iter()
            .filter_map(
                |action| if let Action::Offer { room, .. } = action { Some(*room) } else { None },
            )
            .last()
    };
    let _ = all(&mut worker, START);
    worker.handle(START, claims(0..1));
    let begun = all(&mut worker, START);
    assert_eq!(room(&begun), Some(1));
    worker.handle(at(1), Input::Finished { ticket: tickets(&begun)[0], reply: Reply::NotSent });
    assert_eq!(room(&all(&mut worker, at(1))), Some(0));
    worker.handle(at(2), Input::Settled);
    assert_eq!(room(&all(&mut worker, at(2))), None);
    let until = resumes(&worker);
    assert_eq!(room(&all(&mut worker, until)), Some(2));
}

#[test]
fn suspensions_grow_to_a_limit_until_a_delivery_is_sent() {
    let mut worker = worker(1);
    let mut now = START;
    let mut waits = Vec::new();
    for n in 0..12 {
        worker.handle(now, Input::Woken(vec![source("a")]));
        let _ = actions(&mut worker, now);
        worker.handle(now, claims(n..n + 1));
        let ticket = tickets(&actions(&mut worker, now))[0];
        waits.extend(suspended(&not_sent(&mut worker, now, ticket)));
        worker.handle(now, Input::Settled);
        now = resumes(&worker);
    }
    let Settings { shortage_initial, shortage_max, .. } = Settings::default();
    assert_eq!(waits.len(), 12);
    assert!((shortage_initial / 2..=shortage_initial).contains(&waits[0]), "{waits:?}");
    assert!((shortage_max / 2..=shortage_max).contains(&waits[11]), "{waits:?}");

    worker.handle(now, Input::Woken(vec![source("a")]));
    let _ = actions(&mut worker, now);
    worker.handle(now, claims(20..21));
    let ticket = tickets(&actions(&mut worker, now))[0];
    worker.handle(
        now,
        Input::Finished { ticket, reply: Reply::Failed(DeliveryError::ConnectionRefused) },
    );
    let _ = actions(&mut worker, now);
    worker.handle(now, Input::Settled);
    worker.handle(now, Input::Woken(vec![source("a")]));
    let _ = actions(&mut worker, now);
    worker.handle(now, claims(21..22));
    let ticket = tickets(&actions(&mut worker, now))[0];
    let waits = suspended(&not_sent(&mut worker, now, ticket));
    assert!(waits[0] <= shortage_initial, "a sent delivery resets the wait: {waits:?}");
}

#[test]
fn an_unsent_event_does_not_affect_the_breaker() {
    let policy = Policy {
        concurrency: 4,
        breaker: crate::breaker::BreakerPolicy { failures: 1, refusals: 0, open_for: secs(10) },
        ..Policy::default()
    };
    let mut worker = Worker::new(START, unpaced(), [(source("a"), policy)]);
    let _ = actions(&mut worker, START);
    worker.handle(START, claims(0..4));
    for ticket in tickets(&actions(&mut worker, START)) {
        let done = not_sent(&mut worker, at(1), ticket);
        assert!(!done.iter().any(|action| matches!(action, Action::Breaker(..))), "{done:?}");
    }
}
