//! The connection table: a slot for each connection, and whose turn it is at it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::connection::Connection;

/// Milliseconds since the server started. [`NEVER`] is after every deadline.
pub(super) type Millis = u64;
pub(super) const NEVER: Millis = Millis::MAX;

/// All connections, each in a slot of its own for as long as it lives.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    free: Mutex<Free>,
    /// Told when a connection ends and that is awaited.
    ended: Condvar,
    serial: AtomicU64,
}

/// The slots without a connection.
#[derive(Debug)]
struct Free {
    slots: Vec<usize>,
    /// Somebody waits until all slots are free.
    is_awaited: bool,
}

/// A place for a connection. Its mutex is held by the worker whose turn it is; an event
/// that comes meanwhile is left in `waiting` for that worker to see.
#[derive(Debug)]
pub(super) struct Slot {
    connection: Mutex<Option<Connection>>,
    waiting: AtomicBool,
    /// The backend lane has been entered on the connection's behalf.
    lane_entered: AtomicBool,
    /// The client has closed its side.
    hung_up: AtomicBool,
    /// [`NEVER`] while there is no connection.
    deadline: AtomicU64,
}

impl Table {
    pub(super) fn new(connections: usize) -> Self {
        Self {
            slots: (0..connections).map(|_| Slot::empty()).collect(),
            free: Mutex::new(Free { slots: (0..connections).rev().collect(), is_awaited: false }),
            ended: Condvar::new(),
            serial: AtomicU64::new(0),
        }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free slot, taken, and the token for the connection to be put there. Tokens are
    /// positive as 64-bit signed numbers, and none is used twice in 2^31 connections.
    pub(super) fn take_slot(&self) -> Option<u64> {
        let index = self.free().slots.pop()?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff;
        Some((serial << 32) | u64::try_from(index).expect("an index fits in 64 bits"))
    }

    /// Puts a connection into the slot of its token. It must then get a first turn, which
    /// is also the answer to whoever wakes the slot just now, and would else be missed.
    pub(super) fn place(&self, token: u64, connection: Connection, deadline: Millis) {
        let slot = self.slot(token);
        slot.set_deadline(deadline);
        slot.hung_up.store(false, Ordering::Release);
        *slot.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }

    /// Gives back a slot whose connection is gone.
    pub(super) fn release_slot(&self, token: u64) {
        self.slot(token).set_deadline(NEVER);
        let mut free = self.free();
        free.slots.push(index(token));
        if free.is_awaited {
            drop(free);
            self.ended.notify_all();
        }
    }

    pub(super) fn slot(&self, token: u64) -> &Slot {
        &self.slots[index(token)]
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Waits until there are no connections. Says whether that came before the deadline.
    pub(super) fn wait_until_empty(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut free = self.free();
        free.is_awaited = true;
        while free.slots.len() < self.slots.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            free = self.ended.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

fn index(token: u64) -> usize {
    usize::try_from(token & 0xffff_ffff).expect("made from an index")
}

impl Slot {
    fn empty() -> Self {
        Self {
            connection: Mutex::new(None),
            waiting: AtomicBool::new(false),
            lane_entered: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            deadline: AtomicU64::new(NEVER),
        }
    }

    /// Runs `turn` on the connection: now, or by the worker who is at it, before it goes.
    pub(super) fn wake(&self, mut turn: impl FnMut(&mut Option<Connection>)) {
        self.waiting.store(true, Ordering::Release);
        // Whoever holds the lock looks at `waiting` after letting go, so that between
        // that look and this try none is lost. The fences, here and after each letting
        // go, keep the two steps of either side in their order on every processor.
        fence(Ordering::SeqCst);
        while self.waiting.load(Ordering::Acquire) {
            let mut connection = match self.connection.try_lock() {
                Ok(connection) => connection,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            while self.waiting.swap(false, Ordering::AcqRel) {
                turn(&mut connection);
            }
            drop(connection);
            fence(Ordering::SeqCst);
        }
    }

    /// Wakes the connection with the lane entered for it.
    pub(super) fn set_lane_entered(&self) {
        self.lane_entered.store(true, Ordering::Release);
    }

    pub(super) fn take_lane_entered(&self) -> bool {
        self.lane_entered.load(Ordering::Acquire) && self.lane_entered.swap(false, Ordering::AcqRel)
    }

    pub(super) fn set_hung_up(&self) {
        self.hung_up.store(true, Ordering::Release);
    }

    /// Reads before it writes: it is hardly ever set.
    pub(super) fn take_hung_up(&self) -> bool {
        self.hung_up.load(Ordering::Acquire) && self.hung_up.swap(false, Ordering::AcqRel)
    }

    pub(super) fn deadline(&self) -> Millis {
        self.deadline.load(Ordering::Relaxed)
    }

    pub(super) fn set_deadline(&self, deadline: Millis) {
        self.deadline.store(deadline, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::hint::spin_loop;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    /// Two threads that go on together, again and again.
    #[derive(Default)]
    struct Meeting(AtomicUsize);

    impl Meeting {
        fn meet(&self, time: usize) {
            self.0.fetch_add(1, Ordering::SeqCst);
            let mut looks = 0_u32;
            while self.0.load(Ordering::SeqCst) < 2 * time {
                looks += 1;
                // At the very same time, if they are on two cores.
                if looks.is_multiple_of(1000) { thread::yield_now() } else { spin_loop() }
            }
        }
    }

    #[test]
    fn of_two_wakes_at_once_none_is_left_without_a_turn() {
        const ROUNDS: usize = 100_000;
        let (slot, meeting) = (Slot::empty(), Meeting::default());
        let (events, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let wake = || {
            for round in 0..ROUNDS {
                meeting.meet(2 * round + 1);
                events.fetch_add(1, Ordering::Relaxed);
                let mut turn = |_: &mut Option<Connection>| {
                    seen.store(events.load(Ordering::Relaxed), Ordering::Relaxed);
                };
                slot.wake(&mut turn);
                meeting.meet(2 * round + 2);
                assert_eq!(seen.load(Ordering::Relaxed), 2 * (round + 1));
            }
        };
        thread::scope(|scope| {
            scope.spawn(wake);
            scope.spawn(wake);
        });
    }
}
