//! Backup and restore of a SQLite database.
//!
//! A database is its file, and the part of its write-ahead log that is not yet in the file. A copy
//! of the file alone may lack commits. A file that is placed beside the log of another database is
//! read as damaged. So SQLite makes each copy here (`VACUUM INTO`): one complete file, of one point
//! in time.

use super::connect;
use super::errors;
use super::file::{DatabaseFile, FileError, private, with_suffix};
use super::sql;
use crate::store::schema::{self, Applied, MigrateError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Appended to a copy's name until the copy is complete.
const PARTIAL: &str = "-partial";
/// Appended to the name of the database that a restore replaces.
const REPLACED: &str = "-replaced";
/// Suffixes of the files that SQLite keeps beside an open database. The rollback journal exists
/// while a restored database is opened for the first time.
const BESIDE: [&str; 3] = ["-journal", "-wal", "-shm"];

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The database's own file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no database to copy.
    #[error("there is no database at {}; correct `database`, or the name of the backup", .0.display())]
    Missing(PathBuf),
    /// The target exists. Nothing is overwritten.
    #[error("{} exists; move it away, or choose another name", .0.display())]
    Exists(PathBuf),
    /// Another process writes a copy to this file, or was killed before it was complete.
    #[error("{} exists: another process is writing it, or was killed; delete it if none runs, or choose another name", .0.display())]
    Written(PathBuf),
    /// A file cannot be written, renamed or made durable.
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    /// SQLite cannot read or write a copy.
    #[error("{} cannot be copied: {why}", .path.display())]
    Sqlite {
        /// The file that was to be copied.
        path: PathBuf,
        /// SQLite's message.
        why: String,
    },
    /// The backup is not a database that this program can serve.
    #[error("{} cannot be restored: {why}", .path.display())]
    Unfit {
        /// The backup.
        path: PathBuf,
        why: String,
    },
}

/// Copies the database to a new file, even while a process serves it.
pub(super) async fn backup(options: &SqliteConnectOptions, to: &Path) -> Result<(), CopyError> {
    let from = options.get_filename();
    if !from.is_file() {
        return Err(CopyError::Missing(from.to_owned()));
    }
    if to.exists() {
        return Err(CopyError::Exists(to.to_owned()));
    }
    let mut connection =
        connect::open(options).await.map_err(|error| unread(from, error.to_string()))?;
    let copied = async {
        // Without this check, a database that this program cannot serve would be noticed only at
        // the restore.
        fit(from, &mut connection).await?;
        copy(from, &mut connection, to).await
    };
    let copied = copied.await;
    let _ = connection.close().await;
    copied
}

/// Replaces the database with a copy of a backup. No process may serve the database during this.
/// Returns the new path of the old database, if there was one.
pub(super) async fn restore(
    options: &SqliteConnectOptions,
    file: &DatabaseFile,
    from: &Path,
) -> Result<Option<PathBuf>, CopyError> {
    let database = file.path();
    if !from.is_file() {
        return Err(CopyError::Missing(from.to_owned()));
    }
    file.hold(false)?;
    let replaced = with_suffix(database, REPLACED);
    for suffix in std::iter::once("").chain(BESIDE) {
        let taken = with_suffix(&replaced, suffix);
        if taken.exists() {
            return Err(CopyError::Exists(taken));
        }
    }
    // The backup is opened as it is. A log beside it is part of it.
    let backup = SqliteConnectOptions::new()
        .filename(from)
        .create_if_missing(false)
        .busy_timeout(Duration::from_secs(2));
    let mut connection = ConnectOptions::connect(&backup)
        .await
        .map_err(|error| unfit(from, errors::message(&error)))?;
    let arrived = with_suffix(database, PARTIAL);
    let copied = async {
        fit(from, &mut connection).await?;
        // What a restore that was killed has left. No other one runs.
        for left in [&arrived, &with_suffix(&arrived, PARTIAL)] {
            let _ = fs::remove_file(left);
        }
        copy(from, &mut connection, &arrived).await
    };
    let copied = copied.await;
    let _ = connection.close().await;
    copied?;

    let had_one = database.exists();
    if had_one {
        // Opening and closing moves the log into the file. This fails if the database is damaged,
        // and then its files stay together.
        if let Ok(old) = connect::open(options).await {
            let _ = old.close().await;
        }
    }
    // The log is moved first: a database without its log lacks its last commits, and a log
    // without its database contains nothing usable. It is also moved if its database is gone:
    // SQLite would apply it to the new one.
    for suffix in BESIDE.into_iter().rev() {
        let path = with_suffix(database, suffix);
        match fs::rename(&path, with_suffix(&replaced, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CopyError::Io { path, error });
            }
            _ => {}
        }
    }
    let io = |error| CopyError::Io { path: database.to_owned(), error };
    if had_one {
        // The old database gets a second name, and the new one replaces it at the first: there is
        // a database at the path at any time. If the restore were killed in between, the next start
        // would serve a new, empty one. Not all file systems have a second name for a file.
        fs::hard_link(database, &replaced)
            .or_else(|_| fs::rename(database, &replaced))
            .map_err(io)?;
    }
    fs::rename(&arrived, database).map_err(io)?;
    flush_folder(database)?;
    Ok(had_one.then_some(replaced))
}

/// Copies the database of a connection to a file. The file gets its name only when it is complete
/// and flushed to disk.
async fn copy(from: &Path, connection: &mut SqliteConnection, to: &Path) -> Result<(), CopyError> {
    let io = |error| CopyError::Io { path: to.to_owned(), error };
    let partial = with_suffix(to, PARTIAL);
    // The file is empty, so that SQLite accepts it, and has the mode that the copy must have. It is
    // new: another process must not write the same file.
    match private(OpenOptions::new().write(true).create_new(true)).open(&partial) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CopyError::Written(partial));
        }
        Err(error) => return Err(io(error)),
    }
    let copied = async {
        let name = partial
            .to_str()
            .ok_or_else(|| unread(from, "the name of the copy is not UTF-8".to_owned()))?;
        sqlx::query("vacuum into ?1")
            .bind(name)
            .execute(&mut *connection)
            .await
            .map_err(|error| unread(from, errors::message(&error)))?;
        is_whole(&partial).await?;
        File::open(&partial).and_then(|file| file.sync_all()).map_err(io)?;
        if to.exists() {
            return Err(CopyError::Exists(to.to_owned()));
        }
        fs::rename(&partial, to).map_err(io)?;
        flush_folder(to)
    };
    let copied = copied.await;
    if copied.is_err() {
        let _ = fs::remove_file(&partial);
    }
    copied
}

/// Checks that SQLite finds no damage in a copy.
async fn is_whole(copy: &Path) -> Result<(), CopyError> {
    let options =
        SqliteConnectOptions::new().filename(copy).read_only(true).create_if_missing(false);
    let mut connection = ConnectOptions::connect(&options)
        .await
        .map_err(|error| unread(copy, errors::message(&error)))?;
    let found: Result<String, _> =
        sqlx::query_scalar("pragma quick_check(1)").fetch_one(&mut connection).await;
    let _ = connection.close().await;
    match found {
        Ok(found) if found == "ok" => Ok(()),
        Ok(found) => Err(unread(copy, found)),
        Err(error) => Err(unread(copy, errors::message(&error))),
    }
}

/// Checks that a connection is to a database that this program can serve, possibly after a
/// migration.
async fn fit(path: &Path, connection: &mut SqliteConnection) -> Result<(), CopyError> {
    let applied: Result<Vec<Applied>, _> = sqlx::query_as(sql::SCHEMA).fetch_all(connection).await;
    match applied {
        Ok(applied) if applied.is_empty() => {
            Err(unfit(path, "it is not a database of surehook".to_owned()))
        }
        Ok(applied) => schema::compare(&applied, &sql::migrator())
            .needs_migration()
            .map(drop)
            .map_err(|error: MigrateError| unfit(path, error.to_string())),
        Err(error) => Err(unfit(
            path,
            format!("it is not a database of surehook ({})", errors::message(&error)),
        )),
    }
}

fn unread(path: &Path, why: String) -> CopyError {
    CopyError::Sqlite { path: path.to_owned(), why }
}

fn unfit(path: &Path, why: String) -> CopyError {
    CopyError::Unfit { path: path.to_owned(), why }
}

/// Flushes the folder of a file, which makes the file's new name durable.
fn flush_folder(of: &Path) -> Result<(), CopyError> {
    let folder =
        of.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| CopyError::Io { path: folder.to_owned(), error })
}
