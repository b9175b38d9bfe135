//! How the memory for held events is shared, so that no source can block the deliveries of another.
//!
//! A quarter of the memory is for events claimed on insert (offers), and a quarter for other
//! claimed events. Both are divided evenly: each source has a separate share of each. The other
//! half is common. When a source's share for claims is used up, it takes memory from the common
//! part:
//!
//! - A source without memory in the common part may take one event. Sources that wait for memory
//!   take turns, and the memory that the first of them needs is kept free for it.
//! - A source with memory in the common part may hold at most the amount that it leaves free. So
//!   one busy source gets half of the common part, two get a third each, and some memory always
//!   stays free (the *dynamic threshold* of switches that share one buffer between ports).
//! - Sources with prompt deliveries form one group, and all others a second one. Each group may
//!   hold three quarters of the common part. So hung destinations leave a quarter to sources that
//!   hold memory only briefly.
//!
//! An event that is larger than its group's part may be held if its group holds nothing else in the
//! common part and the other group holds no such event. So the total never exceeds the limit by
//! more than one event.
//!
//! A delivery takes memory beside the bytes of its event: its task, its request and its connection. So
//! an event counts with at least [`LEAST`], or with a 4,096th of a smaller limit. Otherwise a thousand
//! sources with small events would fill all of their slots. If the sources' shares are smaller
//! than that, an event counts with at least a whole share, so each source can always hold one.
//!
//! A reload changes the limit, or the number of sources and so their shares. Held events stay, and
//! are counted by the new shares. Until those that exceed them have ended, there is less memory for
//! others, and the total may exceed the new limit. A removed source has no share: all that it holds
//! for claims counts in the common part.

use super::queue::SourceQueue;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

/// A delivery of at most this duration is prompt: its source holds memory only briefly.
pub(super) const PROMPT: Duration = Duration::from_secs(1);

/// The least that an event counts with, in bytes. A process with 40,000 deliveries in flight was measured
/// to take 13 KiB for each.
pub(super) const LEAST: usize = 16 << 10;

/// How long a source holds memory, judged by its last completed delivery. Sources that wait for
/// memory are served in this order, so a source without deliveries does not wait behind slow ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pace {
    Prompt,
    Unknown,
    Slow,
}

impl Pace {
    /// The pace that a delivery of this duration shows.
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
    /// By a claim of the worker.
    Claim,
    /// By a claim on insert.
    Offer,
}

/// The memory of one source.
#[derive(Clone, Copy, Debug)]
struct Account {
    pace: Pace,
    /// The bytes and the number of held events that were claimed on insert.
    offered: usize,
    offered_events: usize,
    /// What the other held events count with, in bytes.
    claimed: usize,
    /// The bytes of the common part that are reserved for the next claim, in addition to the
    /// source's own share.
    promised: usize,
    /// The source's place in the waiting order. It is kept until the source gets the memory.
    since: Option<u64>,
    /// Whether the source has shares. A source that was removed from the configuration has none.
    has_share: bool,
}

impl Account {
    const NEW: Self = Self {
        pace: Pace::Unknown,
        offered: 0,
        offered_events: 0,
        claimed: 0,
        promised: 0,
        since: None,
        has_share: true,
    };
}

/// The memory of one worker.
#[derive(Debug)]
pub(super) struct Memory {
    /// The separate share of each source in bytes, once for claims and once for offers.
    own: usize,
    /// The least that an event counts with.
    least: usize,
    /// The size of the common part, and the maximum that one group may hold of it.
    common: usize,
    of_one_group: usize,
    /// What each group holds or has reserved of the common part. A single source counts with at
    /// most `of_one_group`.
    used: [usize; 2],
    /// What does not count in `used`: the rest of an event that is larger than its group's part.
    beyond: usize,
    accounts: Vec<Account>,
    /// Sources that wait for memory in the common part: pace, place, queue.
    waiting: BTreeSet<(Pace, u64, usize)>,
    next_place: u64,
    /// Whether there may be memory for a waiting source.
    has_changed: bool,
    held: usize,
}

impl Memory {
    /// Creates a memory of `limit` bytes for this number of sources.
    pub(super) fn new(limit: usize, sources: usize) -> Self {
        let mut memory = Self {
            own: 0,
            least: 0,
            common: 0,
            of_one_group: 0,
            used: [0; 2],
            beyond: 0,
            accounts: alloc::vec![Account::NEW; sources],
            waiting: BTreeSet::new(),
            next_place: 0,
            has_changed: false,
            held: 0,
        };
        memory.divide(limit);
        memory
    }

    /// Changes the limit and the sources. Only the memory that is reserved for a claim in flight
    /// stays reserved; other sources wait for it again.
    pub(super) fn resize(&mut self, limit: usize, queues: &[SourceQueue]) {
        self.accounts.resize(queues.len(), Account::NEW);
        for (account, queue) in self.accounts.iter_mut().zip(queues) {
            account.has_share = queue.is_configured;
            if !queue.is_asked {
                account.promised = 0;
            }
        }
        self.divide(limit);
        self.has_changed = true;
    }

    /// Divides the memory between the sources, and counts again what the groups use.
    fn divide(&mut self, limit: usize) {
        let sources = self.accounts.iter().filter(|account| account.has_share).count();
        self.own = limit / 4 / sources.max(1);
        self.least = LEAST.min(limit / 4096).min(self.own);
        self.common = limit - limit / 4 - limit / 4;
        self.of_one_group = self.common - self.common / 4;
        (self.used, self.beyond) = ([0; 2], 0);
        for queue in 0..self.accounts.len() {
            self.count(queue);
        }
    }

    /// The bytes of all held events.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Checks that what the groups use is what the accounts say, and that each source waits at its place.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let (mut used, mut beyond) = ([0; 2], 0);
        for (queue, account) in self.accounts.iter().enumerate() {
            let part = self.part(queue);
            used[account.pace.group()] += part.min(self.of_one_group);
            beyond += part.saturating_sub(self.of_one_group);
        }
        assert_eq!((used, beyond), (self.used, self.beyond), "{self:?}");
        for (pace, since, queue) in &self.waiting {
            let account = &self.accounts[*queue];
            assert_eq!((account.pace, account.since), (*pace, Some(*since)), "{self:?}");
        }
    }

    /// What an event of this size counts with.
    pub(super) fn weigh(&self, size: usize) -> usize {
        size.max(self.least)
    }

    /// How many events of any size fit into this many bytes, but at least one.
    pub(super) fn most_events(&self, bytes: usize) -> u32 {
        bytes
            .checked_div(self.least)
            .map_or(u32::MAX, |events| u32::try_from(events).unwrap_or(u32::MAX).max(1))
    }

    /// The number of events and of bytes that may be claimed on insert for a source, in addition to
    /// those that it holds.
    pub(super) fn offer(&self, queue: usize) -> (u32, usize) {
        let (share, account) = (self.share(queue), &self.accounts[queue]);
        let held = u32::try_from(account.offered_events).unwrap_or(u32::MAX);
        (self.most_events(share).saturating_sub(held), share.saturating_sub(account.offered))
    }

    /// The bytes that a claim may bring for a source now.
    pub(super) fn room(&self, queue: usize) -> usize {
        let account = &self.accounts[queue];
        self.share(queue).saturating_sub(account.claimed) + account.promised
    }

    /// Whether a source may claim: its next event fits, or there is some memory if that event's
    /// size is unknown.
    pub(super) fn may_claim(&self, queue: usize, next: Option<usize>) -> bool {
        self.room(queue) >= self.weigh(next.unwrap_or(1))
    }

    /// Adds a source that wants to claim to those that wait for memory.
    pub(super) fn wait(&mut self, queue: usize) {
        let account = &mut self.accounts[queue];
        let since = *account.since.get_or_insert_with(|| {
            self.next_place += 1;
            self.next_place
        });
        self.has_changed |= self.waiting.insert((account.pace, since, queue));
    }

    /// Removes a source from those that wait. It keeps its place for the next time, unless it got
    /// the memory.
    pub(super) fn wait_no_more(&mut self, queue: usize) {
        let account = &self.accounts[queue];
        if let Some(since) = account.since {
            self.has_changed |= self.waiting.remove(&(account.pace, since, queue));
        }
    }

    /// The sources that wait. Their order has no meaning.
    pub(super) fn waiting(&self) -> Vec<usize> {
        self.waiting.iter().map(|(_, _, queue)| *queue).collect()
    }

    /// Whether any source waits.
    pub(super) fn is_short(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reserves memory for the sources that wait, in turn. Returns those that got some.
    pub(super) fn grant(&mut self, queues: &[SourceQueue]) -> Vec<usize> {
        let mut granted = Vec::new();
        if !core::mem::take(&mut self.has_changed) {
            return granted;
        }
        let mut is_closed = [false; 2];
        for (pace, since, queue) in self.waiting.iter().copied().collect::<Vec<_>>() {
            let group = pace.group();
            if is_closed[group] {
                if is_closed == [true; 2] {
                    break;
                }
                continue;
            }
            let SourceQueue { next_size, typical_size, .. } = &queues[queue];
            let next = self.weigh(next_size.unwrap_or(*typical_size).max(1));
            let need = next.saturating_sub(self.room(queue));
            let has_some = self.part(queue) > 0;
            if if has_some { need <= self.growth(queue) } else { self.fits(group, need) } {
                self.promise(queue, need);
                self.waiting.remove(&(pace, since, queue));
                granted.push(queue);
            } else {
                // Keeps free what the first in turn needs. A source that already has common memory
                // blocks no other.
                is_closed[group] = !has_some;
            }
        }
        granted
    }

    /// Reserves more memory for a source that is about to claim, so that it gets about `wanted`
    /// bytes in all. It gets less if it may not grow as far, and no more if a source of its group
    /// waits.
    pub(super) fn widen(&mut self, queue: usize, wanted: usize) {
        // The waiting sources are sorted by pace, and so by group.
        let somebody_waits = match self.accounts[queue].pace {
            Pace::Prompt => self.waiting.first().is_some_and(|(pace, _, _)| *pace == Pace::Prompt),
            Pace::Unknown | Pace::Slow => {
                self.waiting.last().is_some_and(|(pace, _, _)| *pace != Pace::Prompt)
            }
        };
        if !somebody_waits {
            let more = wanted.saturating_sub(self.room(queue)).min(self.growth(queue));
            self.promise(queue, more);
        }
    }

    /// Frees what was reserved for a source and not used by its claim.
    pub(super) fn withdraw(&mut self, queue: usize) {
        self.has_changed |= self.accounts[queue].promised > 0;
        self.change(queue, |account, _| account.promised = 0);
    }

    /// A source now holds an event of this size. Returns what it counts with until it is freed. After
    /// a claim, the source no longer waits, and has lost its place in the waiting order.
    pub(super) fn take(&mut self, queue: usize, origin: Origin, size: usize) -> usize {
        let weight = self.weigh(size);
        self.held += size;
        if origin == Origin::Claim {
            self.wait_no_more(queue);
            self.accounts[queue].since = None;
        }
        self.change(queue, |account, share| match origin {
            Origin::Offer => {
                account.offered += size;
                account.offered_events += 1;
            }
            Origin::Claim => {
                let before = account.claimed.saturating_sub(share);
                account.claimed += weight;
                account.promised =
                    account.promised.saturating_sub(account.claimed.saturating_sub(share) - before);
            }
        });
        weight
    }

    /// A source no longer holds an event of this size, which counted with `weight`.
    pub(super) fn free(&mut self, queue: usize, origin: Origin, size: usize, weight: usize) {
        self.held -= size;
        self.has_changed |= origin == Origin::Claim;
        self.change(queue, |account, _| match origin {
            Origin::Offer => {
                account.offered -= size;
                account.offered_events -= 1;
            }
            Origin::Claim => account.claimed -= weight,
        });
    }

    /// A delivery showed the pace of its source.
    pub(super) fn learn(&mut self, queue: usize, pace: Pace) {
        let Account { pace: before, since, .. } = self.accounts[queue];
        if before == pace {
            return;
        }
        self.has_changed = true;
        self.change(queue, |account, _| account.pace = pace);
        if let Some(since) = since
            && self.waiting.remove(&(before, since, queue))
        {
            self.waiting.insert((pace, since, queue));
        }
    }

    fn promise(&mut self, queue: usize, bytes: usize) {
        self.change(queue, |account, _| account.promised += bytes);
    }

    /// Changes a source's account, and updates what its group uses.
    fn change(&mut self, queue: usize, change: impl FnOnce(&mut Account, usize)) {
        let part = self.part(queue);
        self.used[self.accounts[queue].pace.group()] -= part.min(self.of_one_group);
        self.beyond -= part.saturating_sub(self.of_one_group);
        let share = self.share(queue);
        change(&mut self.accounts[queue], share);
        self.count(queue);
    }

    /// Adds a source to what its group uses.
    fn count(&mut self, queue: usize) {
        let part = self.part(queue);
        self.used[self.accounts[queue].pace.group()] += part.min(self.of_one_group);
        self.beyond += part.saturating_sub(self.of_one_group);
    }

    /// The separate share of a source.
    fn share(&self, queue: usize) -> usize {
        if self.accounts[queue].has_share { self.own } else { 0 }
    }

    /// What a source holds or has reserved of the common part.
    fn part(&self, queue: usize) -> usize {
        let account = &self.accounts[queue];
        account.claimed.saturating_sub(self.share(queue)) + account.promised
    }

    /// The bytes that are free for a group.
    fn free_for(&self, group: usize) -> usize {
        let free = self.common.saturating_sub(self.used[0] + self.used[1]);
        free.min(self.of_one_group.saturating_sub(self.used[group]))
    }

    /// Whether this many more bytes fit into a group's part. If they exceed the whole part, whether
    /// an exception is allowed.
    fn fits(&self, group: usize, bytes: usize) -> bool {
        bytes <= self.free_for(group)
            || (bytes > self.of_one_group && self.used[group] == 0 && self.beyond == 0)
    }

    /// The bytes by which a source may grow in the common part and still leave free what it holds
    /// there.
    fn growth(&self, queue: usize) -> usize {
        self.free_for(self.accounts[queue].pace.group()).saturating_sub(self.part(queue)) / 2
    }
}
