//! Shared by the integration tests: the real service in a directory of its own, and raw HTTP over
//! its socket. Every wait has a deadline.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for something that should happen at once. Long enough for a busy machine,
/// so that only a service that hangs exceeds it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until there is an answer. Fails the test if `DEADLINE` passes first.
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Polls until the condition holds; see [`eventually`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Reports on the terminal that a test could not run here (cargo hides the output of a test that
/// passes). If `CI` is set, no test may be skipped, and this fails.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "under CI nothing is skipped: {reason}");
    // A closed terminal must not fail the test.
    let _ = writeln!(io::stderr(), "skipped: {reason}");
}

/// Whether this process is root, as a test needs to be that acts as other users. It skips the
/// test if not.
#[track_caller]
pub fn is_root() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        skip("acting as other users needs root");
    }
    is_root
}

/// Like [`skip`], for a part of a test that depends on something no setup can guarantee, such as
/// the permission to mount. Never fails, so another test must cover the same behaviour.
pub fn cannot_here(reason: &str) {
    let _ = writeln!(io::stderr(), "not tested here: {reason}");
}

/// Raises this process's descriptor limit as far as possible.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .expect("a soft limit may be raised to the hard one");
}

/// The mode of a file, of which `path` may be a link.
#[track_caller]
pub fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::metadata(path).expect("it exists").permissions().mode() & 0o7777
}

pub fn set_mode(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// Copies a program, in another process. If this process had it open for writing, a child that
/// another test starts at that moment would inherit the descriptor, and running the copy would fail
/// with ETXTBSY.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
}

/// The program of an example. Cargo builds it before it runs all tests, but not for one of them alone.
#[track_caller]
pub fn example(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_credential-vault")).parent().expect("a folder");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--offline", "--example", name, "--target-dir"]);
    build.arg(folder.parent().expect("a folder")).current_dir(env!("CARGO_MANIFEST_DIR"));
    // These variables are for tests; they would cause a rebuild.
    for (name, _) in std::env::vars_os() {
        let is_for_tests = |beginning: &str| name.to_string_lossy().starts_with(beginning);
        if is_for_tests("CARGO_MANIFEST_") || is_for_tests("CARGO_PKG_") {
            build.env_remove(name);
        }
    }
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success());
    folder.join("examples").join(name)
}

/// Checks the wire contract on the service at `socket`, with the script that operators use.
#[track_caller]
pub fn assert_wire_contract(socket: &Path) {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/wire-contract"))
        .arg("--socket")
        .arg(socket)
        .output()
        .expect("the script is executable, and python3 installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<&str> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(output.status.success(), "{failed:#?} {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory for one service: its socket, its data, its log. It outlives the service, so that a
/// test can start a second one on the same data.
pub struct Place {
    root: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { root: TempDir::new().expect("a temporary directory") }
    }

    /// With the usual service, which answers.
    #[track_caller]
    pub fn serving() -> (Self, Service) {
        let place = Self::new();
        let service = place.start();
        (place, service)
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.root().join("run/vault.sock")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }

    pub fn database(&self) -> PathBuf {
        self.data_dir().join("credentials.db")
    }

    /// Prepares the usual service: the env backend, with socket and data in this directory.
    pub fn setup(&self) -> Setup {
        self.setup_with("env")
    }

    /// Like [`setup`](Self::setup), with another backend.
    pub fn setup_with(&self, backend: &str) -> Setup {
        let setup = self.bare_setup().option("--socket", self.socket());
        setup.option("--data-dir", self.data_dir()).option("--backend", backend)
    }

    /// Prepares `serve` without options, in an environment without settings, with its home in this
    /// directory.
    pub fn bare_setup(&self) -> Setup {
        let setup = Setup {
            program: PathBuf::from(env!("CARGO_BIN_EXE_credential-vault")),
            arguments: vec!["serve".into()],
            environment: Vec::new(),
            shell: None,
            identity: None,
            socket: self.socket(),
            root: self.root().to_owned(),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        setup.env("HOME", self.root()).env("PATH", path).env("RUST_LOG", "info")
    }

    /// Starts the usual service and waits until it answers.
    pub fn start(&self) -> Service {
        self.setup().start()
    }

    /// Writes a database like one of the Python service, with `rows` credentials in the namespace
    /// `seeded`.
    pub fn seed_database(&self, rows: u32) {
        std::fs::create_dir_all(self.data_dir()).expect("creates the data directory");
        let mut database = rusqlite::Connection::open(self.database()).expect("opens");
        let transaction = database.transaction().expect("begins");
        transaction.execute_batch(include_str!("python.sql")).expect("creates the table");
        for row in 0..rows {
            transaction
                .execute(
                    "INSERT INTO credential_metadata
                        (namespace, key, masked_preview, created_at, updated_at)
                     VALUES ('seeded', ?1, 'sk-pro....YZ',
                        '2026-11-23T18:17:36.320458+00:00', '2026-11-23T18:17:36+00:00')",
                    [format!("key-{row:06}")],
                )
                .expect("inserts");
        }
        transaction.commit().expect("commits");
    }

    /// Reads a text column of one credential's row from the file.
    pub fn column(&self, column: &str, namespace: &str, key: &str) -> Option<String> {
        let database = rusqlite::Connection::open(self.database()).expect("opens");
        database.busy_timeout(DEADLINE).expect("sets a timeout");
        database
            .query_row(
                &format!(
                    "SELECT {column} FROM credential_metadata WHERE namespace = ?1 AND key = ?2"
                ),
                [namespace, key],
                |row| row.get(0),
            )
            .expect("the row is there")
    }
}

/// The command line and environment of a service to start.
#[derive(Clone)]
pub struct Setup {
    pub program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    shell: Option<String>,
    identity: Option<u32>,
    socket: PathBuf,
    root: PathBuf,
}

impl Setup {
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.argument(name).argument(value)
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Adds shell commands that run in the process before it becomes the service, such as `ulimit
    /// -n 64`.
    pub fn after(mut self, commands: &str) -> Self {
        self.shell = Some(commands.to_owned());
        self
    }

    /// Runs the service as another user and group. Needs root.
    pub fn identity(mut self, id: u32) -> Self {
        self.identity = Some(id);
        self
    }

    /// Sets where the service listens, if its options are not the usual ones.
    pub fn listening_at(mut self, socket: PathBuf) -> Self {
        self.socket = socket;
        self
    }

    /// Starts it and returns at once. Its log goes to a file: see [`Service::log`].
    pub fn spawn(self) -> Service {
        let mut command = match &self.shell {
            None => Command::new(&self.program),
            Some(commands) => {
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(format!("{commands}\nexec \"$0\" \"$@\"")).arg(&self.program);
                shell
            }
        };
        if let Some(id) = self.identity {
            use std::os::unix::process::CommandExt;
            command.uid(id).gid(id);
        }
        let (file, log) = tempfile::Builder::new()
            .prefix("log-")
            .tempfile_in(&self.root)
            .expect("a log file")
            .keep()
            .expect("stays until its directory goes");
        let child = command
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the service starts");
        Service { child, socket: self.socket, log }
    }

    /// Runs another command instead, which takes the same options as `serve`, to its end.
    pub fn run(self, command: &str) -> Output {
        let mut process = Command::new(&self.program);
        process.arg(command).args(&self.arguments[1..]).env_clear().envs(self.environment);
        process.current_dir("/").stdin(Stdio::null()).output().expect("it starts")
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Service {
        let mut service = self.spawn();
        service.wait_until_ready();
        service
    }
}

/// A running service; killed when it is dropped.
pub struct Service {
    child: Child,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Service {
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let socket = self.socket.clone();
        wait_until("the service answers", || {
            assert!(self.exit_status().is_none(), "it ended instead of serving: {}", self.log());
            answers(&socket)
        });
    }

    pub fn connect(&self) -> Connection {
        Connection::open(&self.socket)
    }

    /// Sends one request on a new connection.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.connect().exchange(&get(path))
    }

    /// Stores a value on a new connection.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Response {
        self.connect().exchange(&put(path, body))
    }

    /// Checks that the service answers `/health` on a new connection.
    #[track_caller]
    pub fn assert_healthy(&self) {
        assert_eq!(self.get("/health").status, 200, "{}", self.log());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("it is running");
    }

    /// Returns a number from `/proc/PID/status` (proc(5)).
    #[track_caller]
    pub fn status(&self, field: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        let number = line.trim_start_matches(':').split_whitespace().next().expect("a number");
        number.parse().expect("a number")
    }

    /// Returns the exit status, if the service has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits until the service has ended.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the service ends", || self.exit_status())
    }

    /// Stops the service, as a service manager does.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.wait().success(), "{}", self.log());
    }

    /// Kills the service, as a power cut would, except that the kernel's buffers survive.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is running");
        self.child.wait().expect("a child can be waited for");
    }

    /// Returns the output on standard output and standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails if the test has already ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of the service\n{}---", self.log());
        }
    }
}

/// A program that is killed when this is dropped.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("starts"))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("it is running");
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("can be waited for").is_none()
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("it ends", || self.0.try_wait().expect("can be waited for"))
    }

    /// Asks it to end, and waits until it has.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    pub fn of(command: &mut Command) -> Self {
        command.output().expect("runs").into()
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    /// Failed with `code`, and gives this reason.
    #[track_caller]
    pub fn failed(self, code: i32, reason: &str) -> String {
        let ended = self.expect(code);
        assert!(ended.stderr.contains(reason), "{ended:?}");
        ended.stdout
    }

    /// Succeeded, and says this on standard output.
    #[track_caller]
    pub fn says(self, text: &str) -> String {
        let said = self.ok();
        assert!(said.contains(text), "{said}");
        said
    }

    /// Succeeded, with nothing on standard error.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!((self.status.code(), self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self.stdout
    }

    /// Failed with `code` before it started anything. Returns the message, which has no value.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        assert_eq!((self.status.code(), self.stdout.as_str()), (Some(code), ""), "{self:?}");
        assert!(!self.stderr.contains("canary"), "{}", self.stderr);
        self.stderr
    }
}

/// Random numbers that a seed repeats (`SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is below a usize")
    }

    /// The start of another sequence.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// Runs curl as another user and group, and returns the status and the body that it gets.
#[cfg(unix)]
#[track_caller]
pub fn curl_as(id: u32, socket: &Path, arguments: &[&str], path: &str) -> (u16, String) {
    use std::os::unix::process::CommandExt as _;
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"])
        .args(arguments)
        .arg("--unix-socket")
        .arg(socket)
        .arg(format!("http://localhost{path}"))
        .uid(id)
        .gid(id)
        .current_dir("/")
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

/// Returns whether a service at the socket answers `/health`.
fn answers(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else { return false };
    let mut connection = Connection::over(stream);
    connection.try_send(&get("/health")).is_ok()
        && matches!(connection.try_response(false), Ok(Some(answer)) if answer.status == 200)
}

/// Returns the bytes of a request. `headers` are whole lines, each with its CRLF.
pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = if body.is_empty() { String::new() } else { content_length(body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: credential-vault\r\n{headers}{length}");
    [head.as_bytes(), b"\r\n", body].concat()
}

pub fn content_length(length: usize) -> String {
    format!("Content-Length: {length}\r\n")
}

pub fn get(path: &str) -> Vec<u8> {
    request("GET", path, "", b"")
}

pub fn delete(path: &str) -> Vec<u8> {
    request("DELETE", path, "", b"")
}

pub fn put(path: &str, body: &Value) -> Vec<u8> {
    put_text(path, body.to_string().as_bytes())
}

pub fn put_text(path: &str, body: &[u8]) -> Vec<u8> {
    request("PUT", path, "Content-Type: application/json\r\n", body)
}

/// One end of a connection to the service.
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects. Waits for room in the listener's queue if necessary.
    #[track_caller]
    pub fn open(socket: &Path) -> Self {
        eventually("a connection", || match try_connect(socket) {
            Ok(stream) => Some(Self::over(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("cannot connect: {error}"),
        })
    }

    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        stream.set_write_timeout(Some(DEADLINE)).expect("not zero");
        Self { stream, received: Vec::new() }
    }

    /// Returns a second handle, so that another thread can send.
    pub fn another_handle(&self) -> UnixStream {
        self.stream.try_clone().expect("a descriptor is free")
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the service takes it");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Ends the sending side; answers can still arrive.
    pub fn finish_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("it is connected");
    }

    /// Sends a request (of any method but HEAD) and reads its answer.
    #[track_caller]
    pub fn exchange(&mut self, request: &[u8]) -> Response {
        self.send(request);
        self.response()
    }

    /// Reads the next answer, to a request of any method but HEAD.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.try_response(false).expect("readable").expect("an answer, not the end")
    }

    /// Reads the next answer, to a HEAD: no body follows, whatever its length says.
    #[track_caller]
    pub fn response_to_head(&mut self) -> Response {
        self.try_response(true).expect("readable").expect("an answer, not the end")
    }

    /// Reads the next answer, or returns `None` at the end of the stream.
    pub fn try_response(&mut self, to_head: bool) -> io::Result<Option<Response>> {
        let head_length = loop {
            if let Some(at) = find(&self.received, b"\r\n\r\n") {
                break at + 4;
            }
            if self.receive()? == 0 {
                if self.received.is_empty() {
                    return Ok(None);
                }
                return Err(ErrorKind::UnexpectedEof.into());
            }
        };
        let head: Vec<u8> = self.received.drain(..head_length).collect();
        let mut answer = Response::of_head(&head);
        if to_head || answer.status < 200 || answer.status == 204 {
            return Ok(Some(answer));
        }
        let chunked = answer.header("Transfer-Encoding").is_some();
        let length = answer.header("Content-Length").map(str::parse);
        answer.body = match length {
            Some(length) => {
                assert!(!chunked, "two framings: {:?}", answer.headers);
                self.take(length.expect("a number"))?
            }
            None if chunked => self.chunks()?,
            None => {
                while self.receive()? > 0 {}
                std::mem::take(&mut self.received)
            }
        };
        Ok(Some(answer))
    }

    /// Reads every answer until the service closes the connection.
    #[track_caller]
    pub fn responses_to_end(&mut self) -> Vec<Response> {
        std::iter::from_fn(|| self.try_response(false).expect("answers, then the end")).collect()
    }

    /// Waits until the service closes the connection. No bytes may arrive before that.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        let end = self.receive().expect("the service closes");
        let rest = String::from_utf8_lossy(&self.received);
        assert!(end == 0 && rest.is_empty(), "more came instead of the end: {rest}");
    }

    /// Returns whether everything that has arrived was read. Does not wait.
    pub fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket can be");
        let result = self.receive();
        self.stream.set_nonblocking(false).expect("a socket can be");
        self.received.is_empty()
            && matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < length {
            if self.receive()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.received.drain(..length).collect())
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = find(&self.received, b"\r\n") {
                    break at;
                }
                if self.receive()? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            };
            let line = self.take(line_end + 2)?;
            let size = std::str::from_utf8(&line[..line_end]).expect("hexadecimal digits");
            let size = usize::from_str_radix(size, 16).expect("hexadecimal digits");
            let chunk = self.take(size + 2)?;
            assert!(chunk.ends_with(b"\r\n"), "a chunk ends in CRLF");
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    /// Reads once; 0 at the end. A reset also counts as the end: a peer that closes with unread
    /// input causes one.
    fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return Ok(count);
                }
                // A read with a timeout is interrupted when the process is stopped and continued
                // (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Connects without waiting: `WouldBlock` if the listener's queue is full, where a plain connect
/// would wait forever.
#[cfg(target_os = "linux")]
pub fn try_connect(socket: &Path) -> io::Result<UnixStream> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&client, &SocketAddrUnix::new(socket)?)?;
    let stream = UnixStream::from(client);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(not(target_os = "linux"))]
pub fn try_connect(socket: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(socket)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// An answer from the service.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    fn of_head(head: &[u8]) -> Self {
        let head = std::str::from_utf8(head).expect("heads are ASCII");
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().expect("split gives at least one");
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| status_line.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or_else(|| {
                // Shows only the end: other bytes may precede the status line.
                let end = status_line.len().saturating_sub(200);
                panic!("not a status line: {:?}", status_line.get(end..))
            });
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').expect("a header has a colon");
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Self { status, headers, body: Vec::new() }
    }

    /// Returns the header's value. Fails if it occurs more than once.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "two {name}: {:?}", self.headers);
        value
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the value in the answer to a GET of a credential.
    #[track_caller]
    pub fn value(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["value"].as_str().expect("a string").to_owned()
    }

    /// Returns whether the answer announces the end of the connection.
    pub fn closes(&self) -> bool {
        self.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}
