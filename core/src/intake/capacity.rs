//! The capacity that the worker of the same process offers (an advertised window), and how much of
//! it is in use.
//!
//! Capacity stays in use until the worker has taken the event over, or until the event turns out
//! not to be claimed. So an offer that is slightly outdated never lets more events be claimed than
//! the worker can hold.

use crate::source::SourceName;
use alloc::collections::BTreeMap;
use core::time::Duration;

/// Capacity for events: their number, and their total size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// The number of events.
    pub events: u32,
    /// The bytes of their queries, headers and bodies.
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
    /// The worker offers this capacity for new events of a source, in addition to the events that
    /// it already knows.
    pub(super) fn offer(&mut self, source: SourceName, capacity: Capacity, lease: Duration) {
        let offer = self.by_source.entry(source).or_default();
        (offer.capacity, offer.lease) = (capacity, lease);
    }

    /// Reserves capacity for one event and returns its lease. `None` if there is no capacity.
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

    /// Returns the capacity of one event.
    pub(super) fn give_back(&mut self, source: &SourceName, size: usize) {
        let taken = &mut self.by_source.get_mut(source).expect("the source has an offer").taken;
        debug_assert!(taken.events > 0 && taken.bytes >= size, "capacity is returned twice");
        taken.events = taken.events.saturating_sub(1);
        taken.bytes = taken.bytes.saturating_sub(size);
    }

    /// The worker knows of another event. From now on the worker counts it itself, but the newest
    /// offer was made without it. So the offer is reduced by the event.
    pub(super) fn taken_over(&mut self, source: &SourceName, size: usize) {
        self.give_back(source, size);
        let capacity =
            &mut self.by_source.get_mut(source).expect("the source has an offer").capacity;
        capacity.events = capacity.events.saturating_sub(1);
        capacity.bytes = capacity.bytes.saturating_sub(size);
    }

    /// All offers end. Events for which capacity is reserved can still be handed over.
    pub(super) fn withdraw(&mut self) {
        for offer in self.by_source.values_mut() {
            offer.capacity = Capacity::default();
        }
    }

    /// The worker accepts no more events.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The number of events for which capacity is in use.
    pub(super) fn taken(&self) -> u32 {
        self.by_source.values().map(|offer| offer.taken.events).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returned_capacity_can_be_taken_again() {
        let source = SourceName::parse("orders").unwrap();
        let mut offers = Offers::default();
        let capacity = Capacity { events: 1, bytes: 100 };
        offers.offer(source.clone(), capacity, Duration::from_secs(1));
        for _ in 0..3 {
            assert!(offers.take(&source, 101).is_none());
            assert!(offers.take(&source, 100).is_some());
            assert!(offers.take(&source, 0).is_none());
            offers.give_back(&source, 100);
        }
    }

    #[test]
    fn a_withdrawn_offer_admits_nothing_until_the_next_one() {
        let source = SourceName::parse("orders").unwrap();
        let mut offers = Offers::default();
        let capacity = Capacity { events: 2, bytes: 100 };
        let [first, second] = [1, 2].map(Duration::from_secs);
        offers.offer(source.clone(), capacity, first);
        assert_eq!(offers.take(&source, 10), Some(first));
        offers.withdraw();
        assert_eq!((offers.take(&source, 10), offers.taken()), (None, 1));
        offers.offer(source.clone(), capacity, second);
        assert_eq!(offers.take(&source, 10), Some(second));
        assert_eq!(offers.take(&source, 10), None, "the first event has its capacity still");
    }
}
