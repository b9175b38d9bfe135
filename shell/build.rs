//! Tells cargo that the migrations are part of the program: `sqlx::migrate!` embeds them when it is compiled. And sets
//! `SUREHOOK_BUILD_COMMIT`, the commit that the program shows.

#[path = "build/commit.rs"]
mod commit;

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=../migrations");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/commit.rs");
    println!("cargo::rerun-if-env-changed={}", commit::VARIABLE);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let given = env::var(commit::VARIABLE).ok().filter(|given| !given.is_empty());
    let commit = match given {
        Some(given) => match commit::checked(&given) {
            Some(given) => given.to_owned(),
            None => panic!("{}: `{given}` is not the name of a commit", commit::VARIABLE),
        },
        None if is_release => {
            // Whatever can make a difference between the commit and the program.
            for path in ["core", "shell", "Cargo.toml", "Cargo.lock"] {
                println!("cargo::rerun-if-changed={}", root.join(path).display());
            }
            if let Some(moves) = commit::moves(&root) {
                println!("cargo::rerun-if-changed={}", moves.display());
            }
            commit::of(&root)
        }
        // Each commit would compile the program and everything that depends on it again.
        None => "debug".to_owned(),
    };
    println!("cargo::rustc-env=SUREHOOK_BUILD_COMMIT={commit}");
}
