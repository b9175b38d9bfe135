//! What happened in a run, as it was seen from outside and (in a simulation) from inside the database: the one input
//! of every oracle. Plain data, recorded in the order of time.

use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook::ports::EventRecord;
use surehook_core::admission::Fingerprint;
use surehook_core::event::{Outcome, Status};
use surehook_core::id::{Attempt, EventId, Fence};
use surehook_core::source::Policy;

use crate::database::DeliveryRow;
use crate::marks::Mark;

/// Time since the run began, on one clock that sees everything.
pub type At = Duration;

/// A run: what was asked for, what happened, and what the database held at the end.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Each source's policy, by name.
    pub policies: BTreeMap<String, Policy>,
    /// The sources that answer a reused key with the first event.
    pub first_wins: BTreeSet<String>,
    /// How long events are kept after their end, where the run is judged by that.
    pub kept: Option<Kept>,
    /// Whether the database acknowledges commits that a failover may take back: its standby is asynchronous.
    pub failover_may_lose: bool,
    /// A commit may be visible this much later than its recorded time; zero in a simulation. In a run of the real program the
    /// time is that of the statement's start.
    pub commits_within: Duration,
    /// In the order of time.
    pub entries: Vec<Entry>,
    /// Every event as it stood at the end, or when it was pruned.
    pub events: BTreeMap<EventId, EventRecord>,
    /// From when on nothing was broken any more.
    pub healed_at: At,
    /// When the run ended.
    pub ended_at: At,
    /// What each process was waiting for then, in words; empty where nobody could see.
    pub waits: BTreeMap<String, Vec<String>>,
}

/// How long events are kept after their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Delivered events.
    pub delivered: Duration,
    /// Dead letters.
    pub dead_lettered: Duration,
    /// The payloads of delivered events.
    pub payload: Duration,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When.
    pub at: At,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A producer sends a request.
    Posted(Posted),
    /// A producer has a complete answer to a request.
    Answered {
        /// The request.
        post: PostId,
        /// The status code.
        status_code: u16,
        /// The event's id, from a `202`.
        event: Option<EventId>,
        /// The event's status, from a `202`.
        status: Option<Status>,
        /// Whether the answer says that the event was accepted before.
        replayed: bool,
        /// The kind of problem that an error names: the last part of its URN.
        problem: Option<String>,
    },
    /// A producer has no complete answer to a request, and never will.
    Unanswered {
        /// The request.
        post: PostId,
    },
    /// `GET /events/{id}` was asked and answered.
    Looked {
        /// The event that was asked for.
        event: EventId,
        /// When it was asked.
        asked_at: At,
        /// The status it showed; `None` for a `404`.
        status: Option<Status>,
        /// The number of attempts it showed.
        attempts: u32,
    },
    /// `GET /ready` was asked and answered.
    Ready {
        /// The process.
        process: String,
        /// When it was asked.
        asked_at: At,
        /// Whether the process is ready.
        is_ready: bool,
    },
    /// A process starts to deliver.
    Sending(Sending),
    /// A process has done with a delivery, whatever came back.
    Sent {
        /// The process.
        process: String,
        /// The event.
        event: EventId,
        /// The attempt.
        attempt: Attempt,
        /// The status code, if a reply came in time.
        status_code: Option<u16>,
    },
    /// A downstream has a complete request.
    Received(Received),
    /// A downstream answers a request, as it sees it.
    Replied {
        /// The request.
        request: RequestId,
        /// The status code.
        status_code: u16,
        /// What `Retry-After` asks for.
        retry_after: Option<Duration>,
    },
    /// The database committed something.
    Committed(Committed),
    /// The database refused a settlement as stale.
    StaleSettlement {
        /// On whose behalf it was asked.
        process: String,
        /// The event.
        event: EventId,
        /// The attempt.
        attempt: Attempt,
    },
    /// A process's call to the store ended.
    Called {
        /// The process.
        process: String,
        /// Which call.
        call: &'static str,
        /// What the process learnt.
        result: CallResult,
        /// The events it was about.
        events: Vec<EventId>,
    },
    /// Something was broken, or mended.
    Fault(Fault),
    /// The world got into a situation that only it can see.
    Reached(Mark),
}

/// Names one request of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostId(pub u64);

/// Names one request to a downstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A producer's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The request.
    pub post: PostId,
    /// The producer.
    pub producer: String,
    /// The process it was sent to.
    pub process: String,
    /// The source it was posted to.
    pub source: String,
    /// The idempotency key.
    pub key: String,
    /// The body's fingerprint.
    pub body: Fingerprint,
    /// Whether the database takes this body. One that it refuses is turned away however often it comes.
    pub storable: bool,
    /// The values of the headers that must come out as they went in, by lower-case name.
    pub headers: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A process starts to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The process.
    pub process: String,
    /// The source.
    pub source: String,
    /// The event.
    pub event: EventId,
    /// The attempt.
    pub attempt: Attempt,
}

/// A request as its downstream saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The request.
    pub request: RequestId,
    /// The source it claims to be for.
    pub source: String,
    /// The event it claims to be.
    pub event: EventId,
    /// The attempt it claims to be.
    pub attempt: Attempt,
    /// The body's fingerprint.
    pub body: Fingerprint,
    /// The values of all its headers, by lower-case name.
    pub headers: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A change to one event's row that the database committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The event.
    pub event: EventId,
    /// The database's time of the statement.
    pub db_time: Timestamp,
    /// When the statement began, if that is known. It saw what had been committed until then.
    pub began: Option<At>,
    /// On whose behalf.
    pub process: String,
    /// What kind of change.
    pub change: Change,
    /// The row before; `None` if there was none.
    pub before: Option<DeliveryRow>,
    /// The row after; `None` if it is gone.
    pub after: Option<DeliveryRow>,
}

/// The kinds of change to an event's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new event.
    Accepted,
    /// A claim, or a dead letter in place of one.
    Claimed,
    /// A settlement.
    Settled {
        /// The fence that was presented.
        fence: Fence,
        /// The attempt that was settled.
        attempt: Attempt,
        /// What was asked for.
        outcome: Outcome,
    },
    /// An operator's redrive.
    Redriven,
    /// The end of its retention.
    Pruned,
    /// The end of its payload's retention. The record stays.
    Erased,
    /// A failover to a standby that did not have the newest changes of this event.
    RolledBack,
    /// A failover to a standby that did not have this event.
    Lost,
}

/// What a process learnt of a store call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// It was done.
    Done,
    /// Nothing was done.
    Refused,
    /// It may have been done.
    Unknown,
}

/// Something that was broken, or mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process was killed.
    Killed {
        /// The process.
        process: String,
    },
    /// A process was started, for the first time or again.
    Started {
        /// The process.
        process: String,
    },
    /// A process was stopped for a while and goes on.
    Paused {
        /// The process.
        process: String,
        /// For how long, from now.
        duration: Duration,
    },
    /// A process was told to shut down.
    Draining {
        /// The process.
        process: String,
    },
    /// A process ended its shutdown by itself.
    Exited {
        /// The process.
        process: String,
    },
    /// The network between two nodes was cut or is bad, for a while.
    Network {
        /// In words.
        what: String,
        /// For how long, from now.
        duration: Duration,
    },
    /// The database was made to fail, for a while (zero: once).
    Database {
        /// In words.
        what: String,
        /// The process whose call it touches; `None`: all.
        process: Option<String>,
        /// For how long, from now.
        duration: Duration,
    },
    /// A downstream behaves in another way from now on.
    Downstream {
        /// The source.
        source: String,
        /// In words.
        what: String,
        /// Whether it is broken: whether well-made requests may go unanswered or be refused.
        broken: bool,
    },
    /// An operator paused or resumed a source.
    SourcePaused {
        /// The source.
        source: String,
        /// Whether nothing of it is to be claimed from now on.
        paused: bool,
    },
    /// Everything is mended.
    Healed,
}

impl Run {
    /// The entries of one kind, with their times.
    pub fn each<'a, T: 'a>(
        &'a self,
        pick: impl Fn(&'a What) -> Option<T> + 'a,
    ) -> impl Iterator<Item = (At, T)> + 'a {
        self.entries.iter().filter_map(move |entry| Some((entry.at, pick(&entry.what)?)))
    }

    /// Every request that was received by a downstream, with its time.
    pub fn received(&self) -> impl Iterator<Item = (At, &Received)> {
        self.each(|what| if let What::Received(received) = what { Some(received) } else { None })
    }

    /// Every row change that was committed, with its time.
    pub fn committed(&self) -> impl Iterator<Item = (At, &Committed)> {
        self.each(|what| if let What::Committed(committed) = what { Some(committed) } else { None })
    }

    /// The events that are gone, and when: those that were pruned, and those that a failover took back.
    #[must_use]
    pub fn gone(&self) -> BTreeMap<EventId, At> {
        let gone = self
            .committed()
            .filter(|(_, committed)| matches!(committed.change, Change::Pruned | Change::Lost));
        gone.map(|(at, committed)| (committed.event, at)).collect()
    }

    /// Every request of a producer, by its name.
    #[must_use]
    pub fn posts(&self) -> BTreeMap<PostId, &Posted> {
        self.each_post().map(|(_, posted)| (posted.post, posted)).collect()
    }

    /// Each request of a producer, with its time.
    pub fn each_post(&self) -> impl Iterator<Item = (At, &Posted)> {
        self.each(|what| if let What::Posted(posted) = what { Some(posted) } else { None })
    }

    /// The answer to each request of a producer that was answered: time, status code, and what a `202` said.
    pub fn answers(&self) -> impl Iterator<Item = (At, Answer)> + '_ {
        self.each(|what| match *what {
            What::Answered { post, status_code, event, status, replayed, .. } => {
                Some(Answer { post, status_code, event, status, replayed })
            }
            _ => None,
        })
    }
}

/// A producer's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub post: PostId,
    /// The status code.
    pub status_code: u16,
    /// The event's id, from a `202`.
    pub event: Option<EventId>,
    /// The event's status, from a `202`.
    pub status: Option<Status>,
    /// Whether the answer says that the event was accepted before.
    pub replayed: bool,
}
