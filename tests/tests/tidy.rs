//! Rules of this project that neither the compiler nor clippy can check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, into);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            into.push(entry);
        }
    }
}

/// The Rust files of these folders, with their text.
fn read(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for folder in folders {
        sources(&Path::new(ROOT).join(folder), &mut files);
    }
    assert!(files.len() > 20, "{folders:?} hold the sources");
    files.into_iter().map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn no_select_draws_from_an_unseeded_generator() {
    for (file, text) in read(&["core/src", "shell/src", "sim/src", "sim/model/src"]) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, _) in lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.contains("select! {") && !line.contains("select_biased"))
        {
            assert_eq!(lines.get(at + 1), Some(&"biased;"), "{}:{}", file.display(), at + 1);
        }
    }
}

#[test]
fn the_loops_ask_for_no_runtime() {
    let loops = [
        "intake.rs",
        "worker.rs",
        "retention.rs",
        "due_times.rs",
        "process.rs",
        "health.rs",
        "doorbell.rs",
        "handover.rs",
        "headers.rs",
        "metrics.rs",
        "ports.rs",
        "search.rs",
    ];
    for name in loops {
        let text = fs::read_to_string(Path::new(ROOT).join("shell/src").join(name)).unwrap();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            let other_use_of_tokio = line.contains("tokio::") && !line.contains("tokio::sync");
            assert!(!other_use_of_tokio, "{name}: `{line}`; only tokio::sync asks for no runtime");
        }
    }
}

#[test]
fn the_metrics_that_are_documented_are_those_that_there_are() {
    let read = |path: &str| fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
    let named = |text: &str, before: &str| -> BTreeSet<String> {
        let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let begin = format!("{before}surehook_");
        let begins = text.match_indices(&begin).map(|(at, _)| at + before.len());
        begins.map(|at| text[at..].chars().take_while(|c| is_of_name(*c)).collect()).collect()
    };
    let document = read("docs/operations.md");
    let table: String = document
        .lines()
        .filter(|line| line.starts_with("| `surehook_") && line.matches(" | ").count() == 2)
        .collect();
    let there = named(&read("shell/src/metrics.rs"), "\"");
    assert!(there.len() > 15, "{there:?}");
    // Other tables name metrics with a label. This table has all of those, too.
    assert_eq!(named(&table, "`"), there);
}

#[test]
fn the_log_messages_that_are_documented_are_those_that_there_are() {
    let document = fs::read_to_string(Path::new(ROOT).join("docs/operations.md")).unwrap();
    let table =
        document.split_once("| level | message | fields |").expect("the table of log messages").1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells: Vec<&str> = rows.filter_map(|row| row.split(" | ").nth(1)).collect();
    let messages: Vec<&str> =
        cells.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(messages.len() > 15, "{messages:?}");
    let documented: Vec<&str> =
        messages.iter().map(|message| message.trim_end_matches('…').trim_end()).collect();
    let program = read(&["core/src", "shell/src"]);
    let logged: Vec<&str> = program
        .iter()
        .filter(|(file, _)| !file.ends_with("demo.rs"))
        .flat_map(|(_, text)| messages_in(text))
        .collect();
    for message in &documented {
        assert!(logged.iter().any(|text| text.starts_with(message)), "`{message}` is not logged");
    }
    for message in logged {
        assert!(
            documented.iter().any(|beginning| message.starts_with(beginning)),
            "`{message}` is not documented"
        );
    }
}

/// The messages that a file logs at the default level, without those of its tests.
fn messages_in(text: &str) -> impl Iterator<Item = &str> {
    let program = text.split("#[cfg(test)]").next().unwrap_or(text);
    let calls = ["tracing::error!(", "tracing::warn!(", "tracing::info!("]
        .into_iter()
        .flat_map(|call| program.split(call).skip(1));
    // The worker's macro takes the level first.
    let lines = program.split("line!(").skip(1).filter(|rest| {
        let level = rest.trim_start();
        level.starts_with("warn,") || level.starts_with("info,")
    });
    calls.chain(lines).filter_map(|rest| rest.split('"').nth(1))
}

/// For each top-level module of these files, the other modules of its crate that it imports.
fn imports(root: &str, files: &[(PathBuf, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in files {
        let inside = file.strip_prefix(Path::new(ROOT).join(root)).unwrap().with_extension("");
        let names: Vec<_> = inside.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        if names.iter().any(|name| name == "tests") {
            continue;
        }
        let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
        let lines = program.lines().filter(|line| !line.trim_start().starts_with("//"));
        let named = lines.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
            rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>()
        });
        let module = &names[0];
        imports.entry(module.clone()).or_default().extend(named.filter(|other| other != module));
    }
    imports
}

/// The modules that import each other, directly or through others, and those that import them.
fn cyclic(mut imports: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let left: BTreeSet<String> = imports.keys().cloned().collect();
        imports.retain(|_, imported| !imported.is_disjoint(&left));
        if imports.len() == left.len() {
            return imports;
        }
    }
}

#[test]
fn modules_of_the_core_do_not_import_each_other() {
    let imports = imports("core/src", &read(&["core/src"]));
    assert!(imports["worker"].contains("verdict") && imports.len() > 15, "{imports:?}");
    assert_eq!(cyclic(imports), BTreeMap::new());
}

#[test]
fn the_ports_import_what_they_carry_and_not_the_other_way_round() {
    let mut imports = imports("shell/src", &read(&["shell/src"]));
    imports.retain(|module, _| ["ports", "search"].contains(&module.as_str()));
    assert!(imports["ports"].contains("search"), "{imports:?}");
    assert_eq!(cyclic(imports), BTreeMap::new());
}

#[test]
fn the_architecture_names_every_port() {
    let read = |path: &str| fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
    let (ports, architecture) = (read("shell/src/ports.rs"), read("docs/ARCHITECTURE.md"));
    // `Store` is all three ports to the database as one type.
    let names: Vec<&str> = ports
        .split("\npub trait ")
        .skip(1)
        .filter_map(|rest| rest.split(':').next())
        .filter(|name| *name != "Store")
        .collect();
    let number = ["four", "five", "six", "seven", "eight"][names.len() - 4];
    assert!(architecture.contains(&format!("behind {number} ports")), "{number}: {names:?}");
    for name in names {
        assert!(architecture.contains(&format!("`{name}`")), "{name} is not named");
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (file, text) in read(&[
        "core/src",
        "shell/src",
        "sim/src",
        "sim/model/src",
        "tests/src",
        "tests/tests",
        "sim/tests",
    ]) {
        assert!(
            text.starts_with("//!"),
            "{} does not say in its first line what it is for",
            file.display()
        );
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let folders = ["core/src", "shell/tests", "tests/tests", "sim/tests", "sim/model/tests"];
    let sources: String = read(&folders).into_iter().map(|(_, text)| text).collect();
    for (document, least) in [("docs/guarantees.md", 30), ("docs/ARCHITECTURE.md", 10)] {
        names_what_is_there(document, least, &sources);
    }
}

/// In a document, a name of lower-case words is that of a test, and a name with a slash is that of
/// a file.
fn names_what_is_there(document: &str, least: usize, sources: &str) {
    let text = fs::read_to_string(Path::new(ROOT).join(document)).unwrap();
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let (paths, tests): (Vec<&str>, Vec<&str>) =
        named.into_iter().partition(|name| name.contains('/'));
    let is_name = |name: &&str| {
        name.contains('_')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let is_test = |name: &&str| is_name(name) && name.matches('_').count() > 2;
    let tests: Vec<&str> = tests.into_iter().filter(is_test).collect();
    assert!(tests.len() > least && paths.len() > 5, "{document} names tests and files");
    for test in tests {
        assert!(
            sources.contains(&format!("fn {test}(")),
            "{document} names {test}, and there is no such test"
        );
    }
    for path in paths.into_iter().filter(|path| !path.contains(' ')) {
        assert!(Path::new(ROOT).join(path).exists(), "{document} names {path}, which is not there");
    }
}

#[test]
fn every_link_from_a_document_to_a_file_is_live() {
    let mut documents = vec![PathBuf::from("README.md")];
    for folder in ["docs", "docs/decisions", "docs/benchmarks"] {
        let files = fs::read_dir(Path::new(ROOT).join(folder))
            .unwrap()
            .map(|entry| Path::new(folder).join(entry.unwrap().file_name()));
        documents.extend(
            files.filter(|path| path.extension().is_some_and(|extension| extension == "md")),
        );
    }
    let mut links = 0;
    for document in documents {
        let text = fs::read_to_string(Path::new(ROOT).join(&document)).unwrap();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
            .map(|(target, _)| target)
        {
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap().join(file)
            };
            let to = Path::new(ROOT).join(to);
            assert!(to.exists(), "{}: {target} is not there", document.display());
            if !heading.is_empty() {
                let headings = fs::read_to_string(&to).unwrap();
                let is_there = headings
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .any(|line| anchor(line) == heading);
                assert!(is_there, "{}: {target} has no such heading", document.display());
            }
            links += 1;
        }
    }
    assert!(links > 20, "{links} links");
}

/// The anchor of a heading in a link.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}
