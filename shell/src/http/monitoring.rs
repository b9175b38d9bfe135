//! The routes for load balancers and monitoring: health, readiness, metrics, and the description of
//! this interface.

use super::operator::COUNT_TO;
use super::{Answer, App, OPENAPI, shutting_down};
use crate::health::NotReady;
use crate::http::problem::{Problem, ProblemKind};
use crate::metrics;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<&'static str>,
}

/// The process runs.
pub(super) fn health() -> Result<Answer, Problem> {
    Answer::json(StatusCode::OK, None, &serde_json::json!({"status": "ok"}))
}

/// The description of this interface.
pub(super) fn openapi() -> Answer {
    Answer::written(StatusCode::OK, None, OPENAPI)
}

impl App {
    /// Whether the process is ready for requests.
    pub(super) async fn ready(&self) -> Result<Answer, Problem> {
        self.health.ready(&self.maintenance, &self.clock, &self.ids).await.map_err(not_ready)?;
        let ready = Ready { status: "ready", database: self.maintenance.database() };
        Answer::json(StatusCode::OK, None, &ready)
    }

    /// The metrics as text. If the database fails or does not respond in time, its metrics are left
    /// out.
    pub(super) async fn metrics(&self) -> Result<Answer, Problem> {
        let names = self.configured().sources.keys().cloned().collect();
        let work = self.with_timeout("sources", self.operators.sources(names, COUNT_TO)).await.ok();
        let text = self.metrics.text(
            work.as_deref(),
            &self.health.loops(),
            &self.maintenance.connections(),
        );
        let mut answer = Answer::written(StatusCode::OK, None, text);
        answer
            .response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE));
        Ok(answer)
    }
}

fn not_ready(reason: NotReady) -> Problem {
    match reason {
        NotReady::Draining => shutting_down(),
        NotReady::LoopEnded(_) => ProblemKind::LoopEnded.with(format!("Not ready: {reason}.")),
        NotReady::Database | NotReady::Intake => {
            ProblemKind::DatabaseUnavailable.with(format!("Not ready: {reason}."))
        }
    }
}
