//! The parking lot: every connection that waits for the kernel.

#![allow(clippy::vec_box, reason = "a connection stays where it is when it changes hands")]

use std::io;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::connection::Connection;
use super::poll::{Interest, Poller};

/// Connections that wait for the kernel: slots behind one mutex, the slot's number the
/// poller's token. A connection has its slot from [`admit`](Self::admit) until
/// [`close`](Self::close), also while a worker holds it.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) poller: Poller,
    lot: Mutex<Lot>,
    /// Set under the lock, read without it.
    is_draining: AtomicBool,
    changed: Condvar,
}

#[derive(Debug)]
struct Lot {
    slots: Vec<Slot>,
    free: Vec<u32>,
    most: usize,
}

#[derive(Debug, Default)]
struct Slot {
    /// Counts the connections that have had the slot. It is the upper half of the token, so
    /// that an event for an earlier one finds nothing.
    generation: u32,
    connection: Option<Box<Connection>>,
}

/// Places that are kept for root and the service's own user.
const RESERVED: usize = 16;

impl Lot {
    fn taken(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn slot(&mut self, token: u64) -> Option<&mut Slot> {
        let (generation, index) = split(token);
        self.slots.get_mut(index as usize).filter(|slot| slot.generation == generation)
    }

    fn release(&mut self, token: u64) {
        let (_, index) = split(token);
        let slot = &mut self.slots[index as usize];
        // kqueue's tokens are not negative, and END is none of a connection's.
        slot.generation = (slot.generation + 1) & 0x7fff_ffff;
        self.free.push(index);
    }

    fn take_where(&mut self, is_taken: impl Fn(&Connection) -> bool) -> Vec<Box<Connection>> {
        let parked = self.slots.iter_mut().map(|slot| &mut slot.connection);
        parked.filter_map(|place| place.take_if(|connection| is_taken(connection))).collect()
    }

    /// Takes out the connection that has been idle longest.
    fn take_longest_idle(&mut self) -> Option<Box<Connection>> {
        let parked = self.slots.iter_mut().map(|slot| &mut slot.connection);
        let idle = parked.filter(|place| place.as_ref().is_some_and(|it| it.is_idle()));
        idle.min_by_key(|place| place.as_ref().map(|it| it.deadline))?.take()
    }
}

impl Parked {
    /// Room for `most` connections.
    pub(super) fn new(most: usize) -> io::Result<Self> {
        let lot = Mutex::new(Lot { slots: Vec::new(), free: Vec::new(), most });
        let (is_draining, changed) = (AtomicBool::new(false), Condvar::new());
        Ok(Self { poller: Poller::new()?, lot, is_draining, changed })
    }

    fn lot(&self) -> MutexGuard<'_, Lot> {
        self.lot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a new connection its place. When all are taken, the connection that has been idle
    /// longest is closed to make room; when none is idle, the new one is handed back.
    pub(super) fn admit(
        &self,
        mut connection: Box<Connection>,
        is_trusted: bool,
    ) -> Result<Box<Connection>, Box<Connection>> {
        let mut lot = self.lot();
        let reserved = if is_trusted { 0 } else { RESERVED.min(lot.most / 2) };
        if lot.taken() >= lot.most - reserved {
            let Some(longest_idle) = lot.take_longest_idle() else { return Err(connection) };
            self.remove(&mut lot, longest_idle);
        }
        let index = lot.free.pop().unwrap_or_else(|| {
            lot.slots.push(Slot::default());
            u32::try_from(lot.slots.len() - 1).expect("there are fewer than 2^32 descriptors")
        });
        let generation = lot.slots[index as usize].generation;
        connection.token = u64::from(generation) << 32 | u64::from(index);
        Ok(connection)
    }

    /// Puts a connection back, or a new one in its place, and arms it.
    pub(super) fn park(&self, connection: Box<Connection>, interest: Interest) {
        // Under the lock, so that whoever gets the event finds the connection.
        let mut lot = self.lot();
        if !(self.is_draining() && connection.is_idle()) {
            match self.poller.arm(&connection.stream, connection.token, interest) {
                Ok(()) => {
                    let (_, index) = split(connection.token);
                    lot.slots[index as usize].connection = Some(connection);
                    return;
                }
                Err(error) => {
                    log::error!("a connection could not be watched, and is closed: {error}");
                }
            }
        }
        drop(lot);
        self.close(connection);
    }

    /// Hands out the connection of an event, unless it has been taken or closed meanwhile.
    pub(super) fn take(&self, token: u64) -> Option<Box<Connection>> {
        self.lot().slot(token)?.connection.take()
    }

    /// Closes a connection and frees its place.
    pub(super) fn close(&self, connection: Box<Connection>) {
        let token = connection.token;
        // First the descriptor, then the place.
        drop(connection);
        self.lot().release(token);
        self.changed.notify_all();
    }

    /// Closes a connection that was armed.
    fn remove(&self, lot: &mut Lot, connection: Box<Connection>) {
        self.poller.remove(&connection.stream);
        let token = connection.token;
        drop(connection);
        lot.release(token);
    }

    /// Takes out the connections whose deadline has passed.
    pub(super) fn take_overdue(&self, now: Instant) -> Vec<Box<Connection>> {
        self.lot().take_where(|connection| connection.deadline <= now)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Closes the idle connections. From now on those that become idle are closed as well.
    pub(super) fn drain(&self) {
        let mut lot = self.lot();
        self.is_draining.store(true, Ordering::Release);
        for connection in lot.take_where(Connection::is_idle) {
            self.remove(&mut lot, connection);
        }
        self.changed.notify_all();
    }

    /// Waits until [`drain`](Self::drain) was called and every connection is closed, for at
    /// most `patience` after it. Says whether they are.
    pub(super) fn wait_until_drained(&self, patience: Duration) -> bool {
        let lot = self.changed.wait_while(self.lot(), |_| !self.is_draining());
        let lot = lot.unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(lot, patience, |lot| lot.taken() > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.taken() == 0
    }
}

/// The generation and the slot's number.
#[allow(clippy::cast_possible_truncation, reason = "each is half of the token")]
fn split(token: u64) -> (u32, u32) {
    ((token >> 32) as u32, token as u32)
}
