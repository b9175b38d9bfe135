//! The row changes of the simulated database: those of the reference database, with the planted
//! bugs that concern them.

use crate::bugs::Bug;
use jiff::Timestamp;
use std::time::Duration;
use surehook::ports::{Discarded, NewEvent};
use surehook_core::admission::Stored;
use surehook_core::event::{DeliveryState, DiscardScope, Outcome, RedrivenBy};
use surehook_core::id::{EventId, Fence};
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use surehook_model::database::{Database, DeliveryRow};

/// Redrives one event, with the planted bugs of a redrive.
pub(crate) fn redrive_one(
    tables: &mut Database,
    now: Timestamp,
    event: EventId,
    delivered: bool,
    bug: Option<Bug>,
) {
    redrive(tables, now, event, delivered, bug);
    forget_actions(tables, event, bug);
}

fn forget_actions(tables: &mut Database, event: EventId, bug: Option<Bug>) {
    if bug == Some(Bug::ActionForgotten) {
        tables.actions.retain(|(of, _), _| *of != event);
    }
}

fn redrive(
    tables: &mut Database,
    now: Timestamp,
    event: EventId,
    delivered: bool,
    bug: Option<Bug>,
) {
    if !delivered {
        let before = tables.deliveries.get(&event).map_or(0, |row| row.delivery.budget_from);
        tables.redrive(now, event, RedrivenBy::Operator);
        if let (Some(Bug::RedriveWithoutBudget), Some(row)) =
            (bug, tables.deliveries.get_mut(&event))
        {
            row.delivery.budget_from = before;
        }
        return;
    }
    tables.redrive_delivered(now, event);
    if let (Some(Bug::RedeliveredUnderAnOldFence), Some(row)) =
        (bug, tables.deliveries.get_mut(&event))
    {
        row.delivery.fence = Fence(0);
    }
}

/// Discards one event, with the planted bugs of a discard.
pub(crate) fn discard_one(
    tables: &mut Database,
    now: Timestamp,
    event: EventId,
    scope: DiscardScope,
    bug: Option<Bug>,
) -> Discarded {
    if bug == Some(Bug::DiscardsInFlight)
        && scope == DiscardScope::Unclaimed
        && let Some(row) = tables.deliveries.get_mut(&event)
    {
        row.due_at = row.due_at.map(|due_at| due_at.min(now));
    }
    let discarded = tables.discard(now, event, scope);
    forget_actions(tables, event, bug);
    discarded
}

/// Accepts one event, with the planted bugs of an accept.
pub(crate) fn accept_one(
    tables: &mut Database,
    now: Timestamp,
    event: NewEvent,
    bug: Option<Bug>,
) -> Stored {
    let key = (event.source.clone(), event.key.clone());
    match bug {
        Some(Bug::NoUniqueness) => {
            tables.keys.remove(&key);
        }
        Some(Bug::DedupeWithoutSource) => {
            let same_key =
                tables.keys.iter().find(|((_, key), _)| *key == event.key).map(|(_, id)| *id);
            if let Some(id) = same_key {
                tables.keys.insert(key, id);
            }
        }
        _ => {}
    }
    tables.accept_one(now, event)
}

/// Claims one event, with the planted bugs of a claim.
pub(crate) fn claim_one(
    tables: &mut Database,
    now: Timestamp,
    demand: &Demand,
    event: EventId,
    claims: &mut Claims,
    bug: Option<Bug>,
) {
    let before = tables.deliveries[&event].delivery;
    tables.claim_one(now, demand, event, claims);
    match bug {
        Some(Bug::RetryWithoutCounting) if before.attempt > 0 => {
            let row = tables.deliveries.get_mut(&event).expect("the row was just claimed");
            row.delivery.attempt = before.attempt;
            if let Some(claim) = claims.claimed.last_mut().filter(|claim| claim.event == event) {
                claim.attempt = before.attempt;
                claim.in_budget = before.in_budget();
            }
        }
        Some(Bug::DropExhausted) if before.attempts_used() >= demand.max_attempts => {
            tables.deliveries.remove(&event);
        }
        Some(Bug::ReceivedAtTheClaim) => {
            if let Some(claim) = claims.claimed.last_mut().filter(|claim| claim.event == event) {
                claim.received_at = now;
            }
        }
        Some(Bug::LostAttemptForgotten) => {
            tables.attempts.retain(|(of, _), entry| *of != event || entry.took.is_some());
        }
        _ => {}
    }
}

/// Settles one event, with the planted bugs of a settlement.
pub(crate) fn settle_one(
    tables: &mut Database,
    now: Timestamp,
    mut settlement: Settlement,
    bug: Option<Bug>,
) -> bool {
    if bug == Some(Bug::ForgetFence)
        && let Some(DeliveryRow { delivery: DeliveryState { fence, .. }, .. }) =
            tables.deliveries.get(&settlement.event)
    {
        settlement.fence = Fence(fence.0);
    }
    match (bug, &mut settlement.outcome) {
        (Some(Bug::RetryWithoutBackoff), Outcome::Retry { after }) => *after = Duration::ZERO,
        (Some(Bug::JitterUndercuts), Outcome::Retry { after }) => *after /= 4,
        _ => {}
    }
    tables.settle_one(now, &settlement)
}
