//! A configuration as it may be shown: in logs, in `check`, in a panic's message. Without passwords and tokens.

use super::values::on_key_reuse_name;
use super::{Config, IntakeConfig, Source};
use crate::store::postgres;
use reqwest::Url;
use std::fmt;
use surehook_core::breaker::BreakerPolicy;

/// A database's URL: `sqlite:PATH`, `postgres://…` or `postgresql://…`. Shown without its password and without its
/// parameters, which can hold one too, but for the choice of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL of that text. One that names no database is refused by whoever opens it.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The whole URL, which is not to be shown.
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

/// Where a source's events go: an `http` or `https` URL with a host. Shown without its credentials, and without its
/// query, where tokens are often put: `?…` stands for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination(Url);

impl Destination {
    /// The destination of that URL.
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// The whole URL, which is not to be shown.
    #[must_use]
    pub fn secret(&self) -> &Url {
        &self.0
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

/// What `surehook serve` would run, for a person.
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
            writeln!(f, "            operators come by {}", hosts.join(", "))?;
        }
        writeln!(
            f,
            "database    {database}{}",
            if *migrate_on_start { ", migrated at the start" } else { "" }
        )?;
        writeln!(f, "role        {}", role.as_str())?;
        writeln!(f, "log         {}", log.as_str())?;
        writeln!(f, "shutdown    drains for at most {}", time(*drain_timeout))?;
        writeln!(
            f,
            "intake      bodies to {}, {max_queued} requests or {} queued",
            size(*max_body),
            size(*max_queued_bytes)
        )?;
        writeln!(
            f,
            "            {max_connections} connections, head in {}, body in {}",
            time(*header_timeout),
            time(*body_timeout)
        )?;
        writeln!(f, "worker      {} of events held", size(worker.max_held_bytes))?;
        writeln!(
            f,
            "retention   delivered {}, dead-lettered {}",
            time(retention.delivered),
            time(retention.dead_lettered)
        )?;
        if *delivered_payload < retention.delivered {
            writeln!(
                f,
                "            the payload of what was delivered {}",
                time(*delivered_payload)
            )?;
        }
        for (name, source) in sources {
            writeln!(f, "\nsource {name}\n{source}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, policy, idempotency_header, on_key_reuse, forward_credentials } =
            self;
        let time = humantime::format_duration;
        let backoff = policy.backoff;
        writeln!(f, "  delivers to {destination}")?;
        writeln!(
            f,
            "  key         {idempotency_header}, on reuse: {}",
            on_key_reuse_name(*on_key_reuse)
        )?;
        writeln!(
            f,
            "  delivery    {} at once, each in {} under a lease of {}",
            policy.concurrency,
            time(policy.timeout),
            time(policy.lease())
        )?;
        if let Some(rate) = policy.rate {
            writeln!(f, "  rate        {rate} a second")?;
        }
        match policy.breaker {
            BreakerPolicy { failures: 0, .. } => writeln!(f, "  breaker     none")?,
            BreakerPolicy { failures, open_for } => {
                writeln!(
                    f,
                    "  breaker     opens for {} after {failures} failures in a row",
                    time(open_for)
                )?;
            }
        }
        write!(
            f,
            "  attempts    {}, after {} × {}",
            policy.max_attempts,
            time(backoff.initial_delay),
            backoff.factor
        )?;
        write!(f, " up to {}", time(backoff.max_delay))?;
        for (what, codes) in
            [("retried", &policy.retry_on), ("dead-lettered", &policy.dead_letter_on)]
        {
            if !codes.is_empty() {
                write!(f, "\n  {what:<11} {codes:?}")?;
            }
        }
        if *forward_credentials {
            write!(f, "\n  credentials are stored and forwarded")?;
        }
        Ok(())
    }
}
