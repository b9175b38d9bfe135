//! Stores that prune, erase, and check themselves wrongly.

use super::{Wrong, WrongStore};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::ready;
use std::time::Duration;
use surehook::ports::{
    Erased, EventStore, MaintenanceStore, NewEvent, Pruned, Retention, StoreCall, StoreError,
};
use surehook_core::admission::Fingerprint;
use surehook_core::event::Status;
use surehook_core::id::EventId;

impl MaintenanceStore for WrongStore {
    fn prune(
        &self,
        mut retention: Retention,
        mut after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        let done = self.memory.transact(|tables, now| {
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
        });
        ready(done).boxed()
    }

    fn erase(
        &self,
        kept: Duration,
        mut after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Erased> {
        let done = self.memory.transact(|tables, now| {
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
        });
        ready(done).boxed()
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        let is_in_order = self.wrong != Wrong::NeverInOrder;
        ready(if is_in_order {
            Ok(())
        } else {
            Err(StoreError::Unavailable("never in order".into()))
        })
        .boxed()
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        if self.wrong == Wrong::ProbesStay {
            return self.accept(vec![event]).map(|stored| stored.map(drop)).boxed();
        }
        self.memory.probe(event)
    }
}
