//! The poller on Linux: epoll(7) with `EPOLLONESHOT`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::{BATCH, END, Interest};

#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    end: OwnedFd,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Level-triggered and not one-shot: it wakes every worker.
        epoll::add(&epoll, &end, EventData::new_u64(END), EventFlags::IN)?;
        Ok(Self { epoll, end })
    }

    /// Arms a socket, for the first time or again. If it is ready already, its event follows at once.
    pub fn arm(&self, socket: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let (data, flags) = (EventData::new_u64(token), flags(interest));
        match epoll::modify(&self.epoll, &socket, data, flags) {
            Err(Errno::NOENT) => epoll::add(&self.epoll, &socket, data, flags)?,
            armed => armed?,
        }
        Ok(())
    }

    /// Removes an armed socket that is about to be closed. close(2) alone would not do: while
    /// another thread polls the socket, the kernel keeps it open until that thread returns.
    pub fn remove(&self, socket: impl AsFd) {
        if let Err(error) = epoll::delete(&self.epoll, socket) {
            log::error!("a connection could not be removed from the poller: {error}");
        }
    }

    /// Blocks until something is ready, and adds its tokens.
    pub fn wait(&self, tokens: &mut Vec<u64>) -> io::Result<()> {
        const NONE: epoll::Event =
            epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(END) };
        let mut events = [NONE; BATCH];
        let count = loop {
            match epoll::wait(&self.epoll, &mut events, None) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        // The struct is packed, so its field is copied before it is used.
        tokens.extend(events[..count].iter().map(|event| { event.data }.u64()));
        Ok(())
    }

    /// Makes every [`wait`](Self::wait), now and later, return [`END`].
    pub fn end(&self) {
        rustix::io::write(&self.end, &1_u64.to_ne_bytes()).expect("an eventfd takes a 1");
    }
}

fn flags(interest: Interest) -> EventFlags {
    EventFlags::ONESHOT
        | match interest {
            Interest::Read => EventFlags::IN | EventFlags::RDHUP,
            Interest::Write => EventFlags::OUT,
        }
}
