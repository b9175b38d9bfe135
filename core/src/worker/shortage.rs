//! What a worker does while its process lacks a resource that a delivery needs, such as file descriptors: it sends and
//! claims nothing for a while, and what it could not send is given back. That is no event's failed attempt, and says
//! nothing about a destination.

use super::Worker;
use crate::time::Instant;
use core::time::Duration;

/// The process's lack of a resource, as its deliveries show it.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Nothing is sent or claimed before then; `None`: there is no shortage.
    pub(super) until: Option<Instant>,
    /// How many times in a row deliveries were suspended with none sent in between.
    count: u32,
    /// A suspension that was not told yet.
    pub(super) untold: Option<Duration>,
}

impl Worker {
    /// A delivery could not be sent for want of a resource. Those that began together fail together: a suspension that
    /// is under way is not prolonged.
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

    /// A delivery was sent: there is no shortage any more.
    pub(super) fn was_sent(&mut self) {
        self.shortage.count = 0;
    }
}
