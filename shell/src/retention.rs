//! The retention loop: prunes events whose retention is over, and erases payloads earlier if they
//! are kept for a shorter time. It works in small steps with pauses between them.
//! [`surehook_core::retention`] decides where and when the next step starts.

use crate::ports::{Clock, MaintenanceStore, Retention, StoreCall};
use futures::FutureExt;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::id::EventId;
use surehook_core::retention::{Passes, Reached};

/// Maximum number of events that one step examines. It is small, because a step occupies SQLite's
/// only writer, or one processor of the PostgreSQL server, until it ends.
const STEP_EVENTS: u32 = 100;

/// Prunes and erases in an endless loop. Payloads of delivered events are kept for
/// `delivered_payload`, if that is shorter than the retention of the events. Dropping this future
/// at any point is harmless.
pub async fn run(
    store: Arc<dyn MaintenanceStore>,
    clock: Arc<dyn Clock>,
    retention: Retention,
    delivered_payload: Duration,
) {
    let (store, clock) = (store.as_ref(), clock.as_ref());
    let pruning = passes(clock, |after| {
        async move {
            let pruned = store.prune(retention, after, STEP_EVENTS).await;
            let pruned =
                pruned.inspect_err(|error| tracing::warn!(%error, "pruning failed; retrying"))?;
            if pruned.deleted > 0 {
                tracing::debug!(events = pruned.deleted, "pruned");
            }
            Ok((pruned.reached, pruned.deleted > 0))
        }
        .boxed()
    });
    let erasing = passes(clock, |after| {
        async move {
            let erased = store.erase(delivered_payload, after, STEP_EVENTS).await;
            let erased = erased
                .inspect_err(|error| tracing::warn!(%error, "erasing payloads failed; retrying"))?;
            if erased.erased > 0 {
                tracing::debug!(events = erased.erased, "payloads erased");
            }
            Ok((erased.reached, erased.erased > 0))
        }
        .boxed()
    });
    if delivered_payload < retention.delivered {
        futures::join!(pruning, erasing);
    } else {
        pruning.await;
    }
}

/// Runs steps in an endless loop. A step returns where it ended, and whether it changed anything.
async fn passes<'s>(
    clock: &dyn Clock,
    step: impl Fn(Option<EventId>) -> StoreCall<'s, (Reached, bool)>,
) {
    let mut passes = Passes::new(clock.now());
    loop {
        match passes.poll(clock.now()) {
            Some(next) => {
                let done = step(next.after).await.ok();
                passes.handle(clock.now(), next, done);
            }
            None => clock.sleep_until(passes.wake_at()).await,
        }
    }
}
