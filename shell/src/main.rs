//! The program: parses the command line and runs the command.

use std::error::Error;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use surehook::cli::{self, Cli, Command, CopyArgs};
use surehook::config::LogFormat;
use surehook::operate::{self, OperateError, Output};
use surehook::serve::ServeError;
use surehook::{demo, logs, serve, visible};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(Cli { command }) => command,
        Err(error) => error.exit(),
    };
    if let Err(error) = cli::check_environment(std::env::vars_os()) {
        return ExitCode::from(mistake(&error));
    }
    let code = match command {
        Command::Check(args) => match cli::check(&args) {
            Ok((text, code)) => shown(&text, code),
            Err(error) => mistake(&error),
        },
        Command::Completions { shell } => written(&cli::completions(shell)),
        Command::Man { folder } => match cli::man(folder.as_deref()) {
            Ok(text) => written(&text),
            Err(error) => {
                let error = format!("surehook: the manual pages were not written: {error}");
                say(std::io::stderr(), &error, cli::FAILED)
            }
        },
        Command::Producers { name } => match cli::producers(name.as_deref()) {
            Ok(text) => shown(&text, cli::DONE),
            Err(error) => mistake(&error),
        },
        Command::Serve(args) => match args.load() {
            Ok(config) => run(
                config.log,
                serve::serve(config, move || args.load(), |_| {}),
                ServeError::is_mistake,
            ),
            Err(error) => mistake(&error),
        },
        Command::Migrate(args) => match args.load_without_sources() {
            Ok(config) => run(config.log, serve::migrate(config), ServeError::is_mistake),
            Err(error) => mistake(&error),
        },
        Command::Backup(CopyArgs { file, config }) => match config.load_without_sources() {
            Ok(config) => run(
                config.log,
                async move { serve::backup(config, &file).await },
                ServeError::is_mistake,
            ),
            Err(error) => mistake(&error),
        },
        Command::Restore(CopyArgs { file, config }) => match config.load_without_sources() {
            Ok(config) => run(
                config.log,
                async move { serve::restore(config, &file).await },
                ServeError::is_mistake,
            ),
            Err(error) => mistake(&error),
        },
        Command::Events { service, command } => ask(operate::events(&command, &service)),
        Command::Summary(args) => ask(operate::summary(&args)),
        Command::Sources(args) => ask(operate::sources(&args)),
        Command::Health { service, ready } => ask(operate::health(ready, &service)),
        Command::Pause(args) => ask(operate::pause(&args.source, true, &args.service)),
        Command::Resume(args) => ask(operate::pause(&args.source, false, &args.service)),
        Command::Demo(args) => {
            run(LogFormat::Human, async move { demo::run(&args).await }, |_| false)
        }
    };
    ExitCode::from(code)
}

/// Runs a command that calls a running service, prints the result, and returns the exit code.
fn ask(asked: impl Future<Output = Result<impl Into<Output>, OperateError>>) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return say(std::io::stderr(), &format!("cannot start: {error}"), cli::FAILED);
        }
    };
    match runtime.block_on(asked).map(Into::into).and_then(print) {
        Ok(code) => code,
        Err(error) if error.is_mistake() => mistake(&error),
        Err(error) => say(std::io::stderr(), &format!("surehook: {error}"), cli::FAILED),
    }
}

/// Prints the result of a command and returns the exit code. Bytes are escaped only on a terminal.
fn print(output: Output) -> Result<u8, OperateError> {
    Ok(match output {
        Output::Text(text) => shown(&text, cli::DONE),
        Output::Failed(text) => shown(&text, cli::FAILED),
        Output::Undelivered(text) => shown(&text, cli::UNDELIVERED),
        Output::Bytes(bytes) if std::io::stdout().is_terminal() => {
            shown(operate::for_terminal(&bytes)?, cli::DONE)
        }
        Output::Bytes(bytes) => written(&bytes),
    })
}

/// Writes bytes unchanged and returns the exit code.
fn written(bytes: &(impl AsRef<[u8]> + ?Sized)) -> u8 {
    let mut out = std::io::stdout();
    match out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
        Ok(()) => cli::DONE,
        // The reader has seen enough, for example `head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => cli::DONE,
        Err(error) => {
            let error = format!("surehook: the output was not written: {error}");
            say(std::io::stderr(), &error, cli::FAILED)
        }
    }
}

/// Runs a command to its end, with logging, and returns the exit code.
fn run<E: Error>(
    log: LogFormat,
    asked: impl Future<Output = Result<(), E>>,
    is_mistake: fn(&E) -> bool,
) -> u8 {
    let logs = match logs::init(log) {
        Ok(logs) => logs,
        Err(error) => return mistake(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return say(std::io::stderr(), &format!("cannot start: {error}"), cli::FAILED);
        }
    };
    let result = runtime.block_on(asked);
    // Does not wait for DNS lookups in progress, because they cannot be interrupted.
    runtime.shutdown_background();
    // Goes through the log: a direct write to standard error can block, and the process has to end.
    if let Err(error) = &result {
        logs.say(&format!("surehook: {error}"));
    }
    logs.close();
    match result {
        Ok(()) => cli::DONE,
        Err(error) if is_mistake(&error) => cli::MISTAKE,
        Err(_) => cli::FAILED,
    }
}

fn mistake(error: &impl Error) -> u8 {
    say(std::io::stderr(), &error.to_string(), cli::MISTAKE)
}

/// Writes an error and returns the exit code, even if the write fails. The text can quote untrusted
/// input, so its control characters are escaped.
fn say(mut to: impl Write, text: &str, code: u8) -> u8 {
    let _ = writeln!(to, "{}", visible::lines(text.trim_end()));
    code
}

/// Writes the text that a command was called for, escaped as in [`say`], and returns the exit code.
fn shown(text: &str, code: u8) -> u8 {
    match written(&format!("{}\n", visible::lines(text.trim_end()))) {
        cli::DONE => code,
        failed => failed,
    }
}
