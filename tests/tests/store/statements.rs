//! The statements of both databases, read from their files. So a test of every statement covers those
//! that are added later.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The statements of one database (`postgres` or `sqlite`), and those that both share, by the name
/// of their file.
pub(crate) fn of(database: &str) -> BTreeMap<String, String> {
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shell/src/store");
    let files = [store.clone(), store.join(database)].into_iter().flat_map(|folder| {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    });
    let statements: BTreeMap<String, String> = files
        .filter(|file| file.extension().is_some_and(|extension| extension == "sql"))
        .map(|file| {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(statements.len() > 15, "{statements:?}");
    statements
}
