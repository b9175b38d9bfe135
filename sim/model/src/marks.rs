//! Marks: situations that a batch of runs must reach at least once. A situation that is never
//! reached is not tested.

use crate::history::{At, CallResult, Change, Committed, Fault, Run, Sending, What};
use crate::oracles;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::{BudgetAttempt, EventId};
use surehook_core::reading::SLOW;
use surehook_core::source::Policy;

/// A situation that must be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// A settlement was refused because the event had been claimed again.
    StaleSettlementRefused,
    /// An event was claimed again after its lease had ended.
    LeaseTakenOver,
    /// An event was claimed again after its lease had ended while the holder was stopped.
    LeaseTakenOverAfterPause,
    /// A producer that got no response tried again and got the id of the first event.
    ReplayAfterLostAnswer,
    /// The retry of a batch with an unknown outcome found that the batch had been committed.
    UnknownCommitFound,
    /// A key was refused because its event has a different body.
    KeyReuseRefused,
    /// One process answered two posts with the same key within the time of one batch.
    ConflictInsideOneBatch,
    /// An event was dead-lettered because its last attempt failed.
    DeadLetterExhausted,
    /// An event was dead-lettered because its downstream refused it permanently.
    DeadLetterPermanent,
    /// An event was dead-lettered because its last attempt was lost.
    DeadLetterLost,
    /// An event was delivered by a later attempt than its first.
    DeliveredAfterRetry,
    /// A downstream received an event again after it had answered 2xx.
    ExplainedDuplicate,
    /// A process started its shutdown while it was delivering.
    DrainWithWorkInFlight,
    /// A process reloaded its configuration while it was delivering.
    ReloadWithWorkInFlight,
    /// A process stored a new event during its shutdown.
    AcceptedWhileDraining,
    /// A shutdown cut off a delivery.
    CutOffByShutdown,
    /// An event was released unsent.
    ReleasedUnsent,
    /// An event whose settlement had failed was claimed again.
    ClaimedAgainAfterFailedSettlement,
    /// A producer got a `503`, tried again and got a `202`.
    TurnedAwayAndBack,
    /// A producer hung up, but its event was stored.
    HungUpAndStored,
    /// A downstream asked by `Retry-After` for a longer wait than the back-off.
    RetryAfterHeeded,
    /// A row was rejected and the other rows of its batch were stored.
    BadRowIsolated,
    /// All processes were down at the same time.
    AllProcessesDown,
    /// A breaker that had been open admitted a probe.
    BreakerProbed,
    /// A breaker that had been open returned to all slots, step by step.
    BreakerRecovered,
    /// A delivery was delayed by its source's rate.
    RateHeld,
    /// An event was stored while its source was paused, and was claimed after that.
    PausedWithWork,
    /// An event was claimed on insert.
    ClaimedAsStored,
    /// A dead letter was redriven and delivered.
    DeadLetterRedriven,
    DeadLetterDiscarded,
    /// An event that waited was discarded.
    WaitingDiscarded,
    /// A redrive of many events left a discarded one.
    DiscardedLeftByRedrive,
    /// A delivered event was redriven and delivered again.
    DeliveredOnceMore,
    /// A commit waited for the standby.
    CommitWaitedForStandby,
    /// A change became visible before the standby had it.
    VisibleUnreplicated,
    /// A failover lost a committed event.
    LostInFailover,
    /// A failover rolled back a change of an event.
    RolledBackInFailover,
    /// An accept failed after a part of it had been committed.
    PartCommitted,
    Pruned,
    PayloadErased,
    /// A key was used again after its event had been pruned.
    KeyUsedAgain,
    /// An event was claimed by another process than the one that stored it.
    DeliveredElsewhere,
    /// A process reported that it is not ready.
    NotReady,
    /// A step of pruning failed.
    PruningFailed,
    /// A settlement failed while rows were locked from a console.
    GaveWayToConsole,
    /// A claim of a busy source started behind the front of the due rows.
    ClaimStartedBehindFront,
    /// A due time was capped after the database's clock had been set back.
    DueTimeCapped,
    /// A post was refused by a process that lacks its source, and then accepted by another.
    RefusedByOneProcess,
    /// An event was dead-lettered by a process that allows fewer attempts than the one before.
    DeadLetteredByFewerAttempts,
    /// A process sent an event of a source whose settings had changed at its restart.
    SettingsChanged,
    /// A claim left an event due because it did not fit into the memory of the process.
    EventHeldBack,
    /// A slow request gave way to others.
    SlowRequestGaveWay,
    /// A post was accepted just after a slow request of another source was refused for lack of
    /// memory.
    AcceptedBesideSlow,
}

impl Mark {
    /// All marks.
    pub const ALL: [Self; 53] = [
        Self::StaleSettlementRefused,
        Self::LeaseTakenOver,
        Self::LeaseTakenOverAfterPause,
        Self::ReplayAfterLostAnswer,
        Self::UnknownCommitFound,
        Self::KeyReuseRefused,
        Self::ConflictInsideOneBatch,
        Self::DeadLetterExhausted,
        Self::DeadLetterPermanent,
        Self::DeadLetterLost,
        Self::DeliveredAfterRetry,
        Self::ExplainedDuplicate,
        Self::DrainWithWorkInFlight,
        Self::ReloadWithWorkInFlight,
        Self::AcceptedWhileDraining,
        Self::CutOffByShutdown,
        Self::ReleasedUnsent,
        Self::ClaimedAgainAfterFailedSettlement,
        Self::TurnedAwayAndBack,
        Self::HungUpAndStored,
        Self::RetryAfterHeeded,
        Self::BadRowIsolated,
        Self::AllProcessesDown,
        Self::BreakerProbed,
        Self::BreakerRecovered,
        Self::RateHeld,
        Self::PausedWithWork,
        Self::ClaimedAsStored,
        Self::DeadLetterRedriven,
        Self::DeadLetterDiscarded,
        Self::WaitingDiscarded,
        Self::DiscardedLeftByRedrive,
        Self::DeliveredOnceMore,
        Self::CommitWaitedForStandby,
        Self::VisibleUnreplicated,
        Self::LostInFailover,
        Self::RolledBackInFailover,
        Self::PartCommitted,
        Self::Pruned,
        Self::PayloadErased,
        Self::KeyUsedAgain,
        Self::DeliveredElsewhere,
        Self::NotReady,
        Self::PruningFailed,
        Self::GaveWayToConsole,
        Self::ClaimStartedBehindFront,
        Self::DueTimeCapped,
        Self::RefusedByOneProcess,
        Self::DeadLetteredByFewerAttempts,
        Self::SettingsChanged,
        Self::EventHeldBack,
        Self::SlowRequestGaveWay,
        Self::AcceptedBesideSlow,
    ];
}

/// The marks that a run reached.
#[must_use]
pub fn marks(run: &Run) -> BTreeSet<Mark> {
    let mut marks: BTreeSet<Mark> = run
        .each(|what| if let What::Reached(mark) = what { Some(*mark) } else { None })
        .map(|(_, mark)| mark)
        .collect();
    of_rows(run, &mut marks);
    of_redrives(run, &mut marks);
    of_retention(run, &mut marks);
    of_processes(run, &mut marks);
    of_producers(run, &mut marks);
    of_downstreams(run, &mut marks);
    of_limits(run, &mut marks);
    of_configurations(run, &mut marks);
    of_slow_producers(run, &mut marks);
    marks
}

fn of_retention(run: &Run, marks: &mut BTreeSet<Mark>) {
    let mut keys = BTreeSet::new();
    let mut accepted_by = BTreeMap::new();
    let mut locked_until = Duration::ZERO;
    for entry in &run.entries {
        match &entry.what {
            What::Committed(committed) => {
                let record = run.events.get(&committed.event);
                match (committed.change, record.map(|record| (&record.source, &record.key))) {
                    (Change::Pruned, key) => {
                        marks.insert(Mark::Pruned);
                        keys.extend(key);
                    }
                    (Change::Erased, _) => {
                        marks.insert(Mark::PayloadErased);
                    }
                    (Change::Accepted, key) => {
                        accepted_by.insert(committed.event, &committed.process);
                        if key.is_some_and(|key| keys.contains(&key)) {
                            marks.insert(Mark::KeyUsedAgain);
                        }
                    }
                    (Change::Claimed, _)
                        if accepted_by
                            .get(&committed.event)
                            .is_some_and(|by| **by != committed.process) =>
                    {
                        marks.insert(Mark::DeliveredElsewhere);
                    }
                    _ => {}
                }
            }
            What::Fault(Fault::Database { what, duration, .. }) if what.ends_with("are locked") => {
                locked_until = entry.at + *duration;
            }
            What::Called { call: "settle", result: CallResult::Refused, .. }
                if entry.at < locked_until =>
            {
                marks.insert(Mark::GaveWayToConsole);
            }
            What::Ready { is_ready: false, .. } => {
                marks.insert(Mark::NotReady);
            }
            What::Fault(Fault::Database { what, .. })
                if what.ends_with("at this Prune") && !what.starts_with("Slow") =>
            {
                marks.insert(Mark::PruningFailed);
            }
            _ => {}
        }
    }
}

fn of_configurations(run: &Run, marks: &mut BTreeSet<Mark>) {
    let posts = run.posts();
    let mut refused = BTreeSet::new();
    let mut last_policy: BTreeMap<(&str, &str), &Policy> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Answered { post, status_code, .. } => {
                let Some(post) = posts.get(post) else { continue };
                let producer = (&post.producer, &post.source, &post.key);
                if *status_code == 404 {
                    refused.insert(producer);
                } else if *status_code == 202 && refused.contains(&producer) {
                    marks.insert(Mark::RefusedByOneProcess);
                }
            }
            What::Committed(Committed { change: Change::Claimed, before, after, .. }) => {
                let statuses =
                    (before.map(|row| row.delivery.status), after.map(|row| row.delivery.status));
                if statuses == (Some(Status::Retrying), Some(Status::DeadLettered)) {
                    marks.insert(Mark::DeadLetteredByFewerAttempts);
                }
            }
            What::Sending(Sending { process, source, .. }) => {
                let Some(policy) = run.policies.of(process, source, entry.at) else { continue };
                if last_policy.insert((process, source), policy).is_some_and(|last| last != policy)
                {
                    marks.insert(Mark::SettingsChanged);
                }
            }
            _ => {}
        }
    }
}

fn of_slow_producers(run: &Run, marks: &mut BTreeSet<Mark>) {
    let posted: BTreeMap<_, _> =
        run.each_post().map(|(at, post)| (post.post, (at, post))).collect();
    let mut refused: BTreeMap<&str, (At, &str)> = BTreeMap::new();
    for (at, answer) in run.answers() {
        let Some(&(asked_at, post)) = posted.get(&answer.post) else { continue };
        if answer.status_code == 503 && post.is_slow() {
            if at - asked_at >= SLOW {
                marks.insert(Mark::SlowRequestGaveWay);
            }
            refused.insert(&post.process, (at, &post.source));
        }
        if answer.status_code == 202
            && refused.get(post.process.as_str()).is_some_and(|(refused_at, source)| {
                *source != post.source && *refused_at <= at && at <= *refused_at + SLOW / 2
            })
        {
            marks.insert(Mark::AcceptedBesideSlow);
        }
    }
}

fn of_redrives(run: &Run, marks: &mut BTreeSet<Mark>) {
    let mut redriven: BTreeMap<EventId, Mark> = BTreeMap::new();
    for (_, committed) in run.committed() {
        match committed.change {
            Change::Redriven { .. } => {
                let was_delivered = committed.before.is_none();
                redriven.insert(
                    committed.event,
                    if was_delivered { Mark::DeliveredOnceMore } else { Mark::DeadLetterRedriven },
                );
            }
            Change::Settled { outcome: Outcome::Delivered, .. } => {
                marks.extend(redriven.remove(&committed.event));
            }
            Change::Lost => {
                marks.insert(Mark::LostInFailover);
            }
            Change::RolledBack => {
                marks.insert(Mark::RolledBackInFailover);
            }
            Change::Capped => {
                marks.insert(Mark::DueTimeCapped);
            }
            Change::Accepted
            | Change::Claimed
            | Change::Settled { .. }
            | Change::Discarded
            | Change::Pruned
            | Change::Erased => {}
        }
    }
}

fn of_limits(run: &Run, marks: &mut BTreeSet<Mark>) {
    let breakers = oracles::breaker::seen(run);
    if breakers.probed {
        marks.insert(Mark::BreakerProbed);
    }
    if breakers.recovered {
        marks.insert(Mark::BreakerRecovered);
    }
    let paused = oracles::pause::spans(run);
    let mut waiting: BTreeMap<EventId, bool> = BTreeMap::new();
    let mut last_start: BTreeMap<(&str, &str), Duration> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Committed(committed) => {
                let Some(record) = run.events.get(&committed.event) else { continue };
                let is_paused = paused.get(record.source.as_str()).is_some_and(|spans| {
                    spans.iter().any(|(from, to)| *from <= entry.at && entry.at < *to)
                });
                match committed.change {
                    Change::Accepted => {
                        waiting.insert(committed.event, is_paused);
                    }
                    Change::Claimed
                        if waiting.remove(&committed.event) == Some(true) && !is_paused =>
                    {
                        marks.insert(Mark::PausedWithWork);
                    }
                    Change::Claimed
                    | Change::Settled { .. }
                    | Change::Redriven { .. }
                    | Change::Discarded
                    | Change::Pruned
                    | Change::Erased
                    | Change::Capped
                    | Change::RolledBack
                    | Change::Lost => {}
                }
            }
            What::Sending(Sending { process, source, .. }) => {
                let policy = run.policies.of(process, source, entry.at);
                let rate = policy.and_then(|policy| policy.rate);
                let before = last_start.insert((process, source), entry.at);
                // Starts exactly one rate interval apart (within 2 ms) were delayed by the rate.
                if let (Some(rate), Some(before)) = (rate, before)
                    && (entry.at - before).abs_diff(Duration::from_secs(1) / rate.get())
                        < Duration::from_millis(2)
                {
                    marks.insert(Mark::RateHeld);
                }
            }
            _ => {}
        }
    }
}

fn of_rows(run: &Run, marks: &mut BTreeSet<Mark>) {
    let mut holder: BTreeMap<_, &str> = BTreeMap::new();
    let mut paused: BTreeSet<&str> = BTreeSet::new();
    let mut failed_settlements: BTreeSet<EventId> = BTreeSet::new();
    let mut refused_batches: Vec<&Vec<EventId>> = Vec::new();
    let mut unknown_accepts: BTreeSet<EventId> = BTreeSet::new();
    let mut accepted_at: BTreeMap<EventId, Duration> = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::StaleSettlement { .. } => {
                marks.insert(Mark::StaleSettlementRefused);
            }
            What::Fault(Fault::Paused { process, .. }) => {
                paused.insert(process);
            }
            What::Called {
                call: "settle",
                result: CallResult::Refused | CallResult::Unknown,
                events,
                ..
            } => {
                failed_settlements.extend(events);
            }
            What::Called { call: "accept", result: CallResult::Unknown, events, .. } => {
                unknown_accepts.extend(events);
            }
            What::Called { call: "accept", result: CallResult::Refused, events, .. } => {
                refused_batches.push(events);
            }
            What::Called { call: "accept", result: CallResult::Done, events, .. } => {
                // After a refusal, only a batch that was halved is sent again with the same ids.
                if refused_batches.iter().any(|batch| {
                    batch.len() > 1 && events.iter().any(|event| batch.contains(event))
                }) {
                    marks.insert(Mark::BadRowIsolated);
                }
                let landed = |event| {
                    run.committed().any(|(at, c)| {
                        c.event == event && c.change == Change::Accepted && at < entry.at
                    })
                };
                if events.iter().any(|event| unknown_accepts.contains(event) && landed(*event)) {
                    marks.insert(Mark::UnknownCommitFound);
                }
            }
            What::Committed(committed) => {
                let (before, after) = (
                    committed.before.map(|row| row.delivery),
                    committed.after.map(|row| row.delivery),
                );
                if committed.change == Change::Accepted {
                    accepted_at.insert(committed.event, entry.at);
                }
                if committed.change == Change::Claimed {
                    // A separate claim takes at least one round trip, so an equal time means claim
                    // on insert.
                    if accepted_at.get(&committed.event) == Some(&entry.at) {
                        marks.insert(Mark::ClaimedAsStored);
                    }
                    if before.is_some_and(|row| row.status == Status::Processing) {
                        marks.insert(Mark::LeaseTakenOver);
                        if holder
                            .get(&committed.event)
                            .is_some_and(|holder| paused.contains(holder))
                        {
                            marks.insert(Mark::LeaseTakenOverAfterPause);
                        }
                    }
                    if failed_settlements.contains(&committed.event) {
                        marks.insert(Mark::ClaimedAgainAfterFailedSettlement);
                    }
                    holder.insert(committed.event, &committed.process);
                }
                match after.and_then(|row| row.reason) {
                    Some(Reason::Exhausted) => marks.insert(Mark::DeadLetterExhausted),
                    Some(Reason::Permanent) => marks.insert(Mark::DeadLetterPermanent),
                    Some(Reason::Lost) => marks.insert(Mark::DeadLetterLost),
                    Some(Reason::Discarded) | None => false,
                };
                match committed.change {
                    Change::Settled { outcome: Outcome::CutOff, .. } => {
                        marks.insert(Mark::CutOffByShutdown)
                    }
                    Change::Settled { outcome: Outcome::Release, .. } => {
                        marks.insert(Mark::ReleasedUnsent)
                    }
                    Change::Discarded => match before.map(|row| row.status) {
                        Some(Status::DeadLettered) => marks.insert(Mark::DeadLetterDiscarded),
                        _ => marks.insert(Mark::WaitingDiscarded),
                    },
                    Change::Settled { outcome: Outcome::Delivered, attempt: 2.., .. } => {
                        marks.insert(Mark::DeliveredAfterRetry)
                    }
                    _ => false,
                };
            }
            _ => {}
        }
    }
}

fn of_processes(run: &Run, marks: &mut BTreeSet<Mark>) {
    let mut sending: BTreeMap<&str, u32> = BTreeMap::new();
    let mut up: BTreeSet<&str> = BTreeSet::new();
    let mut draining: BTreeSet<&str> = BTreeSet::new();
    for entry in &run.entries {
        match &entry.what {
            What::Sending(sent) => *sending.entry(&sent.process).or_default() += 1,
            What::Sent { process, .. } => {
                sending.entry(process).and_modify(|count| *count = count.saturating_sub(1));
            }
            What::Fault(Fault::Draining { process }) => {
                draining.insert(process);
                if sending.get(process.as_str()).is_some_and(|count| *count > 0) {
                    marks.insert(Mark::DrainWithWorkInFlight);
                }
            }
            What::Fault(Fault::Reloaded { process })
                if sending.get(process.as_str()).is_some_and(|count| *count > 0) =>
            {
                marks.insert(Mark::ReloadWithWorkInFlight);
            }
            What::Committed(Committed { change: Change::Accepted, process, .. })
                if draining.contains(process.as_str()) =>
            {
                marks.insert(Mark::AcceptedWhileDraining);
            }
            What::Fault(Fault::Started { process }) => {
                up.insert(process);
            }
            What::Fault(Fault::Killed { process } | Fault::Exited { process }) => {
                sending.remove(process.as_str());
                draining.remove(process.as_str());
                up.remove(process.as_str());
                if up.is_empty() {
                    marks.insert(Mark::AllProcessesDown);
                }
            }
            _ => {}
        }
    }
}

fn of_producers(run: &Run, marks: &mut BTreeSet<Mark>) {
    let posts = run.posts();
    let unanswered: BTreeMap<_, _> = run
        .each(|what| if let What::Unanswered { post, .. } = what { posts.get(post) } else { None })
        .map(|(at, post)| ((&post.producer, &post.source, &post.key), at))
        .collect();
    let mut turned_away = BTreeSet::new();
    let mut taken: BTreeMap<_, _> = BTreeMap::new();
    for (at, answer) in run.answers() {
        let Some(post) = posts.get(&answer.post) else { continue };
        let producer = (&post.producer, &post.source, &post.key);
        match (answer.status_code, answer.event) {
            (202, Some(event)) => {
                if answer.replayed && unanswered.contains_key(&producer) {
                    marks.insert(Mark::ReplayAfterLostAnswer);
                }
                if let Some(hung_up) = unanswered.get(&producer)
                    && run.committed().any(|(at, c)| {
                        c.event == event
                            && c.change == Change::Accepted
                            && at <= *hung_up + std::time::Duration::from_millis(100)
                    })
                {
                    marks.insert(Mark::HungUpAndStored);
                }
                if turned_away.contains(&producer) {
                    marks.insert(Mark::TurnedAwayAndBack);
                }
                let batch = (at.as_millis() / 4, &post.process);
                if taken.insert((event, batch), answer.post).is_some() {
                    marks.insert(Mark::ConflictInsideOneBatch);
                }
            }
            (422, _) => {
                marks.insert(Mark::KeyReuseRefused);
            }
            (503, _) => {
                turned_away.insert(producer);
            }
            _ => {}
        }
    }
}

fn of_downstreams(run: &Run, marks: &mut BTreeSet<Mark>) {
    let mut requests = BTreeMap::new();
    let mut taken = BTreeSet::new();
    let mut asked = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Received(received) => {
                requests.insert(received.request, (received.event, received.attempt));
                if taken.contains(&received.event) {
                    marks.insert(Mark::ExplainedDuplicate);
                }
            }
            What::Replied { request, status_code, retry_after } => {
                let Some(&(event, attempt)) = requests.get(request) else { continue };
                if (200..300).contains(status_code) {
                    taken.insert(event);
                } else if let Some(retry_after) = retry_after {
                    asked.insert((event, attempt), *retry_after);
                }
            }
            What::Committed(committed) => {
                let Change::Settled { attempt, outcome: Outcome::Retry { after }, .. } =
                    committed.change
                else {
                    continue;
                };
                let Some(record) = run.events.get(&committed.event) else { continue };
                let used = attempt
                    .saturating_sub(committed.before.map_or(0, |row| row.delivery.budget_from));
                let backoff = run.policies.backoff(&record.source);
                let ceiling = backoff.map(|backoff| backoff.ceiling(BudgetAttempt(used)));
                if asked.get(&(committed.event, attempt)).is_some_and(|asked| after >= *asked)
                    && ceiling.is_some_and(|ceiling| after > ceiling)
                {
                    marks.insert(Mark::RetryAfterHeeded);
                }
            }
            _ => {}
        }
    }
}
