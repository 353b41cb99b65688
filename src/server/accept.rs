//! The accept loop: a thread that blocks in accept(2) until it is stopped.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::backoff::Backoff;
use crate::peer::Peer;
use crate::router::Answer;

use super::buffer::Lent;
use super::connection::{Connection, Next, Stream};
use super::listener::Listener;
use super::worker::{Ended, Shared};

/// The running accept loop.
pub(super) struct Acceptor(Mutex<Option<Running>>);

struct Running {
    listener: Arc<Listener>,
    stop: Sender<std::convert::Infallible>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    pub(super) fn start(listener: Listener, server: &Arc<Shared>) -> io::Result<Self> {
        let (listener, server) = (Arc::new(listener), Arc::clone(server));
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new().name("accept".to_owned()).spawn({
            let listener = Arc::clone(&listener);
            move || accept_until(&stopped, &listener, &server)
        })?;
        Ok(Self(Mutex::new(Some(Running { listener, stop, thread }))))
    }

    /// Ends the loop and waits for it; the listener is closed and its file removed.
    pub(super) fn stop(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { listener, stop, thread }) = running else { return };
        drop(stop);
        listener.wake_acceptor();
        drop(listener);
        if thread.join().is_err() {
            log::error!("the accept loop panicked");
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Accepts until it is stopped. An error of accept(2), such as no descriptors left, makes it
/// pause and never ends it.
fn accept_until(stopped: &Ended, listener: &Listener, server: &Shared) {
    let mut lent = Lent::default();
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let accepted = listener.accept();
        // The connection that wakes the loop to stop it is dropped.
        if is_stopped(stopped) {
            return;
        }
        match accepted {
            Ok((stream, peer)) => {
                backoff.reset();
                admit(server, stream, peer, &mut lent);
            }
            // The client went away before it was accepted: nothing to do with the next one.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                if backoff.is_fresh() {
                    log::error!("connections cannot be accepted; trying again: {error}");
                }
                // Ends early when it is stopped.
                let _ = stopped.recv_timeout(backoff.next_pause());
            }
        }
    }
}

fn is_stopped(stopped: &Receiver<std::convert::Infallible>) -> bool {
    matches!(stopped.try_recv(), Err(TryRecvError::Disconnected))
}

/// Takes a new connection in. One that is refused, by its peer or for want of a place, gets its
/// answer before a byte of it is read.
fn admit(server: &Shared, stream: Stream, peer: Peer, lent: &mut Lent) {
    let connection = Connection::new(stream, peer, Instant::now() + server.limits.idle);
    let refusal = server.router.admit(peer).err();
    let is_trusted = matches!(peer, Peer::Process(_)) && refusal.is_none();
    match (server.parked.admit(connection, is_trusted), refusal) {
        (Ok(connection), None) => server.parked.park_new(connection),
        (Ok(mut connection), Some(answer)) => {
            connection.refuse(answer, lent);
            match connection.turn(server, lent) {
                Next::Park(_) => server.parked.park_new(connection),
                Next::Close | Next::Block(_) => server.parked.close(connection),
            }
        }
        (Err(mut connection), _) => {
            log::warn!("refused a connection of {peer}: all places are taken");
            let full = Answer::error(503, "too many connections; close some, or try again later")
                .with_header("Retry-After", "1");
            connection.refuse(full, lent);
            connection.turn(server, lent);
        }
    }
}
