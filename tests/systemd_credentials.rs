//! `systemd-credentials`, with a client that connects as systemd does.

#![cfg(target_os = "linux")]

mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, socket};
use rustix::process::Signal;
use serde_json::{Value, json};

use support::{DEADLINE, Place, Running, Service, is_root, set_mode, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_credential-vault");

const POLICY: &str = r#"
[consumer.edi]
unit = "edi.service"

[consumer.jarvis]
unit = "jarvis@1.service"

[consumer.both]
unit = "both.service"
uid = 0

[[rule]]
consumers = ["edi", "jarvis", "both"]
allow = ["read"]
namespaces = ["openai", "email.*"]
"#;

/// A service, and what gives its values to systemd.
struct Vault {
    place: Place,
    service: Service,
    helper: Running,
}

impl Vault {
    fn start(policy: Option<&str>) -> Self {
        let place = Place::new();
        let path = |name: &str| place.root().join(name).to_str().expect("UTF-8").to_owned();
        let mut setup = place.setup().option("--audit-log", path("audit.jsonl"));
        if let Some(policy) = policy {
            fs::write(path("policy.toml"), policy).expect("writes the policy");
            setup = setup.option("--policy", path("policy.toml"));
        }
        let service = setup.start();
        let helper = Command::new(PROGRAM)
            .args(["systemd-credentials", "--listen", &path("units/systemd.sock"), "--socket"])
            .arg(&service.socket)
            .env_clear()
            .stderr(File::create(path("helper.log")).expect("a file"))
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        let vault = Self { place, service, helper: Running(helper) };
        wait_until("it listens", || vault.said().contains("serving the credentials"));
        vault
    }

    fn path(&self) -> PathBuf {
        self.place.root().join("units/systemd.sock")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.place.root().join("helper.log")).unwrap_or_default()
    }

    fn store(&self, name: &str, request: &Value) {
        let answer = self.service.put(&format!("/v1/credentials/{name}"), request);
        assert_eq!(answer.status, 200, "{name}");
    }

    /// What systemd reads: the value, or, if that is too long for it, `None`.
    fn load(&self, unit: &str, credential: &str) -> Option<String> {
        loaded(ask(&self.path(), &format!("unit/{unit}/{credential}")))
    }

    /// The reads in the audit log: unit, consumer, outcome, user.
    fn reads(&self) -> Vec<[String; 4]> {
        let text = fs::read_to_string(self.place.root().join("audit.jsonl")).expect("a log");
        let records = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let reads = records.filter(|it: &Value| it["op"] == "read");
        reads.map(|it| ["unit", "consumer", "outcome", "uid"].map(|f| it[f].to_string())).collect()
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

/// Connects from an abstract address of its own that ends in `from`, and sends nothing.
fn ask(path: &Path, from: &str) -> UnixStream {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let random = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let from = format!("{random}/{from}");
    let client = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    let address = SocketAddrUnix::new_abstract_name(from.as_bytes()).expect("short");
    bind(&client, &address).expect("binds");
    connect(&client, &SocketAddrUnix::new(path).expect("short")).expect("it listens");
    let stream = UnixStream::from(client);
    stream.shutdown(Shutdown::Write).expect("as systemd does");
    stream.set_read_timeout(Some(DEADLINE)).expect("sets it");
    stream
}

fn loaded(stream: UnixStream) -> Option<String> {
    const MOST: u64 = 1024 * 1024;
    let mut bytes = Vec::new();
    stream.take(MOST + 1).read_to_end(&mut bytes).expect("in time");
    (bytes.len() as u64 <= MOST).then(|| String::from_utf8(bytes).expect("UTF-8"))
}

#[test]
fn a_unit_gets_what_the_policy_gives_it() {
    if !is_root() {
        return;
    }
    let vault = Vault::start(Some(POLICY));
    let for_edi = json!({ "value": "for-edi", "allowed_consumers": ["edi"] });
    vault.store("openai/api_key", &for_edi);
    vault.store("email.a@b.c/pass.word", &json!({ "value": "for-all" }));
    vault.store("openai/empty", &json!({ "value": "" }));
    vault.store("github/token", &json!({ "value": "for-none" }));

    for (unit, credential, value) in [
        ("edi.service", "openai~api_key", Some("for-edi")),
        ("edi.service", "email.a@b.c~pass.word", Some("for-all")),
        ("edi.service", "openai~empty", Some("")),
        ("jarvis@1.service", "email.a@b.c~pass.word", Some("for-all")),
        ("jarvis@1.service", "openai~api_key", None),
        ("jarvis@2.service", "email.a@b.c~pass.word", None),
        ("both.service", "email.a@b.c~pass.word", None),
        ("edi.service", "github~token", None),
        ("edi.service", "openai~missing", None),
        ("edi.service", "openai.api_key", None),
        ("edi.service", "-~api_key", None),
    ] {
        assert_eq!(vault.load(unit, credential).as_deref(), value, "{unit} {credential}");
    }
    for from in ["unit/edi.service", "system/edi.service/openai~api_key", "openai~api_key"] {
        assert_eq!(loaded(ask(&vault.path(), from)), None, "{from}");
    }
    // What is asked for without an address is for nobody.
    assert_eq!(loaded(UnixStream::connect(vault.path()).expect("it listens")), None);

    let said = vault.said();
    assert!(said.contains("it is named NAMESPACE~KEY") && !said.contains("for-"), "{said}");
    let reads = vault.reads();
    let read = |fields: [&str; 4]| reads.contains(&fields.map(str::to_owned));
    assert!(read(["\"edi.service\"", "\"edi\"", "\"allowed\"", "null"]), "{reads:?}");
    assert!(read(["\"jarvis@1.service\"", "\"jarvis\"", "\"refused\"", "null"]), "{reads:?}");
    assert!(read(["\"both.service\"", "null", "\"refused\"", "null"]), "{reads:?}");
}

#[test]
fn without_a_policy_no_unit_gets_anything() {
    if !is_root() {
        return;
    }
    let vault = Vault::start(None);
    vault.store("openai/api_key", &json!({ "value": "v" }));
    assert_eq!(vault.load("edi.service", "openai~api_key"), None);
    assert!(vault.said().contains("give it --policy FILE"), "{}", vault.said());
}

#[test]
fn an_answer_is_finished_before_the_end() {
    if !is_root() {
        return;
    }
    let mut vault = Vault::start(Some(POLICY));
    let value = "v".repeat(256 * 1024);
    vault.store("openai/long", &json!({ "value": value }));
    // Longer than the buffer of a socket: the answer waits for its reader.
    let mut stream = ask(&vault.path(), "unit/edi.service/openai~long");
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("it begins");
    vault.helper.signal(Signal::TERM);
    // Of the workers, only the one with the answer is left.
    let threads = PathBuf::from(format!("/proc/{}/task", vault.helper.0.id()));
    wait_until("nobody else is served", || fs::read_dir(&threads).expect("it runs").count() == 2);
    assert_eq!(loaded(stream).expect("whole").len() + 1, value.len());
    let status = vault.helper.wait();
    assert!(status.success(), "{status}");
    assert!(!vault.path().exists(), "the socket is removed");
}

/// Connects as a unit of systemd would, and prints what it gets.
const CLIENT: &str = r"
import os, socket, sys
client = socket.socket(socket.AF_UNIX)
client.bind(f'\0{os.getpid()}/unit/edi.service/openai~api_key')
client.settimeout(30)
client.connect(sys.argv[1])
print(client.recv(100))";

#[test]
fn only_root_is_served_and_only_the_owner_asks_for_units() {
    const STRANGER: &str = "61003";
    if !is_root() {
        return;
    }
    let policy = format!("{POLICY}\n[consumer.stranger]\nuid = {STRANGER}\n");
    let vault = Vault::start(Some(&policy));
    vault.store("openai/api_key", &json!({ "value": "v" }));
    for (path, mode) in [
        (vault.place.root(), 0o755),
        (vault.path().parent().expect("a directory"), 0o755),
        (&vault.path(), 0o666),
        (vault.service.socket.parent().expect("a directory"), 0o755),
        (&vault.service.socket, 0o666),
    ] {
        set_mode(path, mode);
    }
    let as_stranger = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", program]);
        let output = command.args(arguments).current_dir("/").output().expect("it runs");
        String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8")
    };

    let socket = vault.path();
    let said = as_stranger("/usr/bin/python3", &["-c", CLIENT, socket.to_str().expect("UTF-8")]);
    assert_eq!(said, "b''\n");
    assert!(vault.said().contains("only root is served"), "{}", vault.said());

    let url = "http://localhost/v1/units/edi.service/openai/api_key";
    let socket = vault.service.socket.to_str().expect("UTF-8");
    let curl = ["--silent", "--max-time", "20", "--unix-socket", socket, url];
    let answer = as_stranger("curl", &curl);
    assert!(answer.contains("only the user of this vault and root may ask"), "{answer}");

    let mut connection = vault.service.connect();
    let of_unit = "/v1/units/edi.service/openai/api_key";
    assert_eq!(connection.exchange(&support::get(of_unit)).status, 200);
    assert_eq!(connection.exchange(&support::delete(of_unit)).status, 405);
    let of_other = "/v1/units/edi.service/github/api_key";
    assert_eq!(connection.exchange(&support::get(of_other)).status, 403);
    let impossible = "/v1/units/edi.service/-/api_key";
    assert_eq!(connection.exchange(&support::get(impossible)).status, 404);
}

#[test]
fn a_socket_is_needed_that_is_not_open_to_others() {
    let output = Command::new(PROGRAM)
        .args(["systemd-credentials", "--socket", "/nonexistent"])
        .env_clear()
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--listen PATH"), "{said}");
}
