//! Attacks of other users on the files of the service, and on those who talk to it.

#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;

use serde_json::json;

use support::{Place, Service, cannot_here, curl_as, is_root, set_mode, wait_until};

const ATTACKER: u32 = 61_010;

/// Starts the service, which must refuse to serve, and returns its log.
fn refused(place: &Place) -> String {
    let mut service = place.setup().spawn();
    let code = service.wait().code();
    assert!(matches!(code, Some(2 | 5)), "{code:?} {}", service.log());
    service.log()
}

#[test]
fn directories_that_others_control_are_refused() {
    if !is_root() {
        return;
    }
    for name in ["run", "data"] {
        // Of another user.
        let place = Place::new();
        let directory = place.root().join(name);
        fs::create_dir(&directory).expect("creates it");
        fs::write(directory.join("other"), "").expect("not only the vault's files");
        chown(&directory, Some(ATTACKER), None).expect("gives it away");
        assert!(refused(&place).contains("belongs to user 61010"));

        // Writable for others.
        chown(&directory, Some(0), None).expect("takes it back");
        set_mode(&directory, 0o777);
        assert!(refused(&place).contains("other users may write to"));

        // An ancestor that is, which is enough to put another directory in its place.
        set_mode(&directory, 0o755);
        set_mode(place.root(), 0o777);
        let log = refused(&place);
        assert!(log.contains(&format!("chmod go-w {}", place.root().display())), "{log}");

        // With the sticky bit, as /tmp has it, others cannot. It stays as it is.
        set_mode(place.root(), 0o1777);
        drop(place.start());
        assert_eq!(fs::metadata(place.root()).expect("it exists").mode() & 0o7777, 0o1777);

        // A link that another user can point elsewhere.
        let elsewhere = place.root().join("elsewhere");
        fs::rename(&directory, &elsewhere).expect("moves it");
        symlink(&elsewhere, &directory).expect("links it");
        std::os::unix::fs::lchown(&directory, Some(ATTACKER), None).expect("gives it away");
        assert!(refused(&place).contains("belongs to user 61010"));
        std::os::unix::fs::lchown(&directory, Some(0), None).expect("takes it back");
        drop(place.start());
    }
}

#[test]
fn a_trap_at_the_path_of_the_lock_is_refused_at_once() {
    let lock = |place: &Place| place.root().join("run/vault.sock.lock");
    let place = Place::new();
    fs::create_dir(place.root().join("run")).expect("creates it");
    let fifo = Command::new("mkfifo").arg(lock(&place)).status().expect("mkfifo runs");
    assert!(fifo.success());
    assert!(refused(&place).contains("not a regular file"));

    fs::remove_file(lock(&place)).expect("removes it");
    let victim = place.root().join("victim");
    symlink(&victim, lock(&place)).expect("links it");
    assert!(refused(&place).contains("symbolic link"));
    assert!(!victim.exists(), "nothing was created through the link");

    fs::remove_file(lock(&place)).expect("removes it");
    fs::write(&victim, "").expect("writes it");
    fs::hard_link(&victim, lock(&place)).expect("links it");
    assert!(refused(&place).contains("a single name"));

    if is_root() {
        fs::remove_file(&victim).expect("leaves one name");
        chown(lock(&place), Some(ATTACKER), None).expect("gives it away");
        assert!(refused(&place).contains("belongs to user 61010"));
    }
}

#[test]
fn a_database_of_another_user_or_behind_a_link_is_refused() {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let place = Place::new();
        place.seed_database(1);
        let file = place.data_dir().join(format!("credentials.db{suffix}"));
        let victim = place.root().join("victim");
        let _ = fs::rename(&file, &victim);
        symlink(&victim, &file).expect("links it");
        let log = refused(&place);
        assert!(log.contains("regular file") || log.contains("symbolic link"), "{suffix}: {log}");

        if is_root() {
            fs::remove_file(&file).expect("removes the link");
            if fs::rename(&victim, &file).is_err() {
                fs::write(&file, "").expect("writes it");
            }
            chown(&file, Some(ATTACKER), None).expect("gives it away");
            assert!(refused(&place).contains("belongs to user 61010"), "{suffix}");
        }
    }
}

#[test]
fn a_database_that_runs_statements_of_its_own_is_refused() {
    for statement in [
        "CREATE TRIGGER t AFTER INSERT ON credential_metadata BEGIN
             DELETE FROM credential_metadata; END",
        "CREATE VIEW v AS SELECT * FROM credential_metadata",
    ] {
        let place = Place::new();
        place.seed_database(1);
        let database = rusqlite::Connection::open(place.database()).expect("opens");
        database.execute_batch(statement).expect("creates it");
        drop(database);
        let before = fs::read(place.database()).expect("reads");
        assert!(refused(&place).contains("it has triggers or views"));
        assert_eq!(fs::read(place.database()).expect("reads"), before);
    }
}

#[test]
fn a_socket_has_the_mode_and_group_that_are_asked_for_whatever_the_umask() {
    let place = Place::new();
    let policy = place.root().join("policy.toml");
    fs::write(&policy, "[consumer.a]\nuid = 61010\n").expect("writes it");
    for umask in ["000", "022", "077", "177"] {
        let service = place.setup().after(&format!("umask {umask}")).start();
        assert_eq!(fs::metadata(&service.socket).expect("it exists").mode() & 0o777, 0o600);
        drop(service);
        let own_group = rustix::process::getegid().as_raw();
        let group = if rustix::process::getuid().is_root() { 61_011 } else { own_group };
        let setup = place.setup().after(&format!("umask {umask}"));
        let service = setup
            .option("--socket-mode", "0660")
            .option("--socket-group", group.to_string())
            .option("--policy", &policy)
            .start();
        let metadata = fs::metadata(&service.socket).expect("it exists");
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, group));
        let directory = service.socket.parent().expect("a directory");
        assert_eq!(fs::metadata(directory).expect("it exists").mode() & 0o777, 0o711);
        assert!(service.log().contains("the policy decides"), "{}", service.log());
    }
    let mut service = place.setup().option("--socket-mode", "0666").spawn();
    assert_eq!(service.wait().code(), Some(2));
    assert!(service.log().contains("give --policy FILE"), "{}", service.log());
}

#[test]
fn strangers_at_a_socket_open_to_all_are_refused_and_consumers_are_not() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    set_mode(place.root(), 0o755);
    let policy = place.root().join("policy.toml");
    let text = "[consumer.a]\nuid = 61011\n[[rule]]\nconsumers = [\"a\"]\nallow = [\"read\"]\n\
                namespaces = [\"*\"]\n";
    fs::write(&policy, text).expect("writes it");
    let setup = place.setup().option("--socket-mode", "0666");
    let service = setup.option("--policy", &policy).start();
    assert_eq!(service.put("/v1/credentials/a/b", &json!({ "value": "v" })).status, 200);
    let path = "/v1/credentials/a/b";
    assert_eq!(curl_as(61_011, &service.socket, &[], path), (200, r#"{"value":"v"}"#.to_owned()));
    assert_eq!(curl_as(ATTACKER, &service.socket, &[], path).0, 403);
}

/// Runs the vault's command in a user namespace without a mapping, as another user would appear
/// as we do there. `None` where the kernel does not let us make one.
fn unmapped(arguments: &[&str]) -> Option<(Option<i32>, String)> {
    let can = Command::new("unshare").args(["--user", "true"]).status().expect("unshare runs");
    if !can.success() {
        cannot_here("no user namespace can be made");
        return None;
    }
    let output = Command::new("unshare")
        .args(["--user", "timeout", "20", env!("CARGO_BIN_EXE_credential-vault")])
        .args(arguments)
        .output()
        .expect("unshare runs");
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.code(), String::from_utf8(text).expect("UTF-8")))
}

#[test]
fn without_a_mapping_nobody_is_taken_for_ourselves() {
    // The impostor is a listener of any user: in the namespace it looks like the client's own.
    let place = Place::new();
    set_mode(place.root(), 0o755);
    let socket = place.root().join("impostor.sock");
    let impostor = UnixListener::bind(&socket).expect("binds");
    set_mode(&socket, 0o666);
    let socket = socket.to_str().expect("UTF-8");
    let Some((code, text)) = unmapped(&["--socket", socket, "get", "a/b"]) else { return };
    assert_eq!(code, Some(4), "{text}");
    impostor.set_nonblocking(true).expect("a socket can be");
    let (mut stream, _) = impostor.accept().expect("it has connected");
    let mut sent = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut sent).expect("it has closed");
    assert!(sent.is_empty(), "nothing was sent");

    // A service there would answer any user.
    let run = place.root().join("run/vault.sock");
    let data = place.data_dir();
    let (code, text) = unmapped(&[
        "serve",
        "--backend",
        "env",
        "--socket",
        run.to_str().expect("UTF-8"),
        "--data-dir",
        data.to_str().expect("UTF-8"),
    ])
    .expect("a namespace, as before");
    assert!(matches!(code, Some(2 | 5)), "it refuses to serve: {code:?} {text}");
}

#[test]
fn an_unmapped_peer_is_refused() {
    if !is_root() {
        return;
    }
    // The overflow user itself stands for all that are not mapped.
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").expect("reads");
    let overflow: u32 = overflow.trim().parse().expect("a number");
    let place = Place::new();
    set_mode(place.root(), 0o755);
    let policy = place.root().join("policy.toml");
    let text = format!(
        "[consumer.a]\nuid = {overflow}\n[[rule]]\nconsumers = [\"a\"]\nallow = [\"read\"]\n\
         namespaces = [\"*\"]\n"
    );
    fs::write(&policy, text).expect("writes it");
    let setup = place.setup().option("--socket-mode", "0666");
    let service: Service = setup.option("--policy", &policy).start();
    let (status, answer) = curl_as(overflow, &service.socket, &[], "/health");
    assert!(status == 403 && answer.contains("user namespace"), "{status} {answer}");
    wait_until("it is in the log", || service.log().contains("refused a connection"));
}
