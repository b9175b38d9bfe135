//! The loop that caps due times which are too far ahead, after the database's clock was set back.
//! [`surehook_core::due`] says which, and when the next step is due.

use crate::ports::{Clock, MaintenanceStore};
use std::sync::Arc;
use surehook_core::due::{Bound, Pass, STEP_ROWS};

/// Caps in an endless loop, beginning now. Dropping this future at any point is harmless.
pub async fn run(store: Arc<dyn MaintenanceStore>, clock: Arc<dyn Clock>, bounds: Vec<Bound>) {
    let mut pass = Pass::default();
    loop {
        let step = store.cap_due_times(bounds.clone(), STEP_ROWS).await;
        let step =
            step.inspect_err(|error| tracing::warn!(%error, "capping due times failed; retrying"));
        let next = pass.handle(step.ok());
        if let Some(events) = next.capped {
            tracing::warn!(
                events,
                "due times were too far ahead: the clock of the database was set back; these events are due when a lease has passed"
            );
        }
        clock.sleep_until(clock.now() + next.pause).await;
    }
}
