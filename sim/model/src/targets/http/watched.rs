//! Records the requests that hyper passes to the routes, before the routes see them. The record is
//! independent of the code under test.

use bytes::Bytes;
use http::request::Parts;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use surehook::http::{App, RouteSet, service};
use surehook_core::operators::Access;

/// A recorded request.
#[derive(Clone, Debug)]
pub(super) struct Posted {
    pub(super) head: Parts,
    /// The part of the body that was read.
    pub(super) body: Vec<u8>,
    /// Whether the body was read completely.
    pub(super) whole: bool,
}

/// The requests of one connection, in their order.
#[derive(Clone, Default)]
pub(super) struct Requests(Arc<Mutex<Vec<Posted>>>);

impl Requests {
    /// The production routes, with a record of every request.
    pub(super) fn watch(
        self,
        app: App,
    ) -> impl Service<Request<Incoming>, Response = warp::reply::Response, Error = Infallible> {
        let service = service(Arc::new(app), RouteSet::Everyone, Access::default());
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            let whole = body.is_end_stream();
            let index = self.with(|all| {
                all.push(Posted { head: head.clone(), body: Vec::new(), whole });
                all.len() - 1
            });
            service.call(Request::from_parts(head, Watched { body, index, requests: self.clone() }))
        })
    }

    pub(super) fn take(&self) -> Vec<Posted> {
        self.with(std::mem::take)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<Posted>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A body that is recorded as it is read.
struct Watched {
    body: Incoming,
    index: usize,
    requests: Requests,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let index = self.index;
        self.requests.with(|all| match &frame {
            Some(Ok(frame)) => {
                all[index].body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
            Some(Err(_)) => {}
            None => all[index].whole = true,
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
