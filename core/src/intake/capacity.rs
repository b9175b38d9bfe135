//! What the worker of the same process has room for, and how much of that is taken: its offers (an advertised window).
//!
//! What is taken stays taken until the worker has taken the event over, or the event was not claimed after all. So an offer
//! that is a little old never lets more be claimed than the worker has room for.

use crate::source::SourceName;
use alloc::collections::BTreeMap;
use core::time::Duration;

/// Room for events: how many, and how many bytes they have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Events.
    pub events: u32,
    /// Bytes of their headers and bodies.
    pub bytes: usize,
}

/// The newest offer of each source.
#[derive(Debug, Default)]
pub(super) struct Offers {
    by_source: BTreeMap<SourceName, Offer>,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Offer {
    capacity: Capacity,
    lease: Duration,
    taken: Capacity,
}

impl Offers {
    /// The worker has this much room for new events of a source, besides those that it knows of.
    pub(super) fn offer(&mut self, source: SourceName, capacity: Capacity, lease: Duration) {
        let offer = self.by_source.entry(source).or_default();
        (offer.capacity, offer.lease) = (capacity, lease);
    }

    /// Takes room for one event and returns the lease; `None` if there is no room.
    pub(super) fn take(&mut self, source: &SourceName, size: usize) -> Option<Duration> {
        let is_closed = self.is_closed;
        let Offer { capacity, lease, taken } =
            self.by_source.get_mut(source).filter(|_| !is_closed)?;
        let fits =
            taken.events < capacity.events && taken.bytes.saturating_add(size) <= capacity.bytes;
        fits.then(|| {
            taken.events += 1;
            taken.bytes += size;
            *lease
        })
    }

    /// Gives back the room of one event.
    pub(super) fn give_back(&mut self, source: &SourceName, size: usize) {
        let taken = &mut self.by_source.get_mut(source).expect("room is taken on an offer").taken;
        debug_assert!(taken.events > 0 && taken.bytes >= size, "room is given back twice");
        taken.events = taken.events.saturating_sub(1);
        taken.bytes = taken.bytes.saturating_sub(size);
    }

    /// The worker knows of one more event. From now on it counts that event itself, and its newest offer does not yet.
    pub(super) fn taken_over(&mut self, source: &SourceName, size: usize) {
        self.give_back(source, size);
        let capacity =
            &mut self.by_source.get_mut(source).expect("room is taken on an offer").capacity;
        capacity.events = capacity.events.saturating_sub(1);
        capacity.bytes = capacity.bytes.saturating_sub(size);
    }

    /// The worker takes no more events.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The events that room is taken for.
    pub(super) fn taken(&self) -> u32 {
        self.by_source.values().map(|offer| offer.taken.events).sum()
    }
}
