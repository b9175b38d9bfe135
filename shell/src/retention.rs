//! The retention loop: prunes events whose retention is over, and erases payloads earlier if they
//! are kept for a shorter time. [`surehook_core::retention`] decides which step is next, and when.

use crate::ports::{Clock, MaintenanceStore, Retention, StoreError};
use futures::future::{BoxFuture, Fuse, FusedFuture};
use futures::{FutureExt, select_biased};
use std::sync::Arc;
use std::time::Duration;
use surehook_core::retention::{Done, Schedule, Step, Work};

/// Prunes and erases in an endless loop. Payloads of delivered events are kept for
/// `delivered_payload`, if that is shorter than the retention of the events. Dropping this future
/// at any point is harmless.
pub async fn run(
    store: Arc<dyn MaintenanceStore>,
    clock: Arc<dyn Clock>,
    retention: Retention,
    delivered_payload: Duration,
) {
    let store = store.as_ref();
    let mut schedule = Schedule::new(clock.now(), retention.delivered, delivered_payload);
    let mut pruning: Fuse<BoxFuture<'_, (Step, Option<Ended>)>> = Fuse::terminated();
    let mut erasing: Fuse<BoxFuture<'_, (Step, Option<Ended>)>> = Fuse::terminated();
    let mut deleted = DeletedDeadLetters(0);
    loop {
        while let Some(step) = schedule.poll(clock.now()) {
            let running = match step.work {
                Work::Prune => &mut pruning,
                Work::Erase => &mut erasing,
            };
            debug_assert!(running.is_terminated(), "at most one step of a kind is in flight");
            let ended = match step.work {
                Work::Prune => prune(store, retention, step).boxed(),
                Work::Erase => erase(store, delivered_payload, step).boxed(),
            };
            *running = ended.map(move |ended| (step, ended.ok())).boxed().fuse();
        }
        let mut wake = match schedule.wake_at() {
            Some(at) => clock.sleep_until(at).fuse(),
            None => Fuse::terminated(),
        };
        let (step, ended) = select_biased! {
            ended = pruning => ended,
            ended = erasing => ended,
            () = wake => continue,
        };
        deleted.0 += ended.map_or(0, |ended| ended.dead_letters);
        let handled = schedule.handle(clock.now(), step, ended.map(|ended| ended.done));
        if handled.ends_pass && step.work == Work::Prune {
            deleted.log();
        }
        if let Some(behind) = handled.falls_behind {
            let behind_s = behind.as_secs();
            match step.work {
                Work::Prune => tracing::warn!(
                    behind_s,
                    "retention falls behind: the database cannot delete events as fast as they expire"
                ),
                Work::Erase => tracing::warn!(
                    behind_s,
                    "retention falls behind: the database cannot erase payloads as fast as they expire"
                ),
            }
        }
    }
}

/// The number of dead letters that one pass deleted. It is logged at the end of the pass, also if
/// the loop ends before.
struct DeletedDeadLetters(u64);

impl DeletedDeadLetters {
    fn log(&mut self) {
        let events = std::mem::take(&mut self.0);
        if events > 0 {
            tracing::warn!(
                events,
                "dead letters deleted: their retention is over and they were not redriven"
            );
        }
    }
}

impl Drop for DeletedDeadLetters {
    fn drop(&mut self) {
        self.log();
    }
}

/// A step that succeeded.
#[derive(Clone, Copy)]
struct Ended {
    done: Done,
    /// The number of dead letters that it deleted.
    dead_letters: u64,
}

async fn prune(
    store: &dyn MaintenanceStore,
    retention: Retention,
    step: Step,
) -> Result<Ended, StoreError> {
    let pruned = store.prune(retention, step.after, step.limit).await;
    let pruned = pruned.inspect_err(|error| tracing::warn!(%error, "pruning failed; retrying"))?;
    if pruned.deleted > 0 {
        tracing::debug!(events = pruned.deleted, "pruned");
    }
    let done = Done { reached: pruned.reached, has_changed: pruned.deleted > 0 };
    Ok(Ended { done, dead_letters: pruned.dead_lettered })
}

async fn erase(
    store: &dyn MaintenanceStore,
    kept: Duration,
    step: Step,
) -> Result<Ended, StoreError> {
    let erased = store.erase(kept, step.after, step.limit).await;
    let erased =
        erased.inspect_err(|error| tracing::warn!(%error, "erasing payloads failed; retrying"))?;
    if erased.erased > 0 {
        tracing::debug!(events = erased.erased, "payloads erased");
    }
    let done = Done { reached: erased.reached, has_changed: erased.erased > 0 };
    Ok(Ended { done, dead_letters: 0 })
}
