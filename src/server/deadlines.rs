//! When the thread that looks after deadlines looks next.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::table::{Millis, NEVER};

/// It sleeps until the next deadline that it has seen, or for the shortest of the limits:
/// what is set after its look is no sooner than that, mostly. Who sets a deadline that may
/// be sooner says so.
#[derive(Debug)]
pub(super) struct Deadlines {
    next_look: AtomicU64,
    sooner: Mutex<Millis>,
    changed: Condvar,
}

impl Deadlines {
    pub(super) fn new() -> Self {
        Self {
            next_look: AtomicU64::new(NEVER),
            sooner: Mutex::new(NEVER),
            changed: Condvar::new(),
        }
    }

    fn sooner(&self) -> MutexGuard<'_, Millis> {
        self.sooner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees that somebody looks at this deadline in time. It has been set before.
    pub(super) fn announce(&self, deadline: Millis) {
        // Either the look that is under way sees the deadline, or this sees that there is one.
        fence(Ordering::SeqCst);
        if deadline < self.next_look.load(Ordering::Relaxed) {
            let mut sooner = self.sooner();
            *sooner = deadline.min(*sooner);
            self.changed.notify_all();
        }
    }

    /// A look at all deadlines begins.
    pub(super) fn look(&self) {
        self.next_look.store(NEVER, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeps from `now` until `next`, or a sooner deadline that is announced, unless
    /// `is_over` by then.
    pub(super) fn sleep(&self, now: Millis, next: Millis, is_over: impl Fn() -> bool) {
        let mut sooner = self.sooner();
        let next = next.min(std::mem::replace(&mut *sooner, NEVER));
        self.next_look.store(next, Ordering::Relaxed);
        let pause = Duration::from_millis(next.saturating_sub(now).max(1));
        let asleep = |sooner: &mut Millis| *sooner >= next && !is_over();
        drop(self.changed.wait_timeout_while(sooner, pause, asleep));
    }

    /// Ends the sleep, for it may be over.
    pub(super) fn wake(&self) {
        let _sooner = self.sooner();
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_sooner_deadline_ends_the_sleep_whenever_it_is_announced() {
        let deadlines = Deadlines::new();
        let (woke, wakings) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 {
                    deadlines.look();
                    deadlines.sleep(0, 3_600_000, || false);
                    woke.send(()).expect("the test waits");
                }
            });
            for _ in 0..2 {
                deadlines.announce(1000);
                wakings.recv_timeout(Duration::from_mins(1)).expect("it wakes");
            }
        });
    }
}
