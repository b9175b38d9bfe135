//! One sentence for each entry of a history, and the lane of each entry.

use super::index::Index;
use crate::database::DeliveryRow;
use crate::history::{CallResult, Change, Committed, Fault, Handshake, What};
use jiff::Timestamp;
use std::fmt;
use std::time::Duration;
use surehook_core::event::{Outcome, Status};

/// The lanes, in the order of the drawing's columns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// The network, and entries that concern all nodes.
    World,
    Producers,
    /// By name. The length comes first so that process 10 follows process 9.
    Process(usize, String),
    Database,
    /// By the name of its source.
    Downstream(String),
}

impl Lane {
    pub(super) fn process(name: &str) -> Self {
        Self::Process(name.len(), name.to_owned())
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World => f.write_str("world"),
            Self::Producers => f.write_str("producers"),
            Self::Process(_, name) => f.write_str(name),
            Self::Database => f.write_str("database"),
            Self::Downstream(source) => write!(f, "downstream of {source}"),
        }
    }
}

/// The lane in which an entry is drawn; the line of the entry starts with it.
pub(super) fn lane(index: &Index<'_>, what: &What) -> Lane {
    match what {
        What::Posted(_) | What::Answered { .. } | What::Unanswered { .. } | What::Looked { .. } => {
            Lane::Producers
        }
        What::Handshake(Handshake::Sent { .. } | Handshake::Answered { .. }) => Lane::Producers,
        What::Handshake(Handshake::Relayed { source, .. }) => Lane::Downstream(source.clone()),
        What::Sending(sending) => Lane::process(&sending.process),
        What::Sent { process, .. } | What::Called { process, .. } | What::Ready { process, .. } => {
            Lane::process(process)
        }
        What::Received(received) => Lane::Downstream(received.source.clone()),
        What::Replied { request, .. } => index
            .requests
            .get(request)
            .map_or(Lane::World, |of| Lane::Downstream(of.source.clone())),
        What::Committed(_) | What::StaleSettlement { .. } | What::Fault(Fault::Database { .. }) => {
            Lane::Database
        }
        What::Fault(Fault::Downstream { source, .. } | Fault::SourcePaused { source, .. }) => {
            Lane::Downstream(source.clone())
        }
        What::Fault(
            Fault::Killed { process }
            | Fault::Started { process }
            | Fault::Paused { process, .. }
            | Fault::Reloaded { process }
            | Fault::Draining { process }
            | Fault::Closing { process }
            | Fault::Exited { process },
        ) => Lane::process(process),
        What::Fault(Fault::Network { .. } | Fault::Healed) => Lane::World,
        What::Reached(_) => Lane::Database,
    }
}

/// Describes an entry, to be read after the lane's name.
pub(super) fn words(index: &Index<'_>, what: &What) -> String {
    let short = |event| index.short(event);
    match what {
        What::Posted(posted) => format!(
            "p{} POST {} key {} body {} to {}",
            posted.post.0,
            clipped(&posted.source),
            clipped(&posted.key),
            hex(&posted.body.as_bytes()[..4]),
            posted.process
        ),
        What::Answered { post, status_code, event, status, replayed, problem } => {
            let event = event.map(|event| format!(": {}", short(event))).unwrap_or_default();
            let status = status.map(|status| format!(", {}", status.as_str())).unwrap_or_default();
            let replayed = if *replayed { ", accepted before" } else { "" };
            let problem =
                problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
            format!("p{} answered {status_code}{event}{status}{replayed}{problem}", post.0)
        }
        What::Unanswered { post, is_refused: true } => {
            format!("p{}: the connection was refused", post.0)
        }
        What::Unanswered { post, .. } => format!("p{} got no response", post.0),
        What::Looked { event, asked_at, status, attempts } => {
            let seen = status.map_or_else(
                || "404".to_owned(),
                |status| format!("{}, {}", status.as_str(), counted(*attempts, "attempt")),
            );
            format!("GET {}, asked at {}: {seen}", short(*event), seconds(*asked_at))
        }
        What::Ready { asked_at, is_ready, .. } => {
            format!(
                "is {}, asked at {}",
                if *is_ready { "ready" } else { "not ready" },
                seconds(*asked_at)
            )
        }
        What::Handshake(Handshake::Sent { post, process, source, key }) => format!(
            "p{} sends a handshake to {} key {} to {process}",
            post.0,
            clipped(source),
            clipped(key)
        ),
        What::Handshake(Handshake::Answered { post, status_code, event }) => {
            let event = event.map(|event| format!(": {}", short(event))).unwrap_or_default();
            format!("p{} answered {status_code}{event}", post.0)
        }
        What::Handshake(Handshake::Relayed { post, .. }) => match post {
            Some(post) => format!("receives the relayed handshake p{}", post.0),
            None => "receives a relayed request that is no handshake".to_owned(),
        },
        What::Sending(sending) => format!("sends {} #{}", short(sending.event), sending.attempt),
        What::Sent { event, attempt, status_code: Some(code), .. } => {
            format!("gets {code} for {} #{attempt}", short(*event))
        }
        What::Sent { event, attempt, status_code: None, .. } => {
            format!("gets no response for {} #{attempt}", short(*event))
        }
        What::Received(received) => {
            format!("receives {} #{}", short(received.event), received.attempt)
        }
        What::Replied { request, status_code, retry_after } => {
            let of = index
                .requests
                .get(request)
                .map(|of| format!(" to {} #{}", short(of.event), of.attempt))
                .unwrap_or_default();
            let asked = retry_after
                .map(|asked| format!(", Retry-After {}", span(asked)))
                .unwrap_or_default();
            format!("answers {status_code}{of}{asked}")
        }
        What::Committed(committed) => change(index, committed),
        What::StaleSettlement { process, event, attempt } => {
            format!("refuses the settlement of {} #{attempt} by {process}: stale", short(*event))
        }
        What::Called { process: _, call, result, events } => {
            let learnt = match result {
                CallResult::Done => "succeeded",
                CallResult::Refused => "failed, nothing changed",
                CallResult::Unknown => "reply lost, outcome unknown",
            };
            let more = events.len().saturating_sub(4);
            let named: Vec<String> = events.iter().take(4).map(|event| short(*event)).collect();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let of = if named.is_empty() {
                String::new()
            } else {
                format!(" of {}{more}", named.join(", "))
            };
            format!("{call}{of}: {learnt}")
        }
        What::Fault(fault) => fault_words(fault),
        What::Reached(mark) => format!("reaches {mark:?}"),
    }
}

fn change(index: &Index<'_>, committed: &Committed) -> String {
    let Committed { db_time, process, before, after, .. } = committed;
    let how = match committed.change {
        Change::Accepted => format!("accepted for {process}"),
        Change::Claimed => format!("claimed by {process}"),
        Change::Settled { fence, attempt, outcome } => {
            format!(
                "#{attempt} settled by {process} (fence {}) as {}",
                fence.0,
                outcome_words(outcome)
            )
        }
        Change::Redriven { .. } => format!("redriven through {process}"),
        Change::Discarded => format!("discarded through {process}"),
        Change::Pruned => format!("pruned by {process}"),
        Change::Erased => format!("payload erased by {process}"),
        Change::Capped => format!("due time capped by {process}"),
        Change::RolledBack => format!("rolled back by {process}"),
        Change::Lost => format!("lost in {process}"),
    };
    let was = before.map_or_else(
        || "no row".to_owned(),
        |row| {
            let lease = row.due_at.filter(|_| {
                row.delivery.status == Status::Processing && committed.change == Change::Claimed
            });
            let lease = lease.map_or(String::new(), |due| {
                let left = span(between(*db_time, due));
                if due > *db_time {
                    format!(", lease ends in {left}")
                } else {
                    format!(", lease ended {left} ago")
                }
            });
            row_words(&row, &lease)
        },
    );
    let becomes = match (after, committed.change) {
        (Some(row), _) => format!("{}{}", row_words(row, ""), due_words(row, *db_time)),
        (None, Change::Settled { outcome: Outcome::Delivered, .. }) => "delivered".to_owned(),
        (None, _) => "deleted".to_owned(),
    };
    format!("{} {how}: {was} → {becomes}", index.short(committed.event))
}

fn row_words(row: &DeliveryRow, more: &str) -> String {
    let attempt = if row.delivery.attempt == 0 {
        String::new()
    } else {
        format!(" #{}", row.delivery.attempt)
    };
    let reason =
        row.delivery.reason.map(|reason| format!(", {}", reason.as_str())).unwrap_or_default();
    format!(
        "{}{attempt} (fence {}{reason}{more})",
        row.delivery.status.as_str(),
        row.delivery.fence.0
    )
}

fn due_words(row: &DeliveryRow, db_time: Timestamp) -> String {
    let Some(due) = row.due_at else { return String::new() };
    let left = span(between(db_time, due));
    match row.delivery.status {
        Status::Processing if due < db_time => format!(" until {left} ago"),
        Status::Processing => format!(" until +{left}"),
        _ if due <= db_time => " due now".to_owned(),
        Status::Queued | Status::Retrying | Status::Delivered | Status::DeadLettered => {
            format!(" due +{left}")
        }
    }
}

/// The absolute difference of two times.
pub(super) fn between(one: Timestamp, other: Timestamp) -> Duration {
    one.duration_until(other).unsigned_abs()
}

fn outcome_words(outcome: Outcome) -> String {
    match outcome {
        Outcome::Delivered => "delivered".to_owned(),
        Outcome::Retry { after } => format!("retry after {}", span(after)),
        Outcome::DeadLetter(reason) => format!("dead letter, {}", reason.as_str()),
        Outcome::Release => "released unsent".to_owned(),
        Outcome::CutOff => "cut off by a shutdown".to_owned(),
    }
}

fn fault_words(fault: &Fault) -> String {
    match fault {
        Fault::Killed { .. } => "is killed".to_owned(),
        Fault::Started { .. } => "starts".to_owned(),
        Fault::Paused { duration, .. } => format!("is stopped for {}", span(*duration)),
        Fault::Reloaded { .. } => "reads its configuration again".to_owned(),
        Fault::Draining { .. } => "starts its shutdown".to_owned(),
        Fault::Closing { .. } => "closes its listener".to_owned(),
        Fault::Exited { .. } => "has shut down".to_owned(),
        Fault::Network { what, duration } => {
            format!("network: {}, for {}", clipped(what), span(*duration))
        }
        Fault::Database { what, process, duration } => {
            let of = process.as_ref().map(|process| format!(", for {process}")).unwrap_or_default();
            let lasting = if duration.is_zero() {
                String::new()
            } else {
                format!(", for {}", span(*duration))
            };
            format!("fault: {}{of}{lasting}", clipped(what))
        }
        Fault::Downstream { what, broken, .. } => {
            format!(
                "{} from now on: {}",
                if *broken { "is broken" } else { "is healthy" },
                clipped(what)
            )
        }
        Fault::SourcePaused { paused, .. } => {
            format!("is {} by an operator", if *paused { "paused" } else { "resumed" })
        }
        Fault::Healed => "all faults have ended".to_owned(),
    }
}

/// A time of the run.
pub(super) fn seconds(at: Duration) -> String {
    format!("{:.3}s", at.as_secs_f64())
}

/// A duration, rounded to a precision that fits its length.
pub(super) fn span(length: Duration) -> String {
    match length.as_secs_f64() {
        short if short < 1.0 => format!("{:.0} ms", short * 1000.0),
        middle if middle < 60.0 => format!("{middle:.1}s"),
        long => format!("{:.0}m {:.0}s", (long / 60.0).floor(), (long % 60.0).floor()),
    }
}

pub(super) fn counted(count: impl Into<u64>, of: &str) -> String {
    let count = count.into();
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}

/// Limits a text from outside, which can have any length.
pub(super) fn clipped(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
