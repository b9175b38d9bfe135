//! A scenario: everything that a run is made of, as data that can be printed, kept in a file, and cut down.
//!
//! Faults are explicit events, not probabilities: "at 12.3 s kill process 1", "lose the reply of process 2's 7th
//! settle". So a fault can be taken out and all the others stay what they were.

mod expand;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;
use surehook_core::backoff::Backoff;
use surehook_core::breaker::BreakerPolicy;
use surehook_core::source::Policy;

pub use expand::expand;

/// One run's topology, settings, workload and faults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Why it is kept.
    #[serde(default)]
    pub why: String,
    /// The planted bug, if any, with which it breaks a promise: so it goes on proving something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catches: Option<String>,
    /// Decides every order and delay that the scenario leaves open.
    pub seed: u64,
    /// Service processes.
    pub processes: usize,
    /// How long a process may take to shut down.
    pub drain_timeout_ms: u64,
    /// The kind of database.
    #[serde(default, skip_serializing_if = "Kind::is_alone")]
    pub database: Kind,
    /// What each process does, by index. All is done by those that are not named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
    /// How far the clock of each process is ahead of the true time, by index. It stands in the ids that the process gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks_ahead_ms: Vec<i64>,
    /// How long events are kept; for months, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// Sources, each with a downstream of its own.
    pub sources: Vec<Source>,
    /// What is posted.
    pub posts: Vec<Post>,
    /// What is broken, in the order of time.
    #[serde(default)]
    pub faults: Vec<FaultAt>,
    /// Everything is mended then at the latest.
    pub heal_at_ms: u64,
}

/// What a process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It accepts and delivers.
    #[default]
    All,
    /// It accepts.
    Intake,
    /// It delivers, and deletes what is over.
    Worker,
}

/// How long events are kept after their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Delivered events.
    pub delivered_ms: u64,
    /// Dead letters.
    pub dead_lettered_ms: u64,
    /// The payloads of delivered events.
    pub payload_ms: u64,
}

/// A kind of database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One server that many processes use. Its standby, if any, always has everything.
    #[default]
    Alone,
    /// A commit waits until the standby has it.
    SynchronousStandby,
    /// A commit does not wait for the standby. A failover loses what the standby does not have.
    AsynchronousStandby,
    /// One process uses it, and one transaction writes at a time, as on SQLite.
    OneWriter,
}

impl Kind {
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
    /// Its name.
    pub name: String,
    /// See [`Policy`].
    pub timeout_ms: u64,
    /// See [`Policy`].
    pub concurrency: u32,
    /// See [`Policy`].
    pub max_attempts: u32,
    /// See [`Backoff`].
    pub initial_delay_ms: u64,
    /// See [`Backoff`].
    pub max_delay_ms: u64,
    /// Deliveries that may begin in a second; 0: any number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rate: u32,
    /// So many failures in a row open the breaker; 0: there is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub breaker_failures: u32,
    /// See [`BreakerPolicy`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub breaker_open_ms: u32,
    /// Whether a reused key is answered with the first event.
    #[serde(default)]
    pub first_wins: bool,
    /// How its downstream behaves from when on. Well, before the first.
    #[serde(default)]
    pub behaves: Vec<BehaviourAt>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Scenario {
    /// A world of one process in which nothing is broken, for five seconds.
    #[must_use]
    pub fn of(sources: Vec<Source>, posts: Vec<Post>) -> Self {
        Self {
            why: String::new(),
            catches: None,
            seed: 1,
            processes: 1,
            drain_timeout_ms: 5_000,
            database: Kind::Alone,
            roles: Vec::new(),
            clocks_ahead_ms: Vec::new(),
            kept: None,
            sources,
            posts,
            faults: Vec::new(),
            heal_at_ms: 5_000,
        }
    }
}

impl Scenario {
    /// What a process does.
    #[must_use]
    pub fn role(&self, process: usize) -> Role {
        self.roles.get(process).copied().unwrap_or_default()
    }
}

impl Source {
    /// A source without a rate and a breaker, whose downstream is well.
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
            breaker_open_ms: 0,
            first_wins: false,
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

/// From when on a downstream behaves how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BehaviourAt {
    /// Since the run began.
    pub at_ms: u64,
    /// How.
    pub how: Behaviour,
}

/// What a downstream does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Behaviour {
    /// Takes it.
    Takes,
    /// Answers with this status code.
    Answers {
        /// The status code.
        status_code: u16,
        /// The seconds of a `Retry-After` header.
        retry_after_s: Option<u64>,
    },
    /// Answers `503` to the first attempt of each event and takes the second.
    FailsFirst,
    /// Takes every other request and answers `500` to the rest.
    Flaps,
    /// Takes it, and answers after so long: perhaps after the caller gave up.
    TakesLate {
        /// From the request to the answer.
        after_ms: u64,
    },
    /// Reads it and never answers.
    Hangs,
    /// Takes it and breaks the connection without an answer.
    BreaksOff,
    /// Takes it and sends a body that never ends.
    NeverEnds,
    /// Closes each connection at once.
    Refuses,
}

impl Behaviour {
    /// Whether a well-made request may go unanswered, be refused or be answered late.
    #[must_use]
    pub fn is_broken(self) -> bool {
        !matches!(self, Self::Takes)
    }
}

/// Something that producers post.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Post {
    /// Since the run began.
    pub at_ms: u64,
    /// The index of its source.
    pub source: usize,
    /// The index of the process that is tried first.
    #[serde(default)]
    pub process: usize,
    /// The idempotency key.
    pub key: String,
    /// Decides the body's bytes: two posts with one number have one body.
    pub body: u64,
    /// The body's length.
    pub size: usize,
    /// So many producers send it at the same moment.
    #[serde(default = "one")]
    pub copies: u32,
    /// The producer breaks the connection so long after it began, once, and then tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hangs_up_ms: Option<u64>,
    /// The database refuses the row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub poison: bool,
}

impl Post {
    /// The `n`th event, with a key and a body of its own, to the first source.
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
            poison: false,
        }
    }
}

fn one() -> u32 {
    1
}

/// When something is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAt {
    /// Since the run began. Store faults count calls instead, and wait from this time on.
    pub at_ms: u64,
    /// What.
    pub what: Fault,
}

/// What can be broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// A process dies between two steps and is started again.
    Kill {
        /// Its index.
        process: usize,
        /// How long it is away.
        down_ms: u64,
    },
    /// The process that makes a certain effect dies, whenever that is.
    Crash {
        /// The how-manyth effect of all processes that passes a port, from 1.
        effect: u64,
        /// Whether it dies after the effect was made and before it learns of that, or before it was made.
        after: bool,
        /// How long it is away.
        down_ms: u64,
    },
    /// All processes die at once.
    KillAll {
        /// How long they are away.
        down_ms: u64,
    },
    /// A process stands still.
    Pause {
        /// Its index.
        process: usize,
        /// For how long.
        for_ms: u64,
    },
    /// A process is told to shut down, and is started again when it has ended.
    Drain {
        /// Its index.
        process: usize,
        /// How long it is away after its end.
        down_ms: u64,
    },
    /// Each process in turn is told to shut down, and the next once it is back.
    RollingRestart {
        /// How long each is away after its end.
        down_ms: u64,
    },
    /// One way or both between two nodes, nothing passes.
    Cut {
        /// The one.
        from: Node,
        /// The other.
        to: Node,
        /// Whether the way back is cut too.
        both_ways: bool,
        /// For how long.
        for_ms: u64,
    },
    /// Everywhere, so many of a thousand packets are lost.
    Loss {
        /// Of a thousand.
        permille: u16,
        /// For how long.
        for_ms: u64,
    },
    /// Everywhere, packets take up to so long.
    Latency {
        /// The longest.
        max_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// One call of a process to the store goes wrong.
    Store {
        /// The process's index.
        process: usize,
        /// Which kind of call.
        call: Call,
        /// The how-manyth from this fault's time on, from 1.
        nth: u32,
        /// How.
        how: StoreFault,
    },
    /// The database is not there; what it had begun is rolled back.
    DatabaseDown {
        /// For how long.
        for_ms: u64,
    },
    /// The standby becomes the primary: connections break, and what the standby does not have is gone.
    DatabaseFailover,
    /// The standby is cut off from the primary. It catches up when it is back.
    StandbyAway {
        /// For how long.
        for_ms: u64,
    },
    /// The primary crashes and recovers at once: connections break, and what waited for the standby becomes visible.
    PrimaryRestart,
    /// An administrator cancels the commits that wait for the standby: they become visible.
    CancelCommits,
    /// The database takes longer for everything.
    DatabaseSlow {
        /// So much longer, each step.
        by_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// Every claim takes longer, while it holds its locks. All other calls are as fast as before.
    ClaimsSlow {
        /// How much longer.
        by_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// Somebody at the database's console locks the rows of a source.
    RowsLocked {
        /// The source's index.
        source: usize,
        /// For how long.
        for_ms: u64,
    },
    /// An operator asks a process something.
    Asked {
        /// The process's index.
        process: usize,
        /// What.
        what: Question,
    },
    /// An operator pauses a source, and resumes it.
    PauseSource {
        /// The source's index.
        source: usize,
        /// For how long.
        for_ms: u64,
    },
    /// An operator sends on its way again what has ended of a source.
    Redrive {
        /// The source's index.
        source: usize,
        /// What was delivered, and not its dead letters.
        delivered: bool,
    },
    /// The database's clock jumps.
    DatabaseClock {
        /// Forward, or back if negative.
        by_ms: i64,
    },
}

/// What an operator can ask of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Whether it is ready.
    Ready,
    /// The list of events.
    List,
    /// The work of each source.
    Sources,
    /// To send the dead letters of a source on their way again, by the source's index.
    RedriveAll(usize),
}

/// A node of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// A service process, by index.
    Process(usize),
    /// The database.
    Database,
    /// A source's downstream, by index.
    Downstream(usize),
    /// The producers.
    Producers,
}

/// A kind of call to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// [`surehook::ports::Store::accept`]; on a server, its insert.
    Accept,
    /// The read of the keys that an insert found in its way.
    Look,
    /// [`surehook::ports::Store::claim`].
    Claim,
    /// [`surehook::ports::Store::settle`].
    Settle,
    /// [`surehook::ports::Store::find`].
    Find,
    /// [`surehook::ports::Store::list`].
    List,
    /// [`surehook::ports::Store::redrive`] and [`surehook::ports::Store::redrive_delivered`].
    Redrive,
    /// [`surehook::ports::Store::redrive_all`].
    RedriveAll,
    /// [`surehook::ports::Store::sources`].
    Sources,
    /// [`surehook::ports::Store::pause`].
    Pause,
    /// [`surehook::ports::Store::prune`].
    Prune,
    /// [`surehook::ports::Store::erase`].
    Erase,
    /// [`surehook::ports::Store::ping`].
    Ping,
    /// [`surehook::ports::Store::probe`].
    Probe,
}

/// How one call to the store goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreFault {
    /// Refused before anything was done.
    Refuse,
    /// The connection breaks before the commit: rolled back, outcome unknown to the caller.
    FailBeforeCommit,
    /// The connection breaks after the commit: done, outcome unknown to the caller.
    FailAfterCommit,
    /// Rolled back in favour of another transaction.
    Conflict,
    /// The answer takes so long.
    Slow {
        /// How long.
        by_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_the_same_after_a_file() {
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
