//! What a worker does when the configuration was read again: it replaces its sources and their
//! policies, and keeps what it has learned, claimed and sent.
//!
//! The rule for leases: the store holds an event for the lease of the claim. The new policy does not change that. So a lease in memory is at most the lease of that
//! claim, and a delivery starts only if it covers the new timeout.

use super::queue::{Offered, SourceQueue};
use super::{Phase, Worker};
use crate::source::{Policy, SourceName};
use crate::time::Instant;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

impl Worker {
    /// Replaces the sources and their policies. During the shutdown there is nothing to replace: no
    /// delivery starts any more, and those in flight end under the policies that they had.
    pub(super) fn reconfigure(
        &mut self,
        now: Instant,
        sources: Vec<(SourceName, Policy)>,
        max_held_bytes: usize,
    ) {
        if self.phase != Phase::Running {
            return;
        }
        self.settings.max_held_bytes = max_held_bytes;
        let mut configured = BTreeSet::new();
        for (source, policy) in sources {
            let index = match self.by_source.get(&source) {
                Some(&index) => {
                    self.replace(now, index, policy);
                    index
                }
                None => self.add(source, policy),
            };
            configured.insert(index);
        }
        for index in 0..self.queues.len() {
            if !configured.contains(&index) {
                self.remove(now, index);
            }
        }
        self.moved_breakers.retain(|(source, _)| {
            self.by_source.get(source).is_some_and(|index| configured.contains(index))
        });
        self.memory.resize(max_held_bytes, &self.queues);
        for index in 0..self.queues.len() {
            self.queues[index].offered = Offered::default();
            self.refresh(index);
        }
    }

    /// Adds a source. Nothing is known of it, so the next claim includes it.
    fn add(&mut self, source: SourceName, policy: Policy) -> usize {
        let index = self.queues.len();
        self.by_source.insert(source.clone(), index);
        self.queues.push(SourceQueue::new(source, policy));
        for agenda in [&mut self.expiring, &mut self.rated, &mut self.opening_half] {
            agenda.add();
        }
        index
    }

    /// Replaces the policy of a source, which may have been removed before. Waiting events whose
    /// leases do not cover a delivery under the new policy are released by the next step.
    fn replace(&mut self, now: Instant, index: usize, policy: Policy) {
        let queue = &mut self.queues[index];
        if queue.reconfigure(now, policy) {
            self.moved_breakers.push_back((queue.source.clone(), queue.breaker));
        }
        let mut ahead = core::mem::take(&mut queue.ahead);
        for held in &mut ahead {
            held.start_by = queue.start_by(held.lease);
        }
        queue.ahead = ahead;
        if !queue.is_ahead_of_its_rate {
            self.rated.set(index, None);
        }
    }

    /// Removes a source. Its queue stays for the deliveries in flight, and for events that it gets
    /// from a claim in flight or an old offer. It is used again if the source is added again.
    fn remove(&mut self, now: Instant, index: usize) {
        self.queues[index].remove();
        self.rated.set(index, None);
        for held in core::mem::take(&mut self.queues[index].ahead) {
            self.release(now, index, held);
        }
    }
}
