//! The poller on Linux: epoll(7).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::{BATCH, Event};

/// No connection has these tokens.
const END: u64 = u64::MAX;
const CALL: u64 = u64::MAX - 1;
/// Added to a connection's token for what tells of its backend.
const BACKEND: u64 = 1 << 62;

#[derive(Debug)]
pub(in crate::server) struct Poller {
    epoll: OwnedFd,
    end: OwnedFd,
    call: OwnedFd,
}

impl Poller {
    pub(in crate::server) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Level-triggered: once written to, it wakes every worker.
        epoll::add(&epoll, &end, EventData::new_u64(END), EventFlags::IN)?;
        // Edge-triggered: each time it is written to, it wakes one worker.
        let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &call, EventData::new_u64(CALL), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll, end, call })
    }

    /// Tells when `source` can be read, and if wanted when it can be written, until it is
    /// removed.
    pub(in crate::server) fn add(
        &self,
        source: impl AsFd,
        token: u64,
        want_write: bool,
    ) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, EventData::new_u64(token), interest(want_write))?)
    }

    /// Tells nothing more of `source`, for it will be closed.
    ///
    /// close(2) alone would do that too, but not always at once: another worker may just
    /// be asking about this socket, and Linux then drops it only when that worker's wait
    /// returns, which may be never, and its client waits for the end.
    pub(in crate::server) fn remove(&self, source: impl AsFd) {
        if let Err(error) = epoll::delete(&self.epoll, source) {
            log::error!("a connection was still watched when it was closed: {error}");
        }
    }

    /// Tells when `source`, by which a backend answers, can be read: as if it was the
    /// connection under `token`. It may have been watched for another one before, and is
    /// forgotten when it is closed.
    pub(in crate::server) fn watch_for(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        let data = EventData::new_u64(token | BACKEND);
        let flags = EventFlags::IN | EventFlags::ET;
        match epoll::modify(&self.epoll, &source, data, flags) {
            Err(rustix::io::Errno::NOENT) => Ok(epoll::add(&self.epoll, source, data, flags)?),
            modified => Ok(modified?),
        }
    }

    /// Tells, in addition, when `source` can be written, or no longer does. Where it can
    /// be already, it tells so at once, after what waits to be told.
    pub(in crate::server) fn want_write(
        &self,
        source: impl AsFd,
        token: u64,
        wanted: bool,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, EventData::new_u64(token), interest(wanted))?)
    }

    /// Waits for events, unless it is only to look for them, and adds up to `most` of them
    /// to `ready`, or [`BATCH`]. There may be none.
    pub(in crate::server) fn wait(
        &self,
        ready: &mut VecDeque<Event>,
        most: usize,
        only_look: bool,
    ) -> io::Result<()> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        const NONE: epoll::Event =
            epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(END) };
        let mut events = [NONE; BATCH];
        let timeout = only_look.then_some(&AT_ONCE);
        let count = loop {
            match epoll::wait(&self.epoll, &mut events[..most.min(BATCH)], timeout) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result?,
            }
        };
        ready.extend(events[..count].iter().filter_map(|&event| of(event)));
        Ok(())
    }

    /// Makes one [`wait`](Self::wait), now or later, return.
    pub(in crate::server) fn call(&self) {
        rustix::io::write(&self.call, &1_u64.to_ne_bytes()).expect("an eventfd takes 2^64 ones");
    }

    /// Makes every [`wait`](Self::wait), now and later, give [`Event::End`].
    pub(in crate::server) fn end(&self) {
        rustix::io::write(&self.end, &1_u64.to_ne_bytes()).expect("an eventfd takes a 1");
    }
}

fn of(event: epoll::Event) -> Option<Event> {
    let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
    // The struct is packed, so its fields are copied before they are asked.
    let (flags, data) = (event.flags, event.data);
    match data.u64() {
        CALL => None,
        END => Some(Event::End),
        backend if backend & BACKEND != 0 => {
            Some(Event::Ready { token: backend & !BACKEND, hung_up: false })
        }
        token => Some(Event::Ready { token, hung_up: flags.intersects(hung_up) }),
    }
}

fn interest(want_write: bool) -> EventFlags {
    let readable = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if want_write { readable | EventFlags::OUT } else { readable }
}
