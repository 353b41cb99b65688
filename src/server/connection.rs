//! One client's connection, and what a worker does with it in a turn.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::{Errno, read};
use rustix::net::{Shutdown, shutdown};
use tiny_http::Method;

use crate::peer::Peer;
use crate::router::{Answer, Call};

use super::buffer::{Input, Lent, Output};
use super::head;
use super::poll::Interest;
use super::response::{self, CLOSED, KEPT, KEPT_ANNOUNCED};
use super::worker::Shared;

/// One client. It is moved between the parking lot and the worker that serves it, and never
/// shared. Between turns it holds only the start of an unfinished request and what the
/// client has not taken of the answers; an idle one holds neither.
#[derive(Debug)]
pub(super) struct Connection {
    /// Non-blocking.
    pub(super) stream: OwnedFd,
    pub(super) token: u64,
    peer: Peer,
    phase: Phase,
    input: Input,
    /// The length of the request at the start of the input, once its head is known; else 0.
    needed: usize,
    /// When the first byte of that request was seen.
    began: Option<Instant>,
    /// `100 Continue` has been sent for it.
    continued: bool,
    output: Output,
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
    /// The request may block: a blocking worker carries it out.
    Block(Request),
    Close,
}

/// A whole request at the start of a connection's input.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) call: Call,
    head_len: usize,
    framing: Framing,
}

/// The facts about a request that its answer depends on.
#[derive(Debug, Clone, Copy)]
struct Framing {
    /// Its length, head and body.
    len: usize,
    keep_alive: bool,
    is_http_1_0: bool,
    /// A HEAD request, whose answer has no body.
    is_head: bool,
}

enum Served {
    /// More input is needed.
    All,
    /// Enough for one turn; whole requests may be left.
    Enough,
    /// The next request may block.
    Blocks(Request),
    /// The connection is not read any further.
    Ending,
}

/// Pipelined requests answered in one turn, so that other connections get theirs.
const REQUESTS_PER_TURN: usize = 64;
/// How much a refused client may go on sending before it is cut off.
const MAX_DISCARDED_BYTES: usize = 4 * 1024 * 1024;

impl Connection {
    pub(super) fn new(stream: OwnedFd, peer: Peer, deadline: Instant) -> Box<Self> {
        Box::new(Self {
            stream,
            token: 0,
            peer,
            phase: Phase::Open,
            input: Input::default(),
            needed: 0,
            began: None,
            continued: false,
            output: Output::default(),
            deadline,
        })
    }

    /// Whether it is between two requests.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Open && self.input.is_empty() && self.output.is_empty()
    }

    /// Reads, serves and writes as far as that goes without waiting.
    pub(super) fn turn(&mut self, server: &Shared, lent: &mut Lent) -> Next {
        self.input.borrow(lent);
        let next = self.go_on(server, lent).unwrap_or_else(|error| {
            log::debug!("a connection of {} broke: {error}", self.peer);
            Next::Close
        });
        self.input.give_back(lent, self.needed);
        next
    }

    /// Adds the answer to a request that blocked, and goes on.
    pub(super) fn answered(
        &mut self,
        request: &Request,
        answer: Answer,
        server: &Shared,
        lent: &mut Lent,
    ) -> Next {
        self.respond(request.framing, answer, server, lent);
        self.turn(server, lent)
    }

    /// Ends a connection whose deadline has passed, with 408 if a request has begun.
    pub(super) fn expire(&mut self, server: &Shared, lent: &mut Lent) -> Next {
        if self.phase != Phase::Open || self.input.is_empty() || !self.output.is_empty() {
            return Next::Close;
        }
        self.refuse(Answer::error(408, "the request did not arrive in time"), lent);
        self.turn(server, lent)
    }

    /// Answers, and reads no further request.
    pub(super) fn refuse(&mut self, answer: Answer, lent: &mut Lent) {
        self.input.consume(self.input.unserved().len());
        response::write(&mut self.output, answer, CLOSED, false, lent);
        self.phase = Phase::Refusing;
    }

    pub(super) fn body(&self, request: &Request) -> &[u8] {
        &self.input.unserved()[request.head_len..request.framing.len]
    }

    fn go_on(&mut self, server: &Shared, lent: &mut Lent) -> io::Result<Next> {
        let mut has_received = false;
        loop {
            if !self.output.send(&self.stream, lent)? {
                return Ok(self.park(Interest::Write, server));
            }
            let progress = match self.phase {
                Phase::Open => self.serve(server, lent),
                Phase::Closing => return Ok(Next::Close),
                Phase::Refusing | Phase::Lingering => return self.linger(server),
            };
            match progress {
                Served::Ending => continue,
                Served::Blocks(request) => {
                    self.output.send(&self.stream, lent)?;
                    return Ok(Next::Block(request));
                }
                Served::All | Served::Enough => {}
            }
            if !self.output.send(&self.stream, lent)? || matches!(progress, Served::Enough) {
                return Ok(self.park(Interest::Write, server));
            }
            if has_received {
                return Ok(self.park(Interest::Read, server));
            }
            match self.input.receive(&self.stream, self.needed)? {
                Some(0) => return Ok(Next::Close),
                Some(_) => has_received = true,
                None => return Ok(self.park(Interest::Read, server)),
            }
        }
    }

    /// Answers the whole requests at the start of the input.
    fn serve(&mut self, server: &Shared, lent: &mut Lent) -> Served {
        for _ in 0..REQUESTS_PER_TURN {
            let input = self.input.unserved();
            if input.is_empty() || input.len() < self.needed {
                return Served::All;
            }
            let head = match head::parse(input, self.peer, &server.limits) {
                Ok(Some(head)) => head,
                Ok(None) => return Served::All,
                Err(answer) => {
                    self.refuse(answer, lent);
                    return Served::Ending;
                }
            };
            let framing = Framing {
                len: head.len + head.body_len,
                keep_alive: head.keep_alive,
                is_http_1_0: head.is_http_1_0,
                is_head: head.request.method == Method::Head,
            };
            let is_whole = input.len() >= framing.len;
            let must_continue = !is_whole && head.expects_continue && !self.continued;
            let (head_len, call) = (head.len, server.router.resolve(&head.request));
            self.needed = framing.len;
            match call {
                Err(answer) if must_continue => {
                    self.refuse(answer, lent);
                    return Served::Ending;
                }
                Ok(_) if must_continue => {
                    response::write_continue(&mut self.output, lent);
                    self.continued = true;
                    return Served::All;
                }
                _ if !is_whole => return Served::All,
                Err(answer) => self.respond(framing, answer, server, lent),
                Ok(call) if server.router.may_block(&call) => {
                    return Served::Blocks(Request { call, head_len, framing });
                }
                Ok(call) => {
                    let body = &self.input.unserved()[head_len..framing.len];
                    let answer = server.answer(&call, body);
                    self.respond(framing, answer, server, lent);
                }
            }
            if self.phase != Phase::Open {
                return Served::Ending;
            }
            if self.output.is_long() {
                return Served::Enough;
            }
        }
        Served::Enough
    }

    /// Adds the answer to the request at the start of the input, which is then done with.
    fn respond(&mut self, framing: Framing, answer: Answer, server: &Shared, lent: &mut Lent) {
        let is_last = !framing.keep_alive || server.parked.is_draining();
        let connection = match (is_last, framing.is_http_1_0) {
            (true, _) => CLOSED,
            (false, true) => KEPT_ANNOUNCED,
            (false, false) => KEPT,
        };
        response::write(&mut self.output, answer, connection, framing.is_head, lent);
        self.input.consume(framing.len);
        self.needed = 0;
        self.began = None;
        self.continued = false;
        if is_last {
            self.phase = Phase::Closing;
        }
    }

    fn park(&mut self, interest: Interest, server: &Shared) -> Next {
        let (limits, now) = (&server.limits, Instant::now());
        self.deadline = if !self.output.is_empty() {
            now + limits.write
        } else if !self.input.is_empty() {
            *self.began.get_or_insert(now) + limits.request
        } else {
            now + limits.idle
        };
        Next::Park(interest)
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
