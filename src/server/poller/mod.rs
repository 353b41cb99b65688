//! One poller that all workers wait on together.
//!
//! Events are edge-triggered: each is told once, to one worker. A worker that hears of a
//! connection reads it until nothing is left, and the [table](super::table) remembers
//! an event that comes while another worker is at that connection.

#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "macos")]
mod kqueue;

#[cfg(target_os = "linux")]
pub(super) use epoll::Poller;
#[cfg(target_os = "macos")]
pub(super) use kqueue::Poller;

/// How many events a worker may take at a time, at most. What it has taken waits for it,
/// so it is few; before it waits for a backend, it passes the rest on.
pub(super) const BATCH: usize = 8;

/// What a worker is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The connection under this token can be read, or written if that was asked for.
    Ready {
        /// Which connection.
        token: u64,
        /// The client has closed its side, or all of it.
        hung_up: bool,
    },
    /// The pool ends. Told to every worker, again and again.
    End,
}
