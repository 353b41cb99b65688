//! The poller on macOS: kqueue(2).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc::timespec;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};

use super::{BATCH, Event};

/// The identifiers of the user events.
const END: usize = 0;
const CALL: usize = 1;
/// Added to a connection's token for what tells of its backend.
const BACKEND: u64 = 1 << 62;

pub(in crate::server) struct Poller {
    kqueue: Kqueue,
}

impl Poller {
    pub(in crate::server) fn new() -> io::Result<Self> {
        let poller = Self { kqueue: Kqueue::new()? };
        // Without EV_CLEAR: once triggered, it wakes every worker.
        poller.change(user_event(END, EvFlags::EV_ADD, FilterFlag::empty()))?;
        // With it: each time it is triggered, it wakes one.
        poller.change(user_event(
            CALL,
            EvFlags::EV_ADD | EvFlags::EV_CLEAR,
            FilterFlag::empty(),
        ))?;
        Ok(poller)
    }

    /// Tells when `source` can be read, and if wanted when it can be written, until it is
    /// closed.
    pub(in crate::server) fn add(
        &self,
        source: impl AsFd,
        token: u64,
        want_write: bool,
    ) -> io::Result<()> {
        self.change(socket_event(&source, EventFilter::EVFILT_READ, EvFlags::EV_ADD, token))?;
        if want_write { self.want_write(source, token, true) } else { Ok(()) }
    }

    /// Tells nothing more of `source`, for it will be closed: close(2) sees to that.
    #[allow(clippy::unused_self)] // other pollers have to be told
    pub(in crate::server) fn remove(&self, _: impl AsFd) {}

    /// Tells when `source`, by which a backend answers, can be read: as if it was the
    /// connection under `token`. It may have been watched for another one before, and is
    /// forgotten when it is closed.
    pub(in crate::server) fn watch_for(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        let token = token | BACKEND;
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

    /// Waits for events, unless it is only to look for them, and adds up to `most` of them
    /// to `ready`, or [`BATCH`]. There may be none.
    pub(in crate::server) fn wait(
        &self,
        ready: &mut VecDeque<Event>,
        most: usize,
        only_look: bool,
    ) -> io::Result<()> {
        let timeout = only_look.then_some(timespec { tv_sec: 0, tv_nsec: 0 });
        let mut events = [user_event(END, EvFlags::empty(), FilterFlag::empty()); BATCH];
        let count = loop {
            match self.kqueue.kevent(&[], &mut events[..most.min(BATCH)], timeout) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        ready.extend(events[..count].iter().filter_map(of));
        Ok(())
    }

    /// Makes one [`wait`](Self::wait), now or later, return.
    pub(in crate::server) fn call(&self) {
        self.trigger(CALL);
    }

    /// Makes every [`wait`](Self::wait), now and later, give [`Event::End`].
    pub(in crate::server) fn end(&self) {
        self.trigger(END);
    }

    fn trigger(&self, event: usize) {
        self.change(user_event(event, EvFlags::empty(), FilterFlag::NOTE_TRIGGER))
            .expect("the user events were added at the start");
    }

    fn change(&self, change: KEvent) -> io::Result<()> {
        self.kqueue.kevent(&[change], &mut [], None)?;
        Ok(())
    }
}

fn of(event: &KEvent) -> Option<Event> {
    match event.filter() {
        Ok(EventFilter::EVFILT_USER) => (event.ident() == END).then_some(Event::End),
        _ => {
            let token = u64::try_from(event.udata()).expect("tokens are not negative");
            let is_backend = token & BACKEND != 0;
            let hung_up = !is_backend && event.flags().contains(EvFlags::EV_EOF);
            Some(Event::Ready { token: token & !BACKEND, hung_up })
        }
    }
}

fn user_event(identifier: usize, flags: EvFlags, filter_flags: FilterFlag) -> KEvent {
    KEvent::new(identifier, EventFilter::EVFILT_USER, flags, filter_flags, 0, 0)
}

fn socket_event(source: &impl AsFd, filter: EventFilter, action: EvFlags, token: u64) -> KEvent {
    let descriptor =
        usize::try_from(source.as_fd().as_raw_fd()).expect("open descriptors are not negative");
    let token = isize::try_from(token).expect("tokens have 63 bits");
    KEvent::new(descriptor, filter, action | EvFlags::EV_CLEAR, FilterFlag::empty(), 0, token)
}
