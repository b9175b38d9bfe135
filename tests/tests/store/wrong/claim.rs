//! Stores that claim wrongly.

use super::{Wrong, WrongStore};
use bytes::Bytes;
use jiff::Timestamp;
use std::time::Duration;
use surehook::ports::StoreError;
use surehook_core::event::{Reason, Status};
use surehook_core::id::Fence;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{Claim, Claims, Demand, HeldBack};
use surehook_model::database::Database;

const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

impl WrongStore {
    pub(super) fn wrong_claim(&self, mut demands: Vec<Demand>) -> Result<Claims, StoreError> {
        if self.wrong == Wrong::LongLeasesAreRejected
            && demands.iter().any(|demand| demand.lease > CENTURY)
        {
            return Err(StoreError::Rejected("the time is out of range".into()));
        }
        if let Some(again) = self.given_out.lock().unwrap().take() {
            return Ok(again);
        }
        self.distort(&mut demands);
        let claims = self.memory.transact(|tables, now| {
            let mut claims = Claims::default();
            for demand in &demands {
                self.claim_one_demand(tables, now, demand, &mut claims);
            }
            claims
        });
        if self.wrong == Wrong::HandsOutTwice {
            *self.given_out.lock().unwrap() = Some(claims.clone());
        }
        Ok(claims)
    }

    fn distort(&self, demands: &mut [Demand]) {
        let Some(first) = demands.first().cloned() else { return };
        for demand in demands {
            match self.wrong {
                Wrong::IgnoresLimits => demand.limit = u32::MAX,
                Wrong::IgnoresBytes => demand.bytes = usize::MAX,
                Wrong::OneBoundOfBytesForAll => demand.bytes = first.bytes,
                Wrong::OneLimitForAll => demand.limit = first.limit,
                Wrong::OneLeaseForAll => demand.lease = first.lease,
                Wrong::NoLease => demand.lease = Duration::ZERO,
                Wrong::NeverDeadLetters => demand.max_attempts = u32::MAX,
                _ => {}
            }
        }
    }

    fn claim_one_demand(
        &self,
        tables: &mut Database,
        now: Timestamp,
        demand: &Demand,
        claims: &mut Claims,
    ) {
        let look_from =
            if self.wrong == Wrong::ClaimsWhatIsNotDue { now + 2 * CENTURY / 10 } else { now };
        let mut due = tables.due(look_from, &demand.source);
        match self.wrong {
            Wrong::NewestFirst => due.reverse(),
            Wrong::KeepsLeasesForEver => {
                due.retain(|event| tables.status(*event) != Status::Processing);
            }
            _ => {}
        }
        let (mut left, mut bytes) = (demand.limit, demand.bytes);
        for event in due {
            if left == 0 {
                return;
            }
            let size = if self.wrong == Wrong::WeighsBodiesAlone {
                tables.events[&event].event.body.len()
            } else {
                tables.size(demand, event)
            };
            let size = if self.wrong == Wrong::WeighsNoQueries {
                size - tables.events[&event].event.query.len().min(size)
            } else {
                size
            };
            let size = if self.wrong == Wrong::WeighsDeadLetters {
                tables.events[&event].event.size()
            } else {
                size
            };
            if size > bytes {
                match self.wrong {
                    Wrong::SkipsWhatDoesNotFit => continue,
                    Wrong::SaysNothingOfWhatDoesNotFit => return,
                    _ => {}
                }
                claims.held_back.push(HeldBack { source: demand.source.clone(), size });
                return;
            }
            bytes -= if self.wrong == Wrong::WeighsEachAlone { 0 } else { size };
            let before = tables.deliveries[&event].delivery;
            let dead_lettered_before = claims.dead_lettered.len();
            tables.claim_one(now, demand, event, claims);
            let is_dead_lettered = claims.dead_lettered.len() > dead_lettered_before;
            if !(is_dead_lettered && self.wrong == Wrong::DeadLettersDoNotCount) {
                left -= 1;
            }
            let row = &mut tables.deliveries.get_mut(&event).expect("just claimed").delivery;
            let claim = claims.claimed.last_mut().filter(|claim| claim.event == event);
            match (self.wrong, claim) {
                (Wrong::FenceStaysAtAClaim, Some(claim)) => {
                    row.fence = before.fence;
                    claim.fence = before.fence;
                }
                (Wrong::AttemptStaysAtAClaim, Some(claim)) => {
                    row.attempt = before.attempt;
                    claim.attempt = before.attempt;
                    claim.in_budget = before.in_budget();
                }
                (Wrong::AgesFromTheClaim, Some(claim)) => claim.age = Duration::ZERO,
                (Wrong::ReceivedAtTheClaim, Some(claim)) => claim.received_at = now,
                (Wrong::BytesAsText, Some(claim)) => {
                    claim.body = String::from_utf8_lossy(&claim.body).into_owned().into();
                }
                (Wrong::ForgetsQueries, Some(claim)) => claim.query = Bytes::new(),
                (Wrong::DeadLettersAlwaysAsLost, None) => row.reason = Some(Reason::Lost),
                (Wrong::SendsDeadLetters, None) => {
                    let stored = &tables.events[&event].event;
                    claims.claimed.push(Claim {
                        event,
                        source: demand.source.clone(),
                        fence: Fence(row.fence.0),
                        attempt: row.attempt,
                        in_budget: row.in_budget(),
                        age: Duration::ZERO,
                        received_at: now,
                        query: stored.query.clone(),
                        headers: stored.headers.clone(),
                        body: stored.body.clone(),
                    });
                }
                _ => {}
            }
            if self.wrong == Wrong::ForgetsLostAttempts {
                tables
                    .attempts
                    .retain(|(of, _), entry| *of != event || entry.verdict != Verdict::Lost);
            }
        }
    }
}
