//! Measures the bytes of the events that a process holds for its deliveries: those that it claimed
//! as long as their bytes exist, and those that were claimed on insert while they are sent.

use crate::recorder::Recorder;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use surehook_core::id::EventId;
use surehook_core::worker::claims::Claim;

/// The bytes that one start of a process holds.
pub(crate) struct HeldBytes {
    process: String,
    recorder: Recorder,
    /// The size of each held event, and how many parts of the process hold it.
    events: Mutex<BTreeMap<EventId, (usize, u32)>>,
}

impl HeldBytes {
    pub(crate) fn new(process: String, recorder: Recorder) -> Arc<Self> {
        Arc::new(Self { process, recorder, events: Mutex::default() })
    }

    /// Counts the event of a claim until the guard is dropped.
    pub(crate) fn hold(self: &Arc<Self>, claim: &Claim) -> Holding {
        let mut events = self.events();
        events.entry(claim.event).or_insert((claim.size(), 0)).1 += 1;
        let sizes = || events.values().map(|(size, _)| *size);
        self.recorder.held(&self.process, sizes().sum(), sizes().max().unwrap_or_default());
        Holding { held: Arc::clone(self), event: claim.event }
    }

    /// Counts the event of a claim until its body is dropped.
    pub(crate) fn watch(self: &Arc<Self>, claim: Claim) -> Claim {
        let holding = self.hold(&claim);
        let watched = Watched { body: claim.body, _holding: holding };
        Claim { body: Bytes::from_owner(watched), ..claim }
    }

    fn events(&self) -> MutexGuard<'_, BTreeMap<EventId, (usize, u32)>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guard: the event is held until it is dropped.
pub(crate) struct Holding {
    held: Arc<HeldBytes>,
    event: EventId,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut events = self.held.events();
        if let Some((_, holders)) = events.get_mut(&self.event) {
            *holders -= 1;
            if *holders == 0 {
                events.remove(&self.event);
            }
        }
    }
}

/// The body of a held event.
struct Watched {
    body: Bytes,
    _holding: Holding,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}
