//! A small disk that a test can fill: a file system in memory with a size limit. Only root can
//! mount it.

use nix::unistd::Uid;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A small file system, unmounted when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts a disk of this size. Returns `None` and prints a message if this process is not root.
    ///
    /// # Panics
    ///
    /// If this process is root and the mount fails.
    #[must_use]
    pub fn mount(mebibytes: u32) -> Option<Self> {
        if !Uid::effective().is_root() {
            eprintln!("NOT RUN: only root can mount the small disk that this test fills");
            return None;
        }
        let disk = Self { folder: TempDir::new().expect("a temporary folder") };
        let size = format!("size={mebibytes}m,mode=777");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(disk.path()));
        Some(disk)
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Increases the size.
    ///
    /// # Panics
    ///
    /// If the remount fails.
    pub fn grow_to(&self, mebibytes: u32) {
        run(Command::new("mount")
            .args(["-o", &format!("remount,size={mebibytes}m")])
            .arg(self.path()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy, because a process that is just ending can still have a file open there.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
