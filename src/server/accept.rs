//! The accept loop: a thread that blocks for new connections until it is stopped.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::listener::Listener;
use super::pool::Pool;

/// The running accept loop.
pub(super) struct Acceptor {
    /// Closing it ends the loop.
    stop: Mutex<Option<OwnedFd>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Acceptor {
    pub(super) fn start(listener: Listener, pool: &Arc<Pool>) -> io::Result<Self> {
        let (stopped, stop) = rustix::pipe::pipe()?;
        for end in [&stopped, &stop] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        let pool = Arc::clone(pool);
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || accept_until(&stopped, &listener, &pool))?;
        Ok(Self { stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
    }

    /// Ends the loop and waits for it; the listener is closed and its file removed.
    pub(super) fn stop(&self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.join();
    }

    pub(super) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            log::error!("the accept loop panicked");
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop();
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts until `stopped` is closed at its other end. An error of accept(2), such as no
/// descriptors left, makes it pause, longer each time, and never ends it.
fn accept_until(stopped: &OwnedFd, listener: &Listener, pool: &Pool) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                pause = SHORTEST_PAUSE;
                pool.admit(stream, peer);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut ready =
                    [PollFd::new(stopped, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
                if poll(&mut ready, None).is_ok() && !ready[0].revents().is_empty() {
                    return;
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if pause == SHORTEST_PAUSE {
                    log::error!("accepting connections fails, and is tried again: {error}");
                }
                if has_stopped_within(pause, stopped) {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Whether the error is the connection's own (it went away before it was accepted), and
/// says nothing of the next one.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}

fn has_stopped_within(pause: Duration, stopped: &OwnedFd) -> bool {
    let timeout = Timespec::try_from(pause).expect("a pause of at most a second fits");
    let mut ready = [PollFd::new(stopped, PollFlags::IN)];
    poll(&mut ready, Some(&timeout)).is_ok_and(|count| count > 0)
}
