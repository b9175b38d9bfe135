//! Stores that find, redrive, list, count and pause wrongly.

use super::{Wrong, WrongStore};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::ready;
use jiff::Timestamp;
use surehook::ports::{Discarded, FoundBody, OperatorStore, Redriven, StoreCall, StoreError};
use surehook::search::{
    ActionEntry, ChangedPage, EventFilter, EventPage, EventRecord, FailureSummary, PageSize,
    RequestRecord, SourceRecord, Span, SummaryFilter, SummarySize,
};
use surehook_core::event::{Action, DeliveryState, DiscardScope, Reason, RedrivenBy, Status};
use surehook_core::id::{EventId, Fence};
use surehook_core::source::SourceName;
use surehook_core::verdict::Verdict;
use surehook_model::database::{Database, DeliveryRow};

impl OperatorStore for WrongStore {
    fn find(&self, event: EventId) -> StoreCall<'_, Option<EventRecord>> {
        let mut found = self.memory.transact(|tables, _| tables.find(event));
        match (self.wrong, &mut found) {
            (Wrong::HistoryNewestFirst, Some(found)) => found.history.reverse(),
            (Wrong::ActionsNewestFirst, Some(found)) => found.actions.reverse(),
            (Wrong::ActionsWithoutAttempts, Some(found)) => {
                found.actions.iter_mut().for_each(|entry| entry.attempt = 0);
            }
            (Wrong::UnknownIsAnError, None) => {
                return ready(Err(StoreError::Rejected("there is no such event".into()))).boxed();
            }
            _ => {}
        }
        ready(Ok(found)).boxed()
    }

    fn request(&self, event: EventId) -> StoreCall<'_, Option<RequestRecord>> {
        let (mut found, now) = self.memory.transact(|tables, now| (tables.request(event), now));
        match (self.wrong, &mut found) {
            (Wrong::ShowsNoQuery, Some(found)) => found.query = Bytes::new(),
            (Wrong::ReceivedWhenItIsShown, Some(found)) => found.received_at = now,
            (Wrong::ShowsErasedAsEmpty, Some(found)) => found.erased_at = None,
            _ => {}
        }
        ready(Ok(found)).boxed()
    }

    fn body(&self, event: EventId) -> StoreCall<'_, FoundBody> {
        let found = match (self.wrong, self.memory.transact(|tables, _| tables.body(event))) {
            (Wrong::ShowsTheBodyAsText, FoundBody::Found(body)) => {
                FoundBody::Found(String::from_utf8_lossy(&body).into_owned().into())
            }
            (Wrong::ShowsErasedAsEmpty, FoundBody::Erased) => FoundBody::Found(Bytes::new()),
            (_, found) => found,
        };
        ready(Ok(found)).boxed()
    }

    fn redrive(&self, event: EventId, mut by: RedrivenBy) -> StoreCall<'_, Redriven> {
        if self.wrong == Wrong::RecordsReplaysAsOperators {
            by = RedrivenBy::Operator;
        }
        let done = self.memory.transact(|tables, now| {
            let before = tables.deliveries.get(&event).copied();
            let actions = tables.actions.clone();
            if self.wrong == Wrong::RedriveLeavesDiscarded && tables.is_discarded(event) {
                return Ok(Redriven::WrongStatus(Status::DeadLettered));
            }
            if let (Wrong::RedrivesWhatIsAlive, Some(row)) =
                (self.wrong, tables.deliveries.get_mut(&event))
            {
                row.delivery = DeliveryState {
                    status: Status::DeadLettered,
                    reason: Some(Reason::Permanent),
                    ..row.delivery
                };
            }
            let mut redriven = tables.redrive(now, event, by);
            match (self.wrong, redriven) {
                (Wrong::RecordsNoRedrive, _) => tables.actions = actions,
                (Wrong::RecordsRefusedActions, Redriven::WrongStatus(_)) => {
                    let entry = ActionEntry { action: by.action(), at: now, attempt: 0 };
                    tables.actions.insert((event, Fence(0)), entry);
                }
                _ => {}
            }
            match (self.wrong, tables.deliveries.get_mut(&event), before) {
                (Wrong::RedriveKeepsTheBudget, Some(row), Some(before)) => {
                    row.delivery.budget_from = before.delivery.budget_from;
                }
                (Wrong::RedriveForgetsAttempts, Some(row), _) => row.delivery.attempt = 0,
                (Wrong::DiscardOutlivesARedrive, Some(row), Some(before)) => {
                    row.delivery.reason = before.delivery.reason;
                }
                (Wrong::RedrivesWhatIsNot, None, _) => redriven = Redriven::Queued,
                _ => {}
            }
            if let (Wrong::ReceivedAtTheRedrive, Some(row)) =
                (self.wrong, tables.events.get_mut(&event))
            {
                row.received_at = now;
            }
            Ok(redriven)
        });
        ready(done).boxed()
    }

    fn redrive_delivered(&self, event: EventId) -> StoreCall<'_, Redriven> {
        let done = self.memory.transact(|tables, now| {
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
            let actions = tables.actions.clone();
            let redriven = tables.redrive_delivered(now, event);
            if self.wrong == Wrong::RecordsNoRedelivery {
                tables.actions = actions;
            }
            if let (Redriven::Queued, Some(row)) = (redriven, tables.deliveries.get_mut(&event)) {
                match self.wrong {
                    Wrong::RedrivesDeliveredAsNew => row.delivery = DeliveryState::accepted(),
                    Wrong::RedrivesDeliveredUnderAnOldFence => row.delivery.fence = Fence(0),
                    _ => {}
                }
            }
            Ok(redriven)
        });
        ready(done).boxed()
    }

    fn list(
        &self,
        mut filter: EventFilter,
        mut span: Span,
        mut size: PageSize,
    ) -> StoreCall<'_, EventPage> {
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
            Wrong::KeyInOneSource if filter.key.is_some() => page.events.truncate(1),
            Wrong::ListsActions => {
                for event in &mut page.events {
                    let found = self.memory.transact(|tables, _| tables.find(event.id));
                    event.actions = found.map(|found| found.actions).unwrap_or_default();
                }
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
        ready(Ok(page)).boxed()
    }

    fn summary(
        &self,
        mut filter: SummaryFilter,
        mut size: SummarySize,
    ) -> StoreCall<'_, FailureSummary> {
        match self.wrong {
            Wrong::GroupsEverySource => filter.source = None,
            Wrong::GroupsWhatFailedBefore => filter.since = None,
            Wrong::LooksAtAllFailures => size.looks = u32::MAX,
            _ => {}
        }
        let mut tables = self.memory.tables();
        match self.wrong {
            Wrong::GroupsWhatIsDelivered => {
                let delivered: Vec<EventId> = tables.events.keys().copied().collect();
                for event in delivered {
                    let delivery = DeliveryState::accepted();
                    let row = DeliveryRow { delivery, due_at: Some(self.memory.now()) };
                    tables.deliveries.entry(event).or_insert(row);
                }
                for entry in tables.attempts.values_mut() {
                    if entry.verdict == Verdict::Delivered {
                        entry.verdict = Verdict::Transient;
                    }
                }
            }
            Wrong::GroupsByTheFirstAttempt => {
                tables.attempts.retain(|(_, attempt), _| *attempt == 1);
            }
            Wrong::GroupsWithoutTheExcerpt => {
                tables.attempts.values_mut().for_each(|entry| entry.excerpt = Bytes::new());
            }
            Wrong::GroupsByTheWholeExcerpt => tables.attempts.values_mut().for_each(|entry| {
                // The end of the excerpt moves to its beginning.
                entry.excerpt = entry.excerpt.iter().rev().copied().collect();
            }),
            Wrong::LooksAtOneEndOnly => {
                let mut waiting: Vec<_> =
                    tables.deliveries.iter().map(|(id, row)| (row.due_at, *id)).collect();
                waiting.sort_unstable();
                for (_, event) in waiting.iter().filter(|(due_at, _)| due_at.is_some()).skip(2) {
                    tables.deliveries.remove(event);
                }
            }
            _ => {}
        }
        if self.wrong == Wrong::SummarizesDiscarded {
            forget_discards(&mut tables);
        }
        let mut summary = tables.summary(&filter, size);
        match self.wrong {
            Wrong::GroupsSmallestFirst => summary.groups.reverse(),
            Wrong::SaysThatAllWasExamined => {
                (summary.partial, summary.has_more) = (Vec::new(), false);
            }
            _ => {}
        }
        ready(Ok(summary)).boxed()
    }

    fn redrive_all(
        &self,
        mut filter: EventFilter,
        span: Span,
        size: PageSize,
        mut dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        let is_counted_only = dry_run;
        match self.wrong {
            Wrong::RedrivesOnADryRun => dry_run = false,
            Wrong::RedrivesWhatDoesNotMatch => (filter.reason, filter.status_code) = (None, None),
            Wrong::RedrivesEverySource => filter.source = None,
            Wrong::CountsOnADryRunOnly => dry_run = true,
            _ => {}
        }
        let done = self.memory.transact(|tables, now| {
            let before = tables.clone();
            if self.wrong == Wrong::RedrivesDiscardedWithOthers {
                forget_discards(tables);
            }
            let mut page = tables.redrive_all(now, &filter, span, size, dry_run);
            if self.wrong == Wrong::CountsOnADryRunOnly && !is_counted_only {
                page.changed.clear();
            }
            if self.wrong == Wrong::RedrivesNameOneSource && page.count() > 0 {
                page.changed = [("a".to_owned(), page.count())].into();
            }
            match self.wrong {
                Wrong::RecordsNoBulkRedrive => tables.actions = before.actions.clone(),
                Wrong::RecordsOnADryRun if dry_run => {
                    let (letters, _) = tables.letters(&filter.of_dead_letters(), span, size);
                    for letter in letters {
                        let entry = ActionEntry { action: Action::Redriven, at: now, attempt: 0 };
                        tables.actions.insert((letter, Fence(0)), entry);
                    }
                }
                _ => {}
            }
            if self.wrong == Wrong::RedriveOfAllKeepsTheBudget {
                for (event, row) in &mut tables.deliveries {
                    row.delivery.budget_from = before.deliveries[event].delivery.budget_from;
                }
            }
            Ok(page)
        });
        ready(done).boxed()
    }

    fn discard(&self, event: EventId, scope: DiscardScope) -> StoreCall<'_, Discarded> {
        let done =
            self.memory.transact(|tables, now| Ok(self.discard_one(tables, now, event, scope)));
        ready(done).boxed()
    }

    fn discard_all(
        &self,
        mut filter: EventFilter,
        scope: DiscardScope,
        span: Span,
        size: PageSize,
        mut dry_run: bool,
    ) -> StoreCall<'_, ChangedPage> {
        match self.wrong {
            Wrong::DiscardsOnADryRun => dry_run = false,
            Wrong::DiscardsWhatDoesNotMatch => (filter.reason, filter.status_code) = (None, None),
            Wrong::DiscardsEverySource => filter.source = None,
            _ => {}
        }
        let done = self.memory.transact(|tables, now| {
            let scope = self.scope(scope);
            if self.wrong == Wrong::DiscardsInEveryScope && filter.source.is_none() {
                // The events of all sources, as if each were named.
                let waiting: Vec<EventId> = tables.deliveries.keys().copied().collect();
                for event in waiting {
                    let _ = tables.discard(now, event, scope);
                }
            }
            let (chosen, scope, page) = tables.discardable(now, &filter, scope, span, size);
            let actions = tables.actions.clone();
            if !dry_run {
                for event in chosen {
                    self.discard_one(tables, now, event, scope);
                }
            }
            if self.wrong == Wrong::RecordsNoBulkDiscard {
                tables.actions = actions;
            }
            Ok(page)
        });
        ready(done).boxed()
    }

    fn sources(
        &self,
        names: Vec<SourceName>,
        mut count_to: u32,
    ) -> StoreCall<'_, Vec<SourceRecord>> {
        if self.wrong == Wrong::CountsWithoutEnd {
            count_to = u32::MAX;
        }
        let (mut tables, now) = (self.memory.tables(), self.memory.now());
        if self.wrong == Wrong::CountsDiscarded {
            forget_discards(&mut tables);
        }
        let mut records = tables.sources(now, &names, count_to);
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
        ready(Ok(records)).boxed()
    }

    fn stored_sources(&self) -> StoreCall<'_, Vec<String>> {
        let names = self.memory.transact(|tables, _| {
            if self.wrong == Wrong::NamesOnlySourcesWithWork {
                let owed = tables.deliveries.keys().map(|id| &tables.events[id].event.source);
                return owed.map(ToString::to_string).collect();
            }
            tables.stored_sources()
        });
        ready(Ok(names)).boxed()
    }

    fn pause(&self, source: SourceName, paused: bool) -> StoreCall<'_, bool> {
        let done = self.memory.transact(|tables, now| {
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
        });
        ready(done).boxed()
    }
}

impl WrongStore {
    fn scope(&self, scope: DiscardScope) -> DiscardScope {
        match self.wrong {
            Wrong::DiscardsInEveryScope => DiscardScope::Unclaimed,
            Wrong::DiscardsNoWaitingEvents => DiscardScope::DeadLetters,
            _ => scope,
        }
    }

    fn discard_one(
        &self,
        tables: &mut Database,
        now: Timestamp,
        event: EventId,
        scope: DiscardScope,
    ) -> Discarded {
        if self.wrong == Wrong::DiscardsNothing {
            return Discarded::Now;
        }
        let before = tables.deliveries.get(&event).copied();
        if let (Wrong::DiscardsInFlight, Some(row)) =
            (self.wrong, tables.deliveries.get_mut(&event))
        {
            row.due_at = row.due_at.map(|due_at| due_at.min(now));
        }
        let actions = tables.actions.clone();
        let discarded = tables.discard(now, event, self.scope(scope));
        if self.wrong == Wrong::RecordsNoDiscard {
            tables.actions = actions;
        }
        if self.wrong == Wrong::DiscardsWhatIsNot
            && matches!(discarded, Discarded::NotFound | Discarded::WrongStatus(Status::Delivered))
        {
            return Discarded::Now;
        }
        if discarded == Discarded::Now {
            let row = tables.deliveries.get_mut(&event).expect("it is a dead letter");
            match (self.wrong, before) {
                (Wrong::DiscardEndsAnew, _) => {
                    tables.ended.insert(event, now);
                }
                (Wrong::DiscardForgetsAttempts, _) => row.delivery.attempt = 0,
                (Wrong::RecordsTheTimeOfTheEnd, _) => {
                    let entry = tables.actions.get_mut(&(event, row.delivery.fence));
                    entry.expect("it was recorded").at = tables.ended[&event];
                }
                (Wrong::DiscardKeepsTheFence, Some(before)) => {
                    row.delivery.fence = before.delivery.fence;
                    (row.delivery.status, row.due_at) = (before.delivery.status, before.due_at);
                }
                (Wrong::DiscardRecordsNoLostAttempt, _) => {
                    tables.attempts.retain(|(of, _), entry| *of != event || entry.took.is_some());
                }
                _ => {}
            }
        }
        discarded
    }
}

/// Makes each discarded event a dead letter like all others.
fn forget_discards(tables: &mut Database) {
    for row in tables.deliveries.values_mut() {
        if row.delivery.reason == Some(Reason::Discarded) {
            row.delivery.reason = Some(Reason::Permanent);
        }
    }
}
