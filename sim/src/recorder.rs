//! Records the history of a run, ordered by time. All nodes of a run share it.

use crate::waits::Waits;
use madsim::time::TimeHandle;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::source::Policy;
use surehook_model::history::{Entry, Fault, PostId, RequestId, What};
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

    pub(crate) fn policies(&self) -> MutexGuard<'_, Policies> {
        self.inner.policies.lock().unwrap_or_else(PoisonError::into_inner)
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
