//! What the packages may not depend on: the decisions on nothing that touches the world, the program on no simulator,
//! and on nothing under a licence that the front page does not name.

use std::collections::BTreeSet;
use std::process::Output;
use tests::program::cargo;

#[test]
fn the_core_depends_on_nothing_that_touches_the_world() {
    let output = run(&["tree", "--package", "surehook-core", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    let packages: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(packages.contains("surehook-core") && packages.contains("sha2"), "{packages:?}");
    for forbidden in ["tokio", "sqlx", "sqlx-core", "reqwest", "hyper", "warp", "mio", "socket2", "rand", "getrandom", "libc", "tracing"] {
        assert!(!packages.contains(forbidden), "{forbidden} is among {packages:?}");
    }
}

#[test]
fn the_program_has_no_simulator_in_it() {
    let with = |package| run(&["tree", "--package", package, "--edges", "normal,build", "--invert", "madsim"]);
    assert!(with("sim").status.success(), "the simulator itself does depend on it, or this test looks for the wrong name");
    let output = with("surehook");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("madsim") && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn the_core_builds_without_the_standard_library() {
    // The strongest target that is installed: one that has no `std` at all, or else this one, where `#![no_std]` and
    // `--no-default-features` are what keeps `std` out.
    let target = bare_target();
    let mut arguments = vec!["build", "--package", "surehook-core", "--no-default-features"];
    if let Some(target) = &target {
        arguments.extend(["--target", target]);
    }
    let output = run(&arguments);
    assert!(output.status.success(), "target {target:?}: {}", String::from_utf8_lossy(&output.stderr));
    let root = include_str!("../../core/src/lib.rs");
    assert!(root.contains("#![no_std]"), "without that, the build above proves nothing");
}

#[test]
fn the_front_page_names_the_licences_of_what_the_program_is_made_of() {
    let (_, section) = include_str!("../../README.md").split_once("\n## Licence\n").expect("a section on licences");
    let (_, list) = section.split_once("under one of these: ").expect("the list of licences");
    let named: BTreeSet<&str> = list.split(". ").next().unwrap_or(list).split('`').skip(1).step_by(2).collect();
    let tree = run(&["tree", "--package", "surehook", "--edges", "normal,build", "--prefix", "none", "--no-dedupe", "--format", "{p};{l}"]);
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    let packages: BTreeSet<(&str, &str)> = tree.lines().filter_map(|line| line.split_once(';')).collect();
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
    assert!(unnamed.is_empty(), "under other licences: {unnamed:#?}");
    for licence in &named {
        assert!(!without(Some(licence)).is_empty(), "nothing is under {licence} alone");
    }
}

/// Whether somebody who accepts these licences may use what is under this expression of them.
fn is_under(expression: &str, is_accepted: impl Fn(&str) -> bool) -> bool {
    let expression = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX).expect("the name of a licence");
    expression.evaluate(|required| required.addition.is_none() && required.license.id().is_some_and(|id| is_accepted(id.name)))
}

fn run(arguments: &[&str]) -> Output {
    cargo().args(arguments).arg("--locked").output().expect("cargo runs")
}

/// An installed target whose name says that it has no operating system.
fn bare_target() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = std::process::Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let library = std::path::PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()).join("lib/rustlib");
    let targets = std::fs::read_dir(library).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    targets.filter(|target| target.contains("-none")).find(|target| !target.contains("linux"))
}
