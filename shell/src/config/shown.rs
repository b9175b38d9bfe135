//! How a configuration is displayed, for example in logs, by `check` and in panic messages: without
//! passwords and tokens, and without any value that replaced a reference.

use super::secrets::Written;
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
/// of a server (`target_session_attrs`) is displayed. References are displayed as they are written.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    url: String,
    /// What is displayed instead, if a part of the URL was replaced.
    shown: Option<String>,
}

impl DatabaseUrl {
    /// Wraps a URL. It is not validated here: opening an invalid one fails.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), shown: None }
    }

    /// The whole URL. Never display it: it can contain secrets.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.url
    }

    /// Displays the URL as it is written from now on.
    pub(super) fn hide(&mut self, written: &Written) {
        self.shown = Some(written.shown(shown_database));
    }
}

/// A database URL as it can be displayed. `None` if it is not valid.
fn shown_database(url: &str) -> Option<String> {
    if url.starts_with("sqlite:") { Some(url.to_owned()) } else { postgres::shown(url) }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shown {
            Some(shown) => f.write_str(shown),
            None => f.write_str(shown_database(&self.url).as_deref().unwrap_or("…")),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The URL that receives a source's events: `http` or `https`, with a host. Displayed without its
/// credentials, and with `?…` instead of its query, because queries often contain tokens.
/// References are displayed as they are written.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination {
    url: Url,
    /// What is displayed instead, if a part of the URL was replaced.
    shown: Option<String>,
}

impl Destination {
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self { url, shown: None }
    }

    /// The whole URL. Never display it: it can contain secrets.
    #[must_use]
    pub fn secret(&self) -> &Url {
        &self.url
    }

    /// Displays the URL as it is written from now on.
    pub(super) fn hide(&mut self, written: &Written) {
        let shown = written.shown(|text| text.parse().ok().map(|url: Url| shown_destination(&url)));
        self.shown = Some(shown);
    }
}

/// The URL of a destination as it can be displayed.
fn shown_destination(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    shown.set_query(None);
    shown.set_fragment(None);
    format!("{shown}{}", if url.query().is_some() { "?…" } else { "" })
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        destination(text)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shown {
            Some(shown) => f.write_str(shown),
            None => f.write_str(&shown_destination(&self.url)),
        }
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Source {
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
            shutdown_grace,
            migrate_on_start,
            intake,
            worker,
            retention,
            delivered_payload,
            sources,
            origins,
        } = self;
        let or = |setting: &str, value: &dyn fmt::Display| origins.or(setting, value);
        let IntakeConfig {
            max_body,
            max_queued,
            max_queued_bytes,
            max_connections,
            header_timeout,
            idle_timeout,
            body_timeout,
        } = intake;
        let time = humantime::format_duration;
        let size = |bytes: usize| bytesize::ByteSize(bytes as u64).display().iec();
        writeln!(f, "listen      {}", or("listen", listen))?;
        if let Some(address) = operator_listen {
            writeln!(f, "            {} for operators", or("operator_listen", address))?;
        }
        if !operator_hosts.is_empty() {
            let hosts: Vec<&str> = operator_hosts.iter().map(String::as_str).collect();
            let hosts = or("operator_hosts", &hosts.join(", "));
            writeln!(f, "            host names for operators: {hosts}")?;
        }
        writeln!(
            f,
            "database    {database}{}",
            if *migrate_on_start { ", migrated at start" } else { "" }
        )?;
        writeln!(f, "role        {}", or("role", &role.as_str()))?;
        writeln!(f, "log         {}", or("log", &log.as_str()))?;
        writeln!(
            f,
            "shutdown    drains for at most {}, accepts requests for at least {}",
            or("drain_timeout", &time(*drain_timeout)),
            or("shutdown_grace", &time(*shutdown_grace))
        )?;
        writeln!(
            f,
            "intake      bodies up to {}, queue up to {max_queued} requests or {}",
            or("intake.max_body", &size(*max_body)),
            or("intake.max_queued_bytes", &size(*max_queued_bytes))
        )?;
        writeln!(
            f,
            "            {max_connections} connections, kept for {} while idle, request head within {}, body within {}",
            or("intake.idle_timeout", &time(*idle_timeout)),
            or("intake.header_timeout", &time(*header_timeout)),
            or("intake.body_timeout", &time(*body_timeout))
        )?;
        writeln!(
            f,
            "worker      holds up to {} of events",
            or("worker.max_held_bytes", &size(worker.max_held_bytes))
        )?;
        writeln!(
            f,
            "retention   delivered {}, dead-lettered {}",
            or("retention.delivered", &time(retention.delivered)),
            or("retention.dead_lettered", &time(retention.dead_lettered))
        )?;
        if *delivered_payload < retention.delivered {
            writeln!(
                f,
                "            query, headers and body of delivered events {}",
                or("retention.delivered_payload", &time(*delivered_payload))
            )?;
        }
        for line in origins.lines() {
            writeln!(f, "replaced    {line}")?;
        }
        for (name, source) in sources {
            writeln!(f, "\nsource {name}\n{source}")?;
            if source.max_body != *max_body {
                let max_body = source.origins.or("max_body", &size(source.max_body));
                writeln!(f, "  bodies      up to {max_body}")?;
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
            headers,
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
            origins,
        } = self;
        let or = |setting: &str, value: &dyn fmt::Display| origins.or(setting, value);
        let time = humantime::format_duration;
        let backoff = policy.backoff;
        if let Some(producer) = producer {
            writeln!(f, "  producer    {}", or("producer", producer))?;
        }
        writeln!(f, "  delivers to {destination}")?;
        if !headers.is_empty() {
            writeln!(f, "  headers     {headers}")?;
        }
        write!(f, "  key         {}", or("idempotency_key", idempotency_key))?;
        let note = note(idempotency_key);
        // A key that was made of the body or of the event's id is never reused for another body.
        if idempotency_key.entries().len() > 1 || note.is_none() {
            let on_key_reuse = on_key_reuse_name(*on_key_reuse);
            write!(f, ", on reuse: {}", or("on_key_reuse", &on_key_reuse))?;
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
                        write!(f, ", {}", or("answer.content_type", &content_type))?;
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
            or("timeout", &time(policy.timeout)),
            or("timeout", &time(policy.lease()))
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
            let open_for = or("breaker_open", &time(open_for));
            writeln!(f, "  breaker     opens for {open_for} after {opens_after}")?;
        }
        write!(
            f,
            "  attempts    {}, initial delay {}, factor {}",
            policy.max_attempts,
            or("initial_delay", &time(backoff.initial_delay)),
            backoff.factor
        )?;
        write!(f, ", maximum delay {}", or("max_delay", &time(backoff.max_delay)))?;
        let (shortest, longest) = backoff.span(policy.max_attempts);
        let is_hidden =
            ["initial_delay", "max_delay"].iter().any(|name| origins.of(name).is_some());
        if longest > Duration::ZERO && !is_hidden {
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
            let (relay, timeout) = (or("relay", relay), or("relay_timeout", &time(*relay_timeout)));
            write!(f, "\n  relayed     {relay} (timeout {timeout})")?;
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
        for line in origins.lines() {
            write!(f, "\n  replaced    {line}")?;
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
#[must_use]
pub fn coarse(duration: Duration) -> humantime::FormattedDuration {
    let unit = match duration.as_secs() {
        0..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    humantime::format_duration(Duration::from_secs(duration.as_secs() / unit * unit))
}
