//! One connection: its input, its output, and what happens in its turn.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tiny_http::Method;
use zeroize::optimization_barrier;

use crate::peer::Peer;
use crate::router::{Answer, RequestHead};

use super::head::{self, Head, Parsed, Rejection};
use super::poller::Poller;
use super::pool::{Buffers, Outcome, Pool, millis};
use super::response::{Dates, Outbox, Persistence, Queue};
use super::table::{Millis, NEVER};

/// A connected socket, non-blocking.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One client's connection.
///
/// Between turns it holds only what has come of an unfinished request and what the
/// client has not taken of the answers; when idle, nothing.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    peer: Peer,
    token: u64,
    /// The poller tells of it.
    watched: bool,
    phase: Phase,
    /// The start of a request that is not whole yet, or that waits for the lane.
    input: Vec<u8>,
    /// The length of that request, head and body, once its head is known; else 0.
    needed: usize,
    /// When its first byte was seen.
    began: Option<Millis>,
    /// `100 Continue` has been sent for it.
    continued: bool,
    output: Queue,
    /// The poller tells when it can be written.
    wants_write: bool,
    /// The client has closed its side.
    hung_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are read and answered.
    Open,
    /// A whole request waits to enter the backend lane.
    Queued,
    /// No more requests: once the output is sent, it is closed.
    Closing,
    /// The same, but what the client still sends is read and thrown away, so that it
    /// gets to read the answer (RFC 9112, 9.6).
    Refusing,
    /// The answer is sent, and the client is to close.
    Lingering,
}

/// Where a turn leaves a connection.
#[derive(Debug)]
pub(super) enum Progress {
    /// It goes on, or is checked at the deadline.
    Open { deadline: Millis },
    /// The same, and the deadline may be sooner than any of the limits.
    Asking { deadline: Millis },
    /// It is to be dropped.
    Done,
}

/// What serving the input came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// All whole requests are answered.
    All,
    /// The turn has been long enough; more input is there.
    EnoughForNow,
    /// The next request waits for the lane.
    Queued,
    /// The connection is not to be read any further.
    Ending,
}

/// How many bytes are asked for at a time.
const READ_BYTES: usize = 64 * 1024;
/// Pipelined requests answered in one turn, so that others get theirs.
const REQUESTS_PER_TURN: usize = 64;
/// What a client that was refused may go on sending before it is cut off.
const MOST_DISCARDED_BYTES: usize = 4 * 1024 * 1024;

impl Connection {
    pub(super) fn new(stream: Stream, peer: Peer, token: u64) -> Self {
        Self {
            stream,
            peer,
            token,
            watched: false,
            phase: Phase::Open,
            input: Vec::new(),
            needed: 0,
            began: None,
            continued: false,
            output: Queue::default(),
            wants_write: false,
            hung_up: false,
        }
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    /// Has the poller tell of it from now on, and at once of what it has missed.
    fn watch(&mut self, poller: &Poller) -> io::Result<()> {
        if !self.watched {
            poller.add(&self.stream, self.token, self.wants_write)?;
            self.watched = true;
        }
        Ok(())
    }

    /// Has the poller wake a worker for this connection, after those that wait already.
    pub(super) fn nudge(&mut self, poller: &Poller) -> io::Result<()> {
        self.wants_write = true;
        if self.watched {
            poller.want_write(&self.stream, self.token, true)
        } else {
            self.watch(poller)
        }
    }

    /// Closes it. The client has what was sent, and is told that no more will come.
    pub(super) fn close(self, poller: &Poller) {
        if self.watched {
            poller.remove(&self.stream);
        }
    }

    /// The client has closed its side: what it sent has to be read to the end, for no
    /// further event will tell of it.
    pub(super) fn hear_hangup(&mut self) {
        self.hung_up = true;
    }

    /// Ends what is overdue, or idle while the server drains. Serves nothing.
    pub(super) fn check(&mut self, pool: &Pool, deadline: Millis) -> Progress {
        if pool.now() >= deadline {
            // What it waits for knows what comes of that; the worker that is told next asks it.
            return self.expire(pool);
        }
        let is_idle = self.phase == Phase::Open && self.input.is_empty() && self.output.is_empty();
        if pool.is_draining() && is_idle {
            return Progress::Done;
        }
        Progress::Open { deadline }
    }

    /// Reads, serves and writes as far as it goes without waiting for the client. The
    /// poller watches what goes on after that.
    pub(super) fn turn(
        &mut self,
        pool: &Pool,
        buffers: &mut Buffers,
        now: Millis,
        deadline: Millis,
        lane_entered: bool,
    ) -> Progress {
        let progress = self.advance(pool, buffers, now, deadline, lane_entered);
        if !matches!(progress, Progress::Done)
            && let Err(error) = self.watch(pool.poller())
        {
            log::error!("a connection could not be watched: {error}");
            return Progress::Done;
        }
        progress
    }

    fn advance(
        &mut self,
        pool: &Pool,
        buffers: &mut Buffers,
        now: Millis,
        deadline: Millis,
        mut lane_entered: bool,
    ) -> Progress {
        if now >= deadline {
            return self.expire(pool);
        }
        match self.phase {
            Phase::Queued if !lane_entered => return Progress::Open { deadline },
            _ => {}
        }
        if self.phase == Phase::Queued {
            self.phase = Phase::Open;
        }
        buffers.dates.move_to(now / 1000);
        let progress = self.go_on(pool, buffers, now, deadline, &mut lane_entered);
        // The buffers are the worker's: what a broken connection leaves in them must never
        // reach the next one.
        wipe(&mut buffers.input);
        wipe(&mut buffers.output);
        if lane_entered {
            pool.leave_lane(&mut buffers.agenda);
        }
        progress.unwrap_or_else(|error| {
            log::debug!("a connection of {} broke: {error}", self.peer);
            Progress::Done
        })
    }

    fn go_on(
        &mut self,
        pool: &Pool,
        buffers: &mut Buffers,
        now: Millis,
        deadline: Millis,
        lane_entered: &mut bool,
    ) -> io::Result<Progress> {
        if self.wants_write {
            if !self.output.flush(&self.stream)? {
                return self.wait_for_client(pool);
            }
            pool.poller().want_write(&self.stream, self.token, false)?;
            self.wants_write = false;
        }
        match self.phase {
            Phase::Open | Phase::Queued => {}
            Phase::Closing | Phase::Refusing => return self.wind_up(pool),
            Phase::Lingering => return self.discard_input(deadline),
        }
        // Input is gathered in the worker's buffer, unless a lot is left from before.
        let mut input = std::mem::take(&mut buffers.input);
        let is_swapped = self.input.len() > READ_BYTES;
        if is_swapped {
            std::mem::swap(&mut input, &mut self.input);
        } else if !self.input.is_empty() {
            input.extend_from_slice(&self.input);
            wipe(&mut self.input);
        }
        let progress = self.read_and_serve(pool, buffers, now, &mut input, lane_entered);
        if is_swapped {
            std::mem::swap(&mut input, &mut self.input);
        } else if !input.is_empty() {
            self.input.reserve_exact(self.needed.max(input.len()));
            self.input.extend_from_slice(&input);
            wipe(&mut input);
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        buffers.input = input;
        progress
    }

    /// Leaves in `input` what is not served yet.
    fn read_and_serve(
        &mut self,
        pool: &Pool,
        buffers: &mut Buffers,
        mut now: Millis,
        input: &mut Vec<u8>,
        lane_entered: &mut bool,
    ) -> io::Result<Progress> {
        let mut all_is_read = false;
        loop {
            let mut consumed = 0;
            let served = self.serve(pool, buffers, input, &mut consumed, lane_entered);
            wipe_start(input, consumed);
            let served = served?;
            if buffers.has_waited {
                buffers.has_waited = false;
                now = pool.now();
            }
            let sent = self.outbox(buffers).send()?;
            match served {
                Served::Ending => {
                    wipe(input);
                    return self.wind_up(pool);
                }
                Served::Queued => {
                    self.phase = Phase::Queued;
                    return Ok(Progress::Open { deadline: NEVER });
                }
                Served::All | Served::EnoughForNow if !sent => return self.wait_for_client(pool),
                Served::EnoughForNow => {
                    self.nudge(pool.poller())?;
                    return Ok(self.wait_for_input(pool, now, input));
                }
                Served::All if all_is_read => return Ok(self.wait_for_input(pool, now, input)),
                Served::All => {}
            }
            input.reserve(self.needed.saturating_sub(input.len()).max(READ_BYTES));
            let room = input.capacity() - input.len();
            // recv(2) gets to the socket in fewer steps than read(2).
            match recv(&self.stream, spare_capacity(input), RecvFlags::empty()) {
                Ok((_, 0)) => return Ok(Progress::Done),
                // Less than there was room for: the next byte will be told of.
                Ok((_, count)) => all_is_read = count < room && !self.hung_up,
                Err(Errno::AGAIN) => return Ok(self.wait_for_input(pool, now, input)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers the whole requests at the start of `input`.
    fn serve(
        &mut self,
        pool: &Pool,
        buffers: &mut Buffers,
        input: &[u8],
        consumed: &mut usize,
        lane_entered: &mut bool,
    ) -> io::Result<Served> {
        let Buffers { output, dates, agenda, has_waited, .. } = buffers;
        let mut outbox = Outbox::new(&self.stream, &mut self.output, output, dates);
        for _ in 0..REQUESTS_PER_TURN {
            let input = &input[*consumed..];
            if input.is_empty() || input.len() < self.needed {
                return Ok(Served::All);
            }
            let head = match head::parse(input, pool.limits()) {
                Ok(Parsed::Head(head)) => head,
                Ok(Parsed::Partial) => return Ok(Served::All),
                Err(Rejection { status, detail }) => {
                    outbox.respond(Answer::error(status, detail), Persistence::Closed, false)?;
                    self.phase = Phase::Refusing;
                    return Ok(Served::Ending);
                }
            };
            let is_head_request = head.method == Method::Head;
            let call = pool.router().resolve(&request_head(&head, self.peer));
            let length = head.len + head.body_len;
            if input.len() < length {
                self.needed = length;
                if head.expects_continue && !self.continued {
                    if let Err(answer) = call {
                        outbox.respond(answer, Persistence::Closed, is_head_request)?;
                        self.phase = Phase::Refusing;
                        return Ok(Served::Ending);
                    }
                    outbox.respond_continue()?;
                    self.continued = true;
                }
                return Ok(Served::All);
            }
            let body = &input[head.len..length];
            let answer = match call {
                Err(answer) => answer,
                Ok(call) => {
                    let entered = std::mem::take(lane_entered);
                    *has_waited |=
                        pool.router().may_block(&call) || pool.router().may_take_long(&call);
                    match pool.answer(&call, body, self.token, entered, agenda) {
                        Outcome::Answered(answer) => answer,
                        Outcome::Queued => return Ok(Served::Queued),
                    }
                }
            };
            let persistence = if !head.keep_alive || pool.is_draining() {
                Persistence::Closed
            } else if head.is_http_1_0 {
                Persistence::KeptAnnounced
            } else {
                Persistence::Kept
            };
            outbox.respond(answer, persistence, is_head_request)?;
            *consumed += length;
            self.needed = 0;
            self.began = None;
            self.continued = false;
            if persistence == Persistence::Closed {
                self.phase = Phase::Closing;
                return Ok(Served::Ending);
            }
            if outbox.is_blocked() {
                return Ok(Served::All);
            }
        }
        Ok(Served::EnoughForNow)
    }

    fn outbox<'a>(&'a mut self, buffers: &'a mut Buffers) -> Outbox<'a> {
        Outbox::new(&self.stream, &mut self.output, &mut buffers.output, &mut buffers.dates)
    }

    fn wait_for_input(&mut self, pool: &Pool, now: Millis, input: &[u8]) -> Progress {
        if !input.is_empty() {
            let began = *self.began.get_or_insert(now);
            return Progress::Open { deadline: began + millis(pool.limits().request) };
        }
        if pool.is_draining() {
            return Progress::Done;
        }
        Progress::Open { deadline: now + millis(pool.limits().idle) }
    }

    fn wait_for_client(&mut self, pool: &Pool) -> io::Result<Progress> {
        if !self.wants_write {
            self.nudge(pool.poller())?;
        }
        Ok(Progress::Open { deadline: pool.now() + millis(pool.limits().write) })
    }

    /// Sends what is left, then closes: at once, or when the client has, if it may still
    /// be sending.
    fn wind_up(&mut self, pool: &Pool) -> io::Result<Progress> {
        if !self.output.is_empty() {
            return self.wait_for_client(pool);
        }
        if self.phase == Phase::Closing {
            return Ok(Progress::Done);
        }
        self.stream.shutdown_write()?;
        self.phase = Phase::Lingering;
        self.discard_input(pool.now() + millis(pool.limits().write))
    }

    fn discard_input(&mut self, deadline: Millis) -> io::Result<Progress> {
        let mut discarded = [0; 4096];
        for _ in 0..MOST_DISCARDED_BYTES / discarded.len() {
            match (&self.stream).read(&mut discarded) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Open { deadline });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Done)
    }

    fn expire(&mut self, pool: &Pool) -> Progress {
        if self.phase != Phase::Open || self.input.is_empty() || !self.output.is_empty() {
            return Progress::Done;
        }
        wipe(&mut self.input);
        let late = Answer::error(408, "the request did not come within the time for it");
        let (mut fresh, mut dates) = (Vec::new(), Dates::default());
        let mut outbox = Outbox::new(&self.stream, &mut self.output, &mut fresh, &mut dates);
        self.phase = Phase::Refusing;
        let told = outbox.respond(late, Persistence::Closed, false).and_then(|()| outbox.send());
        told.and_then(|_| self.wind_up(pool)).unwrap_or(Progress::Done)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        wipe(&mut self.input);
    }
}

/// Empties `buffer`, and leaves nothing in its memory.
pub(super) fn wipe(buffer: &mut Vec<u8>) {
    wipe_start(buffer, buffer.len());
}

/// Takes the first `count` bytes out, and leaves nothing of them.
fn wipe_start(buffer: &mut Vec<u8>, count: usize) {
    // Zeroizing byte by byte, as the crate's trait does, is felt in a request.
    buffer[..count].fill(0);
    optimization_barrier(buffer.as_slice());
    buffer.drain(..count);
}

fn request_head<'a>(head: &Head<'a>, peer: Peer) -> RequestHead<'a> {
    RequestHead {
        method: head.method.clone(),
        target: head.target,
        content_type: head.content_type,
        host: head.host,
        has_origin: head.has_origin,
        peer,
    }
}
