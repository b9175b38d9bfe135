//! The next due time of each queue, and the earliest of all.

use crate::time::Instant;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

#[derive(Debug)]
pub(super) struct Agenda {
    at: Vec<Option<Instant>>,
    in_order: BTreeSet<(Instant, usize)>,
}

impl Agenda {
    /// An agenda in which no queue has a due time.
    pub(super) fn new(queues: usize) -> Self {
        Self { at: alloc::vec![None; queues], in_order: BTreeSet::new() }
    }

    /// Adds a queue without a due time, after the last one.
    pub(super) fn add(&mut self) {
        self.at.push(None);
    }

    /// Replaces the due time of a queue. `None` removes it.
    pub(super) fn set(&mut self, queue: usize, at: Option<Instant>) {
        let before = core::mem::replace(&mut self.at[queue], at);
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.in_order.remove(&(before, queue));
        }
        if let Some(at) = at {
            self.in_order.insert((at, queue));
        }
    }

    /// The earliest due time and its queue. If several queues are due then, the first of them.
    pub(super) fn first(&self) -> Option<(Instant, usize)> {
        self.in_order.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn a_queue_is_due_at_its_last_set_time() {
        let at = |secs| Instant::from_origin(Duration::from_secs(secs));
        let mut agenda = Agenda::new(3);
        assert_eq!(agenda.first(), None);
        agenda.set(2, Some(at(5)));
        agenda.set(0, Some(at(7)));
        assert_eq!(agenda.first(), Some((at(5), 2)));
        agenda.set(2, Some(at(9)));
        agenda.set(1, Some(at(7)));
        assert_eq!(
            agenda.first(),
            Some((at(7), 0)),
            "the first of two queues that are due together"
        );
        agenda.set(0, None);
        agenda.set(1, None);
        assert_eq!(agenda.first(), Some((at(9), 2)));
        agenda.set(2, None);
        assert_eq!(agenda.first(), None);
        agenda.add();
        agenda.set(3, Some(at(1)));
        assert_eq!(agenda.first(), Some((at(1), 3)));
    }
}
