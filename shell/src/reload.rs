//! Reads the configuration of a running process again, when SIGHUP arrives.
//!
//! A configuration with a mistake changes nothing. Otherwise the destinations are replaced first, and
//! then the process gets the new configuration (see [`crate::process`]).

use crate::config::{Config, ConfigError, Source};
use crate::downstream::HttpDownstream;
use crate::process::Command;
use crate::systemd;
use futures::{Stream, StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use surehook_core::source::SourceName;

/// Maximum number of sources that a log line names.
const NAMED: usize = 10;

/// What a reload needs.
pub struct Reload<R> {
    /// Reads and validates the configuration.
    pub read: Arc<R>,
    pub downstream: Arc<HttpDownstream>,
    /// The configuration of the process.
    pub present: Arc<Config>,
    /// Whether a shutdown has begun. A reload has no effect then.
    pub is_shutting_down: Arc<AtomicBool>,
}

impl<R: Fn() -> Result<Config, ConfigError> + Send + Sync + 'static> Reload<R> {
    /// Reads the configuration at each signal. Each result is for the process.
    pub fn at_each(
        self,
        signals: impl Stream<Item = ()> + Send + Unpin,
    ) -> impl Stream<Item = Command> + Send {
        stream::unfold((self, signals), |(mut reload, mut signals)| async move {
            loop {
                signals.next().await?;
                systemd::reloading();
                let reloaded = reload.reload().await;
                systemd::ready();
                if reloaded {
                    let command = Command::Reload(Arc::clone(&reload.present));
                    return Some((command, (reload, signals)));
                }
            }
        })
    }

    /// Returns whether `present` is a new configuration now.
    async fn reload(&mut self) -> bool {
        let read = Arc::clone(&self.read);
        // Files are read, some of which can be on a network.
        let new = match tokio::task::spawn_blocking(move || read()).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => return refused(&error.to_string()),
            Err(error) => return refused(&error.to_string()),
        };
        if self.is_shutting_down.load(Ordering::Acquire) {
            tracing::warn!("configuration not reloaded: the process is shutting down");
            return false;
        }
        let (new, differ) = self.present.reloaded(new);
        if let Err(error) = self.downstream.reload(&new.sources) {
            return refused(&error.to_string());
        }
        let Changes { added, removed, changed } =
            Changes::between(&self.present.sources, &new.sources);
        tracing::info!(
            sources = new.sources.len(),
            added,
            removed,
            changed,
            "configuration reloaded"
        );
        if !differ.is_empty() {
            let settings = differ.join(", ");
            tracing::warn!(
                settings,
                "settings that need a restart have changed; the process continues with the old values"
            );
        }
        self.present = Arc::new(new);
        true
    }
}

/// Logs one line for each mistake.
fn refused(error: &str) -> bool {
    for error in error.lines().filter(|line| !line.is_empty()) {
        tracing::error!(
            error,
            "configuration not reloaded; the process continues with the old one"
        );
    }
    false
}

/// The names of sources that a reload has changed. `None` if there are none.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    added: Option<String>,
    removed: Option<String>,
    changed: Option<String>,
}

impl Changes {
    fn between(old: &BTreeMap<SourceName, Source>, new: &BTreeMap<SourceName, Source>) -> Self {
        let lacking = |of: &BTreeMap<SourceName, Source>, other: &BTreeMap<SourceName, Source>| {
            names(of.keys().filter(|name| !other.contains_key(*name)))
        };
        let differs = |(name, source): &(&SourceName, &Source)| {
            old.get(*name).is_some_and(|before| before != *source)
        };
        Self {
            added: lacking(new, old),
            removed: lacking(old, new),
            changed: names(new.iter().filter(differs).map(|(name, _)| name)),
        }
    }
}

/// The first [`NAMED`] of these names, and the number of the others.
fn names<'a>(names: impl Iterator<Item = &'a SourceName>) -> Option<String> {
    let names: Vec<&str> = names.map(SourceName::as_str).collect();
    let more = names.len().saturating_sub(NAMED);
    let first = names[..names.len() - more].join(", ");
    match (names.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(first),
        (false, more) => Some(format!("{first} and {more} more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Destination;

    fn sources(all: &[(&str, &str)]) -> BTreeMap<SourceName, Source> {
        let source = |(name, url): &(&str, &str)| {
            let destination = Destination::new(url.parse().unwrap());
            (SourceName::parse(name).unwrap(), Source::new(destination))
        };
        all.iter().map(source).collect()
    }

    #[test]
    fn changed_sources_are_named() {
        let old = sources(&[("a", "http://a/"), ("b", "http://b/"), ("c", "http://c/")]);
        let new = sources(&[("b", "http://b/"), ("c", "http://moved/"), ("d", "http://d/")]);
        let named = |name: &str| Some(name.to_owned());
        let expected = Changes { added: named("d"), removed: named("a"), changed: named("c") };
        assert_eq!(Changes::between(&old, &new), expected);
        let none = Changes { added: None, removed: None, changed: None };
        assert_eq!(Changes::between(&old, &old), none);
    }

    #[test]
    fn of_many_sources_the_first_are_named() {
        let all: Vec<SourceName> =
            (10..22).map(|n| SourceName::parse(&format!("s{n}")).unwrap()).collect();
        let expected = "s10, s11, s12, s13, s14, s15, s16, s17, s18, s19 and 2 more";
        assert_eq!(names(all.iter()).as_deref(), Some(expected));
        assert_eq!(names(all[..10].iter()).as_deref(), Some(&expected[..48]));
    }
}
