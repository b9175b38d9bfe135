//! Wakes the worker when the intake of the same process stores events. The signal names their
//! sources.
//!
//! It is only a hint. If it is lost with the process, polling finds the events.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use surehook_core::source::SourceName;
use tokio::sync::Notify;

/// The set of sources with new events, for one waiting worker. Bounded by the number of sources.
#[derive(Debug, Default)]
pub struct Doorbell {
    rung: Mutex<BTreeSet<SourceName>>,
    notify: Notify,
}

impl Doorbell {
    /// Signals that these sources have events to claim.
    pub fn ring(&self, sources: impl IntoIterator<Item = SourceName>) {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).extend(sources);
        self.notify.notify_one();
    }

    /// Waits for a signal and takes the sources named since the last call. The result can be empty.
    pub async fn heard(&self) -> Vec<SourceName> {
        self.notify.notified().await;
        std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn sources_named_before_and_during_a_wait_are_heard() {
        let (bell, name) = (Doorbell::default(), |name| SourceName::parse(name).unwrap());
        bell.ring([name("a"), name("b")]);
        assert_eq!(bell.heard().now_or_never().unwrap(), ["a", "b"].map(name));
        let mut waiting = std::pin::pin!(bell.heard());
        assert!(waiting.as_mut().now_or_never().is_none());
        bell.ring([name("c")]);
        assert_eq!(waiting.now_or_never().unwrap(), [name("c")]);
    }
}
