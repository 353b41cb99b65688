//! A proxy in front of the Vault server. It records the requests, and injects faults that a healthy
//! server never has.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::support::DEADLINE;

/// Whether a fault happens before or after the request takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The server never sees the request.
    Before,
    /// The server has carried the request out; the client does not see the answer.
    After,
}

/// One way to misbehave.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The request is held until the test releases it.
    Hold(When),
    /// The connection is reset.
    Reset(When),
    /// The connection is closed without an answer.
    Close,
    /// Half of the server's answer arrives, then the connection is closed.
    Half,
    /// Half of the server's answer arrives, then nothing more.
    HalfThenSilence,
    /// The server's answer arrives one byte at a time.
    Drip,
    /// These bytes are the answer; the server never sees the request.
    Answer(Vec<u8>),
    /// These bytes are the answer, then the connection is closed.
    LastAnswer(Vec<u8>),
}

impl Fault {
    /// Answers with this status, these header lines (each with its CRLF) and this body.
    pub fn answer(status: u16, headers: &str, body: &[u8]) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n{headers}\r\n");
        Self::Answer([head.as_bytes(), body].concat())
    }

    /// Answers with an error in the form of Vault and `OpenBao`.
    pub fn error(status: u16, text: &str) -> Self {
        Self::answer(status, "", json!({ "errors": [text] }).to_string().as_bytes())
    }

    pub fn sealed() -> Self {
        Self::error(503, "Vault is sealed")
    }

    pub fn internal_error() -> Self {
        Self::error(500, "1 error occurred:\n\t* internal error\n\n")
    }

    /// Answers like a server that does not support PATCH.
    pub fn unsupported() -> Self {
        Self::error(405, "1 error occurred:\n\t* unsupported operation\n\n")
    }

    pub fn forbidden() -> Self {
        Self::error(403, "1 error occurred:\n\t* permission denied\n\n")
    }

    /// Answers with a rate limit. `OpenBao` sends no `Retry-After`; Vault and reverse proxies do.
    pub fn too_many_requests(retry_after: Option<u32>) -> Self {
        let header = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n"));
        let body = br#"{"errors":["request path \"secret/data\": rate limit quota exceeded"]}"#;
        Self::answer(429, &header.unwrap_or_default(), body)
    }
}

/// A request that arrived.
pub struct Request {
    pub method: String,
    /// Without `/v1/`.
    pub path: String,
    /// The request line and the header lines, in lower case.
    pub head: String,
    pub began: Instant,
    status: OnceLock<u16>,
}

impl Request {
    fn of(raw: &[u8]) -> Self {
        let head = raw.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(head);
        let mut words = line.split(' ').map(str::to_owned);
        let method = words.next().unwrap_or_default();
        let path = words.next().unwrap_or_default();
        let path = path.strip_prefix("/v1/").unwrap_or(&path).to_owned();
        let head_end = find(raw, b"\r\n\r\n").unwrap_or(raw.len());
        let head = String::from_utf8_lossy(&raw[..head_end]).to_ascii_lowercase();
        Self { method, path, head, began: Instant::now(), status: OnceLock::new() }
    }

    /// Returns whether the method is this one ("" for any) and the path contains this text.
    pub fn is(&self, method: &str, path: &str) -> bool {
        (method.is_empty() || method == self.method) && self.path.contains(path)
    }
}

/// A fault, the requests it applies to, and its progress.
struct Rule {
    fault: Fault,
    method: &'static str,
    path: String,
    skip: usize,
    left: usize,
    hits: usize,
    held: usize,
    passes: usize,
    open: bool,
    lost: bool,
}

impl Rule {
    fn applies_to(&mut self, request: &Request) -> bool {
        if self.left == 0 || !request.is(self.method, &self.path) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.left -= 1;
        self.hits += 1;
        true
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    requests: Vec<Arc<Request>>,
    clients: Vec<Weak<TcpStream>>,
    connections: usize,
    under_way: usize,
    most_under_way: usize,
    down: bool,
}

struct Shared {
    upstream: Mutex<String>,
    state: Mutex<State>,
    changed: Condvar,
}

pub struct Proxy {
    pub address: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port for requests to `upstream` (`http://host:port`). Its threads end with
    /// the test program.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("it listens"));
        let upstream = Mutex::new(upstream.replace("http://", ""));
        let state = Mutex::default();
        let shared = Arc::new(Shared { upstream, state, changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (client, shared) = (Arc::new(client), Arc::clone(&accepting));
                let mut state = shared.state();
                if state.down {
                    continue;
                }
                state.connections += 1;
                state.clients.push(Arc::downgrade(&client));
                drop(state);
                // An error means that one side has closed the connection.
                thread::spawn(move || drop(shared.serve(&client)));
            }
        });
        Self { address, shared }
    }

    /// Applies the fault to the next `count` requests of this method ("" for any) whose path
    /// contains `path`.
    pub fn next(&self, count: usize, fault: Fault, method: &'static str, path: &str) -> Active {
        self.after(0, count, fault, method, path)
    }

    /// Like [`next`](Self::next), for every such request until [`Active::clear`].
    pub fn all(&self, fault: Fault, method: &'static str, path: &str) -> Active {
        self.after(0, usize::MAX, fault, method, path)
    }

    /// Like [`next`](Self::next), after `skip` such requests have passed.
    pub fn after(
        &self,
        skip: usize,
        left: usize,
        fault: Fault,
        method: &'static str,
        path: &str,
    ) -> Active {
        let mut state = self.shared.state();
        let (hits, held, passes, path) = (0, 0, 0, path.to_owned());
        let (open, lost) = (false, false);
        state.rules.push(Rule { fault, method, path, skip, left, hits, held, passes, open, lost });
        Active { shared: Arc::clone(&self.shared), rule: state.rules.len() - 1 }
    }

    /// Breaks every connection, and refuses new ones until [`Proxy::restart`].
    pub fn stop(&self) {
        let mut state = self.shared.state();
        state.down = true;
        for client in state.clients.drain(..).filter_map(|client| client.upgrade()) {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn restart(&self) {
        self.shared.state().down = false;
    }

    /// Sends the requests of new connections to another server.
    pub fn point_at(&self, upstream: &str) {
        *self.shared.upstream() = upstream.replace("http://", "");
    }

    pub fn requests(&self) -> Vec<Arc<Request>> {
        self.shared.state().requests.clone()
    }

    /// Returns how many requests of this method ("" for any) arrived for paths with this text.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests().iter().filter(|request| request.is(method, path)).count()
    }

    /// Returns how many of them were answered with this status.
    pub fn answered(&self, method: &str, path: &str, status: u16) -> usize {
        let requests = self.requests();
        let fits = |it: &&Arc<Request>| it.is(method, path) && it.status.get() == Some(&status);
        requests.iter().filter(fits).count()
    }

    /// Clears the record of requests.
    pub fn clear_requests(&self) {
        self.shared.state().requests.clear();
    }

    /// Returns how many connections the service has made.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Returns the largest number of requests that were under way at the same time.
    pub fn most_under_way(&self) -> usize {
        self.shared.state().most_under_way
    }

    /// Waits until no request is under way.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        self.shared.wait_for("the end of all requests", |state| state.under_way == 0);
    }

    #[track_caller]
    pub fn wait_for_requests(&self, method: &str, path: &str, count: usize) {
        let what = format!("{count} times {method} {path}");
        self.shared.wait_for(&what, |state| {
            state.requests.iter().filter(|request| request.is(method, path)).count() >= count
        });
    }
}

/// A fault that is switched on.
pub struct Active {
    shared: Arc<Shared>,
    rule: usize,
}

impl Active {
    pub fn hits(&self) -> usize {
        self.shared.state().rules[self.rule].hits
    }

    pub fn held(&self) -> usize {
        self.shared.state().rules[self.rule].held
    }

    #[track_caller]
    pub fn wait_for_hits(&self, count: usize) {
        self.shared.wait_for("hits", |state| state.rules[self.rule].hits >= count);
    }

    #[track_caller]
    pub fn wait_for_held(&self, count: usize) {
        self.shared.wait_for("held requests", |state| state.rules[self.rule].held >= count);
    }

    /// Releases one held request.
    pub fn let_one_through(&self) {
        self.shared.state().rules[self.rule].passes += 1;
        self.shared.changed.notify_all();
    }

    /// Releases all held requests, and those that would be held later.
    pub fn release(&self) {
        self.shared.state().rules[self.rule].open = true;
        self.shared.changed.notify_all();
    }

    /// Ends the fault. The server never sees the held requests that it has not seen yet.
    pub fn lose(&self) {
        self.shared.state().rules[self.rule].lost = true;
        self.clear();
    }

    /// Ends the fault, and releases all held requests.
    pub fn clear(&self) {
        self.shared.state().rules[self.rule].left = 0;
        self.release();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upstream(&self) -> MutexGuard<'_, String> {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn wait_for(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let waiting = |state: &mut State| !condition(state);
        let waited = self.changed.wait_timeout_while(self.state(), DEADLINE, waiting);
        let (state, end) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!end.timed_out(), "not within {DEADLINE:?}: {what}");
    }

    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let (mut input, mut output, mut upstream) = (Vec::new(), Vec::new(), None);
        loop {
            let raw = read_message(&mut &*client, &mut input)?;
            let request = Arc::new(Request::of(&raw));
            let (rule, fault) = {
                let mut state = self.state();
                state.requests.push(Arc::clone(&request));
                state.under_way += 1;
                state.most_under_way = state.most_under_way.max(state.under_way);
                let rule = state.rules.iter_mut().position(|rule| rule.applies_to(&request));
                (rule.unwrap_or(0), rule.map(|rule| state.rules[rule].fault.clone()))
            };
            self.changed.notify_all();
            let forward = || -> io::Result<Vec<u8>> {
                let server = match &mut upstream {
                    Some(server) => server,
                    none => none.insert(TcpStream::connect(self.upstream().as_str())?),
                };
                server.set_nodelay(true)?;
                server.write_all(&raw)?;
                read_message(server, &mut output)
            };
            let result = self.answer(client, rule, fault, forward);
            self.state().under_way -= 1;
            self.changed.notify_all();
            let answer = result?;
            let status = answer.get(9..12).and_then(|text| std::str::from_utf8(text).ok());
            let _ = request.status.set(status.and_then(|text| text.parse().ok()).unwrap_or(0));
            (&*client).write_all(&answer)?;
        }
    }

    /// Returns the answer to send, or an error to end the connection.
    fn answer(
        &self,
        mut client: &TcpStream,
        rule: usize,
        fault: Option<Fault>,
        forward: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let closed = || io::Error::from(ErrorKind::ConnectionAborted);
        match fault {
            Some(Fault::Hold(When::Before)) => {
                self.hold(rule);
                if self.state().rules[rule].lost {
                    return Err(closed());
                }
            }
            Some(Fault::Reset(When::Before)) => return Err(reset(client)),
            Some(Fault::Close) => return Err(closed()),
            Some(Fault::Answer(answer)) => return Ok(answer),
            Some(Fault::LastAnswer(answer)) => {
                client.write_all(&answer)?;
                return Err(closed());
            }
            _ => {}
        }
        let answer = forward()?;
        match fault {
            Some(Fault::Hold(When::After)) => self.hold(rule),
            Some(Fault::Reset(When::After)) => return Err(reset(client)),
            Some(Fault::Half | Fault::HalfThenSilence) => {
                client.write_all(&answer[..answer.len() / 2])?;
                if matches!(fault, Some(Fault::HalfThenSilence)) {
                    self.hold(rule);
                }
                return Err(closed());
            }
            Some(Fault::Drip) => {
                for byte in answer {
                    client.write_all(&[byte])?;
                    thread::sleep(Duration::from_millis(20));
                }
                return Err(closed());
            }
            _ => {}
        }
        Ok(answer)
    }

    fn hold(&self, rule: usize) {
        let mut state = self.state();
        state.rules[rule].held += 1;
        self.changed.notify_all();
        let closed = |state: &mut State| !state.rules[rule].open && state.rules[rule].passes == 0;
        let waited = self.changed.wait_timeout_while(state, DEADLINE, closed);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.rules[rule].held -= 1;
        state.rules[rule].passes = state.rules[rule].passes.saturating_sub(1);
    }
}

/// Makes the following close send a reset (`SO_LINGER` of 0, see socket(7)).
fn reset(client: &TcpStream) -> io::Error {
    let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
    ErrorKind::ConnectionReset.into()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Reads one HTTP/1.1 message as it arrived. Bytes after it stay in `buffer`.
pub fn read_message(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(length) = message_length(buffer).filter(|length| *length <= buffer.len()) {
            return Ok(buffer.drain(..length).collect());
        }
        match stream.read(&mut chunk)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Returns the length of the message at the start of `bytes`, if it has enough to tell.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let mut end = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let header = |name| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if header("transfer-encoding:").is_none() {
        return Some(end + header("content-length:").map_or(Some(0), |text| text.parse().ok())?);
    }
    loop {
        let line = find(bytes.get(end..)?, b"\r\n")?;
        let size = std::str::from_utf8(&bytes[end..end + line]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        end += line + 2 + size + 2;
        if size == 0 {
            return Some(end);
        }
    }
}
