//! The keyring backend against a real gnome-keyring and `KWallet`, beside Python's `keyring` package.
//!
//! Each test runs itself again inside `scripts/with-keyring`, which makes a session bus, a
//! home and an unlocked keyring for it, and removes them afterwards.
#![cfg(target_os = "linux")]

#[path = "support/contract.rs"]
mod contract;
#[path = "support/sequences.rs"]
mod sequences;
#[path = "support/session.rs"]
mod session;
mod support;

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use intentframe_credentials::{
    BackendOptions, CredentialRef, CredentialVault, Environment, Secret, VaultError,
    backend::KeyringVault, create_vault,
};
use session::{ask_bus, daemon, run_again, signal};
use support::Running;

const PASSWORD: &[u8] = b"a password for this session";
/// Debian's own interpreter: its packages are what `scripts/install-test-deps` installs.
const PYTHON: &str = "/usr/bin/python3";
const SERVICE: &str = "com.intentframe.vault.openai";

/// Like [`session::session`], with Python's packages too.
fn session(test: &str) -> bool {
    session_with("gnome", "gnome-keyring-daemon", test)
}

fn session_with(keyring: &str, daemon: &str, test: &str) -> bool {
    let packages = ["-c", "import keyring, secretstorage"];
    let has = Command::new(PYTHON).args(packages).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        support::skip("no keyring package of Python; run: scripts/install-test-deps");
        return false;
    }
    session::session_with(keyring, daemon, test)
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

/// Runs Python and returns its output.
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
        sequences::agree(&*vault(), "random-", 8, |_| None, |_| ());
    }
}

#[test]
fn python_and_this_service_share_one_item_in_both_directions() {
    if !session("python_and_this_service_share_one_item_in_both_directions") {
        return;
    }
    let vault = vault();
    // One item is made by Python, the other by this service; then both write both in turn.
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
    let pid = daemon();
    signal("-KILL", &pid);
    let dead = || !Path::new("/proc").join(&pid).join("exe").exists();
    support::wait_until("the daemon is dead", dead);
}

/// Starts the daemon with its keyring unlocked.
fn start_daemon() {
    let mut daemon = Command::new("gnome-keyring-daemon")
        .args(["--unlock", "--components=secrets"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    daemon.stdin.take().expect("is piped").write_all(PASSWORD).expect("reads");
    assert!(daemon.wait().expect("goes into the background").success());
    // It goes into the background before it is on the bus. Until then, the bus would start a
    // second daemon, with a locked keyring, for anyone who asks.
    support::wait_until("the daemon is on the bus", || {
        ask_bus(&["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"]) == "true"
    });
}

/// The error of each kind of call on a keyring that is unavailable. Asserts that each comes
/// promptly.
fn refusals(vault: &dyn CredentialVault) -> Vec<String> {
    let after = Secret::new("after".to_owned());
    let calls: [&dyn Fn() -> Result<(), VaultError>; 7] = [
        &|| vault.get(&at("key")).map(drop),
        &|| vault.get(&at("none")).map(drop),
        &|| vault.has(&at("key")).map(drop),
        &|| vault.list_keys(at("key").namespace()).map(drop),
        &|| vault.store(&at("key"), &after),
        &|| vault.store(&at("new"), &after),
        &|| vault.delete(&at("key")).map(drop),
    ];
    let refusal = |call: &&dyn Fn() -> Result<(), VaultError>| {
        let since = Instant::now();
        let error = call().expect_err("unavailable");
        // Well below the 30 s that a call may take; not a measure of speed.
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        assert!(matches!(error, VaultError::BackendUnavailable { .. }), "{error}");
        assert!(error.to_string().contains("another backend (env"), "{error}");
        error.to_string()
    };
    calls.iter().map(refusal).collect()
}

#[test]
fn a_locked_keyring_is_unavailable_at_once_and_changes_nothing() {
    if !session("a_locked_keyring_is_unavailable_at_once_and_changes_nothing") {
        return;
    }
    let vault = vault();
    store(&*vault, "key", "before");
    with_collection("key", "c.lock()");
    for error in refusals(&*vault) {
        assert!(error.contains("unlock it"), "{error}");
    }
    kill_daemon();
    start_daemon();
    assert_eq!(value(&*vault, "key").as_deref(), Some("before"));
    assert_eq!(value(&*vault, "new"), None);
}

/// Replaces the window that asks for the keyring's password, and never answers. Returns its
/// process, and the number of times it was asked.
fn prompter_that_never_answers() -> (Running, Arc<AtomicUsize>) {
    const SCRIPT: &str = "\
import jeepney
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
bus = open_dbus_connection()
bus.send_and_get_reply(message_bus.RequestName('org.gnome.keyring.SystemPrompter'))
print('ready', flush=True)
while True:
    message = bus.receive()
    if message.header.message_type is jeepney.MessageType.method_call:
        bus.send(jeepney.new_method_return(message))
        print(message.header.fields[jeepney.HeaderFields.member], flush=True)
";
    let mut prompter =
        Command::new(PYTHON).args(["-c", SCRIPT]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(prompter.stdout.take().expect("is piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("UTF-8"), "ready");
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            counter.fetch_add(usize::from(line == "BeginPrompting"), Ordering::Relaxed);
        }
    });
    (Running(prompter), asked)
}

#[test]
fn a_prompt_that_stays_open_delays_nobody_and_changes_nothing() {
    if !session("a_prompt_that_stays_open_delays_nobody_and_changes_nothing") {
        return;
    }
    let (_prompter, asked) = prompter_that_never_answers();
    let vault = vault();
    store(&*vault, "key", "before");
    with_collection("key", "c.lock()");

    vault.store(&at("key"), &Secret::new("never".to_owned())).expect_err("locked");
    support::wait_until("the prompt is open", || asked.load(Ordering::Relaxed) > 0);
    vault.delete(&at("key")).expect_err("locked");
    vault.get(&at("key")).expect_err("locked");
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                for error in refusals(&*vault) {
                    assert!(error.contains("unlock it"), "{error}");
                }
            });
        }
    });
    assert_eq!(asked.load(Ordering::Relaxed), 1, "one prompt for all callers");

    // The daemon that would report the end of the prompt is gone. Its successor is unlocked.
    kill_daemon();
    start_daemon();
    assert_eq!(value(&*vault, "key").as_deref(), Some("before"));
    assert_eq!(value(&*vault, "new"), None);
    store(&*vault, "key", "after");
    assert_eq!((items("key").as_str(), python_gets("key").as_str()), ("1", "after"));
}

/// As with Python, the first store makes one. That takes a person, who chooses its password, if
/// there is no keyring of the login to take instead.
#[test]
fn without_a_default_collection_the_first_store_makes_one() {
    if !session("without_a_default_collection_the_first_store_makes_one") {
        return;
    }
    let (_prompter, asked) = prompter_that_never_answers();
    let vault = vault();
    let forget_default = "import secretstorage, secretstorage.util as u\n\
         s = u.DBusAddressWrapper('/org/freedesktop/secrets', \
         'org.freedesktop.Secret.Service', secretstorage.dbus_init())\n\
         s.call('SetAlias', 'so', 'default', '/')\n\
         print(s.call('ReadAlias', 's', 'default')[0])";
    assert_eq!(python(forget_default), "/");
    assert_eq!(value(&*vault, "key"), None);
    assert!(vault.list_keys(at("key").namespace()).expect("nothing is locked").is_empty());
    store(&*vault, "key", "stored");
    assert_eq!(python_gets("key"), "stored");

    with_collection("key", "c.delete()");
    assert_eq!(python(forget_default), "/");
    let error = vault.store(&at("key"), &Secret::new("never".to_owned())).expect_err("no keyring");
    assert!(matches!(error, VaultError::BackendUnavailable { .. }), "{error}");
    support::wait_until("somebody is asked", || asked.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_deadline_is_kept() {
    if !session("a_deadline_is_kept") {
        return;
    }
    // With another vault, because on a busy machine a healthy keyring may need longer than
    // this deadline.
    store(&*crate::vault(), "key", "before");
    let vault = KeyringVault::new(Duration::from_millis(500));
    let pid = daemon();
    signal("-STOP", &pid);
    // More calls than threads may hang at a time.
    let refusals: Vec<String> = (0..10)
        .map(|_| {
            let since = Instant::now();
            let error = vault.get(&at("key")).expect_err("no answer");
            // Well below the usual 30 s; not a measure of speed.
            assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
            assert!(matches!(error, VaultError::BackendUnavailable { .. }), "{error}");
            error.to_string()
        })
        .collect();
    // Only a deadline is reported like this: the bus gives up a call later, with another text.
    assert!(refusals.iter().any(|error| error.contains("does not answer")), "{refusals:#?}");
    signal("-CONT", &pid);
    support::wait_until("it answers", || vault.get(&at("key")).is_ok());
    assert_eq!(value(&*crate::vault(), "key").as_deref(), Some("before"));
    vault.close();
    let error = vault.get(&at("key")).expect_err("closed");
    assert!(matches!(error, VaultError::BackendUnavailable { .. }), "{error}");
}

#[test]
fn without_a_bus_or_a_keyring_the_error_says_what_to_do() {
    let test = "without_a_bus_or_a_keyring_the_error_says_what_to_do";
    if session::is_inside() {
        for error in refusals(&*vault()) {
            assert!(error.contains("DBUS_SESSION_BUS_ADDRESS"), "{error}");
        }
        return;
    }
    let place = tempfile::tempdir().expect("a place of its own");
    let again = || {
        let mut command = Command::new(env::current_exe().expect("this test's program"));
        command.env_remove("DBUS_SESSION_BUS_ADDRESS").env_remove("DISPLAY");
        command.env("XDG_RUNTIME_DIR", place.path());
        command
    };
    run_again(test, &mut again());
    run_again(test, again().env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent"));

    // A bus without services, which cannot start any.
    let (config, socket) = (place.path().join("bus.conf"), place.path().join("bus"));
    let address = format!("unix:path={}", socket.display());
    let listening = format!(
        "<busconfig><type>session</type><listen>{address}</listen><policy context=\"default\">\
         <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>"
    );
    std::fs::write(&config, listening).expect("writes");
    let bus = Command::new("dbus-daemon")
        .args(["--nofork", "--config-file"])
        .arg(&config)
        .stderr(Stdio::null())
        .spawn();
    let Ok(bus) = bus else {
        return support::skip("no session bus to test with; run: apt-get install dbus-daemon");
    };
    let _bus = Running(bus);
    support::wait_until("the bus is there", || socket.exists());
    run_again(test, again().env("DBUS_SESSION_BUS_ADDRESS", &address));
}

#[test]
fn an_item_without_pythons_attribute_gets_it_at_the_next_store() {
    if !session("an_item_without_pythons_attribute_gets_it_at_the_next_store") {
        return;
    }
    // As after a crash between the two steps of a store, or from another program.
    with_collection("key", "c.create_item('l', a, b'before')");
    let vault = vault();
    store(&*vault, "key", "rust");
    python_sets("key", "python");
    assert_eq!(items("key"), "1");
    assert_eq!(value(&*vault, "key").as_deref(), Some("python"));
    store(&*vault, "made", "rust");
    let label = with_collection("made", "print([i.get_label() for i in c.search_items(a)])");
    assert_eq!(label, format!("[\"Password for 'made' on '{SERVICE}'\"]"));
}

#[test]
fn bytes_that_are_not_utf8_are_an_error() {
    if !session("bytes_that_are_not_utf8_are_an_error") {
        return;
    }
    with_collection("key", r"c.create_item('l', a, b'sk-canary\xff')");
    let error = vault().get(&at("key")).expect_err("not UTF-8");
    assert!(matches!(error, VaultError::ReadFailed { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"));
}

/// The wire contract, with the service on a real keyring.
#[test]
fn the_wire_contract_on_a_keyring() {
    if session("the_wire_contract_on_a_keyring") {
        wire_contract();
    }
}

fn wire_contract() {
    let place = support::Place::new();
    let service =
        place.setup_with("keyring").env("DBUS_SESSION_BUS_ADDRESS", session::bus()).start();
    support::assert_wire_contract(&place.socket());
    assert!(service.get("/health").json()["backend"] == "KeyringVault");
}

fn kwallet_session(test: &str) -> bool {
    session_with("kwallet", "kwalletd5", test)
}

#[test]
fn the_wire_contract_on_kwallet() {
    if kwallet_session("the_wire_contract_on_kwallet") {
        wire_contract();
    }
}

#[test]
fn the_contract_of_the_trait_on_kwallet() {
    if kwallet_session("the_contract_of_the_trait_on_kwallet") {
        contract::contract(&*vault(), "contract-");
    }
}

#[test]
fn the_wire_contract_on_keepassxc() {
    if session_with("keepassxc", "keepassxc", "the_wire_contract_on_keepassxc") {
        wire_contract();
    }
}

#[test]
fn keepassxc_keeps_the_contract_and_python_shares_its_items() {
    let test = "keepassxc_keeps_the_contract_and_python_shares_its_items";
    if !session_with("keepassxc", "keepassxc", test) {
        return;
    }
    let vault = vault();
    contract::contract(&*vault, "contract-");
    store(&*vault, "key", "ours");
    assert_eq!((items("key").as_str(), python_gets("key").as_str()), ("1", "ours"));
    // Python cannot replace an item of KeePassXC 2.7.4 without a person, but we can.
    python_sets("theirs", "theirs");
    assert_eq!(value(&*vault, "theirs").as_deref(), Some("theirs"));
    store(&*vault, "theirs", "ours");
    assert_eq!((items("theirs").as_str(), python_gets("theirs").as_str()), ("1", "ours"));
}

/// A collection of `KWallet` reads as locked, until somebody has gone through its prompt. That
/// completes by itself, since the wallet is open.
#[test]
fn each_call_to_a_locked_kwallet_unlocks_it_and_python_shares_its_items() {
    if !kwallet_session("each_call_to_a_locked_kwallet_unlocks_it_and_python_shares_its_items") {
        return;
    }
    let close = || with_collection("key", "c.lock()");
    // What PAM does at the login: it opens the wallet with a hash of the password.
    let hash = format!("array:byte:{}", ["0x2a"; 56].join(","));
    let open = ["org.kde.KWallet.pamOpen", "string:kdewallet", &hash, "int32:0"];
    let lock = || {
        close();
        let mut command = Command::new("dbus-send");
        command.args(["--print-reply", "--dest=org.kde.kwalletd5", "/modules/kwalletd5"]);
        assert!(command.args(open).output().expect("runs").status.success());
        assert_eq!(with_collection("key", "print(c.is_locked())"), "True");
    };
    let vault = vault();
    store(&*vault, "key", "ours");
    assert_eq!(python_gets("key"), "ours");
    lock();
    python_sets("key", "theirs");
    lock();
    assert_eq!(value(&*vault, "key").as_deref(), Some("theirs"));
    lock();
    assert_eq!(value(&*vault, "none"), None);
    lock();
    assert!(vault.has(&at("key")).expect("unlocked"));
    lock();
    assert_eq!(vault.list_keys(at("key").namespace()).expect("unlocked"), ["key"]);
    lock();
    store(&*vault, "key", "ours again");
    assert_eq!((items("key").as_str(), python_gets("key").as_str()), ("1", "ours again"));
    lock();
    assert!(vault.delete(&at("key")).expect("unlocked"));
    assert_eq!(python_gets("key"), "None");

    // A wallet that only its password opens delays nobody.
    store(&*vault, "key", "before");
    close();
    for error in refusals(&*vault) {
        assert!(error.contains("unlock it"), "{error}");
    }
}
