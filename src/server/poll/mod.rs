//! The kernel's readiness queue, used one-shot: each event disarms its socket and wakes one
//! thread. Whoever is done with the socket arms it again.

#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "macos")]
mod kqueue;

#[cfg(target_os = "linux")]
pub(super) use epoll::Poller;
#[cfg(target_os = "macos")]
pub(super) use kqueue::Poller;

/// The event that a parked connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// Input, or the end of it.
    Read,
    /// Room for output.
    Write,
}

/// The token of the event that tells every worker to end. No connection has it.
pub(super) const END: u64 = u64::MAX;

/// How many events a worker takes at a time. They wait for that worker, so there are few.
const BATCH: usize = 4;
