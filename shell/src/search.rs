//! What an operator looks for among the events, and how the answer is cut into pages.
//!
//! No question may cost more on a large database than on a small one. A page therefore has two bounds: how many events
//! it shows, and how many it looks at to find them. One that came to the second bound may be short, or empty, and
//! still says where the next goes on. No index exists for questions alone: each would be written at every accept.

use crate::ports::EventRecord;
use jiff::Timestamp;
use std::time::Duration;
use surehook_core::event::{Reason, Status};
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;

/// Which events are meant: those for which everything that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this source, whether it is configured or not.
    pub source: Option<SourceName>,
    /// With this idempotency key.
    pub key: Option<IdempotencyKey>,
    /// That stand here.
    pub status: Option<Status>,
    /// That were dead-lettered for this reason.
    pub reason: Option<Reason>,
    /// Whose newest attempt was answered with this status code.
    pub status_code: Option<u16>,
}

/// Where events that match a filter can be found, in the order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// By the unique key of events: one at the most.
    Key,
    /// Among the dead letters of one source.
    DeadLetters,
    /// Among all that is owed, dead letters included.
    Owed,
    /// Among all events.
    Events,
}

impl EventFilter {
    /// The shortest way to what matches. It fixes what a page looks at, so all stores go by it.
    #[must_use]
    pub fn path(&self) -> Path {
        let only_dead = self.reason.is_some() || self.status == Some(Status::DeadLettered);
        match (&self.source, &self.key) {
            (Some(_), Some(_)) => Path::Key,
            (Some(_), None) if only_dead => Path::DeadLetters,
            _ if only_dead || self.status.is_some_and(|status| status != Status::Delivered) => {
                Path::Owed
            }
            _ => Path::Events,
        }
    }

    /// Whether everything on the path matches, so that a page need not look at more than it shows.
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

    /// The same, of dead letters alone.
    #[must_use]
    pub fn of_dead_letters(self) -> Self {
        Self { status: Some(Status::DeadLettered), ..self }
    }

    /// Whether an event matches. `event.history` holds its newest attempt, if it has one.
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

/// A stretch of events in the order of their ids, which is about the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Not before this one.
    pub from: EventId,
    /// Before this one.
    pub until: EventId,
}

impl Span {
    /// All events.
    pub const ALL: Self = Self { from: EventId::MIN, until: EventId::MAX };
}

/// The bounds of one page. Each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize {
    /// So many events at most are shown, or changed.
    pub events: u32,
    /// So many are looked at, at most, to find them.
    pub looks: u32,
}

/// One page of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// Newest first. The history of each holds its newest attempt alone.
    pub events: Vec<EventRecord>,
    /// The last event that was looked at: the next page is the span until there. `None` if this page came to the end.
    pub next: Option<EventId>,
}

/// What one step of redriving many did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedrivenPage {
    /// So many dead letters were queued again, or would have been.
    pub redriven: u32,
    /// The last event that was looked at: the next step goes on behind it. `None` if this one came to the end.
    pub next: Option<EventId>,
}

/// The work of one source, by the database's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRecord {
    /// Its name. Kept as text: it may have left the configuration since.
    pub source: String,
    /// Events that wait for their first attempt.
    pub queued: u32,
    /// Events that are claimed.
    pub processing: u32,
    /// Events that wait for another attempt.
    pub retrying: u32,
    /// Events that were set aside.
    pub dead_lettered: u32,
    /// Whether there is more than was counted: then the numbers above are lower bounds.
    pub is_partial: bool,
    /// For how long the event that has been due for longest has been; `None` if none is due.
    pub behind: Option<Duration>,
    /// Since when nothing of it is claimed, by an operator's order.
    pub paused_since: Option<Timestamp>,
}
