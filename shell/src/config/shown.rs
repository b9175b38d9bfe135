//! How a configuration is displayed, for example in logs, by `check` and in panic messages: without
//! passwords and tokens.

use super::values::{destination, on_key_reuse_name};
use super::{Config, IntakeConfig, Source};
use crate::http::{Acknowledgement, Content};
use crate::store::postgres;
use http::HeaderValue;
use reqwest::Url;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use surehook_core::breaker::BreakerPolicy;
use surehook_core::key::places::{KeyPlaces, Place};

/// A database URL: `sqlite:PATH`, `postgres://…` or `postgresql://…`. Displayed without its
/// password and without its parameters, because these can contain a password too. Only the choice
/// of a server (`target_session_attrs`) is displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// Wraps a URL. It is not validated here: opening an invalid one fails.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The whole URL. Never display it: it can contain secrets.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.starts_with("sqlite:") {
            return f.write_str(&self.0);
        }
        f.write_str(postgres::shown(&self.0).as_deref().unwrap_or("…"))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The URL that receives a source's events: `http` or `https`, with a host. Displayed without its
/// credentials, and with `?…` instead of its query, because queries often contain tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination(Url);

impl Destination {
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// The whole URL. Never display it: it can contain secrets.
    #[must_use]
    pub fn secret(&self) -> &Url {
        &self.0
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        destination(text)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        let _ = url.set_password(None);
        let _ = url.set_username("");
        url.set_query(None);
        url.set_fragment(None);
        write!(f, "{url}{}", if self.0.query().is_some() { "?…" } else { "" })
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The summary that `surehook check` prints.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            listen,
            operator_listen,
            operator_hosts,
            database,
            role,
            log,
            drain_timeout,
            migrate_on_start,
            intake,
            worker,
            retention,
            delivered_payload,
            sources,
        } = self;
        let IntakeConfig {
            max_body,
            max_queued,
            max_queued_bytes,
            max_connections,
            header_timeout,
            body_timeout,
        } = intake;
        let time = humantime::format_duration;
        let size = |bytes: usize| bytesize::ByteSize(bytes as u64).display().iec();
        writeln!(f, "listen      {listen}")?;
        if let Some(operator_listen) = operator_listen {
            writeln!(f, "            {operator_listen} for operators")?;
        }
        if !operator_hosts.is_empty() {
            let hosts: Vec<&str> = operator_hosts.iter().map(String::as_str).collect();
            writeln!(f, "            host names for operators: {}", hosts.join(", "))?;
        }
        writeln!(
            f,
            "database    {database}{}",
            if *migrate_on_start { ", migrated at start" } else { "" }
        )?;
        writeln!(f, "role        {}", role.as_str())?;
        writeln!(f, "log         {}", log.as_str())?;
        writeln!(f, "shutdown    drains for at most {}", time(*drain_timeout))?;
        writeln!(
            f,
            "intake      bodies up to {}, queue up to {max_queued} requests or {}",
            size(*max_body),
            size(*max_queued_bytes)
        )?;
        writeln!(
            f,
            "            {max_connections} connections, request head within {}, body within {}",
            time(*header_timeout),
            time(*body_timeout)
        )?;
        writeln!(f, "worker      holds up to {} of events", size(worker.max_held_bytes))?;
        writeln!(
            f,
            "retention   delivered {}, dead-lettered {}",
            time(retention.delivered),
            time(retention.dead_lettered)
        )?;
        if *delivered_payload < retention.delivered {
            writeln!(
                f,
                "            query, headers and body of delivered events {}",
                time(*delivered_payload)
            )?;
        }
        for (name, source) in sources {
            writeln!(f, "\nsource {name}\n{source}")?;
            if source.max_body != *max_body {
                writeln!(f, "  bodies      up to {}", size(source.max_body))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            producer,
            destination,
            // Shown by the configuration, if it differs from that of the intake.
            max_body: _,
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
        let time = humantime::format_duration;
        let backoff = policy.backoff;
        if let Some(producer) = producer {
            writeln!(f, "  producer    {producer}")?;
        }
        writeln!(f, "  delivers to {destination}")?;
        write!(f, "  key         {idempotency_key}")?;
        let note = note(idempotency_key);
        // A key that was made of the body or of the event's id is never reused for another body.
        if idempotency_key.entries().len() > 1 || note.is_none() {
            write!(f, ", on reuse: {}", on_key_reuse_name(*on_key_reuse))?;
        }
        writeln!(f)?;
        if let Some(note) = note {
            writeln!(f, "              {note}")?;
        }
        if *acknowledgement != Acknowledgement::default() {
            let Acknowledgement { status, content } = acknowledgement;
            write!(f, "  answer      {}", status.as_u16())?;
            match content {
                Content::Standing => writeln!(f, ", JSON")?,
                Content::Fixed { content_type, body } => {
                    if let Some(Ok(content_type)) = content_type.as_ref().map(HeaderValue::to_str) {
                        write!(f, ", {content_type}")?;
                    }
                    match body.len() {
                        0 => writeln!(f, ", no body")?,
                        length => writeln!(f, ", a body of {length} bytes")?,
                    }
                }
            }
        }
        writeln!(
            f,
            "  delivery    {} in flight, timeout {}, lease {}",
            policy.concurrency,
            time(policy.timeout),
            time(policy.lease())
        )?;
        if let Some(rate) = policy.rate {
            writeln!(f, "  rate        {rate} per second")?;
        }
        let BreakerPolicy { failures, refusals, open_for } = policy.breaker;
        let opens_after = [
            (failures > 0).then(|| format!("{failures} consecutive failures")),
            (refusals > 0).then(|| format!("{refusals} consecutive refusals")),
        ];
        let opens_after = opens_after.into_iter().flatten().collect::<Vec<_>>().join(" or ");
        if opens_after.is_empty() {
            writeln!(f, "  breaker     none")?;
        } else {
            writeln!(f, "  breaker     opens for {} after {opens_after}", time(open_for))?;
        }
        write!(
            f,
            "  attempts    {}, initial delay {}, factor {}",
            policy.max_attempts,
            time(backoff.initial_delay),
            backoff.factor
        )?;
        write!(f, ", maximum delay {}", time(backoff.max_delay))?;
        let (shortest, longest) = backoff.span(policy.max_attempts);
        if longest > Duration::ZERO {
            write!(f, "\n  retries     last {} to {}", coarse(shortest), coarse(longest))?;
        }
        for (what, codes) in
            [("retried", &policy.retry_on), ("dead-lettered", &policy.dead_letter_on)]
        {
            if !codes.is_empty() {
                write!(f, "\n  {what:<11} {codes:?}")?;
            }
        }
        if !relay.rules().is_empty() {
            write!(f, "\n  relayed     {relay} (timeout {})", time(*relay_timeout))?;
        }
        if *redrive_on_replay {
            write!(f, "\n  a replay of a dead letter redrives it")?;
        }
        if *forward_credentials {
            write!(f, "\n  credentials are stored and forwarded")?;
        }
        if !*forward_query {
            write!(f, "\n  the query of a request is neither stored nor forwarded")?;
        }
        Ok(())
    }
}

/// What an operator must know of a key that the producer did not send.
fn note(places: &KeyPlaces) -> Option<&'static str> {
    let (last, before) = places.entries().split_last()?;
    match (last.places(), before.is_empty()) {
        ([Place::Body], true) => Some("requests with the same body are one event"),
        ([Place::Body], false) => {
            Some("requests without the other places and with the same body are one event")
        }
        ([Place::Request], true) => Some(
            "no deduplication: every request is a new event, and so is a retry of the producer",
        ),
        ([Place::Request], false) => Some(
            "no deduplication without the other places: such a request is a new event, and so is its retry",
        ),
        _ => None,
    }
}

/// A duration in its two largest units.
fn coarse(duration: Duration) -> humantime::FormattedDuration {
    let unit = match duration.as_secs() {
        0..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    humantime::format_duration(Duration::from_secs(duration.as_secs() / unit * unit))
}
