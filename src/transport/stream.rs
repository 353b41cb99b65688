//! One connection under the HTTP library, over whatever carries the bytes.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::RecvFlags;
use ureq::Error;
use ureq::unversioned::transport::{Buffers, NextTimeout, Transport};

use super::buffers::WipedBuffers;

/// What a connector's error carries when there was no connection: it tells "nobody
/// there" from a connection that broke.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct NotConnected(pub(crate) io::Error);

/// What an I/O error of a connection under [`Idle::Trust`] carries when it broke before any
/// byte of the answer: whether the request may be sent again.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub(crate) struct Unanswered {
    /// The connection had carried an answer before, so that the server is one that works.
    pub(crate) was_kept: bool,
    /// The server has certainly not read the whole request.
    pub(crate) was_not_taken: bool,
    source: io::Error,
}

/// Something that carries bytes, and gives up on time.
pub(crate) trait Stream: Read + Write + Send + Sync + 'static {
    /// Whether a reset tells that the server had not read all that was sent to it.
    const RESET_MEANS_UNREAD: bool;

    /// Whether it is open, and nothing has come on it that was not read.
    fn is_quiet(&self) -> bool;

    /// How long a read or a write of the socket may wait.
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Whether what it carries is encrypted.
    fn is_tls(&self) -> bool {
        false
    }
}

impl Stream for UnixStream {
    // A Unix socket that is closed after all was read ends the other side's reading; with
    // something unread, it resets it (unix_release_sock in Linux's af_unix.c).
    const RESET_MEANS_UNREAD: bool = cfg!(target_os = "linux");

    fn is_quiet(&self) -> bool {
        is_quiet(self)
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)?;
        self.set_write_timeout(timeout)
    }
}

/// How an idle connection is found to be usable.
#[allow(dead_code, reason = "the backend no longer connects here")]
pub(crate) enum Idle {
    /// By asking the kernel whether anything has come on it, be it the end.
    Peek,
    /// By its user's word, who finds out by using it: as long as [`Era`] has not moved on.
    Trust(Era, u64),
}

/// Connections of one time, until one of them turns out to be closed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Era(Arc<AtomicU64>);

impl Era {
    /// For a connection that is made now.
    pub(crate) fn idle(&self) -> Idle {
        Idle::Trust(self.clone(), self.0.load(Ordering::Acquire))
    }

    /// No connection that is idle now is used again.
    pub(crate) fn end(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// One connection.
pub(crate) struct StreamTransport<S> {
    stream: S,
    idle: Idle,
    buffers: WipedBuffers,
    /// What the socket was last told to wait; at first it waits for ever.
    timeout: Option<Duration>,
    /// An answer has come on it before the request that is under way.
    was_kept: bool,
    /// Something has come since the last of the request went.
    is_answered: bool,
}

impl<S: Stream> StreamTransport<S> {
    pub(crate) fn new(stream: S, idle: Idle) -> Self {
        Self {
            stream,
            idle,
            buffers: WipedBuffers::default(),
            timeout: None,
            was_kept: false,
            is_answered: false,
        }
    }

    /// The error of a connection that broke; with what its user has to know, if it is one
    /// that finds out by using it.
    fn unanswered(&self, was_not_taken: bool, source: io::Error) -> Error {
        if let Idle::Peek = self.idle {
            return Error::Io(source);
        }
        let kind = source.kind();
        let unanswered = Unanswered { was_kept: self.was_kept, was_not_taken, source };
        Error::Io(io::Error::new(kind, unanswered))
    }

    /// Has the socket wait no longer than this, or hardly: telling it takes two system
    /// calls, which is not done for less than a tenth.
    fn set_timeout(&mut self, timeout: NextTimeout) -> io::Result<()> {
        let timeout = timeout.not_zero().map(|timeout| *timeout);
        let is_near = match (self.timeout, timeout) {
            (Some(set), Some(wanted)) => set >= wanted && set <= wanted + wanted / 10,
            (set, wanted) => set == wanted,
        };
        if !is_near {
            self.stream.set_timeout(timeout)?;
            self.timeout = timeout;
        }
        Ok(())
    }
}

/// Shows no buffer: what is in there may be a value.
impl<S> fmt::Debug for StreamTransport<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamTransport")
    }
}

impl<S: Stream> Transport for StreamTransport<S> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.set_timeout(timeout)?;
        self.was_kept |= std::mem::take(&mut self.is_answered);
        let output = self.buffers.output_up_to(amount);
        let sent = self.stream.write_all(output).and_then(|()| self.stream.flush());
        self.buffers.wipe_output(amount);
        sent.map_err(|error| {
            if timed_out(&error) {
                Error::Timeout(timeout.reason)
            } else {
                self.unanswered(true, error)
            }
        })
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.set_timeout(timeout)?;
        let amount = loop {
            match self.stream.read(self.buffers.input_append_buf()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if timed_out(&error) => return Err(Error::Timeout(timeout.reason)),
                Err(error) if self.is_answered => return Err(Error::Io(error)),
                Err(error) => {
                    let is_reset = error.kind() == io::ErrorKind::ConnectionReset;
                    return Err(self.unanswered(S::RESET_MEANS_UNREAD && is_reset, error));
                }
                Ok(0) if !self.is_answered => {
                    return Err(self.unanswered(false, io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(amount) => break amount,
            }
        };
        self.is_answered = true;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// ureq sends requests for `https` over nothing else.
    fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// When asked of the kernel, an idle connection is open when it has nothing to read:
    /// bytes that nobody asked for, or an end, both mean that it cannot be used again.
    fn is_open(&mut self) -> bool {
        if let Idle::Trust(era, born) = &self.idle {
            return era.0.load(Ordering::Acquire) == *born;
        }
        self.stream.is_quiet()
    }
}

/// Whether the kernel has nothing to tell of the socket, not even its end.
pub(super) fn is_quiet(socket: impl AsFd) -> bool {
    let peeked = rustix::net::recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
