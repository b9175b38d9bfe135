//! Reads a request's body within its limits: size, time, and the memory that all requests share.
//!
//! Every framing is accepted (declared length, chunked, no body). Memory is reserved when it is
//! needed, and exactly the reserved amount is allocated.

use super::problem::{Problem, ProblemKind};
use crate::intake::{IntakeError, Reservation};
use crate::shedding::is_gave_way;
use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, select_biased};
use std::error::Error;

/// Reads `body` to its end.
///
/// `declared` is the value of `Content-Length`. `late` completes when the time for the body is
/// over.
///
/// # Errors
///
/// If the body is too large (at once, if its length was declared), too slow or incomplete, if no
/// memory is left for it, or if the request has to give way to others.
pub(super) async fn read<B: Buf, E: Error + 'static>(
    body: impl Stream<Item = Result<B, E>>,
    declared: Option<u64>,
    max_body: usize,
    late: BoxFuture<'static, ()>,
    reservation: &mut Reservation,
) -> Result<Bytes, Problem> {
    let declared = declared.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if declared.is_some_and(|bytes| bytes > max_body) {
        return Err(too_large(max_body));
    }
    let (mut body, mut late) = (std::pin::pin!(body.fuse()), late.fuse());
    let mut gives_way = std::pin::pin!(reservation.gives_way().fuse());
    let mut read = Vec::new();
    loop {
        let mut chunk = select_biased! {
            chunk = body.next() => match chunk {
                // Excess capacity would stay allocated for as long as the event is held.
                None => return Ok(Bytes::from(read.into_boxed_slice())),
                Some(Err(error)) if is_gave_way(&error) => return Err(IntakeError::GaveWay.into()),
                Some(Err(_)) => return Err(ProblemKind::BodyIncomplete.with(
                    "The body is incomplete or malformed. Nothing was stored. Send the request again."
                )),
                Some(Ok(chunk)) => chunk,
            },
            () = gives_way => return Err(IntakeError::GaveWay.into()),
            () = late => return Err(ProblemKind::TooSlow.with("The body did not arrive in time. Nothing was stored. Send the request again.")),
        };
        let size = read.len().saturating_add(chunk.remaining());
        if size > max_body {
            return Err(too_large(max_body));
        }
        if size > read.capacity() {
            let capacity =
                read.capacity().saturating_mul(2).min(declared.unwrap_or(max_body)).max(size);
            reservation.grow(capacity - read.capacity())?;
            read.reserve_exact(capacity - read.len());
        }
        while chunk.has_remaining() {
            let part = chunk.chunk();
            read.extend_from_slice(part);
            let length = part.len();
            chunk.advance(length);
        }
    }
}

pub(super) fn too_large(max_body: usize) -> Problem {
    ProblemKind::BodyTooLarge
        .with(format!("The body is larger than the limit of {max_body} bytes. Nothing was stored."))
}
