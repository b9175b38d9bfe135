//! The steps of retention: which step is due next, where it continues, how long to wait after it,
//! and when a pass over the events ends.
//!
//! There are two kinds of [`Work`]. Each has its own passes, and at most one step in flight.
//! Neither waits for the other.
//!
//! A store visits events in the order of their ids. An id starts with its time of creation, by the
//! clock of the machine that created it. Ids from a clock that is behind come first, and ids from a
//! clock that is ahead come last, whenever the events were received. So the age of an event says
//! nothing about its neighbours. Only the store's own clock tells which range of ids has probably
//! expired.
//!
//! Therefore a pass has two cursors:
//!
//! - A *round* visits all ids slowly, from first to last. It finds every expired event, whatever
//!   its id, within one round.
//! - The *front* is fast and stops where, by the store's clock, the ids of kept delivered events
//!   start. It continues there when more have expired. So the delivered events from correct clocks
//!   are deleted soon after they expire, however long a round takes.
//!
//! The front deletes as fast as events expire, if the database can: when it is far behind, its steps
//! have no pauses. If it falls further behind all the same, [`Schedule::handle`] says so.

use crate::id::EventId;
use crate::time::Instant;
use alloc::vec::Vec;
use core::time::Duration;

/// Maximum number of events that one step examines. It is small, because a step occupies SQLite's
/// only writer, or one processor of the PostgreSQL server, until it ends.
pub const STEP_EVENTS: u32 = 100;
/// The pause after a step that changed something, and between the steps of the front. It leaves the
/// database to intake and delivery most of the time.
pub const FAST_PAUSE: Duration = Duration::from_millis(10);
/// The pause after a step of a round that changed nothing.
pub const SLOW_PAUSE: Duration = Duration::from_millis(25);
/// The pause after a round, after an error, and after a pass of the front that changed nothing.
pub const PASS_PAUSE: Duration = Duration::from_mins(1);
/// The pause after a pass of the front that changed something. Events expire all the time then, and
/// a longer pause would delete them in bursts.
pub const FRONT_PAUSE: Duration = Duration::from_secs(1);
/// If the front is further behind, its steps that change something follow each other without a
/// pause. Their pauses would bound the rate of deletion.
pub const LATE: Duration = Duration::from_secs(10);
/// If the front is further behind, and has not come closer within this time, it falls behind.
pub const FALLS_BEHIND: Duration = Duration::from_mins(5);

/// Where a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The last event that the step visited. `None` if no events follow.
    pub last: Option<EventId>,
    /// How long before the ids of all kept delivered events the id of `last` was created, by the store's clock.
    /// `None` if it was not.
    pub behind: Option<Duration>,
}

impl Reached {
    /// The step passed the last event.
    pub const END: Self = Self { last: None, behind: None };

    /// The end of a step that visited `looked` events of at most `limit`; `last` is the last of
    /// them. Delivered events received at `kept_since` or later are kept (milliseconds since 1970, by the
    /// store's clock).
    #[must_use]
    pub fn new(last: Option<EventId>, looked: usize, limit: u32, kept_since: i64) -> Self {
        let is_full = u32::try_from(looked).map_or(true, |looked| looked >= limit);
        let last = last.filter(|_| is_full);
        let kept_since = u64::try_from(kept_since).unwrap_or(0);
        let behind = last.map_or(0, |last| kept_since.saturating_sub(last.created_at()));
        Self { last, behind: (behind > 0).then_some(Duration::from_millis(behind)) }
    }
}

/// The result of a step that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Where it ended.
    pub reached: Reached,
    /// Whether it deleted or erased something.
    pub has_changed: bool,
}

/// What a result means for the passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Whether the step ended a round or a pass of the front.
    pub ends_pass: bool,
    /// How far the front is behind, if it falls behind. At most once in [`FALLS_BEHIND`].
    pub falls_behind: Option<Duration>,
}

/// What a step does with the events whose retention is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It deletes them.
    Prune,
    /// It erases their queries, headers and bodies.
    Erase,
}

/// A step to carry out. Report its result with [`Schedule::handle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// What it does.
    pub work: Work,
    /// It examines events with greater ids. `None`: it starts with the first event.
    pub after: Option<EventId>,
    /// The maximum number of events that it examines.
    pub limit: u32,
    is_of_front: bool,
}

/// The steps of retention in one process. Call [`Self::poll`] until it returns `None`, then wait
/// for the result of a step, at most until [`Self::wake_at`].
#[derive(Clone, Debug)]
pub struct Schedule {
    tracks: Vec<Track>,
}

/// One kind of work.
#[derive(Clone, Copy, Debug)]
struct Track {
    work: Work,
    passes: Passes,
    in_flight: Option<Step>,
}

impl Schedule {
    /// Starts at `now`. Delivered events are kept for `delivered`, and their payloads for
    /// `delivered_payload`. There is nothing to erase if payloads are kept as long as their events.
    #[must_use]
    pub fn new(now: Instant, delivered: Duration, delivered_payload: Duration) -> Self {
        let erase = (delivered_payload < delivered).then_some(Work::Erase);
        let track = |work| Track { work, passes: Passes::new(now), in_flight: None };
        Self { tracks: [Work::Prune].into_iter().chain(erase).map(track).collect() }
    }

    /// The next step to carry out. `None` until [`Self::wake_at`] or the next result.
    pub fn poll(&mut self, now: Instant) -> Option<Step> {
        let track = self
            .tracks
            .iter_mut()
            .find(|track| track.in_flight.is_none() && track.passes.wake_at() <= now)?;
        let Visit { after, is_of_front } = track.passes.poll(now)?;
        let step = Step { work: track.work, after, limit: STEP_EVENTS, is_of_front };
        track.in_flight = Some(step);
        Some(step)
    }

    /// Processes the result of a step. `None` if it failed.
    pub fn handle(&mut self, now: Instant, step: Step, done: Option<Done>) -> Handled {
        let in_flight = self.tracks.iter_mut().find(|track| track.in_flight == Some(step));
        let Some(track) = in_flight else {
            debug_assert!(false, "the result of a step that is not in flight: {step:?}");
            return Handled::default();
        };
        track.in_flight = None;
        let Step { after, is_of_front, .. } = step;
        track.passes.handle(now, Visit { after, is_of_front }, done)
    }

    /// When to poll again if there is no result before. It is in the past if a step is due, and
    /// `None` if only a result can lead to a step.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let waiting = self.tracks.iter().filter(|track| track.in_flight.is_none());
        waiting.map(|track| track.passes.wake_at()).min()
    }
}

/// The cursors of one kind of work.
#[derive(Clone, Copy, Debug)]
struct Passes {
    round: Cursor,
    front: Cursor,
    /// Whether a round takes more than one step. Otherwise there is nothing to do for the front.
    is_long: bool,
    /// Whether the present pass of the front has changed something.
    has_changed: bool,
    lag: Lag,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    after: Option<EventId>,
    due: Instant,
}

/// Where a step of a pass starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Visit {
    after: Option<EventId>,
    is_of_front: bool,
}

impl Passes {
    /// Starts the first round at `now`.
    fn new(now: Instant) -> Self {
        let cursor = Cursor { after: None, due: now };
        Self {
            round: cursor,
            front: cursor,
            is_long: false,
            has_changed: false,
            lag: Lag::default(),
        }
    }

    /// The step that is due. `None` until [`Self::wake_at`].
    fn poll(&self, now: Instant) -> Option<Visit> {
        if self.is_long && now >= self.front.due {
            return Some(Visit { after: self.front.after, is_of_front: true });
        }
        (now >= self.round.due).then_some(Visit { after: self.round.after, is_of_front: false })
    }

    /// When the next step is due.
    fn wake_at(&self) -> Instant {
        if self.is_long { self.round.due.min(self.front.due) } else { self.round.due }
    }

    /// Processes the result of a step. `None` if it failed.
    fn handle(&mut self, now: Instant, visit: Visit, done: Option<Done>) -> Handled {
        let Some(Done { reached, has_changed }) = done else {
            let later = now + PASS_PAUSE;
            (self.round.due, self.front.due) = (later, later);
            return Handled::default();
        };
        if visit.is_of_front {
            self.has_changed |= has_changed;
            let falls_behind = self.lag.note(now, reached.behind);
            let Some(behind) = reached.behind else {
                let pause = if self.has_changed { FRONT_PAUSE } else { PASS_PAUSE };
                self.front.due = now + pause;
                self.has_changed = false;
                return Handled { ends_pass: true, falls_behind };
            };
            let pause = if has_changed && behind > LATE { Duration::ZERO } else { FAST_PAUSE };
            self.front = Cursor { after: reached.last, due: now + pause };
            return Handled { ends_pass: false, falls_behind };
        }
        if visit.after.is_none() {
            self.is_long = reached.last.is_some();
        }
        self.round.after = reached.last;
        self.round.due = now
            + match reached.last {
                None => PASS_PAUSE,
                Some(_) if has_changed => FAST_PAUSE,
                Some(_) => SLOW_PAUSE,
            };
        Handled { ends_pass: reached.last.is_none(), falls_behind: None }
    }
}

/// Notices that the front falls behind.
#[derive(Clone, Copy, Debug, Default)]
struct Lag {
    /// When the front was last compared, and how far it was behind then. `None` if it was not far.
    compared: Option<(Instant, Duration)>,
}

impl Lag {
    /// Returns how far the front is behind, if it falls behind.
    fn note(&mut self, now: Instant, behind: Option<Duration>) -> Option<Duration> {
        let Some(behind) = behind.filter(|behind| *behind > FALLS_BEHIND) else {
            self.compared = None;
            return None;
        };
        let (since, before) = *self.compared.get_or_insert((now, behind));
        if now.since(since) < FALLS_BEHIND {
            return None;
        }
        self.compared = Some((now, behind));
        (behind >= before).then_some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
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
        fn step(&mut self, after: Option<EventId>) -> Done {
            let all: BTreeSet<EventId> = self.over.union(&self.kept).copied().collect();
            let looked: Vec<EventId> = all
                .into_iter()
                .filter(|id| after.is_none_or(|after| *id > after))
                .take(self.limit as usize)
                .collect();
            let before = self.over.len();
            self.over.retain(|id| !looked.contains(id));
            let last = looked.last().copied();
            Done {
                reached: Reached::new(last, looked.len(), self.limit, NOW_MS - KEPT_MS),
                has_changed: self.over.len() < before,
            }
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
        assert_eq!(
            reached(NOW_MS - 400 * DAY_MS).behind,
            Some(DAY * 393),
            "an id from a clock that is behind, whatever the event's age"
        );
        assert_eq!(reached(NOW_MS - KEPT_MS - 1).behind, Some(Duration::from_millis(1)));
        assert_eq!(reached(NOW_MS - KEPT_MS).behind, None);
        let at_the_end = Reached::new(Some(id(0, 1)), 99, 100, NOW_MS - KEPT_MS);
        assert_eq!(at_the_end, Reached::END);
        assert_eq!(Reached::new(None, 0, 100, -1), Reached::END);
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

    /// Events that expire all the time, in the order of their ids. The front of a long round deletes
    /// them, while each of its steps takes a time. Returns how far it is behind at each minute, and
    /// each time that it fell behind.
    fn steady(expired_per_ms: u64, step: Duration) -> (Vec<Duration>, Vec<Duration>) {
        const STARTED_MS: u64 = 1_795_000_000_000;
        let mut passes = Passes::new(Instant::ZERO);
        passes.is_long = true;
        passes.round.due = Instant::ZERO + Duration::from_hours(24);
        let (mut now, mut deleted, mut minutes, mut fell) =
            (Instant::ZERO, 0, Vec::new(), Vec::new());
        while minutes.len() < 30 {
            let now_ms = u64::try_from(now.since_origin().as_millis()).unwrap();
            let behind_ms = now_ms - deleted / expired_per_ms;
            if now_ms >= 60_000 * (1 + minutes.len() as u64) {
                minutes.push(Duration::from_millis(behind_ms));
            }
            let Some(visit) = passes.poll(now) else {
                now = passes.wake_at();
                continue;
            };
            let due = (now_ms * expired_per_ms - deleted).min(STEP_EVENTS.into());
            deleted += due;
            now = now + step;
            let is_full = due == u64::from(STEP_EVENTS);
            let last = STARTED_MS + deleted / expired_per_ms;
            let behind = is_full.then(|| Duration::from_millis(STARTED_MS + now_ms + 1 - last));
            let last = Some(id(i64::try_from(last).unwrap(), u128::from(deleted)));
            let done = Done { reached: Reached { last, behind }, has_changed: due > 0 };
            fell.extend(passes.handle(now, visit, Some(done)).falls_behind);
        }
        (minutes, fell)
    }

    #[test]
    fn the_front_keeps_up_with_ten_thousand_events_a_second() {
        // At 3 ms a step and pauses of 10 ms, at most 7,700 events a second would be deleted.
        let (minutes, fell) = steady(10, Duration::from_millis(3));
        // The first pass has found nothing, so the second begins after a minute.
        let is_near = |behind: &Duration| *behind < LATE + Duration::from_secs(2);
        assert!(minutes[1..].iter().all(is_near), "{minutes:?}");
        assert_eq!(fell, []);
        // A moderate rate needs no hurry, and is not deleted in bursts of a minute.
        let (minutes, _) = steady(2, Duration::from_millis(3));
        assert!(minutes[1..].iter().all(|behind| *behind < Duration::from_secs(3)), "{minutes:?}");
    }

    #[test]
    fn a_front_that_falls_behind_says_so_every_five_minutes() {
        // Half of what expires can be deleted. After ten minutes it is five minutes behind.
        let (minutes, fell) = steady(10, Duration::from_millis(20));
        assert!(minutes[29] > Duration::from_mins(14), "{minutes:?}");
        assert_eq!(fell.len(), 4, "after 15, 20, 25 and 30 minutes: {fell:?}");
        assert!(fell.is_sorted() && fell[0] > Duration::from_mins(7), "{fell:?}");
    }

    #[test]
    fn a_backlog_that_shrinks_is_no_reason_to_warn() {
        let mut lag = Lag::default();
        for minutes in (6..600).rev() {
            let now = Instant::ZERO + Duration::from_mins(600 - minutes);
            assert_eq!(lag.note(now, Some(Duration::from_mins(minutes))), None);
        }
    }

    const DAY: Duration = Duration::from_hours(24);

    fn of(step: Option<Step>) -> Option<Work> {
        step.map(|step| step.work)
    }

    #[test]
    fn payloads_are_erased_only_if_they_are_kept_for_a_shorter_time() {
        let now = Instant::ZERO;
        let mut both = Schedule::new(now, DAY, DAY - Duration::from_secs(1));
        assert_eq!(
            [both.poll(now), both.poll(now), both.poll(now)].map(of),
            [Some(Work::Prune), Some(Work::Erase), None]
        );
        let mut prunes = Schedule::new(now, DAY, DAY);
        assert_eq!([prunes.poll(now), prunes.poll(now)].map(of), [Some(Work::Prune), None]);
        assert_eq!(prunes.wake_at(), None, "only the result of the step leads to another one");
    }

    #[test]
    fn a_failure_of_one_kind_of_work_does_not_delay_the_other() {
        let now = Instant::ZERO;
        let mut schedule = Schedule::new(now, DAY, Duration::ZERO);
        let (prune, erase) = (schedule.poll(now).unwrap(), schedule.poll(now).unwrap());
        schedule.handle(now, prune, None);
        let last = Some(id(NOW_MS, 1));
        let reached = Reached { last, behind: None };
        schedule.handle(now, erase, Some(Done { reached, has_changed: false }));
        assert_eq!(schedule.wake_at(), Some(now), "the front of the erasing");
        let next = schedule.poll(now).unwrap();
        assert_eq!((next.work, next.after, next.limit), (Work::Erase, None, STEP_EVENTS));
        schedule.handle(now, next, Some(Done { reached, has_changed: false }));
        assert_eq!(schedule.wake_at(), Some(now + SLOW_PAUSE));
        let next = schedule.poll(now + SLOW_PAUSE).unwrap();
        assert_eq!((next.work, next.after), (Work::Erase, last));
        assert_eq!(schedule.wake_at(), Some(now + PASS_PAUSE), "the failed step");
        assert_eq!(schedule.poll(now + PASS_PAUSE), Some(prune));
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

    #[test]
    fn an_error_of_the_front_is_followed_by_a_pause_too() {
        let (now, last) = (Instant::ZERO, Some(id(NOW_MS, 1)));
        let mut passes = Passes::new(now);
        let round = passes.poll(now).unwrap();
        let reached = Reached { last, behind: None };
        passes.handle(now, round, Some(Done { reached, has_changed: false }));
        let front = passes.poll(now).unwrap();
        assert!(front.is_of_front);
        passes.handle(now, front, None);
        assert_eq!((passes.poll(now), passes.wake_at()), (None, now + PASS_PAUSE));
        assert_eq!(passes.poll(now + PASS_PAUSE), Some(front));
    }

    #[test]
    fn the_front_continues_between_two_long_rounds() {
        let (now, last) = (Instant::ZERO, Some(id(NOW_MS, 1)));
        let mut passes = Passes::new(now);
        let round = passes.poll(now).unwrap();
        let reached = Reached { last, behind: None };
        passes.handle(now, round, Some(Done { reached, has_changed: true }));
        let front = passes.poll(now).unwrap();
        passes.handle(now, front, Some(Done { reached, has_changed: true }));
        let later = now + FAST_PAUSE;
        let round = passes.poll(later).unwrap();
        assert!(!round.is_of_front);
        let end = Done { reached: Reached::END, has_changed: true };
        assert!(passes.handle(later, round, Some(end)).ends_pass);
        assert_eq!(passes.wake_at(), now + FRONT_PAUSE);
        assert!(passes.poll(now + FRONT_PAUSE).unwrap().is_of_front);
    }

    /// What happens to a schedule.
    #[derive(Clone, Debug)]
    enum Event {
        Pass(u64),
        /// The step in flight of this kind ends, at this id, or fails.
        End {
            erase: bool,
            last: Option<u8>,
            behind: Option<Duration>,
            has_changed: bool,
        },
        Fail {
            erase: bool,
        },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let behind = proptest::option::of((1u64..2_000_000).prop_map(Duration::from_millis));
        let end = (any::<bool>(), any::<Option<u8>>(), behind, any::<bool>()).prop_map(
            |(erase, last, behind, has_changed)| Event::End { erase, last, behind, has_changed },
        );
        let event = prop_oneof![
            1 => (0u64..70_000).prop_map(Event::Pass),
            1 => (0u64..30).prop_map(Event::Pass),
            4 => end,
            1 => any::<bool>().prop_map(|erase| Event::Fail { erase }),
        ];
        proptest::collection::vec(event, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        // Whenever steps end, and however: no kind of work has two steps in flight or waits for the
        // other, none waits longer than the longest pause, and a round continues where its last step
        // ended.
        #[test]
        fn steps_of_each_kind_follow_each_other_without_a_gap(events in events()) {
            let mut now = Instant::ZERO;
            let mut schedule = Schedule::new(now, DAY, Duration::ZERO);
            let mut in_flight: Vec<Step> = Vec::new();
            // By kind: where the round continues, and since when there is no step in flight.
            let mut rounds = [None; 2];
            let mut idle_since = [now; 2];
            for event in events {
                while let Some(step) = schedule.poll(now) {
                    prop_assert!(in_flight.iter().all(|other| other.work != step.work));
                    if !step.is_of_front {
                        prop_assert_eq!(step.after, rounds[step.work as usize]);
                    }
                    in_flight.push(step);
                }
                prop_assert!(schedule.wake_at().is_none_or(|at| at > now), "a step is due and not polled");
                if let Some(at) = schedule.wake_at() {
                    let sooner = at.before(Duration::from_nanos(1));
                    prop_assert!(schedule.clone().poll(sooner).is_none());
                    prop_assert!(schedule.clone().poll(at).is_some());
                }
                for work in [Work::Prune, Work::Erase] {
                    let is_idle = in_flight.iter().all(|step| step.work != work);
                    prop_assert!(!is_idle || now.since(idle_since[work as usize]) < PASS_PAUSE);
                }
                let (erase, done) = match event {
                    Event::Pass(milliseconds) => {
                        now = now + Duration::from_millis(milliseconds);
                        continue;
                    }
                    Event::Fail { erase } => (erase, None),
                    Event::End { erase, last, behind, has_changed } => {
                        let last = last.map(|rest| id(NOW_MS, rest.into()));
                        let reached = Reached { last, behind: behind.filter(|_| last.is_some()) };
                        (erase, Some(Done { reached, has_changed }))
                    }
                };
                let work = if erase { Work::Erase } else { Work::Prune };
                if let Some(index) = in_flight.iter().position(|step| step.work == work) {
                    let step = in_flight.remove(index);
                    let ends_pass = done.is_some_and(|Done { reached, .. }| {
                        if step.is_of_front { reached.behind.is_none() } else { reached.last.is_none() }
                    });
                    assert_eq!(schedule.handle(now, step, done).ends_pass, ends_pass);
                    if let (false, Some(done)) = (step.is_of_front, done) {
                        rounds[work as usize] = done.reached.last;
                    }
                    idle_since[work as usize] = now;
                }
            }
        }
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
