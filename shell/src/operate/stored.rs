//! The stored request of an event: shows it, prints its body, and sends it to a service under repair.

use super::client::{OperateError, Service};
use super::{Output, pretty, render};
use crate::cli::SendArgs;
use crate::downstream::{Exchange, send_once};
use crate::headers;
use crate::visible;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use surehook_core::admission::Fingerprint;
use surehook_core::forwarding::Forwarding;
use surehook_core::source::{Policy, SourceName};
use surehook_core::verdict::{Reply, Verdict, judge};
use surehook_core::worker::claims::Claim;

/// Shows one event, and with `with_request` its whole request.
pub(super) async fn show(
    service: &Service,
    id: &str,
    with_request: bool,
    json: bool,
) -> Result<String, OperateError> {
    let path = ["events", id, "request"];
    if json {
        let path = if with_request { &path[..] } else { &path[..2] };
        return Ok(pretty(&service.get(path, &[]).await?));
    }
    let event = service.get(&path[..2], &[]).await?;
    let request = match service.get(&path, &[]).await {
        Ok(request) => Some(request),
        // The event was deleted since, or the service is older than this program.
        Err(OperateError::Elsewhere(_) | OperateError::Erased(_)) if !with_request => None,
        Err(error) => return Err(error),
    };
    let redrive = service.url(&["events", id, "redrive"], &[]);
    Ok(render::event(&event, request.as_ref(), with_request, redrive.as_str()))
}

/// The body of one event, byte for byte, or with `json` as text or base64.
pub(super) async fn body(service: &Service, id: &str, json: bool) -> Result<Output, OperateError> {
    let body = service.bytes(&["events", id, "body"]).await?;
    if !json {
        return Ok(Output::Bytes(body));
    }
    let mut shown = json!({"event_id": id});
    put(&mut shown, "body", &body);
    Ok(Output::Text(pretty(&shown)))
}

/// Sends the stored request of one event to another URL, and prints the response. Nothing changes in
/// the service.
pub(super) async fn send(
    service: &Service,
    args: &SendArgs,
    json: bool,
) -> Result<Output, OperateError> {
    let id = args.id.as_str();
    let event = service.get(&["events", id], &[]).await?;
    let body = service.bytes(&["events", id, "body"]).await?;
    let request = service.get(&["events", id, "request"], &[]).await?;
    let claim = claim(&event, &request, body)
        .ok_or_else(|| OperateError::Foreign(service.shown(&["events", id, "request"])))?;
    let exchange = send_once(args.to.secret(), &claim, args.timeout.into())
        .await
        .map_err(|error| OperateError::Refused(format!("the event was not sent: {error}")))?;
    let verdict = judge(&exchange.reply, &Policy::default());
    let shown = if json { pretty(&written(&exchange, verdict)) } else { told(&exchange, verdict) };
    Ok(match verdict {
        Some(Verdict::Delivered) => Output::Text(shown),
        Some(Verdict::Transient | Verdict::Permanent | Verdict::Lost) | None => {
            Output::Failed(shown)
        }
    })
}

/// The claim for the next attempt of an event. `None` if the responses are not those of this program,
/// or if they do not belong together.
fn claim(event: &Value, request: &Value, body: Bytes) -> Option<Claim> {
    if request["sha256"].as_str()? != Fingerprint::of(&body).to_string() {
        return None;
    }
    let mut forwarded = HeaderMap::new();
    for header in request["headers"].as_array()? {
        let value = header["value"].as_str()?;
        let value = if header["value_base64"] == true {
            STANDARD.decode(value).ok()?
        } else {
            value.as_bytes().to_vec()
        };
        let name = HeaderName::from_bytes(header["name"].as_str()?.as_bytes()).ok()?;
        forwarded.append(name, HeaderValue::from_bytes(&value).ok()?);
    }
    let attempt = u32::try_from(event["attempts"].as_u64()?).ok()?.saturating_add(1);
    let claim = Claim::first(
        event["event_id"].as_str()?.parse().ok()?,
        SourceName::parse(event["source"].as_str()?).ok()?,
        event["received_at"].as_str()?.parse().ok()?,
        Bytes::copy_from_slice(request["query"].as_str()?.as_bytes()),
        headers::encode(&forwarded, &Forwarding::new(std::iter::empty(), true)),
        body,
    );
    Some(Claim { attempt, ..claim })
}

/// The response as text.
fn told(exchange: &Exchange, verdict: Option<Verdict>) -> String {
    let verdict = verdict.map_or("not sent", Verdict::as_str);
    let took = render::milliseconds(exchange.took.as_secs_f64() * 1000.0);
    match &exchange.reply {
        Reply::Response { status_code, excerpt, .. } => {
            format!("{status_code} {verdict}, after {took}\n\n{}", text(excerpt))
        }
        Reply::Failed(error) => format!("{verdict}: {error}, after {took}{}", because(exchange)),
        Reply::NotSent => format!("{verdict}{}", because(exchange)),
    }
}

fn because(exchange: &Exchange) -> String {
    match exchange.cause.as_str() {
        "" => String::new(),
        cause => format!("\n{}", visible::escaped(cause)),
    }
}

/// The response as JSON.
fn written(exchange: &Exchange, verdict: Option<Verdict>) -> Value {
    let mut shown = json!({
        "verdict": verdict.map(Verdict::as_str), "status_code": null, "error": null,
        "duration_ms": exchange.took.as_secs_f64() * 1000.0,
    });
    match &exchange.reply {
        Reply::Response { status_code, excerpt, .. } => {
            shown["status_code"] = (*status_code).into();
            put(&mut shown, "body", excerpt);
        }
        Reply::Failed(error) => shown["error"] = error.as_str().into(),
        Reply::NotSent => {}
    }
    shown
}

/// Adds bytes to an object: as text, or else as base64, with a member that says so.
fn put(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = text.into(),
        Err(_) => {
            object[name] = STANDARD.encode(bytes).into();
            object[format!("{name}_base64")] = true.into();
        }
    }
}

/// Bytes as they can be shown on a terminal.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => visible::lines(text),
        Err(_) => format!("({} bytes, not text)", bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use surehook_core::verdict::DeliveryError;

    fn event() -> Value {
        json!({
            "event_id": "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e", "source": "github", "attempts": 3,
            "received_at": "2026-11-25T00:00:00.123456Z",
        })
    }

    fn request() -> Value {
        json!({
            "sha256": Fingerprint::of(b"\xff body").to_string(), "query": "a='1'",
            "headers": [
                {"name": "x-b", "value": "2"},
                {"name": "x-b", "value": "/w==", "value_base64": true},
                {"name": "authorization", "value": "Bearer t"},
            ],
        })
    }

    const BODY: Bytes = Bytes::from_static(b"\xff body");

    #[test]
    fn an_event_is_sent_as_its_next_attempt_with_the_stored_bytes() {
        let claim = claim(&event(), &request(), BODY).unwrap();
        assert_eq!((claim.attempt, claim.source.as_str()), (4, "github"));
        assert_eq!((&claim.query[..], claim.body), (&b"a='1'"[..], BODY));
        assert_eq!(&claim.headers[..], b"x-b: 2\r\nx-b: \xff\r\nauthorization: Bearer t\r\n\r\n");
        assert_eq!(claim.received_at.to_string(), "2026-11-25T00:00:00.123456Z");
    }

    #[test]
    fn a_body_that_is_not_that_of_the_request_is_not_sent() {
        assert_eq!(claim(&event(), &request(), Bytes::from_static(b"another")), None);
        assert_eq!(claim(&json!({}), &request(), BODY), None);
    }

    fn exchange(reply: Reply, cause: &str) -> Exchange {
        Exchange { reply, cause: cause.to_owned(), took: Duration::from_micros(12_340) }
    }

    #[test]
    fn a_response_is_printed_without_its_control_characters() {
        let answered = |excerpt| {
            let excerpt = Bytes::from_static(excerpt);
            exchange(Reply::Response { status_code: 422, retry_after: None, excerpt }, "")
        };
        let refused = answered(b"no \x1b[2J\nline two");
        assert_eq!(
            told(&refused, Some(Verdict::Permanent)),
            "422 permanent, after 12.3 ms\n\nno \\u{1b}[2J\nline two"
        );
        assert_eq!(
            written(&refused, Some(Verdict::Permanent)),
            json!({
                "verdict": "permanent", "status_code": 422, "error": null, "duration_ms": 12.34,
                "body": "no \u{1b}[2J\nline two",
            })
        );
        assert_eq!(
            told(&answered(b"\xff\0"), Some(Verdict::Permanent)),
            "422 permanent, after 12.3 ms\n\n(2 bytes, not text)"
        );
        assert_eq!(written(&answered(b"\xff\0"), None)["body_base64"], true);
    }

    #[test]
    fn a_failure_is_printed_with_its_cause() {
        let failed = exchange(Reply::Failed(DeliveryError::ConnectionRefused), "tcp: \x07refused");
        assert_eq!(
            told(&failed, Some(Verdict::Transient)),
            "transient: connection refused, after 12.3 ms\ntcp: \\u{7}refused"
        );
        assert_eq!(written(&failed, Some(Verdict::Transient))["error"], "connection refused");
        assert_eq!(told(&exchange(Reply::NotSent, ""), None), "not sent");
    }
}
