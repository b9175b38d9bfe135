//! The passes of retention over the events: where the next step continues, and when a pass ends.
//!
//! A store visits events in the order of their ids. An id starts with its time of creation, by the
//! clock of the machine that created it. Ids from a clock that is behind come first, and ids from a
//! clock that is ahead come last, whenever the events were received. So the age of an event says
//! nothing about its neighbours. Only the store's own clock tells which range of ids has probably
//! expired.
//!
//! Therefore there are two cursors:
//!
//! - A *round* visits all ids slowly, from first to last. It finds every expired event, whatever
//!   its id, within one round.
//! - The *front* is fast and stops where, by the store's clock, the ids of kept events start. While
//!   a long round is in progress, it finds the events from correct clocks within a minute or two.

use crate::id::EventId;
use crate::time::Instant;
use core::time::Duration;

/// The pause after a step that changed something, and between the steps of the front. It leaves the
/// database to intake and delivery most of the time.
pub const FAST_PAUSE: Duration = Duration::from_millis(10);
/// The pause after a step of a round that changed nothing.
pub const SLOW_PAUSE: Duration = Duration::from_millis(25);
/// The pause after a round, after the front has reached its end, and after an error.
pub const PASS_PAUSE: Duration = Duration::from_mins(1);

/// Where a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The last event that the step visited. `None` if no events follow.
    pub last: Option<EventId>,
    /// Whether the id of `last` was created before the ids of all kept events, by the store's
    /// clock.
    pub is_before_kept: bool,
}

impl Reached {
    /// The step passed the last event.
    pub const END: Self = Self { last: None, is_before_kept: false };

    /// The end of a step that visited `looked` events of at most `limit`; `last` is the last of
    /// them. Events received at `kept_since` or later are kept (milliseconds since 1970, by the
    /// store's clock).
    #[must_use]
    pub fn new(last: Option<EventId>, looked: usize, limit: u32, kept_since: i64) -> Self {
        let is_full = u32::try_from(looked).map_or(true, |looked| looked >= limit);
        let last = last.filter(|_| is_full);
        let kept = EventId::first_at(u64::try_from(kept_since).unwrap_or(0));
        Self { last, is_before_kept: last.is_some_and(|last| last < kept) }
    }
}

/// The cursors of one kind of retention.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    round: Cursor,
    front: Cursor,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    after: Option<EventId>,
    due: Instant,
}

/// A step to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The step visits events with greater ids. `None`: it starts with the first event.
    pub after: Option<EventId>,
    is_of_front: bool,
}

impl Passes {
    /// Starts the first round at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let cursor = Cursor { after: None, due: now };
        Self { round: cursor, front: cursor }
    }

    /// The step that is due. `None` until [`Self::wake_at`].
    #[must_use]
    pub fn poll(&self, now: Instant) -> Option<Step> {
        if self.is_round_under_way() && now >= self.front.due {
            return Some(Step { after: self.front.after, is_of_front: true });
        }
        (now >= self.round.due).then_some(Step { after: self.round.after, is_of_front: false })
    }

    /// When the next step is due.
    #[must_use]
    pub fn wake_at(&self) -> Instant {
        if self.is_round_under_way() { self.round.due.min(self.front.due) } else { self.round.due }
    }

    /// Processes the result of a step: where it ended, and whether it changed something. `None` if
    /// it failed.
    pub fn handle(&mut self, now: Instant, step: Step, done: Option<(Reached, bool)>) {
        let Some((reached, has_changed)) = done else {
            let later = now + PASS_PAUSE;
            (self.round.due, self.front.due) = (later, later);
            return;
        };
        if step.is_of_front {
            if reached.is_before_kept {
                self.front = Cursor { after: reached.last, due: now + FAST_PAUSE };
            } else {
                self.front.due = now + PASS_PAUSE;
            }
            return;
        }
        self.round.after = reached.last;
        self.round.due = now
            + match reached.last {
                None => PASS_PAUSE,
                Some(_) if has_changed => FAST_PAUSE,
                Some(_) => SLOW_PAUSE,
            };
    }

    /// If a round takes only one step, there is nothing to do for the front.
    fn is_round_under_way(&self) -> bool {
        self.round.after.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    const NOW_MS: i64 = 1_795_000_000_000;
    const DAY_MS: i64 = 24 * 3600 * 1000;
    const KEPT_MS: i64 = 7 * DAY_MS;

    fn id(made_at_ms: i64, rest: u128) -> EventId {
        EventId::from_uuid(Uuid::from_u128(
            (u128::try_from(made_at_ms).unwrap() << 80) | (7 << 76) | (2 << 62) | rest,
        ))
    }

    /// A store of ids, some of which have expired. A step visits at most `limit` ids.
    struct Store {
        over: BTreeSet<EventId>,
        kept: BTreeSet<EventId>,
        limit: u32,
    }

    impl Store {
        fn step(&mut self, after: Option<EventId>) -> (Reached, bool) {
            let all: BTreeSet<EventId> = self.over.union(&self.kept).copied().collect();
            let looked: Vec<EventId> = all
                .into_iter()
                .filter(|id| after.is_none_or(|after| *id > after))
                .take(self.limit as usize)
                .collect();
            let before = self.over.len();
            self.over.retain(|id| !looked.contains(id));
            (
                Reached::new(looked.last().copied(), looked.len(), self.limit, NOW_MS - KEPT_MS),
                self.over.len() < before,
            )
        }

        /// Runs until no expired ids are left, or until `end`. Returns the time that this took.
        fn run(&mut self, end: Duration) -> Duration {
            let (mut now, end) = (Instant::ZERO, Instant::ZERO + end);
            let mut passes = Passes::new(now);
            while now < end && !self.over.is_empty() {
                match passes.poll(now) {
                    Some(step) => {
                        let done = self.step(step.after);
                        passes.handle(now, step, Some(done));
                    }
                    None => now = passes.wake_at(),
                }
            }
            now.since_origin()
        }
    }

    #[test]
    fn the_front_ends_by_the_stores_clock_not_by_event_age() {
        let reached =
            |made_at_ms| Reached::new(Some(id(made_at_ms, 1)), 100, 100, NOW_MS - KEPT_MS);
        assert!(
            reached(NOW_MS - 400 * DAY_MS).is_before_kept,
            "an id from a clock that is behind, whatever the event's age"
        );
        assert!(reached(NOW_MS - KEPT_MS - 1).is_before_kept);
        assert!(!reached(NOW_MS - KEPT_MS).is_before_kept);
        let at_the_end = Reached::new(Some(id(0, 1)), 99, 100, NOW_MS - KEPT_MS);
        assert_eq!(at_the_end, Reached { last: None, is_before_kept: false });
        assert_eq!(Reached::new(None, 0, 100, -1), Reached { last: None, is_before_kept: false });
    }

    #[test]
    fn a_long_round_does_not_delay_ids_from_correct_clocks() {
        // The young events of a slow clock come first and make a round take minutes. Other young
        // events come last.
        let behind = (0..20_000).map(|n| id(NOW_MS - 400 * DAY_MS, n));
        let young = (0..60_000).map(|n| id(NOW_MS - DAY_MS, n));
        let over = (0..5_000).map(|n| id(NOW_MS - KEPT_MS - DAY_MS, n));
        let mut store =
            Store { over: over.collect(), kept: behind.chain(young).collect(), limit: 1000 };
        let took = store.run(Duration::from_hours(1));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn a_one_step_table_is_visited_once_a_minute() {
        let mut store = Store {
            over: BTreeSet::new(),
            kept: (0..10).map(|n| id(NOW_MS, n)).collect(),
            limit: 100,
        };
        let (mut passes, mut now, mut steps) = (Passes::new(Instant::ZERO), Instant::ZERO, 0);
        while now < Instant::ZERO + Duration::from_mins(10) {
            match passes.poll(now) {
                Some(step) => {
                    steps += 1;
                    let done = store.step(step.after);
                    passes.handle(now, step, Some(done));
                }
                None => now = passes.wake_at(),
            }
        }
        assert_eq!(steps, 10);
    }

    #[test]
    fn an_error_is_followed_by_a_pause_and_the_same_step() {
        let mut passes = Passes::new(Instant::ZERO);
        let step = passes.poll(Instant::ZERO).unwrap();
        passes.handle(Instant::ZERO, step, None);
        assert_eq!(
            (passes.poll(Instant::ZERO), passes.wake_at()),
            (None, Instant::ZERO + PASS_PAUSE)
        );
        assert_eq!(passes.poll(passes.wake_at()), Some(step));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        // However wrong the clocks were that created the ids, one round finds all expired events,
        // and its length is bounded.
        #[test]
        fn one_round_removes_everything_expired(
            over in proptest::collection::btree_set((-800 * DAY_MS..800 * DAY_MS, 0u128..1000), 0..200),
            kept in proptest::collection::btree_set((-800 * DAY_MS..800 * DAY_MS, 1000u128..2000), 0..200),
            limit in 1u32..50,
        ) {
            let ids = |set: BTreeSet<(i64, u128)>| -> BTreeSet<EventId> { set.into_iter().map(|(skew, n)| id(NOW_MS + skew, n)).collect() };
            let mut store = Store { over: ids(over), kept: ids(kept), limit };
            let steps = u32::try_from((store.over.len() + store.kept.len()) / limit as usize).unwrap() + 1;
            let took = store.run(Duration::from_hours(10));
            prop_assert!(store.over.is_empty());
            prop_assert!(took <= SLOW_PAUSE * steps, "{:?} for {} steps", took, steps);
        }
    }
}
