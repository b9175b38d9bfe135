//! A configuration file of any bytes is accepted or rejected, without a panic. Each problem has a
//! place in the file, and accepted values are within the documented limits.

use std::sync::LazyLock;
use std::time::Duration;
use surehook::config::{
    Config, ConfigError, Overrides, Place, Secrets, SettingErrors, Source, limits,
};
use surehook::http::{Acknowledgement, Content};
use surehook_core::source::SourceName;

const NAME: &str = "surehook.toml";
/// What replaces each reference. No input contains it by chance.
const SECRET: &str = "s3cr3tq7w1";

/// What every configuration shows. A password can be a part of it by chance.
static ALWAYS_SHOWN: LazyLock<String> = LazyLock::new(|| {
    let least = b"[sources.s]\ndestination = \"http://h/\"\n";
    let config = Config::parse(NAME, least, &Overrides::default(), &Known);
    config.map_or_else(|error| panic!("{error}"), |config| format!("{config} {config:?}"))
});

/// Each variable and each file whose name does not begin with `NO` has the same value.
struct Known;

impl Secrets for Known {
    fn variable(&self, name: &str) -> Result<String, String> {
        if name.starts_with("NO") { Err("is not set".to_owned()) } else { Ok(SECRET.to_owned()) }
    }

    fn file(&self, path: &str) -> Result<String, String> {
        self.variable(path).map(|value| format!("{value}\n"))
    }
}

/// Reads `data` as a configuration.
///
/// # Panics
///
/// If an accepted configuration breaks a limit or shows a password, if a rejection has no place or no
/// reason, or if what replaced a reference is shown.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let is_hidden = |shown: String| {
        assert!(!shown.contains(SECRET) || text.contains(SECRET), "a secret is shown: {shown}");
    };
    match Config::parse(NAME, data, &Overrides::default(), &Known) {
        Ok(config) => {
            is_hidden(format!("{config} {config:?} {:?} {}", config.sources, config.database));
            taken(&config, &text);
        }
        Err(ConfigError::Wrong(problems)) => {
            is_hidden(format!("{problems} {problems:?}"));
            refused(&problems, &text);
        }
        Err(error) => panic!("this error cannot come from the content of a file: {error}"),
    }
}

fn taken(config: &Config, text: &str) {
    let within = |least: Duration, value: Duration, most: Duration| {
        assert!(least <= value && value <= most, "{value:?} was accepted");
    };
    let count = |value: usize, most: usize| {
        assert!((1..=most).contains(&value), "{value} was accepted, but the limit is {most}");
    };
    let (millisecond, second) = (Duration::from_millis(1), Duration::from_secs(1));
    within(Duration::ZERO, config.drain_timeout, limits::DRAIN_TIMEOUT);
    within(Duration::ZERO, config.shutdown_grace, limits::SHUTDOWN_GRACE);
    within(second, config.retention.delivered, limits::RETENTION);
    within(second, config.retention.dead_lettered, limits::RETENTION);
    let intake = &config.intake;
    within(millisecond, intake.header_timeout, limits::REQUEST_TIMEOUT);
    within(millisecond, intake.idle_timeout, limits::REQUEST_TIMEOUT);
    within(millisecond, intake.body_timeout, limits::REQUEST_TIMEOUT);
    count(intake.max_body, limits::MAX_BODY);
    count(intake.max_queued, limits::MAX_QUEUED);
    count(intake.max_queued_bytes, limits::MAX_QUEUED_BYTES);
    count(config.worker.max_held_bytes, limits::MAX_HELD_BYTES);
    count(intake.max_connections, limits::MAX_CONNECTIONS);
    assert!(
        intake.max_body <= intake.max_queued_bytes,
        "a body of the maximum size does not fit into the queue"
    );
    let path = config.database.secret().split_once(':').map_or("", |(_, path)| path);
    assert!(!path.contains(":memory:"), "a database that is lost on exit was accepted: {path}");
    assert!(!config.database.to_string().is_empty());
    assert!(!config.sources.is_empty(), "a configuration without sources was accepted");
    let shown = format!("{config:?}");
    for (name, source) in &config.sources {
        assert_eq!(SourceName::parse(name.as_str()).as_ref(), Ok(name));
        let Source { destination, headers, max_body, policy, acknowledgement, .. } = source;
        let mut set = http::HeaderMap::new();
        headers.set_in(&mut set);
        assert!(set.len() <= limits::HEADERS, "{} headers were accepted", set.len());
        count(*max_body, limits::MAX_BODY.min(intake.max_queued_bytes));
        assert!(acknowledgement.status.is_success(), "{acknowledgement:?} was accepted");
        if let Content::Fixed { body, .. } = &acknowledgement.content {
            let most = if Acknowledgement::is_without_body(acknowledgement.status) {
                0
            } else {
                limits::ANSWER_BODY
            };
            assert!(body.len() <= most, "an answer of {} bytes was accepted", body.len());
        }
        within(millisecond, policy.timeout, limits::TIMEOUT);
        within(Duration::ZERO, policy.backoff.initial_delay, policy.backoff.max_delay);
        within(Duration::ZERO, policy.backoff.max_delay, limits::DELAY);
        assert!(
            (1.0..=limits::FACTOR).contains(&policy.backoff.factor),
            "factor {} was accepted",
            policy.backoff.factor
        );
        assert!(
            (1..=limits::CONCURRENCY).contains(&policy.concurrency),
            "concurrency {} was accepted",
            policy.concurrency
        );
        assert!(
            (1..=limits::MAX_ATTEMPTS).contains(&policy.max_attempts),
            "max_attempts {} was accepted",
            policy.max_attempts
        );
        let url = destination.secret();
        let mut codes = policy.retry_on.iter().chain(&policy.dead_letter_on);
        assert!(codes.all(|code| (100..=999).contains(code)), "{policy:?}");
        assert!(
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some_and(|host| !host.is_empty())
        );
        // A password must not be shown. It is checked only if it appears once in the file, is long
        // enough not to match by chance, and is no part of a word that is always shown.
        let hidden = url.password().filter(|password| {
            password.len() >= 6
                && text.matches(password).count() == 1
                && !ALWAYS_SHOWN.contains(password)
        });
        if let Some(password) = hidden {
            assert!(
                !shown.contains(password) && !destination.to_string().contains(password),
                "a password is shown: {shown}"
            );
        }
    }
}

fn refused(problems: &SettingErrors, text: &str) {
    assert!(!problems.problems.is_empty(), "the configuration was rejected without a problem");
    let lines: Vec<&str> = text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').collect();
    for problem in &problems.problems {
        assert!(!problem.message.trim().is_empty(), "{problem:?} has no message");
        match problem.place {
            Place::At { line, column } => {
                let found =
                    line.checked_sub(1).and_then(|line| lines.get(line)).unwrap_or_else(|| {
                        panic!("the line of {problem:?} is after the end of the file")
                    });
                assert!(
                    (1..=found.chars().count() + 1).contains(&column),
                    "the column of {problem:?} is after the end of its line"
                );
            }
            Place::File => assert_eq!(
                problem.key, "sources",
                "only a missing section may have no place: {problem:?}"
            ),
            Place::Override { .. } => {
                panic!("a problem of an override, but there are no overrides: {problem:?}")
            }
        }
    }
    assert!(problems.to_string().lines().count() >= problems.problems.len());
}
