//! Stores that prune, erase, cap due times, and check themselves wrongly.

use super::{Wrong, WrongStore};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::ready;
use std::collections::BTreeSet;
use std::time::Duration;
use surehook::ports::{
    Erased, EventStore, MaintenanceStore, NewEvent, Pruned, Retention, StoreCall, StoreError,
};
use surehook_core::admission::Fingerprint;
use surehook_core::due::Bound;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::source::SourceName;

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
                Wrong::LeavesActions => tables.actions = before.actions,
                Wrong::PassNeverEnds => pruned.reached.last = looked_at.last().copied(),
                Wrong::PassEndsAtWhatIsYoung => {
                    let soonest = now - retention.delivered.min(retention.dead_lettered);
                    pruned.reached.last =
                        pruned.reached.last.filter(|id| before.events[id].received_at <= soonest);
                }
                Wrong::FrontNeverEnds => pruned.reached.behind = Some(Duration::from_hours(1)),
                Wrong::CountsDiscarded => {
                    pruned.dead_lettered += std::mem::take(&mut pruned.discarded);
                }
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
                Wrong::ErasesAllButTheQuery => {
                    for (id, row) in &mut tables.events {
                        row.event.query = before.events[id].event.query.clone();
                    }
                }
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

    fn cap_due_times(&self, mut bounds: Vec<Bound>, mut limit: u32) -> StoreCall<'_, u64> {
        let capped = self.memory.transact(|tables, now| {
            let first = bounds.first().cloned();
            for bound in &mut bounds {
                let Some(first) = &first else { break };
                match self.wrong {
                    Wrong::CapsWithinTheHorizon => bound.horizon = Duration::ZERO,
                    Wrong::CapsToNow => bound.lease = Duration::ZERO,
                    Wrong::OneHorizonForAll => bound.horizon = first.horizon,
                    Wrong::OneLeaseForAllCaps => bound.lease = first.lease,
                    _ => {}
                }
            }
            if let (Wrong::CapsEverySource, Some(first)) = (self.wrong, first) {
                let sources: BTreeSet<SourceName> =
                    tables.events.values().map(|row| row.event.source.clone()).collect();
                bounds =
                    sources.into_iter().map(|source| Bound { source, ..first.clone() }).collect();
            }
            if self.wrong == Wrong::CapsWithoutLimit {
                limit = u32::MAX;
            }
            let mut beyond = tables.beyond(now, &bounds, u32::MAX);
            match self.wrong {
                Wrong::CapsNothing => beyond.clear(),
                Wrong::CapsTheLatestFirst => beyond.reverse(),
                _ => {}
            }
            beyond.truncate(limit as usize);
            for (event, lease) in &beyond {
                tables.cap_due_time(now, *event, *lease);
                if self.wrong == Wrong::CapChangesTheFence {
                    let delivery = &mut tables.deliveries.get_mut(event).expect("a row").delivery;
                    delivery.fence = delivery.fence.next();
                }
            }
            beyond.len() as u64
        });
        ready(Ok(capped)).boxed()
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
