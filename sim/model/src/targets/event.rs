//! One event's row under any sequence of claims, settlements, redrives and discards, current and
//! stale, also after its delivery.

use arbitrary::{Result, Unstructured};
use std::collections::BTreeSet;
use std::time::Duration;
use surehook_core::event::{
    DeliveryState, DiscardScope, Discarded, Due, Illegal, Outcome, Reason, Status,
};
use surehook_core::id::{Attempt, Fence};

/// Limit of the steps of a case. More steps reach no further states.
const STEPS: usize = 300;

/// An operation on the event's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A worker claims the row. The row does not know whether it is due.
    Claim {
        lease: Duration,
        /// The source's `max_attempts` at that moment.
        max_attempts: u32,
    },
    /// A settlement, possibly with a stale fence.
    Settle {
        /// How many transitions old its fence is; 0 is the current fence.
        stale_by: u64,
        outcome: Outcome,
    },
    /// An operator redrives it, as a dead letter or as a delivered event.
    Redrive,
    /// An operator discards it.
    Discard {
        scope: DiscardScope,
        /// Whether the row is due.
        is_due: bool,
    },
}

/// Runs the case that `data` describes.
///
/// # Panics
///
/// If a rule of the row is broken.
pub fn run(data: &[u8]) {
    check(&steps(data));
}

/// The steps that `data` describes. Any bytes describe some.
#[must_use]
pub fn steps(data: &[u8]) -> Vec<Step> {
    let mut bytes = Unstructured::new(data);
    let mut steps = Vec::new();
    while !bytes.is_empty() && steps.len() < STEPS {
        steps.extend(step(&mut bytes));
    }
    steps
}

fn step(bytes: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match bytes.int_in_range(0..=9)? {
        0..=3u8 => {
            Step::Claim { lease: duration(bytes)?, max_attempts: bytes.int_in_range(1..=6)? }
        }
        // One in four has a stale fence.
        4..=7 => Step::Settle {
            stale_by: bytes.int_in_range(0..=11u64)?.saturating_sub(8),
            outcome: outcome(bytes)?,
        },
        8 => Step::Redrive,
        _ => Step::Discard {
            scope: *bytes.choose(&[DiscardScope::DeadLetters, DiscardScope::Unclaimed])?,
            is_due: bytes.arbitrary()?,
        },
    })
}

fn outcome(bytes: &mut Unstructured<'_>) -> Result<Outcome> {
    Ok(match bytes.int_in_range(0..=5)? {
        0u8 => Outcome::Delivered,
        1 | 2 => Outcome::Retry { after: duration(bytes)? },
        3 => Outcome::DeadLetter(*bytes.choose(&Reason::OF_ATTEMPTS)?),
        4 => Outcome::Release,
        _ => Outcome::CutOff,
    })
}

/// Mostly seconds, sometimes the longest possible duration.
fn duration(bytes: &mut Unstructured<'_>) -> Result<Duration> {
    Ok(if bytes.ratio(1, 8)? {
        Duration::MAX
    } else {
        Duration::from_secs(u64::from(bytes.arbitrary::<u8>()?))
    })
}

/// Applies all steps to a new event, and checks the rules of the row after each.
///
/// # Panics
///
/// If a rule is broken.
pub fn check(steps: &[Step]) {
    let mut watched = Watched {
        row: DeliveryState::accepted(),
        claims: BTreeSet::new(),
        recorded: BTreeSet::new(),
        highest: Fence(0),
    };
    for step in steps {
        watched.step(*step);
    }
}

/// The row, and the history that its rules refer to.
struct Watched {
    row: DeliveryState,
    /// The fences of all claims.
    claims: BTreeSet<Fence>,
    /// The attempts that have an entry in the event's history.
    recorded: BTreeSet<Attempt>,
    /// The highest fence that the event has had.
    highest: Fence,
}

impl Watched {
    fn step(&mut self, step: Step) {
        let before = self.row;
        let done = match step {
            Step::Claim { lease, max_attempts } => self.claim(lease, max_attempts),
            Step::Settle { stale_by, outcome } => {
                self.settle(Fence(before.fence.0.saturating_sub(stale_by)), outcome)
            }
            Step::Redrive => self.redrive(),
            Step::Discard { scope, is_due } => self.discard(scope, is_due),
        };
        let Some((after, due)) = done else { return };
        let ended = matches!(after.status, Status::Delivered | Status::DeadLettered);
        if before.status == Status::Delivered {
            assert_eq!(step, Step::Redrive, "only a redrive changes a delivered event");
            assert!(
                after.fence > self.highest,
                "the fence of {after:?} is not greater than {:?}",
                self.highest
            );
        } else {
            assert_eq!(
                after.fence,
                before.fence.next(),
                "{step:?} does not increase the fence by one"
            );
        }
        self.highest = self.highest.max(after.fence);
        assert_eq!(due == Due::Never, ended, "exactly the ended events are never due: {after:?}");
        assert_eq!(after.reason.is_some(), after.status == Status::DeadLettered, "{after:?}");
        assert!(after.budget_from <= after.attempt, "{after:?}");
        match after.status {
            Status::Queued => {
                assert_eq!(
                    after.attempts_used(),
                    0,
                    "a queued event has used a part of its budget: {after:?}"
                );
            }
            Status::Processing | Status::Retrying => {
                assert!(after.attempts_used() > 0, "{after:?}");
            }
            Status::Delivered | Status::DeadLettered => {}
        }
        self.row = after;
    }

    fn claim(&mut self, lease: Duration, max_attempts: u32) -> Option<(DeliveryState, Due)> {
        let before = self.row;
        let ended = matches!(before.status, Status::Delivered | Status::DeadLettered);
        let claimed = match before.claim(lease, max_attempts) {
            Err(illegal) => {
                assert!(ended && illegal == Illegal::Ended, "{illegal} for {before:?}");
                return None;
            }
            Ok(claimed) => claimed,
        };
        assert!(!ended, "the ended event {before:?} was claimed");
        let held = before.status == Status::Processing;
        assert_eq!(
            claimed.lost,
            held.then_some(before.attempt),
            "an attempt is lost exactly if it was not settled"
        );
        if let Some(lost) = claimed.lost {
            assert!(self.recorded.insert(lost), "attempt {lost} is recorded twice");
        }
        let after = claimed.delivery;
        assert_eq!(after.budget_from, before.budget_from, "a claim changed the budget");
        if before.attempts_used() >= max_attempts {
            let reason = if held { Reason::Lost } else { Reason::Exhausted };
            assert_eq!(
                (after.status, after.reason, after.attempt),
                (Status::DeadLettered, Some(reason), before.attempt)
            );
        } else {
            assert_eq!(
                (after.status, after.attempt, claimed.due),
                (Status::Processing, before.attempt + 1, Due::After(lease))
            );
            assert!(
                !self.recorded.contains(&after.attempt),
                "the number of attempt {} is used again",
                after.attempt
            );
            assert!(self.claims.insert(after.fence), "two claims share a fence");
        }
        Some((after, claimed.due))
    }

    fn settle(&mut self, fence: Fence, outcome: Outcome) -> Option<(DeliveryState, Due)> {
        let before = self.row;
        let holds = before.status == Status::Processing && fence == before.fence;
        assert!(!holds || self.claims.contains(&fence), "an event is processing without a claim");
        let (after, due) = match before.settle(fence, outcome) {
            Err(illegal) => {
                assert!(
                    !holds && illegal == Illegal::Stale,
                    "{illegal}, but {fence:?} is the fence of {before:?}"
                );
                return None;
            }
            Ok(settled) => settled,
        };
        assert!(holds, "the stale {fence:?} settled {before:?}");
        let at_once = Due::After(Duration::ZERO);
        let (status, attempt, budget_from, expected) = match outcome {
            Outcome::Delivered => {
                (Status::Delivered, before.attempt, before.budget_from, Due::Never)
            }
            Outcome::DeadLetter(_) => {
                (Status::DeadLettered, before.attempt, before.budget_from, Due::Never)
            }
            Outcome::Retry { after } => {
                (Status::Retrying, before.attempt, before.budget_from, Due::After(after))
            }
            Outcome::Release => (after.status, before.attempt - 1, before.budget_from, at_once),
            Outcome::CutOff => (after.status, before.attempt, before.budget_from + 1, at_once),
        };
        assert_eq!(
            (after.status, after.attempt, after.budget_from, due),
            (status, attempt, budget_from, expected),
            "{outcome:?}"
        );
        if outcome != Outcome::Release {
            assert!(
                self.recorded.insert(before.attempt),
                "attempt {} is recorded twice",
                before.attempt
            );
        }
        Some((after, due))
    }

    fn redrive(&mut self) -> Option<(DeliveryState, Due)> {
        let before = self.row;
        if before.status == Status::Delivered {
            let (after, due) = DeliveryState::redelivered(before.attempt);
            assert_eq!(
                (after.status, after.attempt, after.attempts_used()),
                (Status::Queued, before.attempt, 0)
            );
            return Some((after, due));
        }
        let dead = before.status == Status::DeadLettered;
        let (after, due) = match before.redrive() {
            Err(illegal) => {
                assert!(!dead && illegal == Illegal::NotDeadLettered, "{illegal} for {before:?}");
                return None;
            }
            Ok(redriven) => redriven,
        };
        assert!(dead, "{before:?} is not a dead letter, but was redriven");
        assert_eq!(
            (after.status, after.attempt, due),
            (Status::Queued, before.attempt, Due::After(Duration::ZERO))
        );
        Some((after, due))
    }

    fn discard(&mut self, scope: DiscardScope, is_due: bool) -> Option<(DeliveryState, Due)> {
        let before = self.row;
        let was_discarded = before.reason == Some(Reason::Discarded);
        let can_wait = scope == DiscardScope::Unclaimed;
        let is_allowed = match before.status {
            Status::DeadLettered => !was_discarded,
            Status::Queued | Status::Retrying => can_wait,
            Status::Processing => can_wait && is_due,
            Status::Delivered => false,
        };
        let Discarded { delivery: after, ends_now, lost } = match before.discard(scope, is_due) {
            Err(illegal) => {
                assert!(!is_allowed, "{illegal} for {before:?}");
                let expected = match before.status {
                    Status::Delivered => Illegal::Ended,
                    Status::DeadLettered => Illegal::AlreadyDiscarded,
                    Status::Queued | Status::Processing | Status::Retrying => Illegal::Unended,
                };
                assert_eq!(illegal, expected, "{before:?}");
                return None;
            }
            Ok(discarded) => discarded,
        };
        assert!(is_allowed, "{before:?} was discarded");
        assert_eq!(
            (after.status, after.reason, after.attempt, after.budget_from),
            (Status::DeadLettered, Some(Reason::Discarded), before.attempt, before.budget_from)
        );
        assert_eq!(ends_now, before.status != Status::DeadLettered, "{before:?}");
        assert_eq!(lost, (before.status == Status::Processing).then_some(before.attempt));
        if let Some(lost) = lost {
            assert!(self.recorded.insert(lost), "attempt {lost} is recorded twice");
        }
        Some((after, Due::Never))
    }
}
