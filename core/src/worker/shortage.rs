//! What a worker does while its process lacks a resource for deliveries, such as file descriptors.
//! It suspends deliveries and claims, and releases what it could not send. That costs no event an
//! attempt, and shows nothing about a destination.

use super::Worker;
use crate::time::Instant;
use core::time::Duration;

/// The shortage of a resource, as shown by failed deliveries.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// The end of the suspension. `None` if there is no shortage.
    pub(super) until: Option<Instant>,
    /// The number of suspensions in a row with no delivery sent between them.
    count: u32,
    /// A suspension that is not reported yet.
    pub(super) untold: Option<Duration>,
}

impl Worker {
    /// A delivery could not be sent, because a resource is missing. Deliveries that started
    /// together also fail together, so a running suspension is not prolonged.
    pub(super) fn suspend(&mut self, now: Instant) {
        if self.shortage.until.is_some() {
            return;
        }
        let doubled =
            self.settings.shortage_initial.saturating_mul(1 << self.shortage.count.min(20));
        self.shortage.count = self.shortage.count.saturating_add(1);
        let wait =
            self.jittered(doubled.min(self.settings.shortage_max), u64::from(self.shortage.count));
        self.shortage.until = Some(now + wait);
        self.shortage.untold = Some(wait);
    }

    /// A delivery was sent: the shortage has ended.
    pub(super) fn was_sent(&mut self) {
        self.shortage.count = 0;
    }
}
