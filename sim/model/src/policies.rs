//! The policies of a run: for each source, in each process, since each of its starts.

use crate::history::At;
use std::collections::BTreeMap;
use surehook_core::backoff::Backoff;
use surehook_core::source::Policy;

/// The policy of each source, by name.
type Sources = BTreeMap<String, Policy>;

/// The policy of each source. Processes can differ from each other and change when they start again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// Every source, with the policy that it has in processes which are not in `starts`.
    common: Sources,
    /// For each process the sources that it has from each of its starts on, ordered by time.
    starts: BTreeMap<String, Vec<(At, Sources)>>,
}

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
        let starts = self.starts.entry(process.to_owned()).or_default();
        starts.push((at, sources.into_iter().collect()));
    }

    /// The policy of a source in a process at a time. `None`: the process does not have the source.
    #[must_use]
    pub fn of(&self, process: &str, source: &str, at: At) -> Option<&Policy> {
        let starts = self.starts.get(process);
        let started =
            starts.and_then(|starts| starts.iter().rev().find(|(started_at, _)| *started_at <= at));
        started.map_or(&self.common, |(_, sources)| sources).get(source)
    }

    /// Whether a process has a source during a span. `None` if that is not known, or if the process
    /// starts during the span.
    #[must_use]
    pub fn has(&self, process: &str, source: &str, from: At, to: At) -> Option<bool> {
        let starts = self.starts.get(process)?;
        let is_started = starts.iter().any(|(at, _)| from < *at && *at <= to);
        (!is_started).then(|| self.of(process, source, from).is_some())
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
        let started = self.starts.values().flatten().map(|(_, sources)| sources);
        started.chain([&self.common]).filter_map(move |sources| sources.get(source))
    }
}
