//! Stores that accept wrongly.

use super::{Wrong, WrongStore};
use std::time::Duration;
use surehook::ports::{NewEvent, StoreError};
use surehook_core::admission::Stored;
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;

impl WrongStore {
    pub(super) fn wrong_accept(&self, batch: Vec<NewEvent>) -> Result<Vec<Stored>, StoreError> {
        let events: Vec<EventId> = batch.iter().map(|event| event.id).collect();
        let keys: Vec<(SourceName, IdempotencyKey)> = batch.iter().map(key).collect();
        self.memory.transact(|tables, now| match self.wrong {
            Wrong::NewIsDueLater => {
                let stored = tables.accept(now, batch)?;
                for event in events {
                    tables
                        .deliveries
                        .get_mut(&event)
                        .into_iter()
                        .for_each(|row| row.due_at = Some(now + Duration::from_hours(1)));
                }
                Ok(stored)
            }
            Wrong::SaysClaimedAndQueues => {
                let leases: Vec<_> = batch.iter().map(|event| event.lease).collect();
                let mut stored = tables.accept(
                    now,
                    batch.into_iter().map(|event| NewEvent { lease: None, ..event }).collect(),
                )?;
                for (stored, _) in stored
                    .iter_mut()
                    .zip(leases)
                    .filter(|(stored, lease)| **stored == Stored::Inserted && lease.is_some())
                {
                    *stored = Stored::Claimed { received_at: now };
                }
                Ok(stored)
            }
            Wrong::SaysClaimedAtAnotherTime => {
                let mut stored = tables.accept(now, batch)?;
                for stored in &mut stored {
                    if let Stored::Claimed { received_at } = stored {
                        *received_at += Duration::from_micros(1);
                    }
                }
                Ok(stored)
            }
            Wrong::ClaimsTheWholeBatch => {
                let lease = batch.iter().find_map(|event| event.lease);
                tables.accept(
                    now,
                    batch.into_iter().map(|event| NewEvent { lease, ..event }).collect(),
                )
            }
            Wrong::ClaimsWhatIsNewOfAPausedSource => {
                let paused = std::mem::take(&mut tables.paused);
                let stored = tables.accept(now, batch);
                tables.paused = paused;
                stored
            }
            Wrong::AnswersBeforeItStores => {
                let earlier =
                    std::mem::replace(&mut *self.unwritten.lock().unwrap(), batch.clone());
                tables.accept(now, earlier)?;
                tables.clone().accept(now, batch)
            }
            Wrong::NoUniqueness => {
                let stored = batch.into_iter().map(|event| {
                    tables.keys.remove(&key(&event));
                    tables.accept_one(now, event)
                });
                Ok(stored.collect())
            }
            Wrong::DeadlocksUnlessSorted if !keys.is_sorted() => {
                Err(StoreError::Conflict("deadlock detected".into()))
            }
            Wrong::OwnIdIsRejected
                if events.iter().any(|event| tables.events.contains_key(event)) =>
            {
                Err(StoreError::Rejected("the id is taken".into()))
            }
            Wrong::DuplicateFailsItsBatch
                if keys.iter().any(|key| tables.keys.contains_key(key)) =>
            {
                Err(StoreError::Rejected("the key is taken".into()))
            }
            Wrong::AnswersInTheOrderOfKeys => {
                let mut stored: Vec<_> = keys.into_iter().zip(tables.accept(now, batch)?).collect();
                stored.sort_by(|(one, _), (other, _)| one.cmp(other));
                Ok(stored.into_iter().map(|(_, stored)| stored).collect())
            }
            Wrong::DedupesWithoutSource => {
                let stored = batch.into_iter().map(|event| {
                    let same = tables
                        .keys
                        .iter()
                        .find(|((_, key), _)| *key == event.key)
                        .map(|(_, event)| *event);
                    if let Some(same) = same {
                        tables.keys.insert(key(&event), same);
                    }
                    tables.accept_one(now, event)
                });
                Ok(stored.collect())
            }
            Wrong::ExistingIsAlwaysQueued => {
                let mut stored = tables.accept(now, batch)?;
                for stored in &mut stored {
                    if let Stored::Existing { status, .. } = stored {
                        *status = Status::Queued;
                    }
                }
                Ok(stored)
            }
            Wrong::KeepsTheNewestBody => {
                let stored = tables.accept(now, batch.clone())?;
                for (event, stored) in batch.into_iter().zip(&stored) {
                    if let Stored::Existing { id, .. } = stored {
                        tables
                            .events
                            .get_mut(id)
                            .into_iter()
                            .for_each(|row| row.event.body = event.body.clone());
                    }
                }
                Ok(stored)
            }
            Wrong::PartOfARejectedBatchStays => batch
                .into_iter()
                .map(|event| Ok(tables.accept(now, vec![event])?.remove(0)))
                .collect(),
            Wrong::NothingIsRejected if batch.is_empty() => {
                Err(StoreError::Rejected("nothing".into()))
            }
            _ => tables.accept(now, batch),
        })
    }
}

fn key(event: &NewEvent) -> (SourceName, IdempotencyKey) {
    (event.source.clone(), event.key.clone())
}
