//! Tests of how sources share the memory for held events.

use super::*;
use alloc::format;
use claims::{Demand, HeldBack};

pub(super) const LIMIT: usize = 64_000;
/// A quarter of the memory is for claims, a quarter for offers, and half is common.
const COMMON: usize = LIMIT / 2;

/// A store with events of one size for each source, and downstreams that respond or hang. It
/// answers claims like a database.
struct Events {
    worker: Worker,
    now: Instant,
    /// The due events of each source: their number and their size.
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

    /// Carries out actions until none is due at this moment.
    fn run(&mut self) {
        while let Some(action) = self.worker.poll(self.now) {
            match action {
                Action::Claim(demands) => {
                    let claims = self.claims(&demands);
                    self.worker.handle(self.now, Input::Claimed(claims));
                }
                Action::Deliver(Dispatch { ticket, claim, .. }) => {
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

    /// Time passes until the hung deliveries time out.
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
    assert!(
        (1..6).all(|source| events.held_by(source) >= 2_000),
        "each hung source holds at least two events"
    );
    events.due(0, 200, 1_000);
    events.run();
    assert_eq!(events.delivered(0), 200);
}

/// Each delivery takes memory beside the bytes of its event.
#[test]
fn many_sources_with_small_events_hold_a_bounded_number_of_them() {
    const SOURCES: usize = 100;
    let mut events = Events::new(SOURCES, 64);
    for source in 0..SOURCES {
        events.hung.insert(name(source));
        events.due(source, 64, 1);
    }
    events.run();
    let held: Vec<usize> = (0..SOURCES).map(|source| events.held_by(source)).collect();
    let all: usize = held.iter().sum();
    // Three quarters of the memory are for claims, and each event counts with a 4,096th.
    assert!((2_500..=3_100).contains(&all), "{all} of {} events", 64 * SOURCES);
    let share = LIMIT / 4 / SOURCES / (LIMIT / 4096);
    assert!(held.iter().all(|held| *held >= share), "{held:?}");
    while events.delivered.values().sum::<usize>() < 64 * SOURCES {
        events.time_out();
    }
}

/// What is left of a share after an event is less than an event counts with.
#[test]
fn the_rest_of_a_share_is_no_way_around_the_turns() {
    const HUNG: usize = 700;
    let mut events = Events::new(HUNG + 1, 64);
    events.due(HUNG, 1, 1);
    events.run();
    for source in 0..HUNG {
        events.hung.insert(name(source));
        events.due(source, 64, 1);
        // The first ones fill the common memory.
        events.run();
    }
    let held = events.in_flight.len();
    for _ in 0..5 {
        events.now = events.now + secs(1);
        events.run();
    }
    assert_eq!(events.in_flight.len(), held, "polls bring no more");
    events.due(HUNG, 200, 1);
    events.run();
    assert_eq!(events.delivered(HUNG), 201);
}

#[test]
fn an_offer_is_at_most_the_events_that_a_share_is_enough_for() {
    let events = Events::new(100, 64);
    let mut worker = events.worker;
    while worker.poll(START).is_some() {}
    worker.handle(at(1), Input::Claimed(Claims::default()));
    let offers = core::iter::from_fn(|| worker.poll(at(1)));
    let rooms: Vec<u32> = offers
        .filter_map(
            |action| if let Action::Offer { room, .. } = action { Some(room) } else { None },
        )
        .collect();
    assert_eq!(rooms, [10; 100]);
}

#[test]
fn many_hung_sources_with_large_events_take_turns() {
    let mut events = Events::new(201, 16);
    // Source 0 has had a delivery, and is known to be prompt.
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
    assert_eq!(events.delivered(0), 1 + 30 * 50, "it does not wait for the timeouts of others");
    let served = (1..201).filter(|source| events.delivered(*source) == 2).count();
    assert_eq!(served, 200, "every hung source gets its turn");
}

#[test]
fn a_new_sources_small_event_is_delivered_with_full_common_memory() {
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
fn every_source_has_a_turn_with_almost_no_memory() {
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
fn a_source_waiting_for_memory_claims_again_at_a_poll() {
    let mut events = Events::new(2, 16);
    events.hung.insert(name(1));
    events.due(1, 1, 2 * LIMIT);
    events.run();
    events.due(0, 1, 2 * LIMIT);
    events.run();
    assert_eq!(events.delivered(0), 0, "there is no memory for it");
    // Another process has delivered the large event, and now a small one is due.
    events.due.insert(name(0), (1, 10));
    events.now = events.worker.wake_at().expect("a poll is due later").at;
    events.run();
    assert_eq!(events.delivered(0), 1);
}

#[test]
fn events_claimed_on_insert_have_separate_memory() {
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
        "the offer is used up, so no new one is reported"
    );
    let (ticket, _) = worker.in_flight.iter().next().expect("the event is in flight");
    worker.handle(START, Input::Finished { ticket: *ticket, reply: ok() });
    assert_eq!(offers(&mut worker), BTreeMap::from([(name(0), (16, LIMIT / 8))]));
}

#[test]
fn a_failed_claim_frees_its_reserved_memory() {
    let mut events = Events::new(1, 40);
    let demands = |actions: &[Action]| match actions {
        [Action::Claim(demands)] => demands.clone(),
        other => panic!("expected a claim, got {other:?}"),
    };
    // After this, the size of its events is known.
    events.due(0, 40, 1_000);
    events.run();
    events.due(0, 40, 1_000);
    let first = demands(&actions(&mut events.worker, events.now));
    assert!(first[0].bytes > LIMIT / 4, "the claim must exceed the source's own share: {first:?}");
    events.worker.handle(events.now, Input::ClaimFailed);
    events.now = at(1_000);
    let second = demands(&actions(&mut events.worker, events.now));
    assert_eq!(first, second);
}
