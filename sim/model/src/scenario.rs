//! A scenario: everything that defines a run, as data that can be printed, saved and reduced.
//!
//! Faults are explicit events, not probabilities: "at 12.3 s kill process 1", "lose the reply of
//! process 2's 7th settle". So one fault can be removed without changing the others.

mod expand;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;
use surehook_core::backoff::Backoff;
use surehook_core::breaker::BreakerPolicy;
use surehook_core::source::Policy;

pub use expand::expand;

/// The size of the largest body that the processes accept. A few of these fill their memory.
pub const MAX_BODY_BYTES: usize = 12 << 10;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Why the scenario is kept.
    #[serde(default)]
    pub why: String,
    /// The planted bug, if any, with which the scenario breaks a promise. A test checks that it
    /// still does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catches: Option<String>,
    /// Determines every order and delay that the scenario does not fix.
    pub seed: u64,
    /// The number of service processes.
    pub processes: usize,
    /// The longest time that a process may take to shut down.
    pub drain_timeout_ms: u64,
    /// How long the listener of a process stays open at least after its shutdown began.
    #[serde(default, skip_serializing_if = "is_none")]
    pub shutdown_grace_ms: u64,
    #[serde(default, skip_serializing_if = "DatabaseKind::is_alone")]
    pub database: DatabaseKind,
    /// The role of each process, by index. Processes that are not listed do everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
    /// How far the clock of each process is ahead of the true time, by index. The ids that a
    /// process generates contain its time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks_ahead_ms: Vec<i64>,
    /// The retention; by default so long that it does not matter in a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// The sources, each with its own downstream.
    pub sources: Vec<Source>,
    /// Where the configurations of processes differ. At any time, one process that accepts and one
    /// that delivers must have each source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
    /// The requests of the producers.
    pub posts: Vec<Post>,
    /// The handshakes of the producers, which the sources relay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handshakes: Vec<HandshakeAt>,
    /// Sorted by time.
    #[serde(default)]
    pub faults: Vec<FaultAt>,
    /// The time at which all faults have ended.
    pub heal_at_ms: u64,
}

/// The role of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts and delivers.
    #[default]
    All,
    /// Only accepts.
    Intake,
    /// Delivers, and deletes events after their retention.
    Worker,
}

/// How long events are kept after they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub delivered_ms: u64,
    pub dead_lettered_ms: u64,
    /// For the payloads of delivered events.
    pub payload_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseKind {
    /// A server for many processes. A failover loses nothing.
    #[default]
    Alone,
    /// A commit waits until the standby has it.
    SynchronousStandby,
    /// A commit does not wait for the standby. A failover loses what the standby does not have.
    AsynchronousStandby,
    /// For one process only, with one write transaction at a time, as SQLite has.
    OneWriter,
}

impl DatabaseKind {
    /// Whether this is the default kind.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        *self == Self::Alone
    }

    /// Whether the standby can lag behind.
    #[must_use]
    pub fn has_standby(self) -> bool {
        matches!(self, Self::SynchronousStandby | Self::AsynchronousStandby)
    }
}

/// A source and its downstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: String,
    pub timeout_ms: u64,
    pub concurrency: u32,
    pub max_attempts: u32,
    pub initial_delay_ms: u64,
    pub max_delay_ms: u64,
    /// Deliveries that may start per second; 0: no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rate: u32,
    /// The number of failures in a row that opens the circuit breaker; 0: no breaker.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub breaker_failures: u32,
    /// The number of refusals without an accepted event between them that opens the circuit breaker;
    /// 0: refusals never open it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub breaker_refusals: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub breaker_open_ms: u32,
    /// Whether a reused key is answered with the first event.
    #[serde(default)]
    pub first_wins: bool,
    /// Whether a replay of a dead letter queues it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redrive_on_replay: bool,
    /// The behaviour of its downstream over time. It is healthy before the first entry.
    #[serde(default)]
    pub behaves: Vec<BehaviourAt>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_none(milliseconds: &u64) -> bool {
    *milliseconds == 0
}

impl Scenario {
    /// One process without faults, for five seconds.
    #[must_use]
    pub fn of(sources: Vec<Source>, posts: Vec<Post>) -> Self {
        Self {
            why: String::new(),
            catches: None,
            seed: 1,
            processes: 1,
            drain_timeout_ms: 5_000,
            shutdown_grace_ms: 0,
            database: DatabaseKind::Alone,
            roles: Vec::new(),
            clocks_ahead_ms: Vec::new(),
            kept: None,
            sources,
            variants: Vec::new(),
            posts,
            handshakes: Vec::new(),
            faults: Vec::new(),
            heal_at_ms: 5_000,
        }
    }
}

impl Scenario {
    #[must_use]
    pub fn role(&self, process: usize) -> Role {
        self.roles.get(process).copied().unwrap_or_default()
    }

    /// The sources of a process that starts or reloads at `at`, with its settings.
    pub fn sources_of(&self, process: usize, at: Duration) -> impl Iterator<Item = Source> {
        self.sources.iter().enumerate().filter_map(move |(index, source)| {
            let is_meant = |variant: &&Variant| {
                variant.process == process
                    && variant.source == index
                    && Duration::from_millis(variant.from_ms) <= at
            };
            match self.variants.iter().rfind(is_meant).map(|variant| variant.settings) {
                None => Some(source.clone()),
                Some(Settings::Absent) => None,
                Some(Settings::Own { timeout_ms, concurrency, max_attempts }) => {
                    Some(Source { timeout_ms, concurrency, max_attempts, ..source.clone() })
                }
            }
        })
    }
}

/// A source in the configuration of one process that differs from [`Scenario::sources`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Index of the process.
    pub process: usize,
    /// Index of the source.
    pub source: usize,
    /// Applies to the starts and reloads of the process from this time on, until a later variant.
    pub from_ms: u64,
    pub settings: Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Settings {
    /// The process does not have the source.
    Absent,
    /// The process has the source with these settings.
    Own { timeout_ms: u64, concurrency: u32, max_attempts: u32 },
}

impl Source {
    /// A source without rate and breaker, with a healthy downstream.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            timeout_ms: 2_000,
            concurrency: 2,
            max_attempts: 5,
            initial_delay_ms: 500,
            max_delay_ms: 2_000,
            rate: 0,
            breaker_failures: 0,
            breaker_refusals: 0,
            breaker_open_ms: 0,
            first_wins: false,
            redrive_on_replay: false,
            behaves: Vec::new(),
        }
    }

    /// The policy of its deliveries.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            timeout: Duration::from_millis(self.timeout_ms),
            concurrency: self.concurrency,
            rate: NonZeroU32::new(self.rate),
            breaker: BreakerPolicy {
                failures: self.breaker_failures,
                refusals: self.breaker_refusals,
                open_for: Duration::from_millis(u64::from(self.breaker_open_ms)),
            },
            max_attempts: self.max_attempts,
            backoff: Backoff {
                initial_delay: Duration::from_millis(self.initial_delay_ms),
                factor: 2.0,
                max_delay: Duration::from_millis(self.max_delay_ms),
            },
            retry_on: BTreeSet::new(),
            dead_letter_on: BTreeSet::new(),
        }
    }
}

/// A handshake of a producer. It is sent once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandshakeAt {
    /// Since the start of the run.
    pub at_ms: u64,
    /// The index of its source.
    pub source: usize,
    /// The index of the process that receives it, among those that accept.
    pub process: usize,
}

/// A behaviour of a downstream, and its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BehaviourAt {
    /// Since the start of the run.
    pub at_ms: u64,
    pub how: Behaviour,
}

/// How a downstream handles a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Behaviour {
    /// Answers `200`.
    Takes,
    Answers {
        status_code: u16,
        /// The seconds of a `Retry-After` header.
        retry_after_s: Option<u64>,
    },
    /// Answers `503` to the first attempt of each event and `200` to later ones.
    FailsFirst,
    /// Answers `500` and `200` alternately.
    Flaps,
    /// Answers `200` after a delay, possibly after the sender's timeout.
    TakesLate {
        /// From the request to the response.
        after_ms: u64,
    },
    /// Reads the request and never answers.
    Hangs,
    /// Handles the request, but breaks the connection before the response.
    BreaksOff,
    /// Answers `200` with a body that never ends.
    NeverEnds,
    /// Closes each connection immediately.
    Refuses,
}

impl Behaviour {
    /// Whether a valid request may be unanswered, refused or answered late.
    #[must_use]
    pub fn is_broken(self) -> bool {
        !matches!(self, Self::Takes)
    }
}

/// A request of a producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Post {
    /// Since the start of the run.
    pub at_ms: u64,
    /// The index of its source.
    pub source: usize,
    /// The index of the process that is tried first.
    #[serde(default)]
    pub process: usize,
    pub key: String,
    /// Determines the bytes of the body: equal numbers give equal bodies.
    pub body: u64,
    /// The length of the body in bytes, apart from a short prefix. It is cut to [`MAX_BODY_BYTES`].
    pub size: usize,
    /// The number of producers that send it at the same moment.
    #[serde(default = "one")]
    pub copies: u32,
    /// The producer breaks the connection once, after this time from its start, and then tries
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hangs_up_ms: Option<u64>,
    /// The producer sends the last bytes of the body one by one, and takes this long for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trickles_ms: Option<u64>,
    /// Whether the database rejects the row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub poison: bool,
}

impl Post {
    /// The `n`th event, with its own key and body, for the first source.
    #[must_use]
    pub fn nth(n: u64, at_ms: u64) -> Self {
        Self {
            at_ms,
            source: 0,
            process: 0,
            key: format!("key-{n}"),
            body: n,
            size: 10,
            copies: 1,
            hangs_up_ms: None,
            trickles_ms: None,
            poison: false,
        }
    }
}

fn one() -> u32 {
    1
}

/// A fault and its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAt {
    /// Since the start of the run. A store fault counts calls from this time on.
    pub at_ms: u64,
    pub what: Fault,
}

/// The kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// A process is killed between two steps and started again.
    Kill {
        /// Index of the process.
        process: usize,
        /// Time until it is started again.
        down_ms: u64,
    },
    /// The process that causes a given effect is killed at that effect.
    Crash {
        /// The number of the effect, from 1, among the effects of all processes that pass a port.
        effect: u64,
        /// Whether the process is killed after the effect, before it learns the result, or before
        /// the effect.
        after: bool,
        /// Time until it is started again.
        down_ms: u64,
    },
    /// All processes are killed at the same time.
    KillAll {
        /// Time until they are started again.
        down_ms: u64,
    },
    /// A process is stopped.
    Pause {
        /// Index of the process.
        process: usize,
        /// Duration of the stop.
        for_ms: u64,
    },
    /// A process shuts down gracefully, and is started again after it has exited.
    Drain {
        /// Index of the process.
        process: usize,
        /// Time from its exit until it is started again.
        down_ms: u64,
    },
    /// A process reads its configuration again. See [`Variant`].
    Reload {
        /// Index of the process.
        process: usize,
    },
    /// The processes are shut down and restarted one after the other.
    RollingRestart {
        /// Time from the exit of each until it is started again.
        down_ms: u64,
    },
    /// No packets pass between two nodes, in one or both directions.
    Cut {
        /// Packets from this node are lost.
        from: Node,
        /// They are lost on the way to this node.
        to: Node,
        /// Whether packets in the other direction are lost too.
        both_ways: bool,
        /// Duration of the fault.
        for_ms: u64,
    },
    /// A share of all packets is lost.
    Loss {
        /// Lost packets per thousand.
        permille: u16,
        /// Duration of the fault.
        for_ms: u64,
    },
    /// All packets are delayed by a random time.
    Latency {
        /// The longest delay.
        max_ms: u64,
        /// Duration of the fault.
        for_ms: u64,
    },
    /// One call of a process to the store fails or is slow.
    Store {
        /// Index of the process.
        process: usize,
        /// The kind of call.
        call: Call,
        /// The number of the call from this fault's time on, from 1.
        nth: u32,
        /// How it fails.
        how: StoreFault,
    },
    /// The database is down; open transactions are rolled back.
    DatabaseDown {
        /// Duration of the outage.
        for_ms: u64,
    },
    /// The standby becomes the primary: connections break, and changes that the standby does not
    /// have are lost.
    DatabaseFailover,
    /// The standby is disconnected from the primary. It catches up afterwards.
    StandbyAway {
        /// Duration of the disconnection.
        for_ms: u64,
    },
    /// The primary crashes and recovers immediately: connections break, and commits that waited for
    /// the standby become visible.
    PrimaryRestart,
    /// An administrator cancels the wait of commits for the standby: they become visible.
    CancelCommits,
    /// Every step of the database takes longer.
    DatabaseSlow {
        /// Additional time of each step.
        by_ms: u64,
        /// Duration of the fault.
        for_ms: u64,
    },
    /// Every claim takes longer, while it holds its locks. Other calls are not slowed.
    ClaimsSlow {
        /// Additional time of each claim.
        by_ms: u64,
        /// Duration of the fault.
        for_ms: u64,
    },
    /// An administrator locks the rows of a source from the database's console.
    RowsLocked {
        /// Index of the source.
        source: usize,
        /// Duration of the lock.
        for_ms: u64,
    },
    /// An operator sends a request to a process.
    Asked {
        /// Index of the process.
        process: usize,
        /// The request.
        what: Question,
    },
    /// An operator pauses a source and resumes it later.
    PauseSource {
        /// Index of the source.
        source: usize,
        /// Duration of the pause.
        for_ms: u64,
    },
    /// An operator redrives events of a source.
    Redrive {
        /// Index of the source.
        source: usize,
        /// Whether its delivered events are redriven instead of its dead letters.
        delivered: bool,
    },
    /// An operator discards the dead letters of a source.
    Discard {
        /// Index of the source.
        source: usize,
        /// Whether its waiting events are discarded too, as through a process that does not know
        /// the source.
        waiting: bool,
    },
    /// The database's clock jumps.
    DatabaseClock {
        /// Forward, or back if negative.
        by_ms: i64,
    },
}

/// The requests of operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Readiness.
    Ready,
    /// The list of events.
    List,
    /// The list of sources with their waiting events.
    Sources,
    /// A redrive of the dead letters of a source, by the source's index.
    RedriveAll(usize),
    /// A discard of the dead letters of a source, by the source's index.
    DiscardAll(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// A service process, by index.
    Process(usize),
    Database,
    /// A source's downstream, by index.
    Downstream(usize),
    /// All producers.
    Producers,
}

/// The kinds of calls to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// [`surehook::ports::EventStore::accept`]; for a server, its insert.
    Accept,
    /// The read of existing keys after an insert that conflicted with them.
    Look,
    /// [`surehook::ports::EventStore::claim`].
    Claim,
    /// [`surehook::ports::EventStore::settle`].
    Settle,
    /// A read of one event: [`surehook::ports::OperatorStore::find`],
    /// [`surehook::ports::OperatorStore::request`] and [`surehook::ports::OperatorStore::body`].
    Find,
    /// [`surehook::ports::OperatorStore::list`] and [`surehook::ports::OperatorStore::summary`].
    List,
    /// [`surehook::ports::OperatorStore::redrive`] and [`surehook::ports::OperatorStore::redrive_delivered`].
    Redrive,
    /// [`surehook::ports::OperatorStore::redrive_all`].
    RedriveAll,
    /// [`surehook::ports::OperatorStore::discard`].
    Discard,
    /// [`surehook::ports::OperatorStore::discard_all`].
    DiscardAll,
    /// [`surehook::ports::OperatorStore::sources`].
    Sources,
    /// [`surehook::ports::OperatorStore::pause`].
    Pause,
    /// [`surehook::ports::MaintenanceStore::prune`].
    Prune,
    /// [`surehook::ports::MaintenanceStore::erase`].
    Erase,
    /// [`surehook::ports::MaintenanceStore::cap_due_times`].
    CapDueTimes,
    /// [`surehook::ports::MaintenanceStore::ping`].
    Ping,
    /// [`surehook::ports::MaintenanceStore::probe`].
    Probe,
}

impl Call {
    /// Its name in histories and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Look => "look",
            Self::Claim => "claim",
            Self::Settle => "settle",
            Self::Find => "find",
            Self::List => "list",
            Self::Redrive => "redrive",
            Self::RedriveAll => "redrive all",
            Self::Discard => "discard",
            Self::DiscardAll => "discard all",
            Self::Sources => "sources",
            Self::Pause => "pause",
            Self::Prune => "prune",
            Self::Erase => "erase",
            Self::CapDueTimes => "cap due times",
            Self::Ping => "ping",
            Self::Probe => "probe",
        }
    }

    /// Whether its transaction changes rows.
    #[must_use]
    pub fn writes(self) -> bool {
        !matches!(self, Self::Look | Self::Find | Self::List | Self::Sources | Self::Ping)
    }
}

/// How a call to the store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreFault {
    /// Refused before any change.
    Refuse,
    /// The connection breaks before the commit: rolled back, but the outcome is unknown to the
    /// caller.
    FailBeforeCommit,
    /// The connection breaks after the commit: committed, but the outcome is unknown to the caller.
    FailAfterCommit,
    /// Rolled back because of a conflict with another transaction.
    Conflict,
    /// The response is delayed.
    Slow {
        /// The delay.
        by_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_survives_the_round_trip_through_toml() {
        for seed in (0..50).chain(u64::MAX - 50..=u64::MAX) {
            let scenario = expand(seed);
            let text = toml::to_string(&scenario).unwrap();
            assert_eq!(toml::from_str::<Scenario>(&text).unwrap(), scenario, "{text}");
        }
    }

    #[test]
    fn a_seed_always_expands_into_the_same_scenario() {
        assert_eq!(expand(7), expand(7));
        assert_ne!(expand(7), expand(8));
    }
}
