//! The README and the example describe the configuration correctly.

use super::*;
use std::collections::BTreeSet;

const README: &str = include_str!("../../../../README.md");
pub(super) const EXAMPLE: &str = include_str!("../../../../surehook.example.toml");

/// The settings of a document, as `section.setting`; those of `[sources.…]` as `sources.setting`.
pub(super) fn keys(text: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.split([']', '.']).next().unwrap().to_owned() + ".";
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.insert(format!("{section}{key}"));
        }
    }
    keys
}

/// The README's tables of settings and their defaults, as a document.
fn reference() -> String {
    let (_, reference) = README.split_once("\n## Configuration\n").unwrap();
    let (reference, _) = reference.split_once("\n## ").unwrap();
    let mut document = String::new();
    for line in reference.lines().filter(|line| !line.starts_with("| `producer` | none |")) {
        if let Some((_, rest)) =
            line.strip_prefix("#### ").and_then(|heading| heading.split_once('`'))
        {
            document += &format!("{}\n", rest.trim_end_matches('`').replace("NAME", "github"));
        } else if let Some(row) = line.strip_prefix("| `") {
            let (key, rest) = row.split_once("` | ").unwrap();
            let (default, _) = rest.split_once(" | ").unwrap();
            let value = match (key, default) {
                ("destination", _) => "\"https://hooks.internal/github\"",
                ("max_body", "that of `[intake]`") => "\"1MiB\"",
                (_, default) => default.trim_matches('`'),
            };
            document += &format!("{key} = {value}\n");
        }
    }
    document
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    assert_eq!(parsed(&reference()).unwrap(), parsed(SOURCE).unwrap());
    let mut known = keys(EXAMPLE);
    let only_for_sources = ["sources.destination", "sources.headers", "sources.max_body"];
    known.retain(|key| !key.starts_with("sources.") || only_for_sources.contains(&&**key));
    assert_eq!(keys(&reference()), known);
    // It has no default that could be written.
    assert!(README.contains("\n| `producer` | none |") && EXAMPLE.contains("\nproducer = "));
}

#[test]
fn the_example_shows_every_default() {
    let config = parsed(EXAMPLE).unwrap();
    let defaults = EXAMPLE.split_once("[sources.").unwrap().0;
    assert_eq!(parsed(&format!("{defaults}{SOURCE}")).unwrap(), parsed(SOURCE).unwrap());
    assert_eq!(config.sources.len(), 2);
}

/// The message for an unknown setting lists all settings that the reader asked for.
#[test]
fn the_example_shows_every_setting() {
    let shown = keys(EXAMPLE);
    let asked = |section: &str| {
        let told = parsed(&format!(
            "[sources.s]\ndestination = \"http://x\"\n{section}\nnonsense-nonsense = 1"
        ))
        .unwrap_err()
        .to_string();
        let list = told.split_once("the settings here are ").unwrap().1;
        list.split(", ").map(|key| key.trim_matches('`').to_owned()).collect::<BTreeSet<String>>()
    };
    for section in ["intake", "worker", "retention", "defaults"] {
        let here: BTreeSet<String> = shown
            .iter()
            .filter_map(|key| key.strip_prefix(&format!("{section}.")))
            .map(str::to_owned)
            .collect();
        assert_eq!(asked(&format!("[{section}]")), here);
    }
    let told = parsed(&format!("nonsense-nonsense = 1\n{SOURCE}")).unwrap_err().to_string();
    for key in told
        .split_once("the settings here are ")
        .unwrap()
        .1
        .split(", ")
        .map(|key| key.trim_matches('`'))
    {
        let is_section = ["intake", "worker", "retention", "defaults", "sources"].contains(&key);
        assert!(is_section || shown.contains(key), "{key}");
    }
}

#[test]
fn every_configuration_in_the_readme_is_valid() {
    let blocks: Vec<&str> =
        README.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        parsed(block).unwrap();
    }
}
