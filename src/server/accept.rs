//! Accepting: the poller tells one I/O worker at a time that clients wait.

use std::io::{self, ErrorKind};
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use crate::peer::Peer;
use crate::router::Answer;

use super::buffer::Lent;
use super::connection::{Connection, Next};
use super::listener::Listener;
use super::poll::{Interest, LISTENER};
use super::worker::Shared;

/// How many clients are taken in at a time, so that those inside get their turn.
const CLIENTS_PER_TURN: usize = 16;

impl Shared {
    pub(super) fn start_accepting(&self) -> io::Result<()> {
        let add = |listener| self.parked.poller.add(listener, LISTENER, Interest::Read);
        self.listener().as_ref().map_or(Ok(()), add)
    }

    /// Takes in clients that wait, and arms the listener again.
    pub(super) fn accept(&self, lent: &mut Lent) {
        let mut place = self.listener();
        let Some(listener) = &mut *place else { return };
        for _ in 0..CLIENTS_PER_TURN {
            match listener.accept() {
                Ok((stream, peer)) => {
                    listener.is_failing = false;
                    let deadline = Instant::now() + self.limits.idle;
                    self.admit(Connection::new(stream, peer, deadline), peer, lent);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    // The client is gone already.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        if !std::mem::replace(&mut listener.is_failing, true) {
                            log::error!("connections cannot be accepted; trying again: {error}");
                        }
                        return;
                    }
                },
            }
        }
        self.arm(listener);
    }

    /// Tries again after accept(2) has failed.
    pub(super) fn resume_accepting(&self) {
        if let Some(listener) = self.listener().as_ref().filter(|listener| listener.is_failing) {
            self.arm(listener);
        }
    }

    fn arm(&self, listener: &Listener) {
        if let Err(error) = self.parked.poller.rearm(listener, LISTENER, Interest::Read) {
            log::error!("the listening socket cannot be watched: {error}");
        }
    }

    /// Closes the listener. Its socket's file is gone when this returns. An inherited socket stays
    /// open with its owner, so that it must be removed from the poller.
    pub(super) fn stop_accepting(&self) {
        if let Some(listener) = self.listener().take() {
            self.parked.poller.remove(&listener);
        }
    }

    fn listener(&self) -> MutexGuard<'_, Option<Listener>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new connection in. One that is refused, for its peer or for want of a place, gets
    /// its answer before a byte of it is read.
    fn admit(&self, connection: Box<Connection>, peer: Peer, lent: &mut Lent) {
        let refusal = self.router.admit(peer).err();
        let is_trusted = refusal.is_none() && matches!(peer, Peer::Process(_));
        match (self.parked.admit(connection, is_trusted), refusal) {
            (Ok(connection), None) => self.parked.park_new(connection),
            (Ok(mut connection), Some(answer)) => {
                connection.refuse(answer, lent);
                match connection.turn(self, lent) {
                    Next::Park(_) => self.parked.park_new(connection),
                    Next::Close | Next::Block(_) => self.parked.close(connection),
                }
            }
            (Err(mut connection), _) => {
                log::warn!("refused a connection of {peer}: all places are taken");
                let full =
                    Answer::error(503, "too many connections; close some, or try again later")
                        .with_header("Retry-After", "1");
                connection.refuse(full, lent);
                connection.turn(self, lent);
            }
        }
    }
}
