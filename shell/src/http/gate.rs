//! What is checked of a request's head before its route is asked: that it says for which host it is and how its body is
//! framed, and, on operators' routes, that no page in a browser sent it by itself.

use super::problem::{Kind, Problem};
use http::header::{HOST, HeaderName, ORIGIN, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Version};
use surehook_core::operators::{Access, Authority, Refusal, Said};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the line of a request says beside its method and its path.
#[derive(Clone, Debug)]
pub(super) struct Line {
    version: Version,
    /// The host of a target in absolute form, which `Host` does not overrule (RFC 9112 §3.2.2).
    authority: Option<String>,
}

impl Line {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        Self { version: request.version(), authority }
    }
}

/// Refuses a request that does not say which host it is for, or whose body would be taken for another than it is.
pub(super) fn well_framed(line: &Line, headers: &HeaderMap) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST).iter();
    // An empty one is right where the target has no host (RFC 9110 §7.2).
    let is_host =
        |value: &HeaderValue| value.is_empty() || Authority::parse(value.as_bytes()).is_some();
    let is_right = match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_host(host),
        (None, _) => line.version < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    };
    if !is_right {
        return Err(Kind::HostInvalid
            .with("A request has exactly one `Host` header, with a host and perhaps a port."));
    }
    let codings = headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let codings: Vec<&[u8]> =
        codings.map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty()).collect();
    // The server takes the chunks apart, and nothing else: the bytes below another coding would be taken for the body.
    let is_known = matches!(codings[..], [])
        || matches!(codings[..], [coding] if coding.eq_ignore_ascii_case(b"chunked"));
    if is_known {
        Ok(())
    } else {
        Err(Kind::TransferCoding
            .with("Of all transfer codings only `chunked` is supported, alone. Nothing was stored; send the body without the others."))
    }
}

/// Lets an operators' request in, or refuses it for what a browser says of it.
pub(super) fn admitted(access: &Access, line: &Line, headers: &HeaderMap) -> Result<(), Problem> {
    let all = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let (origins, sites) = (all(ORIGIN), all(SEC_FETCH_SITE));
    let host = line
        .authority
        .as_deref()
        .map(str::as_bytes)
        .or_else(|| headers.get(HOST).map(HeaderValue::as_bytes));
    access.admit(&Said { host, origins: &origins, sites: &sites }).map_err(|refusal| match refusal {
        Refusal::Host => Kind::ForeignHost.with(
            "Operators do not reach this listener by the host that the request names. If they do, through a proxy, add the name to `operator_hosts`.",
        ),
        Refusal::CrossSite => Kind::CrossSite.with(
            "A page of another site sent this request, and none may. If it is a page of yours, add its host to `operator_hosts`.",
        ),
    })
}
