//! Checks of a request's head before its route runs: it names its host, and the framing of its body
//! is supported. On operator routes, a page in a browser must not have sent it without the
//! operator's intent.

use super::problem::{Problem, ProblemKind};
use http::header::{HOST, HeaderName, ORIGIN, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Uri, Version};
use surehook_core::operators::{Access, Authority, Refusal, Said};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the request line says besides the method.
#[derive(Clone, Debug)]
pub(super) struct Line {
    version: Version,
    target: Uri,
}

impl Line {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self { version: request.version(), target: request.uri().clone() }
    }

    /// The path; empty if the target has none, as that of `CONNECT`.
    pub(super) fn path(&self) -> &str {
        self.target.path()
    }

    /// The raw query; empty if there is none.
    pub(super) fn query(&self) -> &str {
        self.target.query().unwrap_or_default()
    }
}

/// Refuses a request without exactly one valid host, and one whose transfer coding the server does
/// not decode: the encoded bytes would be stored as the body.
pub(super) fn well_framed(line: &Line, headers: &HeaderMap) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST).iter();
    // An empty `Host` is valid if the target has no host (RFC 9110 §7.2).
    let is_host =
        |value: &HeaderValue| value.is_empty() || Authority::parse(value.as_bytes()).is_some();
    let is_right = match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_host(host),
        (None, _) => line.version < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    };
    if !is_right {
        return Err(ProblemKind::HostInvalid.with(
            "A request must have exactly one `Host` header, with a host and an optional port.",
        ));
    }
    let codings = headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let codings: Vec<&[u8]> =
        codings.map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty()).collect();
    // The server decodes `chunked` and nothing else. The bytes of any other coding would be taken
    // for the body.
    let is_known = matches!(codings[..], [])
        || matches!(codings[..], [coding] if coding.eq_ignore_ascii_case(b"chunked"));
    if is_known {
        Ok(())
    } else {
        Err(ProblemKind::TransferCoding
            .with("The only supported transfer coding is `chunked`. Nothing was stored. Send the body without other transfer codings."))
    }
}

/// Admits a request for an operator route, or refuses it for what its host or the browser's headers
/// say.
pub(super) fn admitted(access: &Access, line: &Line, headers: &HeaderMap) -> Result<(), Problem> {
    let all = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let (origins, sites) = (all(ORIGIN), all(SEC_FETCH_SITE));
    // The host of a target in absolute form takes precedence over `Host` (RFC 9112 §3.2.2).
    let host = line
        .target
        .authority()
        .map(|authority| authority.as_str().as_bytes())
        .or_else(|| headers.get(HOST).map(HeaderValue::as_bytes));
    access.admit(&Said { host, origins: &origins, sites: &sites }).map_err(|refusal| match refusal {
        Refusal::Host => ProblemKind::ForeignHost.with(
            "Operator routes are not served for the host that the request names. If operators use this name through a proxy, add it to `operator_hosts`.",
        ),
        Refusal::CrossSite => ProblemKind::CrossSite.with(
            "A page of another site sent this request, which is not allowed. If the page is yours, add its host to `operator_hosts`.",
        ),
    })
}
