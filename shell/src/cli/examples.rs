//! The examples at the end of each command's `--help`. A test parses each of them.

macro_rules! examples {
    ($($name:ident = $($line:literal)+;)+) => {
        $(pub(super) const $name: &str = concat!("Examples:" $(, "\n  ", $line)+);)+
    };
}

examples! {
    SERVE = "surehook serve --config /etc/surehook/surehook.toml"
        "surehook serve --role worker --listen 127.0.0.1:8081";
    DEMO = "surehook demo"
        "surehook demo --listen 127.0.0.1:18080 --sink 127.0.0.1:18081";
    CHECK = "surehook check --config surehook.toml"
        "surehook check --json | jq '.sources[].retries_last_ms'";
    PRODUCERS = "surehook producers"
        "surehook producers github";
    MIGRATE = "surehook migrate --config surehook.toml";
    BACKUP = "surehook backup /var/backups/surehook.db"
        "surehook backup --database sqlite:/var/lib/surehook/surehook.db copy.db";
    RESTORE = "surehook restore /var/backups/surehook.db";
    EVENTS = "surehook events list --status dead_lettered --since 2h"
        "surehook events show 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"
        "surehook events redrive --source orders --reason exhausted --rate 50";
    LIST = "surehook events list --status dead_lettered --since 2h"
        "surehook events list --key evt_1PqXk2Lz"
        "surehook events list --source orders --status-code 422 --since 'yesterday 14:00'";
    SHOW = "surehook events show 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"
        "surehook events show 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e --request";
    BODY = "surehook events body 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e > body";
    SEND = "surehook events send 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e --to http://127.0.0.1:9000/";
    REDRIVE = "surehook events redrive 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"
        "surehook events redrive --source orders --reason exhausted --dry-run"
        "surehook events redrive --source orders --reason exhausted --rate 50";
    DISCARD = "surehook events discard 0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e"
        "surehook events discard --source orders --reason permanent --dry-run"
        "surehook events discard --source removed";
    SUMMARY = "surehook summary --since 1h"
        "surehook summary --source orders --json";
    SOURCES = "surehook sources"
        "surehook sources --url http://worker-1.internal:9090";
    HEALTH = "surehook health"
        "surehook health --ready --url http://127.0.0.1:9090";
    PAUSE = "surehook pause orders";
    RESUME = "surehook resume orders";
    COMPLETIONS = "surehook completions bash > ~/.local/share/bash-completion/completions/surehook"
        "surehook completions zsh > ~/.zfunc/_surehook"
        "surehook completions fish > ~/.config/fish/completions/surehook.fish";
    MAN = "surehook man | man -l -"
        "surehook man /usr/local/share/man/man1";
}

#[cfg(test)]
mod tests {
    use crate::cli::{self, Cli};
    use clap::{Command, CommandFactory};

    /// The words of a line up to a pipe or a redirection, with single quotes.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(['|', '>']).next().unwrap_or(line);
        let mut words = vec![String::new()];
        let mut is_quoted = false;
        for one in line.trim().chars() {
            match one {
                '\'' => is_quoted = !is_quoted,
                ' ' if !is_quoted => words.push(String::new()),
                other => words.last_mut().unwrap().push(other),
            }
        }
        words
    }

    /// Calls `check` for each command without subcommands, and for `events`.
    fn each(command: &Command, path: &str, check: &mut impl FnMut(&Command, &str)) {
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            let path = format!("{path} {}", below.get_name());
            check(below, &path);
            each(below, &path, check);
        }
    }

    #[test]
    fn every_command_has_examples_of_itself_that_it_understands() {
        let mut lines = 0;
        each(&Cli::command(), "surehook", &mut |command, path| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help.lines().filter(|line| line.starts_with("  ")).collect();
            assert!(help.starts_with("Examples:") && !examples.is_empty(), "{path}: {help}");
            for line in examples {
                assert!(line.trim().starts_with(path), "{path}: {line}");
                if let Err(error) = cli::parse(words(line)) {
                    panic!("{line}: {error}");
                }
                lines += 1;
            }
        });
        assert!(lines > 30, "{lines}");
    }

    #[test]
    fn the_help_of_a_command_ends_with_its_examples() {
        let error = cli::parse(["surehook", "events", "list", "--help"]).err().unwrap();
        let help = error.to_string();
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        assert!(examples.contains("  surehook events list --key evt_1PqXk2Lz\n"), "{help}");
    }
}
