//! The traces of a failed run: one folder with the history, its timeline as text and as a page, and
//! the logs of every process. The folder is created when the first file is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use surehook_model::history::Run;
use surehook_model::oracles::Violation;
use surehook_model::timeline;

/// The folder for the traces of one run.
#[derive(Debug)]
pub struct Failure {
    name: String,
    folder: PathBuf,
    has_run: AtomicBool,
}

impl Default for Failure {
    /// For the test that is running on this thread.
    fn default() -> Self {
        // A test can have several runs.
        static GIVEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let name = std::thread::current().name().unwrap_or("a run").to_owned();
        let test = std::env::current_exe().expect("a test knows its path");
        // `target/PROFILE/deps/TEST`
        let target = test.ancestors().nth(3).unwrap_or(Path::new("."));
        let file = test
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.split('-').next())
            .unwrap_or("tests");
        let folder = format!("{file}-{}-{}", name.replace("::", "-"), std::process::id());
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names =
            std::iter::once(folder.clone()).chain((2..).map(|n| format!("{folder}-{n}")));
        let folder =
            names.find(|name| given.insert(name.clone())).expect("the numbers do not run out");
        let folder = target.join("failures").join(folder);
        Self { name, folder, has_run: AtomicBool::new(false) }
    }
}

impl Failure {
    /// Whether a run is kept.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.has_run.load(Ordering::Relaxed)
    }

    /// Keeps the traces of a run, and returns their folder.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn keep_run(&self, run: &Run, violations: &[Violation]) -> &Path {
        self.has_run.store(true, Ordering::Relaxed);
        let broken: String = violations.iter().map(|violation| format!("{violation}\n")).collect();
        self.keep("violations.txt", &broken);
        self.keep("timeline.txt", &timeline::text_of_everything(run, violations));
        self.keep(
            "timeline.html",
            &timeline::html(
                run,
                violations,
                &self.name,
                "",
                &format!("cargo test -p tests {}", self.name),
            ),
        );
        self.keep("history.txt", &format!("{run:#?}"));
        &self.folder
    }

    /// Keeps one file.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn keep(&self, file: &str, content: &str) {
        fs::create_dir_all(&self.folder)
            .and_then(|()| fs::write(self.folder.join(file), content))
            .expect("the target folder can be written to");
        eprintln!("kept {}", self.folder.join(file).display());
    }
}
