//! The keyring backend against a real gnome-keyring, beside Python's `keyring` package.
//!
//! Each test runs itself again inside `scripts/with-gnome-keyring`: a session bus, a home
//! and an unlocked keyring of its own, gone afterwards.
#![cfg(target_os = "linux")]

#[path = "vault_contract/contract.rs"]
mod contract;
mod support;

use std::env;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use intentframe_credentials::{
    BackendOptions, CredentialRef, CredentialVault, Environment, Secret, VaultError, create_vault,
};
use std::sync::Arc;

const IN_SESSION: &str = "KEYRING_TEST_SESSION";
const PASSWORD: &[u8] = b"a password for this session";
/// Debian's own interpreter: its packages are what `scripts/install-test-deps` installs.
const PYTHON: &str = "/usr/bin/python3";
const SERVICE: &str = "com.intentframe.vault.openai";

/// Says whether this process is to run the test's body; if not, the test has been run in a
/// session, or left out for want of a keyring.
fn session(test: &str) -> bool {
    if env::var_os(IN_SESSION).is_some() {
        return true;
    }
    let has = |program: &str, arguments: &[&str]| {
        let run = Command::new(program).args(arguments).output();
        run.is_ok_and(|output| output.status.success())
    };
    if !(has("gnome-keyring-daemon", &["--version"])
        && has("dbus-run-session", &["--version"])
        && has(PYTHON, &["-c", "import keyring, secretstorage"]))
    {
        support::skip(
            "no gnome-keyring to test with; run: apt-get install gnome-keyring dbus-daemon \
             python3-keyring python3-secretstorage",
        );
        return false;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-gnome-keyring");
    let output = Command::new(script)
        .arg(env::current_exe().expect("this test's program"))
        .args(["--exact", test, "--nocapture"])
        .env(IN_SESSION, "1")
        .output()
        .expect("the script is executable");
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", lossy(&output.stdout), lossy(&output.stderr));
    assert!(lossy(&output.stdout).contains("1 passed"), "{}", lossy(&output.stdout));
    false
}

fn vault() -> Arc<dyn CredentialVault> {
    create_vault("keyring", &BackendOptions::new(Environment::default())).expect("registered")
}

fn at(key: &str) -> CredentialRef {
    CredentialRef::parse("openai", key).expect("valid")
}

fn value(vault: &dyn CredentialVault, key: &str) -> Option<String> {
    vault.get(&at(key)).expect("reads").map(|value| value.expose().to_owned())
}

fn store(vault: &dyn CredentialVault, key: &str, value: &str) {
    vault.store(&at(key), &Secret::new(value.to_owned())).expect("stores");
}

/// Runs Python, and gives what it prints.
fn python(script: &str) -> String {
    let output = Command::new(PYTHON).args(["-c", script]).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim_end_matches('\n').to_owned()
}

fn python_sets(key: &str, value: &str) {
    python(&format!("import keyring; keyring.set_password('{SERVICE}', '{key}', '{value}')"));
}

fn python_gets(key: &str) -> String {
    python(&format!("import keyring; print(keyring.get_password('{SERVICE}', '{key}'))"))
}

/// Runs Python with `c` as the default collection and `a` as the attributes of `key`.
fn with_collection(key: &str, script: &str) -> String {
    python(&format!(
        "import secretstorage\n\
         c = secretstorage.get_default_collection(secretstorage.dbus_init())\n\
         a = {{'service': '{SERVICE}', 'username': '{key}'}}\n{script}"
    ))
}

fn items(key: &str) -> String {
    with_collection(key, "print(len(list(c.search_items(a))))")
}

#[test]
fn the_contract_of_the_trait() {
    if session("the_contract_of_the_trait") {
        contract::contract(&*vault(), "contract-");
    }
}

#[test]
fn python_and_this_service_share_one_item_in_both_directions() {
    if !session("python_and_this_service_share_one_item_in_both_directions") {
        return;
    }
    let vault = vault();
    // Made by Python first, then by this service first; back and forth each time.
    for (key, made_by_python) in [("theirs", true), ("ours", false)] {
        for round in 0..3 {
            if made_by_python || round > 0 {
                python_sets(key, &format!("python {round} é"));
                assert_eq!(value(&*vault, key), Some(format!("python {round} é")));
                assert_eq!(items(key), "1");
            }
            store(&*vault, key, &format!("rust {round} 🔑"));
            assert_eq!(python_gets(key), format!("rust {round} 🔑"));
            assert_eq!(value(&*vault, key), Some(format!("rust {round} 🔑")));
            assert_eq!(items(key), "1");
        }
    }
    let namespace = at("ours").namespace().clone();
    assert_eq!(vault.list_keys(&namespace).expect("lists"), ["ours", "theirs"]);
    assert!(vault.delete(&at("theirs")).expect("deletes"));
    assert_eq!(python_gets("theirs"), "None");
    python(&format!("import keyring; keyring.delete_password('{SERVICE}', 'ours')"));
    assert_eq!(value(&*vault, "ours"), None);
    assert!(!vault.delete(&at("ours")).expect("deletes"));
}

#[test]
fn of_two_items_the_newest_counts_and_both_are_deleted() {
    if !session("of_two_items_the_newest_counts_and_both_are_deleted") {
        return;
    }
    let vault = vault();
    let make_two = |key: &str| {
        with_collection(
            key,
            "c.create_item('old', a, b'older', replace=False)\n\
             c.create_item('new', {**a, 'application': 'Python keyring library'}, b'newer', replace=False)",
        );
        assert_eq!(items(key), "2");
        assert_eq!(value(&*vault, key).as_deref(), Some("newer"));
        assert!(vault.has(&at(key)).expect("asks"));
    };
    make_two("stored");
    store(&*vault, "stored", "newest");
    assert_eq!((items("stored").as_str(), python_gets("stored").as_str()), ("1", "newest"));
    make_two("deleted");
    assert!(vault.delete(&at("deleted")).expect("deletes"));
    assert_eq!(items("deleted"), "0");
}

/// Kills the session's keyring daemon with SIGKILL.
fn kill_daemon() {
    let output = Command::new("dbus-send")
        .args(["--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/"])
        .args(["org.freedesktop.DBus.GetConnectionUnixProcessID", "string:org.freedesktop.secrets"])
        .output()
        .expect("dbus-send comes with the bus");
    let reply = String::from_utf8(output.stdout).expect("UTF-8");
    let pid = reply.split_whitespace().last().expect("a process id");
    assert!(Command::new("kill").args(["-9", pid]).status().expect("runs").success());
    let dead = || !Path::new("/proc").join(pid).join("exe").exists();
    support::wait_until("the daemon is dead", dead);
}

fn start_daemon() {
    let mut daemon = Command::new("gnome-keyring-daemon")
        .args(["--unlock", "--components=secrets"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    daemon.stdin.take().expect("is piped").write_all(PASSWORD).expect("reads");
    assert!(daemon.wait().expect("goes into the background").success());
}

#[test]
fn a_restart_of_the_daemon_is_survived() {
    if !session("a_restart_of_the_daemon_is_survived") {
        return;
    }
    let vault = vault();
    store(&*vault, "key", "before");
    for round in 0..3 {
        kill_daemon();
        start_daemon();
        let expected =
            if round == 0 { "before".to_owned() } else { format!("round {}", round - 1) };
        assert_eq!(value(&*vault, "key"), Some(expected));
        kill_daemon();
        start_daemon();
        store(&*vault, "key", &format!("round {round}"));
        assert_eq!(items("key"), "1");
    }
}

#[test]
fn a_locked_keyring_is_unavailable_at_once_and_changes_nothing() {
    if !session("a_locked_keyring_is_unavailable_at_once_and_changes_nothing") {
        return;
    }
    let vault = vault();
    store(&*vault, "key", "before");
    with_collection("key", "c.lock()");
    let promptly = |outcome: Result<(), VaultError>, since: Instant| {
        let error = outcome.expect_err("locked");
        assert!(matches!(error, VaultError::BackendUnavailable { .. }), "{error}");
        assert!(error.to_string().contains("unlock it"), "{error}");
        assert!(error.to_string().contains("--backend"), "{error}");
        // Far from the 30 s that a call may take; not a measure of speed.
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    };
    let now = Instant::now;
    let since = now();
    promptly(vault.get(&at("key")).map(drop), since);
    let since = now();
    promptly(vault.store(&at("key"), &Secret::new("after".to_owned())), since);
    let since = now();
    promptly(vault.store(&at("new"), &Secret::new("after".to_owned())), since);
    let since = now();
    promptly(vault.delete(&at("key")).map(drop), since);
    kill_daemon();
    start_daemon();
    assert_eq!(value(&*vault, "key").as_deref(), Some("before"));
    assert_eq!(value(&*vault, "new"), None);
}

#[test]
fn what_is_no_text_is_an_error_and_not_a_value() {
    if !session("what_is_no_text_is_an_error_and_not_a_value") {
        return;
    }
    with_collection("key", r"c.create_item('l', a, b'sk-canary\xff')");
    let error = vault().get(&at("key")).expect_err("not UTF-8");
    assert!(matches!(error, VaultError::ReadFailed { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"));
}

/// The wire contract once more, with the service on a real keyring.
#[test]
fn the_wire_contract_on_a_keyring() {
    if !session("the_wire_contract_on_a_keyring") {
        return;
    }
    let place = support::Place::new();
    let service = place
        .setup_with("keyring")
        .env("DBUS_SESSION_BUS_ADDRESS", &env::var("DBUS_SESSION_BUS_ADDRESS").expect("a session"))
        .start();
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/wire-contract"))
        .arg("--socket")
        .arg(place.socket())
        .output()
        .expect("the script is executable");
    let text = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<&str> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(output.status.success(), "{failed:#?} {}", String::from_utf8_lossy(&output.stderr));
    assert!(service.get("/health").json()["backend"] == "KeyringVault");
}
