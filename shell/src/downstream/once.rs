//! Sends an event once to any URL, for `surehook events send`.

use super::clients::Connecting;
use super::destination::{Destination, Unsendable};
use super::failures::Failure;
use super::{FAR_AWAY, MAX_RESPONSE_BYTES, exchange};
use crate::config::StaticHeaders;
use reqwest::Url;
use std::time::Duration;
use surehook_core::verdict::Reply;
use surehook_core::worker::claims::Claim;
use tokio::time::Instant;

/// The result of sending an event once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its excerpt has up to 16 KiB.
    pub reply: Reply,
    /// The reason or the chain of errors, if there was no complete response head; may be empty.
    pub cause: String,
    pub took: Duration,
}

/// Why an event was not sent.
#[derive(Debug, thiserror::Error)]
pub enum NotSent {
    #[error(
        "cannot set up TLS; check that the system's CA certificates are readable, or those of SSL_CERT_FILE if it is set: {0}"
    )]
    Tls(rustls::Error),
    #[error("not a usable http or https URL")]
    Url,
    #[error("the request cannot be built: {0}")]
    Request(String),
}

/// Sends one event to `to`, as a worker would send it to its destination, but without the headers that
/// the configuration sets, and waits for the reply, at
/// most for `timeout`.
///
/// # Errors
///
/// [`NotSent`].
pub async fn send_once(to: &Url, claim: &Claim, timeout: Duration) -> Result<Exchange, NotSent> {
    let connecting = Connecting::by_the_system(to.scheme() == "https").map_err(NotSent::Tls)?;
    let destination = Destination::new(to, &StaticHeaders::default()).ok_or(NotSent::Url)?;
    let request = destination
        .request(claim)
        .map_err(|error: Unsendable| NotSent::Request(error.to_string()))?;
    let began = Instant::now();
    let deadline = began.checked_add(timeout).unwrap_or(began + FAR_AWAY);
    let done = exchange(&connecting.client(), request, deadline, MAX_RESPONSE_BYTES).await;
    let took = began.elapsed();
    let (reply, cause) = match done {
        Ok(reply) => (reply, String::new()),
        Err(Failure { reply, cause, tls }) => (reply, tls.unwrap_or(cause)),
    };
    Ok(Exchange { reply, cause, took })
}
