//! Writes down what happens, in the order of time. Shared by all nodes of a world.

use crate::waits::Waits;
use madsim::time::TimeHandle;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use surehook_model::history::{Entry, Fault, PostId, RequestId, What};

/// The history in the making.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: Mutex<Vec<Entry>>,
    next: AtomicU64,
    waits: Waits,
}

impl Recorder {
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

/// The time since the run began.
pub(crate) fn elapsed() -> Duration {
    TimeHandle::current().elapsed()
}
