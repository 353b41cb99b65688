//! The accept loop: a thread that blocks until a client connects or the server stops.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::caller::Peer;
use crate::router::Answer;

use super::connection::{Connection, Next};
use super::listener::Listener;
use super::poll::Interest;
use super::worker::Shared;

impl Shared {
    /// Takes clients in until the server stops, and then closes the listener. An error such as a
    /// lack of descriptors makes the loop pause, and never ends it.
    pub(super) fn accept_clients(&self, listener: &Listener) {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
        while !self.is_stopping.load(Ordering::Acquire) {
            match listener.accept() {
                Ok((stream, address)) => {
                    backoff.reset();
                    let access = self.router.access();
                    match address.map_or_else(|| access.identify(&stream), |it| Ok(Peer::Tcp(it))) {
                        Ok(peer) => {
                            let deadline = Instant::now() + self.limits.idle;
                            self.admit(Connection::new(stream, peer, deadline));
                        }
                        Err(error) => log::warn!("refused a client whose user is unknown: {error}"),
                    }
                    continue;
                }
                Err(error) => match error.kind() {
                    // The client is gone already.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => continue,
                    ErrorKind::WouldBlock => {
                        let armed = self.clients.arm(listener, 0, Interest::Read);
                        if armed.and_then(|()| self.clients.wait(&mut Vec::new())).is_ok() {
                            continue;
                        }
                    }
                    _ if backoff.is_fresh() => {
                        log::error!("connections cannot be accepted; trying again: {error}");
                    }
                    _ => {}
                },
            }
            // Stopping ends the pause.
            thread::park_timeout(backoff.next_pause());
        }
    }

    /// Takes a new connection in. One that is refused, for its peer or for want of a place, gets
    /// its answer before a byte of it is read.
    fn admit(&self, connection: Box<Connection>) {
        let refusal = self.router.access().admit(&connection.peer).err();
        let is_trusted = self.router.access().is_owner(&connection.peer);
        match (self.parked.admit(connection, is_trusted), refusal) {
            (Ok(connection), None) => self.parked.park(connection, Interest::Read),
            (Ok(mut connection), Some(answer)) => {
                connection.refuse(&answer);
                match connection.turn(self) {
                    Next::Park(interest) => self.parked.park(connection, interest),
                    Next::Close | Next::Block(_) => self.parked.close(connection),
                }
            }
            (Err(mut connection), _) => {
                log::warn!("refused a connection of {}: all places are taken", connection.peer);
                let full =
                    Answer::error(503, "too many connections; close some, or try again later")
                        .with_header("Retry-After", "1");
                connection.refuse(&full);
                connection.turn(self);
            }
        }
    }
}
