//! Responses: from the router's answer to bytes, written by
//! `Response::raw_print` of `tiny_http`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::LazyLock;
use std::time::SystemTime;

use httpdate::HttpDate;
use tiny_http::{HTTPVersion, Header, Response, StatusCode};
use zeroize::Zeroizing;

use crate::router::Answer;

use super::connection::{Stream, wipe};

/// What is to be said of the connection in a response's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It is kept, as HTTP/1.1 does unless told otherwise.
    Kept,
    /// It is kept, and an HTTP/1.0 client has to be told.
    KeptAnnounced,
    /// It is closed after this response.
    Closed,
}

impl Persistence {
    fn header_line(self) -> Option<&'static [u8]> {
        match self {
            Self::Kept => None,
            Self::KeptAnnounced => Some(b"Connection: keep-alive\r\n"),
            Self::Closed => Some(b"Connection: close\r\n"),
        }
    }
}

/// Bytes on their way to a client, in order: `queue`, then `fresh`.
///
/// `fresh` is the worker's buffer; what the client does not take at once goes to the
/// connection's `queue`, in pieces that are freed one by one.
pub(super) struct Outbox<'a> {
    stream: &'a Stream,
    queue: &'a mut Queue,
    fresh: &'a mut Vec<u8>,
    dates: &'a mut Dates,
}

/// What a client has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pieces: VecDeque<Zeroizing<Vec<u8>>>,
    /// How much of the first piece is sent.
    sent: usize,
}

/// From this size on, what is ready goes to the socket before more is made.
const SPILL_BYTES: usize = 32 * 1024;

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Writes what the client takes. Says whether all is written.
    pub(super) fn flush(&mut self, mut stream: &Stream) -> io::Result<bool> {
        while let Some(piece) = self.pieces.front() {
            match stream.write(&piece[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.sent == piece.len() {
                self.pieces.pop_front();
                self.sent = 0;
            }
        }
        Ok(true)
    }
}

impl<'a> Outbox<'a> {
    /// `fresh` must be empty.
    pub(super) fn new(
        stream: &'a Stream,
        queue: &'a mut Queue,
        fresh: &'a mut Vec<u8>,
        dates: &'a mut Dates,
    ) -> Self {
        Self { stream, queue, fresh, dates }
    }

    /// Adds a response.
    pub(super) fn respond(
        &mut self,
        answer: Answer,
        persistence: Persistence,
        is_head_request: bool,
    ) -> io::Result<()> {
        let (status, mut headers, body) = answer.into_parts();
        headers.push(self.dates.header());
        headers.push(SERVER.clone());
        let length = body.len();
        // tiny_http writes a Connection header only for upgrades, so ours goes in behind
        // the status line.
        let line_to_insert = persistence.header_line();
        let start = self.fresh.len();
        // A body in one piece is read without a detour through a cleared buffer, and a short
        // one, as nearly all are, goes with its head straight to where it is sent from.
        match body.as_one_piece() {
            Some(bytes) if length < SPILL_BYTES => {
                print(status, headers, bytes, length, is_head_request, &mut *self.fresh)?;
                if let Some(line) = line_to_insert {
                    insert_behind_status(self.fresh, start, line);
                }
                self.spill()
            }
            Some(bytes) => {
                let sink = Sink { line_to_insert, start, outbox: self };
                print(status, headers, bytes, length, is_head_request, sink)
            }
            None => {
                let sink = Sink { line_to_insert, start, outbox: self };
                print(status, headers, body, length, is_head_request, sink)
            }
        }
    }

    /// Adds `100 Continue` (RFC 9110, 15.2.1).
    pub(super) fn respond_continue(&mut self) -> io::Result<()> {
        // Not through `print`: an interim response has no headers.
        self.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    }

    /// Sends what is ready if it is much.
    fn spill(&mut self) -> io::Result<()> {
        if self.fresh.len() >= SPILL_BYTES {
            self.send()?;
        }
        Ok(())
    }

    /// Whether the client does not take what it is sent.
    pub(super) fn is_blocked(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends what the client takes; the rest waits in the queue. Says whether all is sent.
    pub(super) fn send(&mut self) -> io::Result<bool> {
        let flushed = self.queue.flush(self.stream);
        let mut sent = 0;
        if let Ok(true) = flushed {
            while sent < self.fresh.len() {
                match self.stream.write(&self.fresh[sent..]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if sent < self.fresh.len() {
            self.queue.pieces.push_back(Zeroizing::new(self.fresh[sent..].to_vec()));
        }
        wipe(self.fresh);
        flushed?;
        Ok(self.queue.is_empty())
    }
}

impl Write for Outbox<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.fresh.extend_from_slice(bytes);
        self.spill()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Has `tiny_http` write a response.
fn print(
    status: u16,
    headers: Vec<Header>,
    body: impl Read,
    length: usize,
    is_head_request: bool,
    to: impl Write,
) -> io::Result<()> {
    Response::new(StatusCode(status), headers, body, Some(length), None)
        .with_chunked_threshold(usize::MAX)
        .raw_print(to, HTTPVersion(1, 1), &[], is_head_request, None)
}

/// Inserts a header line into the response at `start`, if its status line is there.
fn insert_behind_status(fresh: &mut Vec<u8>, start: usize, line: &[u8]) -> bool {
    let Some(end) = fresh[start..].windows(2).position(|pair| pair == b"\r\n") else {
        return false;
    };
    let behind_status = start + end + 2;
    fresh.splice(behind_status..behind_status, line.iter().copied());
    true
}

/// Passes a response on to the outbox, with one more header line behind its status line.
struct Sink<'o, 'a> {
    outbox: &'o mut Outbox<'a>,
    line_to_insert: Option<&'static [u8]>,
    start: usize,
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(line) = self.line_to_insert else { return self.outbox.write(bytes) };
        let fresh = &mut *self.outbox.fresh;
        fresh.extend_from_slice(bytes);
        // The status line is far shorter than what spills, so it is still all there.
        if insert_behind_status(fresh, self.start, line) {
            self.line_to_insert = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static SERVER: LazyLock<Header> =
    LazyLock::new(|| Header::from_bytes("Server", "credential-vault").expect("a valid header"));

/// The `Date` header (RFC 9110, 6.6.1), made once in a second.
#[derive(Debug, Default)]
pub(super) struct Dates {
    header: Option<Header>,
    second: u64,
}

impl Dates {
    /// Moves on to `now`, in seconds of any clock that does not jump.
    pub(super) fn move_to(&mut self, second: u64) {
        if second != self.second {
            self.second = second;
            self.header = None;
        }
    }

    fn header(&mut self) -> Header {
        self.header
            .get_or_insert_with(|| {
                let date = HttpDate::from(SystemTime::now()).to_string();
                Header::from_bytes("Date", date).expect("a date is ASCII")
            })
            .clone()
    }
}

/// Tells a connection that is over the limit so, if it listens.
pub(super) fn turn_away(stream: &Stream) {
    let answer = Answer::error(503, "too many connections; close some, or try again later")
        .with_header("Retry-After", "1");
    let (mut queue, mut fresh, mut dates) = (Queue::default(), Vec::new(), Dates::default());
    let mut outbox = Outbox::new(stream, &mut queue, &mut fresh, &mut dates);
    let sent = outbox.respond(answer, Persistence::Closed, false).and_then(|()| outbox.send());
    if let Err(error) = sent {
        log::debug!("a refused connection did not hear of it: {error}");
    }
}
