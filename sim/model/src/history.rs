//! The recorded history of a run, as seen from outside and (in a simulation) from inside the
//! database. It is the only input of the oracles. Plain data, ordered by time.

use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook::search::EventRecord;
use surehook_core::admission::Fingerprint;
use surehook_core::event::{Outcome, Status};
use surehook_core::id::{Attempt, EventId, Fence};

use crate::database::DeliveryRow;
use crate::marks::Mark;
use crate::policies::Policies;

/// Time since the start of the run, on one clock for all participants.
pub type At = Duration;

/// A run: the configuration, the history, and the content of the database at the end.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub policies: Policies,
    /// The sources that answer a reused key with the first event.
    pub first_wins: BTreeSet<String>,
    /// The sources of which a replay of a dead letter queues it again.
    pub redrives_on_replay: BTreeSet<String>,
    /// The retention; `None` if the run is not judged by it.
    pub kept: Option<Kept>,
    /// Whether a failover may lose acknowledged commits, because the standby is asynchronous.
    pub failover_may_lose: bool,
    /// A commit may become visible up to this long after its recorded time. Zero in a simulation;
    /// in a run of the real program the recorded time is the start of the statement.
    pub commits_within: Duration,
    /// The drain timeout of every process, if the shutdowns are to be judged.
    pub drain_timeout: Option<Duration>,
    /// The setting `max_held_bytes` of the processes.
    pub max_held_bytes: usize,
    /// The most bytes of events that each process held for its deliveries, apart from the largest
    /// of these events; empty if that is not known.
    pub held: BTreeMap<String, Held>,
    /// Ordered by time.
    pub entries: Vec<Entry>,
    /// Every event as it was at the end of the run, or when it was pruned.
    pub events: BTreeMap<EventId, EventRecord>,
    /// When the last fault ended.
    pub healed_at: At,
    pub ended_at: At,
    /// What each process was waiting for at the end, as text; empty if that is not known.
    pub waits: BTreeMap<String, Vec<String>>,
}

/// The events that a process held for its deliveries at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub at: At,
    /// The size of all of them.
    pub bytes: usize,
    /// The size of the largest one.
    pub largest: usize,
}

/// How long events are kept after they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub delivered: Duration,
    pub dead_lettered: Duration,
    /// For the payloads of delivered events.
    pub payload: Duration,
}

/// One entry of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub at: At,
    pub what: What,
}

/// The kinds of entries.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Posted(Posted),
    /// A producer received a complete response.
    Answered {
        post: PostId,
        status_code: u16,
        /// The event's id, from a `202`.
        event: Option<EventId>,
        /// The event's status, from a `202`.
        status: Option<Status>,
        /// Whether the response says that the event was accepted before.
        replayed: bool,
        /// The problem type of an error: the last part of its URN.
        problem: Option<String>,
    },
    /// A producer got no complete response, and will not get one.
    Unanswered {
        post: PostId,
        /// Whether the connection was refused, as far as that is known: nothing listens at the address.
        is_refused: bool,
    },
    /// A response to `GET /events/{id}`.
    Looked {
        event: EventId,
        /// When the request was sent.
        asked_at: At,
        /// The status in the response; `None` for a `404`.
        status: Option<Status>,
        /// The number of attempts in the response.
        attempts: u32,
    },
    /// A response to `GET /ready`.
    Ready {
        process: String,
        /// When the request was sent.
        asked_at: At,
        is_ready: bool,
    },
    Sending(Sending),
    /// A process has ended a delivery, with or without a response.
    Sent {
        process: String,
        event: EventId,
        attempt: Attempt,
        /// The status code, if a response arrived in time.
        status_code: Option<u16>,
    },
    /// A downstream received a complete request.
    Received(Received),
    /// A downstream sent its response. It may not arrive.
    Replied {
        request: RequestId,
        status_code: u16,
        /// The value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The database committed a change.
    Committed(Committed),
    /// The database refused a settlement as stale.
    StaleSettlement {
        /// The process that sent it.
        process: String,
        event: EventId,
        attempt: Attempt,
    },
    /// A process's call to the store ended.
    Called {
        process: String,
        /// The name of the method.
        call: &'static str,
        /// The result as the process saw it.
        result: CallResult,
        /// The events in the call.
        events: Vec<EventId>,
    },
    Handshake(Handshake),
    /// A fault began or ended.
    Fault(Fault),
    /// The simulator reports a situation that only it can see.
    Reached(Mark),
}

/// Identifies a request of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostId(pub u64);

/// Identifies a request to a downstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    pub post: PostId,
    pub producer: String,
    /// The process that receives the request.
    pub process: String,
    /// The source in the request's path.
    pub source: String,
    pub key: String,
    /// Fingerprint of the body.
    pub body: Fingerprint,
    /// Whether the database accepts this body. If not, the request is refused each time.
    pub storable: bool,
    /// The query of the request; empty if there is none. It must be forwarded unchanged.
    pub query: String,
    /// How long its producer takes to send it, if known. A slow one may be refused while the
    /// process is short of memory.
    pub takes: Option<Duration>,
    /// The values of the headers that must be forwarded unchanged, by lower-case name.
    pub headers: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A step of a handshake: a request that its source relays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// A producer sent it. It has a key too, which must never become that of an event.
    Sent { post: PostId, process: String, source: String, key: String },
    /// The producer received a complete response.
    Answered {
        post: PostId,
        status_code: u16,
        /// The event's id, if the response acknowledges one.
        event: Option<EventId>,
    },
    /// The downstream of a source received a request that is not a delivery.
    Relayed {
        source: String,
        /// The handshake that the request names.
        post: Option<PostId>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    pub process: String,
    pub source: String,
    pub event: EventId,
    pub attempt: Attempt,
}

/// A request as its downstream received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub request: RequestId,
    /// The source that the request names.
    pub source: String,
    /// The event that the request names.
    pub event: EventId,
    /// The attempt that the request names.
    pub attempt: Attempt,
    /// Fingerprint of the body.
    pub body: Fingerprint,
    /// The query of the request; empty if there is none.
    pub query: String,
    /// The values of all headers, by lower-case name.
    pub headers: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A committed change of one event's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub event: EventId,
    /// The database's time of the statement.
    pub db_time: Timestamp,
    /// When the process sent the statement, if known. It had the settings of that moment.
    pub sent: Option<At>,
    /// When the statement started, if known. It saw all changes committed before.
    pub began: Option<At>,
    /// The process that sent the statement.
    pub process: String,
    pub change: Change,
    /// The row before; `None` if there was none.
    pub before: Option<DeliveryRow>,
    /// The row after; `None` if it was deleted.
    pub after: Option<DeliveryRow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Accepted,
    /// A claim, or a dead letter in place of one.
    Claimed,
    Settled {
        /// The fence in the settlement.
        fence: Fence,
        attempt: Attempt,
        /// The requested outcome.
        outcome: Outcome,
    },
    Redriven {
        /// Whether an operator redrove many events at once, without the names of their ids.
        of_many: bool,
    },
    /// An operator discarded the event.
    Discarded,
    /// The event was deleted because its retention ended.
    Pruned,
    /// The payload was erased because its retention ended. The record stays.
    Erased,
    /// The due time was too far ahead, and was capped.
    Capped,
    /// A failover to a standby that did not have the newest changes of this event.
    RolledBack,
    /// A failover to a standby that did not have this event.
    Lost,
}

/// The result of a store call as the process saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// The call succeeded.
    Done,
    /// The call failed and changed nothing.
    Refused,
    /// The call failed, but may have been committed.
    Unknown,
}

/// A fault that began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Killed {
        process: String,
    },
    /// A process was started, for the first time or again.
    Started {
        process: String,
    },
    /// A process reads its configuration again.
    Reloaded {
        process: String,
    },
    /// A process was stopped for a while; it continues afterwards.
    Paused {
        process: String,
        /// How long, from now.
        duration: Duration,
    },
    /// A process received the signal to shut down.
    Draining {
        process: String,
    },
    /// A process that is shutting down closes its listener.
    Closing {
        process: String,
    },
    /// A process completed its shutdown.
    Exited {
        process: String,
    },
    /// The network between two nodes is cut, lossy or slow for a while.
    Network {
        /// Description of the fault. Oracles look for `cut from A to B` in it.
        what: String,
        /// How long, from now.
        duration: Duration,
    },
    /// A fault of the database for a while, or of one call (duration zero).
    Database {
        /// Description of the fault. Oracles and marks look for words in it: `clock`, `Slow`,
        /// `down`, `are locked`, `at this Prune`.
        what: String,
        /// The process whose call is affected; `None`: all processes.
        process: Option<String>,
        /// How long, from now.
        duration: Duration,
    },
    /// A downstream changed its behaviour.
    Downstream {
        source: String,
        /// Description of the behaviour.
        what: String,
        /// Whether it may leave valid requests unanswered or refuse them.
        broken: bool,
    },
    SourcePaused {
        source: String,
        /// Whether the source is paused from now on.
        paused: bool,
    },
    /// All faults have ended.
    Healed,
}

impl Posted {
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.takes.is_some_and(|takes| !takes.is_zero())
    }
}

impl Run {
    /// The entries of one kind, with their times.
    pub fn each<'a, T: 'a>(
        &'a self,
        pick: impl Fn(&'a What) -> Option<T> + 'a,
    ) -> impl Iterator<Item = (At, T)> + 'a {
        self.entries.iter().filter_map(move |entry| Some((entry.at, pick(&entry.what)?)))
    }

    /// Every request that a downstream received, with its time.
    pub fn received(&self) -> impl Iterator<Item = (At, &Received)> {
        self.each(|what| if let What::Received(received) = what { Some(received) } else { None })
    }

    /// Every committed row change, with its time.
    pub fn committed(&self) -> impl Iterator<Item = (At, &Committed)> {
        self.each(|what| if let What::Committed(committed) = what { Some(committed) } else { None })
    }

    /// The deleted events and when they were deleted: pruned, or lost in a failover.
    #[must_use]
    pub fn gone(&self) -> BTreeMap<EventId, At> {
        let gone = self
            .committed()
            .filter(|(_, committed)| matches!(committed.change, Change::Pruned | Change::Lost));
        gone.map(|(at, committed)| (committed.event, at)).collect()
    }

    /// Every request of a producer, by its id.
    #[must_use]
    pub fn posts(&self) -> BTreeMap<PostId, &Posted> {
        self.each_post().map(|(_, posted)| (posted.post, posted)).collect()
    }

    /// Every request of a producer, with its time.
    pub fn each_post(&self) -> impl Iterator<Item = (At, &Posted)> {
        self.each(|what| if let What::Posted(posted) = what { Some(posted) } else { None })
    }

    /// Every response that a producer received, with its time.
    pub fn answers(&self) -> impl Iterator<Item = (At, Answer)> + '_ {
        self.each(|what| match *what {
            What::Answered { post, status_code, event, status, replayed, .. } => {
                Some(Answer { post, status_code, event, status, replayed })
            }
            _ => None,
        })
    }
}

/// A response to a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub post: PostId,
    pub status_code: u16,
    /// The event's id, from a `202`.
    pub event: Option<EventId>,
    /// The event's status, from a `202`.
    pub status: Option<Status>,
    /// Whether the response says that the event was accepted before.
    pub replayed: bool,
}
