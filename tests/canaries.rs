//! Searches for values where they must not be, after every kind of request and failure:
//! answers, logs, errors and their sources, panics, the database and its files, /proc, cores.
#![cfg(target_os = "linux")]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use intentframe_credentials::client::VaultClient;
use intentframe_credentials::daemon::{Daemon, Settings};
use intentframe_credentials::redact::Masker;
use intentframe_credentials::server::Endpoint;
use intentframe_credentials::{
    BackendOptions, CredentialRef, CredentialVault, DeliveryMode, Environment, Namespace, Secret,
    StoreRequest, VaultError, create_vault, register_backend,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getuid, kill_process, prlimit};
use serde_json::json;

use fake::Fake;
use hashicorp::Target;
use hashicorp::proxy::Fault;
use support::{
    Connection, Place, Response, Service, delete, get, put, put_text, request, set_mode, wait_until,
};

/// A part of every value that the masked preview does not show.
const MARKER: &str = "C4N4RY-7Q2Z9-X8";

fn value(number: usize) -> String {
    format!("sk-pro-{MARKER}-\"é\\/{number}")
}

/// Searches for the marker and `others` in every form in which a value may be written.
struct Search {
    masker: Masker,
    others: Vec<String>,
}

impl Search {
    fn new() -> Self {
        Self::for_these(&[])
    }

    fn for_these(others: &[&str]) -> Self {
        let all = others.iter().copied().chain([MARKER]);
        let secrets: Vec<Secret> = all.map(|value| Secret::new(value.to_owned())).collect();
        let others = others.iter().map(|&other| other.to_owned()).collect();
        Self { masker: Masker::new(&secrets), others }
    }

    fn finds(&self, bytes: &[u8]) -> bool {
        let plain = |wanted: &str| bytes.windows(wanted.len()).any(|at| at == wanted.as_bytes());
        if plain(MARKER) || self.others.iter().any(|other| plain(other)) {
            return true;
        }
        let mut masker = self.masker.another();
        let mut output = Vec::new();
        masker.mask(bytes, &mut output);
        masker.finish(&mut output);
        output != bytes
    }

    #[track_caller]
    fn nothing_in(&self, what: &str, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        assert!(!self.finds(bytes), "{what} shows a value: {}", String::from_utf8_lossy(bytes));
    }

    /// Nothing in the `Display` and `Debug` forms of the error and its sources.
    #[track_caller]
    fn nothing_in_error(&self, what: &str, error: &dyn Error) {
        let mut next = Some(error);
        while let Some(error) = next {
            self.nothing_in(what, error.to_string());
            self.nothing_in(what, format!("{error:?} {error:#?}"));
            next = error.source();
        }
    }

    /// Nothing in the names and contents of all files in the directory. Returns their number.
    #[track_caller]
    fn nothing_in_files(&self, directory: &Path) -> usize {
        let mut files = 0;
        for entry in fs::read_dir(directory).expect("it can be read") {
            let path = entry.expect("it can be read").path();
            self.nothing_in("a name", path.as_os_str().as_encoded_bytes());
            if path.is_dir() {
                files += self.nothing_in_files(&path);
            } else if path.is_file() {
                files += 1;
                self.nothing_in(&path.to_string_lossy(), fs::read(&path).expect("it can be read"));
            }
        }
        files
    }

    #[track_caller]
    fn nothing_in_answer(&self, answer: &Response) {
        self.nothing_in("an answer", &answer.body);
        self.nothing_in("a header", format!("{:?}", answer.headers));
    }
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let search = Search::for_these(&["another-secret"]);
    for text in [
        MARKER.to_owned(),
        value(3),
        format!("{:?}", value(3)),
        // base64 of "x" + MARKER + "y", and hex.
        "eEM0TjRSWS03UTJaOS1YOHk=".to_owned(),
        "43344e3452592d37".to_owned() + "51325a392d5838",
        "an another-secret".to_owned(),
    ] {
        assert!(search.finds(text.as_bytes()), "{text}");
    }
    assert!(!search.finds(b"sk-pro....YZ"));
}

// ---------------------------------------------------------------- the service

const AT: &str = "/v1/credentials/canary/key";

/// Sends every kind of request, valid and invalid. Whether a store succeeds depends on the
/// backend.
fn ask_everything(service: &Service, search: &Search) {
    let mut number = 0;
    let mut next = || {
        number += 1;
        value(number)
    };
    let exchange = |bytes: Vec<u8>| {
        let answer = service.connect().exchange(&bytes);
        search.nothing_in_answer(&answer);
        answer.status
    };
    let full = json!({
        "value": next(), "delivery_mode": "runtime_env", "allowed_consumers": ["uwe"],
        "env_name": "CANARY_KEY", "validator_id": "none",
    });
    exchange(put(AT, &full));
    exchange(put(&format!("{AT}2"), &json!({ "value": next() })));
    // Values in the wrong place.
    let wrong = [
        json!({ "value": [next()] }),
        json!({ "value": { "value": next() } }),
        json!({ "value": null, "unknown": next() }),
        json!({ "val": next() }),
        json!({ "value": next(), "delivery_mode": next() }),
        json!({ "value": next(), "allowed_consumers": next() }),
        json!({ "value": next(), "allowed_consumers": [1, next()] }),
        json!({ "value": next(), "env_name": [next()] }),
        json!({ "value": next(), "validator_id": { "id": next() } }),
        json!([next()]),
        json!(next()),
    ];
    for body in wrong {
        assert_eq!(exchange(put(AT, &body)), 422, "{body}");
    }
    let long = next().repeat(20_000);
    assert_eq!(exchange(put(AT, &json!({ "value": long }))), 422);
    for text in [
        format!("{{\"value\": \"{}", next()),
        format!("{{\"value\": \"{MARKER}\\ud800\"}}"),
        MARKER.to_owned(),
        format!("{{\"value\": \"{MARKER}\"}} {MARKER}"),
        format!("{{{MARKER}: 1}}"),
    ] {
        assert_eq!(exchange(put_text(AT, text.as_bytes())), 422, "{text}");
    }
    let body = json!({ "value": next() }).to_string();
    let body = body.as_bytes();
    assert_eq!(exchange(request("PUT", AT, "Content-Type: text/plain\r\n", body)), 422);
    assert_eq!(exchange(request("POST", AT, "Content-Type: application/json\r\n", body)), 405);
    assert_eq!(exchange(put("/v1/elsewhere", &json!({ "value": next() }))), 404);
    assert_eq!(exchange(put("/v1/credentials/-bad/key", &json!({ "value": next() }))), 422);
    exchange(put("/v1/credentials/canary/key/", &json!({ "value": next() })));
    let large = "x".repeat(3 << 20);
    let header = format!("Content-Type: application/json\r\nX-Token: {MARKER}\r\n");
    let mut connection = service.connect();
    // The service may close the connection before everything is sent.
    let _ =
        connection.try_send(&request("PUT", AT, &header, format!("{MARKER}{large}").as_bytes()));
    if let Ok(Some(answer)) = connection.try_response(false) {
        search.nothing_in_answer(&answer);
        assert_eq!(answer.status, 413);
    }
    // Not HTTP, and an incomplete request.
    let mut connection = service.connect();
    connection.send(format!("{MARKER} {MARKER}\r\n\r\n").as_bytes());
    for answer in connection.responses_to_end() {
        search.nothing_in_answer(&answer);
        assert_eq!(answer.status, 400);
    }
    let mut connection = service.connect();
    connection.send(format!("PUT {AT} HTTP/1.1\r\nContent-Length: 900\r\n\r\n{MARKER}").as_bytes());
    drop(connection);

    for path in ["/health", "/v1/credentials", "/v1/credentials/canary", "/v1/runtime-env"] {
        assert_eq!(exchange(get(path)), 200, "{path}");
    }
    let mut connection = service.connect();
    connection.send(&request("HEAD", AT, "", b""));
    search.nothing_in_answer(&connection.response_to_head());
    // The answer that does contain a value.
    let mut connection = service.connect();
    let answer = connection.exchange(&get(AT));
    assert!(answer.status != 200 || answer.value() == value(1));
    search.nothing_in("a header", format!("{:?}", answer.headers));
    exchange(delete(&format!("{AT}2")));
}

/// Nothing in the files and the process of a running service, nor in its files after a kill.
fn nothing_is_left(place: &Place, mut service: Service, search: &Search) {
    search.nothing_in_files(&place.data_dir());
    look_into_process(service.id(), search);
    service.kill();
    search.nothing_in_files(place.root());
    search.nothing_in("the log", service.log());
}

fn stop(mut service: Service, search: &Search) -> String {
    service.signal(Signal::TERM);
    assert!(service.wait().success(), "{}", service.log());
    let log = service.log();
    search.nothing_in("the log", &log);
    log
}

/// Nothing on the command line, and nothing in the environment that the process started with.
fn look_into_process(pid: u32, search: &Search) {
    search.nothing_in("a command line", proc_file(pid, "cmdline").expect("it runs"));
    if getuid().is_root() {
        search.nothing_in("an environment", proc_file(pid, "environ").expect("root reads it"));
    } else {
        let error = proc_file(pid, "environ").expect_err("it is root's to read");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    }
}

fn proc_file(pid: u32, name: &str) -> std::io::Result<Vec<u8>> {
    fs::read(format!("/proc/{pid}/{name}"))
}

#[test]
fn requests_leave_no_value_behind() {
    for format in ["text", "json"] {
        let search = Search::new();
        let place = Place::new();
        let setup = || place.setup().env("RUST_LOG", "trace").env("IF_VAULT_LOG", format);
        let service = setup().start();
        ask_everything(&service, &search);
        let wal = place.data_dir().join("credentials.db-wal");
        assert!(
            fs::metadata(&wal).is_ok_and(|file| file.len() > 0),
            "there is a write-ahead log to search"
        );
        nothing_is_left(&place, service, &search);
        let service = setup().start();
        ask_everything(&service, &search);
        let log = stop(service, &search);
        assert!(log.contains("serving the env backend"), "{log}");
        assert!(search.nothing_in_files(place.root()) >= 3, "a database, and two logs");
    }
}

#[test]
fn a_sealed_store_shows_neither_values_nor_what_opens_it() {
    let secret = "f00dcafe-0123456789-PASSPHRASE-0123456789";
    let search = Search::for_these(&[secret]);
    let elsewhere = tempfile::tempdir().expect("a directory");
    let file = elsewhere.path().join("secret");
    fs::write(&file, secret).expect("writes");
    set_mode(&file, 0o400);
    let file = file.to_str().expect("UTF-8");
    for format in ["text", "json"] {
        for option in ["--key-file", "--passphrase-fd"] {
            let place = Place::new();
            let setup = || {
                let setup = place.setup_with("sealed").argument(option);
                let setup = setup.argument(if option == "--key-file" { file } else { "5" });
                let setup = setup.after(&format!("exec 5< {file}"));
                setup.env("RUST_LOG", "trace").env("IF_VAULT_LOG", format)
            };
            let service = setup().start();
            ask_everything(&service, &search);
            nothing_is_left(&place, service, &search);
            let service = setup().start();
            ask_everything(&service, &search);
            stop(service, &search);
            assert!(search.nothing_in_files(place.root()) >= 3, "a database, and two logs");
        }
    }
}

#[test]
fn seeds_of_the_dev_service_stay_in_memory() {
    for format in ["text", "json"] {
        let search = Search::new();
        let place = Place::new();
        let file = place.root().join("seeds.env");
        fs::write(&file, format!("OPENAI_API_KEY='sk-pro-{MARKER}'\nEMAIL_A_ADDRESS=a@b.example\nEMAIL_A_PASSWORD='made-up-{MARKER}'\nBROKEN {MARKER}\nOTHER={MARKER}\n"))
            .expect("it can be written");
        let mut command = vault_command(&place, &["dev", "--socket"]);
        command.arg(place.socket()).arg("--data-dir").arg(place.data_dir());
        command.arg("--env-file").arg(&file).env("IF_VAULT_LOG", format);
        let mut dev = Running::of(command);
        wait_until("it serves", || support::try_connect(&place.socket()).is_ok());
        let mut connection = Connection::open(&place.socket());
        let answer = connection.exchange(&get("/v1/credentials/openai/api_key"));
        assert_eq!(answer.value(), format!("sk-pro-{MARKER}"));
        fs::remove_file(&file).expect("it was there");
        look_into_process(dev.id(), &search);
        dev.signal(Signal::TERM);
        let output = dev.output();
        assert!(output.status.success());
        search.nothing_in("standard output", &output.stdout);
        search.nothing_in("standard error", &output.stderr);
        search.nothing_in_files(place.root());
    }
}

#[test]
fn a_vault_server_that_refuses_shows_neither_tokens_nor_values() {
    for format in ["text", "json"] {
        let Some(target) = Target::new() else { return };
        let role = target.approle("canary", json!({}));
        let token = target.token_for(hashicorp::POLICY);
        let search = Search::for_these(&[&role.secret_id, &token]);
        let place = Place::new();
        let setups = [target.setup(&place, &token), target.setup_with_role(&place, &role)];
        for setup in setups {
            let setup = setup.env("RUST_LOG", "trace").env("IF_VAULT_LOG", format);
            let service = setup.env("VAULT_MAX_RETRIES", "0").start();
            ask_everything(&service, &search);
            let page = Fault::answer(200, "", b"<!DOCTYPE html>");
            for fault in [Fault::forbidden(), Fault::internal_error(), page] {
                let fault = target.proxy.all(fault, "", "");
                for bytes in [put(AT, &json!({ "value": value(1) })), get(AT), delete(AT)] {
                    search.nothing_in_answer(&service.connect().exchange(&bytes));
                }
                fault.clear();
            }
            search
                .nothing_in("a command line", proc_file(service.id(), "cmdline").expect("it runs"));
            let log = stop(service, &search);
            // The form of a token of `OpenBao` or Vault; a login has returned one.
            assert!(!log.contains("hvs.") && !log.contains(" s."), "{log}");
        }
        search.nothing_in_files(place.root());
    }
}

// ---------------------------------------------------------------- the commands

fn vault_command(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    command.args(arguments).env_clear().env("HOME", place.root()).env("RUST_LOG", "trace");
    command.env("INTENTFRAME_VAULT_SOCKET", place.socket()).env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running command, killed when dropped.
struct Running(Option<Child>);

impl Running {
    fn of(mut command: Command) -> Self {
        Self(Some(command.spawn().expect("it starts")))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it has not been waited for")
    }

    fn id(&mut self) -> u32 {
        self.child().id()
    }

    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.child()), signal).expect("it runs");
    }

    fn output(mut self) -> Output {
        let child = self.0.take().expect("it has not been waited for");
        child.wait_with_output().expect("it ends")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(place: &Place, arguments: &[&str], input: &str, format: &str) -> Output {
    let mut command = vault_command(place, arguments);
    command.env("IF_VAULT_LOG", format);
    let mut running = Running::of(command);
    // A command that rejects its arguments does not read.
    let _ = running.child().stdin.take().expect("it is piped").write_all(input.as_bytes());
    running.output()
}

/// Each command with its standard input. The last ones have a value in the wrong place.
fn commands() -> Vec<(Vec<&'static str>, String)> {
    let with_value = |arguments: &[&'static str]| (arguments.to_vec(), value(1));
    let bare = |arguments: &[&'static str]| (arguments.to_vec(), String::new());
    vec![
        with_value(&["store", "canary/key"]),
        with_value(&["store", "canary/runtime", "--delivery-mode=runtime_env", "--env-name=KEY"]),
        with_value(&["store", "canary/shown", "--delivery-mode=runtime_env", "--env-name=SHOWN"]),
        with_value(&["store", "canary/key", "--delivery-mode=canary"]),
        with_value(&["store", "-bad/key"]),
        (vec!["store", "canary/long"], value(1).repeat(20_000)),
        bare(&["has", "canary/key"]),
        bare(&["health"]),
        bare(&["health", "--json"]),
        bare(&["list"]),
        bare(&["list", "canary"]),
        bare(&["list", "--json"]),
        bare(&["runtime-env"]),
        bare(&["runtime-env", "--json"]),
        bare(&["check", "canary/key", "canary/none"]),
        bare(&["check", "--json", "canary/key"]),
        bare(&["delete", "canary/runtime"]),
        bare(&["get", "canary/none"]),
        bare(&["exec", "--mask", "--only", "canary/shown", "--", "printenv", "SHOWN"]),
        bare(&["exec", "--only", "canary/none", "--", "printenv"]),
        bare(&[
            "exec",
            "--env",
            "LD_PRELOAD=canary/key",
            "--allow-executor-only",
            "--",
            "printenv",
        ]),
        bare(&["exec", "--env", "PATH=canary/key", "--allow-executor-only", "--", "printenv"]),
        bare(&["exec", "--env", "KEY=canary/key", "--", "printenv"]),
        bare(&["exec", "--only", "canary/shown", "--", "/nowhere/program", MARKER]),
        bare(&["store", "canary/key", MARKER]),
        bare(&["store", "canary/key", "--value", MARKER]),
        bare(&["store", "canary/key", "--value=C4N4RY-7Q2Z9-X8"]),
        bare(&["store", MARKER]),
        bare(&["get", MARKER]),
        bare(&["delete", "C4N4RY-7Q2Z9-X8/a/b"]),
    ]
}

#[test]
fn no_command_shows_a_value_but_get() {
    for format in ["text", "json"] {
        let search = Search::new();
        let place = Place::new();
        let service = place.setup().env("RUST_LOG", "trace").start();
        for (arguments, input) in commands() {
            let output = run(&place, &arguments, &input, format);
            search.nothing_in(&format!("{arguments:?}"), &output.stdout);
            search.nothing_in(&format!("{arguments:?}"), &output.stderr);
        }
        let masked = ["exec", "--mask", "--only", "canary/shown", "--", "printenv", "SHOWN"];
        let output = run(&place, &masked, "", format);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "[REDACTED]\n");
        for arguments in [&["get", "canary/key"][..], &["get", "--json", "canary/key"]] {
            let output = run(&place, arguments, "", format);
            assert!(search.finds(&output.stdout), "get is what shows it");
            search.nothing_in("get's standard error", &output.stderr);
        }
        nothing_is_left(&place, service, &search);
        // Again without a service.
        for (arguments, input) in commands() {
            let output = run(&place, &arguments, &input, format);
            search.nothing_in(&format!("{arguments:?}"), &output.stdout);
            search.nothing_in(&format!("{arguments:?}"), &output.stderr);
            assert!(!output.status.success());
        }
    }
}

#[test]
fn a_value_that_a_server_repeats_is_not_shown() {
    // The Python service answers an invalid body like this; the others are similar.
    let search = Search::new();
    let replies: [fn(&str) -> fake::Reply; 4] = [
        |body| {
            let detail = json!([{
                "type": "string_type", "loc": ["body", "value"], "msg": "Input should be a string",
                "input": body,
            }]);
            fake::json("422 Unprocessable Entity", &json!({ "detail": detail }).to_string())
        },
        |body| fake::json("500 Internal Server Error", &json!({ "detail": body }).to_string()),
        |body| fake::json("500 Internal Server Error", body),
        |body| fake::Reply::Last(format!("{body}\r\n\r\n").into_bytes()),
    ];
    for (number, reply) in replies.into_iter().enumerate() {
        let fake = Fake::new(move |asked| reply(&asked.body));
        let place = Place::new();
        let mut command = vault_command(&place, &["store", "canary/key", "--socket"]);
        command.arg(&fake.socket);
        let mut running = Running::of(command);
        let mut stdin = running.child().stdin.take().expect("it is piped");
        stdin.write_all(value(1).as_bytes()).expect("it reads");
        drop(stdin);
        let output = running.output();
        assert!(!output.status.success());
        assert!(
            fake.asked().iter().any(|asked| search.finds(asked.body.as_bytes())),
            "it was sent"
        );
        search.nothing_in(&format!("store, reply {number}"), &output.stdout);
        // The command knows the whole value, and redacts it.
        search.nothing_in(&format!("store, reply {number}"), &output.stderr);
    }
}

// ---------------------------------------------------------------- processes

/// A command that waits for its input.
fn waiting(place: &Place) -> Running {
    let mut running = Running::of(vault_command(place, &["store", "canary/key"]));
    let pid = running.id();
    // When it reads its standard input, it has applied its hardening.
    wait_until("it waits for its input", || {
        let limits = proc_file(pid, "limits").expect("it runs");
        String::from_utf8_lossy(&limits).lines().any(is_no_core) && is_asleep(pid)
    });
    running
}

fn is_asleep(pid: u32) -> bool {
    let status = proc_file(pid, "status").expect("it runs");
    String::from_utf8_lossy(&status)
        .lines()
        .any(|line| line.strip_prefix("State:").is_some_and(|state| state.trim().starts_with('S')))
}

/// Whether this is the line of the limit on cores, with 0.
fn is_no_core(line: &str) -> bool {
    line.strip_prefix("Max core file size")
        .is_some_and(|limits| limits.split_whitespace().next() == Some("0"))
}

#[test]
fn proc_shows_no_value() {
    let search = Search::new();
    let place = Place::new();
    let service = place.setup().start();
    let mut running = waiting(&place);
    let stdin = running.child().stdin.as_mut().expect("it is piped");
    stdin.write_all(value(1).as_bytes()).expect("it reads");
    for pid in [service.id(), running.id()] {
        look_into_process(pid, &search);
    }
    if getuid().is_root() {
        let environment = proc_file(running.id(), "environ").expect("root reads it");
        let names: Vec<_> = environment
            .split(|&byte| byte == 0)
            .filter_map(|pair| pair.split(|&byte| byte == b'=').next())
            .filter(|name| !name.is_empty())
            .map(String::from_utf8_lossy)
            .collect();
        assert_eq!(
            names,
            ["HOME", "INTENTFRAME_VAULT_SOCKET", "PATH", "RUST_LOG"],
            "what it was given"
        );
    }
}

#[test]
fn no_process_leaves_a_core() {
    let place = Place::new();
    let mut service = place.setup().start();
    let limits = proc_file(service.id(), "limits").expect("it runs");
    let limits = String::from_utf8_lossy(&limits);
    assert!(limits.lines().any(is_no_core), "{limits}");
    // Root may lift the limit; the process still is not dumpable.
    let lift = |pid| {
        let _ = prlimit(Some(pid), Resource::Core, Rlimit { current: None, maximum: None });
    };
    lift(service.pid());
    service.signal(Signal::ABORT);
    let status = service.wait();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
    assert!(!status.core_dumped(), "the service left a core");

    let mut running = waiting(&place);
    lift(Pid::from_child(running.child()));
    running.signal(Signal::ABORT);
    let status = running.output().status;
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
    assert!(!status.core_dumped(), "the command left a core");
}

/// A user without rights.
const SOMEBODY: u32 = 65_534;

#[test]
fn other_processes_of_the_user_cannot_inspect_it() {
    let place = Place::new();
    let mut setup = place.setup();
    let mut command = vault_command(&place, &["store", "canary/key"]);
    if getuid().is_root() {
        // Root may inspect everything, so the process runs as another user.
        set_mode(place.root(), 0o755);
        std::os::unix::fs::chown(place.root(), Some(SOMEBODY), None).expect("gives it away");
        let program = place.root().join("credential-vault");
        support::copy_program(&setup.program, &program);
        command = Command::new(&program);
        command.args(["store", "canary/key"]).env_clear().uid(SOMEBODY).gid(SOMEBODY);
        command.env("INTENTFRAME_VAULT_SOCKET", place.socket());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        setup.program = program;
        setup = setup.identity(SOMEBODY);
    }
    let service = setup.start();
    let mut running = Running::of(command);
    for pid in [service.id(), running.id()] {
        // The files of a dumpable process belong to its user (proc(5)).
        wait_until("its files are root's", || {
            fs::metadata(format!("/proc/{pid}/environ")).expect("it runs").uid() == 0
        });
        let status = String::from_utf8(proc_file(pid, "status").expect("it runs")).expect("UTF-8");
        assert!(!status.contains("Uid:\t0\t"), "it is not root's because it runs as root");
    }
}

// ---------------------------------------------------------------- the library

fn credential(namespace: &str, key: &str) -> CredentialRef {
    CredentialRef::parse(namespace, key).expect("they are names")
}

#[test]
fn no_error_of_the_library_shows_a_value() {
    let search = Search::new();
    let store = |value: String| StoreRequest {
        value: Secret::new(value),
        delivery_mode: DeliveryMode::RuntimeEnv,
        allowed_consumers: Vec::new(),
        env_name: Some("CANARY".to_owned()),
        validator_id: None,
    };
    search.nothing_in("a request's Debug", format!("{:?}", store(value(1))));

    // tests/client.rs has the errors of invalid answers.
    let place = Place::new();
    let client = VaultClient::new(place.socket());
    let at = credential("canary", "key");
    search
        .nothing_in_error("no service", &client.store(&at, &store(value(1))).expect_err("no one"));
    search.nothing_in("a client's Debug", format!("{client:?}"));

    // A value in place of a name.
    search.nothing_in_error("a namespace", &Namespace::new(format!("-{MARKER}")).expect_err("bad"));
    let error = CredentialRef::parse("canary", &format!("{MARKER}/x")).expect_err("a slash");
    search.nothing_in_error("a key", &error);

    // Backends: settings with a value in the wrong place, and no server.
    for (name, wrong) in [
        ("VAULT_ADDR", format!("http://u:{MARKER}@127.0.0.1:1/{MARKER}?{MARKER}")),
        ("VAULT_RENEW", MARKER.to_owned()),
        ("VAULT_CLIENT_TIMEOUT", MARKER.to_owned()),
        ("VAULT_CACERT_BYTES", MARKER.to_owned()),
        ("VAULT_TOKEN", format!("{MARKER}\n")),
        ("VAULT_TOKEN", MARKER.to_owned()),
    ] {
        let variables = [
            ("VAULT_ADDR".to_owned(), "http://127.0.0.1:1".to_owned()),
            ("VAULT_TOKEN".to_owned(), MARKER.to_owned()),
            ("VAULT_MAX_RETRIES".to_owned(), "0".to_owned()),
            (name.to_owned(), wrong),
        ];
        let environment: Environment = variables.into_iter().collect();
        let options = BackendOptions::new(environment);
        search.nothing_in("options", format!("{options:?}"));
        let result = create_vault("hashicorp", &options)
            .and_then(|vault| vault.store(&at, &Secret::new(value(1))));
        search.nothing_in_error(name, &result.expect_err("nobody listens there"));
    }
}

/// Set in the process that runs the panicking backend.
const HOST: &str = "CANARY_HOST";

/// A backend that panics in every call while it holds a value.
#[derive(Default)]
struct Panicking;

impl CredentialVault for Panicking {
    fn name(&self) -> &'static str {
        "Panicking"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        let value = Secret::new(value(1));
        panic!("reading {at} with {value:?}");
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        panic!("storing {at} with {value:?}");
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        panic!("deleting {at}");
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        panic!("looking for {at}");
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        panic!("listing {namespace}");
    }
}

#[test]
fn a_panic_shows_no_value() {
    let search = Search::new();
    if std::env::var_os(HOST).is_none() {
        // In a process of its own, to search its standard error.
        let output = Command::new(std::env::current_exe().expect("this test's program"))
            .args(["--exact", "a_panic_shows_no_value", "--nocapture"])
            .env(HOST, "1")
            .env("RUST_BACKTRACE", "full")
            .env("RUST_LOG", "trace")
            .output()
            .expect("it is executable");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains("storing canary/key with [REDACTED]"), "{stderr}");
        search.nothing_in("standard error", &output.stderr);
        search.nothing_in("standard output", &output.stdout);
        return;
    }
    env_logger::init();
    register_backend("panicking", |_| Ok(Arc::new(Panicking))).expect("the name is free");
    let place = Place::new();
    let options = BackendOptions::new(Environment::default());
    let endpoint = Endpoint::Unix(place.socket());
    let settings = Settings::new(endpoint, place.data_dir(), "panicking", options);
    let daemon = Daemon::start(&settings).expect("it starts");
    for bytes in [put(AT, &json!({ "value": value(1) })), get(AT), delete(AT)] {
        let answer = Connection::open(&place.socket()).exchange(&bytes);
        search.nothing_in_answer(&answer);
        assert_eq!(answer.status, 500);
    }
    daemon.stop();
    daemon.join().expect("it stops");
    search.nothing_in_files(place.root());
}

/// How often `wanted` is in the memory of the service (proc(5): `maps` and `mem`).
fn copies_in_memory(service: &Service, wanted: &[u8]) -> usize {
    use std::os::unix::fs::FileExt as _;
    let directory = format!("/proc/{}", service.id());
    let maps = fs::read_to_string(format!("{directory}/maps")).expect("root may read it");
    let memory = fs::File::open(format!("{directory}/mem")).expect("root may read it");
    let number = |text: &str| u64::from_str_radix(text, 16).expect("a hexadecimal number");
    let mut copies = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').expect("fields");
        let (start, end) = range.split_once('-').expect("a range");
        let (start, end) = (number(start), number(end));
        let mut bytes = vec![0; usize::try_from(end - start).expect("it fits into memory")];
        // A mapping may be gone by now.
        let Ok(count) = memory.read_at(&mut bytes, start) else { continue };
        copies += bytes[..count].windows(wanted.len()).filter(|at| *at == wanted).count();
    }
    copies
}

#[test]
fn a_deleted_value_leaves_no_copy_in_memory() {
    if !getuid().is_root() {
        support::skip("reading the memory of the service needs root");
        return;
    }
    for backend in ["env", "sealed"] {
        no_copy_is_left(backend);
    }
}

fn no_copy_is_left(backend: &str) {
    let place = Place::new();
    let service = place.setup_with(backend).start();
    // Longer than a vector register: those are saved on stacks by code that is not ours.
    let wanted = MARKER.repeat(8);
    // One that is sent together with its head, and one that is not.
    let values = [MARKER.repeat(20), MARKER.repeat(3_000)];
    let path = |client: usize, number: usize| format!("/v1/credentials/memory/{client}-{number}");
    let mut clients: Vec<Connection> = (0..4).map(|_| service.connect()).collect();
    for _ in 0..5 {
        for (client, connection) in clients.iter_mut().enumerate() {
            for (number, value) in values.iter().enumerate() {
                let stored =
                    connection.exchange(&put(&path(client, number), &json!({ "value": value })));
                assert_eq!(stored.status, 200);
                assert_eq!(&connection.exchange(&get(&path(client, number))).value(), value);
            }
        }
    }
    if backend == "env" {
        assert!(copies_in_memory(&service, wanted.as_bytes()) > 0, "stored values are in memory");
    } else {
        let copies = || copies_in_memory(&service, wanted.as_bytes());
        wait_until("encrypted values only are in memory", || copies() == 0);
    }
    for (client, connection) in clients.iter_mut().enumerate() {
        for number in 0..values.len() {
            assert_eq!(connection.exchange(&delete(&path(client, number))).status, 200);
        }
    }
    // A worker answers before it has put the connection back and wiped its buffers.
    wait_until("every copy is gone", || copies_in_memory(&service, wanted.as_bytes()) == 0);
}
