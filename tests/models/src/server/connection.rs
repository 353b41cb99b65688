//! Stands in for a connection: each byte is a request, which may block or not.

use std::time::{Duration, Instant};

use super::poll::{Interest, Stream};
use super::worker::Shared;
use crate::caller::Peer;
use crate::router::{Answer, Call};

#[derive(Debug)]
pub struct Connection {
    pub stream: Stream,
    pub token: u64,
    pub peer: Peer,
    pub deadline: Instant,
    /// An answer waits for room in the socket.
    is_answering: bool,
    /// That answer is the last one, as the server is draining.
    is_last: bool,
    /// A blocking worker has it.
    blocks: bool,
}

#[derive(Debug)]
pub enum Next {
    Park(Interest),
    Block(Call),
    Close,
}

impl Connection {
    pub fn new(stream: Stream, is_overdue: bool) -> Box<Self> {
        let deadline = Instant::now() + Duration::from_secs(if is_overdue { 0 } else { 3600 });
        let (is_answering, is_last, blocks) = (false, false, false);
        Box::new(Self { stream, token: 0, peer: (), deadline, is_answering, is_last, blocks })
    }

    pub fn is_idle(&self) -> bool {
        !self.is_answering && !self.blocks
    }

    pub fn body(&self) -> &[u8] {
        assert!(self.blocks, "of a request that blocks");
        b""
    }

    /// Reads one request. Its answer is sent in the next turn, when there is room for it.
    pub fn turn(&mut self, server: &Shared) -> Next {
        assert!(!self.blocks, "taken from a blocking worker");
        let number = self.stream.number;
        let is_answering = std::mem::take(&mut self.is_answering);
        let (request, has_hung_up) = self.stream.kernel.with(number, |socket| {
            socket.answers += usize::from(is_answering);
            let request = if is_answering { None } else { socket.requests.pop_front() };
            (request, socket.has_hung_up)
        });
        match request {
            None if is_answering && self.is_last => Next::Close,
            None if is_answering => Next::Park(Interest::Read),
            None => {
                assert!(has_hung_up, "an event of another connection");
                Next::Close
            }
            Some(true) => {
                self.blocks = true;
                Next::Block(Call)
            }
            Some(false) => self.answer(server),
        }
    }

    pub fn answered(&mut self, _: Answer, server: &Shared) -> Next {
        assert!(std::mem::take(&mut self.blocks), "it was asked");
        self.answer(server)
    }

    fn answer(&mut self, server: &Shared) -> Next {
        (self.is_answering, self.is_last) = (true, server.parked.is_draining());
        Next::Park(Interest::Write)
    }

    pub fn expire(&mut self, _: &Shared) -> Next {
        Next::Close
    }
}
