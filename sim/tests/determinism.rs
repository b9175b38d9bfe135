//! The same seed gives the same run, even in another process, and a dependence on the real world is
//! detected.

use std::process::Command;

/// The digest of a run in a separate process: the number of entries, and a hash of them and of the
/// final database.
fn trace(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["run", "--trace"])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(':'), "{text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_seed_gives_the_same_run_in_every_process() {
    for seed in ["3", "17", "42"] {
        assert_eq!(trace(&["--seed", seed]), trace(&["--seed", seed]), "seed {seed}");
    }
    assert_ne!(trace(&["--seed", "3"]), trace(&["--seed", "17"]));
}

#[test]
fn real_entropy_in_a_run_changes_its_digest() {
    let leaky = ["--seed", "3", "--bug", "leaked-entropy"];
    assert_ne!(trace(&leaky), trace(&leaky));
}
