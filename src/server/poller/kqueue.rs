//! The poller on macOS: kqueue(2).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};

use super::{BATCH, Event};

/// The identifier of the one user event.
const END: usize = 0;

pub(in crate::server) struct Poller {
    kqueue: Kqueue,
}

impl Poller {
    pub(in crate::server) fn new() -> io::Result<Self> {
        let poller = Self { kqueue: Kqueue::new()? };
        // Without EV_CLEAR: once triggered, it wakes every worker.
        poller.change(KEvent::new(
            END,
            EventFilter::EVFILT_USER,
            EvFlags::EV_ADD,
            FilterFlag::empty(),
            0,
            0,
        ))?;
        Ok(poller)
    }

    /// Tells when `source` can be read, until it is closed.
    pub(in crate::server) fn add(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        self.change(socket_event(&source, EventFilter::EVFILT_READ, EvFlags::EV_ADD, token))
    }

    /// Tells, in addition, when `source` can be written, or no longer does.
    pub(in crate::server) fn want_write(
        &self,
        source: impl AsFd,
        token: u64,
        wanted: bool,
    ) -> io::Result<()> {
        let action = if wanted { EvFlags::EV_ADD } else { EvFlags::EV_DELETE };
        self.change(socket_event(&source, EventFilter::EVFILT_WRITE, action, token))
    }

    /// Waits for events, and adds up to `most` of them to `ready`, or [`BATCH`].
    pub(in crate::server) fn wait(
        &self,
        ready: &mut VecDeque<Event>,
        most: usize,
    ) -> io::Result<()> {
        let none =
            KEvent::new(END, EventFilter::EVFILT_USER, EvFlags::empty(), FilterFlag::empty(), 0, 0);
        let mut events = [none; BATCH];
        let count = loop {
            match self.kqueue.kevent(&[], &mut events[..most.min(BATCH)], None) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        ready.extend(events[..count].iter().map(of));
        Ok(())
    }

    /// Makes every [`wait`](Self::wait), now and later, give [`Event::End`].
    pub(in crate::server) fn end(&self) {
        self.change(KEvent::new(
            END,
            EventFilter::EVFILT_USER,
            EvFlags::empty(),
            FilterFlag::NOTE_TRIGGER,
            0,
            0,
        ))
        .expect("the user event was added at the start");
    }

    fn change(&self, change: KEvent) -> io::Result<()> {
        self.kqueue.kevent(&[change], &mut [], None)?;
        Ok(())
    }
}

fn of(event: &KEvent) -> Event {
    match event.filter() {
        Ok(EventFilter::EVFILT_USER) => Event::End,
        _ => Event::Ready {
            token: u64::try_from(event.udata()).expect("tokens are not negative"),
            hung_up: event.flags().contains(EvFlags::EV_EOF),
        },
    }
}

fn socket_event(source: &impl AsFd, filter: EventFilter, action: EvFlags, token: u64) -> KEvent {
    let descriptor =
        usize::try_from(source.as_fd().as_raw_fd()).expect("open descriptors are not negative");
    let token = isize::try_from(token).expect("tokens have 63 bits");
    KEvent::new(descriptor, filter, action | EvFlags::EV_CLEAR, FilterFlag::empty(), 0, token)
}
