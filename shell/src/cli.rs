//! The command line: commands, options and exit codes. `check`, `completions` and `man` run here. The
//! other commands run in the modules that have their names.

mod examples;
mod tips;

use crate::config::producers::{self, UnknownProducer};
use crate::config::{Config, ConfigError, DEFAULT_FILE, Destination, Overrides};
use crate::logs;
use crate::version;
use crate::visible::{pretty_json, quoted};
use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use surehook_core::event::{Reason, Status};
use surehook_core::id::EventId;
use surehook_core::source::{SourceName, SourceNameError};

/// Exit code of success; `serve` has drained.
pub const DONE: u8 = 0;
/// Exit code of a failure: the command failed, or an essential part of the service has ended.
pub const FAILED: u8 = 1;
/// Exit code of an invalid command line or configuration. Nothing was started.
pub const MISTAKE: u8 = 2;
/// Exit code of `sources --undelivered` while there are undelivered events.
pub const UNDELIVERED: u8 = 3;

const EXIT_CODES: &str = "Exit codes:\n  \
    0  success; `serve` has drained after a signal\n  \
    1  failure at run time, or the service refused the request or did not respond\n  \
    2  invalid command line or configuration, or a value that the service does not know\n  \
    3  `sources --undelivered`: there are undelivered events\n\n\
    Precedence: flag, environment variable, configuration file, default.\n\
    SUREHOOK_LOG_FILTER, or else RUST_LOG, filters the log. Default: `warn,surehook=info,surehook_core=info`.";

/// Accepts webhooks, stores each one durably before it responds, and delivers it until the
/// downstream accepts it
#[derive(Parser)]
#[command(name = "surehook", version = version::LINE, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the program.
#[derive(Subcommand)]
pub enum Command {
    /// Run the service until SIGTERM or SIGINT; SIGHUP reads the configuration again
    #[command(after_help = examples::SERVE)]
    Serve(ConfigArgs),
    /// Try surehook: a service with a temporary database and a built-in downstream that fails on
    /// request
    #[command(after_help = examples::DEMO)]
    Demo(DemoArgs),
    /// Check a configuration: print all errors by line and column, or what would run
    #[command(after_help = examples::CHECK)]
    Check(CheckArgs),
    /// List the producers that a source can name, or print the settings of one of them and what is
    /// known of it
    #[command(after_help = examples::PRODUCERS)]
    Producers {
        /// The producer's name
        name: Option<String>,
    },
    /// Migrate a database to the schema of this program
    #[command(after_help = examples::MIGRATE)]
    Migrate(ConfigArgs),
    /// Copy a SQLite database to a new file, whether or not it is being served
    #[command(after_help = examples::BACKUP)]
    Backup(CopyArgs),
    /// Replace a SQLite database with a backup, while no process serves it; the old database is
    /// kept beside it
    #[command(after_help = examples::RESTORE)]
    Restore(CopyArgs),
    /// List events, show one event and its request, send one elsewhere, redrive or discard events
    #[command(after_help = examples::EVENTS)]
    Events {
        #[command(flatten)]
        service: ServiceArgs,
        #[command(subcommand)]
        command: EventsCommand,
    },
    /// Group the failures of events that are not delivered: by source, result and beginning of the
    /// response
    #[command(after_help = examples::SUMMARY)]
    Summary(SummaryArgs),
    /// Show each source: waiting events, age of the oldest due event, how long its retries last, and
    /// whether it is paused
    #[command(after_help = examples::SOURCES)]
    Sources(SourcesArgs),
    /// Check whether a service runs, or with `--ready` whether it is ready for requests; for the
    /// health check of a container
    #[command(after_help = examples::HEALTH)]
    Health {
        #[command(flatten)]
        service: ServiceArgs,
        /// Check `/ready` instead of `/health`
        #[arg(long)]
        ready: bool,
    },
    /// Pause a source: it accepts webhooks, but its events are not delivered until it is resumed
    #[command(after_help = examples::PAUSE)]
    Pause(SourceArgs),
    /// Resume a paused source
    #[command(after_help = examples::RESUME)]
    Resume(SourceArgs),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all commands to a folder
    #[command(after_help = examples::MAN)]
    Man {
        /// An existing folder
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

/// The commands for events.
#[derive(Subcommand)]
pub enum EventsCommand {
    /// List events, newest first
    #[command(after_help = examples::LIST)]
    List(ListArgs),
    /// Show one event, its attempts and their responses
    #[command(after_help = examples::SHOW)]
    Show {
        /// The event's id
        #[arg(value_parser = event_id)]
        id: String,
        /// Show the stored request too, without its body; with `--json`, only the request
        #[arg(long)]
        request: bool,
    },
    /// Print the body of one event, byte for byte; on a terminal, control characters are escaped
    #[command(after_help = examples::BODY)]
    Body {
        /// The event's id
        #[arg(value_parser = event_id)]
        id: String,
    },
    /// Send the stored request of one event from this machine to another URL, for example a service
    /// under repair, and print the response; changes nothing in Surehook
    #[command(after_help = examples::SEND)]
    Send(SendArgs),
    /// Redrive (send again) one dead letter, or all that match, oldest first; can be interrupted
    /// and run again
    #[command(after_help = examples::REDRIVE)]
    Redrive(RedriveArgs),
    /// Discard one dead letter, or all that match: they are kept, but no longer counted, and not
    /// redriven with others
    ///
    /// With the name of a source that is not configured, this also discards its waiting events.
    #[command(after_help = examples::DISCARD)]
    Discard(DiscardArgs),
}

/// The service that a command calls, and its output format.
#[derive(Args)]
pub struct ServiceArgs {
    /// Address of the service
    #[arg(
        long,
        value_name = "URL",
        env = "SUREHOOK_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    pub url: String,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// The options of `sources`, and the service that it calls.
#[derive(Args)]
pub struct SourcesArgs {
    /// Show only the sources with undelivered events, and exit with code 3 if there are any, or else
    /// with 0: whether the database still has something to deliver
    #[arg(long)]
    pub undelivered: bool,
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// The options of `summary`, and the service that it calls.
#[derive(Args)]
pub struct SummaryArgs {
    /// Of this source
    #[arg(long, value_name = "NAME", value_parser = source_name)]
    pub source: Option<String>,
    /// Failed at this time or later, as for `events list`
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// A source, and the service that a command calls.
#[derive(Args)]
pub struct SourceArgs {
    /// The source's name
    #[arg(value_parser = source_name)]
    pub source: String,
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Filters for events. An event must match all of them.
#[derive(Args)]
pub struct Filters {
    /// Of this source
    #[arg(long, value_name = "NAME", value_parser = source_name)]
    pub source: Option<String>,
    /// With exactly this idempotency key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Dead-lettered for this reason
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    pub reason: Option<String>,
    /// With this status code in the last attempt
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(100..=999))]
    pub status_code: Option<u16>,
    /// Received at this time or later: an age such as `2h`, a date such as `2026-11-28`, a time such as
    /// `yesterday 14:00` or `2026-11-28 14:00`, in UTC
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Received before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// The options of `events list`.
#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub filters: Filters,
    /// With this status
    #[arg(long, value_name = "STATUS", value_parser = PossibleValuesParser::new(Status::ALL.map(Status::as_str)))]
    pub status: Option<String>,
    /// Continue after this event, which the list before printed
    #[arg(long, value_name = "ID")]
    pub after: Option<EventId>,
    /// Maximum number of events
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// The options of `events send`.
#[derive(Args)]
pub struct SendArgs {
    /// The event's id
    #[arg(value_parser = event_id)]
    pub id: String,
    /// The URL to send it to, as a worker sends it to a destination
    #[arg(long, value_name = "URL")]
    pub to: Destination,
    /// How long to wait for the response
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub timeout: humantime::Duration,
}

/// The options of `events redrive`.
#[derive(Args)]
pub struct RedriveArgs {
    /// The event's id
    #[arg(value_parser = event_id, conflicts_with_all = ["source", "key", "reason", "status_code", "since", "until", "all", "dry_run", "rate"])]
    pub id: Option<String>,
    #[command(flatten)]
    pub filters: Filters,
    /// Redrive delivered events instead of dead letters, newest first: their downstreams receive
    /// them again
    #[arg(long, conflicts_with = "reason")]
    pub delivered: bool,
    /// Continue after this event, which a failed run with `--delivered` printed
    #[arg(long, value_name = "ID", value_parser = event_id, requires = "delivered", conflicts_with = "id")]
    pub after: Option<String>,
    /// Select all events of all sources
    #[arg(long, conflicts_with_all = ["source", "key", "reason", "status_code", "since", "until"])]
    pub all: bool,
    /// Only count the events
    #[arg(long)]
    pub dry_run: bool,
    /// Maximum number of events per second, so that the downstream is not overloaded again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
}

/// The options of `events discard`.
#[derive(Args)]
pub struct DiscardArgs {
    /// The event's id
    #[arg(value_parser = event_id, conflicts_with_all = ["source", "key", "reason", "status_code", "since", "until", "all", "dry_run"])]
    pub id: Option<String>,
    #[command(flatten)]
    pub filters: Filters,
    /// Select all dead letters of all sources
    #[arg(long, conflicts_with_all = ["source", "key", "reason", "status_code", "since", "until"])]
    pub all: bool,
    /// Only count the events
    #[arg(long)]
    pub dry_run: bool,
}

/// The file and the overrides of a configuration.
#[derive(Args, Default)]
pub struct ConfigArgs {
    /// The configuration file [default: surehook.toml]
    #[arg(long, value_name = "FILE", env = "SUREHOOK_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub overrides: Overrides,
}

/// The options of `check`.
#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print JSON, for a configuration with errors too
    #[arg(long)]
    pub json: bool,
}

/// The options of `backup` and `restore`.
#[derive(Args)]
pub struct CopyArgs {
    /// The backup file
    pub file: PathBuf,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// The options of `demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Address of the HTTP listener
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address of the built-in downstream
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub sink: SocketAddr,
}

impl ConfigArgs {
    /// Loads the configuration of a service.
    ///
    /// # Errors
    ///
    /// Like [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.file(), &self.overrides)
    }

    /// Loads the configuration of a command that needs no source.
    ///
    /// # Errors
    ///
    /// Like [`Config::load_without_sources`].
    pub fn load_without_sources(&self) -> Result<Config, ConfigError> {
        Config::load_without_sources(self.config.as_deref(), &self.overrides)
    }

    fn file(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }
}

/// Parses the words of a command line, the program's name first.
///
/// # Errors
///
/// An error, help or the version, as clap prints them, with a tip for words of other programs.
pub fn parse(
    words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words).map_err(tips::added)
}

/// Checks that a text can be the name of a source.
fn source_name(text: &str) -> Result<String, SourceNameError> {
    SourceName::parse(text).map(|name| name.to_string())
}

/// Checks that a text is an event id.
fn event_id(text: &str) -> Result<String, String> {
    match text.parse::<EventId>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "{error}. An id of the producer is found with `surehook events list --key {}`",
            quoted(text)
        )),
    }
}

/// Variables of the environment that begin with `SUREHOOK_` and have no meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(|name| unknown_variable(name)).collect::<Vec<_>>().join("\n"))]
pub struct UnknownVariables(Vec<String>);

/// Refuses variables that begin with `SUREHOOK_` and that the program does not read: otherwise a
/// misspelled setting would have no effect, and nothing would report it.
///
/// # Errors
///
/// [`UnknownVariables`].
pub fn check_environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(), UnknownVariables> {
    let known = variables_read();
    let unknown: BTreeSet<String> = variables
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(PREFIX) && !known.contains(name))
        .filter(|(name, value)| !is_of_a_service(name, &value.to_string_lossy()))
        .map(|(name, _)| name)
        .collect();
    if unknown.is_empty() { Ok(()) } else { Err(UnknownVariables(unknown.into_iter().collect())) }
}

const PREFIX: &str = "SUREHOOK_";

/// The variables that begin with `SUREHOOK_` and that some command reads.
fn variables_read() -> BTreeSet<String> {
    fn add(command: &clap::Command, names: &mut BTreeSet<String>) {
        let of_arguments = command.get_arguments().filter_map(clap::Arg::get_env);
        names.extend(of_arguments.map(|name| name.to_string_lossy().into_owned()));
        command.get_subcommands().for_each(|command| add(command, names));
    }
    let mut names: BTreeSet<String> = logs::FILTER_VARIABLES.map(str::to_owned).into();
    add(&Cli::command(), &mut names);
    names.retain(|name| name.starts_with(PREFIX));
    names
}

/// Whether Kubernetes sets this variable in each container, because there is a service whose name
/// begins with `surehook`: `SUREHOOK_SERVICE_HOST`, `SUREHOOK_PORT` with a URL as its value,
/// `SUREHOOK_PORT_8080_TCP_ADDR` and others.
fn is_of_a_service(name: &str, value: &str) -> bool {
    let numbered = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name.split("_PORT_").skip(1).any(numbered)
}

fn unknown_variable(name: &str) -> String {
    let known = variables_read();
    let nearest = known.iter().map(|known| (strsim::osa_distance(known, name), known)).min();
    let advice = match nearest {
        Some((distance, known)) if distance <= (known.len() - PREFIX.len()).max(6) / 3 => {
            format!("did you mean `{known}`?")
        }
        Some(_) | None => {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            format!("the variables are {}", known.join(", "))
        }
    };
    format!("`{name}` in the environment: unknown variable; {advice}")
}

/// Returns a summary of what `serve` would run with these arguments, or the errors of the
/// configuration: a text for standard output, and the exit code.
///
/// # Errors
///
/// If the configuration is not valid; with all errors. With `--json` they are the text.
pub fn check(args: &CheckArgs) -> Result<(String, u8), ConfigError> {
    let file = args.config.file().display().to_string();
    match (args.config.load(), args.json) {
        (Ok(config), false) => {
            Ok((format!("{file} is valid; `surehook serve` would run:\n\n{config}"), DONE))
        }
        (Ok(config), true) => Ok((pretty(&config.described(&file)), DONE)),
        (Err(error), false) => Err(error),
        (Err(error), true) => Ok((pretty(&error.described(&file)), MISTAKE)),
    }
}

fn pretty(value: &serde_json::Value) -> String {
    pretty_json(value).unwrap_or_default()
}

/// Returns a script that completes the command line in a shell.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "surehook", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Returns the manual page of the program, or writes the pages of all commands to a folder and
/// returns their number.
///
/// # Errors
///
/// If a page cannot be written.
pub fn man(folder: Option<&Path>) -> io::Result<String> {
    let command = Cli::command();
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return Ok(String::from_utf8_lossy(&page).into_owned());
    };
    clap_mangen::generate_to(command, folder)?;
    Ok(format!("{} manual pages are in {}\n", pages(folder)?, folder.display()))
}

/// The number of this program's manual pages in a folder.
fn pages(folder: &Path) -> io::Result<usize> {
    let mut pages = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let is_page = name.to_str().is_some_and(|name| {
            name.starts_with("surehook")
                && Path::new(name).extension().is_some_and(|end| end == "1")
        });
        pages += usize::from(is_page);
    }
    Ok(pages)
}

/// Returns the list of all producers, or the settings of one and what is known of it.
///
/// # Errors
///
/// [`UnknownProducer`] if there is no producer of this name.
pub fn producers(name: Option<&str>) -> Result<String, UnknownProducer> {
    match name {
        None => Ok(producers::list()),
        Some(name) => producers::find(name).map(ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_value_that_is_no_event_id_is_refused_with_a_way_to_find_the_event() {
        for (word, told) in [
            ("evt_1PqXk2Lz", "`surehook events list --key 'evt_1PqXk2Lz'`"),
            ("it's new", "`surehook events list --key 'it'\\''s new'`"),
        ] {
            for command in ["show", "body", "redrive"] {
                let error = parse(["surehook", "events", command, word]).err().unwrap();
                let text = error.to_string();
                assert!(text.contains(told) && text.contains("an event id is a UUID"), "{text}");
                assert_eq!(error.exit_code(), i32::from(MISTAKE));
            }
        }
    }

    #[test]
    fn each_shell_gets_a_script_that_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = completions(shell);
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            for word in ["redrive", "dry-run"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
            // The scripts of the other shells complete no values.
            let completes_values = matches!(shell, Shell::Bash | Shell::Zsh | Shell::Fish);
            assert_eq!(script.contains("dead_lettered"), completes_values, "{shell}");
        }
    }

    #[test]
    fn a_manual_page_is_printed_or_one_is_written_for_each_command() {
        let page = man(None).unwrap();
        assert!(page.contains(".TH surehook 1") && page.contains("surehook\\-events(1)"), "{page}");
        let folder = tempfile::tempdir().unwrap();
        let told = man(Some(folder.path())).unwrap();
        for name in ["surehook.1", "surehook-summary.1", "surehook-events-redrive.1"] {
            let page = std::fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(page.contains(".SH NAME"), "{name}: {page}");
        }
        let commands = Cli::command().get_subcommands().count();
        let written: usize = told.split(' ').next().unwrap().parse().unwrap();
        assert!(written > commands, "{told}");
        assert!(man(Some(Path::new("/nowhere"))).is_err());
    }

    #[test]
    fn the_demo_listens_on_the_documented_addresses() {
        let cli = Cli::try_parse_from(["surehook", "demo"]).unwrap();
        let Command::Demo(DemoArgs { listen, sink }) = cli.command else {
            panic!("parsed as another command")
        };
        assert_eq!(
            (listen.to_string(), sink.to_string()),
            ("127.0.0.1:8080".to_owned(), "127.0.0.1:8081".to_owned())
        );
    }

    const DOCUMENTS: [&str; 2] =
        [include_str!("../../README.md"), include_str!("../../docs/operations.md")];

    /// An event's id, where a document has the placeholder `ID`.
    const AN_ID: &str = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e";

    /// The commands in the documents: inline code, lines at a prompt, and lines of code blocks.
    fn documented() -> Vec<&'static str> {
        let code = DOCUMENTS
            .iter()
            .flat_map(|text| text.lines())
            .flat_map(|line| line.split('`').skip(1).step_by(2));
        let lines = DOCUMENTS
            .iter()
            .flat_map(|text| text.lines())
            .map(|line| line.trim_start_matches("$ "));
        let called = code
            .chain(lines)
            .filter(|text| text.starts_with("surehook "))
            .map(|text| text.split('#').next().unwrap_or(text));
        called.filter(|text| !text.contains('`')).collect()
    }

    #[test]
    fn every_documented_command_line_is_valid() {
        let documented = documented();
        assert!(documented.len() > 20, "{documented:?}");
        for command in documented {
            let words = command.split_whitespace().filter(|word| *word != "…");
            let words = words.map(|word| if word == "ID" { AN_ID } else { word });
            // Help and the version are printed, too, and are no mistakes.
            if let Err(error) = Cli::try_parse_from(words)
                && error.use_stderr()
            {
                panic!("`{command}`: {error}");
            }
        }
    }

    #[test]
    fn every_command_and_every_flag_is_documented() {
        fn check(command: &clap::Command, called: &str) {
            let documents = DOCUMENTS.concat();
            for flag in command
                .get_arguments()
                .filter_map(clap::Arg::get_long)
                .filter(|flag| !matches!(*flag, "help" | "version"))
            {
                // A flag that overrides a setting of the file is documented as that setting.
                let is_there = documents.contains(&format!("--{flag}"))
                    || documents.contains(&format!("`{}`", flag.replace('-', "_")));
                assert!(is_there, "`{called}` has `--{flag}`");
            }
            let mut below = command.get_subcommands().peekable();
            assert!(below.peek().is_some() || documents.contains(called), "`{called}`");
            below.for_each(|command| check(command, &format!("{called} {}", command.get_name())));
        }
        check(&Cli::command(), "surehook");
    }

    fn refused(variables: &[(&str, &str)]) -> Option<String> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        check_environment(variables).err().map(|error| error.to_string())
    }

    #[test]
    fn an_unknown_variable_is_refused_with_the_nearest_one() {
        for name in variables_read() {
            assert_eq!(refused(&[(&name, "x")]), None, "{name}");
        }
        assert_eq!(refused(&[("PATH", "/"), ("SUREHOOK", ""), ("NOT_SUREHOOK_X", "")]), None);
        assert_eq!(
            refused(&[("SUREHOOK_DATABSE", "postgres://u:hunter2@x"), ("SUREHOOK_LISTEN", "")]),
            Some(
                "`SUREHOOK_DATABSE` in the environment: unknown variable; did you mean `SUREHOOK_DATABASE`?"
                    .to_owned()
            )
        );
        let two = refused(&[("SUREHOOK_WHAT_EVER", ""), ("SUREHOOK_LOGS", "")]).unwrap();
        let (first, second) = two.split_once('\n').unwrap();
        assert!(first.ends_with("did you mean `SUREHOOK_LOG`?"), "{two}");
        assert!(
            second.starts_with("`SUREHOOK_WHAT_EVER`")
                && second.contains("the variables are SUREHOOK_CONFIG, SUREHOOK_DATABASE, "),
            "{two}"
        );
    }

    #[test]
    fn the_variables_of_a_kubernetes_service_are_ignored() {
        // https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
        let of_a_service = [
            ("SUREHOOK_SERVICE_HOST", "10.0.0.11"),
            ("SUREHOOK_SERVICE_PORT", "8080"),
            ("SUREHOOK_SERVICE_PORT_HTTP", "8080"),
            ("SUREHOOK_PORT", "tcp://10.0.0.11:8080"),
            ("SUREHOOK_PORT_8080_TCP", "tcp://10.0.0.11:8080"),
            ("SUREHOOK_PORT_8080_TCP_PROTO", "tcp"),
            ("SUREHOOK_INTAKE_PORT_8080_TCP_ADDR", "10.0.0.11"),
        ];
        assert_eq!(refused(&of_a_service), None);
        assert!(refused(&[("SUREHOOK_PORT", "8080")]).is_some());
        assert!(refused(&[("SUREHOOK_PORT_NAME", "8080")]).is_some());
    }

    #[test]
    fn the_help_shows_each_environment_variable_without_its_value() {
        for name in ["serve", "check", "migrate"] {
            let help =
                Cli::command().find_subcommand_mut(name).unwrap().render_long_help().to_string();
            for variable in [
                "CONFIG",
                "LISTEN",
                "OPERATOR_LISTEN",
                "OPERATOR_HOSTS",
                "DATABASE",
                "ROLE",
                "LOG",
                "DRAIN_TIMEOUT",
                "SHUTDOWN_GRACE",
                "MIGRATE_ON_START",
            ] {
                assert!(help.contains(&format!("[env: SUREHOOK_{variable}]")), "{help}");
            }
        }
    }
}
