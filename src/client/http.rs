//! HTTP/1.1 over the service's Unix socket (RFC 9112), as much as this client needs: one
//! request at a time on each connection. Long listings arrive in chunks.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use httparse::Status;
use zeroize::Zeroizing;

use super::{ClientError, ClientOptions};
use crate::peer::{Process, is_unmapped};
use crate::sync::lock;
use crate::unix_socket::connect;

/// About 300,000 summaries.
const MAX_ANSWER_BYTES: usize = 128 * 1024 * 1024;

/// Room for the most frequent answers: a head and a short value.
const FIRST_READ: usize = 1024;

/// Keeps a deadline within what the clock can express.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Sends requests to one socket, over connections that it keeps.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) socket: PathBuf,
    pub(super) options: ClientOptions,
    /// As many as there were calls at a time. The most recently used one is last.
    pub(super) idle: Mutex<Vec<Connection>>,
}

/// An answer, in a buffer that is wiped.
pub(super) struct Answer {
    pub(super) status: u16,
    bytes: Zeroizing<Vec<u8>>,
    /// Where in `bytes` the body is.
    body: Range<usize>,
    /// Where the next chunk starts, if the body comes in chunks of which some are missing.
    next_chunk: Option<usize>,
    closes: bool,
}

impl Http {
    /// Sends a request and reads the answer.
    ///
    /// A kept connection is used without a look at it: the service may have closed it
    /// meanwhile. Then the request is sent again on a new one, unless that could make a
    /// change twice (RFC 9110, 9.2.2).
    pub(super) fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + self.options.timeout.min(LONGEST_TIMEOUT);
        let request = request(method, path, body);
        loop {
            let kept = lock(&self.idle).pop();
            let is_kept = kept.is_some();
            let mut connection = kept.map_or_else(|| self.connect(deadline), Ok)?;
            match connection.exchange(method, &request, deadline) {
                Ok(answer) => {
                    if !answer.closes {
                        lock(&self.idle).push(connection);
                    }
                    return Ok(answer);
                }
                Err(error) => match error.kind() {
                    // A restart that closed this connection has closed the others as well.
                    ErrorKind::BrokenPipe if is_kept => lock(&self.idle).clear(),
                    _ => return Err(self.failure(&error)),
                },
            }
        }
    }

    /// Connects, and asks the kernel who listens before a byte is sent.
    fn connect(&self, deadline: Instant) -> Result<Connection, ClientError> {
        // The kernel takes a timeout of zero for none.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
        let (stream, uid) = connect(&self.socket, left)
            .and_then(|stream| Process::across(&stream).map(|server| (stream, server.uid)))
            .map_err(|error| self.failure(&error))?;
        // Root has the user ID 0.
        let allowed = [Some(0), Some(rustix::process::geteuid().as_raw()), self.options.server_uid];
        if !allowed.contains(&Some(uid)) || is_unmapped(uid) {
            return Err(ClientError::ForeignServer { socket: self.socket.clone(), uid });
        }
        Ok(Connection { stream, limit: Duration::ZERO })
    }

    /// The meaning of an error of [`connect`] or of [`Connection::exchange`].
    fn failure(&self, error: &io::Error) -> ClientError {
        let (socket, after) = (self.socket.clone(), self.options.timeout);
        let reason = match error.kind() {
            ErrorKind::TimedOut => return ClientError::TimedOut { socket, after },
            ErrorKind::ConnectionAborted => return ClientError::OutcomeUnknown { socket },
            ErrorKind::InvalidData => return self.protocol(error.to_string()),
            ErrorKind::NotFound => "there is no such socket; is credential-vault serve running?",
            ErrorKind::ConnectionRefused => "nothing listens on it; start credential-vault serve",
            ErrorKind::PermissionDenied => "the vault serves only the user that started it",
            ErrorKind::BrokenPipe => "it closed the connection without an answer; see its log",
            _ => &error.to_string(),
        };
        ClientError::Unreachable { socket, reason: reason.to_owned() }
    }

    pub(super) fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), reason }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// How long the kernel lets a read or a write wait; zero as long as there is no limit.
    limit: Duration,
}

impl Connection {
    /// Sends a request and reads the answer.
    ///
    /// # Errors
    ///
    /// | kind | meaning |
    /// |---|---|
    /// | `BrokenPipe` | the connection ended; sending the request again makes no change twice |
    /// | `ConnectionAborted` | the connection ended; the request may have made a change |
    /// | `InvalidData` | the answer breaks a rule, which the text names |
    /// | `TimedOut` | the deadline passed |
    fn exchange(&mut self, method: &str, request: &[u8], deadline: Instant) -> io::Result<Answer> {
        let sent = self.send(request, deadline);
        // A server that refuses a connection may answer without reading. So the answer counts
        // more than a request that could not be sent.
        self.receive(method, deadline).map_err(|error| match sent {
            Err(unsent) if error.kind() != ErrorKind::TimedOut => unsent,
            _ => error,
        })
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.until(deadline, |mut stream| stream.write(bytes));
            bytes = &bytes[sent.map_err(|_| ErrorKind::BrokenPipe)?..];
        }
        Ok(())
    }

    fn receive(&mut self, method: &str, deadline: Instant) -> io::Result<Answer> {
        let mut bytes = Zeroizing::new(vec![0; FIRST_READ]);
        let is_read = matches!(method, "GET" | "HEAD");
        let (mut filled, mut head) = (0, None);
        loop {
            match self.until(deadline, |mut stream| stream.read(&mut bytes[filled..])) {
                Ok(count @ 1..) => filled += count,
                Err(error) if error.kind() == ErrorKind::TimedOut => return Err(error),
                // After a part of an answer the server may have acted on what it read.
                Err(error) if filled == 0 && is_unread(&error) => {
                    return Err(ErrorKind::BrokenPipe.into());
                }
                _ if is_read => return Err(ErrorKind::BrokenPipe.into()),
                _ => return Err(ErrorKind::ConnectionAborted.into()),
            }
            if head.is_none() {
                head = parse(&bytes[..filled], method)?;
            }
            let needed = match &mut head {
                Some(answer) => answer.join_chunks(&mut bytes[..filled])?,
                None => filled + 1,
            };
            if needed > MAX_ANSWER_BYTES {
                return Err(invalid("it is too long"));
            }
            if let Some(answer) = head.take_if(|_| needed <= filled) {
                return Ok(Answer { bytes, closes: answer.closes || needed < filled, ..answer });
            }
            if needed > bytes.len() {
                // Unlike `resize`, this leaves no copy behind.
                let capacity = needed.max(2 * filled).min(MAX_ANSWER_BYTES);
                let mut larger = Zeroizing::new(vec![0; capacity]);
                larger[..filled].copy_from_slice(&bytes[..filled]);
                bytes = larger;
            }
        }
    }

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
            match call(&self.stream) {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                outcome => return outcome,
            }
        }
    }
}

/// Whether a read before any answer shows that the server did not read the whole request. On
/// Linux, a Unix socket that is closed with unread input resets the connection, one without
/// ends it (`unix_release_sock` in `af_unix.c`).
fn is_unread(error: &io::Error) -> bool {
    cfg!(target_os = "linux") && error.kind() == ErrorKind::ConnectionReset
}

impl Answer {
    pub(super) fn body(&self) -> &[u8] {
        &self.bytes[self.body.clone()]
    }

    /// Moves the chunks in `bytes` together (RFC 9112, 7.1), if the body comes in chunks. Returns
    /// where the answer ends, or how many bytes more of it than there are must at least follow.
    fn join_chunks(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        const MALFORMED: &str = "its chunks are malformed";
        let mut end = self.body.end;
        while let Some(start) = self.next_chunk {
            let size = httparse::parse_chunk_size(&bytes[start..]);
            let Status::Complete((line, size)) = size.map_err(|_| invalid(MALFORMED))? else {
                return Ok(bytes.len() + 1);
            };
            let data_start = start + line;
            let data_end = data_start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
            end = data_end.saturating_add(2);
            let Some(line_end) = bytes.get(data_end..end) else { return Ok(end) };
            // The last chunk is empty. Trailers after it are not supported. The parser takes a size
            // without digits for 0.
            if line_end != b"\r\n" || !bytes[start].is_ascii_hexdigit() {
                return Err(invalid(MALFORMED));
            }
            bytes.copy_within(data_start..data_end, self.body.end);
            self.body.end += data_end - data_start;
            self.next_chunk = (size > 0).then_some(end);
        }
        Ok(end)
    }
}

/// An answer whose bytes are still to be set. Returns `None` as long as its head is incomplete.
fn parse(bytes: &[u8], method: &str) -> io::Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut headers);
    let parsing = parsed.parse(bytes).map_err(|_| invalid("it is not HTTP/1.1"))?;
    let Status::Complete(start) = parsing else { return Ok(None) };
    let field = |name: &str| {
        let header = parsed.headers.iter().find(|it| it.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let framing = (field("Transfer-Encoding"), field("Content-Length"));
    let (length, is_chunked): (Option<usize>, bool) = match framing {
        _ if method == "HEAD" => (Some(0), false),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => (Some(0), true),
        (None, Some(length)) => (length.parse().ok(), false),
        _ => (None, false),
    };
    let length = length.ok_or_else(|| invalid("its head does not tell its length"))?;
    Ok(Some(Answer {
        status: parsed.code.unwrap_or_default(),
        bytes: Zeroizing::default(),
        body: start..start.saturating_add(length),
        next_chunk: is_chunked.then_some(start),
        closes: field("Connection").is_some_and(|it| it.eq_ignore_ascii_case("close")),
    }))
}

/// The error of an answer that breaks a rule; shows nothing of it.
fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

/// A request, in a buffer that is wiped.
fn request(method: &str, path: &str, body: &[u8]) -> Zeroizing<Vec<u8>> {
    const USER_AGENT: &str = concat!("credential-vault/", env!("CARGO_PKG_VERSION"));
    let content = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: credential-vault\r\nUser-Agent: {USER_AGENT}\r\n{content}\r\n"
    );
    Zeroizing::new([head.as_bytes(), body].concat())
}
