//! The acknowledgement of a webhook: the response after its event was stored. A source can choose
//! its status code and its body, because some producers accept only certain ones.

use super::{Answer, Problem};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use surehook_core::event::Status;
use surehook_core::forwarding::EVENT_ID_HEADER;
use surehook_core::id::EventId;
use warp::reply::Response;

/// What a source answers to each webhook that is stored. New events and replays get the same
/// status code and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// A status code from 200 to 299.
    pub status: StatusCode,
    pub content: Content,
}

/// The body of an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The event's id and its status, as JSON.
    Standing,
    /// The same bytes for each event.
    Fixed { content_type: Option<HeaderValue>, body: Bytes },
}

impl Default for Acknowledgement {
    fn default() -> Self {
        Self { status: StatusCode::ACCEPTED, content: Content::Standing }
    }
}

impl Acknowledgement {
    /// Whether responses with this status code have no body (RFC 9110 §15.3.5, §15.3.6).
    #[must_use]
    pub fn is_without_body(status: StatusCode) -> bool {
        matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
    }

    /// The response for an event.
    pub(super) fn answer(&self, id: EventId, status: Status) -> Result<Answer, Problem> {
        let mut answer = match &self.content {
            Content::Standing => Answer::standing(self.status, id, status)?,
            Content::Fixed { content_type, body } => {
                let mut response = Response::new(body.clone().into());
                *response.status_mut() = self.status;
                if let Some(content_type) = content_type {
                    response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
                }
                Answer { status: self.status, event_id: Some(id), response }
            }
        };
        let id = HeaderValue::from_str(&id.to_string()).expect("an id is visible ASCII");
        answer.response.headers_mut().insert(HeaderName::from_static(EVENT_ID_HEADER), id);
        Ok(answer)
    }
}
