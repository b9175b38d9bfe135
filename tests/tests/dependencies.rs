//! Limits on dependencies. The core has none that reach a clock, entropy or I/O. The program does
//! not contain the simulator. Every package comes from the registry, and its licence is accepted. A
//! package that is in the program twice needs a reason.
//!
//! Known vulnerabilities are not checked here, because their database is not part of this
//! repository. `docs/CONTRIBUTING.md` says how to check them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use tests::program::cargo;

#[test]
fn the_core_depends_on_no_clock_entropy_or_io() {
    let output = run(&[
        "tree",
        "--package",
        "surehook-core",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    let packages: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(packages.contains("surehook-core") && packages.contains("sha2"), "{packages:?}");
    for forbidden in [
        "tokio",
        "sqlx",
        "sqlx-core",
        "reqwest",
        "hyper",
        "warp",
        "mio",
        "socket2",
        "rand",
        "getrandom",
        "libc",
        "tracing",
    ] {
        assert!(!packages.contains(forbidden), "{forbidden} is among {packages:?}");
    }
}

#[test]
fn the_program_contains_no_simulator() {
    let with = |package, other| {
        run(&["tree", "--package", package, "--edges", "normal,build", "--invert", other])
    };
    // Only the tests of `surehook` depend on the reference database.
    for other in ["madsim", "surehook-model"] {
        assert!(
            !with("sim", other).stdout.is_empty(),
            "`sim` does not depend on {other}, so this test looks for the wrong name"
        );
        let output = with("surehook", other);
        let error = String::from_utf8_lossy(&output.stderr);
        let is_absent = error.contains("nothing to print") || error.contains("did not match any");
        assert!(output.stdout.is_empty() && is_absent, "{other}: {output:?}");
    }
}

#[test]
fn the_core_builds_without_the_standard_library() {
    // An installed target that has no `std` at all is the strongest check. Without one, the host is
    // the target, and only `#![no_std]` and `--no-default-features` exclude `std`.
    let target = bare_target();
    let mut arguments = vec!["build", "--package", "surehook-core", "--no-default-features"];
    if let Some(target) = &target {
        arguments.extend(["--target", target]);
    }
    let output = run(&arguments);
    assert!(
        output.status.success(),
        "target {target:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let root = include_str!("../../core/src/lib.rs");
    assert!(root.contains("#![no_std]"), "without `#![no_std]`, the build above proves nothing");
}

#[test]
fn the_readme_names_the_licences_of_all_packages() {
    let (_, section) = include_str!("../../README.md")
        .split_once("\n## Licence\n")
        .expect("a section on licences");
    let (_, list) = section.split_once("under one of these: ").expect("the list of licences");
    let named: BTreeSet<&str> =
        list.split(". ").next().unwrap_or(list).split('`').skip(1).step_by(2).collect();
    let tree = run(&[
        "tree",
        "--package",
        "surehook",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--no-dedupe",
        "--format",
        "{p};{l}",
    ]);
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    let packages: BTreeSet<(&str, &str)> =
        tree.lines().filter_map(|line| line.split_once(';')).collect();
    assert!(packages.len() > 100, "{packages:?}");
    let without = |unnamed: Option<&str>| -> Vec<String> {
        let is_named = |licence: &str| named.contains(licence) && unnamed != Some(licence);
        packages
            .iter()
            .filter(|(_, licence)| !is_under(licence, is_named))
            .map(|(package, licence)| format!("{package}: {licence}"))
            .collect()
    };
    let unnamed = without(None);
    assert!(
        unnamed.is_empty(),
        "packages under licences that the README does not name: {unnamed:#?}"
    );
    for licence in &named {
        assert!(
            !without(Some(licence)).is_empty(),
            "the README names {licence}, but no package needs it"
        );
    }
}

#[test]
fn every_package_has_an_accepted_licence() {
    // The test above compares the program's packages with the README. This one includes those of
    // tests and tools.
    const ACCEPTED: [&str; 8] = [
        "MIT",
        "Apache-2.0",
        "BSD-3-Clause",
        "ISC",
        "Unicode-3.0",
        "Zlib",
        "MIT-0",
        "CDLA-Permissive-2.0",
    ];
    let metadata = run(&["metadata", "--format-version", "1"]);
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert!(packages.len() > 200, "{} packages", packages.len());
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or("NONE"));
        assert!(licence != "NONE", "{name} has no licence");
        assert!(
            is_under(licence, |licence| ACCEPTED.contains(&licence)),
            "the licence of {name} is not accepted: {licence}"
        );
    }
}

#[test]
fn every_package_comes_from_the_registry_with_a_checksum() {
    for (file, lock) in [
        ("Cargo.lock", include_str!("../../Cargo.lock")),
        ("fuzz/Cargo.lock", include_str!("../../fuzz/Cargo.lock")),
    ] {
        let foreign = foreign(lock);
        assert!(
            foreign.is_empty(),
            "{file} has packages of another origin, or without a checksum: {foreign:#?}"
        );
    }
}

#[test]
fn a_package_of_another_origin_is_detected() {
    let package = |rest: &str| {
        format!("version = 4\n\n[[package]]\nname = \"odd\"\nversion = \"1.0.0\"\n{rest}")
    };
    let checksum = "checksum = \"00\"\n";
    assert!(foreign(&package(&format!("source = \"{REGISTRY}\"\n{checksum}"))).is_empty());
    for rest in [
        String::new(),
        format!("source = \"{REGISTRY}\"\n"),
        "source = \"git+https://example.com/odd#00\"\n".to_owned(),
        format!("source = \"registry+https://example.com/index\"\n{checksum}"),
    ] {
        assert_eq!(foreign(&package(&rest)).len(), 1, "{rest}");
    }
}

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The packages of a lock file that are neither part of this project nor from the registry with a
/// checksum.
fn foreign(lock: &str) -> Vec<&str> {
    // `webpki-roots` is shell/no-roots.
    const OWN: [&str; 7] =
        ["surehook", "surehook-core", "surehook-model", "sim", "tests", "fuzz", "webpki-roots"];
    let packages = lock.split("[[package]]").skip(1);
    packages
        .filter(|package| {
            let value = |name: &str| {
                package.lines().find_map(|line| {
                    line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"')
                })
            };
            let is_own =
                value("source").is_none() && value("name").is_some_and(|name| OWN.contains(&name));
            let is_checked = value("source") == Some(REGISTRY) && value("checksum").is_some();
            !is_own && !is_checked
        })
        .collect()
}

/// Packages of which the program contains two versions, with the reason for the older one.
const TWICE: [(&str, &str); 11] = [
    ("base64", "sqlx and headers use 0.22"),
    ("block-buffer", "digest 0.10"),
    ("cpufeatures", "sha1 and sha2 0.10"),
    ("crypto-common", "digest 0.10"),
    ("digest", "sha1 0.10 of headers, and sha2 0.10 of sqlx"),
    ("getrandom", "ring uses 0.2"),
    ("hashbrown", "sqlx uses 0.16"),
    ("linux-raw-sys", "rustix 0.38"),
    ("rustix", "procfs, for the metrics of the process, uses 0.38"),
    ("sha2", "sqlx uses 0.10"),
    ("syn", "the macros of sqlx and of tracing use 2"),
];

#[test]
fn no_package_is_in_the_program_twice_without_a_reason() {
    let tree = run(&[
        "tree",
        "--package",
        "surehook",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--no-dedupe",
        "--format",
        "{p}",
    ]);
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            versions.entry(name).or_default().insert(version);
        }
    }
    let twice: BTreeSet<&str> =
        versions.iter().filter(|(_, versions)| versions.len() > 1).map(|(name, _)| *name).collect();
    let known: BTreeSet<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    let new: Vec<_> = twice.difference(&known).collect();
    assert!(
        new.is_empty(),
        "in the program more than once, without a reason in this file: {new:?}"
    );
    let gone: Vec<_> = known.difference(&twice).collect();
    assert!(
        gone.is_empty(),
        "no longer in the program more than once; remove it from this file: {gone:?}"
    );
}

/// Whether these licences satisfy the SPDX expression.
fn is_under(expression: &str, is_accepted: impl Fn(&str) -> bool) -> bool {
    let expression = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX)
        .expect("the licence is an SPDX expression");
    expression.evaluate(|required| {
        required.addition.is_none() && required.license.id().is_some_and(|id| is_accepted(id.name))
    })
}

fn run(arguments: &[&str]) -> Output {
    cargo().args(arguments).arg("--locked").output().expect("cargo runs")
}

/// An installed target whose name says that it has no operating system.
fn bare_target() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = std::process::Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let library =
        std::path::PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()).join("lib/rustlib");
    let targets = std::fs::read_dir(library)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    targets.filter(|target| target.contains("-none")).find(|target| !target.contains("linux"))
}
