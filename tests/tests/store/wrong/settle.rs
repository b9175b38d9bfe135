//! Stores that settle wrongly.

use super::{Wrong, WrongStore};
use bytes::Bytes;
use std::time::Duration;
use surehook::ports::StoreError;
use surehook::search::AttemptEntry;
use surehook_core::event::Outcome;
use surehook_core::id::EventId;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::Settlement;

impl WrongStore {
    pub(super) fn wrong_settle(
        &self,
        mut batch: Vec<Settlement>,
    ) -> Result<Vec<EventId>, StoreError> {
        let events: Vec<EventId> = batch.iter().map(|settlement| settlement.event).collect();
        self.memory.transact(|tables, now| match self.wrong {
            Wrong::NeverRefuses => {
                tables.settle(now, &batch);
                Ok(Vec::new())
            }
            Wrong::StaleFailsItsBatch => {
                let mut after = tables.clone();
                if !after.settle(now, &batch).is_empty() {
                    return Err(StoreError::Conflict("a claim has moved on".into()));
                }
                *tables = after;
                Ok(Vec::new())
            }
            Wrong::LastOfABatchWins => {
                batch.reverse();
                Ok(tables.settle(now, &batch))
            }
            Wrong::RefusesByEventAlone => {
                let refused = tables.settle(now, &batch);
                let is_alone =
                    |event: &EventId| events.iter().filter(|other| *other == event).count() == 1;
                Ok(refused.into_iter().filter(is_alone).collect())
            }
            Wrong::RecordsWhatItRefuses => {
                let refused = tables.settle(now, &batch);
                for settlement in
                    batch.iter().filter(|settlement| refused.contains(&settlement.event))
                {
                    let entry = AttemptEntry {
                        attempt: settlement.attempt + 1,
                        ended_at: now,
                        took: None,
                        verdict: Verdict::Lost,
                        status_code: None,
                        error: None,
                        excerpt: Bytes::new(),
                    };
                    tables.attempts.insert((settlement.event, entry.attempt), entry);
                }
                Ok(refused)
            }
            Wrong::BareDeliveryHasNoEntry => {
                let refused = tables.settle(now, &batch);
                for settlement in batch.iter().filter(|settlement| settlement.record.is_none()) {
                    tables.attempts.remove(&(settlement.event, settlement.attempt));
                }
                Ok(refused)
            }
            Wrong::DeliveredStaysOwed => {
                let before = tables.deliveries.clone();
                let refused = tables.settle(now, &batch);
                for settlement in
                    batch.iter().filter(|settlement| settlement.outcome == Outcome::Delivered)
                {
                    tables
                        .deliveries
                        .extend(before.get(&settlement.event).map(|row| (settlement.event, *row)));
                }
                Ok(refused)
            }
            _ => {
                for settlement in &mut batch {
                    self.distort_settlement(settlement);
                    if self.wrong == Wrong::ForgetsTheFence {
                        tables
                            .deliveries
                            .get(&settlement.event)
                            .into_iter()
                            .for_each(|row| settlement.fence = row.delivery.fence);
                    }
                }
                Ok(tables.settle(now, &batch))
            }
        })
    }

    fn distort_settlement(&self, settlement: &mut Settlement) {
        match (self.wrong, &mut settlement.outcome) {
            (Wrong::ForgetsRecords, _) => settlement.record = None,
            (Wrong::EndsWhenItIsSettled, _) => {
                settlement.record.iter_mut().for_each(|record| record.ended_ago = Duration::ZERO);
            }
            (Wrong::RetriesAtOnce, Outcome::Retry { after }) => *after = Duration::ZERO,
            (Wrong::ReleaseBurnsItsAttempt, outcome @ Outcome::Release) => {
                *outcome = Outcome::CutOff;
            }
            _ => {}
        }
    }
}
