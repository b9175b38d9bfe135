//! One function for each kind of text setting. It parses the text, or says what is wrong and what
//! to do. A message never contains a database URL or a destination, because these can contain a
//! password.

use super::limits;
use super::producers::{self, Producer};
use super::{DatabaseUrl, Destination, LogFormat, Role};
use crate::store::postgres::Servers;
use crate::store::sqlite;
use bytes::Bytes;
use bytesize::ByteSize;
use http::HeaderValue;
use reqwest::Url;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use surehook_core::admission::OnKeyReuse;
use surehook_core::key::places::{Entry, KeyPlaces};
use surehook_core::key::pointer::{Pointer, PointerError};
use surehook_core::operators::Authority;
use surehook_core::relay::{Method, RelayRules, Rule};

const MILLISECOND: Duration = Duration::from_millis(1);

pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{} is not an IP address with a port: write for example `127.0.0.1:8080`, or `0.0.0.0:8080` for every interface",
            quoted(text)
        )
    })
}

/// An address; empty text means none.
pub(super) fn operator_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() { Ok(None) } else { listen(text).map(Some) }
}

/// A host name or an IP address, without a port.
pub(super) fn operator_host(text: &str) -> Result<String, String> {
    // An IPv6 address can be written in brackets, as in a URL, or without.
    let bracketed = text
        .parse::<std::net::Ipv6Addr>()
        .map_or_else(|_| text.to_owned(), |address| format!("[{address}]"));
    match Authority::parse(bracketed.as_bytes()) {
        Some(authority) if authority.port().is_none() && !bracketed.ends_with(':') => {
            Ok(authority.host().to_owned())
        }
        _ => Err(format!(
            "{} is not a host name: write for example `surehook.example.com`, without a scheme or a port",
            quoted(text)
        )),
    }
}

/// A comma-separated list of hosts; empty text means none.
pub(super) fn operator_hosts(text: &str) -> Result<BTreeSet<String>, String> {
    if text.is_empty() {
        Ok(BTreeSet::new())
    } else {
        text.split(',').map(|host| operator_host(host.trim())).collect()
    }
}

pub(super) fn database(text: &str) -> Result<DatabaseUrl, String> {
    let (kind, rest) = text.split_once(':').unwrap_or(("", text));
    match kind {
        "sqlite" => drop(sqlite::options(text).map_err(|error| error.0)?),
        "postgres" | "postgresql" if rest.starts_with("//") => {
            Servers::parse(text)
                .map_err(|error| format!("this PostgreSQL URL cannot be used: {}", error.0))?;
        }
        _ => {
            return Err(
                "not a database URL: write `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`"
                    .to_owned(),
            );
        }
    }
    Ok(DatabaseUrl::new(text))
}

pub(super) fn role(text: &str) -> Result<Role, String> {
    one_of(text, &Role::ALL.map(|role| (role.as_str(), role)))
}

pub(super) fn log(text: &str) -> Result<LogFormat, String> {
    one_of(text, &LogFormat::ALL.map(|format| (format.as_str(), format)))
}

pub(super) fn on_key_reuse(text: &str) -> Result<OnKeyReuse, String> {
    one_of(
        text,
        &[OnKeyReuse::Reject, OnKeyReuse::FirstWins].map(|rule| (on_key_reuse_name(rule), rule)),
    )
}

pub(super) const fn on_key_reuse_name(rule: OnKeyReuse) -> &'static str {
    match rule {
        OnKeyReuse::Reject => "reject",
        OnKeyReuse::FirstWins => "first_wins",
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    one_of(text, &[("true", true), ("false", false)])
}

pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    duration(text, MILLISECOND, limits::TIMEOUT)
}

pub(super) fn relay_timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(1), limits::RELAY_TIMEOUT)
}

pub(super) fn delay(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, limits::DELAY)
}

pub(super) fn drain_timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, limits::DRAIN_TIMEOUT)
}

pub(super) fn shutdown_grace(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, limits::SHUTDOWN_GRACE)
}

pub(super) fn request_timeout(text: &str) -> Result<Duration, String> {
    duration(text, MILLISECOND, limits::REQUEST_TIMEOUT)
}

/// Not zero: the idempotency key would be deleted with the event, and the producer's next retry
/// would be a new event.
pub(super) fn retention(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(1), limits::RETENTION)
}

fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| {
        format!("{} is not a duration ({error}): write a number and a unit, such as `500ms`, `10s` or `1h 30m`", quoted(text))
    })?;
    if duration < least || duration > most {
        let range = (humantime::format_duration(least), in_days(most));
        return Err(format!(
            "{} is out of range: write a duration from {} to {}",
            quoted(text),
            range.0,
            range.1
        ));
    }
    Ok(duration)
}

/// In days, because humantime would count in years of 365.25 days.
fn in_days(duration: Duration) -> String {
    match duration.as_secs() / (24 * 3600) {
        0 => humantime::format_duration(duration).to_string(),
        days => format!("{days}days"),
    }
}

pub(super) fn size(text: &str, most: usize) -> Result<usize, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|_| format!("{} is not a size: write a number of bytes and a unit, such as `64KiB`, `1MiB` or `2GB`", quoted(text)))?;
    match usize::try_from(size.as_u64()) {
        Ok(size) if (1..=most).contains(&size) => Ok(size),
        _ => Err(format!(
            "{} is out of range: write a size from 1B to {}",
            quoted(text),
            ByteSize(most as u64).display().iec()
        )),
    }
}

pub(super) fn destination(text: &str) -> Result<Destination, String> {
    const WRITE: &str = "write for example `https://example.com/hooks`";
    let url = Url::parse(text).map_err(|error| format!("not a URL ({error}): {WRITE}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "the scheme `{}` is not supported, only `http` and `https` are: {WRITE}",
            url.scheme()
        ));
    }
    // The URL standard requires a host in every http URL: text without one does not parse.
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("the URL has no host: {WRITE}"));
    }
    Ok(Destination::new(url))
}

/// A producer that a source can have.
pub(super) fn producer(name: &str) -> Result<&'static Producer, String> {
    let producer = producers::find(name).map_err(|error| error.to_string())?;
    match &producer.refused {
        None => Ok(producer),
        Some(reason) => {
            Err(format!("{} cannot be the producer of a source: {reason}", quoted(name)))
        }
    }
}

/// One entry of the places of the idempotency key.
pub(super) fn key_place(text: &str) -> Result<Entry, String> {
    Entry::parse(text).map_err(|error| format!("{} {}", quoted(&error.part), error.fault))
}

pub(super) fn key_places(entries: Vec<Entry>) -> Result<KeyPlaces, String> {
    KeyPlaces::new(entries).map_err(|error| error.to_string())
}

/// The value of a `Content-Type` header.
pub(super) fn relayed_method(text: &str) -> Result<Rule, String> {
    let Some(method) = Method::from_name(text) else {
        return Err(format!(
            "{} is not a method: write \"GET\", \"HEAD\" or \"OPTIONS\", or which requests are relayed, such as {{ query = \"validationToken\" }}",
            quoted(text)
        ));
    };
    let rule = Rule::Method(method);
    RelayRules::new(vec![rule.clone()]).map_err(|error| error.to_string())?;
    Ok(rule)
}

pub(super) fn relay_rules(rules: Vec<Rule>) -> Result<RelayRules, String> {
    RelayRules::new(rules).map_err(|error| error.to_string())
}

pub(super) fn pointer(text: &str) -> Result<Pointer, String> {
    Pointer::parse(text).map_err(|error| {
        let text = quoted(text);
        match error {
            PointerError::NoSlash => {
                format!("{text} is not a JSON pointer: begin it with `/`, such as \"/type\"")
            }
            PointerError::BadEscape => format!("{text} {error}"),
            PointerError::TooDeep => format!("{text} {error}: write a shorter pointer"),
        }
    })
}

pub(super) fn content_type(text: &str) -> Result<HeaderValue, String> {
    const MOST: usize = 255;
    let is_token = |text: &str| {
        let is_allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !text.is_empty() && text.bytes().all(is_allowed)
    };
    let media_type = text.split(';').next().unwrap_or_default().trim_end();
    let is_media_type = text.len() <= MOST
        && media_type
            .split_once('/')
            .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype));
    HeaderValue::from_str(text).ok().filter(|_| is_media_type).ok_or_else(|| {
        format!(
            "{} is not a media type: write for example `text/plain` or `text/xml; charset=utf-8`",
            quoted(text)
        )
    })
}

/// The body of an acknowledgement.
pub(super) fn answer_body(text: &str) -> Result<Bytes, String> {
    if text.len() > limits::ANSWER_BODY {
        return Err(format!(
            "the body is longer than {}: shorten it",
            ByteSize(limits::ANSWER_BODY as u64).display().iec()
        ));
    }
    Ok(Bytes::copy_from_slice(text.as_bytes()))
}

/// The value as written, truncated if it is too long for a message.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("`{}…`", text[..end].escape_debug()),
        None => format!("`{}`", text.escape_debug()),
    }
}

fn one_of<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
        format!("{} is not a valid value: write {}", quoted(text), names.join(" or "))
    })
}
