//! Classifies the errors of failed deliveries.

use super::clients::LookupFailed;
use super::ended::TlsFailure;
use super::tls;
use crate::descriptors;
use hyper_util::client::legacy;
use std::error::Error;
use std::io;
use surehook_core::verdict::{DeliveryError, Reply};

/// Why a delivery failed: the reply for the core, and the reasons for the log.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reply: Reply,
    /// The chain of errors.
    pub(super) cause: String,
    /// Why TLS failed, in plain words, and what to do.
    pub(super) tls: Option<String>,
}

impl Failure {
    pub(super) fn of(class: DeliveryError) -> Self {
        Self { reply: Reply::Failed(class), cause: String::new(), tls: None }
    }
}

impl From<legacy::Error> for Failure {
    fn from(error: legacy::Error) -> Self {
        let chain: Vec<String> = causes(&error).map(ToString::to_string).collect();
        let tls = of_tls(&error).cloned().or_else(|| error.connect_info().and_then(TlsFailure::of));
        let reply = if lacks_a_resource(&error) {
            Reply::NotSent
        } else {
            Reply::Failed(tls.as_ref().map_or_else(|| classify(&error), tls::classify))
        };
        Self { reply, cause: chain.join(": "), tls: tls.as_ref().map(tls::in_words) }
    }
}

impl From<hyper::Error> for Failure {
    /// The error of a response's body.
    fn from(error: hyper::Error) -> Self {
        let chain: Vec<String> = causes(&error).map(ToString::to_string).collect();
        let is_malformed =
            causes(&error).filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
                matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
            });
        let class = told(&error).unwrap_or(if is_malformed {
            DeliveryError::InvalidResponse
        } else {
            DeliveryError::ConnectionReset
        });
        Self {
            reply: Reply::Failed(class),
            cause: chain.join(": "),
            tls: of_tls(&error).map(tls::in_words),
        }
    }
}

fn of_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Whether this process had no file descriptor or no memory for a connection. In this case nothing
/// was sent.
fn lacks_a_resource(error: &legacy::Error) -> bool {
    let says_so = || {
        causes(error)
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(descriptors::is_shortage)
    };
    // A DNS lookup needs file descriptors. If there are none, the C library reports that the name
    // servers do not answer.
    error.is_connect() && (says_so() || (is_dns(error) && descriptors::are_exhausted()))
}

fn is_dns(error: &legacy::Error) -> bool {
    causes(error).any(<dyn Error>::is::<LookupFailed>)
}

/// The class of a client error. The innermost cause that has a class decides: a connection reset
/// during a TLS handshake is a connection reset.
fn classify(error: &legacy::Error) -> DeliveryError {
    if is_dns(error) {
        return DeliveryError::Dns;
    }
    told(error).unwrap_or_else(|| {
        if error.is_connect() {
            DeliveryError::ConnectionFailed
        } else if is_unreachable(error) {
            DeliveryError::ConnectionReset
        } else {
            tracing::warn!(cause = ?causes(error).collect::<Vec<_>>(), "delivery failed with an unclassified error; treated as a connection reset");
            DeliveryError::ConnectionReset
        }
    })
}

/// Whether the network said during an exchange that it does not reach the destination any more.
fn is_unreachable(error: &legacy::Error) -> bool {
    use io::ErrorKind as Kind;
    causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
        matches!(error.kind(), Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown)
    })
}

/// The class of the innermost cause that has one.
fn told(error: &(dyn Error + 'static)) -> Option<DeliveryError> {
    let causes: Vec<_> = causes(error).collect();
    causes.iter().rev().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<rustls::Error>() {
            return Some(tls::classify(error));
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return of_io(error.kind());
        }
        let error = cause.downcast_ref::<hyper::Error>()?;
        if error.is_parse() {
            Some(DeliveryError::InvalidResponse)
        } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            Some(DeliveryError::ConnectionReset)
        } else {
            None
        }
    })
}

fn of_io(kind: io::ErrorKind) -> Option<DeliveryError> {
    use io::ErrorKind as Kind;
    if kind == Kind::ConnectionRefused {
        Some(DeliveryError::ConnectionRefused)
    } else if kind == Kind::TimedOut {
        Some(DeliveryError::Timeout)
    } else if matches!(
        kind,
        Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::BrokenPipe
            | Kind::NotConnected
            | Kind::UnexpectedEof
    ) {
        Some(DeliveryError::ConnectionReset)
    } else {
        None
    }
}

/// An error and its causes, outermost first. Includes the causes inside an `io::Error`.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(hidden) => Some(hidden as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}
