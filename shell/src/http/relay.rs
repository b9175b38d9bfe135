//! Relayed requests: passed to the destination at once and not stored. The destination's response
//! goes back to the producer. [`surehook_core::relay`] decides which requests these are.

use super::webhook::forwarding;
use super::{Answer, App, SourceIntake};
use crate::headers;
use crate::http::problem::{Problem, ProblemKind};
use crate::ports::{Relay, RelayFailed, Relayed};
use bytes::Bytes;
use futures::{FutureExt, select_biased};
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderMap, HeaderValue, Method, Response};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use surehook_core::source::SourceName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Maximum number of requests of one source that wait for its destination. Handshakes are rare. A
/// destination that hangs holds no more connections than this.
pub const RELAYED_AT_ONCE: usize = 8;

/// A page from a destination must not act in a browser as a page of this listener, which may serve
/// the routes for operators.
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox; default-src 'none'");

/// The relayed requests of one process.
pub struct Relays {
    port: Arc<dyn Relay>,
    /// Of each source that has relayed a request.
    slots: Mutex<BTreeMap<SourceName, Arc<Semaphore>>>,
}

impl Relays {
    #[must_use]
    pub fn new(port: Arc<dyn Relay>) -> Self {
        Self { port, slots: Mutex::default() }
    }

    /// A slot for one request, until it is dropped. `None`: all are in use.
    fn slot(&self, source: &SourceName) -> Option<OwnedSemaphorePermit> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = slots.entry(source.clone());
        let slots = slots.or_insert_with(|| Arc::new(Semaphore::new(RELAYED_AT_ONCE)));
        Arc::clone(slots).try_acquire_owned().ok()
    }
}

impl App {
    /// Relays one request, and answers with the response of the destination.
    pub(super) async fn relay(
        &self,
        source: &SourceName,
        settings: &SourceIntake,
        method: Method,
        query: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Problem> {
        let rule = forwarding(headers, settings.forward_credentials);
        let request = Relayed {
            method,
            query: Bytes::copy_from_slice(query.as_bytes()),
            headers: headers::forwarded(headers, &rule),
            body,
        };
        let answer = self.relayed(source, settings, request).await;
        let status = match &answer {
            Ok(answer) => answer.status,
            Err(problem) => problem.kind.status(),
        };
        self.metrics.relayed(source, status);
        answer
    }

    async fn relayed(
        &self,
        source: &SourceName,
        settings: &SourceIntake,
        request: Relayed,
    ) -> Result<Answer, Problem> {
        let Some(_slot) = self.relays.slot(source) else {
            return Err(ProblemKind::RelayFailed.with(format!(
                "{RELAYED_AT_ONCE} relayed requests of this source already wait for the destination. Nothing was stored. Send the request again later."
            )));
        };
        let late = self.clock.sleep_until(self.clock.now() + settings.relay_timeout);
        let response = select_biased! {
            response = self.relays.port.relay(source, request).fuse() => response.map_err(failed)?,
            () = late.fuse() => return Err(ProblemKind::RelayTimeout.with(
                "The destination did not respond to the relayed request in time. Nothing was stored.",
            )),
        };
        Ok(Answer::relayed(response))
    }
}

impl Answer {
    fn relayed(response: Response<Bytes>) -> Self {
        let (mut head, body) = response.into_parts();
        head.headers.insert(CONTENT_SECURITY_POLICY, SANDBOX);
        let mut response = warp::reply::Response::new(body.into());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        Self { status: head.status, event_id: None, response }
    }
}

fn failed(error: RelayFailed) -> Problem {
    ProblemKind::RelayFailed.with(format!(
        "The request could not be relayed to the destination: {error}. Nothing was stored."
    ))
}
