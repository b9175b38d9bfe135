//! Stores that find, redrive, erase and prune wrongly.

use super::{Wrong, WrongStore};
use bytes::Bytes;
use std::time::Duration;
use surehook::ports::{Erased, Pruned, Redriven, Retention, StoreError};
use surehook::search::EventRecord;
use surehook_core::admission::Fingerprint;
use surehook_core::event::{DeliveryState, Reason, Status};
use surehook_core::id::{EventId, Fence};

impl WrongStore {
    pub(super) fn wrong_find(&self, event: EventId) -> Result<Option<EventRecord>, StoreError> {
        let mut found = self.memory.transact(|tables, _| tables.find(event));
        match (self.wrong, &mut found) {
            (Wrong::HistoryNewestFirst, Some(found)) => found.history.reverse(),
            (Wrong::UnknownIsAnError, None) => {
                return Err(StoreError::Rejected("there is no such event".into()));
            }
            _ => {}
        }
        Ok(found)
    }

    pub(super) fn wrong_redrive(&self, event: EventId) -> Result<Redriven, StoreError> {
        self.memory.transact(|tables, now| {
            let before = tables.deliveries.get(&event).copied();
            if let (Wrong::RedrivesWhatIsAlive, Some(row)) =
                (self.wrong, tables.deliveries.get_mut(&event))
            {
                row.delivery = DeliveryState {
                    status: Status::DeadLettered,
                    reason: Some(Reason::Permanent),
                    ..row.delivery
                };
            }
            let mut redriven = tables.redrive(now, event);
            match (self.wrong, tables.deliveries.get_mut(&event), before) {
                (Wrong::RedriveKeepsTheBudget, Some(row), Some(before)) => {
                    row.delivery.budget_from = before.delivery.budget_from;
                }
                (Wrong::RedriveForgetsAttempts, Some(row), _) => row.delivery.attempt = 0,
                (Wrong::RedrivesWhatIsNot, None, _) => redriven = Redriven::Queued,
                _ => {}
            }
            Ok(redriven)
        })
    }

    pub(super) fn wrong_redrive_delivered(&self, event: EventId) -> Result<Redriven, StoreError> {
        self.memory.transact(|tables, now| {
            if let (Wrong::SendsNothingOnceMore, Some(row)) =
                (self.wrong, tables.events.get_mut(&event))
            {
                row.erased_at = None;
            }
            if self.wrong == Wrong::DeliversAgainWhateverItIs && tables.events.contains_key(&event)
            {
                tables.deliveries.remove(&event);
                tables.ended.remove(&event);
            }
            let redriven = tables.redrive_delivered(now, event);
            if let (Redriven::Queued, Some(row)) = (redriven, tables.deliveries.get_mut(&event)) {
                match self.wrong {
                    Wrong::RedrivesDeliveredAsNew => row.delivery = DeliveryState::accepted(),
                    Wrong::RedrivesDeliveredUnderAnOldFence => row.delivery.fence = Fence(0),
                    _ => {}
                }
            }
            Ok(redriven)
        })
    }

    pub(super) fn wrong_erase(
        &self,
        kept: Duration,
        mut after: Option<EventId>,
        limit: u32,
    ) -> Result<Erased, StoreError> {
        self.memory.transact(|tables, now| {
            if self.wrong == Wrong::ErasesWithoutThePage {
                after = None;
            }
            let before = tables.clone();
            let mut erased = tables.erase(now, kept, after, limit);
            match self.wrong {
                Wrong::SaysErasedAndKeeps => *tables = before,
                Wrong::ErasesDeadLetters | Wrong::ErasesByReception => {
                    let is_late = |id: &EventId| match tables.status(*id) {
                        Status::DeadLettered => self.wrong == Wrong::ErasesDeadLetters,
                        Status::Delivered => self.wrong == Wrong::ErasesByReception,
                        Status::Queued | Status::Processing | Status::Retrying => false,
                    };
                    let late: Vec<EventId> =
                        tables.events.keys().copied().filter(is_late).collect();
                    for id in late {
                        let row = tables.events.get_mut(&id).expect("the event exists");
                        if row.erased_at.is_none() && row.received_at + kept <= now {
                            (row.event.body, row.erased_at) = (Bytes::new(), Some(now));
                            erased.erased += 1;
                        }
                    }
                }
                Wrong::ErasesTheFingerprint => {
                    for row in tables.events.values_mut().filter(|row| row.erased_at.is_some()) {
                        row.event.fingerprint = Fingerprint::of(b"");
                    }
                }
                _ => {}
            }
            Ok(erased)
        })
    }

    pub(super) fn wrong_prune(
        &self,
        mut retention: Retention,
        mut after: Option<EventId>,
        limit: u32,
    ) -> Result<Pruned, StoreError> {
        self.memory.transact(|tables, now| {
            match self.wrong {
                Wrong::OneRetention => retention.dead_lettered = retention.delivered,
                Wrong::IgnoresThePage => after = None,
                _ => {}
            }
            let before = tables.clone();
            let looked_at = before
                .events
                .keys()
                .filter(|id| after.is_none_or(|after| **id > after))
                .take(limit as usize);
            let mut pruned = tables.prune(now, retention, after, limit);
            match self.wrong {
                Wrong::LeavesAttempts => tables.attempts = before.attempts,
                Wrong::PassNeverEnds => pruned.reached.last = looked_at.last().copied(),
                Wrong::PassEndsAtWhatIsYoung => {
                    let soonest = now - retention.delivered.min(retention.dead_lettered);
                    pruned.reached.last =
                        pruned.reached.last.filter(|id| before.events[id].received_at <= soonest);
                }
                Wrong::FrontNeverEnds => pruned.reached.is_before_kept = true,
                Wrong::SaysTwiceAsMany => pruned.deleted *= 2,
                Wrong::PrunesWhatIsOwed => {
                    let old: Vec<EventId> = looked_at
                        .copied()
                        .filter(|id| before.events[id].received_at + Duration::from_hours(1) < now)
                        .collect();
                    for event in &old {
                        tables.events.remove(event);
                        tables.deliveries.remove(event);
                    }
                    pruned.deleted = old.len() as u64;
                }
                Wrong::KeysOutliveTheirEvents => {
                    (tables.keys, tables.events) = (before.keys, before.events);
                }
                _ => {}
            }
            Ok(pruned)
        })
    }
}
