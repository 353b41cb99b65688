//! The poller on Linux: epoll(7).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use super::Event;

/// No connection has this token.
const END: u64 = u64::MAX;

#[derive(Debug)]
pub(in crate::server) struct Poller {
    epoll: OwnedFd,
    end: OwnedFd,
}

impl Poller {
    pub(in crate::server) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Level-triggered: once written to, it wakes every worker.
        epoll::add(&epoll, &end, EventData::new_u64(END), EventFlags::IN)?;
        Ok(Self { epoll, end })
    }

    /// Tells when `source` can be read, until it is closed.
    pub(in crate::server) fn add(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, EventData::new_u64(token), readable())?)
    }

    /// Tells, in addition, when `source` can be written, or no longer does. Where it can
    /// be already, it tells so at once, after what waits to be told.
    pub(in crate::server) fn want_write(
        &self,
        source: impl AsFd,
        token: u64,
        wanted: bool,
    ) -> io::Result<()> {
        let interest = if wanted { readable() | EventFlags::OUT } else { readable() };
        Ok(epoll::modify(&self.epoll, source, EventData::new_u64(token), interest)?)
    }

    /// Waits for one event. One at a time, so that a worker that then waits for a
    /// backend holds no other connection's event.
    pub(in crate::server) fn wait(&self) -> io::Result<Event> {
        let mut events =
            [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(END) }];
        while let Err(error) = epoll::wait(&self.epoll, &mut events, None) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        let token = events[0].data.u64();
        if token == END {
            return Ok(Event::End);
        }
        let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        // The struct is packed, so its field is copied before it is asked.
        let flags = events[0].flags;
        Ok(Event::Ready { token, hung_up: flags.intersects(hung_up) })
    }

    /// Makes every [`wait`](Self::wait), now and later, give [`Event::End`].
    pub(in crate::server) fn end(&self) {
        rustix::io::write(&self.end, &1_u64.to_ne_bytes()).expect("an eventfd takes a 1");
    }
}

fn readable() -> EventFlags {
    EventFlags::IN | EventFlags::RDHUP | EventFlags::ET
}
