//! Tests of offers, and of events that are claimed on insert.

use super::*;
use crate::breaker::BreakerPolicy;

/// The offers that are made now, in order.
fn offers(worker: &mut Worker, now: Instant) -> Vec<u32> {
    let all = core::iter::from_fn(|| worker.poll(now));
    all.filter_map(|action| if let Action::Offer { room, .. } = action { Some(room) } else { None })
        .collect()
}

fn handed(since: Instant, events: core::ops::Range<u128>) -> Input {
    Input::Handed { since, claims: events.map(claim).collect() }
}

/// A worker with two slots, whose first claim returned no events.
fn drained(settings: Settings, policy: Policy) -> Worker {
    let mut worker = Worker::new(START, settings, [(source("a"), policy)]);
    assert_eq!(
        offers(&mut worker, START),
        [0_u32; 0],
        "no offer before the first claim has returned"
    );
    worker.handle(at(1), claims(0..0));
    assert_eq!(offers(&mut worker, at(1)), [2]);
    worker
}

fn of_two() -> Policy {
    Policy { concurrency: 2, max_attempts: 2, ..Policy::default() }
}

#[test]
fn handed_over_events_are_delivered_and_settled_without_a_claim() {
    let mut worker = drained(unpaced(), of_two());
    worker.handle(at(3), handed(at(2), 0..1));
    let delivering = core::iter::from_fn(|| worker.poll(at(3))).collect::<Vec<_>>();
    assert!(
        matches!(&delivering[..], [Action::Deliver(_)]),
        "the rest of the offer equals the free capacity: {delivering:?}"
    );
    worker.handle(at(4), Input::Finished { ticket: tickets(&delivering)[0], reply: ok() });
    let settling = core::iter::from_fn(|| worker.poll(at(4))).collect::<Vec<_>>();
    assert!(
        matches!(&settling[..], [Action::Settle(batch), Action::Offer { room: 2, .. }] if batch[0].fence == Fence(1)),
        "{settling:?}"
    );
}

#[test]
fn an_offer_includes_the_lease() {
    let mut worker = worker(2);
    actions(&mut worker, START);
    worker.handle(at(1), claims(0..0));
    let bytes = Settings::default().max_held_bytes / 4;
    let offer =
        Action::Offer { source: source("a"), room: 2, bytes, lease: Policy::default().lease() };
    assert_eq!(core::iter::from_fn(|| worker.poll(at(1))).last(), Some(offer));
}

#[test]
fn nothing_is_offered_while_older_events_wait() {
    let mut worker = drained(unpaced(), of_two());
    worker.handle(at(2), Input::Woken(vec![source("a")]));
    assert_eq!(limits(&actions(&mut worker, at(2))), [2]);
    assert_eq!(
        offers(&mut worker, at(2)),
        [0_u32; 0],
        "the offer is unchanged while a claim is in flight"
    );
    worker.handle(at(3), claims(0..2));
    assert_eq!(offers(&mut worker, at(3)), [0], "the claim was filled, so others may be due");
    for (ticket, now) in [(Ticket(0), at(4)), (Ticket(1), at(5))] {
        worker.handle(now, Input::Finished { ticket, reply: ok() });
        assert_eq!(offers(&mut worker, now), [0_u32; 0], "the slots are for due events");
    }
    worker.handle(at(6), claims(2..2));
    assert_eq!(offers(&mut worker, at(6)), [2], "no others are due");
}

/// Otherwise new events would be delivered for as long as this lasts, and older ones would wait.
#[test]
fn nothing_is_offered_while_a_full_batch_waits_to_be_settled() {
    let policy = Policy { concurrency: 64, ..Policy::default() };
    let mut worker = Worker::new(START, unpaced(), [(source("a"), policy)]);
    actions(&mut worker, START);
    worker.handle(at(1), claims(0..0));
    let (mut offered, mut next, mut now) = (0, 0, 1);
    let mut take = |worker: &mut Worker, now| {
        while let Some(action) = worker.poll(now) {
            if let Action::Offer { room, .. } = action {
                offered = room;
            } else if let Action::Deliver(Dispatch { ticket, .. }) = action {
                worker.handle(now, Input::Finished { ticket, reply: ok() });
            }
        }
        offered
    };
    // The first batch of settlements stays in flight.
    while take(&mut worker, at(now)) > 0 {
        now += 1;
        assert!(now < 1_000, "offers do not end: {:?}", worker.load());
        worker.handle(at(now), handed(at(now), next..next + 64));
        next += 64;
    }
    let unsettled = worker.load().unsettled;
    assert!((BATCH..2 * BATCH + 64).contains(&unsettled), "{unsettled}");

    worker.handle(at(now), Input::Settled);
    assert_eq!(take(&mut worker, at(now)), 64, "what waits is settled in the next batch");
}

#[test]
fn an_open_breaker_and_a_failing_store_withdraw_the_offer() {
    let breaker = BreakerPolicy { failures: 1, refusals: 0, open_for: secs(10) };
    let mut worker = drained(unpaced(), Policy { breaker, ..of_two() });
    worker.handle(at(2), handed(at(2), 0..1));
    let ticket = tickets(&actions(&mut worker, at(2)))[0];
    worker.handle(at(3), Input::Finished { ticket, reply: Reply::Failed(DeliveryError::Timeout) });
    assert_eq!(offers(&mut worker, at(3)), [0]);
    assert_eq!(offers(&mut worker, at(10_003)), [0_u32; 0], "the probe is a claimed event");

    let mut worker = drained(unpaced(), of_two());
    worker.handle(at(2), handed(at(2), 0..1));
    let ticket = tickets(&actions(&mut worker, at(2)))[0];
    worker.handle(at(3), Input::Finished { ticket, reply: ok() });
    actions(&mut worker, at(3));
    worker.handle(at(4), Input::SettleFailed);
    assert_eq!(offers(&mut worker, at(4)), [0]);
    actions(&mut worker, at(4_000));
    worker.handle(at(4_000), Input::Settled);
    assert_eq!(offers(&mut worker, at(4_000)), [2]);
}

#[test]
fn the_lease_of_a_handed_over_event_starts_at_its_store_call() {
    let mut worker = drained(unpaced(), of_two());
    let covered = at(2) + WAIT_ALLOWANCE;
    worker.handle(covered, handed(at(2), 0..1));
    assert_eq!(tickets(&actions(&mut worker, covered)).len(), 1);
    worker.handle(covered, handed(at(1), 1..2));
    assert_eq!(
        outcomes(&actions(&mut worker, covered)),
        [Outcome::Release],
        "its lease no longer covers a delivery"
    );
}

#[test]
fn events_handed_over_around_a_shutdown_are_released() {
    let mut worker = drained(unpaced(), of_two());
    worker.handle(at(2), handed(at(2), 0..1));
    worker.handle(at(2), Input::ShutDown { cut_off_at: at(1_000), give_up_at: at(2_000) });
    let ending = core::iter::from_fn(|| worker.poll(at(2))).collect::<Vec<_>>();
    assert!(
        matches!(&ending[..], [Action::Settle(batch)] if batch[0].outcome == Outcome::Release),
        "expected a release and no offer: {ending:?}"
    );
    worker.handle(at(3), handed(at(2), 1..2));
    worker.handle(at(3), Input::Settled);
    let ending = core::iter::from_fn(|| worker.poll(at(3))).collect::<Vec<_>>();
    assert!(
        matches!(&ending[..], [Action::Settle(batch)] if batch[0].outcome == Outcome::Release),
        "expected a release and no offer: {ending:?}"
    );
    worker.handle(at(4), Input::Settled);
    assert_eq!(actions(&mut worker, at(4)), [Action::Done]);
}

#[test]
fn handed_over_events_reset_the_poll_interval() {
    let mut worker = drained(unpaced(), of_two());
    for _ in 0..5 {
        let now = worker.wake_at().unwrap().at;
        actions(&mut worker, now);
        worker.handle(now, claims(0..0));
    }
    let now = at(20_000);
    actions(&mut worker, now);
    worker.handle(now, claims(0..0));
    worker.handle(now, handed(now, 0..1));
    actions(&mut worker, now);
    let wake = worker.wake_at().unwrap();
    assert!(wake.reason == Step::Poll && wake.at <= now + unpaced().poll_busy, "{wake:?}");
}
