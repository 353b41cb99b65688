//! How many workers may compute, and how many may wait for a backend.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Keeps as many workers computing as there are places: more than there are cores for would
/// only get in each other's way. A worker that waits for a backend gives its place up, and
/// takes it back, for a moment over the number, until one of the surplus parks.
///
/// A place that is given up is lent to a parked worker only when nobody waits at the
/// poller: as long as somebody does, the next event is taken at once, and who takes it
/// sees to a successor. So a single client's calls, which wait one after the other, wake
/// nobody else.
#[derive(Debug)]
pub(super) struct CorePermits {
    /// How many may compute at a time.
    places: usize,
    active: AtomicUsize,
    /// Those of the active ones that wait at the poller.
    polling: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    parked: usize,
    ended: bool,
}

impl CorePermits {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places,
            active: AtomicUsize::new(0),
            polling: AtomicUsize::new(0),
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
        while self.active.load(Ordering::SeqCst) >= self.places && !state.ended {
            state.parked += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.parked -= 1;
        }
        self.active.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives the place up, to a parked worker if there is one and nobody polls.
    pub(super) fn leave(&self) {
        let state = self.state();
        self.active.fetch_sub(1, Ordering::SeqCst);
        // Either this sees who polls, or who stops polling sees the place that is free: of
        // the two changes, in their one order, the later one's maker looks last.
        if state.parked > 0 && self.polling.load(Ordering::SeqCst) == 0 {
            self.changed.notify_one();
        }
    }

    /// Takes a place without waiting.
    pub(super) fn reenter(&self) {
        let _state = self.state();
        self.active.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether there are too many, so that this worker parks before it polls.
    pub(super) fn is_exceeded(&self) -> bool {
        self.active.load(Ordering::SeqCst) > self.places
    }

    /// Runs `poll`, which waits for events. Parks this worker first when there are too many.
    pub(super) fn while_polling<T>(&self, poll: impl FnOnce() -> T) -> T {
        if self.is_exceeded() {
            self.leave_without_successor();
            self.enter();
        }
        self.polling.fetch_add(1, Ordering::SeqCst);
        let polled = poll();
        let was_last = self.polling.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.active.load(Ordering::SeqCst) < self.places {
            let state = self.state();
            if state.parked > 0 {
                self.changed.notify_one();
            }
        }
        polled
    }

    /// Whether a worker waits at the poller, or is about to: then it has to be told of
    /// what the poller does not know of.
    pub(super) fn is_polled(&self) -> bool {
        self.polling.load(Ordering::SeqCst) > 0
    }

    fn leave_without_successor(&self) {
        let _state = self.state();
        self.active.fetch_sub(1, Ordering::SeqCst);
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
