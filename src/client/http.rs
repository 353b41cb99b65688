//! HTTP/1.1 over the service's Unix socket (RFC 9112), as much as this client needs: no
//! redirects, no transfer codings, one request at a time on each connection.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use httparse::Status;
use zeroize::Zeroizing;

use super::{ClientError, ClientOptions};
use crate::peer::Process;
use crate::unix_socket::connect;

/// About 300,000 summaries.
const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Room for the most frequent answers: a head and a short value.
const FIRST_READ: usize = 1024;

/// As many connections as threads are likely to ask at a time.
const MAX_IDLE: usize = 64;

/// The service closes a connection after 75 s without a request.
const MAX_IDLE_AGE: Duration = Duration::from_mins(1);

/// Keeps a deadline within what the clock can express.
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24 * 365);

/// The kind of an error after which the server certainly did not read the whole request.
const UNREAD: ErrorKind = ErrorKind::ConnectionReset;

/// Sends requests to one socket, over connections that it keeps.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) socket: PathBuf,
    options: ClientOptions,
    /// The most recently used one last, each with the time of its last answer.
    idle: Mutex<Vec<(Connection, Instant)>>,
}

/// An answer, in a buffer that is wiped.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// Where in `bytes` the body is.
    pub(super) body: Range<usize>,
}

impl Http {
    pub(super) fn new(socket: PathBuf, options: &ClientOptions) -> Self {
        let timeout = options.timeout.min(LONGEST_TIMEOUT);
        let options = ClientOptions { timeout, ..options.clone() };
        Self { socket, options, idle: Mutex::default() }
    }

    /// Sends a request and reads the answer.
    ///
    /// A kept connection is used without a look at it: the service may have closed it
    /// meanwhile. Then the request is sent again on a new one, unless that could make a
    /// change twice (RFC 9110, 9.2.2).
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + self.options.timeout;
        let request = request(method, path, body);
        let is_safe = matches!(method, "GET" | "HEAD");
        let may_repeat = |error: &io::Error| match error.kind() {
            ErrorKind::TimedOut | ErrorKind::InvalidData => false,
            kind => is_safe || kind == UNREAD,
        };
        let exchange = |connection| self.exchange(connection, method, &request, deadline);
        let kept = self.take_idle().map(exchange).filter(|outcome| {
            let repeat = outcome.as_ref().is_err_and(may_repeat);
            if repeat {
                // A restart that closed this connection has closed the others as well.
                self.idle().clear();
            }
            !repeat
        });
        let outcome = match kept {
            Some(outcome) => outcome,
            None => exchange(self.connect(deadline)?),
        };
        outcome.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => self.timed_out(),
            ErrorKind::InvalidData => self.protocol(error.to_string()),
            _ if may_repeat(&error) => self
                .unreachable("it closed the connection without an answer; see its log".to_owned()),
            _ => ClientError::OutcomeUnknown { socket: self.socket.clone() },
        })
    }

    fn exchange(
        &self,
        mut connection: Connection,
        method: &str,
        request: &[u8],
        deadline: Instant,
    ) -> io::Result<Answer> {
        let sent = connection.send(request, deadline);
        // A server that refuses a connection may answer without reading. So the answer counts
        // more than a request that could not be sent.
        let (answer, can_be_kept) = match connection.receive(method, deadline) {
            Err(error) if error.kind() != ErrorKind::TimedOut => {
                return Err(sent.err().unwrap_or(error));
            }
            received => received?,
        };
        if can_be_kept && sent.is_ok() {
            let mut idle = self.idle();
            if idle.len() < MAX_IDLE {
                idle.push((connection, Instant::now()));
            }
        }
        Ok(answer)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Connection> {
        let (connection, since) = self.idle().pop()?;
        (since.elapsed() < MAX_IDLE_AGE).then_some(connection)
    }

    /// Connects, and asks the kernel who listens before a byte is sent.
    fn connect(&self, deadline: Instant) -> Result<Connection, ClientError> {
        const ROOT: u32 = 0;
        // The kernel takes a timeout of zero for none.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
        let stream = connect(&self.socket, left).map_err(|error| match error.kind() {
            ErrorKind::TimedOut => self.timed_out(),
            _ => self.unreachable(why_not_connected(&error)),
        })?;
        let uid =
            Process::across(&stream).map_err(|error| self.unreachable(error.to_string()))?.uid;
        let ours = rustix::process::geteuid().as_raw();
        if uid != ours && uid != ROOT && Some(uid) != self.options.server_uid {
            return Err(ClientError::ForeignServer { socket: self.socket.clone(), uid });
        }
        Ok(Connection { stream, limit: Duration::ZERO })
    }

    fn timed_out(&self) -> ClientError {
        ClientError::TimedOut { socket: self.socket.clone(), after: self.options.timeout }
    }

    fn unreachable(&self, reason: String) -> ClientError {
        ClientError::Unreachable { socket: self.socket.clone(), reason }
    }

    pub(super) fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), reason }
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// How long the kernel lets a read or a write wait; zero as long as there is no limit.
    limit: Duration,
}

impl Connection {
    /// Runs a system call until it succeeds or the deadline passes. A signal interrupts a
    /// call on a socket with a timeout even under `SA_RESTART` (signal(7)).
    fn until(
        &mut self,
        deadline: Instant,
        mut call: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            // Setting the limit takes two system calls: one that is a tenth longer will do.
            if self.limit < left || self.limit > left + left / 10 {
                self.stream.set_read_timeout(Some(left))?;
                self.stream.set_write_timeout(Some(left))?;
                self.limit = left;
            }
            let outcome = call(&self.stream);
            let kind = outcome.as_ref().err().map(io::Error::kind);
            if !matches!(kind, Some(ErrorKind::Interrupted | ErrorKind::WouldBlock)) {
                return outcome;
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.until(deadline, |mut stream| stream.write(bytes));
            bytes = &bytes[sent.map_err(|_| UNREAD)?..];
        }
        Ok(())
    }

    /// Reads an answer, and tells whether the connection can carry another request.
    fn receive(&mut self, method: &str, deadline: Instant) -> io::Result<(Answer, bool)> {
        let mut bytes = Zeroizing::new(Vec::new());
        let (mut filled, mut start) = (0, 0);
        let head = loop {
            match Head::parse(&bytes[start..filled])? {
                // `100 Continue` and its like come before the answer.
                Some(interim) if interim.status < 200 => start += interim.length,
                Some(head) => break head,
                None if filled >= MAX_HEAD_BYTES => return Err(invalid("its head is too long")),
                None => match self.read(&mut bytes, filled, None, deadline)? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    count => filled += count,
                },
            }
        };
        start += head.length;
        let has_body = method != "HEAD" && !matches!(head.status, 204 | 304);
        let length = if has_body { head.content_length } else { Some(0) };
        if length.is_some_and(|length| length > MAX_BODY_BYTES) {
            return Err(invalid("it is too long"));
        }
        // Without a length, the body ends with the connection (RFC 9112, 6.3).
        let end = length.map(|length| start + length);
        while end.is_none_or(|end| filled < end) {
            match self.read(&mut bytes, filled, end, deadline)? {
                0 if end.is_some() => return Err(ErrorKind::UnexpectedEof.into()),
                0 => break,
                count => filled += count,
            }
            if filled - start > MAX_BODY_BYTES + FIRST_READ {
                return Err(invalid("it is too long"));
            }
        }
        let can_be_kept = !head.closes && end == Some(filled);
        let body = start..end.unwrap_or(filled);
        Ok((Answer { status: head.status, bytes, body }, can_be_kept))
    }

    /// Reads what there is behind `filled`, in a buffer with room up to `end`.
    fn read(
        &mut self,
        bytes: &mut Zeroizing<Vec<u8>>,
        filled: usize,
        end: Option<usize>,
        deadline: Instant,
    ) -> io::Result<usize> {
        let size = end.unwrap_or((filled + 1).next_power_of_two().max(FIRST_READ));
        if size > bytes.len() {
            // Unlike `resize`, this leaves no copy behind.
            let mut larger = Zeroizing::new(vec![0; size]);
            larger[..filled].copy_from_slice(&bytes[..filled]);
            *bytes = larger;
        }
        let read = self.until(deadline, |mut stream| stream.read(&mut bytes[filled..]));
        // A Unix socket that is closed with unread input resets the connection, one without
        // ends it (`unix_release_sock` in Linux's `af_unix.c`).
        read.map_err(|error| match error.kind() {
            UNREAD if filled > 0 || !cfg!(target_os = "linux") => ErrorKind::UnexpectedEof.into(),
            _ => error,
        })
    }
}

/// The head of an answer, as far as it says how to read on.
struct Head {
    status: u16,
    length: usize,
    content_length: Option<usize>,
    closes: bool,
}

impl Head {
    /// Returns `None` as long as the head is incomplete.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let not_http = || invalid("it is not HTTP/1.1");
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Response::new(&mut headers);
        let Status::Complete(length) = parsed.parse(bytes).map_err(|_| not_http())? else {
            return Ok(None);
        };
        let field = |name: &str| {
            let header = parsed.headers.iter().find(|it| it.name.eq_ignore_ascii_case(name));
            header.map(|it| std::str::from_utf8(it.value).unwrap_or_default())
        };
        if field("Transfer-Encoding").is_some() {
            return Err(invalid("it has a transfer coding"));
        }
        let content_length = field("Content-Length").map(str::parse).transpose();
        let connection = field("Connection").unwrap_or_default().to_ascii_lowercase();
        Ok(Some(Self {
            status: parsed.code.ok_or_else(not_http)?,
            length,
            content_length: content_length.map_err(|_| not_http())?,
            closes: parsed.version != Some(1) || connection.contains("close"),
        }))
    }
}

/// The error of an answer that breaks a rule; shows nothing of it.
fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

/// A request, in a buffer that is wiped.
fn request(method: &str, path: &str, body: Option<&[u8]>) -> Zeroizing<Vec<u8>> {
    const USER_AGENT: &str = concat!("credential-vault/", env!("CARGO_PKG_VERSION"));
    let body_fields = body.map_or_else(String::new, |body| {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    });
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: credential-vault\r\nUser-Agent: {USER_AGENT}\r\n\
         {body_fields}\r\n"
    );
    Zeroizing::new([head.as_bytes(), body.unwrap_or_default()].concat())
}

fn why_not_connected(error: &io::Error) -> String {
    let reason = match error.kind() {
        ErrorKind::NotFound => {
            "there is no such socket; start the service (credential-vault \
            serve), or name the socket that it listens on"
        }
        ErrorKind::ConnectionRefused => {
            "nothing listens on the socket any more; start the \
            service (credential-vault serve)"
        }
        ErrorKind::PermissionDenied => {
            "this user may not open the socket; the vault serves the \
            user that started it"
        }
        _ => return error.to_string(),
    };
    reason.to_owned()
}
