//! How the memory for held events is shared, so that no source keeps another from being delivered.
//!
//! A quarter of the memory is for events that are handed over as they are stored, and a quarter for events that are
//! claimed. Both are divided evenly: each source has its own share of each, which no other source can take. The other half
//! is common. A source whose own share for claims is not enough takes the rest from the common part:
//!
//! - A source that holds nothing in the common part may take one event. Sources that wait for room take turns, and what
//!   the first of them needs is kept free for it.
//! - A source that holds something there may hold as much as it leaves free. So one busy source gets half of the common
//!   part, two get a third each, and there is always something left (this is the *dynamic threshold* of switches that
//!   share one buffer between ports).
//! - Sources whose deliveries end soon and all other sources form two groups. Each group may hold three quarters of the
//!   common part, so that hung destinations leave a quarter to sources that hold memory for an instant.
//!
//! An event that is larger than its group's part may be held while its group holds nothing else there, and the other group
//! holds no such event. So all events together never take more than the bound and one event.

use super::lane::Lane;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

/// A delivery that takes no longer shows that its source holds memory for an instant.
pub(super) const PROMPT: Duration = Duration::from_secs(1);

/// How long a source holds memory, judged by its last delivery that ended. Sources that wait for memory are served in this
/// order: one that was never seen is not kept waiting by those that are known to be slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pace {
    Prompt,
    Unknown,
    Slow,
}

impl Pace {
    /// The pace that a delivery of this length shows.
    pub(super) fn of(took: Duration) -> Self {
        if took <= PROMPT { Self::Prompt } else { Self::Slow }
    }

    fn group(self) -> usize {
        usize::from(self != Self::Prompt)
    }
}

/// How an event came to this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It was claimed.
    Claim,
    /// It was handed over as it was stored.
    Offer,
}

/// One source's part.
#[derive(Clone, Copy, Debug)]
struct Account {
    pace: Pace,
    /// The bytes of events that were handed over.
    offered: usize,
    /// The bytes of events that were claimed.
    claimed: usize,
    /// Bytes of the common part that the next claim may bring, besides what is left of the source's own share.
    promised: usize,
    /// The place in the order of those that wait. It is kept until the source gets what it waits for.
    since: Option<u64>,
}

/// The memory of one worker.
#[derive(Debug)]
pub(super) struct Memory {
    /// What each source has for itself, once for claims and once for offers.
    own: usize,
    /// The common part, and how much of it one group may hold.
    common: usize,
    of_one_group: usize,
    /// What each group holds of the common part, or was promised of it. Of one source no more than `of_one_group` counts.
    used: [usize; 2],
    /// What does not count there: the rest of an event that is larger than its group's part.
    beyond: usize,
    accounts: Vec<Account>,
    /// Sources that wait for room in the common part: their pace, since when, which.
    waiting: BTreeSet<(Pace, u64, usize)>,
    next_place: u64,
    /// Whether there may be room for somebody who waits.
    has_changed: bool,
    held: usize,
}

impl Memory {
    /// Memory of `limit` bytes for this number of sources.
    pub(super) fn new(limit: usize, sources: usize) -> Self {
        let own = limit / 4 / sources.max(1);
        let common = limit - limit / 4 - limit / 4;
        let account =
            Account { pace: Pace::Unknown, offered: 0, claimed: 0, promised: 0, since: None };
        Self {
            own,
            common,
            of_one_group: common - common / 4,
            used: [0; 2],
            beyond: 0,
            accounts: alloc::vec![account; sources],
            waiting: BTreeSet::new(),
            next_place: 0,
            has_changed: false,
            held: 0,
        }
    }

    /// The bytes of all events that are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// How many bytes may be handed over to a source as they are stored, besides those that it holds.
    pub(super) fn offer(&self, lane: usize) -> usize {
        self.own.saturating_sub(self.accounts[lane].offered)
    }

    /// How many bytes a claim may bring to a source now.
    pub(super) fn room(&self, lane: usize) -> usize {
        let account = &self.accounts[lane];
        self.own.saturating_sub(account.claimed) + account.promised
    }

    /// Whether a source may be claimed for: its next event fits as far as its size is known, and else there is some room.
    pub(super) fn may_claim(&self, lane: usize, next: Option<usize>) -> bool {
        self.room(lane) >= next.unwrap_or(1)
    }

    /// Puts a source that wants to claim among those that wait for memory.
    pub(super) fn wait(&mut self, lane: usize) {
        let account = &mut self.accounts[lane];
        let since = *account.since.get_or_insert_with(|| {
            self.next_place += 1;
            self.next_place
        });
        self.has_changed |= self.waiting.insert((account.pace, since, lane));
    }

    /// A source does not wait any more. It keeps its place, in case that it comes back, unless it has got what it wanted.
    pub(super) fn wait_no_more(&mut self, lane: usize) {
        let account = &self.accounts[lane];
        if let Some(since) = account.since {
            self.has_changed |= self.waiting.remove(&(account.pace, since, lane));
        }
    }

    /// Those that wait, in no order that matters.
    pub(super) fn waiting(&self) -> Vec<usize> {
        self.waiting.iter().map(|(_, _, lane)| *lane).collect()
    }

    /// Whether anybody waits.
    pub(super) fn is_short(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Promises room to those that wait, in their turn, and answers who got some.
    pub(super) fn grant(&mut self, lanes: &[Lane]) -> Vec<usize> {
        let mut granted = Vec::new();
        if !core::mem::take(&mut self.has_changed) {
            return granted;
        }
        let mut is_closed = [false; 2];
        for (pace, since, lane) in self.waiting.iter().copied().collect::<Vec<_>>() {
            let group = pace.group();
            if is_closed[group] {
                if is_closed == [true; 2] {
                    break;
                }
                continue;
            }
            let Lane { next_size, typical_size, .. } = &lanes[lane];
            let need = next_size.unwrap_or(*typical_size).max(1).saturating_sub(self.room(lane));
            let has_some = self.part(lane) > 0;
            if if has_some { need <= self.growth(lane) } else { self.fits(group, need) } {
                self.promise(lane, need);
                self.waiting.remove(&(pace, since, lane));
                granted.push(lane);
            } else {
                // What it needs is kept free for the first in turn; one that has its share stands in nobody's way.
                is_closed[group] = !has_some;
            }
        }
        granted
    }

    /// Promises more room to a source that is about to be claimed for, so that it gets about `wanted` bytes in all: as far as
    /// it may grow, and nobody of its group waits.
    pub(super) fn widen(&mut self, lane: usize, wanted: usize) {
        // Those that wait are sorted by pace, and so by group.
        let somebody_waits = match self.accounts[lane].pace {
            Pace::Prompt => self.waiting.first().is_some_and(|(pace, _, _)| *pace == Pace::Prompt),
            Pace::Unknown | Pace::Slow => {
                self.waiting.last().is_some_and(|(pace, _, _)| *pace != Pace::Prompt)
            }
        };
        if !somebody_waits {
            let more = wanted.saturating_sub(self.room(lane)).min(self.growth(lane));
            self.promise(lane, more);
        }
    }

    /// What was promised to a source and not brought is free again.
    pub(super) fn withdraw(&mut self, lane: usize) {
        self.has_changed |= self.accounts[lane].promised > 0;
        self.change(lane, |account, _| account.promised = 0);
    }

    /// A source holds an event of this size from now on.
    pub(super) fn take(&mut self, lane: usize, origin: Origin, size: usize) {
        self.held += size;
        self.change(lane, |account, own| match origin {
            Origin::Offer => account.offered += size,
            Origin::Claim => {
                let before = account.claimed.saturating_sub(own);
                account.claimed += size;
                account.promised =
                    account.promised.saturating_sub(account.claimed.saturating_sub(own) - before);
                account.since = None;
            }
        });
    }

    /// A source holds an event no more.
    pub(super) fn free(&mut self, lane: usize, origin: Origin, size: usize) {
        self.held -= size;
        self.has_changed |= origin == Origin::Claim;
        self.change(lane, |account, _| match origin {
            Origin::Offer => account.offered -= size,
            Origin::Claim => account.claimed -= size,
        });
    }

    /// A delivery of a source showed its pace.
    pub(super) fn learn(&mut self, lane: usize, pace: Pace) {
        let Account { pace: before, since, .. } = self.accounts[lane];
        if before == pace {
            return;
        }
        self.has_changed = true;
        self.change(lane, |account, _| account.pace = pace);
        if let Some(since) = since
            && self.waiting.remove(&(before, since, lane))
        {
            self.waiting.insert((pace, since, lane));
        }
    }

    fn promise(&mut self, lane: usize, bytes: usize) {
        self.change(lane, |account, _| account.promised += bytes);
    }

    /// Changes a source's account, and what its group uses with it.
    fn change(&mut self, lane: usize, change: impl FnOnce(&mut Account, usize)) {
        let part = self.part(lane);
        self.used[self.accounts[lane].pace.group()] -= part.min(self.of_one_group);
        self.beyond -= part.saturating_sub(self.of_one_group);
        change(&mut self.accounts[lane], self.own);
        let part = self.part(lane);
        self.used[self.accounts[lane].pace.group()] += part.min(self.of_one_group);
        self.beyond += part.saturating_sub(self.of_one_group);
    }

    /// What a source holds of the common part, or was promised of it.
    fn part(&self, lane: usize) -> usize {
        let account = &self.accounts[lane];
        account.claimed.saturating_sub(self.own) + account.promised
    }

    /// What is free for a group.
    fn free_for(&self, group: usize) -> usize {
        let free = self.common.saturating_sub(self.used[0] + self.used[1]);
        free.min(self.of_one_group.saturating_sub(self.used[group]))
    }

    /// Whether this many more bytes fit into a group's part. If they are more than all of it, whether they may go beyond it.
    fn fits(&self, group: usize, bytes: usize) -> bool {
        bytes <= self.free_for(group)
            || (bytes > self.of_one_group && self.used[group] == 0 && self.beyond == 0)
    }

    /// By how many bytes a source may grow in the common part and still leave as much free as it holds there.
    fn growth(&self, lane: usize) -> usize {
        self.free_for(self.accounts[lane].pace.group()).saturating_sub(self.part(lane)) / 2
    }
}
