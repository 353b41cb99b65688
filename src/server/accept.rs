//! The accept loop: a thread that blocks in accept(2) until it is stopped.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::listener::Listener;
use super::pool::Pool;

/// The running accept loop.
pub(super) struct Acceptor {
    listener: Mutex<Option<Arc<Listener>>>,
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Whether the loop is to end.
#[derive(Default)]
struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn set(&self) {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_set_within(&self, pause: Duration) -> bool {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(is_set, pause, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Acceptor {
    pub(super) fn start(listener: Listener, pool: &Arc<Pool>) -> io::Result<Self> {
        let (listener, pool, stop) =
            (Arc::new(listener), Arc::clone(pool), Arc::new(Stop::default()));
        let thread = thread::Builder::new().name("accept".to_owned()).spawn({
            let (listener, stop) = (Arc::clone(&listener), Arc::clone(&stop));
            move || accept_until(&stop, &listener, &pool)
        })?;
        Ok(Self { listener: Mutex::new(Some(listener)), stop, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the loop and waits for it; the listener is closed and its file removed.
    pub(super) fn stop(&self) {
        self.stop.set();
        if let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            listener.wake_acceptor();
        }
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

/// Accepts until it is to stop. An error of accept(2), such as no descriptors left, makes
/// it pause, longer each time, and never ends it.
fn accept_until(stop: &Stop, listener: &Listener, pool: &Pool) {
    let mut pause = SHORTEST_PAUSE;
    while !stop.is_set() {
        match listener.accept() {
            // The connection that wakes the loop to stop is let go of.
            Ok(_) if stop.is_set() => return,
            Ok((stream, peer)) => {
                pause = SHORTEST_PAUSE;
                pool.admit(stream, peer);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) if stop.is_set() => return,
            Err(error) => {
                if pause == SHORTEST_PAUSE {
                    log::error!("accepting connections fails, and is tried again: {error}");
                }
                if stop.is_set_within(pause) {
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
