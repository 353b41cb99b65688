//! The example of a supervisor works.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{Place, example};
use crate::tools::{Ended, Running, lines};

fn command(place: &Place, script: &str) -> Command {
    let env_file = place.root().join("env");
    let seeds = "OPENAI_API_KEY=sk-canary-0123456789\n";
    fs::write(&env_file, seeds).expect("writes");
    let mut command = Command::new(example("supervisor"));
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
