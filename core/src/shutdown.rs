//! The plan of a shutdown: how its time is divided, which part of the process ends when, and when
//! the process stops waiting.
//!
//! The first signal begins the drain. The process is no longer ready, and its worker drains. The
//! server continues to take requests, and the intake stores them. The listener closes last: when the
//! worker has ended or has cut off its deliveries, and not before the shutdown grace is over. Then
//! the requests in flight are answered. When the server has ended, no request can arrive, so the
//! intake ends. The process waits for the server, the intake and the worker, in this order. A
//! further signal cuts off the deliveries in flight, closes the listener, and leaves a second to
//! write results and answers.

use crate::time::Instant;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

/// The longest part of the drain timeout that is reserved to write results.
const RESERVE_MAX: Duration = Duration::from_secs(3);
/// After a second signal, the time to settle the deliveries that were cut off.
const AFTER_SECOND_SIGNAL: Duration = Duration::from_secs(1);

/// How the drain timeout is divided. Durations are counted from the start of the shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// Deliveries may finish until then.
    pub cut_off: Duration,
    /// Requests that are in flight when the listener closes may finish until then, plus the
    /// shutdown grace.
    pub answer: Duration,
    /// Results are settled until then. It is a little before the end of the drain timeout, so that
    /// the process ends in time.
    pub give_up: Duration,
}

impl Division {
    /// Divides a drain timeout: a quarter, but at most 3 seconds, is reserved to write results and
    /// answers.
    #[must_use]
    pub fn of(drain_timeout: Duration) -> Self {
        let reserve = (drain_timeout / 4).min(RESERVE_MAX);
        Self {
            cut_off: drain_timeout - reserve,
            answer: drain_timeout - reserve / 2,
            give_up: drain_timeout - reserve / 8,
        }
    }
}

/// The times that an operator sets for a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long deliveries in flight may continue. With the grace, it bounds the whole shutdown.
    pub drain_timeout: Duration,
    /// The listener stays open for at least this time.
    pub grace: Duration,
}

/// When the worker of a process that is shutting down must have finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Deliveries that are still in flight at this time are cut off.
    pub cut_off_at: Instant,
    /// The worker ends by this time, even if results are not written.
    pub give_up_at: Instant,
}

/// A part of the process that a shutdown waits for, in the order of the waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The HTTP server.
    Server,
    /// The loop that stores new events.
    Intake,
    /// The loop that delivers events.
    Worker,
}

impl Part {
    const ALL: [Self; 3] = [Self::Server, Self::Intake, Self::Worker];
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Another signal arrived.
    Signal,
    /// A part ended.
    Ended {
        /// The part that ended.
        part: Part,
        /// Whether it failed, for example by a panic.
        is_broken: bool,
    },
}

/// What the process must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Report that the process is not ready.
    BecomeUnready,
    /// Let the worker drain by these deadlines. Later deadlines are never later than earlier ones.
    Drain(Deadlines),
    /// Close the listener. Requests in flight may finish until this time.
    CloseListener {
        /// Requests that are not answered by then are aborted.
        answer_by: Instant,
    },
    /// Let the intake store what it holds, and end.
    StopIntake,
    /// The shutdown is over. The last action.
    Done(End),
}

/// How a shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All parts have ended.
    Complete,
    /// This part failed.
    Broken(Part),
    /// The time is over, and a part has not ended.
    TimedOut,
}

/// The shutdown of one process.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Those of the worker.
    deadlines: Deadlines,
    /// The listener stays open until then.
    grace_ends: Instant,
    answer_by: Instant,
    /// The process ends by this time.
    end_by: Instant,
    is_closed: bool,
    /// The parts that have not ended, and those that failed.
    running: BTreeSet<Part>,
    broken: BTreeSet<Part>,
    ready: VecDeque<Action>,
    is_done: bool,
}

impl Shutdown {
    /// Begins the shutdown of a process at `now`, with the parts that run. Returns the first
    /// actions, in order. The process carries them out before it calls [`Self::poll`], so that even
    /// without a drain timeout a part may end at once.
    pub fn begin(
        now: Instant,
        limits: Limits,
        running: impl IntoIterator<Item = Part>,
    ) -> (Self, Vec<Action>) {
        let Division { cut_off, answer, give_up } = Division::of(limits.drain_timeout);
        let deadlines = Deadlines { cut_off_at: now + cut_off, give_up_at: now + give_up };
        let grace_ends = now + limits.grace;
        let mut shutdown = Self {
            deadlines,
            grace_ends,
            answer_by: grace_ends + answer,
            end_by: grace_ends + give_up,
            is_closed: false,
            running: running.into_iter().collect(),
            broken: BTreeSet::new(),
            ready: VecDeque::new(),
            is_done: false,
        };
        let mut first = alloc::vec![Action::BecomeUnready, Action::Drain(deadlines)];
        first.extend(shutdown.close(now));
        (shutdown, first)
    }

    /// Processes an input.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Signal => {
                // Never later than before: further signals do not extend the shutdown.
                let Deadlines { cut_off_at, give_up_at } = self.deadlines;
                let last = now + AFTER_SECOND_SIGNAL;
                self.deadlines =
                    Deadlines { cut_off_at: cut_off_at.min(now), give_up_at: give_up_at.min(last) };
                self.grace_ends = self.grace_ends.min(now);
                self.answer_by = self.answer_by.min(now + AFTER_SECOND_SIGNAL / 2);
                self.end_by = self.end_by.min(last);
                self.ready.push_back(Action::Drain(self.deadlines));
            }
            Input::Ended { part, is_broken } => {
                let was_running = self.running.remove(&part);
                debug_assert!(was_running, "{part:?} ended, but was not running");
                if is_broken {
                    self.broken.insert(part);
                }
                let is_last_request_answered = part == Part::Server && !is_broken;
                if is_last_request_answered && self.running.contains(&Part::Intake) {
                    self.ready.push_back(Action::StopIntake);
                }
            }
        }
    }

    /// The next action to carry out. `None` until [`Self::wake_at`] or the next input. Report all
    /// parts that have ended before: at the end of its time, the process waits for no other.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.is_done {
            return None;
        }
        if let Some(action) = self.ready.pop_front().or_else(|| self.close(now)) {
            return Some(action);
        }
        let end = self.end(now)?;
        self.is_done = true;
        Some(Action::Done(end))
    }

    /// When to poll again if there is no input before: when the listener closes, or at the end of
    /// the shutdown's time.
    #[must_use]
    pub fn wake_at(&self) -> Instant {
        if self.is_open() { self.close_at().min(self.end_by) } else { self.end_by }
    }

    /// When the listener closes, if the worker does not end before. The deliveries are cut off by
    /// then, and the time that is left is for the requests in flight.
    fn close_at(&self) -> Instant {
        if self.running.contains(&Part::Worker) {
            self.grace_ends.max(self.deadlines.cut_off_at)
        } else {
            self.grace_ends
        }
    }

    /// Whether the listener must still be closed. A server that has ended has none.
    fn is_open(&self) -> bool {
        !self.is_closed && self.running.contains(&Part::Server)
    }

    /// Closes the listener when it is due.
    fn close(&mut self, now: Instant) -> Option<Action> {
        if !self.is_open() || now < self.close_at() {
            return None;
        }
        self.is_closed = true;
        Some(Action::CloseListener { answer_by: self.answer_by })
    }

    /// How the shutdown ends, if it ends now. A failure counts when it is the part's turn.
    fn end(&self, now: Instant) -> Option<End> {
        let has_not_finished =
            |part: &Part| self.running.contains(part) || self.broken.contains(part);
        match Part::ALL.into_iter().find(has_not_finished) {
            None => Some(End::Complete),
            Some(part) if self.broken.contains(&part) => Some(End::Broken(part)),
            Some(_) => (now >= self.end_by).then_some(End::TimedOut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WITHOUT_GRACE: Limits =
        Limits { drain_timeout: Duration::from_secs(30), grace: Duration::ZERO };
    const WITH_GRACE: Limits = Limits { grace: Duration::from_mins(1), ..WITHOUT_GRACE };

    fn at(milliseconds: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(milliseconds))
    }

    fn ended(part: Part) -> Input {
        Input::Ended { part, is_broken: false }
    }

    fn close(answer_by: u64) -> Action {
        Action::CloseListener { answer_by: at(answer_by) }
    }

    fn actions(shutdown: &mut Shutdown, now: Instant) -> Vec<Action> {
        core::iter::from_fn(|| shutdown.poll(now)).collect()
    }

    #[test]
    fn a_shutdown_leaves_time_to_settle_results() {
        for drain_timeout in [
            Duration::ZERO,
            Duration::from_millis(10),
            Duration::from_secs(1),
            Duration::from_secs(30),
            Duration::from_hours(1),
        ] {
            let Division { cut_off, answer, give_up } = Division::of(drain_timeout);
            assert!(cut_off <= answer && answer <= give_up, "{drain_timeout:?}");
            assert!(give_up <= drain_timeout, "{drain_timeout:?}");
        }
        assert_eq!(Division::of(Duration::from_secs(30)).cut_off, Duration::from_secs(27));
    }

    #[test]
    fn the_listener_closes_after_the_worker_and_the_intake_ends_after_the_server() {
        let (mut shutdown, first) = Shutdown::begin(at(0), WITHOUT_GRACE, Part::ALL);
        let deadlines = Deadlines { cut_off_at: at(27_000), give_up_at: at(29_625) };
        assert_eq!(first, [Action::BecomeUnready, Action::Drain(deadlines)]);
        assert_eq!(actions(&mut shutdown, at(0)), []);
        shutdown.handle(at(1), ended(Part::Worker));
        assert_eq!(actions(&mut shutdown, at(1)), [close(28_500)]);
        shutdown.handle(at(2), ended(Part::Server));
        assert_eq!(actions(&mut shutdown, at(2)), [Action::StopIntake]);
        shutdown.handle(at(3), ended(Part::Intake));
        assert_eq!(actions(&mut shutdown, at(3)), [Action::Done(End::Complete)]);
    }

    #[test]
    fn the_listener_stays_open_during_the_grace() {
        let (mut shutdown, first) = Shutdown::begin(at(0), WITH_GRACE, Part::ALL);
        let deadlines = Deadlines { cut_off_at: at(27_000), give_up_at: at(29_625) };
        assert_eq!(first, [Action::BecomeUnready, Action::Drain(deadlines)]);
        shutdown.handle(at(1), ended(Part::Worker));
        assert_eq!(actions(&mut shutdown, at(59_999)), []);
        assert_eq!(shutdown.wake_at(), at(60_000));
        assert_eq!(actions(&mut shutdown, at(60_000)), [close(88_500)]);
        assert_eq!(shutdown.wake_at(), at(89_625));
        assert_eq!(actions(&mut shutdown, at(89_625)), [Action::Done(End::TimedOut)]);
    }

    #[test]
    fn the_listener_closes_when_deliveries_are_cut_off() {
        let (mut shutdown, _) = Shutdown::begin(at(0), WITHOUT_GRACE, Part::ALL);
        assert_eq!(shutdown.wake_at(), at(27_000));
        assert_eq!(actions(&mut shutdown, at(26_999)), []);
        assert_eq!(actions(&mut shutdown, at(27_000)), [close(28_500)]);
        assert_eq!(actions(&mut shutdown, at(29_625)), [Action::Done(End::TimedOut)]);
    }

    #[test]
    fn a_process_without_a_worker_closes_its_listener_at_once() {
        let parts = [Part::Server, Part::Intake];
        let (mut shutdown, first) = Shutdown::begin(at(0), WITHOUT_GRACE, parts);
        assert_eq!(first.last(), Some(&close(28_500)));
        shutdown.handle(at(1), ended(Part::Server));
        assert_eq!(actions(&mut shutdown, at(1)), [Action::StopIntake]);
    }

    #[test]
    fn a_process_without_an_intake_stops_none() {
        let parts = [Part::Server, Part::Worker];
        let (mut shutdown, _) = Shutdown::begin(at(0), WITHOUT_GRACE, parts);
        shutdown.handle(at(1), ended(Part::Worker));
        assert_eq!(actions(&mut shutdown, at(1)), [close(28_500)]);
        shutdown.handle(at(2), ended(Part::Server));
        assert_eq!(actions(&mut shutdown, at(2)), [Action::Done(End::Complete)]);
    }

    #[test]
    fn a_second_signal_ends_deliveries_and_the_grace_and_leaves_a_second() {
        let (mut shutdown, _) = Shutdown::begin(at(0), WITH_GRACE, Part::ALL);
        shutdown.handle(at(5_000), Input::Signal);
        let deadlines = Deadlines { cut_off_at: at(5_000), give_up_at: at(6_000) };
        assert_eq!(actions(&mut shutdown, at(5_000)), [Action::Drain(deadlines), close(5_500)]);
        shutdown.handle(at(5_500), Input::Signal);
        assert_eq!(
            actions(&mut shutdown, at(5_500)),
            [Action::Drain(deadlines)],
            "a third signal changes nothing"
        );
        assert_eq!(shutdown.wake_at(), at(6_000));
        assert_eq!(actions(&mut shutdown, at(6_000)), [Action::Done(End::TimedOut)]);
    }

    #[test]
    fn a_worker_that_fails_is_reported_after_the_requests_are_answered() {
        let (mut shutdown, _) = Shutdown::begin(at(0), WITHOUT_GRACE, Part::ALL);
        shutdown.handle(at(1), Input::Ended { part: Part::Worker, is_broken: true });
        assert_eq!(actions(&mut shutdown, at(1)), [close(28_500)]);
        shutdown.handle(at(2), ended(Part::Server));
        assert_eq!(actions(&mut shutdown, at(2)), [Action::StopIntake]);
        shutdown.handle(at(3), ended(Part::Intake));
        assert_eq!(actions(&mut shutdown, at(3)), [Action::Done(End::Broken(Part::Worker))]);
    }

    /// What happens after a wait of some milliseconds.
    fn happenings() -> impl Strategy<Value = Vec<(u64, Option<Input>)>> {
        let part = prop_oneof![Just(Part::Server), Just(Part::Intake), Just(Part::Worker)];
        let input = prop_oneof![
            1 => Just(None),
            1 => Just(Some(Input::Signal)),
            4 => (part, prop::bool::weighted(0.1))
                .prop_map(|(part, is_broken)| Some(Input::Ended { part, is_broken })),
        ];
        proptest::collection::vec((0u64..8_000, input), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        // Whatever happens and when: the process ends once, in time, and complete only if every part
        // has ended. Deadlines never move back. The listener closes once: not before the grace is
        // over and the worker has ended or cut off its deliveries, and not later than necessary. The
        // intake is stopped once, after the server, so it stores whatever the server accepts.
        #[test]
        fn a_shutdown_ends_once_and_in_time(
            drain_timeout_ms in 0u64..40_000,
            grace_ms in prop_oneof![Just(0u64), 0u64..30_000],
            takes_events in any::<bool>(),
            happenings in happenings(),
        ) {
            let drain_timeout = Duration::from_millis(drain_timeout_ms);
            let limits = Limits { drain_timeout, grace: Duration::from_millis(grace_ms) };
            let parts = Part::ALL.into_iter().filter(|part| takes_events || *part != Part::Intake);
            let mut running: BTreeSet<Part> = parts.collect();
            let mut broken = false;
            let began = at(1_000);
            let (mut shutdown, first) = Shutdown::begin(began, limits, running.clone());
            let mut latest = Deadlines { cut_off_at: Instant::MAX, give_up_at: began + drain_timeout };
            let (mut now, mut closed, mut intake_stops, mut end) = (began, false, 0, None);
            let mut last_by = began + limits.grace + drain_timeout;
            let mut open_until = began + limits.grace;
            let rest = happenings.into_iter().chain([(80_000, None)]);
            let mut pending = first;
            for (wait, happening) in rest {
                for action in pending.drain(..) {
                    prop_assert_eq!(end, None, "{:?} after the end", action);
                    match action {
                        Action::BecomeUnready => prop_assert!(now == began && !closed),
                        Action::Drain(next) => {
                            prop_assert!(next.cut_off_at <= next.give_up_at);
                            prop_assert!(next.cut_off_at <= latest.cut_off_at);
                            prop_assert!(next.give_up_at <= latest.give_up_at);
                            latest = next;
                        }
                        Action::CloseListener { answer_by } => {
                            prop_assert!(!core::mem::replace(&mut closed, true), "closed twice");
                            prop_assert!(now >= open_until && running.contains(&Part::Server));
                            prop_assert!(
                                !running.contains(&Part::Worker) || now >= latest.cut_off_at,
                                "the listener closes while the worker delivers"
                            );
                            prop_assert!(answer_by <= last_by);
                        }
                        Action::StopIntake => {
                            intake_stops += 1;
                            prop_assert!(takes_events && !running.contains(&Part::Server));
                        }
                        Action::Done(how) => {
                            end = Some(how);
                            prop_assert_eq!(how == End::Complete, running.is_empty() && !broken);
                            prop_assert!(how != End::TimedOut || now >= latest.give_up_at);
                        }
                    }
                }
                prop_assert!(end.is_some() || now < last_by || now == began, "still waiting at {:?}", now);
                let is_due = now >= open_until
                    && (!running.contains(&Part::Worker) || now >= latest.cut_off_at);
                prop_assert!(
                    closed || end.is_some() || !is_due || !running.contains(&Part::Server),
                    "the listener is open at {:?}", now
                );
                prop_assert!(end.is_some() || shutdown.wake_at() > now || now == began);
                now = now + Duration::from_millis(wait);
                match happening {
                    // A part ends once.
                    Some(Input::Ended { part, .. }) if !running.remove(&part) => {}
                    Some(input) => {
                        if let Input::Ended { is_broken, .. } = input {
                            broken |= is_broken;
                        } else {
                            last_by = last_by.min(now + AFTER_SECOND_SIGNAL);
                            open_until = open_until.min(now);
                        }
                        shutdown.handle(now, input);
                    }
                    None => {}
                }
                pending = actions(&mut shutdown, now);
            }
            for action in pending {
                if let Action::Done(how) = action {
                    prop_assert_eq!(end, None);
                    end = Some(how);
                }
            }
            prop_assert!(end.is_some(), "the shutdown does not end");
            prop_assert!(intake_stops <= 1);
        }
    }
}
