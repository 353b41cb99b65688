//! Finds or starts the server that tests run on, `OpenBao` or Vault, and sends an operator's
//! requests to it.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::support::{DEADLINE, cannot_here, eventually, skip, wait_until};

/// Starts the program named by its arguments, and kills it when standard input ends. The test
/// program holds the other end, so nothing outlives a test that is killed.
const GUARDED: &str =
    r#"exec 3<&0; (cat <&3 >/dev/null; kill -KILL $$) & exec "$@" 3<&- </dev/null"#;

/// Returns `bao` or `vault` on the PATH, else the one that scripts/install-test-deps provides.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let named = ["bao", "vault"].into_iter();
    let on_path = named.flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let provided = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools/bao");
    on_path.chain([provided]).find(|file| file.is_file())
}

/// Like [`program`], for a test that starts its own server. Without a program, reports that the
/// test is skipped. Under CI that fails the test, unless `VAULT_ADDR` names a server for the
/// others.
pub fn own_program() -> Option<PathBuf> {
    let program = program();
    if program.is_none() {
        let say = if Server::shared().is_some() { cannot_here } else { skip };
        say("this test starts bao or vault; scripts/install-test-deps provides one");
    }
    program
}

/// A program that ends when the test program ends, or earlier.
pub struct Process(Child);

impl Process {
    pub fn start(program: &Path, arguments: &[&str], directory: &Path) -> Self {
        let log = File::create(directory.join("log")).expect("a log file");
        let child = Command::new("/bin/sh")
            .args(["-c", GUARDED, "sh"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("HOME", directory)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        Self(child.expect("sh starts"))
    }

    /// Kills the program, and waits until it has ended.
    pub fn kill(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it listens").port()
}

/// A server, and its root token.
pub struct Server {
    /// `http://host:port`.
    pub address: String,
    pub token: String,
    /// Whether this program started it, so that nobody else's data is on it.
    pub own: bool,
    process: Option<(Process, TempDir)>,
}

impl Server {
    /// Returns the server that all tests of a program share: the one that `VAULT_ADDR` and
    /// `VAULT_TOKEN` name, else a development server. `None` if there is neither.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        let server = SHARED.get_or_init(|| {
            let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
            let server = match (variable("VAULT_ADDR"), variable("VAULT_TOKEN")) {
                (Some(address), Some(token)) if address.starts_with("http://") => {
                    Self { address, token, own: false, process: None }
                }
                _ => Self::dev(&program()?, ""),
            };
            let approle = json!({ "type": "approle" });
            let (status, answer) = server.operate("POST", "sys/auth/approle", Some(&approle));
            assert!(status < 300 || answer.to_string().contains("already in use"), "{answer}");
            Some(server)
        });
        server.as_ref()
    }

    /// Starts a development server, in memory, with this additional configuration.
    pub fn dev(program: &Path, configuration: &str) -> Self {
        eventually("a development server", || {
            let directory = TempDir::new().expect("a temporary directory");
            let file = directory.path().join("config.hcl");
            fs::write(&file, configuration).expect("writes");
            let port = free_port();
            let listen = format!("-dev-listen-address=127.0.0.1:{port}");
            let token = "-dev-root-token-id=root";
            let config = format!("-config={}", file.display());
            let arguments = ["server", "-dev", "-dev-no-store-token", token, &listen, &config];
            let arguments = &arguments[..if configuration.is_empty() { 5 } else { 6 }];
            let mut process = Process::start(program, arguments, directory.path());
            let mut server = Self {
                address: format!("http://127.0.0.1:{port}"),
                token: "root".to_owned(),
                own: true,
                process: None,
            };
            // Another process may have taken the port in the meantime.
            let ready = eventually("the server is ready or has ended", || {
                let ended = process.0.try_wait().expect("a child").is_some();
                if ended { Some(false) } else { server.is_ready().then_some(true) }
            });
            server.process = Some((process, directory));
            ready.then_some(server)
        })
    }

    fn is_ready(&self) -> bool {
        self.try_operate("GET", "auth/token/lookup-self", &[], None).is_ok_and(|got| got.0 == 200)
    }

    /// Mounts a KV engine in a namespace of the server ("" for the root), and waits until it is
    /// ready.
    #[track_caller]
    pub fn mount_kv(&self, namespace: &str, path: &str, version: u8) {
        let options = json!({ "type": "kv", "options": { "version": version.to_string() } });
        self.done("POST", &format!("{namespace}/sys/mounts/{path}"), Some(&options));
        let probe = format!("{namespace}/{path}/{}", if version == 2 { "config" } else { "none" });
        wait_until("the mount is ready", || self.operate("GET", &probe, None).0 != 400);
    }

    // An operator's requests, as root.

    pub fn operate(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_operate(method, path, &[], body).expect("the server answers")
    }

    /// Like [`operate`](Self::operate), but fails the test unless the request succeeds.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.done_with(method, path, &[], body)
    }

    /// Like [`done`](Self::done), with these header lines.
    #[track_caller]
    pub fn done_with(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: Option<&Value>,
    ) -> Value {
        let (status, answer) =
            self.try_operate(method, path, headers, body).expect("the server answers");
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    fn try_operate(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: Option<&Value>,
    ) -> io::Result<(u16, Value)> {
        let host = self.address.replace("http://", "");
        let path = path.trim_start_matches('/');
        let mut stream = TcpStream::connect(host.trim_end_matches('/'))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
        let more = headers.concat();
        // HTTP/1.0, since a server answers that without chunks.
        write!(
            stream,
            "{method} /v1/{path} HTTP/1.0\r\nHost: {host}\r\nX-Vault-Token: {}\r\n\
             Content-Type: application/{kind}\r\nContent-Length: {}\r\n{more}\r\n{body}",
            self.token,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }
}

/// A server with raft storage on disk, which survives a kill.
pub struct DiskServer {
    pub server: Server,
    program: PathBuf,
    unseal_key: String,
}

impl DiskServer {
    pub fn start(program: &Path) -> Self {
        let mut disk = Self::launch(program, "one");
        let shares = json!({ "secret_shares": 1, "secret_threshold": 1 });
        let keys = disk.server.done("PUT", "sys/init", Some(&shares));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        disk.unseal_key = text(&keys["keys_base64"][0]);
        disk.server.token = text(&keys["root_token"]);
        disk.unseal();
        disk.server.mount_kv("", "secret", 2);
        disk
    }

    /// Starts a server that is not initialised yet.
    fn launch(program: &Path, name: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let (port, cluster) = (free_port(), free_port());
        let address = format!("http://127.0.0.1:{port}");
        // OpenBao does not use mlock; Vault must be told not to. Only OpenBao's standby nodes answer
        // reads themselves, from a copy that may be old.
        let vendor = if program.ends_with("vault") {
            "disable_mlock = true"
        } else {
            "disable_standby_reads = true"
        };
        let configuration = format!(
            r#"storage "raft" {{
                path = "{}"
                node_id = "{name}"
                performance_multiplier = 1
                autopilot_reconcile_interval = "500ms"
                autopilot_update_interval = "200ms"
            }}
            listener "tcp" {{
                address = "127.0.0.1:{port}"
                cluster_address = "127.0.0.1:{cluster}"
                tls_disable = true
            }}
            api_addr = "{address}"
            cluster_addr = "http://127.0.0.1:{cluster}"
            {vendor}"#,
            directory.path().display()
        );
        fs::write(directory.path().join("config.hcl"), configuration).expect("writes");
        let process = Some((Self::process(program, directory.path()), directory));
        let server = Server { address, token: String::new(), own: true, process };
        let disk = Self { server, program: program.to_owned(), unseal_key: String::new() };
        disk.wait_until_listening();
        disk
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.server.process.as_mut().expect("it was started here").0.kill();
    }

    /// Starts it again on the same storage and port.
    pub fn restart(&mut self) {
        let (process, directory) = self.server.process.as_mut().expect("it was started here");
        *process = Self::process(&self.program, directory.path());
        self.wait_until_listening();
        self.unseal();
    }

    fn process(program: &Path, directory: &Path) -> Process {
        let config = format!("-config={}", directory.join("config.hcl").display());
        Process::start(program, &["server", &config], directory)
    }

    fn wait_until_listening(&self) {
        let answers = || self.server.try_operate("GET", "sys/seal-status", &[], None);
        wait_until("the server listens", || answers().is_ok_and(|got| got.0 == 200));
    }

    fn unseal(&self) {
        self.server.done("PUT", "sys/unseal", Some(&json!({ "key": self.unseal_key })));
        wait_until("it is unsealed", || self.is_active());
    }

    /// Whether it is the node that answers all requests; the others forward them to it.
    pub fn is_active(&self) -> bool {
        self.server.try_operate("GET", "sys/health", &[], None).is_ok_and(|got| got.0 == 200)
    }
}

/// Starts three servers with one store (raft). The first is active, the others are standbys.
pub fn cluster(program: &Path) -> [DiskServer; 3] {
    let first = DiskServer::start(program);
    let operator = &first.server;
    // A node votes when it has been stable for this time: 10 s by default.
    let autopilot = json!({ "server_stabilization_time": "100ms" });
    operator.done("POST", "sys/storage/raft/autopilot/configuration", Some(&autopilot));
    let [second, third] = ["two", "three"].map(|name| {
        let mut node = DiskServer::launch(program, name);
        node.server.token.clone_from(&operator.token);
        node.unseal_key.clone_from(&first.unseal_key);
        let leader = json!({ "leader_api_addr": operator.address });
        node.server.done("POST", "sys/storage/raft/join", Some(&leader));
        node.server.done("PUT", "sys/unseal", Some(&json!({ "key": node.unseal_key })));
        wait_until("the node forwards requests", || node.server.is_ready());
        node
    });
    wait_until("all nodes vote", || {
        let state = operator.done("GET", "sys/storage/raft/configuration", None);
        let servers = state["data"]["config"]["servers"].as_array().cloned().unwrap_or_default();
        servers.len() == 3 && servers.iter().all(|server| server["voter"] == true)
    });
    [first, second, third]
}
