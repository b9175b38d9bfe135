//! The HTTP client of a running service.

use crate::http::problem::ProblemKind;
use crate::visible::escaped;
use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// Request timeout. The service itself stops waiting for its database after 5 s.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of a request for a body, which can have 256 MiB.
const BODY_TIMEOUT: Duration = Duration::from_mins(5);

/// A running service, known by its base URL.
pub(super) struct Service {
    client: Client,
    base: Url,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The URL of the service is not valid.
    #[error(
        "`{0}` is not an http or https URL of a service: write for example `http://127.0.0.1:8080`"
    )]
    Url(String),
    /// The HTTP client could not be created.
    #[error("the HTTP client could not be created: {0}")]
    Client(String),
    /// The service did not respond.
    #[error(
        "no response from {url}: {why}. Check that the service runs, and that --url (or SUREHOOK_URL) is its address"
    )]
    Unreachable {
        /// The requested URL.
        url: String,
        /// The cause.
        why: String,
    },
    /// The service refused the request.
    #[error("{0}")]
    Refused(String),
    /// The event does not exist, or its status does not allow the request.
    #[error("{0}")]
    Elsewhere(String),
    /// The payload of the event was erased, so it cannot be sent again.
    #[error("{0}")]
    Erased(String),
    /// The bytes of a body cannot be shown on a terminal.
    #[error(
        "the body is not text: write it to a file, for example with `surehook events body ID > body`"
    )]
    NotText,
    /// The response is not one of this program.
    #[error(
        "unexpected response from {0}: check that --url (or SUREHOOK_URL) is the address of a surehook service of this version"
    )]
    Foreign(String),
    /// The time is not valid.
    #[error("`{0}` is not a valid time: write {forms}", forms = super::time::FORMS)]
    Time(String),
    /// The service knows no such source, or a value is not valid.
    #[error("{0}")]
    WrongValue(String),
    /// The command selects no events.
    #[error("no events selected: give an event id, a filter such as --source, or --all")]
    WithoutFilter,
}

impl OperateError {
    /// Whether the command line is wrong, so that the same command fails again.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        match self {
            Self::Url(_) | Self::Time(_) | Self::WrongValue(_) | Self::WithoutFilter => true,
            Self::Client(_)
            | Self::Unreachable { .. }
            | Self::Refused(_)
            | Self::Elsewhere(_)
            | Self::Erased(_)
            | Self::NotText
            | Self::Foreign(_) => false,
        }
    }
}

#[derive(Deserialize)]
struct ProblemBody {
    #[serde(rename = "type")]
    kind: String,
    detail: String,
}

/// The problems that a wrong value in the command line causes.
const OF_WRONG_VALUES: [ProblemKind; 3] =
    [ProblemKind::BadQuery, ProblemKind::BadEventId, ProblemKind::UnknownSource];

impl Service {
    pub(super) fn new(url: &str) -> Result<Self, OperateError> {
        // This fails only if another provider is installed already, which works as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let base: Url = whole.parse().map_err(|_| OperateError::Url(url.to_owned()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(OperateError::Url(url.to_owned()));
        }
        // Requests go directly to the given service: no proxy of the environment, no redirects.
        let mut builder = Client::builder()
            .timeout(TIMEOUT)
            .user_agent(format!("surehook/{}", crate::version::VERSION))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if base.scheme() == "http" {
            // Plain HTTP needs no CA certificates, so the command works on machines without any.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| OperateError::Client(error.to_string()))?;
        Ok(Self { client, base })
    }

    /// The URL of a path below the base URL.
    pub(super) fn url(&self, path: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub(super) async fn get(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Value, OperateError> {
        self.ask(Method::GET, path, query).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, OperateError> {
        self.ask(Method::POST, path, query).await
    }

    /// The bytes of a response that is not JSON.
    pub(super) async fn bytes(&self, path: &[&str]) -> Result<Bytes, OperateError> {
        let url = self.url(path, &[]);
        self.exchange(self.client.get(url.clone()).timeout(BODY_TIMEOUT), &url).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, OperateError> {
        let url = self.url(path, query);
        let body = self.exchange(self.client.request(method, url.clone()), &url).await?;
        serde_json::from_slice(&body).map_err(|_| OperateError::Foreign(without_user(&url)))
    }

    /// The URL of a path, as it can be shown.
    pub(super) fn shown(&self, path: &[&str]) -> String {
        without_user(&self.url(path, &[]))
    }

    /// Sends a request and returns the body of the response, if that is a success.
    async fn exchange(&self, request: RequestBuilder, url: &Url) -> Result<Bytes, OperateError> {
        let shown = without_user(url);
        let unreachable = |error: reqwest::Error| OperateError::Unreachable {
            url: shown.clone(),
            why: root_cause(&error),
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        let is_of_a_wrong_value =
            |problem: &ProblemBody| OF_WRONG_VALUES.iter().any(|kind| kind.urn() == problem.kind);
        match serde_json::from_slice::<ProblemBody>(&body) {
            Ok(problem) if is_of_a_wrong_value(&problem) => {
                Err(OperateError::WrongValue(escaped(&problem.detail)))
            }
            Ok(problem) if problem.kind == ProblemKind::PayloadErased.urn() => {
                Err(OperateError::Erased(escaped(&problem.detail)))
            }
            Ok(problem) if matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT) => {
                Err(OperateError::Elsewhere(escaped(&problem.detail)))
            }
            Ok(problem) => Err(OperateError::Refused(escaped(&problem.detail))),
            Err(_) => Err(OperateError::Foreign(format!("{shown} ({status})"))),
        }
    }
}

/// A URL without its user and its password.
fn without_user(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.to_string()
}

/// The innermost error. It is the most useful one for a person.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_appended_to_the_base_url_and_escaped() {
        for base in ["127.0.0.1:8080", "http://127.0.0.1:8080/"] {
            let service = Service::new(base).unwrap();
            let url = service.url(&["events"], &[("key", "a+b &c".to_owned())]);
            assert_eq!(url.as_str(), "http://127.0.0.1:8080/events?key=a%2Bb+%26c");
        }
        let behind = Service::new("https://ops.example/surehook").unwrap();
        assert_eq!(
            behind.url(&["sources", "a/b", "pause"], &[]).as_str(),
            "https://ops.example/surehook/sources/a%2Fb/pause"
        );
    }

    #[test]
    fn an_invalid_service_url_is_refused() {
        for url in ["", "ftp://host/", "http://", "a b"] {
            assert!(matches!(Service::new(url), Err(OperateError::Url(_))), "{url}");
        }
    }
}
