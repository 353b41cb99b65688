//! One client's connection, and what a worker does with it in a turn.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::{Errno, read};
use rustix::net::{Shutdown, shutdown};

use crate::caller::Peer;
use crate::router::{Answer, Call};

use super::buffer::Buffer;
use super::head::{self, Framing};
use super::poll::Interest;
use super::response;
use super::worker::Shared;

/// One client. It is moved between the parking lot and the worker that serves it, and never
/// shared. Between turns it holds only the start of an unfinished request and what the
/// client has not taken of the answers, at most a page of a listing; an idle one holds neither.
#[derive(Debug)]
pub(super) struct Connection {
    /// Non-blocking.
    pub(super) stream: OwnedFd,
    pub(super) token: u64,
    pub(super) peer: Peer,
    phase: Phase,
    input: Buffer,
    /// Of the request at the start of the input, once its head is known. Before that, its length
    /// is 0, and the rest is that of the request before.
    framing: Framing,
    /// When the first byte of that request was seen.
    began: Option<Instant>,
    /// `100 Continue` has been sent for it.
    continued: bool,
    output: Buffer,
    /// The call for the next page of the answer that is being sent.
    rest: Option<Box<Call>>,
    /// When the parked connection is overdue.
    pub(super) deadline: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are read and answered.
    Open,
    /// No more requests. Once the output is sent, the connection is closed.
    Closing,
    /// The same, but the client may still be sending. What it sends is discarded, so that it
    /// can read the answer before the connection is reset (RFC 9112, 9.6).
    Refusing,
    /// The answer is sent, and the client is expected to close.
    Lingering,
}

/// The next step for a connection whose turn is over.
#[derive(Debug)]
pub(super) enum Next {
    Park(Interest),
    /// The request at the start of the input may block: a blocking worker carries it out.
    Block(Call),
    Close,
}

/// Pipelined requests answered in one turn, so that other connections get theirs.
const REQUESTS_PER_TURN: usize = 64;
/// So many bytes are sent before more answers are made.
const LONG_OUTPUT: usize = 16 * 1024;
/// RFC 9110, 15.2.1.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How much a refused client may go on sending before it is cut off.
const MAX_DISCARDED_BYTES: usize = 4 * 1024 * 1024;

impl Connection {
    pub(super) fn new(stream: OwnedFd, peer: Peer, deadline: Instant) -> Box<Self> {
        Box::new(Self {
            stream,
            token: 0,
            peer,
            phase: Phase::Open,
            input: Buffer::default(),
            framing: Framing::default(),
            began: None,
            continued: false,
            output: Buffer::default(),
            rest: None,
            deadline,
        })
    }

    /// Whether it is between two requests.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Open && self.input.is_empty() && !self.is_answering()
    }

    /// Whether a part of an answer is still to be sent.
    fn is_answering(&self) -> bool {
        !self.output.is_empty() || self.rest.is_some()
    }

    /// Reads, serves and writes as far as that goes without waiting.
    pub(super) fn turn(&mut self, server: &Shared) -> Next {
        let next = self.go_on(server).unwrap_or_else(|error| {
            log::debug!("a connection of {} broke: {error}", self.peer);
            Next::Close
        });
        self.input.release();
        self.output.release();
        let (limits, now) = (&server.limits, Instant::now());
        self.deadline = match self.phase {
            Phase::Lingering => self.deadline,
            _ if self.is_answering() => now + limits.write,
            _ if !self.input.is_empty() => *self.began.get_or_insert(now) + limits.request,
            _ => now + limits.idle,
        };
        next
    }

    /// Adds the answer to a request that blocked, and goes on.
    pub(super) fn answered(&mut self, answer: Answer, server: &Shared) -> Next {
        self.respond(answer, server);
        self.turn(server)
    }

    /// Ends a connection whose deadline has passed, with 408 if a request has begun.
    pub(super) fn expire(&mut self, server: &Shared) -> Next {
        if self.phase != Phase::Open || self.input.is_empty() || self.is_answering() {
            return Next::Close;
        }
        self.refuse(&Answer::error(408, "the request did not arrive in time"));
        self.turn(server)
    }

    /// Answers, and reads no further request.
    pub(super) fn refuse(&mut self, answer: &Answer) {
        let input = self.input.rest();
        // A head that cannot be parsed may be that of a HEAD, whose answer never has a body.
        let is_head = input.trim_ascii_start().starts_with(b"HEAD ");
        self.input.consume(input.len());
        let framing = Framing { is_head, ..Framing::default() };
        response::write(&mut self.output, answer, framing, true);
        self.phase = Phase::Refusing;
    }

    /// The body of the request at the start of the input.
    pub(super) fn body(&self) -> &[u8] {
        &self.input.rest()[self.framing.head_len..self.framing.len]
    }

    fn go_on(&mut self, server: &Shared) -> io::Result<Next> {
        if !self.output.send(&self.stream)? {
            return Ok(Next::Park(Interest::Write));
        }
        if let Some(call) = self.rest.take() {
            self.add_page(&call, server)?;
            // A page is enough for one turn.
            if !self.output.send(&self.stream)? || self.rest.is_some() {
                return Ok(Next::Park(Interest::Write));
            }
        }
        let mut has_received = false;
        loop {
            let next = self.serve(server);
            let is_sent = self.output.send(&self.stream)?;
            match next {
                None if !is_sent => return Ok(Next::Park(Interest::Write)),
                Some(next) => return Ok(next),
                None => {}
            }
            match self.phase {
                Phase::Open if has_received => return Ok(Next::Park(Interest::Read)),
                Phase::Open => {}
                Phase::Closing => return Ok(Next::Close),
                Phase::Refusing | Phase::Lingering => return self.linger(server),
            }
            match self.input.receive(&self.stream, self.framing.len)? {
                Some(0) => return Ok(Next::Close),
                Some(_) => has_received = true,
                None => return Ok(Next::Park(Interest::Read)),
            }
        }
    }

    /// Answers the whole requests at the start of the input. `None` when more input is needed, or
    /// none is read any more.
    fn serve(&mut self, server: &Shared) -> Option<Next> {
        for _ in 0..REQUESTS_PER_TURN {
            let input = self.input.rest();
            if self.phase != Phase::Open || input.is_empty() || input.len() < self.framing.len {
                return None;
            }
            let head = match head::parse(input, &self.peer, &server.limits) {
                Ok(head) => head?,
                Err((status, detail)) => {
                    self.refuse(&Answer::error(status, detail));
                    return None;
                }
            };
            let call = server.router.resolve(&head.request);
            self.framing = head.framing;
            if input.len() < self.framing.len {
                match call {
                    // The body of someone who is not allowed is not read.
                    Err(answer) if matches!(answer.status, 401 | 403) => self.refuse(&answer),
                    _ if self.continued || !self.framing.expects_continue => {}
                    Err(answer) => self.refuse(&answer),
                    Ok(_) => {
                        self.output.room_for(CONTINUE.len()).extend_from_slice(CONTINUE);
                        self.continued = true;
                    }
                }
                return None;
            }
            let answer = match call {
                Ok(call) if server.router.may_block(&call) => return Some(Next::Block(call)),
                Ok(call) => server.answer(&call, self.body(), &self.peer),
                Err(answer) => answer,
            };
            self.respond(answer, server);
            if self.rest.is_some()
                || self.phase == Phase::Open && self.output.rest().len() > LONG_OUTPUT
            {
                break;
            }
        }
        Some(Next::Park(Interest::Write))
    }

    /// Adds the answer to the request at the start of the input, which is then done with.
    fn respond(&mut self, answer: Answer, server: &Shared) {
        let framing = self.framing;
        let ends_with_connection = framing.is_http_1_0 && answer.rest.is_some();
        let is_last = !framing.keep_alive || ends_with_connection || server.parked.is_draining();
        response::write(&mut self.output, &answer, framing, is_last);
        self.rest = answer.rest;
        self.input.consume(framing.len);
        self.framing.len = 0;
        self.began = None;
        self.continued = false;
        if is_last {
            self.phase = Phase::Closing;
        }
    }

    /// Adds the next page of the answer to the last request.
    fn add_page(&mut self, call: &Call, server: &Shared) -> io::Result<()> {
        let Answer { status: 200, body, rest, .. } = server.answer(call, b"", &self.peer) else {
            // Without the last chunk, the client can tell.
            log::error!("a listing for {} failed in the middle", self.peer);
            return Err(io::Error::other("the rest of an answer is missing"));
        };
        response::write_page(&mut self.output, &body, rest.is_none(), self.framing);
        self.rest = rest;
        Ok(())
    }

    /// Discards what the client still sends, until it closes or the deadline passes.
    fn linger(&mut self, server: &Shared) -> io::Result<Next> {
        if self.phase == Phase::Refusing {
            shutdown(&self.stream, Shutdown::Write)?;
            self.phase = Phase::Lingering;
            self.deadline = Instant::now() + server.limits.write;
        }
        let mut discarded = [0; 4096];
        for _ in 0..MAX_DISCARDED_BYTES / discarded.len() {
            match read(&self.stream, &mut discarded) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Next::Park(Interest::Read)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Next::Close)
    }
}
