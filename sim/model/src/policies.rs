//! The policies of a run: for each source, in each process, since each of its starts and reloads.

use crate::history::At;
use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::backoff::Backoff;
use surehook_core::source::Policy;

/// The policy of each source, by name.
type Sources = BTreeMap<String, Policy>;

/// The policy of each source. Processes can differ from each other, and change when they start again or reload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// Every source, with the policy that it has in processes which are not in `starts`.
    common: Sources,
    /// For each process its starts and reloads, ordered by time.
    starts: BTreeMap<String, Vec<Start>>,
}

/// A start or a reload of a process.
#[derive(Clone, Debug, PartialEq)]
struct Start {
    begins_at: At,
    /// When all parts of the process have these sources.
    ends_at: At,
    sources: Sources,
}

/// Bound on the time from the beginning of a reload until all parts of a process have the new
/// settings.
const RELOADED_WITHIN: Duration = Duration::from_millis(10);

/// The same sources for all processes.
impl FromIterator<(String, Policy)> for Policies {
    fn from_iter<I: IntoIterator<Item = (String, Policy)>>(sources: I) -> Self {
        Self { common: sources.into_iter().collect(), starts: BTreeMap::new() }
    }
}

impl Policies {
    /// Records that a process starts with these sources.
    pub fn started(
        &mut self,
        process: &str,
        at: At,
        sources: impl IntoIterator<Item = (String, Policy)>,
    ) {
        self.push(process, at, Duration::ZERO, sources);
    }

    /// Records that a process begins a reload, after which it has these sources.
    pub fn reloaded(
        &mut self,
        process: &str,
        at: At,
        sources: impl IntoIterator<Item = (String, Policy)>,
    ) {
        self.push(process, at, RELOADED_WITHIN, sources);
    }

    fn push(
        &mut self,
        process: &str,
        at: At,
        within: Duration,
        sources: impl IntoIterator<Item = (String, Policy)>,
    ) {
        let sources = sources.into_iter().collect();
        let start = Start { begins_at: at, ends_at: at + within, sources };
        self.starts.entry(process.to_owned()).or_default().push(start);
    }

    /// The policy of a source in a process at a time. `None`: the process does not have the source,
    /// or is reloading.
    #[must_use]
    pub fn of(&self, process: &str, source: &str, at: At) -> Option<&Policy> {
        if self.newest(process, at).is_some_and(|newest| at < newest.ends_at) {
            return None;
        }
        self.of_newest(process, source, at)
    }

    /// As [`Self::of`]. While the process reloads, the policy that it has afterwards.
    #[must_use]
    pub fn of_newest(&self, process: &str, source: &str, at: At) -> Option<&Policy> {
        self.newest(process, at).map_or(&self.common, |newest| &newest.sources).get(source)
    }

    fn newest(&self, process: &str, at: At) -> Option<&Start> {
        self.starts.get(process)?.iter().rfind(|start| start.begins_at <= at)
    }

    /// Whether a process has a source during a span. `None` if that is not known, or if the process
    /// starts or reloads during the span.
    #[must_use]
    pub fn has(&self, process: &str, source: &str, from: At, to: At) -> Option<bool> {
        let mut starts = self.starts.get(process)?.iter();
        if starts.any(|start| from < start.ends_at && start.begins_at <= to) {
            return None;
        }
        Some(self.of_newest(process, source, from).is_some())
    }

    /// The back-off of a source, which is the same in all processes.
    #[must_use]
    pub fn backoff(&self, source: &str) -> Option<Backoff> {
        self.all(source).next().map(|policy| policy.backoff)
    }

    /// Whether any process limits the rate of a source.
    #[must_use]
    pub fn is_rated(&self, source: &str) -> bool {
        self.all(source).any(|policy| policy.rate.is_some())
    }

    /// For each source the policy with which an event takes longest to end: of all processes the
    /// longest timeout, the most attempts, and the fewest slots.
    #[must_use]
    pub fn slowest(&self) -> BTreeMap<&str, Policy> {
        let slower = |one: Policy, other: Policy| Policy {
            timeout: one.timeout.max(other.timeout),
            max_attempts: one.max_attempts.max(other.max_attempts),
            concurrency: one.concurrency.min(other.concurrency),
            ..one
        };
        let of = |source| self.all(source).cloned().reduce(slower);
        self.common.keys().filter_map(|source| Some((source.as_str(), of(source)?))).collect()
    }

    /// Every policy that a source had in any process.
    fn all<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Policy> {
        let started = self.starts.values().flatten().map(|start| &start.sources);
        started.chain([&self.common]).filter_map(move |sources| sources.get(source))
    }
}
