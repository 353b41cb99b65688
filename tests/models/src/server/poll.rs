//! Stands in for the poller: the kernel's side of the sockets, with events that are one-shot.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use shuttle::sync::{Condvar, Mutex};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
}

pub const END: u64 = u64::MAX;
const BATCH: usize = 2;

/// The two sides of a socket.
#[derive(Debug, Default)]
pub struct Socket {
    /// Requests that were sent and not read, and answers that were written and not read.
    pub requests: VecDeque<bool>,
    pub answers: usize,
    pub has_hung_up: bool,
    pub is_closed: bool,
    armed: Option<(u64, Interest)>,
}

#[derive(Debug, Default)]
pub struct Sockets {
    pub all: HashMap<usize, Socket>,
    ready: VecDeque<u64>,
    has_ended: bool,
}

#[derive(Debug, Default)]
pub struct Kernel {
    pub sockets: Mutex<Sockets>,
    /// Something is ready for the service.
    event: Condvar,
    /// Something is there for a client.
    pub answered: Condvar,
}

/// The service's side of a socket. Dropping it closes it.
#[derive(Debug)]
pub struct Stream {
    pub number: usize,
    pub kernel: Arc<Kernel>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.kernel.with(self.number, |socket| {
            assert!(!std::mem::replace(&mut socket.is_closed, true), "closed twice");
            socket.armed = None;
        });
    }
}

impl Kernel {
    /// Changes a socket, and reports what became ready by it.
    pub fn with<T>(&self, number: usize, change: impl FnOnce(&mut Socket) -> T) -> T {
        let mut sockets = self.sockets.lock().unwrap();
        let socket = sockets.all.entry(number).or_default();
        let result = change(socket);
        let is_readable = !socket.requests.is_empty() || socket.has_hung_up;
        let is_due =
            |(_, interest): &mut (u64, Interest)| is_readable || *interest == Interest::Write;
        if let Some((token, _)) = socket.armed.take_if(is_due) {
            sockets.ready.push_back(token);
            self.event.notify_one();
        }
        self.answered.notify_all();
        result
    }
}

#[derive(Debug)]
pub struct Poller(pub Arc<Kernel>);

impl Poller {
    #[allow(clippy::unnecessary_wraps, reason = "the kernel's can fail")]
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::default()))
    }

    pub fn arm(&self, stream: &Stream, token: u64, interest: Interest) -> io::Result<()> {
        self.0.with(stream.number, |socket| {
            assert!(!socket.is_closed, "a closed socket is armed");
            assert!(socket.armed.replace((token, interest)).is_none(), "armed by two owners");
        });
        Ok(())
    }

    /// An event that a worker has already is not taken back.
    pub fn remove(&self, stream: &Stream) {
        let mut sockets = self.0.sockets.lock().unwrap();
        let socket = sockets.all.entry(stream.number).or_default();
        socket.armed = None;
    }

    #[allow(clippy::unnecessary_wraps, reason = "the kernel's can fail")]
    pub fn wait(&self, tokens: &mut Vec<u64>) -> io::Result<()> {
        let sockets = self.0.sockets.lock().unwrap();
        let is_quiet = |it: &mut Sockets| it.ready.is_empty() && !it.has_ended;
        let mut sockets = self.0.event.wait_while(sockets, is_quiet).unwrap();
        let count = sockets.ready.len().min(BATCH);
        tokens.extend(sockets.ready.drain(..count));
        tokens.extend(sockets.has_ended.then_some(END));
        Ok(())
    }

    pub fn end(&self) {
        self.0.sockets.lock().unwrap().has_ended = true;
        self.0.event.notify_all();
    }
}
