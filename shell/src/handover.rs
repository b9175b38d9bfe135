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

/// The offers of one worker, and what was handed over on them and is not taken yet. Bounded by what is offered.
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
    room: u32,
    lease: Duration,
    /// So much of the room is taken, by events that the worker does not know of yet.
    taken: u32,
}

/// Events that were claimed as they were stored, to be handed over together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Before they were sent to the store: their leases are counted from here.
    pub since: Instant,
    /// The events.
    pub claims: Vec<Claim>,
}

impl Handover {
    /// The worker has room for so many new events of a source, besides those that it knows of.
    pub fn offer(&self, source: SourceName, room: u32, lease: Duration) {
        let mut state = self.state();
        let offer = state.offers.entry(source).or_default();
        (offer.room, offer.lease) = (room, lease);
    }

    /// Takes room for one event of each source that is named, where there is some, and answers the leases. What is taken is
    /// handed over or given back.
    pub fn take<'a>(&self, sources: impl IntoIterator<Item = &'a SourceName>) -> Vec<Option<Duration>> {
        let mut state = self.state();
        let is_closed = state.is_closed;
        let mut take = |source| {
            let offer = state.offers.get_mut(source).filter(|offer| !is_closed && offer.taken < offer.room)?;
            offer.taken += 1;
            Some(offer.lease)
        };
        sources.into_iter().map(&mut take).collect()
    }

    /// Gives room back that was taken for one event of each source that is named.
    pub fn give_back<'a>(&self, sources: impl IntoIterator<Item = &'a SourceName>) {
        self.state().give_back(sources);
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
    fn give_back<'a>(&mut self, sources: impl IntoIterator<Item = &'a SourceName>) {
        for source in sources {
            self.offers.get_mut(source).expect("room was taken on an offer").taken -= 1;
        }
    }

    fn all_handed(&mut self) -> Vec<Handed> {
        let handed = std::mem::take(&mut self.handed);
        self.give_back(handed.iter().flat_map(|handed| &handed.claims).map(|claim| &claim.source));
        handed
    }
}
