//! How many workers may compute, and how many may wait for a backend.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Keeps as many workers at the poller as there are cores: more would only get in each
/// other's way. A worker that waits for a backend lends its place to a parked one, and
/// takes it back, for a moment over the number, until one of the surplus parks.
#[derive(Debug)]
pub(super) struct CorePermits {
    cores: usize,
    active: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    parked: usize,
    ended: bool,
}

impl CorePermits {
    pub(super) fn new(cores: usize) -> Self {
        Self {
            cores,
            active: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. `active` only ever changes under the lock.
    pub(super) fn enter(&self) {
        let mut state = self.state();
        while self.active.load(Ordering::Relaxed) >= self.cores && !state.ended {
            state.parked += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.parked -= 1;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the place up, to a parked worker if there is one.
    pub(super) fn leave(&self) {
        let state = self.state();
        self.active.fetch_sub(1, Ordering::Relaxed);
        if state.parked > 0 {
            self.changed.notify_one();
        }
    }

    /// Takes a place without waiting.
    pub(super) fn reenter(&self) {
        let _state = self.state();
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// Parks this worker when there are more than cores.
    pub(super) fn park_if_surplus(&self) {
        if self.active.load(Ordering::Relaxed) > self.cores {
            self.leave_without_successor();
            self.enter();
        }
    }

    fn leave_without_successor(&self) {
        let _state = self.state();
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }
}

/// Limits how many workers wait for a backend or a disk at a time, so that some are
/// always left for requests that need neither. A connection that finds the lane full is
/// queued without a thread.
#[derive(Debug)]
pub(super) struct BackendLane {
    state: Mutex<Lane>,
}

#[derive(Debug)]
struct Lane {
    free: usize,
    queue: VecDeque<u64>,
}

impl BackendLane {
    pub(super) fn new(width: usize) -> Self {
        Self { state: Mutex::new(Lane { free: width, queue: VecDeque::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, Lane> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters, or queues the connection under `token` and gives `false`.
    pub(super) fn enter_or_queue(&self, token: u64) -> bool {
        let mut lane = self.state();
        if lane.free > 0 {
            lane.free -= 1;
            return true;
        }
        lane.queue.push_back(token);
        false
    }

    /// Leaves. Gives the connection that enters in its place, if one is queued: the
    /// caller has to see that it is served.
    pub(super) fn leave(&self) -> Option<u64> {
        let mut lane = self.state();
        let next = lane.queue.pop_front();
        if next.is_none() {
            lane.free += 1;
        }
        next
    }
}
