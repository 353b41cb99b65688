//! The examples do what they say. The supervisor is tested in tests/exec.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::json;
use support::{DEADLINE, Ended, Place, Service, cannot_here, skip};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
const PROGRAM: &str = env!("CARGO_BIN_EXE_credential-vault");

fn store(service: &Service, value: &str) {
    let body = json!({ "value": value, "delivery_mode": "runtime_env", "env_name": "API_KEY" });
    assert_eq!(service.put("/v1/credentials/openai/api_key", &body).status, 200);
}

/// A command that finds the program on its PATH, and the service.
fn command(program: impl AsRef<std::ffi::OsStr>, service: &Service) -> Command {
    let folder = Path::new(PROGRAM).parent().expect("a folder").display();
    let mut command = Command::new(program);
    command.env_clear().env("PATH", format!("{folder}:/usr/bin:/bin"));
    command.env("INTENTFRAME_VAULT_SOCKET", &service.socket);
    command
}

/// With the Python package's own client; it asks again when its key has been replaced.
#[test]
fn the_agent_in_python() {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
    let python = tools.join("python-client/bin/python");
    if !python.exists() {
        return skip("the Python client is missing; run: scripts/install-test-deps");
    }
    let (_place, service) = Place::serving();
    store(&service, "canary-old");
    let model = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", model.local_addr().expect("it listens"));
    let mut agent = command(python, &service);
    agent.arg(format!("{EXAMPLES}/agent.py")).args([&*url, "openai"]);

    thread::scope(|scope| {
        scope.spawn(|| {
            for (status, key) in [("401 Unauthorized", "canary-old"), ("200 OK", "canary-new")] {
                let (mut stream, _) = model.accept().expect("the agent asks");
                stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a whole head");
                    request.extend(byte);
                }
                let request = String::from_utf8_lossy(&request);
                assert!(request.contains(&format!("Bearer {key}\r\n")), "{request}");
                store(&service, "canary-new");
                let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
                write!(stream, "{head}Content-Length: 5\r\n\r\nhello").expect("it reads");
            }
        });
        assert_eq!(Ended::of(agent.arg("api_key")).ok(), "hello\n");
    });
    let ended = Ended::of(command(agent.get_program(), &service).args(agent.get_args()).arg("x"));
    assert!(ended.status.code() == Some(1) && !ended.stderr.contains("canary"), "{ended:?}");
}

#[test]
fn the_job_of_a_shell() {
    let (_place, service) = Place::serving();
    store(&service, "canary-0123456789");
    let job = |credentials| {
        let mut job = command(format!("{EXAMPLES}/job.sh"), &service);
        job.env("JOB_CREDENTIALS", credentials).args(["sh", "-c", "echo key $API_KEY"]);
        Ended::of(&mut job)
    };
    assert_eq!(job("openai/api_key").ok(), "key [REDACTED]\n");
    let said = job("openai/api_key github.myorg/token").failed(1, "github.myorg/token");
    assert_eq!(said, "", "nothing was started");
    job("").failed(2, "JOB_CREDENTIALS");
}

/// It is never run: it needs docker, and images from a registry.
#[test]
fn the_compose_file_can_be_read() {
    let read = "import sys, yaml; print(*yaml.safe_load(open(sys.argv[1]))['services'])";
    let mut python = Command::new("/usr/bin/python3");
    match python.args(["-c", read, &format!("{EXAMPLES}/docker-compose.yml")]).output() {
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("No module") => {
            assert_eq!(Ended::from(output).ok(), "openbao vault agent\n");
        }
        _ => skip("python3-yaml is missing; run: scripts/install-test-deps"),
    }
}

/// systemd finds no fault in the unit, and the command that it starts works.
#[test]
fn the_unit_of_systemd() {
    let (place, service) = Place::serving();
    store(&service, "canary-0123456789");
    let unit = fs::read_to_string(format!("{EXAMPLES}/agent.service")).expect("the unit");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a command");
    let jarvis = place.root().join("jarvis");
    fs::write(&jarvis, "#!/bin/sh\necho \"$API_KEY\"\n").expect("writes");
    support::set_mode(&jarvis, 0o755);
    let start = start.replace("-- jarvis", &format!("-- {}", jarvis.display()));
    let ended = Ended::of(command("/bin/sh", &service).args(["-c", &start]));
    assert_eq!(ended.ok(), "[REDACTED]\n");

    // The vault's own units are beside it. systemd looks for programs in fixed directories.
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/systemd/user");
    let beside = fs::read_dir(beside).expect("units").map(|it| it.expect("readable").path());
    for file in beside.chain([Path::new(EXAMPLES).join("agent.service")]) {
        let text = fs::read_to_string(&file).expect("a unit");
        let text = text.replace("ExecStart=credential-vault", &format!("ExecStart={PROGRAM}"));
        fs::write(place.root().join(file.file_name().expect("a name")), text).expect("writes");
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["--user", "verify", "--man=no"]).arg(place.root().join("agent.service"));
    verify.env("XDG_RUNTIME_DIR", place.root()).env("HOME", place.root());
    match verify.output() {
        Ok(output) => assert_eq!(Ended::from(output).ok(), ""),
        Err(_) => cannot_here("there is no systemd-analyze"),
    }
}
