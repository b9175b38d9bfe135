//! Writes log lines to standard error, as text or as JSON. The other modules decide what is logged.
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

/// The filter if none is configured. Libraries log only warnings and errors, because at finer
/// levels some of them would log headers.
pub const DEFAULT_FILTER: &str = "warn,surehook=info,surehook_core=info";

/// The environment variables that can contain a filter. The first one that is set and not empty is
/// used.
pub const FILTER_VARIABLES: [&str; 2] = ["SUREHOOK_LOG_FILTER", "RUST_LOG"];

/// Timeout for writing the last lines when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The log of this process. Keep it until the end, and call [`Logs::close`] then.
#[must_use]
pub struct Logs {
    lines: Lines,
}

impl Logs {
    /// Writes a text to the log output unchanged, after the lines that are queued.
    pub fn say(&self, text: &str) {
        self.lines.push(format!("{}\n", text.trim_end()).into_bytes());
    }

    /// Waits until the last lines are written, but at most one second, because the output may be
    /// blocked.
    pub fn close(self) {
        self.lines.flush(FLUSH_TIMEOUT);
    }
}

/// Starts logging for the whole process, including panics.
///
/// # Errors
///
/// [`LogsError`] if the filter in the environment is invalid, if logging was started before, or if
/// the log thread cannot be started.
pub fn init(format: LogFormat) -> Result<Logs, LogsError> {
    let filter = filter(|variable| {
        std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned())
    })?;
    // https://no-color.org: set and not empty.
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let tell = |lost| {
        tracing::warn!(lost, "log lines were lost; the log could not be written or was not read");
    };
    let lines =
        Lines::start(io::stderr(), metrics::log_lines_lost(), tell).map_err(LogsError::Thread)?;
    tracing_subscriber::util::SubscriberInitExt::try_init(subscriber(
        format,
        filter,
        colour,
        lines.clone(),
    ))
    .map_err(|error| LogsError::Started { reason: error.to_string() })?;
    // The panic hook of the standard library writes to standard error directly, and can block.
    panic::set_hook(Box::new(log_panic));
    Ok(Logs { lines })
}

/// The milliseconds of a duration, for a field of a log line or of JSON. A number of 128 bits would be
/// written as text.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Logs a panic, with a backtrace if `RUST_BACKTRACE` enables it.
pub fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    tracing::error!(
        thread = std::thread::current().name(),
        location = panic.location().map(tracing::field::display),
        error = panic.payload_as_str(),
        backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(&backtrace)),
        "panicked; this is a bug in Surehook, report it"
    );
}

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogsError {
    /// The filter is invalid.
    #[error(
        "the environment variable {variable} is not a valid log filter ({reason}): use for example `{DEFAULT_FILTER}`"
    )]
    Filter {
        /// The environment variable that contains the filter.
        variable: &'static str,
        reason: String,
    },
    /// Another logger is already installed in this process.
    #[error("logging is already started: {reason}")]
    Started { reason: String },
    /// The thread that writes the log cannot be started.
    #[error("cannot start the log thread: {0}")]
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
        // The event's fields are beside `level` and `message`, so that `event_id` is at the top
        // level.
        LogFormat::Json => {
            Box::new(builder.json().flatten_event(true).with_span_list(false).finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// The output of `log` with this format and environment.
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
        tracing::warn!(target: "sqlx", "a library's warning");
    }

    #[test]
    fn libraries_log_only_warnings_and_errors() {
        let lines = written(LogFormat::Human, |_| None, some_lines);
        assert!(
            lines.contains("event_id=\"0199\"") && lines.contains("a library's warning"),
            "{lines}"
        );
        assert!(!lines.contains("too fine") && !lines.contains("a library's header"), "{lines}");
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top_level() {
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
    fn the_first_filter_that_is_not_empty_is_used() {
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
    fn an_invalid_filter_is_reported_with_its_variable() {
        let told = filter(|variable| (variable == "RUST_LOG").then(|| "surehook=loud".to_owned()))
            .unwrap_err()
            .to_string();
        assert!(
            told.starts_with("the environment variable RUST_LOG is not a valid log filter"),
            "{told}"
        );
    }
}
