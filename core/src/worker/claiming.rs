//! The two ways in which a worker gets events: its own claims, and offers, on which new events are
//! claimed for it on insert.

use super::claims::{Claim, Claims, Demand};
use super::interface::{Action, BATCH, BATCH_ROWS, FULL};
use super::memory::Origin;
use super::queue::Offered;
use super::{Claiming, Failing, Phase, Worker};
use crate::time::Instant;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

/// While some queues are known to have work, one seat of this number in a claim goes to a queue
/// that only may have some.
const CHANCE: u32 = 4;

impl Worker {
    /// At most one claim is in flight. There is no claim while no queue has capacity and memory,
    /// while a full batch waits to be settled, or while the store fails and settlements are
    /// pending.
    pub(super) fn may_claim(&self) -> bool {
        let settling_first =
            self.store.fails() && (self.settling.is_some() || !self.unsettled.is_empty());
        self.claiming.is_none()
            && !(self.askable.is_empty() && self.probable.is_empty())
            && self.unsettled.len() < BATCH
            && !settling_first
    }

    /// Claims for the sources that have capacity, and have work or may have some. If the claim
    /// cannot serve all in full, the sources with the smallest appetite come first. Each gets its
    /// appetite or half of an even share, whichever is greater, but at most an even share of the
    /// rest. The last one, with the largest appetite, gets all that is left.
    pub(super) fn claim(&mut self, now: Instant) -> Action {
        let mut room = BATCH_ROWS;
        let mut asked = self.take_seats(room);
        let is_crowded =
            asked.iter().map(|&index| self.queues[index].demand()).fold(0, u32::saturating_add)
                > room;
        let queues = u32::try_from(asked.len()).expect("at most `room` queues");
        let half_of_a_share = room.div_ceil(2 * queues.max(1));
        if is_crowded {
            asked.sort_by_key(|&index| self.queues[index].appetite());
        }
        let mut demands = Vec::with_capacity(asked.len());
        for (&index, waiting) in asked.iter().zip((1..=queues).rev()) {
            let queue = &mut self.queues[index];
            let limit = queue.demand().min(if is_crowded && waiting > 1 {
                queue.appetite().max(half_of_a_share).min(room / waiting)
            } else {
                room
            });
            self.memory.widen(
                index,
                usize::try_from(limit)
                    .unwrap_or(usize::MAX)
                    .saturating_mul(self.memory.weigh(queue.typical_size)),
            );
            let bytes = self.memory.room(index);
            let limit = limit.min(queue.fit_into(bytes)).min(self.memory.most_events(bytes));
            room -= limit;
            let (lease, max_attempts) = (queue.policy.lease(), queue.policy.max_attempts);
            demands.push(Demand {
                source: queue.source.clone(),
                limit,
                bytes,
                lease,
                max_attempts,
            });
            queue.asked(limit);
        }
        self.claim_after = now + self.settings.claim_pace;
        self.claiming = Some(Claiming { sent_at: now, asked });
        Action::Claim(demands)
    }

    /// The queues of the next claim, at most `room`, in turn from where the last claim ended. While
    /// some have work, only every [`CHANCE`]th seat, and the same part of `room`, is for those that
    /// may have some. Most of these have no events, and a thousand of them must not displace a busy
    /// one.
    fn take_seats(&mut self, room: u32) -> Vec<usize> {
        let in_turn = |set: &BTreeSet<usize>, from: usize| {
            set.range(from..).chain(set.range(..from)).copied().collect::<VecDeque<_>>()
        };
        let mut with_work = in_turn(&self.askable, self.claim_from);
        let mut by_chance = in_turn(&self.probable, self.probe_from);
        if !with_work.is_empty() {
            by_chance.truncate(usize::try_from(room.div_ceil(CHANCE)).unwrap_or(usize::MAX));
        }
        let mut asked = Vec::new();
        for _ in 0..room {
            self.seats = self.seats.wrapping_add(1);
            let is_by_chance = self.seats.is_multiple_of(CHANCE) || with_work.is_empty();
            if let Some(index) = if is_by_chance { by_chance.pop_front() } else { None } {
                self.probe_from = index + 1;
                asked.push(index);
            } else if let Some(index) = with_work.pop_front() {
                self.claim_from = index + 1;
                asked.push(index);
            } else if by_chance.is_empty() {
                break;
            }
        }
        asked
    }

    pub(super) fn claimed(&mut self, now: Instant, claims: Claims) {
        let Some(Claiming { sent_at, asked }) = self.claiming.take() else {
            debug_assert!(self.is_over(), "a claim returned that is not in flight");
            return;
        };
        self.store.claims = Failing::default();
        if claims.claimed.is_empty() && claims.dead_lettered.is_empty() {
            self.polling.interval =
                self.polling.interval.saturating_mul(2).min(self.settings.poll_idle);
        } else {
            self.something_came(now);
        }
        let came = claims
            .claimed
            .iter()
            .map(|claim| &claim.source)
            .chain(claims.dead_lettered.iter().map(|dead_lettered| &dead_lettered.source));
        for source in came {
            if let Some(&index) = self.by_source.get(source) {
                self.queues[index].came += 1;
            }
        }
        for &index in &asked {
            self.queues[index].next_size = None;
        }
        for held_back in claims.held_back {
            if let Some(&index) = self.by_source.get(&held_back.source) {
                self.queues[index].next_size = Some(held_back.size);
            }
        }
        for claim in claims.claimed {
            self.hold(now, sent_at, Origin::Claim, claim);
        }
        for index in asked {
            self.memory.withdraw(index);
            self.queues[index].answered(now.since(sent_at), self.settings.claim_pace);
            self.refresh(index);
        }
    }

    /// Events that are handed over use up the offer, both here and in the intake.
    pub(super) fn handed(&mut self, now: Instant, since: Instant, claims: Vec<Claim>) {
        self.something_came(now);
        for claim in claims {
            if let Some(&index) = self.by_source.get(&claim.source) {
                let Offered { room, bytes } = &mut self.queues[index].offered;
                (*room, *bytes) = (room.saturating_sub(1), bytes.saturating_sub(claim.size()));
            }
            self.hold(now, since, Origin::Offer, claim);
        }
    }

    /// The claim failed, or its outcome is unknown.
    pub(super) fn claim_failed(&mut self, now: Instant) {
        let claiming = self.claiming.take();
        debug_assert!(claiming.is_some() || self.is_over(), "a claim failed that is not in flight");
        for index in claiming.into_iter().flat_map(|claiming| claiming.asked) {
            self.queues[index].is_asked = false;
            self.memory.withdraw(index);
            self.refresh(index);
        }
        self.store.claims = self.failed_again(now, self.store.claims);
    }

    /// Updates whether a queue waits for memory: it would be claimed for if it had some.
    pub(super) fn refresh_memory(&mut self, index: usize, asks: bool, has_memory: bool) {
        if asks && !has_memory {
            return self.memory.wait(index);
        }
        self.memory.wait_no_more(index);
        if !asks && !self.queues[index].is_asked {
            self.memory.withdraw(index);
        }
    }

    /// Lets queues claim that waited for memory and got some.
    pub(super) fn grant_memory(&mut self) {
        for index in self.memory.grant(&self.queues) {
            self.refresh(index);
        }
    }

    /// At a poll, queues that wait for memory claim with what is left of their own shares. The event
    /// that did not fit may be gone, or another one may be due before it.
    pub(super) fn look_again(&mut self) {
        for index in self.memory.waiting() {
            if self.memory.may_claim(index, None) {
                self.queues[index].looks_again = true;
                self.refresh(index);
            }
        }
    }

    /// Polls sources without work again soon.
    fn something_came(&mut self, now: Instant) {
        self.polling.interval = self.settings.poll_busy;
        self.polling.at = self.polling.at.min(now + self.settings.poll_busy);
    }

    /// Updates whether offers are made at all.
    ///
    /// While a full batch waits to be settled there is no claim, so older events may wait. Offers
    /// would let new ones overtake them, and more deliveries would end than are settled. They begin
    /// again at a lower mark, so that not all of them change with each batch.
    pub(super) fn refresh_offers(&mut self) {
        let most_unsettled = if self.makes_offers { BATCH } else { FULL };
        let makes_offers = self.phase == Phase::Running
            && !self.store.fails()
            && self.shortage.until.is_none()
            && self.unsettled.len() < most_unsettled;
        if makes_offers != self.makes_offers {
            self.makes_offers = makes_offers;
            for index in 0..self.queues.len() {
                self.refresh_offer(index);
            }
        }
    }

    pub(super) fn refresh_offer(&mut self, index: usize) {
        if self.offer(index) == self.queues[index].offered {
            self.offering.remove(&index)
        } else {
            self.offering.insert(index)
        };
    }

    /// The offer of a queue: how many new events may be claimed for it on insert, and their total
    /// size.
    pub(super) fn offer(&self, index: usize) -> Offered {
        let room = if self.makes_offers { self.queues[index].offer() } else { 0 };
        let (events, bytes) = self.memory.offer(index);
        let room = room.min(events);
        if room == 0 { Offered::default() } else { Offered { room, bytes } }
    }
}
