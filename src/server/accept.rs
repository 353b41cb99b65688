//! The accept loop: a thread that blocks until a client connects or the server stops.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::peer::Peer;
use crate::router::Answer;

use super::buffer::Lent;
use super::connection::{Connection, Next};
use super::listener::{Accepted, Listener, Stop};
use super::worker::Shared;

/// The running accept loop.
pub(super) struct Acceptor(Mutex<Option<(Stop, JoinHandle<()>)>>);

impl Acceptor {
    pub(super) fn start(listener: Listener, server: &Arc<Shared>) -> io::Result<Self> {
        let (server, stop) = (Arc::clone(server), listener.stop()?);
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || accept_until_stopped(&listener, &server))?;
        Ok(Self(Mutex::new(Some((stop, thread)))))
    }

    /// Ends the loop and waits for it; the listener is closed and its file removed.
    pub(super) fn stop(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((stop, thread)) = running else { return };
        stop.now();
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

/// An error of accept(2), such as no descriptors left, makes the loop pause and never ends it.
fn accept_until_stopped(listener: &Listener, server: &Shared) {
    let mut lent = Lent::default();
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        match listener.accept() {
            Ok(Accepted::Client(stream, peer)) => {
                backoff.reset();
                let deadline = Instant::now() + server.limits.idle;
                admit(server, Connection::new(stream, peer, deadline), peer, &mut lent);
            }
            Ok(Accepted::Nobody) => {}
            Ok(Accepted::Stopped) => return,
            Err(error) => {
                if backoff.is_fresh() {
                    log::error!("connections cannot be accepted; trying again: {error}");
                }
                if listener.is_stopped_within(backoff.next_pause()) {
                    return;
                }
            }
        }
    }
}

/// Takes a new connection in. One that is refused, for its peer or for want of a place, gets its
/// answer before a byte of it is read.
fn admit(server: &Shared, connection: Box<Connection>, peer: Peer, lent: &mut Lent) {
    let refusal = server.router.admit(peer).err();
    let is_trusted = refusal.is_none() && matches!(peer, Peer::Process(_));
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
