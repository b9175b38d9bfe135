//! The retention loop: prunes what ended long ago, in small steps with pauses between them.

use crate::ports::{Clock, Retention, Store};
use std::sync::Arc;
use std::time::Duration;

/// Events that one step looks at.
const STEP_EVENTS: u32 = 500;
/// Between two steps of one pass, so that intake and delivery have the database to themselves most of the time.
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// Between two passes, and after an error.
const PASS_PAUSE: Duration = Duration::from_secs(60);

/// Prunes for ever. Dropping this future at any point is harmless.
pub async fn run(store: Arc<dyn Store>, clock: Arc<dyn Clock>, retention: Retention) {
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
