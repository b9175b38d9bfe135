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
    let mut pruning: Fuse<BoxFuture<'_, (Step, Option<Done>)>> = Fuse::terminated();
    let mut erasing: Fuse<BoxFuture<'_, (Step, Option<Done>)>> = Fuse::terminated();
    loop {
        while let Some(step) = schedule.poll(clock.now()) {
            let running = match step.work {
                Work::Prune => &mut pruning,
                Work::Erase => &mut erasing,
            };
            debug_assert!(running.is_terminated(), "at most one step of a kind is in flight");
            let done = match step.work {
                Work::Prune => prune(store, retention, step).boxed(),
                Work::Erase => erase(store, delivered_payload, step).boxed(),
            };
            *running = done.map(move |done| (step, done.ok())).boxed().fuse();
        }
        let mut wake = match schedule.wake_at() {
            Some(at) => clock.sleep_until(at).fuse(),
            None => Fuse::terminated(),
        };
        select_biased! {
            (step, done) = pruning => schedule.handle(clock.now(), step, done),
            (step, done) = erasing => schedule.handle(clock.now(), step, done),
            () = wake => {}
        }
    }
}

async fn prune(
    store: &dyn MaintenanceStore,
    retention: Retention,
    step: Step,
) -> Result<Done, StoreError> {
    let pruned = store.prune(retention, step.after, step.limit).await;
    let pruned = pruned.inspect_err(|error| tracing::warn!(%error, "pruning failed; retrying"))?;
    if pruned.deleted > 0 {
        tracing::debug!(events = pruned.deleted, "pruned");
    }
    Ok(Done { reached: pruned.reached, has_changed: pruned.deleted > 0 })
}

async fn erase(
    store: &dyn MaintenanceStore,
    kept: Duration,
    step: Step,
) -> Result<Done, StoreError> {
    let erased = store.erase(kept, step.after, step.limit).await;
    let erased =
        erased.inspect_err(|error| tracing::warn!(%error, "erasing payloads failed; retrying"))?;
    if erased.erased > 0 {
        tracing::debug!(events = erased.erased, "payloads erased");
    }
    Ok(Done { reached: erased.reached, has_changed: erased.erased > 0 })
}
