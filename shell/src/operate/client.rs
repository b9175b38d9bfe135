//! A client of a running service.

use crate::visible::escaped;
use reqwest::{Client, Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// The service itself gives up on its database after 5 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// The way to one service.
pub(super) struct Service {
    client: Client,
    base: Url,
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The URL of the service is none.
    #[error(
        "`{0}` is not the http or https URL of a service; write for example `http://127.0.0.1:8080`"
    )]
    Url(String),
    /// There is no HTTP client.
    #[error("the HTTP client could not be set up: {0}")]
    Client(String),
    /// Nothing answered.
    #[error(
        "no answer from {url}: {why}. Does the service run, and is --url (or SUREHOOK_URL) its address?"
    )]
    Unreachable {
        /// What was asked.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The service refused.
    #[error("{0}")]
    Refused(String),
    /// The event is not there, or not where it would have to be.
    #[error("{0}")]
    Elsewhere(String),
    /// Something answered that is not a service of this kind.
    #[error(
        "{0} answered what surehook does not answer: is --url (or SUREHOOK_URL) the address of a surehook of this version?"
    )]
    Foreign(String),
    /// A time is none.
    #[error(
        "`{0}` is neither a time in RFC 3339, like 2026-11-25T00:00:00Z, nor how long ago it was, like 2h"
    )]
    Time(String),
    /// Everything would be meant.
    #[error("say which events are meant: an event's id, filters such as --source, or --all")]
    WithoutFilter,
}

#[derive(Deserialize)]
struct ProblemBody {
    detail: String,
}

impl Service {
    pub(super) fn new(url: &str) -> Result<Self, OperateError> {
        // It only fails if a provider is there already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let base: Url = whole.parse().map_err(|_| OperateError::Url(url.to_owned()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(OperateError::Url(url.to_owned()));
        }
        // An order to a service goes to that service: not by a proxy of the environment, and nowhere else.
        let mut builder = Client::builder()
            .timeout(PATIENCE)
            .user_agent(concat!("surehook/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if base.scheme() == "http" {
            // A machine without CA certificates is no reason not to ask within it.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| OperateError::Client(error.to_string()))?;
        Ok(Self { client, base })
    }

    /// The URL of a path, which is put behind the service's own.
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

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, OperateError> {
        let url = self.url(path, query);
        // What a URL holds of user and password is not shown.
        let mut shown = url.clone();
        let _ = (shown.set_username(""), shown.set_password(None));
        let shown = shown.to_string();
        let unreachable = |error: reqwest::Error| OperateError::Unreachable {
            url: shown.clone(),
            why: root_cause(&error),
        };
        let response = self.client.request(method, url).send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|_| OperateError::Foreign(shown));
        }
        match serde_json::from_slice::<ProblemBody>(&body) {
            Ok(problem) if matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT) => {
                Err(OperateError::Elsewhere(escaped(&problem.detail)))
            }
            Ok(problem) => Err(OperateError::Refused(escaped(&problem.detail))),
            Err(_) => Err(OperateError::Foreign(format!("{shown} ({status})"))),
        }
    }
}

/// The innermost reason, which is what tells a person something.
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
    fn a_path_is_put_behind_the_services_own_and_escaped() {
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
    fn what_is_no_service_is_refused() {
        for url in ["", "ftp://host/", "http://", "a b"] {
            assert!(matches!(Service::new(url), Err(OperateError::Url(_))), "{url}");
        }
    }
}
