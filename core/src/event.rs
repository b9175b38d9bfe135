//! The state machine of one event, from *queued* to *delivered* or *dead-lettered*: all states and
//! transitions.
//!
//! This is the reference for what a store does in SQL. A store that implements these transitions,
//! each in one transaction, keeps two promises: an event is claimable until a settlement for its
//! newest claim is committed, and only the holder of the newest claim can settle it.
//!
//! ```
//! use core::time::Duration;
//! use surehook_core::event::{DeliveryState, Illegal, Outcome, Status};
//!
//! let lease = Duration::from_secs(20);
//! let slow = DeliveryState::accepted().claim(lease, 5)?.delivery;
//! // Its worker hangs, the lease ends, and another worker claims the event.
//! let taken_over = slow.claim(lease, 5)?;
//! assert_eq!((taken_over.lost, taken_over.delivery.attempt), (Some(1), 2));
//! // A settlement of the first worker is refused now.
//! assert_eq!(taken_over.delivery.settle(slow.fence, Outcome::Delivered), Err(Illegal::Stale));
//! let (delivered, _) = taken_over.delivery.settle(taken_over.delivery.fence, Outcome::Delivered)?;
//! assert_eq!(delivered.status, Status::Delivered);
//! # Ok::<(), Illegal>(())
//! ```

use crate::id::{Attempt, BudgetAttempt, Fence};
use core::time::Duration;

/// The status of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Accepted, redriven, released unsent, or cut off by a shutdown. Due now. No attempt of the
    /// present retry budget is used up.
    Queued,
    /// Claimed by a worker under a lease.
    Processing,
    /// An attempt failed, and the event waits for the next one.
    Retrying,
    /// Accepted by the downstream. Final, unless an operator redrives the event.
    Delivered,
    /// Refused permanently, or out of attempts. Final, unless an operator redrives the event.
    DeadLettered,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Processing, Self::Retrying, Self::Delivered, Self::DeadLettered];

    /// The status as it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Retrying => "retrying",
            Self::Delivered => "delivered",
            Self::DeadLettered => "dead_lettered",
        }
    }

    /// The status with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// Why an event was dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The downstream refused it permanently.
    Permanent,
    /// Its last attempt failed.
    Exhausted,
    /// The outcome of its last attempt was never recorded: the worker crashed, hung, or lost its
    /// connection to the database. The downstream may have received the event. With a budget of one
    /// attempt, one such fault is enough.
    Lost,
    /// An operator discarded it. It is no longer counted as a dead letter, and a redrive of many
    /// events leaves it.
    Discarded,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Permanent, Self::Exhausted, Self::Lost, Self::Discarded];

    /// The reasons that the end of an attempt can have.
    pub const OF_ATTEMPTS: [Self; 3] = [Self::Permanent, Self::Exhausted, Self::Lost];

    /// The reason as it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Exhausted => "exhausted",
            Self::Lost => "lost",
            Self::Discarded => "discarded",
        }
    }

    /// The reason with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Whether a redrive of many events selects a dead letter with this reason. `wanted` is the
    /// reason that its filter names. A discarded event is selected only by name.
    ///
    /// ```
    /// use surehook_core::event::Reason;
    ///
    /// assert!(Reason::Lost.is_redriven_by(None));
    /// assert!(!Reason::Discarded.is_redriven_by(None));
    /// assert!(Reason::Discarded.is_redriven_by(Some(Reason::Discarded)));
    /// ```
    #[must_use]
    pub fn is_redriven_by(self, wanted: Option<Self>) -> bool {
        wanted.map_or(self != Self::Discarded, |wanted| wanted == self)
    }
}

/// What is recorded in the history of an event in addition to its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// An operator redrove it.
    Redriven,
    /// A replay of its request redrove it.
    RedrivenByReplay,
    /// An operator discarded it.
    Discarded,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Redriven, Self::RedrivenByReplay, Self::Discarded];

    /// The action as it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redriven => "redriven",
            Self::RedrivenByReplay => "redriven_by_replay",
            Self::Discarded => "discarded",
        }
    }

    /// The action with this name.
    ///
    /// ```
    /// use surehook_core::event::Action;
    ///
    /// assert!(Action::ALL.iter().all(|action| Action::from_name(action.as_str()) == Some(*action)));
    /// assert_eq!(Action::from_name("delivered"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }
}

/// Who redrives a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedrivenBy {
    /// An operator.
    Operator,
    /// The producer, by a replay of the request.
    Replay,
}

impl RedrivenBy {
    /// The action that is recorded for the event.
    #[must_use]
    pub fn action(self) -> Action {
        match self {
            Self::Operator => Action::Redriven,
            Self::Replay => Action::RedrivenByReplay,
        }
    }
}

/// Which events a discard takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiscardScope {
    /// Dead letters only. Workers deliver the other events of the source, or dead-letter them.
    DeadLetters,
    /// Dead letters, and events that no worker will claim, because their source is not configured.
    Unclaimed,
}

impl DiscardScope {
    /// The scope for the events of a source.
    #[must_use]
    pub fn of_source(is_configured: bool) -> Self {
        if is_configured { Self::DeadLetters } else { Self::Unclaimed }
    }
}

/// The result that the holder of a claim writes for the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The downstream accepted it.
    Delivered,
    /// Try again later.
    Retry {
        /// The delay, counted from the commit of the settlement.
        after: Duration,
    },
    /// Stop retrying, for this reason.
    DeadLetter(Reason),
    /// The event was not sent. The attempt is given back, and any worker can claim the event at
    /// once.
    Release,
    /// The delivery was in flight at the shutdown of the process. The attempt stays recorded but is
    /// not charged to the budget, and any worker can claim the event at once.
    CutOff,
}

/// The delivery state of one event: its row, without times.
///
/// The column `due` is both the schedule and the lease. The store keeps it by its own clock.
/// Transitions return only its change, as [`Due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryState {
    /// The present status.
    pub status: Status,
    /// The number of the newest claimed attempt. 0 before the first.
    pub attempt: Attempt,
    /// The attempt number from which the present budget counts: `attempt - budget_from` attempts
    /// are used up. A redrive sets it to `attempt`; a cut-off attempt increases it by one.
    pub budget_from: Attempt,
    /// Increases by one with every transition.
    pub fence: Fence,
    /// Why the event was dead-lettered. `None` in every other status.
    pub reason: Option<Reason>,
}

/// When a row becomes claimable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// This long after the transition, by the store's clock.
    After(Duration),
    /// Never: the status is final.
    Never,
}

/// The result of claiming a due row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Claimed {
    /// The row after the claim.
    pub delivery: DeliveryState,
    /// When the row becomes claimable again: at the end of the lease, or never if it was
    /// dead-lettered.
    pub due: Due,
    /// An attempt that an earlier worker claimed and never settled. It is recorded as lost.
    pub lost: Option<Attempt>,
}

/// The result of discarding an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Discarded {
    /// The row after the discard.
    pub delivery: DeliveryState,
    /// Whether the event ended only now. A dead letter ended before, and keeps that time and its
    /// retention.
    pub ends_now: bool,
    /// An attempt that a worker claimed and never settled. It is recorded as lost.
    pub lost: Option<Attempt>,
}

/// The transition is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// The event is delivered or dead-lettered: it can be neither claimed nor settled.
    #[error("the event is already delivered or dead-lettered")]
    Ended,
    /// The row has changed since the claim that this settlement belongs to.
    #[error("the settlement is stale: the event was claimed again or settled since")]
    Stale,
    /// Only a dead-lettered event can be redriven.
    #[error("the event is not dead-lettered")]
    NotDeadLettered,
    /// The event was discarded before. A discard changes nothing.
    #[error("the event is already discarded")]
    AlreadyDiscarded,
    /// A worker delivers the event, or will claim it.
    #[error("the event is being delivered or will be claimed")]
    Unended,
}

impl DeliveryState {
    /// A new event: queued and due now.
    #[must_use]
    pub fn accepted() -> Self {
        Self { status: Status::Queued, attempt: 0, budget_from: 0, fence: Fence(0), reason: None }
    }

    /// The number of attempts of the present budget that are used up.
    #[must_use]
    pub fn attempts_used(&self) -> u32 {
        self.attempt.saturating_sub(self.budget_from)
    }

    /// The number of the newest attempt within the present budget.
    #[must_use]
    pub fn in_budget(&self) -> BudgetAttempt {
        BudgetAttempt(self.attempts_used())
    }

    /// A worker claims a row. The caller has checked that the row is due.
    ///
    /// If the row is *processing*, its lease has ended: its attempt is lost, and counts. If no
    /// attempts are left, the row is dead-lettered here, without a delivery. This stops an event
    /// that crashes every worker that claims it.
    ///
    /// # Errors
    ///
    /// [`Illegal::Ended`] if the event is delivered or dead-lettered.
    pub fn claim(self, lease: Duration, max_attempts: u32) -> Result<Claimed, Illegal> {
        let lost = match self.status {
            Status::Queued | Status::Retrying => None,
            Status::Processing => Some(self.attempt),
            Status::Delivered | Status::DeadLettered => return Err(Illegal::Ended),
        };
        let fence = self.fence.next();
        if self.attempts_used() >= max_attempts {
            let reason = Some(if lost.is_some() { Reason::Lost } else { Reason::Exhausted });
            let delivery = Self { status: Status::DeadLettered, fence, reason, ..self };
            return Ok(Claimed { delivery, due: Due::Never, lost });
        }
        let delivery = Self {
            status: Status::Processing,
            attempt: self.attempt.saturating_add(1),
            fence,
            ..self
        };
        Ok(Claimed { delivery, due: Due::After(lease), lost })
    }

    /// The holder of a claim settles it.
    ///
    /// # Errors
    ///
    /// [`Illegal::Stale`] if `fence` is not the row's: the event was claimed again, or this claim
    /// was settled before.
    pub fn settle(self, fence: Fence, outcome: Outcome) -> Result<(Self, Due), Illegal> {
        if self.status != Status::Processing || self.fence != fence {
            return Err(Illegal::Stale);
        }
        let settled = Self { fence: self.fence.next(), ..self };
        Ok(match outcome {
            Outcome::Delivered => (Self { status: Status::Delivered, ..settled }, Due::Never),
            Outcome::Retry { after } => {
                (Self { status: Status::Retrying, ..settled }, Due::After(after))
            }
            Outcome::DeadLetter(reason) => {
                (Self { status: Status::DeadLettered, reason: Some(reason), ..settled }, Due::Never)
            }
            Outcome::Release => (
                Self { attempt: self.attempt.saturating_sub(1), ..settled }.waiting(),
                Due::After(Duration::ZERO),
            ),
            Outcome::CutOff => (
                Self { budget_from: self.budget_from.saturating_add(1), ..settled }.waiting(),
                Due::After(Duration::ZERO),
            ),
        })
    }

    /// An operator redrives a dead-lettered event with a new budget. Its attempt numbers continue.
    ///
    /// # Errors
    ///
    /// [`Illegal::NotDeadLettered`] for an event in any other status.
    pub fn redrive(self) -> Result<(Self, Due), Illegal> {
        if self.status != Status::DeadLettered {
            return Err(Illegal::NotDeadLettered);
        }
        let redriven = Self {
            status: Status::Queued,
            budget_from: self.attempt,
            fence: self.fence.next(),
            reason: None,
            ..self
        };
        Ok((redriven, Due::After(Duration::ZERO)))
    }

    /// An operator redrives a delivered event with a new budget. Its attempt numbers continue after
    /// `attempts`, the number of its last attempt.
    ///
    /// The old row and its fence are deleted. The new fence is greater than every earlier one,
    /// because each delivery has at least one more attempt than the one before. This holds as long
    /// as a row changes fewer than 2^31 times between two deliveries.
    #[must_use]
    pub fn redelivered(attempts: Attempt) -> (Self, Due) {
        let fence = Fence(u64::from(attempts) << 31);
        let redriven = Self {
            status: Status::Queued,
            attempt: attempts,
            budget_from: attempts,
            fence,
            reason: None,
        };
        (redriven, Due::After(Duration::ZERO))
    }

    /// An operator discards the event. It becomes a dead letter with the reason *discarded*, and can
    /// be redriven like any other. `is_due` is whether a claim could take the row now.
    ///
    /// In the scope [`DiscardScope::Unclaimed`], an event that waits is discarded too. An event
    /// that is *processing* is not, until its lease has ended: its worker is delivering it. After
    /// that its attempt is lost, as at a claim.
    ///
    /// # Errors
    ///
    /// [`Illegal::Ended`] for a delivered event, [`Illegal::AlreadyDiscarded`], and
    /// [`Illegal::Unended`] for an event outside of the scope.
    pub fn discard(self, scope: DiscardScope, is_due: bool) -> Result<Discarded, Illegal> {
        let takes_waiting = scope == DiscardScope::Unclaimed;
        let (ends_now, lost) = match self.status {
            Status::DeadLettered if self.reason == Some(Reason::Discarded) => {
                return Err(Illegal::AlreadyDiscarded);
            }
            Status::DeadLettered => (false, None),
            Status::Queued | Status::Retrying if takes_waiting => (true, None),
            Status::Processing if takes_waiting && is_due => (true, Some(self.attempt)),
            Status::Queued | Status::Retrying | Status::Processing => {
                return Err(Illegal::Unended);
            }
            Status::Delivered => return Err(Illegal::Ended),
        };
        let delivery = Self {
            status: Status::DeadLettered,
            fence: self.fence.next(),
            reason: Some(Reason::Discarded),
            ..self
        };
        Ok(Discarded { delivery, ends_now, lost })
    }

    /// The row as it waits for a claim: *queued* if its budget is unused, *retrying* if not.
    fn waiting(self) -> Self {
        let status = if self.attempts_used() == 0 { Status::Queued } else { Status::Retrying };
        Self { status, ..self }
    }
}

#[cfg(test)]
mod tests {
    // The invariants over all sequences of transitions are checked in
    // `sim/model/src/targets/event.rs`.
    use super::*;

    const LEASE: Duration = Duration::from_secs(20);

    fn claimed(delivery: DeliveryState) -> DeliveryState {
        delivery.claim(LEASE, 3).unwrap().delivery
    }

    fn settled(delivery: DeliveryState, outcome: Outcome) -> DeliveryState {
        delivery.settle(delivery.fence, outcome).unwrap().0
    }

    #[test]
    fn each_name_matches_the_documents_and_round_trips() {
        assert_eq!(
            Status::ALL.map(Status::as_str),
            ["queued", "processing", "retrying", "delivered", "dead_lettered"]
        );
        assert_eq!(
            Reason::ALL.map(Reason::as_str),
            ["permanent", "exhausted", "lost", "discarded"]
        );
        assert_eq!(
            Status::ALL.map(|status| Status::from_name(status.as_str())),
            Status::ALL.map(Some)
        );
        assert_eq!(
            Reason::ALL.map(|reason| Reason::from_name(reason.as_str())),
            Reason::ALL.map(Some)
        );
        assert_eq!((Status::from_name("Queued"), Reason::from_name("")), (None, None));
    }

    #[test]
    fn an_event_is_claimed_retried_and_delivered() {
        let first = claimed(DeliveryState::accepted());
        assert_eq!((first.status, first.attempt, first.fence), (Status::Processing, 1, Fence(1)));
        let (retrying, due) =
            first.settle(first.fence, Outcome::Retry { after: Duration::from_secs(3) }).unwrap();
        assert_eq!((retrying.status, due), (Status::Retrying, Due::After(Duration::from_secs(3))));
        let delivered = settled(claimed(retrying), Outcome::Delivered);
        assert_eq!(
            (delivered.status, delivered.attempt, delivered.fence),
            (Status::Delivered, 2, Fence(4))
        );
        assert_eq!(delivered.claim(LEASE, 3), Err(Illegal::Ended));
    }

    #[test]
    fn an_expired_lease_counts_its_attempt_and_fences_the_late_holder() {
        let slow = claimed(DeliveryState::accepted());
        let taken_over = slow.claim(LEASE, 3).unwrap();
        assert_eq!((taken_over.lost, taken_over.delivery.attempt), (Some(1), 2));
        assert_eq!(taken_over.delivery.settle(slow.fence, Outcome::Delivered), Err(Illegal::Stale));
    }

    #[test]
    fn an_event_that_crashes_every_worker_is_dead_lettered_unsent() {
        let mut row = DeliveryState::accepted();
        for _ in 0..3 {
            row = claimed(row);
        }
        let last = row.claim(LEASE, 3).unwrap();
        assert_eq!(
            (last.delivery.status, last.delivery.reason, last.due),
            (Status::DeadLettered, Some(Reason::Lost), Due::Never)
        );
        assert_eq!(
            (last.delivery.attempt, last.lost),
            (3, Some(3)),
            "a claim without a delivery is not an attempt"
        );
        assert_eq!(last.delivery.settle(row.fence, Outcome::Delivered), Err(Illegal::Stale));
        let (redriven, _) = last.delivery.redrive().unwrap();
        assert_eq!(
            [row, last.delivery, redriven].map(|row| row.fence),
            [Fence(3), Fence(4), Fence(5)]
        );
    }

    #[test]
    fn a_budget_lowered_below_used_attempts_dead_letters_as_exhausted() {
        let retrying = settled(claimed(DeliveryState::accepted()), Outcome::Retry { after: LEASE });
        let ended = retrying.claim(LEASE, 1).unwrap();
        assert_eq!((ended.delivery.reason, ended.lost), (Some(Reason::Exhausted), None));
    }

    #[test]
    fn a_release_returns_the_attempt_and_increases_the_fence() {
        let first = claimed(DeliveryState::accepted());
        let released = settled(first, Outcome::Release);
        assert_eq!((released.status, released.attempt), (Status::Queued, 0));
        assert_eq!(released.settle(first.fence, Outcome::Delivered), Err(Illegal::Stale));
        let again = claimed(released);
        assert_eq!(again.attempt, 1);
        assert_ne!(again.fence, first.fence);
    }

    #[test]
    fn a_dead_letter_has_a_reason() {
        let row =
            settled(claimed(DeliveryState::accepted()), Outcome::DeadLetter(Reason::Permanent));
        assert_eq!((row.status, row.reason), (Status::DeadLettered, Some(Reason::Permanent)));
    }

    #[test]
    fn a_cut_off_attempt_is_recorded_but_not_charged() {
        let row = settled(claimed(DeliveryState::accepted()), Outcome::CutOff);
        assert_eq!((row.status, row.attempt, row.attempts_used()), (Status::Queued, 1, 0));
    }

    #[test]
    fn redriving_a_delivered_event_exceeds_every_earlier_fence() {
        let first = claimed(DeliveryState::accepted());
        let (again, due) = DeliveryState::redelivered(settled(first, Outcome::Delivered).attempt);
        assert_eq!(
            (again.status, again.attempts_used(), due),
            (Status::Queued, 0, Due::After(Duration::ZERO))
        );
        assert!(again.fence > first.fence.next());
        let second = claimed(again);
        assert_eq!(second.attempt, 2);
        assert_eq!(
            second.settle(first.fence, Outcome::Delivered),
            Err(Illegal::Stale),
            "the fence of an earlier claim is stale"
        );
        let released = settled(second, Outcome::Release);
        let third = claimed(released);
        let (last, _) = DeliveryState::redelivered(settled(third, Outcome::Delivered).attempt);
        assert!(last.fence > third.fence.next());
        let latest = DeliveryState::redelivered(Attempt::MAX).0.fence.0;
        assert!(i64::try_from(latest).is_ok(), "a fence fits into a signed 64-bit column");
    }

    #[test]
    fn a_redrive_renews_the_budget_and_continues_attempt_numbers() {
        let dead =
            settled(claimed(DeliveryState::accepted()), Outcome::DeadLetter(Reason::Permanent));
        let (redriven, due) = dead.redrive().unwrap();
        assert_eq!(
            (redriven.status, redriven.attempts_used(), redriven.reason, due),
            (Status::Queued, 0, None, Due::After(Duration::ZERO))
        );
        assert_eq!(claimed(redriven).attempt, 2);
        assert_eq!(redriven.redrive(), Err(Illegal::NotDeadLettered));
    }

    #[test]
    fn a_discarded_dead_letter_keeps_its_end_and_is_redriven_by_id() {
        let dead =
            settled(claimed(DeliveryState::accepted()), Outcome::DeadLetter(Reason::Permanent));
        for scope in [DiscardScope::DeadLetters, DiscardScope::Unclaimed] {
            let Discarded { delivery, ends_now, lost } = dead.discard(scope, false).unwrap();
            assert_eq!((ends_now, lost), (false, None));
            let expected =
                DeliveryState { fence: dead.fence.next(), reason: Some(Reason::Discarded), ..dead };
            assert_eq!(delivery, expected);
            assert_eq!(delivery.claim(LEASE, 3), Err(Illegal::Ended));
            assert_eq!(delivery.discard(scope, false), Err(Illegal::AlreadyDiscarded));
            assert_eq!(delivery.redrive().unwrap().0.status, Status::Queued);
        }
    }

    #[test]
    fn only_events_of_an_unconfigured_source_are_discarded_while_they_wait() {
        let queued = DeliveryState::accepted();
        let retrying = settled(claimed(queued), Outcome::Retry { after: LEASE });
        for waiting in [queued, retrying] {
            for is_due in [false, true] {
                let kept = waiting.discard(DiscardScope::of_source(true), is_due);
                assert_eq!(kept, Err(Illegal::Unended));
                let discarded = waiting.discard(DiscardScope::of_source(false), is_due).unwrap();
                assert_eq!(
                    (discarded.delivery.status, discarded.delivery.reason),
                    (Status::DeadLettered, Some(Reason::Discarded))
                );
                assert_eq!((discarded.ends_now, discarded.lost), (true, None));
            }
        }
    }

    #[test]
    fn an_event_in_delivery_is_not_discarded_before_its_lease_ends() {
        let held = claimed(DeliveryState::accepted());
        for scope in [DiscardScope::DeadLetters, DiscardScope::Unclaimed] {
            assert_eq!(held.discard(scope, false), Err(Illegal::Unended));
        }
        assert_eq!(held.discard(DiscardScope::DeadLetters, true), Err(Illegal::Unended));
        let Discarded { delivery, ends_now, lost } =
            held.discard(DiscardScope::Unclaimed, true).unwrap();
        assert_eq!((ends_now, lost), (true, Some(1)));
        let late = delivery.settle(held.fence, Outcome::Delivered);
        assert_eq!(late, Err(Illegal::Stale), "its worker can no longer settle it");
    }

    #[test]
    fn a_delivered_event_is_not_discarded() {
        let delivered = settled(claimed(DeliveryState::accepted()), Outcome::Delivered);
        for scope in [DiscardScope::DeadLetters, DiscardScope::Unclaimed] {
            assert_eq!(delivered.discard(scope, true), Err(Illegal::Ended));
        }
    }

    #[test]
    fn a_redrive_of_many_selects_discarded_events_only_by_name() {
        for reason in Reason::ALL {
            assert_eq!(reason.is_redriven_by(None), reason != Reason::Discarded, "{reason:?}");
            for wanted in Reason::ALL {
                assert_eq!(reason.is_redriven_by(Some(wanted)), wanted == reason);
            }
        }
    }
}
