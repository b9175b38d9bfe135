//! Memory for requests that are being read or wait for their commit. It is shared so that no
//! producer can starve others.
//!
//! Each source has a separate share, and the rest is common. When the common memory is used up and
//! a request needs more of it, requests that have been read for longer than [`SLOW`] are cancelled.
//! Those of the source that uses the most memory come first, and of these the oldest. A request
//! that was read completely is never cancelled.

use crate::source::SourceName;
use crate::time::Instant;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

/// A request that has been read for at least this long may be cancelled when others need memory.
pub const SLOW: Duration = Duration::from_secs(2);

/// Identifies a request within an [`Account`]. An account never reuses an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// The result of asking for more memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Growth {
    /// The memory is reserved. These other requests were cancelled: the account has closed them,
    /// and the caller must answer and drop them.
    Granted(Vec<RequestId>),
    /// There is not enough memory.
    Refused,
}

/// The memory of one process's intake, and which request uses how much of it.
#[derive(Debug)]
pub struct Account {
    /// The separate share of each source, in bytes.
    own: usize,
    /// The size of the common memory in bytes, and the part of it that is in use.
    common: usize,
    used: usize,
    requests: BTreeMap<RequestId, Request>,
    by_source: BTreeMap<SourceName, usize>,
    next: u64,
}

#[derive(Debug)]
struct Request {
    source: SourceName,
    began_at: Instant,
    bytes: usize,
    is_read: bool,
}

impl Account {
    /// Creates an account of `limit` bytes for this number of sources. A quarter of it is divided
    /// between the sources, or less if a request of `largest` bytes would not fit into the rest.
    #[must_use]
    pub fn new(limit: usize, largest: usize, sources: usize) -> Self {
        let mut account = Self {
            own: 0,
            common: 0,
            used: 0,
            requests: BTreeMap::new(),
            by_source: BTreeMap::new(),
            next: 0,
        };
        account.resize(limit, largest, sources);
        account
    }

    /// Divides `limit` bytes as [`Self::new`] does. Requests keep the memory that they have. If the
    /// memory is smaller now, others get none until enough of it is free.
    pub fn resize(&mut self, limit: usize, largest: usize, sources: usize) {
        self.own = (limit / 4).min(limit.saturating_sub(largest)) / sources.max(1);
        self.common = limit - self.own * sources;
        self.used = self.by_source.values().map(|held| held.saturating_sub(self.own)).sum();
    }

    /// Registers a request that starts to be read. It uses no memory yet.
    pub fn open(&mut self, now: Instant, source: &SourceName) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.requests.insert(
            id,
            Request { source: source.clone(), began_at: now, bytes: 0, is_read: false },
        );
        id
    }

    /// Reserves `bytes` more for a request.
    pub fn grow(&mut self, now: Instant, id: RequestId, bytes: usize) -> Growth {
        let Some(source) = self.requests.get(&id).map(|request| request.source.clone()) else {
            return Growth::Refused;
        };
        let shed = match self.lacking(&source, bytes) {
            0 => Vec::new(),
            lacking => self.slow(now, id, &source, lacking, bytes),
        };
        for slow in &shed {
            self.close(*slow);
        }
        if self.lacking(&source, bytes) > 0 {
            return Growth::Refused;
        }
        self.add(&source, bytes);
        if let Some(request) = self.requests.get_mut(&id) {
            request.bytes += bytes;
        }
        Growth::Granted(shed)
    }

    /// A request was read completely, and now waits for its commit. It can no longer be cancelled.
    pub fn read(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.is_read = true;
        }
    }

    /// A request was answered. Its memory is free again.
    pub fn close(&mut self, id: RequestId) {
        let Some(Request { source, bytes, .. }) = self.requests.remove(&id) else { return };
        let own = self.own;
        let held = self.by_source.get_mut(&source).filter(|_| bytes > 0);
        if let Some(held) = held {
            let before = held.saturating_sub(own);
            *held -= bytes;
            self.used -= before - held.saturating_sub(own);
            if *held == 0 {
                self.by_source.remove(&source);
            }
        }
    }

    /// The bytes that all requests use.
    #[must_use]
    pub fn held(&self) -> usize {
        self.by_source.values().sum()
    }

    fn add(&mut self, source: &SourceName, bytes: usize) {
        if bytes > 0 {
            let held = self.by_source.entry(source.clone()).or_default();
            let before = held.saturating_sub(self.own);
            *held += bytes;
            self.used += held.saturating_sub(self.own) - before;
        }
    }

    /// The bytes of common memory that are missing for `source` to get `bytes` more.
    fn lacking(&self, source: &SourceName, bytes: usize) -> usize {
        let held = self.by_source.get(source).copied().unwrap_or_default();
        let wanted =
            held.saturating_add(bytes).saturating_sub(self.own) - held.saturating_sub(self.own);
        if wanted == 0 {
            // Also if the common memory is smaller now than what is in use of it.
            return 0;
        }
        (self.used.saturating_add(wanted)).saturating_sub(self.common)
    }

    /// Slow requests that must be cancelled so that `source` can get `bytes` more. Empty if that is
    /// not enough.
    fn slow(
        &self,
        now: Instant,
        id: RequestId,
        source: &SourceName,
        lacking: usize,
        bytes: usize,
    ) -> Vec<RequestId> {
        let is_slow = |request: &&Request| {
            !request.is_read && request.bytes > 0 && now.since(request.began_at) >= SLOW
        };
        let mut slow: Vec<_> = self
            .requests
            .iter()
            .filter(|(other, request)| **other != id && is_slow(request))
            .collect();
        let held = |source: &SourceName| self.by_source.get(source).copied().unwrap_or_default();
        slow.sort_by_key(|(id, request)| {
            (core::cmp::Reverse(held(&request.source)), request.began_at, **id)
        });
        let (mut left, mut free, mut shed) = (self.by_source.clone(), 0, Vec::new());
        // Count the requested bytes first, so that memory freed by the source's own slow requests
        // counts, too.
        left.entry(source.clone()).and_modify(|held| *held += bytes).or_insert(bytes);
        for (id, request) in slow {
            if free >= lacking {
                break;
            }
            let Some(held) = left.get_mut(&request.source).filter(|held| **held > self.own) else {
                continue;
            };
            free += (*held - self.own).min(request.bytes);
            *held -= request.bytes;
            shed.push(*id);
        }
        if free >= lacking { shed } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1_000;

    fn source(name: &str) -> SourceName {
        SourceName::parse(name).unwrap()
    }

    fn at(millis: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(millis))
    }

    fn granted() -> Growth {
        Growth::Granted(Vec::new())
    }

    #[test]
    fn a_source_that_fills_common_memory_leaves_others_their_shares() {
        let mut account = Account::new(LIMIT, 500, 2);
        let greedy = account.open(at(0), &source("a"));
        assert_eq!(account.grow(at(0), greedy, 875), granted());
        assert_eq!(account.grow(at(0), greedy, 1), Growth::Refused);
        let other = account.open(at(0), &source("b"));
        assert_eq!(account.grow(at(0), other, 125), granted());
        assert_eq!((account.grow(at(0), other, 1), account.held()), (Growth::Refused, LIMIT));
        account.close(greedy);
        assert_eq!(account.grow(at(0), other, 1), granted());
    }

    #[test]
    fn requests_keep_their_memory_when_the_account_is_resized() {
        let mut account = Account::new(LIMIT, 500, 2);
        let held = account.open(at(0), &source("a"));
        assert_eq!(account.grow(at(0), held, 800), granted());
        // Shares of 25, and 300 of common memory.
        account.resize(400, 200, 4);
        let other = account.open(at(0), &source("b"));
        assert_eq!(account.grow(at(0), other, 25), granted());
        assert_eq!((account.grow(at(0), other, 1), account.held()), (Growth::Refused, 825));
        account.close(held);
        assert_eq!(account.grow(at(0), other, 300), granted());
        assert_eq!(account.grow(at(0), other, 1), Growth::Refused);
        // Shares of 125, and 750 of common memory.
        account.resize(LIMIT, 500, 2);
        assert_eq!(account.grow(at(0), other, 550), granted());
        assert_eq!(account.grow(at(0), other, 1), Growth::Refused);
        account.close(other);
        assert_eq!(account.held(), 0);
    }

    #[test]
    fn only_slow_unfinished_requests_are_cancelled_for_memory() {
        let mut account = Account::new(LIMIT, 500, 1);
        let [waits, slow, slower] =
            [2, 1, 0].map(|began_at| account.open(at(began_at), &source("a")));
        for id in [waits, slow, slower] {
            assert_eq!(account.grow(at(2), id, 300), granted());
        }
        account.read(waits);
        let new = account.open(at(1_999), &source("a"));
        assert_eq!(account.grow(at(1_999), new, 200), Growth::Refused, "no request is slow yet");
        assert_eq!(
            account.grow(at(2_002), new, 200),
            Growth::Granted(Vec::from([slower])),
            "the oldest slow request"
        );
        assert_eq!(account.grow(at(2_002), new, 400), Growth::Granted(Vec::from([slow])));
        assert_eq!(
            account.grow(at(9_000), new, 400),
            Growth::Refused,
            "a request that waits for its commit is kept"
        );
        assert_eq!((account.grow(at(9_000), slow, 1), account.held()), (Growth::Refused, 900));
    }

    #[test]
    fn slow_requests_of_the_largest_source_are_cancelled_first() {
        let mut account = Account::new(LIMIT, 500, 4);
        let honest = account.open(at(0), &source("honest"));
        assert_eq!(account.grow(at(0), honest, 200), granted());
        let attack: Vec<_> = (0..6).map(|n| account.open(at(1 + n), &source("attacked"))).collect();
        for id in &attack {
            assert_eq!(account.grow(at(10), *id, 100), granted());
        }
        let new = account.open(at(5_000), &source("other"));
        assert_eq!(account.grow(at(5_000), new, 300), Growth::Granted(attack[..2].to_vec()));
    }

    #[test]
    fn the_largest_request_always_fits_into_an_empty_account() {
        for (largest, sources) in [(1_000, 5), (999, 1), (800, 3), (1, 1_000)] {
            let mut account = Account::new(LIMIT, largest, sources);
            let id = account.open(at(0), &source("a"));
            assert_eq!(account.grow(at(0), id, largest), granted());
        }
    }

    proptest! {
        #[test]
        fn the_limit_holds_and_each_source_gets_its_share(
            steps in proptest::collection::vec((0..4usize, 0..3usize, 0..400usize, 0..1_500u64), 1..80)
        ) {
            let names = ["a", "b", "c"].map(source);
            let mut account = Account::new(LIMIT, 700, names.len());
            let mut open: Vec<(RequestId, usize, usize)> = Vec::new();
            let mut now = 0;
            for (what, of, bytes, passed) in steps {
                now += passed;
                let which = bytes.checked_rem(open.len());
                match (what, which) {
                    (0, _) | (_, None) => open.push((account.open(at(now), &names[of]), of, 0)),
                    (1 | 2, Some(which)) => {
                        let (id, of, _) = open[which];
                        let held: usize = open.iter().filter(|entry| entry.1 == of).map(|entry| entry.2).sum();
                        match account.grow(at(now), id, bytes) {
                            Growth::Granted(shed) => {
                                prop_assert!(!shed.contains(&id));
                                open[which].2 += bytes;
                                open.retain(|entry| !shed.contains(&entry.0));
                            }
                            Growth::Refused => prop_assert!(held + bytes > 1_000 / 4 / 3, "refused {bytes} bytes in addition to {held}"),
                        }
                    }
                    (_, Some(which)) => account.close(open.swap_remove(which).0),
                }
                prop_assert_eq!(account.held(), open.iter().map(|entry| entry.2).sum::<usize>());
                prop_assert!(account.held() <= LIMIT);
            }
        }
    }
}
