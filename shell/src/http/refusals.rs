//! The log lines of refused webhooks: at most one a minute for each source and problem, with the
//! number of refused webhooks.

use super::problem::Problem;
use crate::logs::millis;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use surehook_core::time::Instant;

/// The minimum time between two lines of one source and problem.
const PERIOD: Duration = Duration::from_mins(1);

/// Counts the refused webhooks that are not logged yet.
pub(super) struct Refusals {
    counts: Mutex<BTreeMap<(String, &'static str), Count>>,
    /// When the earliest line is due, in milliseconds since the clock's origin. No line is due
    /// before, so that most requests do not take the lock.
    due: AtomicU64,
}

/// The refused webhooks of one source with one problem.
struct Count {
    /// When the next line may be logged.
    from: Instant,
    refused: u64,
    /// The detail of the last one.
    detail: String,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self { counts: Mutex::default(), due: AtomicU64::new(u64::MAX) }
    }

    /// Counts a refused webhook. The first one is logged at once. `source` is empty if it is not
    /// configured, so that requests cannot create new entries.
    pub(super) fn refused(&self, now: Instant, source: &str, problem: &Problem) {
        self.count(now, source, problem);
        self.log_due(now);
    }

    fn count(&self, now: Instant, source: &str, problem: &Problem) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts
            .entry((source.to_owned(), problem.kind.slug()))
            .or_insert_with(|| Count { from: now, refused: 0, detail: String::new() });
        count.refused += 1;
        count.detail.clone_from(&problem.detail);
        self.due.fetch_min(millis(count.from.since_origin()), Ordering::Relaxed);
    }

    /// Logs what is due.
    pub(super) fn log_due(&self, now: Instant) {
        for ((source, problem), count, detail) in self.take_due(now) {
            tracing::warn!(source, problem, count, detail, "webhooks refused");
        }
    }

    fn take_due(&self, now: Instant) -> Vec<((String, &'static str), u64, String)> {
        if millis(now.since_origin()) < self.due.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        // An entry without a refused webhook in its period is forgotten, and its next one is logged
        // at once.
        counts.retain(|key, count| {
            if now < count.from {
                return true;
            }
            let refused = std::mem::take(&mut count.refused);
            if refused > 0 {
                due.push((key.clone(), refused, std::mem::take(&mut count.detail)));
                count.from = now + PERIOD;
            }
            refused > 0
        });
        let next = counts.values().map(|count| millis(count.from.since_origin())).min();
        self.due.store(next.unwrap_or(u64::MAX), Ordering::Relaxed);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::ProblemKind;
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn refuse(refusals: &Refusals, seconds: u64, source: &str) {
        let problem = ProblemKind::KeyMissing.with(format!("at {seconds}"));
        refusals.count(at(seconds), source, &problem);
    }

    fn due(refusals: &Refusals, seconds: u64) -> Vec<(String, u64, String)> {
        let lines = refusals.take_due(at(seconds));
        lines.into_iter().map(|((source, _), count, detail)| (source, count, detail)).collect()
    }

    #[test]
    fn the_first_refused_webhook_is_logged_at_once_and_the_others_once_a_minute() {
        let refusals = Refusals::new();
        assert_eq!(due(&refusals, 0), []);
        refuse(&refusals, 1, "a");
        assert_eq!(due(&refusals, 1), [("a".into(), 1, "at 1".into())]);
        refuse(&refusals, 2, "a");
        refuse(&refusals, 50, "a");
        assert_eq!(due(&refusals, 60), []);
        assert_eq!(due(&refusals, 61), [("a".into(), 2, "at 50".into())]);
        assert_eq!(due(&refusals, 200), [], "nothing was refused since");
        refuse(&refusals, 201, "a");
        assert_eq!(due(&refusals, 201), [("a".into(), 1, "at 201".into())]);
    }

    #[test]
    fn each_source_has_its_own_minute() {
        let refusals = Refusals::new();
        refuse(&refusals, 0, "a");
        assert_eq!(due(&refusals, 0).len(), 1);
        refuse(&refusals, 30, "a");
        refuse(&refusals, 30, "b");
        assert_eq!(due(&refusals, 30), [("b".into(), 1, "at 30".into())]);
        refuse(&refusals, 31, "b");
        assert_eq!(due(&refusals, 60), [("a".into(), 1, "at 30".into())]);
        assert_eq!(due(&refusals, 90), [("b".into(), 1, "at 31".into())]);
        assert!(refusals.counts.lock().unwrap().len() <= 2);
    }
}
