//! The body of a request, which ends with its delivery.
//!
//! hyper sends all that it has taken of a body, also after the delivery timed out. If it had all of a
//! large body, the destination would process the event later, and the next attempt again. Or it sends
//! the rest to a destination that has refused it already, for as long as that takes. So hyper gets one
//! piece at a time, and none after the end of the delivery: then it closes the connection. Only a
//! destination that has accepted the event gets the rest of it.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

/// The maximum size of a piece. hyper takes up to 400 KiB before it waits for the connection.
const PIECE_BYTES: usize = 64 << 10;

/// A body in pieces.
pub(super) struct Pieces {
    rest: Bytes,
    /// `None` if there is only one piece.
    has_ended: Option<Arc<AtomicBool>>,
}

/// Ends the body of a delivery when it is dropped.
pub(super) struct Ends(Option<Arc<AtomicBool>>);

/// The delivery has ended before its body was sent.
#[derive(Debug, thiserror::Error)]
#[error("the delivery has ended")]
pub(super) struct DeliveryEnded;

impl Pieces {
    pub(super) fn new(body: Bytes) -> Self {
        let has_ended = (body.len() > PIECE_BYTES).then(Arc::default);
        Self { rest: body, has_ended }
    }

    /// To be kept until the delivery ends.
    pub(super) fn ends(&self) -> Ends {
        Ends(self.has_ended.clone())
    }
}

impl Ends {
    /// The destination has accepted the event.
    pub(super) fn never(mut self) {
        self.0 = None;
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(has_ended) = &self.0 {
            has_ended.store(true, Ordering::Release);
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = DeliveryEnded;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DeliveryEnded>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if self.has_ended.as_ref().is_some_and(|ended| ended.load(Ordering::Acquire)) {
            return Poll::Ready(Some(Err(DeliveryEnded)));
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
