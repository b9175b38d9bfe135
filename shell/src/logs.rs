//! Log lines: to standard error, for a person or as JSON. What is logged is for its places; this only says how.
//!
//! Logging never fails and never blocks: see `lines`.

mod lines;

use crate::config::LogFormat;
use crate::metrics;
use lines::Lines;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::{self, PanicHookInfo};
use std::time::Duration;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What is logged unless a filter is given. Libraries speak only of trouble: at a finer level some would log headers.
pub const DEFAULT_FILTER: &str = "warn,surehook=info,surehook_core=info";

/// The variables in which a filter is looked for; the first that is set and not empty counts.
pub const FILTER_VARIABLES: [&str; 2] = ["SUREHOOK_LOG_FILTER", "RUST_LOG"];

/// How long the end of the process waits for the last lines to be written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// The log of this process. Keep it until the end, and end with [`Logs::close`].
#[must_use]
pub struct Logs {
    lines: Lines,
}

impl Logs {
    /// Writes a text to the log's output as it is, in its turn.
    pub fn say(&self, text: &str) {
        self.lines.push(format!("{}\n", text.trim_end()).into_bytes());
    }

    /// Waits until the last lines are written; for a second at the most, because the output may be stuck.
    pub fn close(self) {
        self.lines.flush(FLUSH_PATIENCE);
    }
}

/// Starts logging for the whole process. Panics are logged too.
///
/// # Errors
///
/// [`LogsError`] if the filter in the environment is not one, or logging was started before.
pub fn init(format: LogFormat) -> Result<Logs, LogsError> {
    let filter = filter(|variable| {
        std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned())
    })?;
    // https://no-color.org: set and not empty.
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let tell =
        |lost| tracing::warn!(lost, "log lines were lost; the log's output did not take them");
    let lines =
        Lines::start(io::stderr(), metrics::log_lines_lost(), tell).map_err(LogsError::Thread)?;
    tracing_subscriber::util::SubscriberInitExt::try_init(subscriber(
        format,
        filter,
        colour,
        lines.clone(),
    ))
    .map_err(|error| LogsError::Started { reason: error.to_string() })?;
    // The hook of the standard library writes to standard error itself, and waits for it.
    panic::set_hook(Box::new(log_panic));
    Ok(Logs { lines })
}

/// Logs a panic, with a backtrace if `RUST_BACKTRACE` asks for one.
pub fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    tracing::error!(
        thread = std::thread::current().name(),
        location = panic.location().map(tracing::field::display),
        error = panic.payload_as_str(),
        backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(&backtrace)),
        "panicked; report this mistake in the program"
    );
}

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogsError {
    /// The filter is not one.
    #[error(
        "{variable} in the environment is not a filter ({reason}): write for example `{DEFAULT_FILTER}`"
    )]
    Filter {
        /// Where it was found.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else logs for this process already.
    #[error("logging is started already: {reason}")]
    Started {
        /// What was found.
        reason: String,
    },
    /// The thread that writes the log cannot be started.
    #[error("cannot start the thread of the log: {0}")]
    Thread(io::Error),
}

fn filter(environment: impl Fn(&'static str) -> Option<String>) -> Result<EnvFilter, LogsError> {
    let given = FILTER_VARIABLES
        .into_iter()
        .filter_map(|variable| environment(variable).map(|text| (variable, text)));
    match given.into_iter().find(|(_, text)| !text.trim().is_empty()) {
        Some((variable, text)) => EnvFilter::try_new(text)
            .map_err(|error| LogsError::Filter { variable, reason: error.to_string() }),
        None => Ok(EnvFilter::new(DEFAULT_FILTER)),
    }
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colour)
        .log_internal_errors(false);
    match format {
        LogFormat::Human => Box::new(builder.finish()),
        // The event's fields stand beside `level` and `message`, where one looks for `event_id`.
        LogFormat::Json => {
            Box::new(builder.json().flatten_event(true).with_span_list(false).finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What `log` writes under a filter and a format.
    fn written(
        format: LogFormat,
        environment: impl Fn(&'static str) -> Option<String>,
        log: impl FnOnce(),
    ) -> String {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let writer = buffer.clone();
        let writer = move || Shared(writer.clone());
        tracing::subscriber::with_default(
            subscriber(format, filter(environment).unwrap(), false, writer),
            log,
        );
        let bytes = buffer.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn some_lines() {
        tracing::info!(target: "surehook::worker", event_id = "0199", attempt = 2, "delivered\nforged");
        tracing::debug!(target: "surehook::worker", "too fine");
        tracing::info!(target: "hyper", "a library's header");
        tracing::warn!(target: "sqlx", "a library's trouble");
    }

    #[test]
    fn libraries_speak_only_of_trouble() {
        let lines = written(LogFormat::Human, |_| None, some_lines);
        assert!(
            lines.contains("event_id=\"0199\"") && lines.contains("a library's trouble"),
            "{lines}"
        );
        assert!(!lines.contains("too fine") && !lines.contains("a library's header"), "{lines}");
    }

    #[test]
    fn json_is_one_object_a_line_with_the_fields_on_top() {
        let lines = written(LogFormat::Json, |_| None, some_lines);
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["event_id"], &lines[0]["attempt"]), (&"0199".into(), &2.into()));
        assert_eq!(
            (&lines[0]["level"], &lines[0]["message"]),
            (&"INFO".into(), &"delivered\nforged".into())
        );
    }

    #[test]
    fn the_first_filter_that_is_not_empty_counts() {
        let both = |variable| {
            Some(if variable == "SUREHOOK_LOG_FILTER" { "hyper=info" } else { "off" }.to_owned())
        };
        assert!(written(LogFormat::Human, both, some_lines).contains("a library's header"));
        let empty = |variable| {
            Some(if variable == "SUREHOOK_LOG_FILTER" { " " } else { "debug" }.to_owned())
        };
        assert!(written(LogFormat::Human, empty, some_lines).contains("too fine"));
    }

    #[test]
    fn a_wrong_filter_is_told_by_its_variable() {
        let told = filter(|variable| (variable == "RUST_LOG").then(|| "surehook=loud".to_owned()))
            .unwrap_err()
            .to_string();
        assert!(told.starts_with("RUST_LOG in the environment is not a filter"), "{told}");
    }
}
