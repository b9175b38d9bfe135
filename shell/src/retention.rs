//! The retention loop: prunes what ended long ago, and erases payloads before that where they are not to be kept as long,
//! in small steps with pauses between them. Where a step goes on, and when, is decided by [`surehook_core::retention`].

use crate::ports::{Clock, Retention, Store, StoreError};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::id::EventId;
use surehook_core::retention::{Passes, Reached};

/// Events that one step looks at. A few: SQLite's one writer is taken for as long as a step takes, and so is a processor of
/// PostgreSQL's machine.
const STEP_EVENTS: u32 = 100;

/// Prunes and erases for ever. The payload of a delivered event is kept for `delivered_payload`, if that is less than the
/// event is. Dropping this future at any point is harmless.
pub async fn run(
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    retention: Retention,
    delivered_payload: Duration,
) {
    let (store, clock) = (store.as_ref(), clock.as_ref());
    let pruning = passes(clock, |after| {
        async move {
            let pruned = store.prune(retention, after, STEP_EVENTS).await;
            let pruned = pruned
                .inspect_err(|error| tracing::warn!(%error, "pruning failed; it is tried again"))?;
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
            let erased = erased.inspect_err(
                |error| tracing::warn!(%error, "erasing payloads failed; it is tried again"),
            )?;
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

/// Does steps for ever. A step answers where it ended, and whether it changed something.
async fn passes<'s>(
    clock: &dyn Clock,
    step: impl Fn(Option<EventId>) -> BoxFuture<'s, Result<(Reached, bool), StoreError>>,
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
