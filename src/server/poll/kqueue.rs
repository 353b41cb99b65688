//! The poller on macOS: kqueue(2) with `EV_DISPATCH`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};

use super::{BATCH, END, Interest};

/// The identifier of the user event that ends the workers.
const END_EVENT: usize = 0;

pub struct Poller(Kqueue);

impl Poller {
    pub fn new() -> io::Result<Self> {
        let poller = Self(Kqueue::new()?);
        // Without EV_CLEAR: once triggered, it wakes every worker.
        poller.change(end_event(EvFlags::EV_ADD, FilterFlag::empty()))?;
        Ok(poller)
    }

    /// Arms a socket, for the first time or again. If it is ready already, its event follows at
    /// once. A filter that has delivered its event is disabled, so that the other one is all that
    /// is armed.
    pub fn arm(&self, socket: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let filter = match interest {
            Interest::Read => EventFilter::EVFILT_READ,
            Interest::Write => EventFilter::EVFILT_WRITE,
        };
        let descriptor =
            usize::try_from(socket.as_fd().as_raw_fd()).expect("open descriptors are not negative");
        let flags = EvFlags::EV_ADD | EvFlags::EV_ENABLE | EvFlags::EV_DISPATCH;
        let token = isize::try_from(token).expect("tokens have 63 bits");
        self.change(KEvent::new(descriptor, filter, flags, FilterFlag::empty(), 0, token))
    }

    /// Removes an armed socket that is about to be closed: close(2) does that by itself.
    #[allow(clippy::unused_self, reason = "the other poller has to be told")]
    pub fn remove(&self, _: impl AsFd) {}

    /// Blocks until something is ready, and adds its tokens.
    pub fn wait(&self, tokens: &mut Vec<u64>) -> io::Result<()> {
        let mut events = [end_event(EvFlags::empty(), FilterFlag::empty()); BATCH];
        let count = loop {
            match self.0.kevent(&[], &mut events, None) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        tokens.extend(events[..count].iter().map(|event| match event.filter() {
            Ok(EventFilter::EVFILT_USER) => END,
            _ => u64::try_from(event.udata()).expect("tokens are not negative"),
        }));
        Ok(())
    }

    /// Makes every [`wait`](Self::wait), now and later, return [`END`].
    pub fn end(&self) {
        self.change(end_event(EvFlags::empty(), FilterFlag::NOTE_TRIGGER))
            .expect("the event was added at the start");
    }

    fn change(&self, change: KEvent) -> io::Result<()> {
        self.0.kevent(&[change], &mut [], None)?;
        Ok(())
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

fn end_event(flags: EvFlags, filter_flags: FilterFlag) -> KEvent {
    KEvent::new(END_EVENT, EventFilter::EVFILT_USER, flags, filter_flags, 0, 0)
}
