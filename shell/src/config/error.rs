//! What is wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is not there.
    #[error(
        "there is no configuration at `{}`: name another with `--config`, or begin with a file that says\n\n    \
         [sources.example]\n    destination = \"http://127.0.0.1:9000/hooks\"\n\n\
         `surehook demo` needs none",
        path.display()
    )]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("the configuration `{}` cannot be read: {source}", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file, or a flag or variable over it, is wrong.
    #[error("{0}")]
    Wrong(Problems),
}

/// Everything that is wrong with one configuration: the file's problems in their order, then the overrides'. Displayed
/// as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// What the file is called.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// The full name of the key, such as `sources.github.timeout`; empty where no key is to blame.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Where a mistake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file as a whole: something is missing.
    File,
    /// At a place in the file; both count from 1, columns in characters.
    At {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In a flag or its variable in the environment.
    Override {
        /// The flag.
        flag: &'static str,
        /// The variable.
        variable: &'static str,
    },
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            match problem.place {
                Place::File => write!(f, "{}: ", self.file)?,
                Place::At { line, column } => write!(f, "{}:{line}:{column}: ", self.file)?,
                Place::Override { flag, variable } => {
                    write!(f, "{flag} (or {variable} in the environment): ")?
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
