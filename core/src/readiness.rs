//! Whether new events can be stored, judged by the latest results of the intake.
//!
//! A failed commit does not make the process unready by itself, because the cause may be a single
//! row or a lock on one key. It raises a doubt. A probe settles the doubt: it stores an event as
//! the intake does, and removes it again. The probe is also the only way to become ready again,
//! because a load balancer sends no webhooks to a process that is not ready.

use crate::time::Instant;
use alloc::vec::Vec;
use core::time::Duration;

/// A commit that takes this long raises a doubt. Producers wait only a little longer for their
/// commits.
pub const SLOW_COMMIT: Duration = Duration::from_millis(1500);

/// The maximum size of a probe's event in bytes.
pub const MAX_PROBE_BYTES: usize = 1 << 20;

/// What a call that stored a batch showed about the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The batch was committed: new events can be stored.
    Stored,
    /// The database rejected the data. This shows nothing about other data.
    Refused,
    /// The batch was not committed, or its outcome is unknown.
    Failed,
}

/// What is known about storing new events. Initially nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// When a batch or a probe was last committed.
    stored: Option<Instant>,
    /// The newest failure after `stored`.
    failed: Option<Failure>,
    /// The calls in flight, in the order of their start.
    in_flight: Vec<Call>,
}

/// A call that stores a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    began: Instant,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    at: Instant,
    bytes: usize,
}

impl Readiness {
    /// A call that stores a batch of `bytes` started.
    pub fn began(&mut self, now: Instant, bytes: usize) {
        self.in_flight.push(Call { began: now, bytes });
    }

    /// The call that started at `began` ended.
    pub fn ended(&mut self, now: Instant, began: Instant, bytes: usize, learned: Learned) {
        self.forget(began, bytes);
        match learned {
            Learned::Stored => self.committed(now),
            Learned::Refused => {}
            Learned::Failed => self.failed = Some(Failure { at: now, bytes }),
        }
    }

    /// The call that started at `began` was cancelled.
    pub fn forget(&mut self, began: Instant, bytes: usize) {
        if let Some(at) = self.in_flight.iter().position(|call| *call == Call { began, bytes }) {
            self.in_flight.remove(at);
        }
    }

    /// The size of the event that a probe must store before the process counts as ready. `None` if
    /// there is no doubt.
    ///
    /// The size matters, because a disk without space for a large event may have space for a small
    /// one.
    #[must_use]
    pub fn doubt(&self, now: Instant) -> Option<usize> {
        let slow = self.in_flight.iter().filter(|call| now.since(call.began) >= SLOW_COMMIT);
        // A call that started before another one was committed is ignored. It waits for something
        // specific, such as a lock on one key.
        let slow = slow
            .filter(|call| self.stored.is_none_or(|stored| call.began >= stored))
            .map(|call| call.bytes);
        let failed = self.failed.map(|failure| failure.bytes);
        let unknown = self.stored.is_none().then_some(0);
        failed.into_iter().chain(slow).chain(unknown).max().map(|bytes| bytes.min(MAX_PROBE_BYTES))
    }

    /// A probe that started at `began` was committed. It settles every doubt that is older than the
    /// probe.
    pub fn probed(&mut self, now: Instant, began: Instant) {
        let failed_meanwhile = self.failed.filter(|failure| failure.at > began);
        self.committed(now);
        self.failed = failed_meanwhile;
    }

    /// A probe of `bytes` was not committed.
    pub fn probe_failed(&mut self, now: Instant, bytes: usize) {
        self.failed = Some(Failure { at: now, bytes });
    }

    fn committed(&mut self, now: Instant) {
        self.stored = Some(now);
        self.failed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(millis))
    }

    /// A process that has stored something at 0.
    fn proven() -> Readiness {
        let mut readiness = Readiness::default();
        readiness.probed(at(0), at(0));
        readiness
    }

    fn call(readiness: &mut Readiness, from: u64, until: u64, bytes: usize, learned: Learned) {
        readiness.began(at(from), bytes);
        readiness.ended(at(until), at(from), bytes, learned);
    }

    #[test]
    fn a_new_process_is_in_doubt_until_something_is_stored() {
        let mut readiness = Readiness::default();
        assert_eq!(readiness.doubt(at(0)), Some(0));
        call(&mut readiness, 1, 2, 10, Learned::Refused);
        assert_eq!(readiness.doubt(at(3)), Some(0));
        call(&mut readiness, 4, 5, 10, Learned::Stored);
        assert_eq!(readiness.doubt(at(6)), None);
    }

    #[test]
    fn a_failure_raises_a_doubt_that_a_commit_or_a_probe_settles() {
        let mut readiness = proven();
        call(&mut readiness, 1, 2, 10, Learned::Failed);
        assert_eq!(readiness.doubt(at(3)), Some(10), "the probe has the size of the failed batch");
        readiness.probed(at(5), at(4));
        assert_eq!(readiness.doubt(at(6)), None);
        call(&mut readiness, 7, 8, 5 << 20, Learned::Failed);
        assert_eq!(readiness.doubt(at(9)), Some(MAX_PROBE_BYTES));
        call(&mut readiness, 10, 11, 10, Learned::Stored);
        assert_eq!(readiness.doubt(at(12)), None);
    }

    #[test]
    fn a_rejected_row_neither_raises_nor_settles_a_doubt() {
        let mut readiness = proven();
        call(&mut readiness, 1, 2, 10, Learned::Refused);
        assert_eq!(readiness.doubt(at(3)), None);
        call(&mut readiness, 4, 5, 10, Learned::Failed);
        call(&mut readiness, 6, 7, 10, Learned::Refused);
        assert_eq!(readiness.doubt(at(8)), Some(10));
    }

    #[test]
    fn a_failure_during_a_probe_keeps_the_doubt() {
        let mut readiness = proven();
        call(&mut readiness, 1, 2, 10, Learned::Failed);
        call(&mut readiness, 4, 6, 20, Learned::Failed);
        readiness.probed(at(7), at(5));
        assert_eq!(readiness.doubt(at(8)), Some(20));
    }

    #[test]
    fn a_failed_probe_keeps_the_doubt() {
        let mut readiness = proven();
        readiness.began(at(100), 10);
        readiness.probe_failed(at(2000), 10);
        readiness.forget(at(100), 10);
        assert_eq!(readiness.doubt(at(3000)), Some(10));
    }

    #[test]
    fn a_hanging_commit_raises_a_doubt_before_it_fails() {
        let mut readiness = proven();
        readiness.began(at(100), 10);
        assert_eq!(readiness.doubt(at(1599)), None);
        assert_eq!(readiness.doubt(at(1600)), Some(10));
        readiness.forget(at(100), 10);
        assert_eq!(readiness.doubt(at(1700)), None);
    }

    #[test]
    fn a_hanging_commit_raises_no_doubt_while_others_succeed() {
        let mut readiness = proven();
        readiness.began(at(100), 10);
        call(&mut readiness, 200, 300, 10, Learned::Stored);
        assert_eq!(readiness.doubt(at(9000)), None);
        readiness.began(at(400), 20);
        assert_eq!(readiness.doubt(at(9000)), Some(20), "a later call hangs, too");
    }

    proptest! {
        /// Whatever happened before: after a committed probe there is no doubt, unless something
        /// failed since the probe started.
        #[test]
        fn a_committed_probe_always_restores_readiness(calls in proptest::collection::vec((0..4000_u64, 0..4000_u64, 0..3_usize, any::<bool>()), 0..20)) {
            let mut readiness = Readiness::default();
            for (from, took, learned, ends) in calls {
                readiness.began(at(from), 1);
                if ends {
                    let learned = [Learned::Stored, Learned::Refused, Learned::Failed][learned];
                    readiness.ended(at(from + took), at(from), 1, learned);
                }
            }
            readiness.probed(at(9000), at(8001));
            prop_assert_eq!(readiness.doubt(at(20_000)), None);
            call(&mut readiness, 20_001, 20_002, 1, Learned::Failed);
            prop_assert!(readiness.doubt(at(20_003)).is_some());
        }
    }
}
