//! The example of a supervisor works.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::Place;
use crate::tools::{Ended, Running, lines};

/// The example. Cargo builds it before it runs all tests, but not for this program alone.
fn supervisor() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_credential-vault")).parent().expect("a folder");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--offline", "--example", "supervisor", "--target-dir"]);
    build.arg(folder.parent().expect("a folder")).current_dir(env!("CARGO_MANIFEST_DIR"));
    // These variables are for tests; they would cause a rebuild.
    for (name, _) in std::env::vars_os() {
        let is_for_tests = |beginning: &str| name.to_string_lossy().starts_with(beginning);
        if is_for_tests("CARGO_MANIFEST_") || is_for_tests("CARGO_PKG_") {
            build.env_remove(name);
        }
    }
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success());
    folder.join("examples/supervisor")
}

fn command(place: &Place, script: &str) -> Command {
    let env_file = place.root().join("env");
    let seeds = "OPENAI_API_KEY=sk-canary-0123456789\n";
    fs::write(&env_file, seeds).expect("writes");
    let mut command = Command::new(supervisor());
    command.args(["jarvis", "dev", "--env-file"]).arg(env_file);
    command.arg("--data-dir").arg(place.data_dir());
    command.args(["--", "/bin/sh", "-c", script]);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("INTENTFRAME_VAULT_SOCKET", place.socket());
    command
        .env("VAULT_TOKEN", "own")
        .env("HOME", place.root())
        .env("LOG", place.root().join("log"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn it_starts_a_vault_and_a_process_and_stops_both() {
    let place = Place::new();
    let log = place.root().join("log");
    let script = "echo \"$OPENAI_API_KEY$VAULT_TOKEN\" > $LOG; exit 7";
    let ended = Ended::of(&mut command(&place, script));
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    assert_eq!(lines(&log, 1), ["sk-canary-0123456789"]);
    assert!(!place.socket().exists(), "the vault has stopped");
    assert!(!ended.stderr.contains("canary"));

    let script =
        "trap 'echo ended >> $LOG; exit 0' TERM; echo ready >> $LOG; while :; do sleep 0.01; done";
    let mut running = Running::start(&mut command(&place, script));
    lines(&log, 2);
    assert_eq!(running.stop().code(), Some(0));
    assert_eq!(lines(&log, 3)[1..], ["ready", "ended"]);
    assert!(!place.socket().exists(), "the vault has stopped");
}
