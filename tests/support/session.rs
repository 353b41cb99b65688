//! Tests that need a session bus and a keyring of their own. A process connects to only one session
//! bus in its life, so such a test runs itself again, inside scripts/with-keyring.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::skip;

const IN_SESSION: &str = "KEYRING_TEST_SESSION";

/// Whether this process has been started by [`run_again`].
pub fn is_inside() -> bool {
    env::var_os(IN_SESSION).is_some()
}

/// Whether this process must run the body of the test, in a session with gnome-keyring. If not, the
/// test has been run in one, or skipped because there is none.
#[track_caller]
pub fn session(test: &str) -> bool {
    session_with("gnome", "gnome-keyring-daemon", test)
}

/// Like [`session`], with another keyring of scripts/with-keyring.
#[track_caller]
pub fn session_with(keyring: &str, daemon: &str, test: &str) -> bool {
    if is_inside() {
        return true;
    }
    let tools = format!("command -v {daemon} && command -v dbus-run-session");
    let found = Command::new("/bin/sh").args(["-c", &tools]).stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-keyring");
        let program = env::current_exe().expect("this test's program");
        run_again(test, Command::new(script).env("KEYRING", keyring).arg(program));
    } else {
        skip(&format!("no {daemon} to test with; run: scripts/install-test-deps"));
    }
    false
}

/// Runs the body of the test in a process that `command` starts.
#[track_caller]
pub fn run_again(test: &str, command: &mut Command) {
    command.args(["--exact", test, "--nocapture"]).env(IN_SESSION, "1").stderr(Stdio::inherit());
    let output = command.output().expect("is executable");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

/// The address of the session's bus.
pub fn bus() -> String {
    env::var("DBUS_SESSION_BUS_ADDRESS").expect("a session")
}

/// The ID of the process that provides the session's keyring.
pub fn daemon() -> String {
    let owner = "string:org.freedesktop.secrets";
    ask_bus(&["org.freedesktop.DBus.GetConnectionUnixProcessID", owner])
}

/// The last word of the bus's own answer.
pub fn ask_bus(call: &[&str]) -> String {
    let output = Command::new("dbus-send")
        .args(["--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/"])
        .args(call)
        .output()
        .expect("dbus-send comes with the bus");
    let reply = String::from_utf8(output.stdout).expect("UTF-8");
    reply.split_whitespace().last().unwrap_or_default().to_owned()
}

pub fn signal(signal: &str, process: &str) {
    assert!(Command::new("kill").args([signal, process]).status().expect("runs").success());
}
