//! The requests to one destination: deliveries, and relayed requests.
//!
//! It is not built from a `Url`, because that would encode characters of the producer's query. Some
//! producers sign it.

use super::pieces::Pieces;
use crate::config::StaticHeaders;
use crate::headers;
use crate::ports::Relayed;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use std::str::Utf8Error;
use surehook_core::forwarding::query::joined;
use surehook_core::source::SourceName;
use surehook_core::worker::claims::Claim;

/// The longest path with its query that the HTTP client can send.
const MAX_TARGET_BYTES: usize = 65_534;

/// The destination of one source, or of one event that is sent by hand. User and password of the URL
/// are stored as a header, so that no error and no log can show them.
#[derive(Clone)]
pub(super) struct Destination {
    scheme: Scheme,
    authority: Authority,
    path: String,
    /// Empty if there is none.
    query: String,
    authorization: Option<HeaderValue>,
    headers: StaticHeaders,
}

/// Why the request of a delivery cannot be built. Contains neither a header nor the query.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsendable {
    #[error("{0} (changed outside of Surehook)")]
    Headers(#[from] headers::Unreadable),
    #[error("the stored query is not that of a request (changed outside of Surehook)")]
    Query,
    #[error(
        "the path of the destination with the query of the event is longer than {MAX_TARGET_BYTES} bytes"
    )]
    TooLong,
}

impl Destination {
    /// `None`: the URL is not usable for requests.
    pub(super) fn new(url: &Url, headers: &StaticHeaders) -> Option<Self> {
        let mut url = url.clone();
        if !matches!(url.scheme(), "http" | "https") {
            return None;
        }
        let authorization = credentials(&url).ok()?;
        url.set_username("").ok()?;
        url.set_password(None).ok()?;
        let parts = url.as_str().parse::<Uri>().ok()?.into_parts();
        Some(Self {
            scheme: parts.scheme?,
            authority: parts.authority?,
            path: url.path().to_owned(),
            query: url.query().unwrap_or_default().to_owned(),
            authorization,
            headers: headers.clone(),
        })
    }

    /// The request of one delivery.
    pub(super) fn request(&self, claim: &Claim) -> Result<Request<Pieces>, Unsendable> {
        let mut forwarded = headers::decode(&claim.headers)?;
        for (name, value) in headers::own(claim) {
            forwarded.insert(name, value);
        }
        self.build(Method::POST, &claim.query, forwarded, claim.body.clone())
    }

    /// A request that is relayed.
    pub(super) fn relayed(
        &self,
        source: &SourceName,
        request: Relayed,
    ) -> Result<Request<Pieces>, Unsendable> {
        let Relayed { method, query, mut headers, body } = request;
        let (name, value) = headers::source(source);
        headers.insert(name, value);
        self.build(method, &query, headers, body)
    }

    /// A request with this query in addition to that of the destination.
    fn build(
        &self,
        method: Method,
        query: &[u8],
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Request<Pieces>, Unsendable> {
        let uri = self.uri(query)?;
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        self.headers.set_in(&mut headers);
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        if body.is_empty() && method == Method::POST {
            // hyper omits it for an empty body, and a downstream may answer 411 to a POST without a
            // length (RFC 9110 §8.6).
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let mut request = Request::new(Pieces::new(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) =
            (method, uri, headers);
        Ok(request)
    }

    fn uri(&self, query: &[u8]) -> Result<Uri, Unsendable> {
        let query = std::str::from_utf8(query).map_err(|_| Unsendable::Query)?;
        let query = joined(&self.query, query);
        let target =
            if query.is_empty() { self.path.clone() } else { format!("{}?{query}", self.path) };
        if target.len() > MAX_TARGET_BYTES {
            return Err(Unsendable::TooLong);
        }
        let target = PathAndQuery::from_maybe_shared(target).map_err(|_| Unsendable::Query)?;
        let mut parts = http::uri::Parts::default();
        (parts.scheme, parts.authority, parts.path_and_query) =
            (Some(self.scheme.clone()), Some(self.authority.clone()), Some(target));
        Uri::from_parts(parts).map_err(|_| Unsendable::Query)
    }
}

/// The header for the user and the password of a URL, if it has any.
fn credentials(url: &Url) -> Result<Option<HeaderValue>, Utf8Error> {
    let password = url.password();
    if url.username().is_empty() && password.is_none() {
        return Ok(None);
    }
    let text = |encoded| percent_decode_str(encoded).decode_utf8();
    let (user, password) = (text(url.username())?, text(password.unwrap_or_default())?);
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    let mut value =
        HeaderValue::try_from(format!("Basic {encoded}")).expect("Base64 is visible ASCII");
    value.set_sensitive(true);
    Ok(Some(value))
}
