//! Records the history of a run, ordered by time. All nodes of a run share it.

use crate::waits::Waits;
use madsim::time::TimeHandle;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::source::Policy;
use surehook_model::history::{Entry, Fault, Held, PostId, RequestId, What};
use surehook_model::policies::Policies;
use surehook_model::scenario::Scenario;

#[derive(Clone, Default)]
pub(crate) struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: Mutex<Vec<Entry>>,
    policies: Mutex<Policies>,
    held: Mutex<BTreeMap<String, Held>>,
    next: AtomicU64,
    waits: Waits,
}

impl Recorder {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let recorder = Self::default();
        *recorder.policies() =
            scenario.sources.iter().map(|source| (source.name.clone(), source.policy())).collect();
        recorder
    }

    pub(crate) fn record(&self, what: What) {
        self.inner
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Entry { at: elapsed(), what });
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.record(What::Fault(fault));
    }

    /// A process starts with these sources.
    pub(crate) fn started(
        &self,
        process: &str,
        sources: impl IntoIterator<Item = (String, Policy)>,
    ) {
        self.policies().started(process, elapsed(), sources);
        self.fault(Fault::Started { process: process.to_owned() });
    }

    /// A process reads its configuration again and finds these sources.
    pub(crate) fn reloaded(
        &self,
        process: &str,
        sources: impl IntoIterator<Item = (String, Policy)>,
    ) {
        self.policies().reloaded(process, elapsed(), sources);
        self.fault(Fault::Reloaded { process: process.to_owned() });
    }

    pub(crate) fn policies(&self) -> MutexGuard<'_, Policies> {
        self.inner.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process holds events of this size now.
    pub(crate) fn held(&self, process: &str, bytes: usize, largest: usize) {
        let now = Held { at: elapsed(), bytes, largest };
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        let most = held.entry(process.to_owned()).or_insert(now);
        if bytes - largest > most.bytes - most.largest {
            *most = now;
        }
    }

    /// The moment at which each process held most.
    pub(crate) fn most_held(&self) -> BTreeMap<String, Held> {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn post_id(&self) -> PostId {
        PostId(self.inner.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn request_id(&self) -> RequestId {
        RequestId(self.inner.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn waits(&self) -> &Waits {
        &self.inner.waits
    }

    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The time since the start of the run.
pub(crate) fn elapsed() -> Duration {
    TimeHandle::current().elapsed()
}
