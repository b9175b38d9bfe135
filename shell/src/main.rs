//! The program: reads the command line and hands over.

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use surehook::cli::{self, Cli, Command};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let code = match command {
        Command::Check(args) => match cli::check(&args) {
            Ok(summary) => say(std::io::stdout(), &summary, cli::DONE),
            Err(error) => say(std::io::stderr(), &error.to_string(), cli::MISTAKE),
        },
        // These are plugged in here: `args.load()` or `args.load_without_sources()`, `logs::init(config.log)`, then
        // the service, the demo or the migration. A configuration that is wrong is a `MISTAKE`, all else `FAILED`.
        Command::Serve(_) | Command::Demo(_) | Command::Migrate(_) => say(std::io::stderr(), "this build can only `check`", cli::FAILED),
    };
    ExitCode::from(code)
}

/// Writes and answers the exit code; whoever does not listen to the text still gets that.
fn say(mut to: impl Write, text: &str, code: u8) -> u8 {
    let _ = writeln!(to, "{}", text.trim_end());
    code
}
