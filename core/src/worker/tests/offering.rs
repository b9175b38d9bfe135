//! What a worker offers to take over as it is stored, and what it does with it.

use super::*;
use crate::breaker::BreakerPolicy;

/// The offers that are made now, one after another.
fn offers(worker: &mut Worker, now: Instant) -> Vec<u32> {
    let all = core::iter::from_fn(|| worker.poll(now));
    all.filter_map(|action| if let Action::Offer { room, .. } = action { Some(room) } else { None })
        .collect()
}

fn handed(since: Instant, events: core::ops::Range<u128>) -> Input {
    Input::Handed { since, claims: events.map(claim).collect() }
}

/// A worker of two slots that was told that nothing is due.
fn drained(settings: Settings, policy: Policy) -> Worker {
    let mut worker = Worker::new(START, settings, [(source("a"), policy)]);
    assert_eq!(offers(&mut worker, START), [], "what is due is not known yet");
    worker.handle(at(1), claims(0..0));
    assert_eq!(offers(&mut worker, at(1)), [2]);
    worker
}

fn of_two() -> Policy {
    Policy { concurrency: 2, max_attempts: 2, ..Policy::default() }
}

#[test]
fn what_is_handed_over_is_delivered_and_settled_without_a_claim() {
    let mut worker = drained(unpaced(), of_two());
    worker.handle(at(3), handed(at(2), 0..1));
    let delivering = core::iter::from_fn(|| worker.poll(at(3))).collect::<Vec<_>>();
    assert!(
        matches!(&delivering[..], [Action::Deliver(_)]),
        "what is left of the offer is as much as there is room for: {delivering:?}"
    );
    worker.handle(at(4), Input::Finished { ticket: tickets(&delivering)[0], reply: ok() });
    let settling = core::iter::from_fn(|| worker.poll(at(4))).collect::<Vec<_>>();
    assert!(
        matches!(&settling[..], [Action::Settle(batch), Action::Offer { room: 2, .. }] if batch[0].fence == Fence(1)),
        "{settling:?}"
    );
}

#[test]
fn an_offer_tells_the_lease() {
    let mut worker = worker(2);
    actions(&mut worker, START);
    worker.handle(at(1), claims(0..0));
    let bytes = Settings::default().max_held_bytes / 4;
    let offer =
        Action::Offer { source: source("a"), room: 2, bytes, lease: Policy::default().lease() };
    assert_eq!(core::iter::from_fn(|| worker.poll(at(1))).last(), Some(offer));
}

#[test]
fn while_older_events_wait_nothing_is_offered() {
    let mut worker = drained(unpaced(), of_two());
    worker.handle(at(2), Input::Woken(vec![source("a")]));
    assert_eq!(limits(&actions(&mut worker, at(2))), [2]);
    assert_eq!(offers(&mut worker, at(2)), [], "the offer stands while it is asked");
    worker.handle(at(3), claims(0..2));
    assert_eq!(offers(&mut worker, at(3)), [0], "as many came as were asked for");
    for (ticket, now) in [(Ticket(0), at(4)), (Ticket(1), at(5))] {
        worker.handle(now, Input::Finished { ticket, reply: ok() });
        assert_eq!(offers(&mut worker, now), [], "the slots are for those that are due");
    }
    worker.handle(at(6), claims(2..2));
    assert_eq!(offers(&mut worker, at(6)), [2], "no others are due");
}

#[test]
fn an_open_breaker_and_a_failing_store_take_the_offer_back() {
    let breaker = BreakerPolicy { failures: 1, open_for: secs(10) };
    let mut worker = drained(unpaced(), Policy { breaker, ..of_two() });
    worker.handle(at(2), handed(at(2), 0..1));
    let ticket = tickets(&actions(&mut worker, at(2)))[0];
    worker.handle(at(3), Input::Finished { ticket, reply: Reply::Failed(DeliveryError::Timeout) });
    assert_eq!(offers(&mut worker, at(3)), [0]);
    assert_eq!(
        offers(&mut worker, at(10_003)),
        [],
        "the one event that is let through is one that waited"
    );

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
fn what_is_handed_over_is_held_by_its_lease_as_it_was_when_it_was_sent_to_the_store() {
    let mut worker = drained(unpaced(), of_two());
    let covered = at(2) + WAIT_ALLOWANCE;
    worker.handle(covered, handed(at(2), 0..1));
    assert_eq!(tickets(&actions(&mut worker, covered)).len(), 1);
    worker.handle(covered, handed(at(1), 1..2));
    assert_eq!(
        outcomes(&actions(&mut worker, covered)),
        [Outcome::Release],
        "its lease does not cover a delivery any more"
    );
}

#[test]
fn what_is_handed_over_before_a_shutdown_or_after_it_is_given_back() {
    let mut worker = drained(unpaced(), of_two());
    worker.handle(at(2), handed(at(2), 0..1));
    worker.handle(at(2), Input::ShutDown { cut_off_at: at(1_000), give_up_at: at(2_000) });
    let ending = core::iter::from_fn(|| worker.poll(at(2))).collect::<Vec<_>>();
    assert!(
        matches!(&ending[..], [Action::Settle(batch)] if batch[0].outcome == Outcome::Release),
        "and no offer: {ending:?}"
    );
    worker.handle(at(3), handed(at(2), 1..2));
    worker.handle(at(3), Input::Settled);
    let ending = core::iter::from_fn(|| worker.poll(at(3))).collect::<Vec<_>>();
    assert!(
        matches!(&ending[..], [Action::Settle(batch)] if batch[0].outcome == Outcome::Release),
        "and no offer: {ending:?}"
    );
    worker.handle(at(4), Input::Settled);
    assert_eq!(actions(&mut worker, at(4)), [Action::Done]);
}

#[test]
fn what_is_handed_over_brings_the_polls_back_to_their_pace() {
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
    assert!(wake.reason == WakeReason::Poll && wake.at <= now + unpaced().poll_busy, "{wake:?}");
}
