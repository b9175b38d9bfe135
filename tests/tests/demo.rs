//! `surehook demo` and its walkthrough in the README: the commands are pasted into a shell, and
//! must have the output that the README describes.

use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tests::program::{Process, free_address};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_walkthrough_works_as_pasted() {
    let folder = TempDir::new().expect("a temporary folder");
    let (service, downstream) = (free_address(), free_address());
    let arguments = ["demo", "--listen", &service.to_string(), "--sink", &downstream.to_string()];
    let mut demo = Process::start(folder.path(), arguments);
    assert!(demo.listens(service).await, "the demo ended before it listened:\n{}", demo.log());
    let blocks = walk(include_str!("../../README.md"));
    let script: String =
        blocks.iter().map(|block| format!("{block}\necho '{SEPARATOR}'\n")).collect();
    // The README uses the demo's default ports, which may be in use here.
    let script = script
        .replace("127.0.0.1:8080", &service.to_string())
        .replace("127.0.0.1:8081", &downstream.to_string());
    assert!(!script.contains(":808"), "an address was not replaced:\n{script}");

    let output = tokio::task::spawn_blocking(move || {
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", &script])
            .stdin(Stdio::null())
            .output()
            .expect("bash is installed")
    })
    .await
    .expect("the shell ran");

    let (told, error) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{}\n{told}\n{error}", output.status);
    let told: Vec<&str> = told.split(SEPARATOR).collect();
    let expected: [&[&str]; 6] = [
        &["HTTP/1.1 202", "\"event_id\""],
        &["HTTP/1.1 202", "idempotent-replayed: true", "HTTP/1.1 422"],
        &["\"status\":\"delivered\""],
        &["\"status\":\"retrying\"", "\"status\":\"delivered\""],
        &["\"status\":\"dead_lettered\"", "\"reason\":\"permanent\""],
        &[
            "\"status\":\"dead_lettered\"",
            "\"reason\":\"exhausted\"",
            "\"status\":\"queued\"",
            "\"status\":\"delivered\"",
        ],
    ];
    assert_eq!(
        told.len(),
        expected.len() + 1,
        "the steps of the README differ from those of this test: {told:#?}"
    );
    for (told, expected) in told.iter().zip(expected) {
        let mut rest = *told;
        for words in expected {
            let at = rest.find(words).unwrap_or_else(|| {
                panic!("{words} is missing or out of order in:\n{told}\n{error}")
            });
            rest = &rest[at + words.len()..];
        }
    }

    demo.signal(Signal::SIGTERM);
    let status = demo.wait(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{status}\n{}", demo.log());
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder exists")
        .map(|entry| entry.expect("the entry can be read").file_name())
        .collect();
    assert_eq!(left, ["log"], "the demo left files behind");
}

const SEPARATOR: &str = "-- the next block --";

/// The fenced shell blocks of the section "Try it".
fn walk(readme: &str) -> Vec<&str> {
    let (_, section) =
        readme.split_once("\n## Try it\n").expect("the README has a section `Try it`");
    let (section, _) = section.split_once("\n## ").expect("the section `Try it` is not the last");
    section
        .split("\n```sh\n")
        .skip(1)
        .map(|block| block.split_once("\n```").expect("the block has an end").0)
        .collect()
}
