//! `POST /webhooks/{source}`: accepts an event.

use super::{Answer, App, body, database_timeout, database_unavailable, shutting_down};
use crate::headers;
use crate::http::problem::{Problem, ProblemKind};
use crate::intake::IntakeError;
use crate::ports::NewEvent;
use bytes::Buf;
use futures::Stream;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::error::Error;
use surehook_core::admission::{Admission, Fingerprint, idempotency_key};
use surehook_core::forwarding::Forwarding;
use surehook_core::key::KeyError;

/// Response header of a replay: an earlier request stored the event. Its value is `true`.
pub const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotent-replayed");

impl App {
    /// Stores the event. The response is sent after the commit.
    pub(super) async fn accept<B: Buf, E: Error + 'static>(
        &self,
        source: &str,
        headers: HeaderMap,
        body: impl Stream<Item = Result<B, E>>,
    ) -> Result<Answer, Problem> {
        let Some(intake) = &self.intake else {
            return Err(ProblemKind::NoIntake.with(
                "This process only delivers. Post to a process with the role `all` or `intake`.",
            ));
        };
        let Some((source, settings)) = self.sources.get_key_value(source) else {
            return Err(ProblemKind::UnknownSource.with(
                "No source of this name is configured. The name is the last part of the path.",
            ));
        };
        let keys = headers.get_all(&settings.idempotency_header);
        let key = idempotency_key(
            settings.idempotency_header.as_str(),
            keys.iter().map(HeaderValue::as_bytes),
        )
        .map_err(bad_key)?;
        // hyper validates this header, and removes it from a request that is also chunked.
        let declared =
            headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let mut reservation = intake.reservation(source);
        let late = self.clock.sleep_until(self.clock.now() + self.body_timeout);
        let body = body::read(body, declared, self.max_body, late, &mut reservation).await?;

        let connection = headers.get_all(CONNECTION);
        let forwarding = Forwarding::new(
            connection.iter().map(HeaderValue::as_bytes),
            settings.forward_credentials,
        );
        let headers = headers::encode(&headers, &forwarding);
        reservation.grow(headers.len())?;
        let event = NewEvent {
            id: self.ids.fresh(),
            source: source.clone(),
            key,
            fingerprint: Fingerprint::of(&body),
            headers,
            body,
            lease: None,
        };
        match intake.submit(event, settings.on_key_reuse, reservation).await? {
            Admission::Accepted { id, status } => {
                self.metrics.taken(source, false);
                Answer::standing(StatusCode::ACCEPTED, id, status)
            }
            Admission::Replayed { id, status } => {
                self.metrics.taken(source, true);
                let mut answer = Answer::standing(StatusCode::ACCEPTED, id, status)?;
                answer.response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
                Ok(answer)
            }
            Admission::KeyReused => Err(ProblemKind::KeyReused.with(
                "An event with this idempotency key and another body was accepted before. Nothing was stored. Use a different idempotency key for each event.",
            )),
        }
    }
}

fn bad_key(error: KeyError) -> Problem {
    let kind = if matches!(error, KeyError::Missing { .. }) {
        ProblemKind::KeyMissing
    } else {
        ProblemKind::KeyInvalid
    };
    let mut detail = error.to_string();
    detail[..1].make_ascii_uppercase();
    kind.with(format!("{detail}."))
}

impl From<IntakeError> for Problem {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Overloaded => {
                ProblemKind::Overloaded.with("Too many requests are waiting to be stored. Nothing was stored. Send the request again later.")
            }
            IntakeError::GaveWay => ProblemKind::Overloaded
                .with("The request arrived slowly, and its memory or connection was needed for other requests. Nothing was stored. Send the request again."),
            IntakeError::ShuttingDown => shutting_down(),
            IntakeError::Unavailable => database_unavailable(),
            IntakeError::TimedOut => database_timeout(),
            IntakeError::Refused => {
                ProblemKind::NotStorable.with("The database refuses to store this event. Nothing was stored. The log of the process has the cause.")
            }
        }
    }
}
