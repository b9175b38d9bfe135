//! `POST /webhooks/{source}`: accepts an event. If the source says so, relays the request instead.

use super::operator::CallError;
use super::routes::Call;
use super::{Answer, App, body, database_timeout, database_unavailable, shutting_down};
use crate::headers;
use crate::http::problem::{Problem, ProblemKind};
use crate::intake::IntakeError;
use crate::ports::{MAX_RELAYED_BODY, NewEvent, Redriven};
use bytes::{Buf, Bytes};
use futures::Stream;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::error::Error;
use surehook_core::admission::{Admission, Fingerprint};
use surehook_core::event::{RedrivenBy, Status};
use surehook_core::forwarding::Forwarding;
use surehook_core::id::EventId;
use surehook_core::key::places::{Head, LookupError, Received};
use surehook_core::relay;
use surehook_core::source::SourceName;

/// Response header of a replay: an earlier request stored the event. Its value is `true`.
pub const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotent-replayed");

impl App {
    /// Stores the event. The response is sent after the commit. A request that the source relays is
    /// passed to the destination instead.
    pub(super) async fn accept<B: Buf, E: Error + 'static>(
        &self,
        call: Call<'_, impl Stream<Item = Result<B, E>>>,
    ) -> Result<Answer, Problem> {
        let Call { method, parameter: source, query, headers, body } = call;
        let Some(intake) = &self.intake else {
            return Err(ProblemKind::NoIntake.with(
                "This process only delivers. Post to a process with the role `all` or `intake`.",
            ));
        };
        let configured = self.configured();
        let Some((source, settings)) = configured.sources.get_key_value(source) else {
            return Err(ProblemKind::UnknownSource.with(
                "No source of this name is configured. The name is the last part of the path.",
            ));
        };
        let head = Head {
            header: |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes),
            query,
        };
        // The route admits only the methods of the source.
        let known = relay::Method::from_name(method.as_str()).unwrap_or(relay::Method::Post);
        let relayed_by_head = settings.relay.matches_head(known, &head);
        // A request that may be relayed needs no key.
        let key_of_head = match relayed_by_head {
            Some(false) => settings.idempotency_key.find_in_head(&head).map_err(bad_key)?,
            Some(true) | None => None,
        };
        // hyper validates this header, and removes it from a request that is also chunked.
        let declared =
            headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let mut reservation = intake.reservation(source);
        let late = self.clock.sleep_until(self.clock.now() + configured.body_timeout);
        let most = match relayed_by_head {
            Some(true) => settings.max_body.min(MAX_RELAYED_BODY),
            Some(false) | None => settings.max_body,
        };
        let body = body::read(body, declared, most, late, &mut reservation).await?;

        if relayed_by_head.unwrap_or_else(|| settings.relay.matches_body(&body)) {
            if body.len() > MAX_RELAYED_BODY {
                return Err(body::too_large(MAX_RELAYED_BODY));
            }
            // It keeps its memory until the destination has answered.
            reservation.is_read();
            return self.relay(source, settings, method, query, &headers, body).await;
        }
        let encoded =
            headers::encode(&headers, &forwarding(&headers, settings.forward_credentials));
        let forwarded_query = if settings.forward_query { query } else { "" };
        reservation.grow(forwarded_query.len() + encoded.len())?;
        let received =
            Received { body: &body, fingerprint: Fingerprint::of(&body), id: self.ids.fresh() };
        let key = match key_of_head {
            Some(key) => key,
            None => settings.idempotency_key.find(&head, received).map_err(bad_key)?,
        };
        let Received { fingerprint, id, .. } = received;
        let event = NewEvent {
            id,
            source: source.clone(),
            key,
            fingerprint,
            query: Bytes::copy_from_slice(forwarded_query.as_bytes()),
            headers: encoded,
            body,
            lease: None,
        };
        let admission = intake.submit(event, settings.on_key_reuse, reservation).await?;
        let admission = match admission.redrives(settings.redrive_on_replay) {
            Some(id) => Admission::Replayed { id, status: self.sent_again(source, id).await? },
            None => admission,
        };
        match admission {
            Admission::Accepted { id, status } => {
                self.metrics.taken(source, false);
                settings.acknowledgement.answer(id, status)
            }
            Admission::Replayed { id, status } => {
                self.metrics.taken(source, true);
                let mut answer = settings.acknowledgement.answer(id, status)?;
                answer.response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
                Ok(answer)
            }
            Admission::KeyReused { first } => Err(ProblemKind::KeyReused
                .with(format!(
                    "The event {first} with this idempotency key and another body was accepted before. Nothing was stored. Use a different idempotency key for each event."
                ))
                .about(first)),
        }
    }
}

impl App {
    /// Queues a dead letter that its producer has sent again. Returns its status after that. If
    /// this fails, the producer must not take the event for queued, so the failure is the answer.
    async fn sent_again(&self, source: &SourceName, id: EventId) -> Result<Status, Problem> {
        match self.timed("redrive", self.operators.redrive(id, RedrivenBy::Replay)).await {
            Ok(Redriven::Queued) => {
                tracing::info!(event_id = %id, %source, "redriven by a replay");
                self.doorbell.ring([source.clone()]);
                Ok(Status::Queued)
            }
            // Another request has redriven it.
            Ok(Redriven::WrongStatus(status)) => Ok(status),
            // The next request with its key is a new event.
            Ok(Redriven::NotFound | Redriven::Erased) => Err(ProblemKind::DatabaseUnavailable
                .with("The retention of the event has ended during the request. Send it again.")),
            Err(CallError::Failed(error)) => {
                tracing::warn!(%error, event_id = %id, %source, "redrive by a replay failed; answering with a problem");
                Err(error.into())
            }
            Err(CallError::TimedOut) => Err(database_timeout()),
        }
    }
}

/// The rule for the headers of a request.
pub(super) fn forwarding(headers: &HeaderMap, forward_credentials: bool) -> Forwarding {
    let connection = headers.get_all(CONNECTION);
    Forwarding::new(connection.iter().map(HeaderValue::as_bytes), forward_credentials)
}

fn bad_key(error: LookupError) -> Problem {
    let kind = match error {
        LookupError::Missing(_) => ProblemKind::KeyMissing,
        LookupError::Invalid { .. } => ProblemKind::KeyInvalid,
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
