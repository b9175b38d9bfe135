//! The mailbox between the intake and the worker of one process: the worker's offers and what it took over go one way,
//! events that were claimed on insert go the other. What may be claimed is decided by [`surehook_core::intake`].
//!
//! Whatever is lost here with the process is under a lease, and becomes claimable when that ends.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::intake::{Capacity, Input};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::worker::exchange::Claim;
use tokio::sync::Notify;

/// The mailbox. It holds at most one offer for each source between two events that were taken over, and what is handed over
/// is bounded by the offers.
#[derive(Debug, Default)]
pub struct Handover {
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// For the intake, oldest first.
    inputs: Vec<Input>,
    handed: Vec<Handed>,
    is_closed: bool,
}

/// Events that were claimed on insert by one call, to be handed over together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// When the call began: their leases are counted from here.
    pub since: Instant,
    /// The events.
    pub claims: Vec<Claim>,
}

impl Handover {
    /// The worker has this much room for new events of a source, besides those that it knows of.
    pub fn offer(&self, source: SourceName, events: u32, bytes: usize, lease: Duration) {
        let capacity = Capacity { events, bytes };
        let mut state = self.state();
        // An offer that the intake has not read is replaced, unless something was taken over since.
        let unread = state.inputs.iter_mut().rev().map_while(|input| match input {
            Input::Offered { source, capacity, lease } => Some((source, capacity, lease)),
            _ => None,
        });
        match unread.into_iter().find(|(of, ..)| **of == source) {
            Some((_, unread, unread_lease)) => (*unread, *unread_lease) = (capacity, lease),
            None => state.inputs.push(Input::Offered { source, capacity, lease }),
        }
    }

    /// What the intake's machine is to be told.
    pub fn inputs(&self) -> Vec<Input> {
        std::mem::take(&mut self.state().inputs)
    }

    /// Hands events over.
    ///
    /// # Errors
    ///
    /// The events themselves, if the worker takes no more. They are claimed, so the store has to be told.
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

    /// Waits until something is handed over, and takes it. May return nothing.
    pub async fn handed(&self) -> Vec<Handed> {
        self.notify.notified().await;
        self.state().take_over()
    }

    /// From now on nothing is handed over any more. Returns what was and is not taken yet.
    pub fn close(&self) -> Vec<Handed> {
        let mut state = self.state();
        state.is_closed = true;
        let handed = state.take_over();
        state.inputs.push(Input::HandoverClosed);
        handed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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
