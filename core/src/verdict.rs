//! What the reply to a delivery means, and what happens to its event. One case is decided
//! elsewhere: the worker settles a delivery that a shutdown cut off as [`Outcome::CutOff`],
//! whatever its verdict.
//!
//! | reply | verdict |
//! |---|---|
//! | a complete response head with a status of 200 to 299 | delivered |
//! | a complete response head with the status 400, 405, 410, 411, 413, 414, 415, 422, 431, 501 or 505 | permanent |
//! | a complete response head with any other status | transient |
//! | no complete response head, for whatever reason | transient |
//! | the request was not sent (this process lacks a resource) | none: the event is released uncharged |
//!
//! The status decides, not the body. Once the response head is complete, its status is the verdict,
//! even if the body breaks off, hangs or is malformed. The excerpt is what arrived of the body.
//! Interim responses (1xx, except 101) are skipped. A source's `retry_on` and `dead_letter_on`
//! override the table.

use crate::backoff::Backoff;
use crate::breaker::Health;
use crate::event::{Outcome, Reason};
use crate::id::{Attempt, BudgetAttempt, EventId};
use crate::source::Policy;
use bytes::Bytes;
use core::fmt;
use core::time::Duration;

/// The maximum number of bytes of a response's body that are stored with its attempt.
pub const MAX_EXCERPT_BYTES: usize = 1024;

/// The result of one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A complete response head arrived in time. Whether its body was complete does not matter.
    Response {
        /// The status code, 100 to 999.
        status_code: u16,
        /// The delay from `Retry-After`, parsed by [`crate::retry_after::retry_after`].
        retry_after: Option<Duration>,
        /// The first bytes of the body that arrived soon, at most [`MAX_EXCERPT_BYTES`].
        excerpt: Bytes,
    },
    /// No complete response head arrived. Whether the downstream processed the request is unknown.
    Failed(DeliveryError),
    /// Nothing was sent, because this process lacks a resource such as a file descriptor. It shows
    /// nothing about the downstream, and the event is not charged for it.
    NotSent,
}

/// Why no complete response head came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DeliveryError {
    /// No response head arrived before the deadline, or no connection could be opened in time.
    Timeout,
    /// The destination accepts no connections on that port.
    ConnectionRefused,
    /// The connection broke after it was established.
    ConnectionReset,
    /// The connection could not be established for another reason.
    ConnectionFailed,
    /// The destination's name does not resolve.
    Dns,
    /// TLS failed for another reason than the following ones.
    Tls,
    /// No known certificate authority has issued the destination's certificate.
    UnknownIssuer,
    /// The destination's certificate has expired.
    CertificateExpired,
    /// The destination's certificate is not valid yet, or this machine's clock is behind.
    CertificateNotYetValid,
    /// The destination's certificate is for other names.
    WrongName,
    /// The destination accepts only clients with a certificate.
    ClientCertificateRequired,
    /// The destination does not accept HTTP/1.1, for example because it speaks only HTTP/2.
    NoHttp1,
    /// The response is not valid HTTP.
    InvalidResponse,
    /// The process shut down while the delivery was in flight.
    CutOff,
}

impl DeliveryError {
    /// Every error, for stores and documents that list them.
    pub const ALL: [Self; 14] = [
        Self::Timeout,
        Self::ConnectionRefused,
        Self::ConnectionReset,
        Self::ConnectionFailed,
        Self::Dns,
        Self::Tls,
        Self::UnknownIssuer,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::WrongName,
        Self::ClientCertificateRequired,
        Self::NoHttp1,
        Self::InvalidResponse,
        Self::CutOff,
    ];

    /// The error as it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::ConnectionRefused => "connection refused",
            Self::ConnectionReset => "connection reset",
            Self::ConnectionFailed => "connection failed",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::UnknownIssuer => "tls: unknown issuer of the certificate",
            Self::CertificateExpired => "tls: certificate expired",
            Self::CertificateNotYetValid => "tls: certificate not valid yet",
            Self::WrongName => "tls: certificate is for another name",
            Self::ClientCertificateRequired => "tls: client certificate required",
            Self::NoHttp1 => "tls: HTTP/1.1 not accepted",
            Self::InvalidResponse => "invalid response",
            Self::CutOff => "cut off by shutdown",
        }
    }
}

impl fmt::Display for DeliveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The verdict on one attempt, as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The downstream accepted the event.
    Delivered,
    /// Another attempt may succeed.
    Transient,
    /// The downstream can never accept this request.
    Permanent,
    /// The lease ended without a settlement: the process crashed, hung, or could not reach the
    /// database. A claim records it; [`judge`] never returns it.
    Lost,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Delivered, Self::Transient, Self::Permanent, Self::Lost];

    /// The verdict as it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Lost => "lost",
        }
    }

    /// The verdict with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.as_str() == name)
    }
}

/// The verdict on a reply, by the table of status codes and the source's exceptions. `None` if
/// nothing was sent.
#[must_use]
pub fn judge(reply: &Reply, policy: &Policy) -> Option<Verdict> {
    match reply {
        Reply::Response { status_code, .. } => Some(judge_status(*status_code, policy)),
        Reply::Failed(_) => Some(Verdict::Transient),
        Reply::NotSent => None,
    }
}

fn judge_status(status_code: u16, policy: &Policy) -> Verdict {
    if policy.dead_letter_on.contains(&status_code) {
        return Verdict::Permanent;
    }
    if policy.retry_on.contains(&status_code) {
        return Verdict::Transient;
    }
    match status_code {
        200..=299 => Verdict::Delivered,
        // Bad Request, Method Not Allowed, Gone, Length Required, Content Too Large, URI Too Long, Unsupported Media
        // Type, Unprocessable Content, Request Header Fields Too Large, Not Implemented, HTTP Version Not Supported.
        400 | 405 | 410 | 411 | 413 | 414 | 415 | 422 | 431 | 501 | 505 => Verdict::Permanent,
        _ => Verdict::Transient,
    }
}

/// What a reply shows about the downstream, for the source's
/// [circuit breaker](crate::breaker). `None` if it shows nothing: the request was not sent, or
/// this process cut it off.
///
/// A transient verdict and `410 Gone` are failures.
#[must_use]
pub fn health(reply: &Reply, verdict: Verdict) -> Option<Health> {
    const GONE: u16 = 410;
    match reply {
        Reply::Failed(DeliveryError::CutOff) | Reply::NotSent => None,
        Reply::Response { status_code: GONE, .. } => Some(Health::Failed),
        Reply::Response { .. } | Reply::Failed(_) => Some(match verdict {
            Verdict::Delivered => Health::Accepted,
            Verdict::Permanent => Health::Refused,
            Verdict::Transient | Verdict::Lost => Health::Failed,
        }),
    }
}

/// The verdict on the reply to `attempt`, and what happens to the event. `in_budget` is its
/// number in the present retry budget. Without a verdict, there was no attempt.
///
/// ```
/// use surehook_core::event::{Outcome, Reason};
/// use surehook_core::id::{BudgetAttempt, EventId};
/// use surehook_core::source::Policy;
/// use surehook_core::verdict::{DeliveryError, Reply, Verdict, decide};
///
/// let (policy, event) = (Policy::default(), EventId::from_uuid(uuid::Uuid::nil()));
/// let timeout = Reply::Failed(DeliveryError::Timeout);
/// let (verdict, outcome) = decide(&timeout, &policy, event, 1, BudgetAttempt(1));
/// assert!(verdict == Some(Verdict::Transient) && matches!(outcome, Outcome::Retry { .. }));
/// // The last attempt of the budget.
/// let last = policy.max_attempts;
/// let (_, outcome) = decide(&timeout, &policy, event, last, BudgetAttempt(last));
/// assert_eq!(outcome, Outcome::DeadLetter(Reason::Exhausted));
/// ```
pub fn decide(
    reply: &Reply,
    policy: &Policy,
    event: EventId,
    attempt: Attempt,
    in_budget: BudgetAttempt,
) -> (Option<Verdict>, Outcome) {
    let Some(verdict) = judge(reply, policy) else { return (None, Outcome::Release) };
    let outcome = match verdict {
        Verdict::Delivered => Outcome::Delivered,
        Verdict::Permanent => Outcome::DeadLetter(Reason::Permanent),
        Verdict::Transient | Verdict::Lost if in_budget.0 >= policy.max_attempts => {
            Outcome::DeadLetter(Reason::Exhausted)
        }
        Verdict::Transient | Verdict::Lost => {
            let asked = match reply {
                Reply::Response { retry_after, .. } => *retry_after,
                Reply::Failed(_) | Reply::NotSent => None,
            };
            Outcome::Retry { after: next_delay(&policy.backoff, event, attempt, in_budget, asked) }
        }
    };
    (Some(verdict), outcome)
}

/// The delay before the next attempt: the back-off, or the delay that the downstream requested if
/// that is longer, but at most `max_delay`.
#[must_use]
pub fn next_delay(
    backoff: &Backoff,
    event: EventId,
    attempt: Attempt,
    in_budget: BudgetAttempt,
    asked: Option<Duration>,
) -> Duration {
    backoff.delay(event, attempt, in_budget).max(asked.unwrap_or_default().min(backoff.max_delay))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use uuid::Uuid;

    fn response(status_code: u16) -> Reply {
        Reply::Response { status_code, retry_after: None, excerpt: Bytes::new() }
    }

    #[test]
    fn each_name_matches_the_documents_and_round_trips() {
        use alloc::string::ToString;
        assert_eq!(
            Verdict::ALL.map(Verdict::as_str),
            ["delivered", "transient", "permanent", "lost"]
        );
        assert_eq!(
            Verdict::ALL.map(|verdict| Verdict::from_name(verdict.as_str())),
            Verdict::ALL.map(Some)
        );
        assert_eq!(Verdict::from_name("lost "), None);
        assert_eq!(DeliveryError::Timeout.to_string(), "timeout");
        let names: BTreeSet<&str> = DeliveryError::ALL.map(DeliveryError::as_str).into();
        assert_eq!(names.len(), DeliveryError::ALL.len());
    }

    #[test]
    fn each_status_code_has_the_verdict_of_the_table() {
        let permanent = [400, 405, 410, 411, 413, 414, 415, 422, 431, 501, 505];
        for status_code in 100..=999 {
            let expected = match status_code {
                200..=299 => Verdict::Delivered,
                code if permanent.contains(&code) => Verdict::Permanent,
                _ => Verdict::Transient,
            };
            assert_eq!(
                judge(&response(status_code), &Policy::default()),
                Some(expected),
                "{status_code}"
            );
        }
    }

    #[test]
    fn every_failed_delivery_is_transient() {
        for error in DeliveryError::ALL {
            assert_eq!(judge(&Reply::Failed(error), &Policy::default()), Some(Verdict::Transient));
        }
    }

    #[test]
    fn an_unsent_event_is_released_even_at_its_last_attempt() {
        let (policy, event) =
            (Policy { max_attempts: 3, ..Policy::default() }, EventId::from_uuid(Uuid::nil()));
        for n in 1..=3 {
            assert_eq!(
                decide(&Reply::NotSent, &policy, event, n, BudgetAttempt(n)),
                (None, Outcome::Release)
            );
        }
    }

    #[test]
    fn a_source_can_override_the_table() {
        let policy = Policy {
            retry_on: BTreeSet::from([400, 200]),
            dead_letter_on: BTreeSet::from([404, 200]),
            ..Policy::default()
        };
        assert_eq!(judge(&response(400), &policy), Some(Verdict::Transient));
        assert_eq!(judge(&response(404), &policy), Some(Verdict::Permanent));
        assert_eq!(judge(&response(200), &policy), Some(Verdict::Permanent), "dead_letter_on wins");
    }

    #[test]
    fn a_failed_last_attempt_dead_letters_the_event() {
        let (policy, event) =
            (Policy { max_attempts: 3, ..Policy::default() }, EventId::from_uuid(Uuid::nil()));
        let outcome = |n| decide(&response(503), &policy, event, 7 + n, BudgetAttempt(n)).1;
        assert!(matches!(outcome(2), Outcome::Retry { .. }));
        assert_eq!(outcome(3), Outcome::DeadLetter(Reason::Exhausted));
        assert_eq!(
            decide(&response(200), &policy, event, 10, BudgetAttempt(3)).1,
            Outcome::Delivered
        );
        assert_eq!(
            decide(&response(422), &policy, event, 8, BudgetAttempt(1)).1,
            Outcome::DeadLetter(Reason::Permanent)
        );
    }

    #[test]
    fn retry_after_lengthens_the_delay_up_to_the_cap() {
        let (policy, event) = (Policy::default(), EventId::from_uuid(Uuid::nil()));
        let after = |asked| {
            let reply = Reply::Response {
                status_code: 429,
                retry_after: Some(asked),
                excerpt: Bytes::new(),
            };
            let (_, Outcome::Retry { after }) = decide(&reply, &policy, event, 1, BudgetAttempt(1))
            else {
                panic!("429 must be transient")
            };
            after
        };
        assert_eq!(after(Duration::from_secs(90)), Duration::from_secs(90));
        assert_eq!(after(Duration::from_secs(u64::MAX)), policy.backoff.max_delay);
        assert_eq!(after(Duration::ZERO), policy.backoff.delay(event, 1, BudgetAttempt(1)));
    }

    #[test]
    fn the_back_off_of_a_new_retry_budget_starts_again() {
        let (policy, event) = (Policy::default(), EventId::from_uuid(Uuid::nil()));
        for attempt in [1, 7, 1_000] {
            let (_, outcome) = decide(&response(503), &policy, event, attempt, BudgetAttempt(1));
            let Outcome::Retry { after } = outcome else { panic!("{outcome:?}") };
            assert!(after <= policy.backoff.initial_delay, "{after:?} after attempt {attempt}");
        }
    }

    #[test]
    fn each_reply_shows_whether_the_downstream_accepts_refuses_or_fails() {
        assert_eq!(health(&response(200), Verdict::Delivered), Some(Health::Accepted));
        assert_eq!(health(&response(422), Verdict::Permanent), Some(Health::Refused));
        assert_eq!(health(&response(410), Verdict::Permanent), Some(Health::Failed));
        assert_eq!(health(&response(503), Verdict::Transient), Some(Health::Failed));
        assert_eq!(
            health(&Reply::Failed(DeliveryError::Timeout), Verdict::Transient),
            Some(Health::Failed)
        );
        assert_eq!(health(&Reply::Failed(DeliveryError::CutOff), Verdict::Transient), None);
        assert_eq!(health(&Reply::NotSent, Verdict::Transient), None);
    }
}
