//! Runs every saved input of the fuzz targets without a fuzzer. An input that once found a bug is
//! kept as a regression test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use surehook_model::targets;

const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");

/// The minimum number of inputs of a corpus.
const LEAST: usize = 10;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn names(folder: &str) -> BTreeSet<String> {
    files(&Path::new(FUZZ).join(folder))
        .iter()
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn replay(name: &str) {
    let target =
        targets::ALL.into_iter().find(|(known, _)| *known == name).expect("the target exists").1;
    let files = files(&Path::new(FUZZ).join("corpus").join(name));
    assert!(
        files.len() >= LEAST,
        "the corpus of `{name}` has {} inputs; it needs {LEAST}",
        files.len()
    );
    for file in files {
        // Printed if the test fails; the last file is the one that failed.
        println!("{}", file.display());
        target(&fs::read(file).unwrap());
    }
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_fuzzer_and_a_corpus_and_is_replayed() {
            let all: BTreeSet<String> = targets::ALL.into_iter().map(|(name, _)| name.to_owned()).collect();
            assert_eq!(all, BTreeSet::from([$(stringify!($name).to_owned()),*]), "the targets that this file replays");
            assert_eq!(all, names("fuzz_targets"), "the targets in fuzz/fuzz_targets");
            assert_eq!(all, names("corpus"), "the targets in fuzz/corpus");
        }
    };
}

replayed! { configuration event http idempotency_key intake key_places retry_after worker }
