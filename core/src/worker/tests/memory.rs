//! How the memory for held events is shared between sources.

use super::*;
use alloc::format;
use exchange::{Demand, HeldBack};

const LIMIT: usize = 64_000;
/// A quarter of the memory for claims, a quarter for offers, and a half that is common.
const COMMON: usize = LIMIT / 2;

/// A store that holds events of one size for each source, and downstreams that answer or hang. It answers claims as a
/// database does.
struct Events {
    worker: Worker,
    now: Instant,
    /// What is due, by source: so many events of one size.
    due: BTreeMap<SourceName, (usize, usize)>,
    /// Sources whose deliveries never end.
    hung: BTreeSet<SourceName>,
    in_flight: Vec<(Ticket, SourceName, usize)>,
    delivered: BTreeMap<SourceName, usize>,
    next: u128,
    most_held: usize,
}

impl Events {
    fn new(sources: usize, concurrency: u32) -> Self {
        let policy = Policy {
            concurrency,
            breaker: crate::breaker::BreakerPolicy { failures: 0, ..Default::default() },
            ..Policy::default()
        };
        let settings = Settings { max_held_bytes: LIMIT, ..unpaced() };
        Self {
            worker: Worker::new(START, settings, (0..sources).map(|n| (name(n), policy.clone()))),
            now: START,
            due: BTreeMap::new(),
            hung: BTreeSet::new(),
            in_flight: Vec::new(),
            delivered: BTreeMap::new(),
            next: 0,
            most_held: 0,
        }
    }

    fn due(&mut self, source: usize, events: usize, size: usize) {
        self.due.insert(name(source), (events, size));
        self.worker.handle(self.now, Input::Woken(vec![name(source)]));
    }

    /// Everything that can happen at this moment happens.
    fn run(&mut self) {
        while let Some(action) = self.worker.poll(self.now) {
            match action {
                Action::Claim(demands) => {
                    let claims = self.claims(&demands);
                    self.worker.handle(self.now, Input::Claimed(claims));
                }
                Action::Deliver(Delivery { ticket, claim, .. }) => {
                    if self.hung.contains(&claim.source) {
                        self.in_flight.push((ticket, claim.source, claim.body.len()));
                    } else {
                        *self.delivered.entry(claim.source).or_default() += 1;
                        self.worker.handle(self.now, Input::Finished { ticket, reply: ok() });
                    }
                }
                Action::Settle(_) => self.worker.handle(self.now, Input::Settled),
                Action::Offer { .. }
                | Action::Breaker(..)
                | Action::Suspended { .. }
                | Action::Abandoned(_)
                | Action::Done => {}
            }
            self.most_held = self.most_held.max(self.worker.load().held_bytes);
        }
    }

    fn claims(&mut self, demands: &[Demand]) -> Claims {
        let mut claims = Claims::default();
        for Demand { source, limit, bytes, .. } in demands {
            let (mut limit, mut bytes) = (*limit, *bytes);
            let Some((events, size)) = self.due.get_mut(source) else { continue };
            while *events > 0 && limit > 0 {
                if *size > bytes {
                    claims.held_back.push(HeldBack { source: source.clone(), size: *size });
                    break;
                }
                (*events, limit, bytes) = (*events - 1, limit - 1, bytes - *size);
                self.next += 1;
                claims.claimed.push(Claim {
                    source: source.clone(),
                    body: vec![b'x'; *size].into(),
                    ..super::claim(self.next)
                });
            }
        }
        claims
    }

    /// Time passes, and deliveries that hang run into their timeout.
    fn time_out(&mut self) {
        self.now = self.now + secs(10);
        for (ticket, source, _) in core::mem::take(&mut self.in_flight) {
            *self.delivered.entry(source).or_default() += 1;
            self.worker.handle(self.now, Input::Finished { ticket, reply: failed() });
        }
        self.run();
    }

    fn held_by(&self, source: usize) -> usize {
        self.in_flight
            .iter()
            .filter(|(_, of, _)| *of == name(source))
            .map(|(_, _, size)| size)
            .sum()
    }

    fn delivered(&self, source: usize) -> usize {
        self.delivered.get(&name(source)).copied().unwrap_or_default()
    }
}

fn name(source: usize) -> SourceName {
    super::source(&format!("s{source}"))
}

#[test]
fn hung_sources_with_large_events_leave_memory_to_the_others() {
    let mut events = Events::new(6, 16);
    for source in 1..6 {
        events.hung.insert(name(source));
        events.due(source, 100, 1_000);
    }
    events.run();
    assert!((1..6).all(|source| events.held_by(source) >= 2_000), "each hung source delivers, too");
    events.due(0, 200, 1_000);
    events.run();
    assert_eq!(events.delivered(0), 200);
}

#[test]
fn many_hung_sources_whose_events_are_larger_than_their_shares_leave_each_other_to_its_turn() {
    let mut events = Events::new(201, 16);
    // It was seen before, and is known to be prompt.
    events.due(0, 1, 1_000);
    events.run();
    for source in 1..201 {
        events.hung.insert(name(source));
        events.due(source, 2, 1_000);
    }
    events.run();
    assert!(events.most_held <= LIMIT, "{}", events.most_held);
    for _ in 0..30 {
        events.due(0, 50, 1_000);
        events.run();
        events.time_out();
    }
    assert_eq!(events.delivered(0), 1 + 30 * 50, "it waits for no timeout of another source");
    let served = (1..201).filter(|source| events.delivered(*source) == 2).count();
    assert_eq!(served, 200, "the hung ones get their turns");
}

#[test]
fn a_small_event_of_a_new_source_is_delivered_although_the_common_memory_is_full() {
    let mut events = Events::new(100, 64);
    for source in 1..100 {
        events.hung.insert(name(source));
        events.due(source, 64, 1_000);
    }
    events.run();
    events.due(0, 20, 100);
    events.run();
    assert_eq!(events.delivered(0), 20);
}

#[test]
fn a_source_alone_may_hold_its_share_and_half_of_the_common_memory() {
    let mut events = Events::new(10, 100);
    events.hung.insert(name(0));
    events.due(0, 100, 1_000);
    events.run();
    let of_one_group = COMMON * 3 / 4;
    let most = LIMIT / 4 / 10 + of_one_group / 2;
    assert!((most - 2_000..=most).contains(&events.held_by(0)), "{} of {most}", events.held_by(0));
}

#[test]
fn an_event_larger_than_all_memory_is_delivered_alone() {
    let mut events = Events::new(3, 16);
    for source in 0..3 {
        events.hung.insert(name(source));
        events.due(source, 2, 2 * LIMIT);
    }
    for _ in 0..6 {
        events.run();
        assert_eq!(events.in_flight.len(), 1, "one at a time");
        events.time_out();
    }
    assert_eq!((0..3).map(|source| events.delivered(source)).collect::<Vec<_>>(), [2, 2, 2]);
    assert!(events.most_held <= 2 * LIMIT);
}

#[test]
fn where_there_is_next_to_no_memory_everyone_has_a_turn() {
    let policy = Policy { concurrency: 4, ..Policy::default() };
    let settings = Settings { max_held_bytes: 1, ..unpaced() };
    let mut events = Events::new(0, 1);
    events.worker = Worker::new(START, settings, (0..6).map(|n| (name(n), policy.clone())));
    for source in 0..6 {
        events.due(source, 5, 10);
    }
    events.run();
    assert_eq!((0..6).map(|source| events.delivered(source)).collect::<Vec<_>>(), [5; 6]);
    assert_eq!(events.most_held, 10);
}

#[test]
fn an_event_that_waits_for_memory_in_vain_is_looked_for_again() {
    let mut events = Events::new(2, 16);
    events.hung.insert(name(1));
    events.due(1, 1, 2 * LIMIT);
    events.run();
    events.due(0, 1, 2 * LIMIT);
    events.run();
    assert_eq!(events.delivered(0), 0, "there is no room for it");
    // Another process has delivered the large event meanwhile, and a small one is due.
    events.due.insert(name(0), (1, 10));
    events.now = events.worker.wake_at().expect("a poll").at;
    events.run();
    assert_eq!(events.delivered(0), 1);
}

#[test]
fn what_is_handed_over_has_memory_of_its_own() {
    let mut worker = Worker::new(
        START,
        Settings { max_held_bytes: LIMIT, ..unpaced() },
        [(name(0), Policy::default()), (name(1), Policy::default())],
    );
    let offers = |worker: &mut Worker| -> BTreeMap<SourceName, (u32, usize)> {
        let all = core::iter::from_fn(|| worker.poll(START));
        all.filter_map(|action| {
            if let Action::Offer { source, room, bytes, .. } = action {
                Some((source, (room, bytes)))
            } else {
                None
            }
        })
        .collect()
    };
    let _ = offers(&mut worker);
    worker.handle(START, claims(0..0));
    let all = offers(&mut worker);
    assert_eq!(
        all,
        BTreeMap::from([(name(0), (16, LIMIT / 8)), (name(1), (16, LIMIT / 8))]),
        "an eighth each"
    );
    let large = Claim { source: name(0), ..heavy(1, LIMIT / 8 - 10) };
    worker.handle(START, Input::Handed { since: START, claims: vec![large] });
    assert_eq!(
        offers(&mut worker),
        BTreeMap::new(),
        "the offer is used up, so that nothing new is to be told"
    );
    let (ticket, _) = worker.in_flight.iter().next().expect("it is sent");
    worker.handle(START, Input::Finished { ticket: *ticket, reply: ok() });
    assert_eq!(offers(&mut worker), BTreeMap::from([(name(0), (16, LIMIT / 8))]));
}

#[test]
fn a_failed_claim_gives_back_what_was_promised_to_it() {
    let mut events = Events::new(1, 40);
    let demands = |actions: &[Action]| match actions {
        [Action::Claim(demands)] => demands.clone(),
        other => panic!("a claim: {other:?}"),
    };
    // The size of its events is known.
    events.due(0, 40, 1_000);
    events.run();
    events.due(0, 40, 1_000);
    let first = demands(&actions(&mut events.worker, events.now));
    assert!(first[0].bytes > LIMIT / 4, "more than its own share: {first:?}");
    events.worker.handle(events.now, Input::ClaimFailed);
    events.now = at(1_000);
    let second = demands(&actions(&mut events.worker, events.now));
    assert_eq!(first, second);
}
