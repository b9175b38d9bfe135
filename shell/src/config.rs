//! The configuration of one process: the TOML file, flags and environment variables, parsed into
//! types that only hold valid values. All errors are reported together, each with its setting, line
//! and column, and with what to do.
//!
//! Precedence: flag, environment, file, default. Nothing here opens a database or a socket. Whether
//! a valid configuration also works shows when it is used.

mod described;
mod error;
mod overrides;
pub mod producers;
mod reader;
mod secrets;
mod shown;
mod static_headers;
#[cfg(test)]
mod tests;
mod values;

pub use error::{ConfigError, Place, SettingError, SettingErrors};
pub use overrides::Overrides;
pub use secrets::{Machine, NoSecrets, Origins, Secrets};
pub use shown::{DatabaseUrl, Destination, coarse};
pub use static_headers::StaticHeaders;

use crate::http::{Acknowledgement, Content};
use crate::ports::Retention;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use reader::{Document, Section};
use secrets::Written;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;
use surehook_core::admission::OnKeyReuse;
use surehook_core::key::places::KeyPlaces;
use surehook_core::relay::{Part, RelayRules, Rule};
use surehook_core::source::{Policy, SourceName};

/// The file that is read if none is given.
pub const DEFAULT_FILE: &str = "surehook.toml";

/// The configuration of one process. Displayed without passwords, tokens and query strings, and
/// without the values that replaced references to variables and files.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// The address of the HTTP listener. The default is loopback, because Surehook does not
    /// authenticate requests.
    pub listen: SocketAddr,
    /// A separate address for the operator routes, if set.
    pub operator_listen: Option<SocketAddr>,
    /// The host names by which operators reach the listener through a proxy, in lower case and
    /// without ports.
    pub operator_hosts: BTreeSet<String>,
    /// The URL of the database, which is never in memory.
    pub database: DatabaseUrl,
    pub role: Role,
    /// The format of log lines.
    pub log: LogFormat,
    /// How long a shutdown waits for deliveries in flight, at most [`limits::DRAIN_TIMEOUT`]. Zero:
    /// it does not wait.
    pub drain_timeout: Duration,
    /// How long the listener stays open at least after the first signal, at most
    /// [`limits::SHUTDOWN_GRACE`].
    pub shutdown_grace: Duration,
    /// Whether `serve` migrates the database schema before it starts.
    pub migrate_on_start: bool,
    pub intake: IntakeConfig,
    /// Limits of the worker.
    pub worker: WorkerConfig,
    /// How long events are kept after they have ended. At least one second each.
    pub retention: Retention,
    /// How long the query, the headers and the body of a delivered event are kept, if that is shorter than the
    /// retention of the event.
    pub delivered_payload: Duration,
    /// The sources, by name. Not empty if the configuration comes from [`Config::load`] or
    /// [`Config::parse`].
    pub sources: BTreeMap<SourceName, Source>,
    /// The settings outside of the sources whose values were replaced.
    pub origins: Origins,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Accepts and delivers events.
    All,
    /// Accepts events and delivers none.
    Intake,
    /// Delivers events. Serves only the health and operator routes.
    Worker,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for a terminal.
    Human,
    /// One JSON object per line.
    Json,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::All, Self::Intake, Self::Worker];

    /// The value of the setting.
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
    pub const ALL: [Self; 2] = [Self::Human, Self::Json];

    /// The value of the setting.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

/// Limits of the intake. Each is at least 1, or 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntakeConfig {
    /// Limit of a body, in bytes, for sources that have no limit of their own. At most
    /// `max_queued_bytes`.
    pub max_body: usize,
    /// Limit of requests that wait for their commit. Further requests are refused with `503`.
    pub max_queued: usize,
    /// Limit of the queries, headers and bodies that wait for their commit, in bytes. Further requests are
    /// refused with `503`.
    pub max_queued_bytes: usize,
    /// Limit of open connections. Further ones wait in the kernel's accept queue. The limit is
    /// lower if the process's limit of open files is too low for it.
    pub max_connections: usize,
    /// Time limit for a request's head, and for a new connection without a request.
    pub header_timeout: Duration,
    /// How long a connection without a request is kept after one.
    pub idle_timeout: Duration,
    /// Time limit for a request's body after its head. A slower request is answered with `408`.
    pub body_timeout: Duration,
}

/// Limits of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Limit of the queries, headers and bodies of events that are being delivered or wait for a slot, in
    /// bytes. At least 1. The sources share it.
    pub max_held_bytes: usize,
}

/// One source: its destination and its settings.
#[derive(Clone, PartialEq)]
pub struct Source {
    /// The name of its producer, if it has one. The other fields have the producer's settings already.
    pub producer: Option<&'static str>,
    pub destination: Destination,
    /// Headers of each delivery and each relayed request.
    pub headers: StaticHeaders,
    /// Limit of a body, in bytes. At least 1, and at most `max_queued_bytes` of the intake.
    pub max_body: usize,
    /// How its events are delivered.
    pub policy: Policy,
    /// Where a request has its idempotency key.
    pub idempotency_key: KeyPlaces,
    /// The response to a known key with another body.
    pub on_key_reuse: OnKeyReuse,
    /// The response to a webhook that is stored.
    pub acknowledgement: Acknowledgement,
    /// Whether a replay of a dead letter queues it again.
    pub redrive_on_replay: bool,
    /// Whether `Authorization` and `Cookie` are stored and forwarded.
    pub forward_credentials: bool,
    /// Whether the query of the posted URL is stored, and appended to that of the destination.
    pub forward_query: bool,
    /// Which requests are relayed.
    pub relay: RelayRules,
    /// How long a relayed request waits for its response.
    pub relay_timeout: Duration,
    /// The settings whose values were replaced, here or in `[defaults]`.
    pub origins: Origins,
}

/// The largest allowed values. They are not recommendations: they catch typing errors.
pub mod limits {
    use std::time::Duration;

    /// The longest `timeout` of a delivery. The event's lease lasts longer than the timeout, and no
    /// other worker claims the event during the lease.
    pub const TIMEOUT: Duration = surehook_core::source::MAX_TIMEOUT;
    /// The most deliveries in flight for one source in one process.
    pub const CONCURRENCY: u32 = 10_000;
    /// The most deliveries that may start per second, for one source in one process.
    pub const RATE: u32 = 1_000_000;
    /// The most consecutive failures before a circuit breaker opens.
    pub const BREAKER_FAILURES: u32 = 1_000_000;
    /// The most attempts in one retry budget.
    pub const MAX_ATTEMPTS: u32 = 1_000_000;
    /// The largest back-off factor.
    pub const FACTOR: f64 = 100.0;
    /// The longest wait between two attempts: 366 days.
    pub const DELAY: Duration = Duration::from_hours(366 * 24);
    /// The longest drain. It equals the longest delivery, so no delivery in flight needs more.
    pub const DRAIN_TIMEOUT: Duration = TIMEOUT;
    /// The longest time for which the listener stays open although deliveries have ended. Load
    /// balancers notice within seconds that a process is not ready.
    pub const SHUTDOWN_GRACE: Duration = Duration::from_mins(5);
    /// The longest retention of ended events: 36,500 days.
    pub const RETENTION: Duration = Duration::from_hours(36_500 * 24);
    /// The longest wait for the response to a relayed request. No producer waits longer.
    pub const RELAY_TIMEOUT: Duration = Duration::from_mins(1);
    /// The largest body, in bytes: 256 MiB. A row of either database can hold it.
    pub const MAX_BODY: usize = 256 << 20;
    /// The longest queue, in requests.
    pub const MAX_QUEUED: usize = 1_000_000;
    /// The largest queue, in bytes: 64 GiB, or less if the machine cannot address that.
    pub const MAX_QUEUED_BYTES: usize = if usize::BITS > 36 { 1 << 36 } else { usize::MAX };
    /// The most memory for events that are being delivered, in bytes: the same as for the queue.
    pub const MAX_HELD_BYTES: usize = MAX_QUEUED_BYTES;
    pub const MAX_CONNECTIONS: usize = 1_000_000;
    /// The longest time for a request's head or body, and for an idle connection.
    pub const REQUEST_TIMEOUT: Duration = Duration::from_hours(1);
    /// The longest body of an acknowledgement, in bytes: 4 KiB. Each request gets it.
    pub const ANSWER_BODY: usize = 4 << 10;
    /// The most headers that a source sets.
    pub const HEADERS: usize = 16;
    /// The most bytes in the names and values of these headers: 8 KiB. Many servers accept no more.
    pub const HEADERS_BYTES: usize = 8 << 10;
    /// The longest configuration file, in bytes: 4 MiB.
    pub const FILE: u64 = 4 << 20;
}

impl Config {
    /// Reads a file, applies the overrides, and validates the result.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the file cannot be read, if a setting or an override is not valid, or if
    /// no source is configured.
    pub fn load(file: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::parse(&file.display().to_string(), &reader::read(file)?, overrides, &Machine)
    }

    /// Like [`Self::load`], from the content of a file. `name` is the name of the file in messages.
    /// `${NAME}` and `${file:PATH}` in text values are replaced by the values of `secrets`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Wrong`] with all errors.
    pub fn parse(
        name: &str,
        content: &[u8],
        overrides: &Overrides,
        secrets: &dyn Secrets,
    ) -> Result<Self, ConfigError> {
        parse(name, content, overrides, secrets, Sources::Required)
    }

    /// Like [`Self::load`], for commands that need no source: `sources` may be empty. If no file is
    /// given and the default file does not exist, the defaults apply.
    ///
    /// # Errors
    ///
    /// Like [`Self::load`], except that a missing source is no error.
    pub fn load_without_sources(
        file: Option<&Path>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let content = match reader::read(path) {
            Err(ConfigError::NotFound { .. }) if file.is_none() => Vec::new(),
            content => content?,
        };
        let name = path.display().to_string();
        parse(&name, &content, overrides, &Machine, Sources::Optional)
    }
}

impl Config {
    /// The configuration of a running process after its file was read again: `read`, except the
    /// settings that need a restart. Also returns the names of those that differ.
    #[must_use]
    pub fn reloaded(&self, read: Self) -> (Self, Vec<&'static str>) {
        let (mut new, mut differ) = (read, Vec::new());
        macro_rules! keep {
            ($($name:literal $($field:ident).+;)+) => {$(
                if new.$($field).+ != self.$($field).+ {
                    differ.push($name);
                    new.$($field).+.clone_from(&self.$($field).+);
                }
            )+};
        }
        keep! {
            "listen" listen;
            "operator_listen" operator_listen;
            "operator_hosts" operator_hosts;
            "database" database;
            "role" role;
            "log" log;
            "migrate_on_start" migrate_on_start;
            "intake.max_connections" intake.max_connections;
            "intake.header_timeout" intake.header_timeout;
            "intake.idle_timeout" intake.idle_timeout;
        }
        (new, differ)
    }

    /// The largest body that any source accepts, in bytes.
    #[must_use]
    pub fn largest_body(&self) -> usize {
        let limits = self.sources.values().map(|source| source.max_body);
        limits.max().unwrap_or(self.intake.max_body)
    }
}

impl Default for Config {
    /// The documented defaults, without sources.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            operator_listen: None,
            operator_hosts: BTreeSet::new(),
            database: DatabaseUrl::new("sqlite:surehook.db"),
            role: Role::All,
            log: LogFormat::Human,
            drain_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::ZERO,
            migrate_on_start: true,
            intake: IntakeConfig::default(),
            worker: WorkerConfig {
                max_held_bytes: surehook_core::worker::Settings::default().max_held_bytes,
            },
            retention: Retention { delivered: days(7), dead_lettered: days(30) },
            delivered_payload: limits::RETENTION,
            sources: BTreeMap::new(),
            origins: Origins::default(),
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
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
        }
    }
}

impl Source {
    /// A source with the documented defaults.
    #[must_use]
    pub fn new(destination: Destination) -> Self {
        Settings::default().source(destination, IntakeConfig::default().max_body)
    }
}

/// Whether a configuration must have a source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sources {
    Required,
    Optional,
}

/// The settings of `[defaults]`, which each source can override.
#[derive(Clone)]
struct Settings {
    policy: Policy,
    idempotency_key: KeyPlaces,
    on_key_reuse: OnKeyReuse,
    acknowledgement: Acknowledgement,
    redrive_on_replay: bool,
    forward_credentials: bool,
    forward_query: bool,
    relay: RelayRules,
    relay_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            idempotency_key: KeyPlaces::default(),
            on_key_reuse: OnKeyReuse::default(),
            acknowledgement: Acknowledgement::default(),
            redrive_on_replay: false,
            forward_credentials: false,
            forward_query: true,
            relay: RelayRules::default(),
            relay_timeout: Duration::from_secs(3),
        }
    }
}

impl Settings {
    fn source(self, destination: Destination, max_body: usize) -> Source {
        let Self {
            policy,
            idempotency_key,
            on_key_reuse,
            acknowledgement,
            redrive_on_replay,
            forward_credentials,
            forward_query,
            relay,
            relay_timeout,
        } = self;
        Source {
            producer: None,
            destination,
            headers: StaticHeaders::default(),
            max_body,
            policy,
            idempotency_key,
            on_key_reuse,
            acknowledgement,
            redrive_on_replay,
            forward_credentials,
            forward_query,
            relay,
            relay_timeout,
            origins: Origins::default(),
        }
    }
}

fn parse(
    name: &str,
    content: &[u8],
    overrides: &Overrides,
    secrets: &dyn Secrets,
    sources: Sources,
) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let mut problems = match Document::parse(content) {
        Ok(mut document) => {
            document.replace(secrets);
            let problems = document.read(|root| read(root, &mut config, sources));
            hide(&mut config, document.replaced());
            problems
        }
        Err(problem) => vec![problem],
    };
    problems.extend(overrides.apply(&mut config));
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Wrong(SettingErrors { file: name.to_owned(), problems }))
    }
}

/// Remembers which values were replaced, so that they are not shown.
fn hide(config: &mut Config, replaced: &[(String, Written)]) {
    for (setting, written) in replaced {
        if setting == "database" {
            config.database.hide(written);
        }
        if let Some(setting) = setting.strip_prefix("defaults.") {
            config.sources.values_mut().for_each(|source| source.origins.add(setting, written));
        } else if let Some((name, setting)) =
            setting.strip_prefix("sources.").and_then(|rest| rest.split_once('.'))
        {
            if let Some(source) = config.sources.get_mut(name) {
                source.origins.add(setting, written);
                if setting == "destination" {
                    source.destination.hide(written);
                }
            }
        } else {
            config.origins.add(setting, written);
        }
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
    root.text("shutdown_grace", &mut config.shutdown_grace, values::shutdown_grace);
    root.boolean("migrate_on_start", &mut config.migrate_on_start);
    root.section("intake", |section| intake(section, &mut config.intake));
    root.section("worker", |section| {
        section.size("max_held_bytes", &mut config.worker.max_held_bytes, limits::MAX_HELD_BYTES);
    });
    root.section("retention", |section| {
        retention(section, &mut config.retention, &mut config.delivered_payload);
    });

    let mut defaults = Settings::default();
    root.section("defaults", |section| settings(section, &mut defaults));
    root.section("sources", |section| {
        for name in section.names() {
            section.named(&name, |section| {
                let known = SourceName::parse(&name);
                let source = source(section, defaults.clone(), &config.intake);
                match (known, source) {
                    (Ok(known), Some(source)) => drop(config.sources.insert(known, source)),
                    (Ok(_), None) => {}
                    (Err(_), _) => section
                        .wrong("not a valid source name: use 1 to 64 letters, digits, `-` or `_`"),
                }
            });
        }
        if section.is_empty() && sources == Sources::Required {
            section.wrong(
                "no source is configured: add `[sources.NAME]` with `destination = \"https://…\"`",
            );
        }
    });
}

fn intake(section: &mut Section<'_>, intake: &mut IntakeConfig) {
    section.size("max_body", &mut intake.max_body, limits::MAX_BODY);
    section.integer("max_queued", &mut intake.max_queued, 1, limits::MAX_QUEUED);
    section.size("max_queued_bytes", &mut intake.max_queued_bytes, limits::MAX_QUEUED_BYTES);
    section.integer("max_connections", &mut intake.max_connections, 1, limits::MAX_CONNECTIONS);
    section.text("header_timeout", &mut intake.header_timeout, values::request_timeout);
    section.text("idle_timeout", &mut intake.idle_timeout, values::request_timeout);
    section.text("body_timeout", &mut intake.body_timeout, values::request_timeout);
    if intake.max_body > intake.max_queued_bytes {
        section.conflict(
            &["max_body", "max_queued_bytes"],
            format!(
                "`max_body` ({} bytes) is larger than `max_queued_bytes` ({} bytes): raise `max_queued_bytes` or lower `max_body`",
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
    section.integer("breaker_refusals", &mut policy.breaker.refusals, 0, limits::BREAKER_FAILURES);
    section.text("breaker_open", &mut policy.breaker.open_for, values::timeout);
    section.integer("max_attempts", &mut policy.max_attempts, 1, limits::MAX_ATTEMPTS);
    section.text("initial_delay", &mut policy.backoff.initial_delay, values::delay);
    section.number("factor", &mut policy.backoff.factor, 1.0, limits::FACTOR);
    section.text("max_delay", &mut policy.backoff.max_delay, values::delay);
    section.status_codes("retry_on", &mut policy.retry_on);
    section.status_codes("dead_letter_on", &mut policy.dead_letter_on);
    section.text_or_list(
        "idempotency_key",
        &mut settings.idempotency_key,
        values::key_place,
        values::key_places,
    );
    section.text("on_key_reuse", &mut settings.on_key_reuse, values::on_key_reuse);
    section.section_if_set("answer", |section| answer(section, &mut settings.acknowledgement));
    section.boolean("redrive_on_replay", &mut settings.redrive_on_replay);
    section.boolean("forward_credentials", &mut settings.forward_credentials);
    section.boolean("forward_query", &mut settings.forward_query);
    section.texts_or_sections(
        "relay",
        &mut settings.relay,
        values::relayed_method,
        relayed_part,
        values::relay_rules,
    );
    section.text("relay_timeout", &mut settings.relay_timeout, values::relay_timeout);
    section.refuse("lease", "the lease cannot be set. It is always `timeout` + 10s, so that it outlasts the delivery: set `timeout` instead");
    let backoff = settings.policy.backoff;
    if backoff.initial_delay > backoff.max_delay {
        section.conflict(
            &["initial_delay", "max_delay"],
            format!(
                "`initial_delay` ({}) is longer than `max_delay` ({}): raise `max_delay` or lower `initial_delay`",
                humantime::format_duration(backoff.initial_delay),
                humantime::format_duration(backoff.max_delay)
            ),
        );
    }
}

/// Reads one rule of `relay`: the part of a `POST`.
fn relayed_part(section: &mut Section<'_>) -> Option<Rule> {
    let (mut header, mut json, mut query, mut equals) = (None, None, None, None);
    let text = |text: &str| Ok(Some(text.to_owned()));
    section.text("header", &mut header, text);
    section.text("json", &mut json, |text| values::pointer(text).map(Some));
    section.text("query", &mut query, text);
    section.text("equals", &mut equals, text);
    let named = ["header", "json", "query"].iter().filter(|key| section.has(key)).count();
    if named != 1 {
        section.wrong("a rule needs exactly one of `header`, `json` and `query`: write for example { json = \"/type\", equals = \"url_verification\" }");
        return None;
    }
    let part = header.map(Part::Header).or(json.map(Part::Json)).or(query.map(Part::Query))?;
    let rule = Rule::Part { part, equals };
    if let Err(error) = RelayRules::new(vec![rule.clone()]) {
        section.wrong(&error.to_string());
        return None;
    }
    Some(rule)
}

/// Reads `answer`. It replaces an inherited one completely.
fn answer(section: &mut Section<'_>, acknowledgement: &mut Acknowledgement) {
    let mut status = StatusCode::ACCEPTED.as_u16();
    let (mut content_type, mut body): (Option<HeaderValue>, Option<Bytes>) = (None, None);
    section.integer("status", &mut status, 200, 299);
    section.text("content_type", &mut content_type, |text| values::content_type(text).map(Some));
    section.text("body", &mut body, |text| values::answer_body(text).map(Some));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::ACCEPTED);
    let is_without_body = Acknowledgement::is_without_body(status);
    if content_type.is_some() && body.is_none() {
        section.conflict(
            &["content_type", "body"],
            "`content_type` needs a `body`: set `body`, or remove `content_type`, because the default body is JSON".to_owned(),
        );
    }
    if is_without_body && body.as_ref().is_some_and(|body| !body.is_empty()) {
        section.conflict(
            &["body", "status"],
            format!(
                "a response with the status {} has no body: remove `body`, or set another `status`",
                status.as_u16()
            ),
        );
    }
    let content = match body {
        None if !is_without_body => Content::Standing,
        body => {
            let body = body.unwrap_or_default();
            let plain = || HeaderValue::from_static("text/plain; charset=utf-8");
            let content_type = content_type.or_else(|| (!body.is_empty()).then(plain));
            Content::Fixed { content_type, body }
        }
    };
    *acknowledgement = Acknowledgement { status, content };
}

fn source(
    section: &mut Section<'_>,
    mut inherited: Settings,
    intake: &IntakeConfig,
) -> Option<Source> {
    let (mut destination, mut producer) = (None, None);
    section.text("destination", &mut destination, |text| values::destination(text).map(Some));
    section.text("producer", &mut producer, |name| values::producer(name).map(Some));
    let mut headers = StaticHeaders::default();
    section.texts_by_name(
        "headers",
        &mut headers,
        static_headers::name,
        static_headers::value,
        StaticHeaders::new,
    );
    let has_credentials = |destination: &Destination| {
        let url = destination.secret();
        !url.username().is_empty() || url.password().is_some()
    };
    if headers.has(&AUTHORIZATION) && destination.as_ref().is_some_and(has_credentials) {
        section.conflict(
            &["headers"],
            "the `destination` has a user or a password, which are sent as `Authorization`: remove them, or remove this header".to_owned(),
        );
    }
    let mut max_body = intake.max_body;
    if let Some(producer) = producer {
        producer.apply(&mut inherited, &mut max_body);
    }
    settings(section, &mut inherited);
    section.size("max_body", &mut max_body, limits::MAX_BODY);
    if max_body > intake.max_queued_bytes {
        let is_of_producer = max_body != intake.max_body && !section.has("max_body");
        let (key, whose, lower) = if is_of_producer {
            ("producer", "of this producer ", "set a lower")
        } else {
            ("max_body", "", "lower")
        };
        section.conflict(
            &[key],
            format!(
                "`max_body` {whose}({max_body} bytes) is larger than `max_queued_bytes` of `[intake]` ({} bytes): raise `max_queued_bytes` or {lower} `max_body`",
                intake.max_queued_bytes
            ),
        );
    }
    if !section.has("destination") {
        section.wrong("the source has no `destination`: add `destination = \"https://…\"`, the URL that receives its events");
    }
    let producer = producer.map(|producer| producer.name.as_str());
    destination.map(|destination| Source {
        producer,
        headers,
        ..inherited.source(destination, max_body)
    })
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}
