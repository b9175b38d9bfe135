//! The progress of a command for many events: on standard error while the command runs, and only if
//! that is a terminal. The outcome is printed on standard output in any case.

use super::client::OperateError;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::time::Instant;

/// How long the matching events are counted before the first of them is changed. If they are more
/// than can be counted in this time, no total and no remaining time are shown.
const COUNTING: Duration = Duration::from_secs(2);

/// A run whose duration is printed with its outcome, because it is long enough to matter.
const WORTH_SAYING: Duration = Duration::from_secs(1);

/// The page after the given one: its number of events, and where the next one continues.
type Counted = Result<(u64, Option<String>), OperateError>;

pub(super) struct Progress {
    bar: ProgressBar,
    began: Instant,
}

impl Progress {
    /// Begins to show the progress of a command, unless it prints JSON. `of` is what happens to the
    /// events. `page` counts the events of a page without changing them; `None` if the command only
    /// counts them itself.
    pub(super) async fn begin(
        json: bool,
        of: &str,
        page: Option<impl AsyncFnMut(Option<String>) -> Counted>,
    ) -> Self {
        if json || !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), began: Instant::now() };
        }
        let bar = ProgressBar::new_spinner().with_style(style(of, false));
        bar.enable_steady_tick(Duration::from_millis(100));
        if let Some(page) = page
            && let Some(total) = total(page).await
        {
            bar.set_length(total);
            bar.set_style(style(of, true));
        }
        bar.reset();
        Self { bar, began: Instant::now() }
    }

    /// Shows the number of events until now.
    pub(super) fn reached(&self, events: u64) {
        self.bar.set_position(events);
    }

    /// Removes the line, and returns the end of the outcome: how long it took, if that is worth
    /// saying.
    pub(super) fn finish(self, events: u64) -> String {
        self.bar.finish_and_clear();
        said(events, self.began.elapsed())
    }

    /// Removes the line, because the command has failed.
    pub(super) fn abandon(&self) {
        self.bar.finish_and_clear();
    }
}

/// Counts all pages; `None` if that takes too long or fails.
async fn total(mut page: impl AsyncFnMut(Option<String>) -> Counted) -> Option<u64> {
    let ends = Instant::now() + COUNTING;
    let (mut total, mut next) = (0, None);
    loop {
        let (events, after) = tokio::time::timeout_at(ends, page(next)).await.ok()?.ok()?;
        total += events;
        if after.is_none() {
            return Some(total);
        }
        next = after;
    }
}

fn style(of: &str, has_total: bool) -> ProgressStyle {
    let template = template(of, has_total);
    let style = ProgressStyle::with_template(&template);
    style.unwrap_or_else(|_| ProgressStyle::default_spinner()).with_key(
        "rate",
        |state: &ProgressState, line: &mut dyn Write| {
            let _ = write!(line, "{:.0} per second", state.per_sec());
        },
    )
}

fn template(of: &str, has_total: bool) -> String {
    if has_total {
        format!("{{spinner}} {{pos}} of {{len}} {of}, {{rate}}, {{eta}} left")
    } else {
        format!("{{spinner}} {{pos}} {of}, {{rate}}")
    }
}

fn said(events: u64, took: Duration) -> String {
    if took < WORTH_SAYING {
        return String::new();
    }
    let whole = humantime::format_duration(Duration::from_secs(took.as_secs()));
    format!(" in {whole}, {:.0} per second", events as f64 / took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_pages_are_counted_within_the_time_limit() {
        let pages = async |next: Option<String>| {
            tokio::time::sleep(Duration::from_millis(600)).await;
            let page: u64 = next.map_or(1, |next| next.parse().unwrap());
            Ok((page, (page < 3).then(|| (page + 1).to_string())))
        };
        assert_eq!(total(pages).await, Some(6));
        let endless = async |next: Option<String>| {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Ok((500, next.or(Some("more".to_owned()))))
        };
        assert_eq!(total(endless).await, None);
        let broken = async |_: Option<String>| Err(OperateError::Refused("no".to_owned()));
        assert_eq!(total(broken).await, None, "the command itself reports the error");
    }

    #[test]
    fn the_line_has_the_total_the_rate_and_the_time_left() {
        for has_total in [true, false] {
            let template = template("dead letters redriven", has_total);
            assert!(ProgressStyle::with_template(&template).is_ok(), "{template}");
            for part in ["{len}", "{eta} left"] {
                assert_eq!(template.contains(part), has_total, "{template}");
            }
            assert!(template.contains("{pos}") && template.contains("{rate}"), "{template}");
        }
    }

    #[test]
    fn the_outcome_of_a_long_run_says_how_long_it_took() {
        assert_eq!(said(6, Duration::from_millis(999)), "");
        assert_eq!(said(3000, Duration::from_millis(12_500)), " in 12s, 240 per second");
    }
}
