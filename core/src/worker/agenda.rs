//! When something is next due of each lane: at most one time a lane, and the earliest of all at hand.

use crate::time::Instant;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

#[derive(Debug)]
pub(super) struct Agenda {
    at: Vec<Option<Instant>>,
    in_order: BTreeSet<(Instant, usize)>,
}

impl Agenda {
    /// Nothing is due of any of so many lanes.
    pub(super) fn new(lanes: usize) -> Self {
        Self { at: alloc::vec![None; lanes], in_order: BTreeSet::new() }
    }

    /// Something of this lane is due at that time, or nothing is. It was due at no other time, from now on.
    pub(super) fn set(&mut self, lane: usize, at: Option<Instant>) {
        let before = core::mem::replace(&mut self.at[lane], at);
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.in_order.remove(&(before, lane));
        }
        if let Some(at) = at {
            self.in_order.insert((at, lane));
        }
    }

    /// What is due first: when, and of which lane; of lanes that are due together, of the first.
    pub(super) fn first(&self) -> Option<(Instant, usize)> {
        self.in_order.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn a_lane_is_due_at_the_time_it_was_given_last() {
        let at = |secs| Instant::from_origin(Duration::from_secs(secs));
        let mut agenda = Agenda::new(3);
        assert_eq!(agenda.first(), None);
        agenda.set(2, Some(at(5)));
        agenda.set(0, Some(at(7)));
        assert_eq!(agenda.first(), Some((at(5), 2)));
        agenda.set(2, Some(at(9)));
        agenda.set(1, Some(at(7)));
        assert_eq!(agenda.first(), Some((at(7), 0)), "the first of two that are due together");
        agenda.set(0, None);
        agenda.set(1, None);
        assert_eq!(agenda.first(), Some((at(9), 2)));
        agenda.set(2, None);
        assert_eq!(agenda.first(), None);
    }
}
