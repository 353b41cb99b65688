//! The poller on Linux: epoll(7).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use super::{BATCH, Event};

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

    /// Waits for events, and adds up to `most` of them to `ready`, or [`BATCH`].
    pub(in crate::server) fn wait(
        &self,
        ready: &mut VecDeque<Event>,
        most: usize,
    ) -> io::Result<()> {
        const NONE: epoll::Event =
            epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(END) };
        let mut events = [NONE; BATCH];
        let count = loop {
            match epoll::wait(&self.epoll, &mut events[..most.min(BATCH)], None) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result?,
            }
        };
        ready.extend(events[..count].iter().map(|&event| of(event)));
        Ok(())
    }

    /// Makes every [`wait`](Self::wait), now and later, give [`Event::End`].
    pub(in crate::server) fn end(&self) {
        rustix::io::write(&self.end, &1_u64.to_ne_bytes()).expect("an eventfd takes a 1");
    }
}

fn of(event: epoll::Event) -> Event {
    let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
    // The struct is packed, so its fields are copied before they are asked.
    let (flags, data) = (event.flags, event.data);
    match data.u64() {
        END => Event::End,
        token => Event::Ready { token, hung_up: flags.intersects(hung_up) },
    }
}

fn readable() -> EventFlags {
    EventFlags::IN | EventFlags::RDHUP | EventFlags::ET
}
