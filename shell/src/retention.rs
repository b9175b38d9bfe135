//! The retention loop: prunes what ended long ago, and erases payloads before that where they are not to be kept as long,
//! in small steps with pauses between them.

use crate::ports::{Clock, Retention, Store};
use std::sync::Arc;
use std::time::Duration;

/// Events that one step looks at. A few: SQLite's one writer is taken for as long as a step takes, and so is a processor of
/// PostgreSQL's machine.
const STEP_EVENTS: u32 = 100;
/// Between two steps of one pass, so that intake and delivery have the database to themselves most of the time.
const STEP_PAUSE: Duration = Duration::from_millis(10);
/// Between two passes, and after an error.
const PASS_PAUSE: Duration = Duration::from_mins(1);
/// A pass that erases goes on where the last one ended, since what it has passed stays where it is. Once in this time it
/// begins at the oldest event again, for those that were delivered late.
const FROM_THE_START: Duration = Duration::from_hours(6);

/// Prunes and erases for ever. The payload of a delivered event is kept for `delivered_payload`, if that is less than the
/// event is. Dropping this future at any point is harmless.
pub async fn run(store: Arc<dyn Store>, clock: Arc<dyn Clock>, retention: Retention, delivered_payload: Duration) {
    let erasing = async {
        if delivered_payload < retention.delivered {
            erase(store.as_ref(), clock.as_ref(), delivered_payload).await;
        }
    };
    futures::join!(prune(store.as_ref(), clock.as_ref(), retention), erasing);
}

async fn prune(store: &dyn Store, clock: &dyn Clock, retention: Retention) {
    let mut after = None;
    loop {
        let pause = match store.prune(retention, after, STEP_EVENTS).await {
            Ok(pruned) => {
                if pruned.deleted > 0 {
                    tracing::debug!(events = pruned.deleted, "pruned");
                }
                after = pruned.next;
                if after.is_some() { STEP_PAUSE } else { PASS_PAUSE }
            }
            Err(error) => {
                tracing::warn!(%error, "pruning failed; it is tried again");
                PASS_PAUSE
            }
        };
        clock.sleep_until(clock.now() + pause).await;
    }
}

async fn erase(store: &dyn Store, clock: &dyn Clock, kept: Duration) {
    let (mut after, mut from_the_start_at) = (None, clock.now() + FROM_THE_START);
    loop {
        if clock.now() >= from_the_start_at {
            (after, from_the_start_at) = (None, clock.now() + FROM_THE_START);
        }
        let pause = match store.erase(kept, after, STEP_EVENTS).await {
            Ok(erased) => {
                if erased.erased > 0 {
                    tracing::debug!(events = erased.erased, "payloads erased");
                }
                after = erased.next.or(after);
                if erased.next.is_some() { STEP_PAUSE } else { PASS_PAUSE }
            }
            Err(error) => {
                tracing::warn!(%error, "erasing payloads failed; it is tried again");
                PASS_PAUSE
            }
        };
        clock.sleep_until(clock.now() + pause).await;
    }
}
