//! The loop that looks for a session that holds an old snapshot of the database: a backup, or a
//! transaction that was forgotten. Until it ends, PostgreSQL removes no dead row of a queue, so
//! claims and retention read more and more of them, and SQLite cannot empty its write-ahead log, which
//! grows until the disk is full.

use crate::ports::{Clock, MaintenanceStore, SnapshotHolder};
use std::sync::Arc;
use std::time::Duration;
use surehook_core::time::Instant;

/// A snapshot that is held for a shorter time is normal.
const OLD: Duration = Duration::from_mins(5);

/// Interval between two looks.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// The same holder is logged once in this time.
const LOG_EVERY: Duration = Duration::from_hours(1);

/// Looks in an endless loop. Dropping this future at any point is harmless.
pub async fn run(store: Arc<dyn MaintenanceStore>, clock: Arc<dyn Clock>) {
    let mut reported = Reported::default();
    loop {
        clock.sleep_until(clock.now() + LOOK_EVERY).await;
        match store.oldest_snapshot(OLD).await {
            Ok(holder) => {
                if let Some(holder) = reported.news(clock.now(), holder) {
                    log(&holder);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the holder of the oldest snapshot was not found");
            }
        }
        if let Some(bytes) = store.overgrown_log()
            && reported.is_due(clock.now())
        {
            let log_mib = bytes >> 20;
            tracing::warn!(
                log_mib,
                "write-ahead log not emptied; a connection of another process holds an old snapshot, and the log grows until it ends"
            );
        }
    }
}

/// What was logged last.
#[derive(Default)]
struct Reported {
    holder: Option<(SnapshotHolder, Instant)>,
    log: Option<Instant>,
}

impl Reported {
    /// Whether a log that is too large has to be logged now.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.log.is_none_or(|at| now.since(at) >= LOG_EVERY);
        if is_due {
            self.log = Some(now);
        }
        is_due
    }

    /// The holder, if it has to be logged now.
    fn news(&mut self, now: Instant, found: Option<SnapshotHolder>) -> Option<SnapshotHolder> {
        let found = found?;
        let is_known = self.holder.as_ref().is_some_and(|(known, at)| {
            (&known.name, known.pid) == (&found.name, found.pid) && now.since(*at) < LOG_EVERY
        });
        if is_known {
            return None;
        }
        self.holder = Some((found.clone(), now));
        Some(found)
    }
}

fn log(holder: &SnapshotHolder) {
    let SnapshotHolder { name, role, state, pid, held_for } = holder;
    let held_for_s = held_for.map(|held_for| held_for.as_secs());
    tracing::warn!(
        name,
        role,
        state,
        pid,
        held_for_s,
        "old snapshot held; until it ends, PostgreSQL keeps all dead rows, and claims become slower"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_logged_once_an_hour_and_another_at_once() {
        let at = |minutes| Instant::ZERO + Duration::from_mins(minutes);
        let holder = |pid| SnapshotHolder {
            name: "pg_dump".into(),
            role: None,
            state: None,
            pid: Some(pid),
            held_for: None,
        };
        let mut reported = Reported::default();
        for (minute, pid, is_news) in
            [(5, 7, true), (6, 7, false), (64, 7, false), (65, 7, true), (66, 8, true)]
        {
            let news = reported.news(at(minute), Some(holder(pid)));
            assert_eq!(news.is_some(), is_news, "minute {minute}, process {pid}");
            assert_eq!(reported.news(at(minute), None), None);
        }
    }

    #[test]
    fn a_log_that_is_too_large_is_logged_once_an_hour() {
        let at = |minutes| Instant::ZERO + Duration::from_mins(minutes);
        let mut reported = Reported::default();
        let due: Vec<_> = (1..=122).filter(|&minute| reported.is_due(at(minute))).collect();
        assert_eq!(due, [1, 61, 121]);
    }
}
