//! The stored request of an event: its parts as JSON, and its body as it was received.

use super::operator::{event_id, unknown_event};
use super::view::RequestView;
use super::{Answer, App};
use crate::http::problem::{Problem, ProblemKind};
use crate::ports::FoundBody;
use bytes::Bytes;
use futures::{FutureExt, select_biased};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use surehook_core::id::EventId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warp::reply::Response;

/// How long a request for a body waits until the body before it is sent.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Lets one body be in memory at a time, from its read to its last byte on the connection: a body
/// can have 256 MiB, and its reader can be slow.
pub struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl App {
    /// The request of one event, without its body.
    pub(super) async fn stored_request(&self, id: &str) -> Result<Answer, Problem> {
        let id = event_id(id)?;
        let record = self
            .with_timeout("request", self.operators.request(id))
            .await?
            .ok_or_else(|| unknown_event(id))?;
        let configured = self.configured();
        let source = configured.sources.get(record.source.as_str());
        let destination = source.map(|source| source.destination.clone());
        let view = RequestView::new(id, record, destination).map_err(|error| {
            tracing::warn!(%error, event_id = %id, "an operator's request failed");
            ProblemKind::Internal.with(
                "The stored headers of the event cannot be read: another program changed the database.",
            )
        })?;
        Answer::json(StatusCode::OK, Some(id), &view)
    }

    /// The body of one event, as a file that a browser does not show.
    pub(super) async fn stored_body(&self, id: &str) -> Result<Answer, Problem> {
        let id = event_id(id)?;
        let turn = self.turn().await?;
        match self.with_timeout("body", self.operators.body(id)).await? {
            FoundBody::Found(body) => Ok(Answer::attached(id, Held::bytes(body, turn))),
            FoundBody::NotFound => Err(unknown_event(id)),
            FoundBody::Erased => Err(ProblemKind::PayloadErased
                .with("The event's payload was erased after `retention.delivered_payload`.")),
        }
    }

    /// Waits until no other body is read or sent.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let late = self.clock.sleep_until(self.clock.now() + TURN_TIMEOUT);
        let turn = select_biased! {
            turn = Arc::clone(&self.bodies.0).acquire_owned().fuse() => turn.ok(),
            () = late.fuse() => None,
        };
        turn.ok_or_else(|| {
            ProblemKind::Overloaded.with(
                "The body of another event is still being sent. Send the request again later.",
            )
        })
    }
}

/// A body with its turn, which ends when the last byte is sent.
struct Held {
    body: Bytes,
    _turn: OwnedSemaphorePermit,
}

impl Held {
    fn bytes(body: Bytes, turn: OwnedSemaphorePermit) -> Bytes {
        Bytes::from_owner(Self { body, _turn: turn })
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Answer {
    /// A body that a browser saves under the id of its event.
    fn attached(id: EventId, body: Bytes) -> Self {
        let mut response = Response::new(body.into());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let name = format!("attachment; filename=\"{id}\"");
        headers.insert(
            CONTENT_DISPOSITION,
            HeaderValue::from_str(&name).expect("an id is visible ASCII"),
        );
        Self { status: StatusCode::OK, event_id: Some(id), response }
    }
}
