//! The commit that the sources are from. Part of the build script.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable that gives the commit, for a build without git or without its repository.
#[cfg_attr(test, expect(dead_code, reason = "only the build script uses it"))]
pub(crate) const VARIABLE: &str = "SUREHOOK_COMMIT";

/// The commit, if git is not there, or the sources are not in a repository of their own.
pub(crate) const UNKNOWN: &str = "unknown";

/// The name of a commit, if the text can be one.
pub(crate) fn checked(text: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (!text.is_empty() && text.len() <= 64 && text.bytes().all(is_plain)).then_some(text)
}

/// The commit of the sources in this folder, with `-dirty` if tracked files differ from it.
pub(crate) fn of(root: &Path) -> String {
    // An unpacked archive can lie within the repository of something else.
    let top = git(root, &["rev-parse", "--show-toplevel"]).map(PathBuf::from);
    if top.and_then(|top| top.canonicalize().ok()) != root.canonicalize().ok() {
        return UNKNOWN.to_owned();
    }
    let commit = git(root, &["rev-parse", "--short=12", "HEAD"]);
    let changes = git(root, &["status", "--porcelain", "--untracked-files=no"]);
    match (commit.as_deref().and_then(checked), changes.as_deref()) {
        (Some(commit), Some("")) => commit.to_owned(),
        (Some(commit), _) => format!("{commit}-dirty"),
        (None, _) => UNKNOWN.to_owned(),
    }
}

/// The file that changes when another commit is checked out.
#[cfg_attr(test, expect(dead_code, reason = "only the build script uses it"))]
pub(crate) fn moves(root: &Path) -> Option<PathBuf> {
    let path = root.join(git(root, &["rev-parse", "--git-path", "logs/HEAD"])?);
    path.exists().then_some(path)
}

/// What git prints, if it succeeds.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(folder).args(arguments).output().ok()?;
    let told = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| told.trim().to_owned())
}
