//! Stores that list, redrive in bulk, count and pause wrongly.

use super::{Wrong, WrongStore};
use surehook::ports::StoreError;
use surehook::search::{EventFilter, EventPage, PageSize, RedrivenPage, SourceRecord, Span};
use surehook_core::event::Status;
use surehook_core::id::EventId;
use surehook_core::source::SourceName;

impl WrongStore {
    pub(super) fn wrong_list(
        &self,
        mut filter: EventFilter,
        mut span: Span,
        mut size: PageSize,
    ) -> Result<EventPage, StoreError> {
        match self.wrong {
            Wrong::ListsEverySource => filter.source = None,
            Wrong::KeyWithoutItsSource if filter.key.is_some() => filter.source = None,
            Wrong::ListsWithoutThePage => span.until = EventId::MAX,
            Wrong::ListsOnePageTooMany => span.until = span.until.successor(),
            Wrong::LooksAtAll => size.looks = u32::MAX,
            _ => {}
        }
        let mut page = self.memory.transact(|tables, _| tables.list(&filter, span, size));
        match self.wrong {
            Wrong::OldestFirst => page.events.reverse(),
            Wrong::ListsOneTooFew => {
                page.events.pop();
            }
            Wrong::ListsTheFirstAttempt => {
                for event in &mut page.events {
                    let found = self.memory.transact(|tables, _| tables.find(event.id));
                    event.history =
                        found.into_iter().flat_map(|found| found.history).take(1).collect();
                }
            }
            _ => {}
        }
        Ok(page)
    }

    pub(super) fn wrong_redrive_all(
        &self,
        mut filter: EventFilter,
        span: Span,
        size: PageSize,
        mut dry_run: bool,
    ) -> Result<RedrivenPage, StoreError> {
        let is_counted_only = dry_run;
        match self.wrong {
            Wrong::RedrivesOnADryRun => dry_run = false,
            Wrong::RedrivesWhatDoesNotMatch => (filter.reason, filter.status_code) = (None, None),
            Wrong::RedrivesEverySource => filter.source = None,
            Wrong::CountsOnADryRunOnly => dry_run = true,
            _ => {}
        }
        self.memory.transact(|tables, now| {
            let before = tables.clone();
            let mut page = tables.redrive_all(now, &filter, span, size, dry_run);
            if self.wrong == Wrong::CountsOnADryRunOnly && !is_counted_only {
                page.redriven = 0;
            }
            if self.wrong == Wrong::RedriveOfAllKeepsTheBudget {
                for (event, row) in &mut tables.deliveries {
                    row.delivery.budget_from = before.deliveries[event].delivery.budget_from;
                }
            }
            Ok(page)
        })
    }

    pub(super) fn wrong_sources(
        &self,
        names: Vec<SourceName>,
        mut count_to: u32,
    ) -> Result<Vec<SourceRecord>, StoreError> {
        if self.wrong == Wrong::CountsWithoutEnd {
            count_to = u32::MAX;
        }
        let mut records = self.memory.transact(|tables, now| tables.sources(now, &names, count_to));
        match self.wrong {
            Wrong::ForgetsSourcesWithoutConfiguration => {
                records.retain(|record| names.iter().any(|name| name.as_str() == record.source));
            }
            Wrong::CountsEveryStatusAsQueued => records.iter_mut().for_each(|record| {
                record.queued += record.processing + record.retrying;
                (record.processing, record.retrying) = (0, 0);
            }),
            Wrong::BehindByWhatIsNotDue => records.iter_mut().for_each(|record| {
                record.behind.get_or_insert_default();
            }),
            _ => {}
        }
        Ok(records)
    }

    pub(super) fn wrong_pause(&self, source: SourceName, paused: bool) -> Result<bool, StoreError> {
        self.memory.transact(|tables, now| {
            let is_ignored = match self.wrong {
                Wrong::ForgetsToPause => paused,
                Wrong::NeverResumes => !paused,
                _ => false,
            };
            if is_ignored {
                return Ok(true);
            }
            if self.wrong == Wrong::PausesEverySource && paused {
                let all: Vec<SourceName> =
                    tables.events.values().map(|row| row.event.source.clone()).collect();
                tables.paused.extend(all.into_iter().map(|source| (source, now)));
            }
            if self.wrong == Wrong::PausesSettling && paused {
                for row in tables
                    .deliveries
                    .values_mut()
                    .filter(|row| row.delivery.status == Status::Processing)
                {
                    row.delivery.fence = row.delivery.fence.next();
                }
            }
            let is_changed = tables.pause(now, source, paused);
            Ok(is_changed || self.wrong == Wrong::AlwaysSaysChanged)
        })
    }
}
