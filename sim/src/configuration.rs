//! The configuration with which a simulated process starts.

use crate::bugs::Bug;
use crate::downstream::HANDSHAKE_HEADER;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use surehook::config::{
    Config, DatabaseUrl, Destination, IntakeConfig, LogFormat, Origins, Role,
    Source as SourceConfig, WorkerConfig,
};
use surehook::http_server::MAX_BUFFER_BYTES;
use surehook::ports::Retention;
use surehook_core::admission::OnKeyReuse;
use surehook_core::breaker::BreakerPolicy;
use surehook_core::relay::{Part, RelayRules, Rule};
use surehook_core::source::{Policy, SourceName};
use surehook_model::history::Kept;
use surehook_model::scenario::{MAX_BODY_BYTES, Role as RoleOf, Scenario, Source};

/// The size of the memory for requests. Twenty slow producers fill it.
const MAX_QUEUED_BYTES: usize = 20 * MAX_BODY_BYTES;

/// Every source relays handshakes.
fn relay(bug: Option<Bug>) -> RelayRules {
    let with = |header: &str| Rule::Part { part: Part::Header(header.to_owned()), equals: None };
    let rules = match bug {
        Some(Bug::HandshakeStored) => Vec::new(),
        Some(Bug::EventsRelayed) => vec![with("idempotency-key")],
        _ => vec![with(HANDSHAKE_HEADER)],
    };
    RelayRules::new(rules).expect("the rules are valid")
}

/// The configuration of a process that starts at `at`.
pub(crate) fn config(
    scenario: &Scenario,
    process: usize,
    at: Duration,
    bug: Option<Bug>,
) -> Config {
    // If the largest body and its headers take all memory, there is nothing left to reserve.
    let max_body = if bug == Some(Bug::NoReservedMemory) {
        MAX_QUEUED_BYTES - MAX_BUFFER_BYTES
    } else {
        MAX_BODY_BYTES
    };
    let source = |source: Source| {
        let mut policy = source.policy();
        match bug {
            Some(Bug::BreakerNeverOpens) => policy.breaker = BreakerPolicy::OFF,
            Some(Bug::RefusalsNeverOpen) => policy.breaker.refusals = 0,
            Some(Bug::RefusalsOpenLate) => policy.breaker.refusals *= 2,
            Some(Bug::BreakerClosesTooSoon) => policy.breaker.open_for /= 4,
            Some(Bug::RateForgotten) => policy.rate = None,
            _ => {}
        }
        let destination = "http://downstream.invalid/".parse().expect("the URL is valid");
        let config = SourceConfig {
            max_body,
            policy,
            on_key_reuse: if source.first_wins {
                OnKeyReuse::FirstWins
            } else {
                OnKeyReuse::Reject
            },
            relay: relay(bug),
            redrive_on_replay: source.redrive_on_replay && bug != Some(Bug::ReplayRedrivesNothing),
            ..SourceConfig::new(Destination::new(destination))
        };
        (SourceName::parse(&source.name).expect("the scenario's source names are valid"), config)
    };
    let kept = kept(scenario).unwrap_or(FOR_MONTHS);
    Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        operator_listen: None,
        operator_hosts: BTreeSet::new(),
        database: DatabaseUrl::new("sqlite:simulated"),
        role: match scenario.role(process) {
            RoleOf::All => Role::All,
            RoleOf::Intake => Role::Intake,
            RoleOf::Worker => Role::Worker,
        },
        log: LogFormat::Human,
        drain_timeout: Duration::from_millis(scenario.drain_timeout_ms),
        shutdown_grace: Duration::from_millis(scenario.shutdown_grace_ms),
        migrate_on_start: false,
        intake: IntakeConfig {
            max_body,
            max_queued: 512,
            max_queued_bytes: MAX_QUEUED_BYTES,
            max_connections: 256,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(10),
        },
        worker: WorkerConfig {
            max_held_bytes: if bug == Some(Bug::OneEventInMemory) {
                1
            } else {
                max_held_bytes(scenario)
            },
        },
        retention: Retention { delivered: kept.delivered, dead_lettered: kept.dead_lettered },
        delivered_payload: kept.payload,
        sources: scenario.sources_of(process, at).map(source).collect(),
        origins: Origins::default(),
    }
}

/// The policies of all sources in a process that starts at `at`.
pub(crate) fn policies(
    scenario: &Scenario,
    process: usize,
    at: Duration,
) -> impl Iterator<Item = (String, Policy)> {
    scenario.sources_of(process, at).map(|source| (source.name.clone(), source.policy()))
}

/// The size of the memory for deliveries. The part that is reserved for each source has room for
/// its small events, but not for one of the largest.
pub(crate) fn max_held_bytes(scenario: &Scenario) -> usize {
    2 * MAX_BODY_BYTES * scenario.sources.len()
}

/// The retention of scenarios that do not set one.
const FOR_MONTHS: Kept = {
    let months = Duration::from_hours(90 * 24);
    Kept { delivered: months, dead_lettered: months, payload: months }
};

/// The retention that a scenario sets, if any.
pub(crate) fn kept(scenario: &Scenario) -> Option<Kept> {
    let millis = Duration::from_millis;
    let kept = scenario.kept?;
    let (delivered, dead_lettered, payload) =
        (kept.delivered_ms, kept.dead_lettered_ms, kept.payload_ms);
    Some(Kept {
        delivered: millis(delivered),
        dead_lettered: millis(dead_lettered),
        payload: millis(payload),
    })
}
