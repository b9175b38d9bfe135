//! The life of one event, from *queued* to *delivered* or *dead-lettered*: its states and the only ways between them.
//!
//! This is the reference for what a store does in SQL. A store that keeps these transitions, and commits each of
//! them whole, keeps the promises: an event is claimable until a settlement for its newest claim is committed, and
//! nobody but the holder of the newest claim can settle it.
//!
//! ```
//! use core::time::Duration;
//! use surehook_core::event::{Delivery, Illegal, Outcome, Status};
//!
//! let lease = Duration::from_secs(20);
//! let slow = Delivery::accepted().claim(lease, 5)?.delivery;
//! // Its worker hangs, the lease ends, and another takes the event over.
//! let taken_over = slow.claim(lease, 5)?;
//! assert_eq!((taken_over.lost, taken_over.delivery.attempt), (Some(1), 2));
//! // Whatever the first one says now is too late.
//! assert_eq!(taken_over.delivery.settle(slow.fence, Outcome::Delivered), Err(Illegal::Stale));
//! let (delivered, _) = taken_over.delivery.settle(taken_over.delivery.fence, Outcome::Delivered)?;
//! assert_eq!(delivered.status, Status::Delivered);
//! # Ok::<(), Illegal>(())
//! ```

use crate::id::{Attempt, Fence};
use core::time::Duration;

/// Where an event stands. One at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Accepted, or redriven, or given back unsent: due now, with no attempt of its present budget recorded.
    Queued,
    /// Claimed by a worker under a lease.
    Processing,
    /// Tried, failed, and waiting for its next attempt.
    Retrying,
    /// Taken by the downstream. The end, unless an operator has it sent once more.
    Delivered,
    /// Set aside: refused for good, or out of attempts. The end, unless an operator redrives it.
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

    /// The status of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// Why an event was dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The downstream refused it for good.
    Permanent,
    /// Its last attempt failed.
    Exhausted,
    /// The outcome of its last attempt was never recorded: the worker died, hung, or was cut off from the database. The
    /// downstream may have received it. With a budget of one attempt, one such fault is enough.
    Lost,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Permanent, Self::Exhausted, Self::Lost];

    /// The reason as it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Exhausted => "exhausted",
            Self::Lost => "lost",
        }
    }

    /// The reason of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// What the holder of a claim asks the store to do with the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The downstream took it.
    Delivered,
    /// Try again, so long from now.
    Retry {
        /// From the moment the settlement is committed.
        after: Duration,
    },
    /// Set it aside.
    DeadLetter(Reason),
    /// It was not sent: give the attempt back and let any worker claim it at once.
    Release,
    /// It was in flight when the process shut down: the attempt stays recorded, the budget does not pay for it, and
    /// any worker may claim it at once.
    CutOff,
}

/// What is owed for one event: its row, apart from times.
///
/// `due` is both the schedule and the lease, and the store keeps it on its own clock; here it is only told when it
/// changes, by [`Due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Where the event stands.
    pub status: Status,
    /// The newest attempt that was claimed; 0 before the first.
    pub attempt: Attempt,
    /// The attempt after which the present budget counts.
    pub budget_from: Attempt,
    /// Up by one at every transition.
    pub fence: Fence,
    /// Why it was dead-lettered; `None` unless it is.
    pub reason: Option<Reason>,
}

/// When an event's row is next claimable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// So long after the transition, by the store's clock.
    After(Duration),
    /// Never: the event has ended.
    Never,
}

/// What a claim made of a row that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Claimed {
    /// The row after the claim.
    pub delivery: Delivery,
    /// When the row is next claimable: at the lease's end, or never if it was dead-lettered.
    pub due: Due,
    /// The attempt that an earlier worker claimed and never settled, to be recorded as lost.
    pub lost: Option<Attempt>,
}

/// The transition does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// The event has ended: there is nothing to claim or to settle.
    #[error("the event has ended")]
    Ended,
    /// The row has moved on since the claim that this settlement belongs to.
    #[error("the settlement is stale: the event has been claimed again or settled since")]
    Stale,
    /// Only a dead-lettered event can be redriven.
    #[error("the event is not dead-lettered")]
    NotDeadLettered,
}

impl Delivery {
    /// A new event: queued, due now.
    #[must_use]
    pub fn accepted() -> Self {
        Self { status: Status::Queued, attempt: 0, budget_from: 0, fence: Fence(0), reason: None }
    }

    /// How many attempts of the present budget are used up.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.attempt.saturating_sub(self.budget_from)
    }

    /// A worker takes a row that is due. The caller has checked that it is.
    ///
    /// A row that is *processing* and due is one whose lease ran out: its attempt is lost, and counts. A row with no
    /// attempts left is dead-lettered here, unsent, so that an event that kills its worker does not do so for ever.
    ///
    /// # Errors
    ///
    /// [`Illegal::Ended`] for a row that can never be due.
    pub fn claim(self, lease: Duration, max_attempts: u32) -> Result<Claimed, Illegal> {
        let lost = match self.status {
            Status::Queued | Status::Retrying => None,
            Status::Processing => Some(self.attempt),
            Status::Delivered | Status::DeadLettered => return Err(Illegal::Ended),
        };
        let fence = self.fence.next();
        if self.used() >= max_attempts {
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
    /// [`Illegal::Stale`] unless `fence` is the row's: the event was claimed again, or this was settled before.
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

    /// An operator sends a dead-lettered event back with a new budget. Its attempts keep counting.
    ///
    /// # Errors
    ///
    /// [`Illegal::NotDeadLettered`] for any other event.
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

    /// An operator has an event that was delivered sent once more, with a new budget. Its attempts keep counting:
    /// `attempts` is its last one's number.
    ///
    /// Its row is gone, and with it the fence. The new one is beyond every fence that was ever given for the event,
    /// unless a row moved two thousand million times between two deliveries: each delivery is an attempt more than at
    /// the delivery before it.
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

    /// The row as it waits: *queued* if its budget is untouched, *retrying* if not.
    fn waiting(self) -> Self {
        let status = if self.used() == 0 { Status::Queued } else { Status::Retrying };
        Self { status, ..self }
    }
}

#[cfg(test)]
mod tests {
    // What no sequence of steps may do to a row is held in `sim/model/src/targets/event.rs`.
    use super::*;

    const LEASE: Duration = Duration::from_secs(20);

    fn claimed(delivery: Delivery) -> Delivery {
        delivery.claim(LEASE, 3).unwrap().delivery
    }

    fn settled(delivery: Delivery, outcome: Outcome) -> Delivery {
        delivery.settle(delivery.fence, outcome).unwrap().0
    }

    #[test]
    fn each_name_is_that_of_the_documents_and_is_read_back() {
        assert_eq!(
            Status::ALL.map(Status::as_str),
            ["queued", "processing", "retrying", "delivered", "dead_lettered"]
        );
        assert_eq!(Reason::ALL.map(Reason::as_str), ["permanent", "exhausted", "lost"]);
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
    fn an_event_is_claimed_tried_again_and_delivered() {
        let first = claimed(Delivery::accepted());
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
    fn a_lease_that_ran_out_counts_its_attempt_and_fences_the_late_holder() {
        let slow = claimed(Delivery::accepted());
        let taken_over = slow.claim(LEASE, 3).unwrap();
        assert_eq!((taken_over.lost, taken_over.delivery.attempt), (Some(1), 2));
        assert_eq!(taken_over.delivery.settle(slow.fence, Outcome::Delivered), Err(Illegal::Stale));
    }

    #[test]
    fn an_event_that_kills_each_worker_is_dead_lettered_unsent() {
        let mut row = Delivery::accepted();
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
            "the unsent claim is not an attempt"
        );
        assert_eq!(last.delivery.settle(row.fence, Outcome::Delivered), Err(Illegal::Stale));
        let (redriven, _) = last.delivery.redrive().unwrap();
        assert_eq!(
            [row, last.delivery, redriven].map(|row| row.fence),
            [Fence(3), Fence(4), Fence(5)]
        );
    }

    #[test]
    fn a_budget_lowered_below_what_is_used_ends_in_exhaustion() {
        let retrying = settled(claimed(Delivery::accepted()), Outcome::Retry { after: LEASE });
        let ended = retrying.claim(LEASE, 1).unwrap();
        assert_eq!((ended.delivery.reason, ended.lost), (Some(Reason::Exhausted), None));
    }

    #[test]
    fn a_release_gives_the_attempt_back_and_still_moves_the_fence() {
        let first = claimed(Delivery::accepted());
        let released = settled(first, Outcome::Release);
        assert_eq!((released.status, released.attempt), (Status::Queued, 0));
        assert_eq!(released.settle(first.fence, Outcome::Delivered), Err(Illegal::Stale));
        let again = claimed(released);
        assert_eq!(again.attempt, 1);
        assert_ne!(again.fence, first.fence);
    }

    #[test]
    fn a_dead_letter_says_why() {
        let row = settled(claimed(Delivery::accepted()), Outcome::DeadLetter(Reason::Permanent));
        assert_eq!((row.status, row.reason), (Status::DeadLettered, Some(Reason::Permanent)));
    }

    #[test]
    fn a_cut_off_attempt_is_counted_and_not_charged() {
        let row = settled(claimed(Delivery::accepted()), Outcome::CutOff);
        assert_eq!((row.status, row.attempt, row.used()), (Status::Queued, 1, 0));
    }

    #[test]
    fn a_delivered_event_is_sent_once_more_behind_every_fence_that_was_given() {
        let first = claimed(Delivery::accepted());
        let (again, due) = Delivery::redelivered(settled(first, Outcome::Delivered).attempt);
        assert_eq!(
            (again.status, again.used(), due),
            (Status::Queued, 0, Due::After(Duration::ZERO))
        );
        assert!(again.fence > first.fence.next());
        let second = claimed(again);
        assert_eq!(second.attempt, 2);
        assert_eq!(
            second.settle(first.fence, Outcome::Delivered),
            Err(Illegal::Stale),
            "of the claim before"
        );
        let released = settled(second, Outcome::Release);
        let third = claimed(released);
        let (last, _) = Delivery::redelivered(settled(third, Outcome::Delivered).attempt);
        assert!(last.fence > third.fence.next());
        let latest = Delivery::redelivered(Attempt::MAX).0.fence.0;
        assert!(i64::try_from(latest).is_ok(), "stores keep a fence in 64 bits with a sign");
    }

    #[test]
    fn a_redrive_renews_the_budget_and_keeps_counting() {
        let dead = settled(claimed(Delivery::accepted()), Outcome::DeadLetter(Reason::Permanent));
        let (redriven, due) = dead.redrive().unwrap();
        assert_eq!(
            (redriven.status, redriven.used(), redriven.reason, due),
            (Status::Queued, 0, None, Due::After(Duration::ZERO))
        );
        assert_eq!(claimed(redriven).attempt, 2);
        assert_eq!(redriven.redrive(), Err(Illegal::NotDeadLettered));
    }
}
