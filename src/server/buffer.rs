//! The bytes of a connection, received or to be sent. All of them are wiped after use,
//! for any may belong to a value.

use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, write};
use rustix::net::{RecvFlags, recv};
use zeroize::optimization_barrier;

/// The size of a new buffer.
const BUFFER_BYTES: usize = 4 * 1024;

/// Bytes that were received and are not served yet, or that the client has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// How many at the front are done with, and wiped.
    done: usize,
}

impl Buffer {
    /// The bytes that are still to be served, or to be sent.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.done..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    /// Drops `count` bytes from the front.
    pub(super) fn consume(&mut self, count: usize) {
        wipe(&mut self.bytes[self.done..self.done + count]);
        self.done += count;
        if self.is_empty() {
            self.bytes.clear();
            self.done = 0;
        }
    }

    /// The vector, with room for `length` more bytes at its end.
    pub(super) fn room_for(&mut self, length: usize) -> &mut Vec<u8> {
        if self.done > 0 {
            let left = self.bytes.len() - self.done;
            self.bytes.copy_within(self.done.., 0);
            wipe(&mut self.bytes[left..]);
            self.bytes.truncate(left);
            self.done = 0;
        }
        let needed = self.bytes.len() + length;
        if self.bytes.capacity() < needed {
            // Growing the vector itself would leave a copy behind.
            let capacity = needed.max(2 * self.bytes.len()).max(BUFFER_BYTES);
            let mut bytes = Vec::with_capacity(capacity);
            bytes.extend_from_slice(&self.bytes);
            wipe(&mut self.bytes);
            self.bytes = bytes;
        }
        &mut self.bytes
    }

    /// Frees the memory, unless it holds bytes: an idle connection needs none.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            self.bytes = Vec::new();
        }
    }

    /// Receives what has come, at most as much as there is room for: for `needed` bytes in
    /// all, or more. Returns 0 at the end of the stream, and `None` when nothing has come.
    pub(super) fn receive(&mut self, stream: &OwnedFd, needed: usize) -> io::Result<Option<usize>> {
        let length = needed.saturating_sub(self.rest().len()).max(1);
        let bytes = self.room_for(length);
        loop {
            match recv(stream, spare_capacity(bytes), RecvFlags::empty()) {
                Ok((_, count)) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what the client takes. Says whether that is all.
    pub(super) fn send(&mut self, stream: &OwnedFd) -> io::Result<bool> {
        while !self.is_empty() {
            match write(stream, self.rest()) {
                Ok(count) => self.consume(count),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
    }
}

/// Overwrites bytes with zeros.
fn wipe(bytes: &mut [u8]) {
    // One byte at a time, as `Zeroize` does it, would show in the time of a request.
    bytes.fill(0);
    optimization_barrier(bytes);
}
