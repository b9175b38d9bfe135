//! The version of this program, and the commit that it was built from.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit: its abbreviated hash, with `-dirty` if files were changed; `debug` in a build for
/// development, which does not follow each commit; `unknown` if it was built without git.
pub const COMMIT: &str = env!("SUREHOOK_BUILD_COMMIT");

/// What `--version` prints after the name.
pub const LINE: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SUREHOOK_BUILD_COMMIT"), ")");

/// Part of the build script.
#[cfg(test)]
#[path = "../build/commit.rs"]
mod commit;

#[cfg(test)]
mod tests {
    use super::commit;
    use std::path::Path;
    use std::process::Command;

    fn git(folder: &Path, line: &str) {
        let settings = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        let output =
            Command::new("git").current_dir(folder).args(settings).args(line.split(' ')).output();
        let output = output.unwrap();
        assert!(output.status.success(), "git {line}: {output:?}");
    }

    #[test]
    fn the_commit_is_that_of_the_repository_at_the_root_of_the_sources() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(commit::of(root), commit::UNKNOWN, "without a repository");
        git(root, "init --quiet");
        assert_eq!(commit::of(root), commit::UNKNOWN, "without a commit");
        std::fs::write(root.join("a"), "1").unwrap();
        git(root, "add a");
        git(root, "commit --quiet --message=a --no-gpg-sign");
        let clean = commit::of(root);
        assert!(clean.len() == 12 && clean.bytes().all(|byte| byte.is_ascii_hexdigit()), "{clean}");
        std::fs::write(root.join("new"), "").unwrap();
        assert_eq!(commit::of(root), clean, "an untracked file is not part of the sources");
        std::fs::write(root.join("a"), "2").unwrap();
        assert_eq!(commit::of(root), format!("{clean}-dirty"));

        let inside = root.join("unpacked");
        std::fs::create_dir(&inside).unwrap();
        assert_eq!(commit::of(&inside), commit::UNKNOWN, "the repository is of something else");
    }

    #[test]
    fn a_given_commit_must_look_like_one() {
        for text in ["0123abcdef", "v1.0-3-g0123abc", "0123abcdef01-dirty"] {
            assert_eq!(commit::checked(text), Some(text));
        }
        for text in ["", "a b", "a\nb", "\u{1b}[2J", &"a".repeat(65)] {
            assert_eq!(commit::checked(text), None, "{text:?}");
        }
    }
}
