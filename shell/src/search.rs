//! What operators read: one event and its request, the events that match a filter page by page, the
//! failures in groups, and the work of each source.
//!
//! No query may cost more on a large database than on a small one. A page therefore has two limits:
//! the events that it returns, and the events that it examines to find them. A page that reaches
//! the second limit can be short or empty, and still says where the next page continues. There are
//! no indexes for these queries alone, because each accept would have to update them.

use bytes::Bytes;
use jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::admission::Fingerprint;
use surehook_core::event::{Action, DiscardScope, Reason, Status};
use surehook_core::id::{Attempt, EventId};
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::verdict::Verdict;

/// All data of one event. Times are of the database's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    pub id: EventId,
    /// Text, because the source may have been removed from the configuration.
    pub source: String,
    pub key: String,
    /// When the event was stored.
    pub received_at: Timestamp,
    pub status: Status,
    /// The newest claimed attempt; 0 before the first.
    pub attempt: Attempt,
    /// The present retry budget counts the attempts after this one. `None` once the event is
    /// delivered.
    pub budget_from: Option<Attempt>,
    /// When the event is due next; `None` while it is processed and after it has ended.
    pub next_attempt_at: Option<Timestamp>,
    /// When the event ended; `None` before that.
    pub settled_at: Option<Timestamp>,
    /// Why the event was dead-lettered; `None` in all other states.
    pub reason: Option<Reason>,
    /// Oldest first.
    pub history: Vec<AttemptEntry>,
    /// Oldest first. Empty for an event in a list.
    pub actions: Vec<ActionEntry>,
}

/// A redrive or a discard in the history of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionEntry {
    pub action: Action,
    /// When it changed the event.
    pub at: Timestamp,
    /// The newest claimed attempt at that time. Attempts with greater numbers came later.
    pub attempt: Attempt,
}

/// One attempt in the history of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptEntry {
    pub attempt: Attempt,
    /// When the attempt ended, or was found to be lost.
    pub ended_at: Timestamp,
    /// Duration of the attempt; `None` if it was lost.
    pub took: Option<Duration>,
    pub verdict: Verdict,
    /// The status code of the response; `None` if there was no response.
    pub status_code: Option<u16>,
    /// Why there was no complete reply, as text of [`surehook_core::verdict::DeliveryError`].
    pub error: Option<String>,
    /// The first bytes of the response body.
    pub excerpt: Bytes,
}

/// The request that an event was stored from, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// As in [`EventRecord`].
    pub source: String,
    /// When the event was stored.
    pub received_at: Timestamp,
    /// When retention erased the query, the headers and the body. All three are empty since then.
    pub erased_at: Option<Timestamp>,
    /// The fingerprint of the body. It is not erased.
    pub fingerprint: Fingerprint,
    /// The query to forward, without `?`.
    pub query: Bytes,
    /// The headers to forward, encoded by [`crate::headers`].
    pub headers: Bytes,
    /// The size of the stored body.
    pub body_bytes: u64,
}

/// Filters for events. An event must match all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this source, configured or not.
    pub source: Option<SourceName>,
    /// With this idempotency key.
    pub key: Option<IdempotencyKey>,
    /// With this status.
    pub status: Option<Status>,
    /// Dead-lettered for this reason.
    pub reason: Option<Reason>,
    /// With this status code in the newest attempt.
    pub status_code: Option<u16>,
}

/// How a store reaches the events that match a filter, in the order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// By the unique index of source and idempotency key: at most one event of each source.
    Key,
    /// Through the dead letters of one source.
    DeadLetters,
    /// Through all events that are not delivered, dead letters included.
    Owed,
    /// Through all events.
    Events,
}

impl EventFilter {
    /// The shortest path to the matching events. It determines which events a page examines, so all
    /// stores use it.
    #[must_use]
    pub fn path(&self) -> Path {
        let only_dead = self.reason.is_some() || self.status == Some(Status::DeadLettered);
        match (&self.source, &self.key) {
            (_, Some(_)) => Path::Key,
            (Some(_), None) if only_dead => Path::DeadLetters,
            _ if only_dead || self.status.is_some_and(|status| status != Status::Delivered) => {
                Path::Owed
            }
            _ => Path::Events,
        }
    }

    /// Whether every event on the path matches, so that a page examines no more events than it
    /// lists.
    #[must_use]
    pub fn is_the_path_alone(&self) -> bool {
        let Self { source, key, status, reason, status_code } = self;
        let is_nothing_else = key.is_none() && reason.is_none() && status_code.is_none();
        match self.path() {
            Path::Key | Path::Owed => false,
            Path::DeadLetters => is_nothing_else,
            Path::Events => is_nothing_else && source.is_none() && status.is_none(),
        }
    }

    /// The same filter, for dead letters only.
    #[must_use]
    pub fn of_dead_letters(self) -> Self {
        Self { status: Some(Status::DeadLettered), ..self }
    }

    /// The same filter for a discard in this scope, and its path. The filter has a status if it is
    /// for dead letters only. Otherwise it is also for waiting events of its source: they are
    /// discarded only if the filter names their source, and have no reason.
    #[must_use]
    pub fn for_discard(self, scope: DiscardScope) -> (Path, Self) {
        let dead = self.of_dead_letters();
        let is_of_dead = scope == DiscardScope::DeadLetters || dead.reason.is_some();
        match dead.path() {
            path if is_of_dead || dead.source.is_none() => (path, dead),
            Path::Key => (Path::Key, Self { status: None, ..dead }),
            Path::DeadLetters | Path::Owed | Path::Events => {
                (Path::Owed, Self { status: None, ..dead })
            }
        }
    }

    /// Whether an event matches. `event.history` contains its newest attempt, if there is one.
    #[must_use]
    pub fn matches(&self, event: &EventRecord) -> bool {
        self.source.as_ref().is_none_or(|source| source.as_str() == event.source)
            && self.key.as_ref().is_none_or(|key| key.as_str() == event.key)
            && self.status.is_none_or(|status| status == event.status)
            && self.reason.is_none_or(|reason| Some(reason) == event.reason)
            && self.status_code.is_none_or(|code| {
                event.history.last().is_some_and(|entry| entry.status_code == Some(code))
            })
    }
}

/// A range of events in the order of their ids, which is roughly the order in which they were
/// received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first event of the range (inclusive).
    pub from: EventId,
    /// The end of the range (exclusive).
    pub until: EventId,
}

impl Span {
    pub const ALL: Self = Self { from: EventId::MIN, until: EventId::MAX };
}

/// The limits of one page. Each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize {
    /// The most events that are returned or changed.
    pub events: u32,
    /// The most events that are examined.
    pub looks: u32,
}

/// One page of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// Newest first. The history of each contains only its newest attempt.
    pub events: Vec<EventRecord>,
    /// The last event that was examined. The next page is the span before it. `None` on the last
    /// page.
    pub next: Option<EventId>,
}

/// The result of one step of a redrive or a discard of many events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedPage {
    /// The number of events that were redriven or discarded, or would be in a dry run, by source.
    pub changed: BTreeMap<String, u32>,
    /// The last event that was examined. The next step continues after it. `None` after the last
    /// step.
    pub next: Option<EventId>,
}

impl ChangedPage {
    /// A page of events, each with its source.
    #[must_use]
    pub fn new(sources: Vec<String>, next: Option<EventId>) -> Self {
        let mut changed = BTreeMap::new();
        for source in sources {
            *changed.entry(source).or_default() += 1;
        }
        Self { changed, next }
    }

    /// The number of events.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.changed.values().sum()
    }
}

/// The bytes of a response by which failures are grouped: the beginning of its excerpt.
pub const BEGINNING_BYTES: usize = 40;

/// Which events a summary groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SummaryFilter {
    /// Of this source, configured or not; `None` for all.
    pub source: Option<SourceName>,
    /// Whose newest attempt ended at this time or later; `None` for all.
    pub since: Option<Timestamp>,
}

/// The limits of a summary. Each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummarySize {
    /// The most events of each source that are examined in each of three places: the newest dead
    /// letters, the waiting events that are due first, and those that are due last. Discarded events
    /// are examined, but in no group.
    pub looks: u32,
    /// The most groups that are returned.
    pub groups: u32,
}

/// The failures of events that are not delivered, in groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureSummary {
    /// Largest first; of equal ones, that with the newest example first.
    pub groups: Vec<FailureGroup>,
    /// Whether there are more groups, all of them smaller.
    pub has_more: bool,
    /// The sources of which not all events were examined, sorted. Counts of their groups are lower
    /// bounds.
    pub partial: Vec<String>,
}

/// The events of one source whose newest attempt failed in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureGroup {
    pub source: String,
    pub verdict: Verdict,
    pub status_code: Option<u16>,
    pub error: Option<String>,
    /// The first [`BEGINNING_BYTES`] of the excerpt.
    pub beginning: Bytes,
    /// The number of events.
    pub events: u32,
    /// How many of them are dead letters.
    pub dead_lettered: u32,
    /// When the first of these attempts ended.
    pub first: Timestamp,
    /// When the last of these attempts ended.
    pub last: Timestamp,
    /// The newest of the events.
    pub example: EventId,
}

impl FailureSummary {
    /// A summary of these groups, in any order, cut to `groups` of them.
    #[must_use]
    pub fn new(mut all: Vec<FailureGroup>, mut partial: Vec<String>, groups: u32) -> Self {
        all.sort_by_key(|group| Reverse((group.events, group.example)));
        let has_more = all.len() > groups as usize;
        all.truncate(groups as usize);
        partial.sort();
        Self { groups: all, has_more, partial }
    }
}

/// The most dead letters of a source that are examined to count up to `count_to` of them that are
/// not discarded.
#[must_use]
pub fn dead_letter_looks(count_to: u32) -> u32 {
    count_to.saturating_mul(5)
}

/// The work of one source, by the database's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRecord {
    /// Its name, as text: the source may no longer be configured.
    pub source: String,
    /// Events that wait for their first attempt.
    pub queued: u32,
    /// Events that are claimed.
    pub processing: u32,
    /// Events that wait for another attempt.
    pub retrying: u32,
    /// Dead letters that are not discarded.
    pub dead_lettered: u32,
    /// Whether the counts above are lower bounds.
    pub is_partial: bool,
    /// How long the oldest due event has been due; `None` if none is due.
    pub behind: Option<Duration>,
    /// When an operator paused it; `None` if it is not paused.
    pub paused_since: Option<Timestamp>,
}
