//! A disk that is easily filled: a file system in memory with a size. To mount one takes root.

use nix::unistd::Uid;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A small file system, gone when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of so many mebibytes. `None`, and a word about it, where this process may not.
    ///
    /// # Panics
    ///
    /// If it may and cannot.
    #[must_use]
    pub fn mount(mebibytes: u32) -> Option<Self> {
        if !Uid::effective().is_root() {
            eprintln!("NOT RUN: only root may mount the small disk that this test fills");
            return None;
        }
        let disk = Self { folder: TempDir::new().expect("a temporary folder") };
        let size = format!("size={mebibytes}m,mode=777");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(disk.path()));
        Some(disk)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes room.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn grow_to(&self, mebibytes: u32) {
        run(Command::new("mount")
            .args(["-o", &format!("remount,size={mebibytes}m")])
            .arg(self.path()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still have a file open there.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
