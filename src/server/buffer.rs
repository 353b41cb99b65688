//! The bytes of a connection, received or to be sent. All of them are wiped after use,
//! for any may belong to a value.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, write};
use rustix::net::{RecvFlags, recv};
use zeroize::{Zeroizing, optimization_barrier};

/// The size of the buffers that a worker lends to the connection it serves.
const LENT_BYTES: usize = 16 * 1024;

/// The buffers that a worker lends to a connection, one for each direction. An idle connection
/// holds none.
#[derive(Debug, Default)]
pub(super) struct Lent {
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Bytes that were received and are not served yet.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// How many at the front are served, and wiped.
    served: usize,
}

impl Input {
    pub(super) fn unserved(&self) -> &[u8] {
        &self.bytes[self.served..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unserved().is_empty()
    }

    /// Drops `count` bytes from the front.
    pub(super) fn consume(&mut self, count: usize) {
        wipe(&mut self.bytes[self.served..self.served + count]);
        self.served += count;
        if self.is_empty() {
            self.bytes.clear();
            self.served = 0;
        }
    }

    /// Receives what has come, at most as much as there is room for: for `needed` bytes in
    /// all, or more. Returns 0 at the end of the stream, and `None` when nothing has come.
    pub(super) fn receive(&mut self, stream: &OwnedFd, needed: usize) -> io::Result<Option<usize>> {
        self.compact();
        let needed = needed.max(self.bytes.len() + 1);
        if self.bytes.capacity() < needed {
            self.move_into(Vec::with_capacity(needed.max(LENT_BYTES)));
        }
        loop {
            match recv(stream, spare_capacity(&mut self.bytes), RecvFlags::empty()) {
                Ok((_, count)) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn compact(&mut self) {
        if self.served > 0 {
            let left = self.bytes.len() - self.served;
            self.bytes.copy_within(self.served.., 0);
            wipe(&mut self.bytes[left..]);
            self.bytes.truncate(left);
            self.served = 0;
        }
    }

    /// Moves the bytes, and returns the buffer that held them, empty. Unlike growing a `Vec`, this
    /// leaves no copy behind.
    fn move_into(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend_from_slice(&self.bytes);
        wipe(&mut self.bytes);
        self.bytes.clear();
        std::mem::replace(&mut self.bytes, bytes)
    }

    /// Borrows the worker's buffer, unless this holds bytes in one of its own.
    pub(super) fn borrow(&mut self, lent: &mut Lent) {
        if self.bytes.capacity() == 0 {
            std::mem::swap(&mut self.bytes, &mut lent.input);
        }
    }

    /// Gives the buffer back. What it holds goes to one with room for `needed` bytes.
    pub(super) fn give_back(&mut self, lent: &mut Lent, needed: usize) {
        self.compact();
        let length = if self.is_empty() { 0 } else { needed.max(self.bytes.len()) };
        if self.bytes.capacity() == LENT_BYTES {
            lent.input = self.move_into(Vec::with_capacity(length));
        } else if length == 0 {
            self.bytes = Vec::new();
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
    }
}

/// Bytes that the client has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: VecDeque<Zeroizing<Vec<u8>>>,
    /// How many bytes of the first piece are sent.
    sent: usize,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether it is time to send, before more is made.
    pub(super) fn is_long(&self) -> bool {
        self.pieces.len() > 1
    }

    /// A buffer with room for `length` more bytes, at the end of what is to be sent.
    pub(super) fn room_for(&mut self, length: usize, lent: &mut Lent) -> &mut Vec<u8> {
        let has_room =
            self.pieces.back().is_some_and(|last| last.capacity() - last.len() >= length);
        if !has_room {
            let mut piece = std::mem::take(&mut lent.output);
            piece.reserve_exact(length.max(LENT_BYTES));
            self.pieces.push_back(Zeroizing::new(piece));
        }
        self.pieces.back_mut().expect("there is one, or one was just added")
    }

    /// Adds bytes without copying them.
    pub(super) fn push(&mut self, piece: Zeroizing<Vec<u8>>) {
        self.pieces.push_back(piece);
    }

    /// Writes what the client takes. Says whether that is all.
    pub(super) fn send(&mut self, stream: &OwnedFd, lent: &mut Lent) -> io::Result<bool> {
        while let Some(piece) = self.pieces.front_mut() {
            match write(stream, &piece[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.sent == piece.len() {
                if piece.capacity() == LENT_BYTES {
                    wipe(piece);
                    piece.clear();
                    lent.output = std::mem::take(&mut **piece);
                }
                self.pieces.pop_front();
                self.sent = 0;
            }
        }
        Ok(true)
    }
}

/// Overwrites bytes with zeros.
fn wipe(bytes: &mut [u8]) {
    // One byte at a time, as `Zeroize` does it, would show in the time of a request.
    bytes.fill(0);
    optimization_barrier(bytes);
}
