//! Promise *Isolated*: while only the downstream of one source is broken, other sources' events are
//! delivered and posts are answered within a bound. While some producers are slow, only they and
//! other producers of their source may be refused.

use super::{Promise, Violation, violation};
use crate::history::{At, Change, Committed, Fault, Run, What};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook_core::id::EventId;

/// Bound from acceptance to arrival at a healthy downstream, including the polling interval and the
/// network.
const DELIVERED_WITHIN: Duration = Duration::from_secs(5);
/// Bound from the end of a post to its response.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// For this long after any other fault, nothing is judged.
const SETTLED_AFTER: Duration = Duration::from_secs(45);

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let mut violations = Vec::new();
    let quiet = quiet_spans(run);
    let is_quiet = |from: At, to: At| quiet.iter().any(|(start, end)| *start <= from && to <= *end);
    let broken = broken_spans(run);
    let paused = super::pause::possible_spans(run);
    let healthy = |source: &str, from: At, to: At| {
        // A configured rate delays events intentionally.
        !run.policies.is_rated(source)
            && !overlaps(&broken, source, from, to)
            && !overlaps(&paused, source, from, to)
    };
    let slow = slow_spans(run);

    let mut posted = BTreeMap::new();
    let mut arrived = BTreeMap::new();
    for entry in &run.entries {
        match &entry.what {
            What::Posted(post) => {
                posted.insert(post.post, entry.at);
            }
            What::Received(received) => {
                arrived.entry(received.event).or_insert(entry.at);
            }
            // A discarded event is not delivered.
            What::Committed(Committed { event, change: Change::Discarded, .. }) => {
                arrived.entry(*event).or_insert(entry.at);
            }
            _ => {}
        }
    }
    let posts = run.posts();
    // The database rejects such a row each time. Its neighbours in the batch must not be rejected.
    let stored: BTreeMap<_, EventId> = run
        .answers()
        .filter_map(|(_, answer)| {
            let post = posts.get(&answer.post)?;
            Some(((post.source.as_str(), post.key.as_str(), post.body), answer.event?))
        })
        .collect();
    let mut accepted = BTreeMap::new();
    for (at, answer) in run.answers() {
        let (Some(&asked), Some(&post)) = (posted.get(&answer.post), posts.get(&answer.post))
        else {
            continue;
        };
        let stored = stored.get(&(post.source.as_str(), post.key.as_str(), post.body)).copied();
        let takes = post.takes.unwrap_or_default();
        if at - asked > takes + ANSWERED_WITHIN && is_quiet(asked, at) {
            violations.push(violation(
                Promise::Isolation,
                at,
                format!(
                    "post {} was answered after {:.3}s",
                    answer.post.0,
                    (at - asked).as_secs_f64()
                ),
                answer.event.or(stored),
            ));
        }
        // A post whose row the database rejects can get a `202`, if another request in its batch
        // had the same key.
        let may_be_refused = !post.storable || overlaps(&slow, &post.source, asked, at);
        if answer.status_code == 503 && !may_be_refused && stored.is_some() && is_quiet(asked, at) {
            violations.push(violation(
                Promise::Isolation,
                at,
                format!("post {} was answered with 503, but no fault was active", answer.post.0),
                stored,
            ));
        }
        if let (202, Some(event)) = (answer.status_code, answer.event) {
            accepted.entry(event).or_insert((at, post.source.as_str()));
        }
    }
    let unanswered = run
        .each(|what| if let What::Unanswered { post, .. } = what { posts.get(post) } else { None });
    for (at, post) in unanswered {
        let asked = posted[&post.post];
        let is_late = post.takes.is_some_and(|takes| at - asked > takes + ANSWERED_WITHIN);
        if is_late && is_quiet(asked, at) {
            let waited = (at - asked).as_secs_f64();
            let what = format!("post {} was not answered within {waited:.3}s", post.post.0);
            violations.push(violation(Promise::Isolation, at, what, []));
        }
    }
    for (event, (at, source)) in accepted {
        let by = at + DELIVERED_WITHIN;
        let late = arrived.get(&event).is_none_or(|arrived| *arrived > by);
        if late
            && by <= run.ended_at
            && is_quiet(at, by)
            && healthy(source, at.saturating_sub(SETTLED_AFTER), by)
        {
            violations.push(violation(
                Promise::Isolation,
                by,
                format!("event {event} of source {source} was not delivered within {DELIVERED_WITHIN:?}, although its downstream is healthy"),
                [event],
            ));
        }
    }
    violations
}

/// Whether a span of a source overlaps with this one.
fn overlaps(spans: &BTreeMap<&str, Vec<(At, At)>>, source: &str, from: At, to: At) -> bool {
    let of_source = spans.get(source);
    of_source.is_some_and(|spans| spans.iter().any(|(start, end)| *start <= to && from <= *end))
}

/// The spans in which producers of each source are slow.
fn slow_spans(run: &Run) -> BTreeMap<&str, Vec<(At, At)>> {
    let mut spans: BTreeMap<&str, Vec<(At, At)>> = BTreeMap::new();
    for (at, post) in run.each_post().filter(|(_, post)| post.is_slow()) {
        let until = at + post.takes.unwrap_or_default() + ANSWERED_WITHIN;
        spans.entry(&post.source).or_default().push((at, until));
    }
    spans
}

/// Spans in which at most downstreams are broken.
pub(super) fn quiet_spans(run: &Run) -> Vec<(At, At)> {
    let mut noise: Vec<(At, At)> = Vec::new();
    let mut started = BTreeSet::new();
    for entry in &run.entries {
        let What::Fault(fault) = &entry.what else { continue };
        let until = match fault {
            // A reload delays and refuses nothing.
            Fault::Downstream { .. }
            | Fault::SourcePaused { .. }
            | Fault::Reloaded { .. }
            | Fault::Healed => continue,
            Fault::Started { process }
                if started.insert(process) && entry.at < Duration::from_secs(1) =>
            {
                continue;
            }
            Fault::Paused { duration, .. }
            | Fault::Network { duration, .. }
            | Fault::Database { duration, .. } => entry.at + *duration,
            // It may be the only process that delivers.
            Fault::Killed { process } | Fault::Exited { process, .. } => {
                next_start(run, process, entry.at)
            }
            Fault::Started { .. } | Fault::Draining { .. } | Fault::Closing { .. } => entry.at,
        };
        noise.push((entry.at, until + SETTLED_AFTER));
    }
    noise.sort_unstable();
    let (mut quiet, mut from) = (Vec::new(), Duration::ZERO);
    for (start, end) in noise {
        if start > from {
            quiet.push((from, start));
        }
        from = from.max(end);
    }
    quiet.push((from, run.ended_at));
    quiet
}

/// When a process starts again, or the end of the run if it does not.
fn next_start(run: &Run, process: &str, after: At) -> At {
    let mut starts = run.each(|what| {
        matches!(what, What::Fault(Fault::Started { process: of }) if of == process).then_some(())
    });
    starts.find(|(at, ())| *at >= after).map_or(run.ended_at, |(at, ())| at)
}

/// The spans in which each source's downstream was broken.
fn broken_spans(run: &Run) -> BTreeMap<&str, Vec<(At, At)>> {
    let mut spans: BTreeMap<&str, Vec<(At, At)>> = BTreeMap::new();
    for entry in &run.entries {
        if let What::Fault(Fault::Downstream { source, broken, .. }) = &entry.what {
            let spans = spans.entry(source).or_default();
            if let Some(last) = spans.last_mut()
                && last.1 > entry.at
            {
                last.1 = entry.at;
            }
            if *broken {
                spans.push((entry.at, Duration::MAX));
            }
        }
    }
    spans
}
