//! Errors in a configuration, and their places.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file does not exist.
    #[error(
        "the configuration file `{}` does not exist: give another one with `--config`, or create it with\n\n    \
         [sources.example]\n    destination = \"http://127.0.0.1:9000/hooks\"\n\n\
         `surehook demo` needs no configuration",
        path.display()
    )]
    NotFound { path: PathBuf },
    /// The file exists but cannot be read.
    #[error("the configuration file `{}` cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// A setting in the file, a flag or an environment variable is not valid.
    #[error("{0}")]
    Wrong(SettingErrors),
}

/// All errors of one configuration: those of the file in file order, then those of the overrides.
/// Displayed as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingErrors {
    /// The name of the file in messages.
    pub file: String,
    /// Never empty.
    pub problems: Vec<SettingError>,
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    pub place: Place,
    /// The full name of the setting, such as `sources.github.timeout`; empty if the error concerns
    /// no setting.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Where an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file as a whole: something is missing.
    File,
    /// A position in the file. Line and column count from 1; columns count characters.
    At { line: usize, column: usize },
    /// A flag or its environment variable.
    Override { flag: &'static str, variable: &'static str },
}

impl fmt::Display for SettingErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            match problem.place {
                Place::File => write!(f, "{}: ", self.file)?,
                Place::At { line, column } => write!(f, "{}:{line}:{column}: ", self.file)?,
                Place::Override { flag, variable } => {
                    write!(f, "{flag} (or {variable} in the environment): ")?;
                }
            }
            if !problem.key.is_empty() {
                write!(f, "`{}`: ", problem.key.escape_debug())?;
            }
            f.write_str(&problem.message)?;
        }
        Ok(())
    }
}
