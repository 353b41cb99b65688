//! The policy and the audit log, with processes of other users at the socket.

#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use support::{Place, Running, Service, cannot_here, copy_program, is_root, set_mode, wait_until};

const JARVIS: u32 = 61_001;
const EDI: u32 = 61_002;
const STRANGER: u32 = 61_003;
const OPS: u32 = 61_004;

/// A service of root with a policy, whose socket every user can reach.
struct Vault {
    place: Place,
    service: Service,
}

/// A process that asks.
#[derive(Clone)]
struct Caller {
    uid: u32,
    gid: u32,
    program: PathBuf,
    cgroup: Option<PathBuf>,
}

fn user(uid: u32) -> Caller {
    Caller { uid, gid: uid, program: "curl".into(), cgroup: None }
}

fn write_policy(place: &Place, policy: &str) -> PathBuf {
    let path = place.root().join("policy.toml");
    fs::write(&path, policy).expect("writes the policy");
    path
}

fn audit_log(place: &Place) -> PathBuf {
    place.root().join("audit.jsonl")
}

impl Vault {
    /// `None` without root, which is reported.
    #[track_caller]
    fn start(policy: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let place = Place::new();
        set_mode(place.root(), 0o755);
        let file = write_policy(&place, policy);
        let service = place
            .setup()
            .option("--policy", &file)
            .option("--audit-log", audit_log(&place))
            .start();
        set_mode(place.socket().parent().expect("a directory"), 0o755);
        set_mode(place.socket(), 0o666);
        Some(Self { place, service })
    }

    fn store(&self, name: &str, request: &Value) {
        let path = format!("/v1/credentials/{name}");
        assert_eq!(self.service.put(&path, request).status, 200, "{name}");
    }

    /// The status and the body that the caller gets.
    fn ask(&self, caller: &Caller, method: &str, path: &str) -> (u16, String) {
        let output = self.command(caller, method, path).output().expect("curl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    }

    fn command(&self, caller: &Caller, method: &str, path: &str) -> Command {
        let mut command = match &caller.cgroup {
            None => Command::new(&caller.program),
            Some(cgroup) => {
                // It joins as root, and then becomes the user.
                let mut shell = Command::new("/bin/sh");
                let script = format!(
                    "echo $$ > {}/cgroup.procs && exec setpriv --reuid {uid} --regid {gid} \
                     --clear-groups \"$0\" \"$@\"",
                    cgroup.display(),
                    uid = caller.uid,
                    gid = caller.gid,
                );
                shell.arg("-c").arg(script).arg(&caller.program);
                shell
            }
        };
        if caller.cgroup.is_none() {
            command.uid(caller.uid).gid(caller.gid);
        }
        match method {
            "HEAD" => command.arg("--head"),
            _ => command.args(["-X", method]),
        };
        if method == "PUT" {
            command.args(["-H", "Content-Type: application/json", "-d", r#"{"value":"new"}"#]);
        }
        command
            .args(["--silent", "--show-error", "--max-time", "20"])
            .args(["--write-out", "\n%{http_code}", "--unix-socket"])
            .arg(&self.service.socket)
            .arg(format!("http://localhost{path}"))
            .current_dir("/");
        command
    }

    fn status(&self, caller: &Caller, method: &str, name: &str) -> u16 {
        self.ask(caller, method, &format!("/v1/credentials/{name}")).0
    }

    /// What the audit log has, once its chain is checked.
    fn records(&self) -> Vec<Value> {
        let path = audit_log(&self.place);
        let verified = vault(&["audit", "verify", path.to_str().expect("UTF-8")]);
        assert!(verified.0, "{}", verified.1);
        let text = fs::read_to_string(path).expect("reads");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// Runs a command of the vault: whether it succeeds, and what it prints.
fn vault(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    let output = command.args(arguments).env_remove("IF_VAULT_POLICY").output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("UTF-8"))
}

const POLICY: &str = r#"
[consumer.jarvis]
uid = 61001

[consumer.edi]
uid = 61002

[consumer.ops]
uid = 61004

[[rule]]
consumers = ["jarvis"]
allow = ["read", "list"]
namespaces = ["openai", "github.*"]

[[rule]]
consumers = ["edi"]
allow = ["read"]
namespaces = ["openai"]

[[rule]]
consumers = ["ops"]
allow = ["list", "write", "delete"]
namespaces = ["*"]
"#;

#[test]
fn each_caller_can_do_what_its_rules_allow_and_nothing_else() {
    let Some(vault) = Vault::start(POLICY) else { return };
    for name in ["openai/key", "github.a/key", "aws/key"] {
        vault.store(name, &json!({ "value": "secret-value" }));
    }
    // GET, HEAD, PUT, DELETE, the list of the namespace.
    for (uid, name, expected) in [
        (JARVIS, "openai/key", [200, 200, 403, 403, 200]),
        (JARVIS, "github.a/key", [200, 200, 403, 403, 200]),
        (JARVIS, "github.a/none", [404, 404, 403, 403, 200]),
        (JARVIS, "aws/key", [403, 403, 403, 403, 403]),
        (EDI, "openai/key", [200, 403, 403, 403, 403]),
        (EDI, "openai/none", [403, 403, 403, 403, 403]),
        (EDI, "github.a/key", [403, 403, 403, 403, 403]),
        (OPS, "openai/key", [403, 200, 200, 200, 200]),
        (STRANGER, "openai/key", [403, 403, 403, 403, 403]),
        (0, "aws/key", [200, 200, 200, 200, 200]),
    ] {
        let caller = user(uid);
        let mut statuses = ["GET", "HEAD", "PUT", "DELETE"]
            .map(|method| vault.status(&caller, method, name))
            .to_vec();
        let namespace = name.split_once('/').expect("a slash").0;
        statuses.push(vault.status(&caller, "GET", namespace));
        assert_eq!(statuses, expected, "{uid} {name}");
        // What was changed is there again for the next.
        vault.store("openai/key", &json!({ "value": "secret-value" }));
    }
    vault.store("aws/key", &json!({ "value": "secret-value" }));
    let listed = |uid| {
        let (status, body) = vault.ask(&user(uid), "GET", "/v1/credentials");
        let names = if status == 200 {
            let list: Value = serde_json::from_str(&body).expect("JSON");
            list.as_array().expect("a list").iter().map(|it| it["namespace"].clone()).collect()
        } else {
            Vec::new()
        };
        (status, names)
    };
    assert_eq!(listed(JARVIS), (200, vec![json!("github.a"), json!("openai")]));
    assert_eq!(listed(OPS), (200, vec![json!("aws"), json!("github.a"), json!("openai")]));
    assert_eq!(listed(EDI), (403, vec![]));
    assert_eq!(listed(STRANGER), (403, vec![]));
    let count = |uid| {
        let (_, body) = vault.ask(&user(uid), "GET", "/health");
        serde_json::from_str::<Value>(&body).expect("JSON")["credential_count"].clone()
    };
    assert_eq!((count(0), count(JARVIS), count(EDI)), (json!(3), json!(2), json!(0)));
    let (_, refusal) = vault.ask(&user(JARVIS), "PUT", "/v1/credentials/openai/key");
    assert_eq!(
        serde_json::from_str::<Value>(&refusal).expect("JSON")["detail"],
        "no rule of the policy allows jarvis to write in openai"
    );
}

#[test]
fn a_credential_for_some_consumers_is_given_to_no_other() {
    let Some(vault) = Vault::start(POLICY) else { return };
    let request = |consumers: &[&str]| {
        json!({ "value": "secret-value", "delivery_mode": "runtime_env", "env_name": "A_KEY",
                "allowed_consumers": consumers })
    };
    vault.store("openai/for_jarvis", &request(&["jarvis", "uwe"]));
    vault.store("openai/for_edi", &request(&["edi"]));
    vault.store("openai/for_all", &request(&[]));
    for (uid, expected) in
        [(JARVIS, [200, 403, 200]), (EDI, [403, 200, 200]), (OPS, [403; 3]), (0, [200; 3])]
    {
        let names = ["openai/for_jarvis", "openai/for_edi", "openai/for_all"];
        let statuses = names.map(|name| vault.status(&user(uid), "GET", name));
        assert_eq!(statuses, expected, "{uid}");
    }
    let lines = |uid| {
        let (status, body) = vault.ask(&user(uid), "GET", "/v1/runtime-env");
        let list: Value = serde_json::from_str(&body).expect("JSON");
        let keys = list.as_array().into_iter().flatten().map(|it| it["key"].clone());
        (status, keys.collect::<Vec<_>>())
    };
    assert_eq!(lines(JARVIS), (200, vec![json!("for_all"), json!("for_jarvis")]));
    assert_eq!(lines(EDI), (200, vec![json!("for_all"), json!("for_edi")]));
    assert_eq!(lines(OPS).0, 403);

    // One that may not list sees no difference between another's credential and none.
    let (status, other) = vault.ask(&user(EDI), "GET", "/v1/credentials/openai/for_jarvis");
    assert_eq!(vault.ask(&user(EDI), "GET", "/v1/credentials/openai/none"), (status, other));
}

#[test]
fn a_value_and_its_consumers_come_from_the_same_store() {
    let Some(vault) = Vault::start(POLICY) else { return };
    let path = "/v1/credentials/openai/key";
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                for (value, consumer) in [("for-jarvis", "jarvis"), ("for-edi", "edi")] {
                    let request = json!({ "value": value, "allowed_consumers": [consumer] });
                    assert_eq!(vault.service.put(path, &request).status, 200);
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut given = 0;
        while !done.load(Ordering::Relaxed) {
            let (status, body) = vault.ask(&user(JARVIS), "GET", path);
            match status {
                200 => assert_eq!(body, r#"{"value":"for-jarvis"}"#),
                status => assert!(status == 403 || status == 404, "{status}"),
            }
            given += 1;
        }
        assert!(given > 0);
    });
}

#[test]
fn a_rule_can_take_the_rights_of_the_owner() {
    let policy = POLICY.to_owned()
        + r#"
[[rule]]
consumers = ["jarvis"]
allow = ["read"]
namespaces = ["bank"]
owner = false
"#;
    let Some(vault) = Vault::start(&policy) else { return };
    vault.store("bank/pin", &json!({ "value": "secret-value" }));
    assert_eq!(vault.status(&user(0), "GET", "bank/pin"), 403);
    assert_eq!(vault.status(&user(JARVIS), "GET", "bank/pin"), 200);
    assert_eq!(vault.status(&user(0), "HEAD", "bank/pin"), 200, "the rule is about reading");
}

#[test]
fn a_body_of_someone_who_may_not_store_is_not_read() {
    let Some(vault) = Vault::start(POLICY) else { return };
    let script = "import socket,sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
        s.sendall(b'PUT /v1/credentials/openai/key HTTP/1.1\\r\\nHost: v\\r\\n\
        Content-Type: application/json\\r\\nContent-Length: 1000000\\r\\n\\r\\n'); \
        print(s.recv(12).decode())";
    let output = Command::new("timeout")
        .args(["20", "python3", "-c", script])
        .arg(&vault.service.socket)
        .uid(JARVIS)
        .gid(JARVIS)
        .current_dir("/")
        .output()
        .expect("python3 is installed");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "HTTP/1.1 403\n");
}

#[test]
fn group_program_unit_and_supervisor_are_conditions() {
    let place = Place::new();
    set_mode(place.root(), 0o755);
    let (program, other) = (place.root().join("jarvis"), place.root().join("other"));
    copy_program(Path::new("/usr/bin/curl"), &program);
    copy_program(Path::new("/usr/bin/curl"), &other);
    let unit = format!("vault-test-{}.service", std::process::id());
    let policy = format!(
        r#"
[consumer.group]
gid = 61100
[consumer.program]
uid = 61001
exe = "{}"
[consumer.unit]
unit = "{unit}"
[consumer.parent]
supervisor = true
"#,
        program.display()
    );
    let rule = |name: &str| {
        format!("[[rule]]\nconsumers = [{name:?}]\nallow = [\"read\"]\nnamespaces = [{name:?}]\n")
    };
    let rules = ["group", "program", "unit", "parent"].map(rule).concat();
    let Some(vault) = Vault::start(&format!("{policy}{rules}owner = false\n")) else { return };
    for namespace in ["group", "program", "unit", "parent"] {
        vault.store(&format!("{namespace}/key"), &json!({ "value": "secret-value" }));
    }
    let group = Caller { gid: 61100, ..user(STRANGER) };
    assert_eq!(vault.status(&group, "GET", "group/key"), 200);
    assert_eq!(vault.status(&group, "GET", "program/key"), 403);

    let jarvis = Caller { program: program.clone(), ..user(JARVIS) };
    assert_eq!(vault.status(&jarvis, "GET", "program/key"), 200);
    let same_program = Caller { uid: STRANGER, ..jarvis.clone() };
    assert_eq!(vault.status(&same_program, "GET", "program/key"), 403, "another user");
    let same_user = Caller { program: other, ..user(JARVIS) };
    assert_eq!(vault.status(&same_user, "GET", "program/key"), 403, "another program");

    // This process has started the service; what it starts has not.
    assert_eq!(vault.service.get("/v1/credentials/parent/key").status, 200);
    assert_eq!(vault.status(&user(0), "GET", "parent/key"), 403);

    let hierarchies = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let slice = |root: &str, slice: &str| {
        let path = Path::new(root).join(slice).join(&unit);
        fs::create_dir_all(&path).ok().filter(|()| path.join("cgroup.procs").exists())?;
        Some(path)
    };
    match hierarchies.iter().find_map(|root| Some((root, slice(root, "system.slice")?))) {
        None => cannot_here("no control group can be created, as a system unit has one"),
        Some((root, cgroup)) => {
            let in_unit = Caller { cgroup: Some(cgroup.clone()), ..user(STRANGER) };
            assert_eq!(vault.status(&in_unit, "GET", "unit/key"), 200);
            assert_eq!(vault.status(&user(STRANGER), "GET", "unit/key"), 403);
            // A user's own manager names its units as it likes.
            let of_user = slice(root, "user.slice/user-61003.slice").expect("a second group");
            let in_user_unit = Caller { cgroup: Some(of_user.clone()), ..user(STRANGER) };
            assert_eq!(vault.status(&in_user_unit, "GET", "unit/key"), 403);
            for group in [cgroup, of_user] {
                wait_until("the group is empty", || fs::remove_dir(&group).is_ok());
            }
        }
    }
}

/// A process that has connected and waits for a line before it sends its request.
struct Waiting(Running, ChildStdin);

const ASK_LATER: &str = "import socket,sys; s = socket.socket(socket.AF_UNIX); \
    s.connect(sys.argv[1]); print('connected', flush=True); sys.stdin.readline(); \
    s.sendall(b'GET /v1/credentials/program/key HTTP/1.1\\r\\nHost: v\\r\\n\\r\\n'); \
    print(s.recv(12).decode())";

impl Waiting {
    fn start(uid: u32, script: &str, socket: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(socket)
            .uid(uid)
            .gid(uid)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take().expect("a pipe");
        let mut waiting = Self(Running(child), stdin);
        assert_eq!(waiting.read(10), "connected\n");
        waiting
    }

    fn read(&mut self, length: usize) -> String {
        let mut text = vec![0; length];
        self.0.0.stdout.as_mut().expect("a pipe").read_exact(&mut text).expect("it says so");
        String::from_utf8(text).expect("UTF-8")
    }

    fn ask(&mut self) -> String {
        self.1.write_all(b"\n").expect("it reads");
        self.read(12)
    }
}

#[test]
fn a_program_that_was_replaced_on_disk_is_not_that_program() {
    let place = Place::new();
    set_mode(place.root(), 0o755);
    let program = place.root().join("jarvis");
    let replacement = place.root().join("new");
    copy_program(Path::new("/usr/bin/curl"), &program);
    copy_program(Path::new("/usr/bin/curl"), &replacement);
    let Some(vault) = Vault::start(&program_policy(&program)) else { return };
    vault.store("program/key", &json!({ "value": "secret-value" }));

    // It runs from the old file when the service looks, which is made to wait until then.
    vault.service.signal(Signal::STOP);
    let jarvis = Caller { program: program.clone(), ..user(JARVIS) };
    let asking = vault
        .command(&jarvis, "GET", "/v1/credentials/program/key")
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    wait_until("it has connected", || connections_waiting(&vault.service.socket) > 0);
    fs::rename(&replacement, &program).expect("replaces it");
    vault.service.signal(Signal::CONT);
    let output = asking.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("403"), "{output:?}");
    assert_eq!(vault.status(&jarvis, "GET", "program/key"), 200, "the new file");
}

fn program_policy(program: &Path) -> String {
    format!(
        "[consumer.program]\nexe = {:?}\n[[rule]]\nconsumers = [\"program\"]\nallow = [\"read\"]\n\
         namespaces = [\"program\"]\n",
        program.to_str().expect("UTF-8")
    )
}

/// The connections to a socket that nobody has accepted yet (state 02 in `/proc/net/unix`).
fn connections_waiting(socket: &Path) -> usize {
    let table = fs::read_to_string("/proc/net/unix").expect("reads");
    let path = socket.to_str().expect("UTF-8");
    let waiting = table
        .lines()
        .filter(|line| line.ends_with(path) && line.split_whitespace().nth(5) == Some("02"));
    waiting.count()
}

#[test]
fn a_recycled_process_number_gives_no_rights() {
    let place = Place::new();
    set_mode(place.root(), 0o755);
    let program = place.root().join("sleep");
    copy_program(Path::new("/usr/bin/sleep"), &program);
    let Some(vault) = Vault::start(&program_policy(&program)) else { return };
    vault.store("program/key", &json!({ "value": "secret-value" }));

    // A process connects and leaves the connection to its child. Its number is given to a
    // process with the right program before the service accepts.
    vault.service.signal(Signal::STOP);
    let script = format!(
        "import os,socket,sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
         pid = os.getpid()\nif os.fork():\n    os._exit(0)\nprint('connected', flush=True)\n\
         print('%08d' % pid, flush=True)\nsys.stdin.readline()\n{}",
        ASK_LATER.split_once("sys.stdin.readline(); ").expect("its end").1.replace("; ", "\n")
    );
    let mut child = Waiting::start(JARVIS, &script, &vault.service.socket);
    let number: i32 = child.read(9).trim().parse().expect("a number");
    child.0.wait();
    let recycled = recycle(number, &program);
    vault.service.signal(Signal::CONT);
    let answer = child.ask();
    let Some(mut recycled) = recycled else {
        cannot_here("the kernel does not let this process choose the next process number");
        return;
    };
    let is_running = recycled.try_wait().expect("a child").is_none();
    let _ = recycled.kill();
    let _ = recycled.wait();
    assert!(is_running);
    assert_eq!(answer, "HTTP/1.1 403");
}

/// Starts `sleep` under the given number, if the kernel permits.
fn recycle(number: i32, program: &Path) -> Option<Child> {
    for _ in 0..200 {
        fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).ok()?;
        let mut child = Command::new(program).arg("60").uid(JARVIS).spawn().expect("it starts");
        if child.id().cast_signed() == number {
            return Some(child);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    None
}

#[test]
fn a_policy_is_read_again_under_load_and_a_bad_one_is_not_used() {
    let Some(vault) = Vault::start(POLICY) else { return };
    vault.store("openai/key", &json!({ "value": "secret-value" }));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut statuses = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        statuses.push(vault.status(&user(JARVIS), "GET", "openai/key"));
                    }
                    statuses
                })
            })
            .collect();
        let closed = POLICY.replace("allow = [\"read\", \"list\"]", "allow = [\"list\"]");
        for _ in 0..10 {
            for (policy, status) in [(closed.as_str(), 403), (POLICY, 200)] {
                write_policy(&vault.place, policy);
                vault.service.signal(Signal::HUP);
                wait_until("the new rules hold", || {
                    vault.status(&user(JARVIS), "GET", "openai/key") == status
                });
            }
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            let statuses = reader.join().expect("no panic");
            assert!(statuses.contains(&200) && statuses.iter().all(|it| [200, 403].contains(it)));
        }
    });
    write_policy(&vault.place, "[consumer.jarvis]\nuid = 61001\nrights = 1\n");
    vault.service.signal(Signal::HUP);
    wait_until("it says so", || vault.service.log().contains("the old policy stays in force"));
    assert!(vault.service.log().contains("policy.toml:3: unknown field `rights`"));
    assert_eq!(vault.status(&user(JARVIS), "GET", "openai/key"), 200);
}

#[test]
fn a_policy_that_cannot_be_trusted_or_read_ends_the_start() {
    for (policy, mode, message) in [
        ("[consumer.a]\nuid = 1\n[[rule]]\n", 0o600, "policy.toml:3: missing field `consumers`"),
        (POLICY, 0o622, "other users may write to it"),
    ] {
        let place = Place::new();
        let path = write_policy(&place, policy);
        set_mode(&path, mode);
        let setup = place.setup().env("IF_VAULT_POLICY", &path);
        let mut service = setup.spawn();
        assert_eq!(service.wait().code(), Some(2));
        assert!(service.log().contains(message), "{}", service.log());
        assert!(!place.database().exists(), "nothing was touched");
        let (valid, text) = vault(&["policy", "check", path.to_str().expect("UTF-8")]);
        assert!(!valid && text.contains(message), "{text}");
    }
}

#[test]
fn every_decision_about_a_value_is_on_record_without_the_value() {
    let Some(vault_) = Vault::start(POLICY) else { return };
    vault_.store("openai/key", &json!({ "value": "secret-value" }));
    vault_.status(&user(JARVIS), "GET", "openai/key");
    vault_.status(&user(JARVIS), "GET", "openai/none");
    vault_.status(&user(JARVIS), "PUT", "openai/key");
    vault_.status(&user(OPS), "DELETE", "openai/key");
    let records = vault_.records();
    let facts: Vec<_> = records
        .iter()
        .map(|it| ["op", "outcome", "key", "consumer", "uid", "rule"].map(|name| it[name].clone()))
        .collect();
    assert_eq!(
        json!(facts),
        json!([
            ["store", "allowed", "key", null, 0, null],
            ["read", "allowed", "key", "jarvis", JARVIS, 1],
            ["read", "missing", "none", "jarvis", JARVIS, 1],
            ["store", "refused", "key", "jarvis", JARVIS, null],
            ["delete", "allowed", "key", "ops", OPS, 3],
        ])
    );
    assert!(records[1]["exe"].as_str().expect("a path").ends_with("curl"), "{}", records[1]);
    assert!(records[1]["pid"].as_i64() > Some(0));
    let text = fs::read_to_string(audit_log(&vault_.place)).expect("reads");
    assert!(!text.contains("secret-value") && !text.contains("new"));
    assert_eq!(support::mode(audit_log(&vault_.place)), 0o600);

    let path = audit_log(&vault_.place);
    let file = path.to_str().expect("UTF-8");
    let (_, refused) = vault(&["audit", "tail", "--no-follow", "--outcome", "refused", file]);
    assert_eq!(refused.lines().count(), 1, "{refused}");
    let (_, of_ops) = vault(&["audit", "tail", "--no-follow", "--consumer", "ops", file]);
    assert!(of_ops.lines().count() == 1 && of_ops.contains("\"delete\""), "{of_ops}");
    let socket = vault_.service.socket.to_str().expect("UTF-8");
    vault_.store("openai/key", &json!({ "value": "secret-value" }));
    let (_, listed) = vault(&["list", "--socket", socket, "--long", "--audit-log", file]);
    assert!(listed.trim_end().contains("\tjarvis (/") && listed.contains("curl)"), "{listed}");
    let text = fs::read_to_string(&path).expect("reads");
    fs::write(&path, text.replace("\"refused\"", "\"allowed\"")).expect("an attacker writes");
    let (intact, message) = vault(&["audit", "verify", file]);
    assert!(!intact && message.contains("line 4: it was changed"), "{message}");
}

#[test]
fn without_a_record_no_value_is_given_and_nothing_is_stored() {
    let place = Place::new();
    let log = audit_log(&place);
    let setup = place.setup().option("--audit-log", &log);
    let service = setup.start();
    let key = "/v1/credentials/openai/key";
    assert_eq!(service.put(key, &json!({ "value": "old" })).status, 200);
    let length = fs::metadata(&log).expect("it exists").len();
    let limit = |bytes| {
        use rustix::process::{Resource, Rlimit, prlimit};
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(service.pid()), Resource::Fsize, limit).expect("the hard limit stays");
    };
    // Room for a part of a line.
    limit(Some(length + 20));
    let answer = service.get(key);
    assert_eq!(answer.status, 503);
    assert!(answer.header("Retry-After").is_some());
    assert!(!String::from_utf8_lossy(&answer.body).contains("old"));
    assert_eq!(service.put(key, &json!({ "value": "new" })).status, 503);
    service.assert_healthy();
    limit(None);
    assert_eq!(service.get(key).value(), "old");
    let (intact, text) = vault(&["audit", "verify", log.to_str().expect("UTF-8")]);
    assert!(intact && text.starts_with("intact: 2 lines"), "{text}");
}

#[test]
fn a_rotated_audit_log_is_opened_again() {
    let place = Place::new();
    let log = audit_log(&place);
    let old = place.root().join("audit.old");
    let setup = place.setup().option("--audit-log", &log);
    let service = setup.start();
    let key = "/v1/credentials/openai/key";
    assert_eq!(service.put(key, &json!({ "value": "v" })).status, 200);
    fs::rename(&log, &old).expect("rotates");
    service.signal(Signal::HUP);
    wait_until("there is a new file", || log.exists());
    assert_eq!(service.get(key).value(), "v");
    let hash = |path: &Path, name| {
        let text = fs::read_to_string(path).expect("reads");
        let line: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        line[name].clone()
    };
    assert_eq!(hash(&log, "prev"), hash(&old, "hash"));
}

#[test]
fn explain_says_what_the_service_decides() {
    let Some(vault_) = Vault::start(POLICY) else { return };
    let request = json!({ "value": "secret-value", "allowed_consumers": ["edi"] });
    vault_.store("openai/for_edi", &request);
    let jarvis = Waiting::start(JARVIS, ASK_LATER, &vault_.service.socket);
    let pid = jarvis.0.0.id().to_string();
    let policy = vault_.place.root().join("policy.toml");
    let explain = |operation: &str, name: &str| {
        vault(&[
            "policy",
            "explain",
            "--policy",
            policy.to_str().expect("UTF-8"),
            "--data-dir",
            vault_.place.data_dir().to_str().expect("UTF-8"),
            "--socket",
            vault_.service.socket.to_str().expect("UTF-8"),
            "--pid",
            &pid,
            operation,
            name,
        ])
    };
    let (allowed, text) = explain("read", "openai/other");
    assert!(allowed && text.contains("allowed by rule 1, as jarvis"), "{text}");
    let (allowed, text) = explain("read", "openai/for_edi");
    assert!(!allowed && text.contains("refused"), "{text}");
    let (allowed, text) = explain("write", "openai/other");
    assert!(!allowed && text.contains("no rule of the policy allows jarvis to write"), "{text}");
}
