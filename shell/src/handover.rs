//! How the intake gives events to the worker of its own process without a claim: the worker offers room, the intake has so
//! many of the events that it stores claimed in the same moment, and hands them over.
//!
//! Whatever is lost here with the process is under a lease, and comes back when that ends.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::worker::exchange::Claim;
use tokio::sync::Notify;

/// The offers of one worker, and what was handed over on them and is not taken yet. Bounded by what is offered, in events and
/// in bytes.
#[derive(Debug, Default)]
pub struct Handover {
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    offers: BTreeMap<SourceName, Offer>,
    handed: Vec<Handed>,
    is_closed: bool,
}

/// One source's offer.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    room: Room,
    lease: Duration,
    /// So much of the room is taken, by events that the worker does not know of yet.
    taken: Room,
}

/// A number of events, and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    events: u32,
    bytes: usize,
}

/// An event for which room is taken or given back: its source, and its size in bytes.
pub type Item<'a> = (&'a SourceName, usize);

/// Events that were claimed as they were stored, to be handed over together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Before they were sent to the store: their leases are counted from here.
    pub since: Instant,
    /// The events.
    pub claims: Vec<Claim>,
}

impl Handover {
    /// The worker has room for so many new events of a source, of so many bytes together, besides those that it knows of.
    pub fn offer(&self, source: SourceName, events: u32, bytes: usize, lease: Duration) {
        let mut state = self.state();
        let offer = state.offers.entry(source).or_default();
        (offer.room, offer.lease) = (Room { events, bytes }, lease);
    }

    /// Takes room for each event, where there is some, and answers the leases. What is taken is handed over or given back.
    pub fn take<'a>(&self, events: impl IntoIterator<Item = Item<'a>>) -> Vec<Option<Duration>> {
        let mut state = self.state();
        let is_closed = state.is_closed;
        let mut take = |(source, size): Item<'a>| {
            let has_room = |offer: &&mut Offer| {
                offer.taken.events < offer.room.events && offer.taken.bytes.saturating_add(size) <= offer.room.bytes && !is_closed
            };
            let offer = state.offers.get_mut(source).filter(has_room)?;
            offer.taken = Room { events: offer.taken.events + 1, bytes: offer.taken.bytes + size };
            Some(offer.lease)
        };
        events.into_iter().map(&mut take).collect()
    }

    /// Gives the room back that was taken for each of these events.
    pub fn give_back<'a>(&self, events: impl IntoIterator<Item = Item<'a>>) {
        let mut state = self.state();
        for event in events {
            state.give_back(event);
        }
    }

    /// Hands events over for which room was taken.
    ///
    /// # Errors
    ///
    /// The events themselves, if the worker takes no more. They are claimed: the store is to be told that they are not.
    pub fn hand(&self, handed: Handed) -> Result<(), Handed> {
        let mut state = self.state();
        if state.is_closed {
            return Err(handed);
        }
        state.handed.push(handed);
        drop(state);
        self.notify.notify_one();
        Ok(())
    }

    /// Waits until something is handed over, and takes all that was. May answer with nothing.
    pub async fn handed(&self) -> Vec<Handed> {
        self.notify.notified().await;
        self.state().all_handed()
    }

    /// From now on nothing is handed over any more. Answers what was and is not taken yet.
    pub fn close(&self) -> Vec<Handed> {
        let mut state = self.state();
        state.is_closed = true;
        state.all_handed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_back(&mut self, (source, size): Item<'_>) -> &mut Offer {
        let offer = self.offers.get_mut(source).expect("room was taken on an offer");
        offer.taken = Room { events: offer.taken.events - 1, bytes: offer.taken.bytes - size };
        offer
    }

    /// What the worker is told uses its offer up: from then on it counts for itself what it holds.
    fn all_handed(&mut self) -> Vec<Handed> {
        let handed = std::mem::take(&mut self.handed);
        for claim in handed.iter().flat_map(|handed| &handed.claims) {
            let room = &mut self.give_back((&claim.source, claim.size())).room;
            *room = Room { events: room.events.saturating_sub(1), bytes: room.bytes.saturating_sub(claim.size()) };
        }
        handed
    }
}
