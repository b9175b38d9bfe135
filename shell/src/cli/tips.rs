//! Tips for command lines that other programs would understand. Misspelt names of this program's own
//! commands are corrected by clap.

use super::Cli;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Error};

/// Words for which this program has another command.
const WORDS: [(&[&str], &str); 14] = [
    (&["status", "stats", "queue", "queues", "info", "ps"], "surehook sources"),
    (&["replay", "retry", "requeue", "resend", "reprocess"], "surehook events redrive ID"),
    (&["delete", "purge", "drop", "remove", "archive"], "surehook events discard ID"),
    (&["failures", "errors", "failed"], "surehook summary"),
    (
        &["dlq", "dead-letters", "deadletters", "dead"],
        "surehook events list --status dead_lettered",
    ),
    (&["ls", "search", "find"], "surehook events list"),
    (&["get", "inspect", "event", "describe"], "surehook events show ID"),
    (&["forward", "test"], "surehook events send ID --to URL"),
    (&["start", "run", "server", "up"], "surehook serve"),
    (&["validate", "config", "lint", "configtest"], "surehook check"),
    (&["ready", "ping", "healthcheck"], "surehook health --ready"),
    (&["stop", "disable", "suspend", "hold"], "surehook pause NAME"),
    (&["unpause", "continue", "enable", "unhold"], "surehook resume NAME"),
    (&["version"], "surehook --version"),
];

/// The error, with a tip if its unknown command is a word of another program, or a command of another
/// level of this one.
pub(super) fn added(mut error: Error) -> Error {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return error;
    };
    if let Some(line) = meant(&word.to_ascii_lowercase()) {
        // The name that is spelt most like it would be the wrong one.
        error.remove(ContextKind::SuggestedSubcommand);
        let tip = StyledStr::from(format!("use `{line}`"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

fn meant(word: &str) -> Option<String> {
    let known = WORDS.iter().find(|(words, _)| words.contains(&word));
    known.map(|(_, line)| (*line).to_owned()).or_else(|| elsewhere(word))
}

/// A command that exists on another level: `surehook list` for `surehook events list`, or
/// `surehook events summary` for `surehook summary`.
fn elsewhere(word: &str) -> Option<String> {
    let whole = Cli::command();
    if whole.find_subcommand(word).is_some() {
        return Some(format!("surehook {word}"));
    }
    let above = whole.get_subcommands().find(|command| command.find_subcommand(word).is_some())?;
    Some(format!("surehook {} {word}", above.get_name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    #[test]
    fn every_tip_is_a_command_line_of_this_program_and_no_word_is_a_command() {
        for (words, line) in WORDS {
            let id = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e";
            let line = line.replace("ID", id).replace("URL", "http://localhost/");
            let parsed = cli::parse(line.split(' '));
            let kind = parsed.err().map(|error| error.kind());
            assert!(matches!(kind, None | Some(ErrorKind::DisplayVersion)), "{line}: {kind:?}");
            for word in words {
                assert!(Cli::command().find_subcommand(word).is_none(), "{word}");
                let error = cli::parse(["surehook", word]).err().unwrap().to_string();
                assert!(error.contains("tip: use `surehook "), "{word}: {error}");
                assert_eq!(error.matches("tip:").count(), 1, "{word}: {error}");
            }
        }
    }

    #[test]
    fn a_command_of_another_level_is_named() {
        for (line, tip) in [
            ("surehook list", "tip: use `surehook events list`"),
            ("surehook redrive", "tip: use `surehook events redrive`"),
            ("surehook events summary", "tip: use `surehook summary`"),
            ("surehook events replay", "tip: use `surehook events redrive ID`"),
            ("surehook STATUS", "tip: use `surehook sources`"),
            ("surehook sorces", "'sources'"),
        ] {
            let error = cli::parse(line.split(' ')).err().unwrap();
            assert!(error.to_string().contains(tip), "{line}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
