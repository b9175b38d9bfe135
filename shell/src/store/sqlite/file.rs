//! The file of a SQLite database: which process serves it, who may read it, and whether it is still
//! at its path.
//!
//! The content of the file is handled elsewhere. No descriptor of the database file is opened here
//! once SQLite has it open: SQLite uses POSIX locks, and closing any descriptor of the file
//! releases all of the process's locks on it (<https://www.sqlite.org/howtocorrupt.html>, 2.2). So
//! the lock of the process is on a separate file.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use tokio::sync::watch;

/// Only the user that runs the program can read the events. SQLite gives its log and its shared
/// memory the same mode.
const MODE: u32 = 0o600;

/// Appended to the database's name, for the name of the lock file.
const LOCK_SUFFIX: &str = "-lock";

/// Why the file of a database cannot be used. Waiting does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error(
        "the database {path} cannot be opened: its folder does not exist; create the folder, or correct `database`"
    )]
    NoFolder { path: String },
    #[error("the database {path} cannot be opened: it is not a file; correct `database`")]
    NotAFile { path: String },
    /// The user cannot read and write the file, or cannot create files beside it.
    #[error(
        "the database {path} cannot be opened: {error}; the user that runs surehook must be able to read and write the file and to create files in its folder"
    )]
    NotAllowed {
        path: String,
        /// The error of the operating system.
        error: String,
    },
    /// Another process serves the database.
    #[error(
        "the database {path} is served by another process{holder}: a SQLite database is for one process; stop that process, or set `database` to another file"
    )]
    Served {
        path: String,
        /// The id of the other process as ` (ID)`, or empty if it is unknown.
        holder: String,
    },
}

/// The state of a database's file in this process.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    path: PathBuf,
    /// Locked while this process serves the database. The lock ends with the process, even after a
    /// crash.
    lock: Mutex<Option<File>>,
    /// The file that the connections have open.
    opened: OnceLock<Identity>,
    /// Whether the last check found the file missing or replaced. Only a change is logged.
    is_misplaced: AtomicBool,
    damage: watch::Sender<Option<String>>,
}

/// Distinguishes a file from all others that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl DatabaseFile {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            lock: Mutex::default(),
            opened: OnceLock::new(),
            is_misplaced: AtomicBool::new(false),
            damage: watch::Sender::new(None),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this process the only one that serves the database, and checks that it can use the
    /// file. Call this before the first connection is opened. With `create`, a missing file is
    /// created, empty.
    pub(super) fn hold(&self, create: bool) -> Result<(), FileError> {
        self.in_its_folder()?;
        let lock = self.locked()?;
        if create {
            self.create()?;
        }
        self.is_accessible()?;
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
        Ok(())
    }

    /// Creates the file, empty, unless it exists.
    pub(super) fn create(&self) -> Result<(), FileError> {
        self.in_its_folder()?;
        match private(OpenOptions::new().write(true).create_new(true)).open(&self.path) {
            // The umask may have removed bits of the mode.
            Ok(file) => {
                file.set_permissions(Permissions::from_mode(MODE))
                    .map_err(|error| self.not_allowed(&error))?;
                // A process that was started in another folder, or with another `database`, begins with
                // an empty database: the line shows where.
                let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
                tracing::info!(path = %path.display(), "new database file created");
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.not_allowed(&error)),
        }
    }

    /// Checks that the file at the path is still the one that the connections have open. If it is
    /// not, what is written to the open file is lost when the process ends.
    ///
    /// # Errors
    ///
    /// What has happened to the file.
    pub(super) fn in_place(&self) -> Result<(), String> {
        let Some(opened) = self.opened.get() else { return Ok(()) };
        let found = Identity::at(&self.path);
        let why = match &found {
            Ok(found) if found == opened => {
                if self.is_misplaced.swap(false, Ordering::AcqRel) {
                    tracing::info!(path = %self.path.display(), "the database file is back at its path");
                }
                return Ok(());
            }
            Ok(_) => "another file is at its path",
            Err(_) => "there is no file at its path",
        };
        if !self.is_misplaced.swap(true, Ordering::AcqRel) {
            tracing::error!(
                path = %self.path.display(), why,
                "the database file was moved, deleted or replaced; new events are refused. Deliveries continue from the open file, which is lost when the process ends. Move it back. To use the file at the path, stop the process, move the `-wal` and `-shm` files away if they still exist, and start it"
            );
        }
        Err(format!("the database file was moved, deleted or replaced while in use: {why}"))
    }

    /// Records the file at the path before a connection is opened. It must be the same file
    /// afterwards.
    pub(super) fn opening(&self) -> Result<Opening<'_>, String> {
        let before = Identity::at(&self.path).map_err(|error| {
            format!("the database file {} cannot be accessed: {error}", self.path.display())
        })?;
        Ok(Opening { file: self, before })
    }

    /// Reports that the database is damaged. Only the first report is kept.
    pub(super) fn damaged(&self, why: &str) {
        self.damage.send_if_modified(|damage| {
            let is_first = damage.is_none();
            damage.get_or_insert_with(|| why.to_owned());
            is_first
        });
    }

    /// Completes when the database was found to be damaged. Returns SQLite's message.
    pub(super) async fn damage(&self) -> String {
        let mut damage = self.damage.subscribe();
        loop {
            if let Some(why) = damage.borrow_and_update().clone() {
                return why;
            }
            // The sender exists as long as `self`.
            let _ = damage.changed().await;
        }
    }

    fn in_its_folder(&self) -> Result<(), FileError> {
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        match folder.metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(FileError::NoFolder { path: self.shown() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FileError::NoFolder { path: self.shown() });
            }
            Err(error) => return Err(self.not_allowed(&error)),
        }
        match self.path.metadata() {
            Ok(found) if !found.is_file() => Err(FileError::NotAFile { path: self.shown() }),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.not_allowed(&error)),
        }
    }

    /// Opens the lock file and locks it. Its name follows from the resolved path of the database,
    /// so that all links lead to the same lock.
    fn locked(&self) -> Result<File, FileError> {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let path = with_suffix(&path, LOCK_SUFFIX);
        let opened =
            private(OpenOptions::new().read(true).write(true).create(true).truncate(false))
                .open(path);
        let mut lock = opened.map_err(|error| self.not_allowed(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = (&lock).take(20).read_to_string(&mut holder);
                let holder = holder
                    .trim()
                    .parse::<u32>()
                    .map_or_else(|_| String::new(), |pid| format!(" ({pid})"));
                return Err(FileError::Served { path: self.shown(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(self.not_allowed(&error)),
        }
        let named = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        // On a full disk the lock holds, but the file does not contain the process id.
        let _ = named;
        Ok(lock)
    }

    /// Opens the file as SQLite will, and closes it. Must be called before SQLite has the file
    /// open.
    fn is_accessible(&self) -> Result<(), FileError> {
        match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => {
                if file.metadata().is_ok_and(|found| found.mode() & 0o007 != 0) {
                    tracing::warn!(path = %self.path.display(), "other users can read the database file; remove the permission with `chmod o=` unless it is intended");
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.not_allowed(&error)),
        }
    }

    fn not_allowed(&self, error: &io::Error) -> FileError {
        FileError::NotAllowed { path: self.shown(), error: error.to_string() }
    }

    /// The absolute path, for messages.
    fn shown(&self) -> String {
        std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()).display().to_string()
    }
}

/// A connection that is being opened; see [`DatabaseFile::opening`].
pub(super) struct Opening<'f> {
    file: &'f DatabaseFile,
    before: Identity,
}

impl Opening<'_> {
    /// To be called when the connection is open.
    ///
    /// # Errors
    ///
    /// If the connection may be to another file than the earlier ones.
    pub(super) fn done(self) -> Result<(), String> {
        self.file.opened.get_or_init(|| self.before);
        self.file.in_place()
    }
}

impl Identity {
    fn at(path: &Path) -> io::Result<Self> {
        path.metadata().map(|found| Self { device: found.dev(), inode: found.ino() })
    }
}

/// Only this user can read a file that is created with these options.
pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(MODE)
}

/// Appends a suffix to the last name of a path.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
