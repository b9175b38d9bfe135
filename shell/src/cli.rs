//! The command line: what can be asked of the program, and the exit codes it answers with. `check` is answered here;
//! the others are only described, and done by the modules that they are named after.

use crate::config::{Config, ConfigError, DEFAULT_FILE, Overrides};
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The exit code when what was asked is done; `serve` has drained.
pub const DONE: u8 = 0;
/// The exit code when it could not be done, or a part of the service has ended that must not.
pub const FAILED: u8 = 1;
/// The exit code when the command line or the configuration is wrong. Nothing was begun.
pub const MISTAKE: u8 = 2;

const EXIT_CODES: &str = "Exit codes:\n  \
    0  done; `serve` was told to stop and has drained\n  \
    1  failed: while running, or because the service that was asked refuses or does not answer\n  \
    2  the command line or the configuration is wrong, and nothing was begun\n\n\
    Each option stands over its variable in the environment, which stands over the configuration file.\n\
    SUREHOOK_LOG_FILTER, or else RUST_LOG, tells what is logged; by default `warn,surehook=info,surehook_core=info`.";

/// Takes webhooks in, makes each one durable before it answers, and delivers it until the downstream takes it
#[derive(Parser)]
#[command(name = "surehook", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What is asked.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked of the program.
#[derive(Subcommand)]
pub enum Command {
    /// Run the service until it is told to stop by SIGTERM, SIGINT or SIGHUP
    Serve(ConfigArgs),
    /// Try it: a service with a database in a temporary folder and a downstream that can be told to fail
    Demo(DemoArgs),
    /// Say what is wrong with a configuration, by line and column, or what would run
    Check(ConfigArgs),
    /// Bring a database to this program's schema
    Migrate(ConfigArgs),
    /// Copy a SQLite database to a new file, whether it is served or not
    Backup(CopyArgs),
    /// Put a backup in the place of a SQLite database that is not served; the old database is kept beside it
    Restore(CopyArgs),
    /// Look for events, at one event, or send dead letters again
    Events {
        /// Which service.
        #[command(flatten)]
        service: ServiceArgs,
        /// What to do.
        #[command(subcommand)]
        command: EventsCommand,
    },
    /// Show of each source what is waiting, how far it is behind, and whether it is paused
    Sources(ServiceArgs),
    /// Whether a service runs, or with `--ready` whether it should be sent requests; for a container's health check
    Health {
        /// Which service.
        #[command(flatten)]
        service: ServiceArgs,
        /// Ask `/ready` and not `/health`
        #[arg(long)]
        ready: bool,
    },
    /// Hold a source back: it goes on accepting, and nothing of it is delivered until it is resumed
    Pause(SourceArgs),
    /// Let a paused source go on
    Resume(SourceArgs),
}

/// What can be done with events.
#[derive(Subcommand)]
pub enum EventsCommand {
    /// List events, newest first
    List(ListArgs),
    /// Show one event and its attempts
    Show {
        /// The event's id
        id: String,
    },
    /// Send one dead letter again, or all that match, oldest first; may be broken off and run again
    Redrive(RedriveArgs),
}

/// Which service is asked, and how it is told.
#[derive(Args)]
pub struct ServiceArgs {
    /// The service's address
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

/// A source, and which service is asked.
#[derive(Args)]
pub struct SourceArgs {
    /// The source's name
    pub source: String,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Which events are meant: those for which everything that is given holds.
#[derive(Args)]
pub struct Filters {
    /// Of this source
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// With this idempotency key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Dead-lettered for this reason: `permanent`, `exhausted` or `lost`
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// Whose last attempt was answered with this status code
    #[arg(long, value_name = "CODE")]
    pub status_code: Option<u16>,
    /// Received then or later: a time in RFC 3339, or how long ago, such as `2h`
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Received before then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// What is listed.
#[derive(Args)]
pub struct ListArgs {
    /// Which events.
    #[command(flatten)]
    pub filters: Filters,
    /// That stand here: `queued`, `processing`, `retrying`, `delivered` or `dead_lettered`
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
    /// So many at the most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// What is redriven.
#[derive(Args)]
pub struct RedriveArgs {
    /// The event's id
    #[arg(conflicts_with_all = ["source", "key", "reason", "status_code", "since", "until", "all", "dry_run", "rate"])]
    pub id: Option<String>,
    /// Which events.
    #[command(flatten)]
    pub filters: Filters,
    /// Not dead letters, but events that were delivered: they are sent once more, newest first
    #[arg(long, conflicts_with = "reason")]
    pub delivered: bool,
    /// Go on behind this event, as a run with `--delivered` said that was broken off
    #[arg(long, value_name = "ID", requires = "delivered", conflicts_with = "id")]
    pub after: Option<String>,
    /// All of all sources
    #[arg(long, conflicts_with_all = ["source", "key", "reason", "status_code", "since", "until"])]
    pub all: bool,
    /// Only say how many there are
    #[arg(long)]
    pub dry_run: bool,
    /// So many a second at the most, so that the downstream is not overrun again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
}

/// Where the configuration comes from.
#[derive(Args, Default)]
pub struct ConfigArgs {
    /// The configuration file [default: surehook.toml]
    #[arg(long, value_name = "FILE", env = "SUREHOOK_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// What stands over the file.
    #[command(flatten)]
    pub overrides: Overrides,
}

/// A copy of a database.
#[derive(Args)]
pub struct CopyArgs {
    /// The file of the copy
    pub file: PathBuf,
    /// Which database.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What the demo can be told.
#[derive(Args)]
pub struct DemoArgs {
    /// Where to serve HTTP
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where the built-in downstream listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub sink: SocketAddr,
}

impl ConfigArgs {
    /// The configuration of a service.
    ///
    /// # Errors
    ///
    /// Like [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.file(), &self.overrides)
    }

    /// The configuration for work that concerns no source.
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

/// What `serve` would run with these arguments, for a person.
///
/// # Errors
///
/// Everything that is wrong with the configuration.
pub fn check(args: &ConfigArgs) -> Result<String, ConfigError> {
    let config = args.load()?;
    Ok(format!("{} is right; `surehook serve` would run:\n\n{config}", args.file().display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_demo_listens_where_its_walk_says() {
        let cli = Cli::try_parse_from(["surehook", "demo"]).unwrap();
        let Command::Demo(DemoArgs { listen, sink }) = cli.command else {
            panic!("another command")
        };
        assert_eq!(
            (listen.to_string(), sink.to_string()),
            ("127.0.0.1:8080".to_owned(), "127.0.0.1:8081".to_owned())
        );
    }

    const DOCUMENTS: [&str; 2] =
        [include_str!("../../README.md"), include_str!("../../docs/operations.md")];

    /// What the documents call the program with: as code within a line, at a prompt, and on a line of its own.
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
    fn what_the_documents_call_can_be_called() {
        let documented = documented();
        assert!(documented.len() > 20, "{documented:?}");
        for command in documented {
            let words = command.split_whitespace().filter(|word| *word != "…");
            if let Err(error) = Cli::try_parse_from(words) {
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
                // What a flag sets that the file may set too is documented as a key.
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

    #[test]
    fn the_help_names_each_variable_and_no_value_of_one() {
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
                "MIGRATE_ON_START",
            ] {
                assert!(help.contains(&format!("[env: SUREHOOK_{variable}]")), "{help}");
            }
        }
    }
}
