//! The in-memory channel between the intake and the worker of one process. The worker sends its
//! offers and reports which events it took over. The intake sends events that were claimed on
//! insert. [`surehook_core::intake`] decides what may be claimed on insert.
//!
//! All events in this channel are under a lease. If they are lost with the process, they become
//! claimable when their leases end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::intake::{Capacity, Input};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::worker::claims::Claim;
use tokio::sync::Notify;

/// The channel. It holds at most one offer for each source between two events that were taken over.
/// The offers bound the number of events in it.
#[derive(Debug, Default)]
pub struct Handover {
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Inputs for the intake, oldest first.
    inputs: Vec<Input>,
    handed: Vec<Handed>,
    is_closed: bool,
}

/// Events that one store call claimed on insert. They are handed over together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// When the call started. The leases are counted from here.
    pub since: Instant,
    pub claims: Vec<Claim>,
}

impl Handover {
    /// Offers the worker's free capacity for new events of a source, in addition to the events that
    /// it already has.
    pub fn offer(&self, source: SourceName, events: u32, bytes: usize, lease: Duration) {
        let capacity = Capacity { events, bytes };
        let mut state = self.state();
        // Replaces an offer that the intake has not read, unless events were taken over after it.
        let unread = state.inputs.iter_mut().rev().map_while(|input| match input {
            Input::Offered { source, capacity, lease } => Some((source, capacity, lease)),
            _ => None,
        });
        match unread.into_iter().find(|(of, ..)| **of == source) {
            Some((_, unread, unread_lease)) => (*unread, *unread_lease) = (capacity, lease),
            None => state.inputs.push(Input::Offered { source, capacity, lease }),
        }
    }

    /// Takes the inputs for the intake's state machine.
    pub fn inputs(&self) -> Vec<Input> {
        std::mem::take(&mut self.state().inputs)
    }

    /// Hands events over to the worker.
    ///
    /// # Errors
    ///
    /// Returns the events if the handover is closed. They are claimed, so the caller must release
    /// them.
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

    /// Waits until events are handed over, and takes them. The result can be empty.
    pub async fn handed(&self) -> Vec<Handed> {
        self.notify.notified().await;
        self.state().take_over()
    }

    /// Ends all offers. Returns the events that the worker has not taken yet. Events of calls that
    /// began before can still be handed over.
    pub fn withdraw(&self) -> Vec<Handed> {
        let mut state = self.state();
        let handed = state.take_over();
        state.end_offers(Input::OffersWithdrawn);
        handed
    }

    /// Closes the handover. Returns the events that the worker has not taken yet.
    pub fn close(&self) -> Vec<Handed> {
        let mut state = self.state();
        state.is_closed = true;
        let handed = state.take_over();
        state.end_offers(Input::HandoverClosed);
        handed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Adds an input that ends all offers. Unread offers are removed: in a process without an intake
    /// nothing reads them.
    fn end_offers(&mut self, end: Input) {
        self.inputs.retain(|input| !matches!(input, Input::Offered { .. }));
        if self.inputs.last() != Some(&end) {
            self.inputs.push(end);
        }
    }

    fn take_over(&mut self) -> Vec<Handed> {
        let handed = std::mem::take(&mut self.handed);
        let taken = handed.iter().flat_map(|handed| &handed.claims);
        self.inputs.extend(
            taken
                .map(|claim| Input::TakenOver { source: claim.source.clone(), size: claim.size() }),
        );
        handed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::FutureExt;
    use jiff::Timestamp;
    use surehook_core::id::EventId;

    #[test]
    fn inputs_that_nothing_reads_do_not_grow_with_each_reload() {
        let (handover, orders) = (Handover::default(), SourceName::parse("orders").unwrap());
        for _ in 0..3 {
            handover.offer(orders.clone(), 1, 10, Duration::from_secs(1));
            handover.withdraw();
        }
        assert_eq!(handover.inputs(), [Input::OffersWithdrawn]);
    }

    #[test]
    fn an_offer_replaces_only_an_unread_one_after_the_last_events_taken_over() {
        let (handover, orders) = (Handover::default(), SourceName::parse("orders").unwrap());
        let lease = Duration::from_secs(20);
        let offered = |events| Input::Offered {
            source: orders.clone(),
            capacity: Capacity { events, bytes: 100 },
            lease,
        };
        let (at, empty) = (Timestamp::UNIX_EPOCH, Bytes::new);
        let claim = Claim::first(EventId::MIN, orders.clone(), at, empty(), empty(), empty());
        handover.offer(orders.clone(), 5, 100, lease);
        handover.offer(orders.clone(), 4, 100, lease);
        handover.hand(Handed { since: Instant::ZERO, claims: vec![claim] }).unwrap();
        assert_eq!(handover.handed().now_or_never().unwrap().len(), 1);
        handover.offer(orders.clone(), 3, 100, lease);
        handover.offer(orders.clone(), 2, 100, lease);
        let taken_over = Input::TakenOver { source: orders.clone(), size: 0 };
        assert_eq!(handover.inputs(), [offered(4), taken_over, offered(2)]);
        handover.offer(orders.clone(), 1, 100, lease);
        assert_eq!(handover.withdraw(), []);
        handover.offer(orders.clone(), 9, 100, lease);
        assert_eq!(handover.inputs(), [Input::OffersWithdrawn, offered(9)]);
    }
}
