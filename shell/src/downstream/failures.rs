//! What a failed exchange is called.

use crate::descriptors;
use std::error::Error;
use std::io;
use surehook_core::verdict::{DeliveryError, Reply};

/// Why an exchange failed: what it counts as, and the chain of errors for the log.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reply: Reply,
    pub(super) cause: String,
}

impl Failure {
    pub(super) fn of(class: DeliveryError) -> Self {
        Self { reply: Reply::Failed(class), cause: String::new() }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let chain: Vec<String> = causes(&error).map(ToString::to_string).collect();
        let reply =
            if lacks_a_resource(&error) { Reply::NotSent } else { Reply::Failed(classify(&error)) };
        Self { reply, cause: chain.join(": ") }
    }
}

/// Whether this process had no descriptor or no memory for a connection. Then nothing was sent.
fn lacks_a_resource(error: &reqwest::Error) -> bool {
    let says_so = || {
        causes(error)
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(descriptors::is_shortage)
    };
    // A name cannot be looked up without descriptors, and the C library then says that the name servers do not answer.
    error.is_connect() && (says_so() || (error.is_dns() && descriptors::are_exhausted()))
}

/// The class of an error that reqwest gave. The innermost cause that says anything decides: a reset during a TLS
/// handshake is a reset.
fn classify(error: &reqwest::Error) -> DeliveryError {
    if error.is_dns() {
        return DeliveryError::Dns;
    }
    let causes: Vec<_> = causes(error).collect();
    let told = causes.iter().rev().find_map(|cause| {
        if cause.is::<rustls::Error>() {
            return Some(DeliveryError::Tls);
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
    });
    told.unwrap_or_else(|| {
        if error.is_connect() {
            DeliveryError::ConnectionFailed
        } else {
            tracing::warn!(cause = ?causes, "a delivery failed in a way that has no class of its own; it counts as a connection reset");
            DeliveryError::ConnectionReset
        }
    })
}

fn of_io(kind: io::ErrorKind) -> Option<DeliveryError> {
    use io::ErrorKind as Kind;
    if kind == Kind::ConnectionRefused {
        Some(DeliveryError::ConnectionRefused)
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

/// An error and what it came of, outermost first, with those that an `io::Error` hides.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(hidden) => Some(hidden as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}
