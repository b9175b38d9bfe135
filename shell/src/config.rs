//! What an operator may set: the TOML file, the flags and the environment, checked and turned into values that are
//! right by construction. A mistake is told with its key, its line and column, and what to do; all of them at once.
//!
//! Precedence: flag, environment, file, default. Nothing here opens a database or a socket; whether a right
//! configuration also *works* is found out by whoever uses it.

mod error;
mod overrides;
mod reader;
mod shown;
#[cfg(test)]
mod tests;
mod values;

pub use error::{ConfigError, Place, Problem, Problems};
pub use overrides::Overrides;
pub use shown::{DatabaseUrl, Destination};

use crate::ports::Retention;
use http::HeaderName;
use reader::{Document, Section};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;
use surehook_core::admission::OnKeyReuse;
use surehook_core::source::{Policy, SourceName};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "surehook.toml";

/// Everything that one process is told. Shown without passwords, tokens and queries.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where HTTP is served. Loopback unless told otherwise, since nothing here authenticates.
    pub listen: SocketAddr,
    /// Where what operators ask is served instead, if it is to be apart.
    pub operator_listen: Option<SocketAddr>,
    /// The names by which operators reach the listener through a proxy, in lower case and without ports.
    pub operator_hosts: BTreeSet<String>,
    /// The database; never one in memory.
    pub database: DatabaseUrl,
    /// What this process does.
    pub role: Role,
    /// How log lines are written.
    pub log: LogFormat,
    /// How long a shutdown waits for deliveries in flight, at most [`limits::DRAIN_TIMEOUT`]. Zero: not at all.
    pub drain_timeout: Duration,
    /// Whether `serve` brings the database to this program's schema before it starts.
    pub migrate_on_start: bool,
    /// The bounds of the intake.
    pub intake: IntakeConfig,
    /// The bounds of the worker.
    pub worker: WorkerConfig,
    /// How long events are kept after they ended. At least a second each.
    pub retention: Retention,
    /// How long the headers and the body of a delivered event are kept, if that is less than the event is.
    pub delivered_payload: Duration,
    /// The sources, by name. Not empty where [`Config::load`] or [`Config::parse`] gave it.
    pub sources: BTreeMap<SourceName, Source>,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes events in and delivers them.
    All,
    /// Takes events in; delivers none.
    Intake,
    /// Delivers; serves the health and operator routes only.
    Worker,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::All, Self::Intake, Self::Worker];

    /// The role as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Intake => "intake",
            Self::Worker => "worker",
        }
    }
}

impl LogFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Human, Self::Json];

    /// The format as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

/// The bounds of the intake. Each is at least 1, or 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntakeConfig {
    /// The longest body, in bytes. At most `max_queued_bytes`.
    pub max_body: usize,
    /// Requests that may wait for their commit; the next is refused with `503`.
    pub max_queued: usize,
    /// Bytes of headers and bodies that may wait for their commit; what goes beyond is refused with `503`.
    pub max_queued_bytes: usize,
    /// Connections that may be open; the next waits in the system's backlog. Fewer if the process's limit of open files
    /// leaves room for fewer.
    pub max_connections: usize,
    /// The time a request's head may take. Ends idle connections too.
    pub header_timeout: Duration,
    /// The time a request's body may take once its head is there; a slower one is answered `408`.
    pub body_timeout: Duration,
}

/// The bounds of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Bytes of headers and bodies of events that are being delivered or wait for a slot, at least 1. The sources share them.
    pub max_held_bytes: usize,
}

/// One source: where its events go, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The downstream.
    pub destination: Destination,
    /// How its events are delivered.
    pub policy: Policy,
    /// The header that bears the idempotency key.
    pub idempotency_header: HeaderName,
    /// What happens to a key that comes again with another body.
    pub on_key_reuse: OnKeyReuse,
    /// Whether `Authorization` and `Cookie` are stored and forwarded.
    pub forward_credentials: bool,
}

/// The largest values that may be set. None is a recommendation; each keeps a typing mistake from being taken.
pub mod limits {
    use std::time::Duration;

    /// The longest delivery. An event is under its lease at least so long, and no other worker takes it meanwhile.
    pub const TIMEOUT: Duration = Duration::from_hours(1);
    /// The most deliveries in flight for one source and process.
    pub const CONCURRENCY: u32 = 10_000;
    /// The most deliveries that may be allowed to begin in a second.
    pub const RATE: u32 = 1_000_000;
    /// The most failures in a row that a breaker waits for.
    pub const BREAKER_FAILURES: u32 = 1_000_000;
    /// The most attempts in one budget.
    pub const MAX_ATTEMPTS: u32 = 1_000_000;
    /// The steepest back-off.
    pub const FACTOR: f64 = 100.0;
    /// The longest wait between two attempts: 366 days.
    pub const DELAY: Duration = Duration::from_hours(366 * 24);
    /// The longest drain: no delivery in flight can take longer.
    pub const DRAIN_TIMEOUT: Duration = TIMEOUT;
    /// The longest time for which ended events are kept: 36,500 days.
    pub const RETENTION: Duration = Duration::from_hours(36_500 * 24);
    /// The longest body, in bytes: 256 MiB, within what a row of either database can hold.
    pub const MAX_BODY: usize = 256 << 20;
    /// The longest queue, in requests.
    pub const MAX_QUEUED: usize = 1_000_000;
    /// The largest queue, in bytes: what this machine can address, at most 64 GiB.
    pub const MAX_QUEUED_BYTES: usize = if usize::BITS > 36 { 1 << 36 } else { usize::MAX };
    /// The most memory for events that are being delivered, in bytes: like the largest queue.
    pub const MAX_HELD_BYTES: usize = MAX_QUEUED_BYTES;
    /// The most connections.
    pub const MAX_CONNECTIONS: usize = 1_000_000;
    /// The longest time for a request's head or body.
    pub const REQUEST_TIMEOUT: Duration = Duration::from_hours(1);
    /// The longest configuration file, in bytes: 4 MiB.
    pub const FILE: u64 = 4 << 20;
}

impl Config {
    /// Reads a file, lays the overrides over it, and checks all of it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the file cannot be read or anything in it or in the overrides is wrong, or no source is
    /// named.
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::parse(&file.display().to_string(), &reader::read(file)?, overrides)
    }

    /// Like [`Self::load`], from a file's content. `name` is what messages call it.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Wrong`] with everything that is wrong.
    pub fn parse(name: &str, content: &[u8], overrides: &Overrides) -> Result<Self, ConfigError> {
        parse(name, content, overrides, Sources::Required)
    }

    /// Like [`Self::load`], for work that concerns no source: `sources` may be empty. With no file named, one that is
    /// not there is an empty one.
    ///
    /// # Errors
    ///
    /// Like [`Self::load`], but for the lack of sources.
    pub fn load_without_sources(
        file: Option<&Path>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let content = match reader::read(path) {
            Err(ConfigError::NotFound { .. }) if file.is_none() => Vec::new(),
            content => content?,
        };
        parse(&path.display().to_string(), &content, overrides, Sources::Optional)
    }
}

impl Default for Config {
    /// The documented defaults, and no source.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            operator_listen: None,
            operator_hosts: BTreeSet::new(),
            database: DatabaseUrl::new("sqlite:surehook.db"),
            role: Role::All,
            log: LogFormat::Human,
            drain_timeout: Duration::from_secs(30),
            migrate_on_start: true,
            intake: IntakeConfig::default(),
            worker: WorkerConfig {
                max_held_bytes: surehook_core::worker::Settings::default().max_held_bytes,
            },
            retention: Retention { delivered: days(7), dead_lettered: days(30) },
            delivered_payload: limits::RETENTION,
            sources: BTreeMap::new(),
        }
    }
}

impl Default for IntakeConfig {
    fn default() -> Self {
        Self {
            max_body: 1 << 20,
            max_queued: 4096,
            max_queued_bytes: 64 << 20,
            max_connections: 1000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
        }
    }
}

impl Source {
    /// A source with the documented defaults.
    #[must_use]
    pub fn new(destination: Destination) -> Self {
        Settings::default().source(destination)
    }
}

/// Whether a configuration without sources is right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sources {
    Required,
    Optional,
}

/// What `[defaults]` sets, and what each source may set for itself.
#[derive(Clone)]
struct Settings {
    policy: Policy,
    idempotency_header: HeaderName,
    on_key_reuse: OnKeyReuse,
    forward_credentials: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            idempotency_header: HeaderName::from_static("idempotency-key"),
            on_key_reuse: OnKeyReuse::default(),
            forward_credentials: false,
        }
    }
}

impl Settings {
    fn source(self, destination: Destination) -> Source {
        let Self { policy, idempotency_header, on_key_reuse, forward_credentials } = self;
        Source { destination, policy, idempotency_header, on_key_reuse, forward_credentials }
    }
}

fn parse(
    name: &str,
    content: &[u8],
    overrides: &Overrides,
    sources: Sources,
) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let mut problems = match Document::parse(content) {
        Ok(document) => document.read(|root| read(root, &mut config, sources)),
        Err(problem) => vec![problem],
    };
    problems.extend(overrides.apply(&mut config));
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Wrong(Problems { file: name.to_owned(), problems }))
    }
}

fn read(root: &mut Section<'_>, config: &mut Config, sources: Sources) {
    root.text("listen", &mut config.listen, values::listen);
    root.text("operator_listen", &mut config.operator_listen, values::operator_listen);
    root.texts("operator_hosts", &mut config.operator_hosts, values::operator_host);
    root.text("database", &mut config.database, values::database);
    root.text("role", &mut config.role, values::role);
    root.text("log", &mut config.log, values::log);
    root.text("drain_timeout", &mut config.drain_timeout, values::drain_timeout);
    root.boolean("migrate_on_start", &mut config.migrate_on_start);
    root.section("intake", |section| intake(section, &mut config.intake));
    root.section("worker", |section| {
        section.size("max_held_bytes", &mut config.worker.max_held_bytes, limits::MAX_HELD_BYTES)
    });
    root.section("retention", |section| {
        retention(section, &mut config.retention, &mut config.delivered_payload)
    });

    let mut defaults = Settings::default();
    root.section("defaults", |section| settings(section, &mut defaults));
    root.section("sources", |section| {
        for name in section.names() {
            section.named(&name, |section| {
                let known = SourceName::parse(&name);
                let source = source(section, defaults.clone());
                match (known, source) {
                    (Ok(known), Some(source)) => drop(config.sources.insert(known, source)),
                    (Ok(_), None) => {}
                    (Err(_), _) => section.wrong("this cannot name a source: use 1 to 64 letters, digits, `-` or `_`"),
                }
            });
        }
        if section.is_empty() && sources == Sources::Required {
            section.wrong("there is no source, so there is nothing to do: add `[sources.NAME]` with `destination = \"https://…\"`");
        }
    });
}

fn intake(section: &mut Section<'_>, intake: &mut IntakeConfig) {
    section.size("max_body", &mut intake.max_body, limits::MAX_BODY);
    section.integer("max_queued", &mut intake.max_queued, 1, limits::MAX_QUEUED);
    section.size("max_queued_bytes", &mut intake.max_queued_bytes, limits::MAX_QUEUED_BYTES);
    section.integer("max_connections", &mut intake.max_connections, 1, limits::MAX_CONNECTIONS);
    section.text("header_timeout", &mut intake.header_timeout, values::request_timeout);
    section.text("body_timeout", &mut intake.body_timeout, values::request_timeout);
    if intake.max_body > intake.max_queued_bytes {
        section.conflict(
            ["max_body", "max_queued_bytes"],
            format!(
                "the longest body, {} bytes, does not fit into the queue of {} bytes: raise `max_queued_bytes` or lower `max_body`",
                intake.max_body, intake.max_queued_bytes
            ),
        );
    }
}

fn retention(
    section: &mut Section<'_>,
    retention: &mut Retention,
    delivered_payload: &mut Duration,
) {
    section.text("delivered", &mut retention.delivered, values::retention);
    section.text("delivered_payload", delivered_payload, values::retention);
    section.text("dead_lettered", &mut retention.dead_lettered, values::retention);
}

fn settings(section: &mut Section<'_>, settings: &mut Settings) {
    let policy = &mut settings.policy;
    section.text("timeout", &mut policy.timeout, values::timeout);
    section.integer("concurrency", &mut policy.concurrency, 1, limits::CONCURRENCY);
    let mut rate = policy.rate.map_or(0, NonZeroU32::get);
    section.integer("rate", &mut rate, 0, limits::RATE);
    policy.rate = NonZeroU32::new(rate);
    section.integer("breaker_failures", &mut policy.breaker.failures, 0, limits::BREAKER_FAILURES);
    section.text("breaker_open", &mut policy.breaker.open_for, values::timeout);
    section.integer("max_attempts", &mut policy.max_attempts, 1, limits::MAX_ATTEMPTS);
    section.text("initial_delay", &mut policy.backoff.initial_delay, values::delay);
    section.number("factor", &mut policy.backoff.factor, 1.0, limits::FACTOR);
    section.text("max_delay", &mut policy.backoff.max_delay, values::delay);
    section.status_codes("retry_on", &mut policy.retry_on);
    section.status_codes("dead_letter_on", &mut policy.dead_letter_on);
    section.text(
        "idempotency_header",
        &mut settings.idempotency_header,
        values::idempotency_header,
    );
    section.text("on_key_reuse", &mut settings.on_key_reuse, values::on_key_reuse);
    section.boolean("forward_credentials", &mut settings.forward_credentials);
    section.refuse("lease", "a lease is not set but derived, so that it outlives its delivery: `timeout` + 10s; set `timeout` instead");
    let backoff = settings.policy.backoff;
    if backoff.initial_delay > backoff.max_delay {
        section.conflict(
            ["initial_delay", "max_delay"],
            format!(
                "the first delay, {}, is longer than the longest, {}: raise `max_delay` or lower `initial_delay`",
                humantime::format_duration(backoff.initial_delay),
                humantime::format_duration(backoff.max_delay)
            ),
        );
    }
}

fn source(section: &mut Section<'_>, mut inherited: Settings) -> Option<Source> {
    let mut destination = None;
    section.text("destination", &mut destination, |text| values::destination(text).map(Some));
    settings(section, &mut inherited);
    if !section.has("destination") {
        section.wrong("the source has no `destination`: add `destination = \"https://…\"`, where its events are to be delivered");
    }
    destination.map(|destination| inherited.source(destination))
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}
