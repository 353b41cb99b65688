//! From start to end: the socket, signals, restarts, what survives them, and who may connect.
#![cfg(unix)]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use support::{
    Connection, DEADLINE, Place, Service, copy_program, curl_as, get, is_root, mode, put, set_mode,
    try_connect, wait_until,
};

const KEY: &str = "/v1/credentials/lifecycle/key";

/// Waits until the listener is gone, which shows that the service is ending.
fn wait_until_refusing(service: &Service) {
    wait_until("it stops accepting", || UnixStream::connect(&service.socket).is_err());
}

/// Returns a client in the middle of an answer that is larger than a socket's buffer.
fn in_the_middle_of_a_listing(service: &Service) -> Connection {
    let mut connection = service.connect();
    connection.send(&get("/v1/credentials"));
    wait_until("the answer begins", || !connection.is_silent());
    connection
}

#[test]
fn both_signals_end_it_with_0_and_without_its_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_place, mut service) = Place::serving();
        assert_eq!(service.put(KEY, &json!({ "value": "v" })).status, 200);
        let mut idle = service.connect();
        let mut kept_alive = service.connect();
        assert_eq!(kept_alive.exchange(&get("/health")).status, 200);

        let start = Instant::now();
        service.signal(signal);
        assert_eq!(service.wait().code(), Some(0), "{}", service.log());
        assert!(start.elapsed() < Duration::from_secs(8), "idle connections are not waited for");
        assert!(!service.socket.exists());
        idle.assert_closed();
        kept_alive.assert_closed();
    }
}

#[test]
fn an_answer_under_way_is_finished() {
    let place = Place::new();
    place.seed_database(10_000);
    let mut service = place.start();
    let mut reader = in_the_middle_of_a_listing(&service);
    service.signal(Signal::TERM);
    wait_until_refusing(&service);
    assert!(service.exit_status().is_none(), "it waits for the reader");
    assert_eq!(reader.response().json().as_array().expect("a list").len(), 10_000);
    reader.assert_closed();
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn a_request_under_way_is_finished() {
    let (place, mut service) = Place::serving();
    let request = put(KEY, &json!({ "value": "sent in two halves" }));
    let (first, second) = request.split_at(request.len() - 5);
    let mut connection = service.connect();
    connection.send(first);
    // Answered after the first half was read.
    service.assert_healthy();
    service.signal(Signal::TERM);
    wait_until_refusing(&service);
    assert_eq!(connection.exchange(second).status, 200);
    connection.assert_closed();
    assert_eq!(service.wait().code(), Some(0));
    assert!(place.column("masked_preview", "lifecycle", "key").is_some());
}

#[test]
fn a_client_that_never_reads_delays_the_end_by_10_seconds_at_most() {
    let place = Place::new();
    place.seed_database(10_000);
    let mut service = place.start();
    let _never_reads = in_the_middle_of_a_listing(&service);
    let start = Instant::now();
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(!service.socket.exists());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let place = Place::new();
        place.seed_database(10_000);
        let mut service = place.start();
        let _never_reads = in_the_middle_of_a_listing(&service);
        service.signal(first);
        wait_until_refusing(&service);
        let start = Instant::now();
        service.signal(second);
        service.wait();
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[test]
fn a_live_socket_is_refused() {
    let place = Place::new();
    let first = place.start();
    let mut connection = first.connect();
    assert_eq!(first.put(KEY, &json!({ "value": "first" })).status, 200);

    // It has its own data, so only the socket can stop it.
    let own_data = place
        .bare_setup()
        .argument("--backend=env")
        .env("INTENTFRAME_VAULT_SOCKET", place.socket());
    for setup in [place.setup(), own_data] {
        let mut second = setup.spawn();
        assert!(!second.wait().success());
        assert!(second.log().contains("already running"), "{}", second.log());
    }

    assert_eq!(first.get(KEY).value(), "first", "over the same socket file");
    assert_eq!(connection.exchange(&get(KEY)).value(), "first");
}

#[test]
fn of_several_started_at_once_exactly_one_serves() {
    for round in 0..6 {
        let place = Place::new();
        if round % 2 == 1 {
            place.start().kill();
        }
        let mut services: Vec<Service> = (0..4).map(|_| place.setup().spawn()).collect();
        wait_until("all but one have ended", || {
            services.retain_mut(|service| match service.exit_status() {
                None => true,
                Some(status) => {
                    assert!(!status.success());
                    assert!(service.log().contains("already running"), "{}", service.log());
                    false
                }
            });
            services.len() == 1
        });
        services[0].wait_until_ready();
        services[0].assert_healthy();
    }
}

#[test]
fn what_is_no_socket_is_not_deleted() {
    let place = Place::new();
    fs::create_dir(place.socket().parent().expect("has one")).expect("creates");
    fs::write(place.socket(), "precious").expect("writes");
    let mut service = place.setup().spawn();
    assert!(!service.wait().success());
    assert_eq!(fs::read_to_string(place.socket()).expect("still there"), "precious");
    assert!(service.log().contains(place.socket().to_str().expect("UTF-8")), "{}", service.log());

    fs::remove_file(place.socket()).expect("removes");
    fs::create_dir(place.socket()).expect("creates");
    let mut service = place.setup().spawn();
    assert!(!service.wait().success());
    assert!(place.socket().is_dir());
}

#[test]
fn the_socket_is_0600_in_a_0700_directory_from_the_first_moment() {
    for _ in 0..5 {
        let place = Place::new();
        let mut service = place.setup().after("umask 0").spawn();
        let directory = place.socket().parent().expect("has one").to_owned();
        let end = Instant::now() + DEADLINE;
        // As often as possible, since a wrong mode would last only a moment.
        loop {
            if let Ok(seen) = fs::metadata(&directory) {
                assert_eq!(seen.permissions().mode() & 0o7777, 0o700, "the directory");
            }
            if let Ok(seen) = fs::symlink_metadata(place.socket()) {
                assert!(seen.file_type().is_socket());
                assert_eq!(seen.permissions().mode() & 0o7777, 0o600, "the socket");
                if try_connect(&service.socket).is_ok() {
                    break;
                }
            }
            assert!(Instant::now() < end, "{}", service.log());
        }
        service.wait_until_ready();
        assert_eq!(mode(place.socket()), 0o600);
        assert_eq!(mode(place.data_dir()), 0o700);
        assert_eq!(service.put(KEY, &json!({ "value": "v" })).status, 200);
        for entry in fs::read_dir(place.data_dir()).expect("lists") {
            let entry = entry.expect("an entry");
            assert_eq!(mode(entry.path()), 0o600, "{}", entry.path().display());
        }
    }
}

#[test]
fn settings_come_from_options_then_environment_then_home() {
    let place = Place::new();
    let home = place.root();
    let socket = home.join(".intentframe/run/credential-vault.sock");
    let service =
        place.bare_setup().env("IF_VAULT_BACKEND", "env").listening_at(socket.clone()).start();
    assert_eq!(service.get("/health").json()["backend"], "EnvVault");
    assert!(home.join(".intentframe/data/credentials.db").exists());
    assert_eq!(mode(home.join(".intentframe/run")), 0o700);
    drop(service);

    let socket = home.join("from-environment/vault.sock");
    let in_environment = place
        .bare_setup()
        .env("IF_VAULT_BACKEND", "env")
        .env("INTENTFRAME_VAULT_SOCKET", "~/from-environment/vault.sock")
        .env("INTENTFRAME_DATA_DIR", "~/from-environment/data");
    drop(in_environment.clone().listening_at(socket).start());
    assert!(home.join("from-environment/data/credentials.db").exists());

    let socket = home.join("from-options/vault.sock");
    let service = in_environment
        .env("IF_VAULT_BACKEND", "no-such-backend")
        .option("--backend", "env")
        .option("--socket", "~/from-options/vault.sock")
        .option("--data-dir", "~/from-options/data")
        .listening_at(socket)
        .start();
    assert!(home.join("from-options/data/credentials.db").exists());
    drop(service);

    let mut twice = place.setup().option("--backend", "no-such-backend").spawn();
    assert!(!twice.wait().success());
    let log = twice.log();
    assert!(log.contains("--backend"), "an option that is given twice is rejected: {log}");
    let mut unknown = place.bare_setup().env("IF_VAULT_BACKEND", "no-such-backend").spawn();
    assert!(!unknown.wait().success());
    let log = unknown.log();
    assert!(log.contains("env") && log.contains("keyring"), "it lists the backends: {log}");
}

#[test]
fn last_used_at_is_on_disk_within_a_second() {
    let (place, service) = Place::serving();
    assert_eq!(service.put(KEY, &json!({ "value": "v" })).status, 200);
    assert_eq!(service.get(KEY).status, 200);
    let start = Instant::now();
    wait_until("it is in the file", || place.column("last_used_at", "lifecycle", "key").is_some());
    // Some more, for a busy machine.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

const SOMEBODY: u32 = 61_020;
const SOMEBODY_ELSE: u32 = 61_021;

/// Returns the status that curl gets when it runs as another user.
fn status_for(uid: u32, service: &Service, method: &str, path: &str) -> u16 {
    let body = ["-X", "PUT", "-H", "Content-Type: application/json", "-d", r#"{"value":"v"}"#];
    let arguments = match method {
        "HEAD" => &["--head"],
        "PUT" => &body[..],
        _ => &["-X", method],
    };
    curl_as(uid, &service.socket, arguments, path).0
}

/// Lets everyone reach the socket, as a well-meaning operator might.
fn open_to_everyone(place: &Place) {
    for (path, mode) in [
        (place.root().to_owned(), 0o755),
        (place.socket().parent().expect("has one").to_owned(), 0o755),
        (place.socket(), 0o666),
    ] {
        set_mode(path, mode);
    }
}

const EVERYTHING: [(&str, &str); 9] = [
    ("GET", "/health"),
    ("GET", "/v1/credentials"),
    ("GET", "/v1/credentials/lifecycle"),
    ("GET", KEY),
    ("HEAD", KEY),
    ("PUT", KEY),
    ("DELETE", KEY),
    ("GET", "/v1/runtime-env"),
    ("GET", "/no/such/route"),
];

#[test]
fn other_users_are_refused_before_they_ask() {
    if !is_root() {
        return;
    }
    let (place, service) = Place::serving();
    assert_eq!(service.put(KEY, &json!({ "value": "v" })).status, 200);
    open_to_everyone(&place);
    for (method, path) in EVERYTHING {
        assert_eq!(status_for(SOMEBODY, &service, method, path), 403, "{method} {path}");
    }
    // A client that sends nothing also gets a 403.
    let silent = Command::new("setpriv")
        .args(["--reuid", &SOMEBODY.to_string(), "--clear-groups", "timeout", "20", "python3", "-c"])
        .arg("import socket,sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(12).decode())")
        .arg(&service.socket)
        .output()
        .expect("setpriv is installed");
    assert_eq!(String::from_utf8_lossy(&silent.stdout), "HTTP/1.1 403\n");
    assert_eq!(service.get(KEY).value(), "v", "as it was");
    assert_eq!(service.get("/health").json()["credential_count"], 1);
}

#[test]
fn root_is_served_by_another_users_service() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    // Where the other user can reach it, and nobody else can change it.
    set_mode(place.root(), 0o755);
    std::os::unix::fs::chown(place.root(), Some(SOMEBODY), Some(SOMEBODY)).expect("gives it away");
    let mut setup = place.setup().identity(SOMEBODY);
    let program = place.root().join("credential-vault");
    copy_program(&setup.program, &program);
    setup.program = program;

    let service = setup.start();
    assert_eq!(fs::metadata(place.socket()).expect("it exists").uid(), SOMEBODY);
    assert_eq!(service.put(KEY, &json!({ "value": "v" })).status, 200);
    assert_eq!(status_for(SOMEBODY, &service, "GET", KEY), 200);
    open_to_everyone(&place);
    assert_eq!(status_for(SOMEBODY_ELSE, &service, "GET", KEY), 403);

    // Run as root, the client sends nothing to another user's service without --server-uid.
    let vault = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
        command.env("INTENTFRAME_VAULT_SOCKET", &service.socket).args(arguments);
        let output = command.output().expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, stdout, stderr) = vault(&["get", "lifecycle/key"]);
    assert_eq!((code, stdout.as_str()), (Some(4), ""), "{stderr}");
    assert!(stderr.contains(&format!("user ID {SOMEBODY}")) && stderr.contains("--server-uid"));
    let somebody = SOMEBODY.to_string();
    let (code, stdout, stderr) = vault(&["--server-uid", &somebody, "get", "lifecycle/key"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "v"), "{stderr}");
}
