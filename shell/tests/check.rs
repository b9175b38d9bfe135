//! Runs `surehook check` as a program: exit codes, and the precedence of flags, environment and
//! file.

use std::path::Path;
use std::process::{Command, Output};

fn surehook(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_surehook"));
    for (variable, _) in std::env::vars_os()
        .filter(|(variable, _)| variable.to_string_lossy().starts_with("SUREHOOK_"))
    {
        command.env_remove(variable);
    }
    command
        .current_dir(folder)
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn folder_with(configuration: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    std::fs::write(folder.path().join("surehook.toml"), configuration)
        .expect("the file can be written");
    folder
}

const RIGHT: &str = "listen = \"127.0.0.1:1111\"\n[sources.s]\ndestination = \"http://u:hunter2@x/hooks\"\ntimeout = \"30s\"\n";

#[test]
fn check_prints_a_summary_of_a_valid_file_without_credentials() {
    let output = surehook(folder_with(RIGHT).path(), &["check"], &[]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let summary = text(&output.stdout);
    for line in [
        "surehook.toml is valid",
        "127.0.0.1:1111",
        "source s",
        "http://x/hooks",
        "timeout 30s, lease 40s",
    ] {
        assert!(summary.contains(line), "{summary}");
    }
    assert!(!summary.contains("hunter2"), "{summary}");
}

#[test]
fn check_reports_errors_by_line_and_column_and_exits_2() {
    let output = surehook(
        folder_with("[sources.s]\ndestination = \"x\"\nconcurrency = 0\n").path(),
        &["check"],
        &[],
    );
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    let lines: Vec<&str> = text(&output.stderr)
        .lines()
        .map(|line| line.split_once(": ").expect("each error starts with its position").0)
        .collect();
    assert_eq!(lines, ["surehook.toml:2:15", "surehook.toml:3:15"]);
}

#[test]
fn a_missing_file_is_reported_with_an_example_configuration() {
    let empty = tempfile::tempdir().expect("a temporary folder can be created");
    for arguments in [
        &["check"][..],
        &["check", "--config", "elsewhere.toml"],
        &["check", "--database", "sqlite:x.db"],
    ] {
        let output = surehook(empty.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(2));
        let told = text(&output.stderr);
        assert!(told.contains("does not exist") && told.contains("[sources.example]"), "{told}");
    }
}

#[test]
fn flags_override_environment_variables_which_override_the_file() {
    let folder = folder_with(RIGHT);
    let environment = [("SUREHOOK_LISTEN", "127.0.0.1:2222"), ("SUREHOOK_ROLE", "worker")];
    let by_environment = surehook(folder.path(), &["check"], &environment);
    assert!(text(&by_environment.stdout).contains("127.0.0.1:2222"), "{by_environment:?}");
    let by_flag = surehook(folder.path(), &["check", "--listen", "127.0.0.1:3333"], &environment);
    let summary = text(&by_flag.stdout);
    assert!(summary.contains("127.0.0.1:3333") && summary.contains("worker"), "{summary}");
}

#[test]
fn an_invalid_flag_or_variable_exits_2_and_shows_no_password() {
    let folder = folder_with(RIGHT);
    for (arguments, environment) in [
        (&["check", "--database", "mysql://u:hunter2@x"][..], &[][..]),
        (&["check"], &[("SUREHOOK_DATABASE", "mysql://u:hunter2@x")]),
        (&["check", "--colour"], &[("SUREHOOK_DATABASE", "postgres://u:hunter2@x")]),
        (&["check", "--help"], &[("SUREHOOK_DATABASE", "postgres://u:hunter2@x")]),
    ] {
        let output = surehook(folder.path(), arguments, environment);
        assert_eq!(output.status.code(), Some(if arguments.contains(&"--help") { 0 } else { 2 }));
        assert!(
            !text(&output.stderr).contains("hunter2") && !text(&output.stdout).contains("hunter2"),
            "{output:?}"
        );
    }
}

#[test]
fn an_unknown_variable_stops_every_command() {
    let folder = folder_with(RIGHT);
    for command in [&["check"][..], &["serve"], &["migrate"], &["sources"], &["producers"]] {
        let output = surehook(folder.path(), command, &[("SUREHOOK_DATABSE", "hunter2")]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{command:?}");
        let told = text(&output.stderr);
        assert!(
            told.contains("`SUREHOOK_DATABSE` in the environment") && !told.contains("hunter2"),
            "{told}"
        );
    }
}

#[test]
fn secrets_come_from_the_environment_and_from_files_and_are_not_shown() {
    let folder = folder_with("");
    let token = folder.path().join("token");
    std::fs::write(&token, "hunter3\n").expect("the file can be written");
    let reference = format!("${{file:{}}}", token.display());
    let configuration = format!(
        "database = \"postgres://u:${{PASSWORD}}@db/x\"\n[sources.s]\ndestination = \"http://x/{reference}\"\n"
    );
    std::fs::write(folder.path().join("surehook.toml"), configuration)
        .expect("the file can be written");
    let output = surehook(folder.path(), &["check"], &[("PASSWORD", "hunter2")]);
    let summary = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for line in [
        "replaced    database: ${PASSWORD}",
        &format!("delivers to http://x/{reference}"),
        &format!("replaced    destination: {reference}"),
    ] {
        assert!(summary.contains(line), "{summary}");
    }
    assert!(!summary.contains("hunter"), "{summary}");
    let output = surehook(folder.path(), &["check"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(
        told.contains(
            "surehook.toml:1:26: `database`: the environment variable `PASSWORD` is not set"
        ),
        "{told}"
    );
}

#[test]
fn check_shows_all_servers_and_session_attributes_without_the_password() {
    let folder = folder_with(RIGHT);
    let url = "postgres://u:hunter2@a:1,[::1]/db?sslmode=require&target_session_attrs=read-write";
    for (arguments, environment) in
        [(&["check", "--database", url][..], &[][..]), (&["check"], &[("SUREHOOK_DATABASE", url)])]
    {
        let output = surehook(folder.path(), arguments, environment);
        let summary = text(&output.stdout);
        assert!(
            summary
                .contains("database    postgres://u@a:1,[::1]/db?target_session_attrs=read-write"),
            "{output:?}"
        );
        assert!(!summary.contains("hunter2"), "{summary}");
    }
    let output =
        surehook(folder.path(), &["check", "--database", "postgres://u:hunter2@a,/db"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(
        told.contains("--database (or SUREHOOK_DATABASE in the environment): this PostgreSQL URL cannot be used: host 2 of its 2 is empty"),
        "{told}"
    );
}

#[test]
fn check_prints_json_for_a_valid_configuration_and_for_errors() {
    let output = surehook(folder_with(RIGHT).path(), &["check", "--json"], &[]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&shown["valid"], &shown["listen"]), (&true.into(), &"127.0.0.1:1111".into()));
    assert_eq!(shown["sources"]["s"]["timeout_ms"], 30_000);
    assert!(!text(&output.stdout).contains("hunter2"));

    let output = surehook(folder_with("rol = 1\n").path(), &["check", "--json"], &[]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), ""));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let errors = shown["errors"].as_array().expect("errors");
    let is_unknown = |error: &&serde_json::Value| error["setting"] == "rol" && error["line"] == 1;
    assert_eq!((&shown["valid"], errors.iter().filter(is_unknown).count()), (&false.into(), 1));
}

#[test]
fn the_version_has_a_commit_and_a_script_is_printed_unchanged() {
    let folder = folder_with(RIGHT);
    let output = surehook(folder.path(), &["--version"], &[]);
    let line = format!("surehook {} ({})\n", surehook::version::VERSION, surehook::version::COMMIT);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), &*line));
    let output = surehook(folder.path(), &["completions", "bash"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), surehook::cli::completions(clap_complete::Shell::Bash));
}
