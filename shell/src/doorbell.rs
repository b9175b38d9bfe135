//! How the intake wakes the worker of its own process: by naming the sources that have something new.
//!
//! A ring is a hint. If it is lost with the process, polling finds the event all the same.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use surehook_core::source::SourceName;
use tokio::sync::Notify;

/// A set of sources with new events, and the one worker that waits for it. Bounded by the number of sources.
#[derive(Debug, Default)]
pub struct Doorbell {
    rung: Mutex<BTreeSet<SourceName>>,
    notify: Notify,
}

impl Doorbell {
    /// Tells the worker that these sources have something to claim.
    pub fn ring(&self, sources: impl IntoIterator<Item = SourceName>) {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).extend(sources);
        self.notify.notify_one();
    }

    /// Waits for a ring and takes the sources named since the last call. May answer with none.
    pub async fn heard(&self) -> Vec<SourceName> {
        self.notify.notified().await;
        std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .collect()
    }
}
