//! What one finds out and others wait for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

type Wake = std::sync::Arc<dyn Fn() + Send + Sync>;

/// Something that one thread finds out and others wait for; or else one of them is called
/// upon to find it out.
pub(super) struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    turn: Turn<T>,
    /// Threads that wait.
    waiting: usize,
    /// How those are woken who wait without a thread.
    to_wake: VecDeque<(u64, Wake)>,
    /// Those who have left word so far.
    joined: u64,
}

enum Turn<T> {
    Waiting,
    /// Whichever thread sees this first is to do it.
    Anybody,
    /// The one who left word under this number is to do it.
    Appointed(u64),
    Taken,
    Done(T),
}

impl<T> State<T> {
    fn is_appointed(&self, number: u64) -> bool {
        matches!(self.turn, Turn::Appointed(appointed) if appointed == number)
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        let state = State { turn: Turn::Waiting, waiting: 0, to_wake: VecDeque::new(), joined: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<T: Clone> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result, or `None`: it is the caller's turn to find it out.
    pub(super) fn wait(&self) -> Option<T> {
        let mut state = self.state();
        loop {
            match &state.turn {
                Turn::Done(result) => return Some(result.clone()),
                Turn::Anybody => {
                    state.turn = Turn::Taken;
                    return None;
                }
                Turn::Waiting | Turn::Appointed(_) | Turn::Taken => {
                    state.waiting += 1;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
            }
        }
    }

    /// Leaves word how to be woken, once: when there is a result, or it is one's turn to
    /// find it out. Gives the number to come back with.
    pub(super) fn leave_word(&self, wake: Wake) -> u64 {
        let mut state = self.state();
        state.joined += 1;
        let number = state.joined;
        state.to_wake.push_back((number, wake));
        number
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state().turn, Turn::Done(_))
    }

    /// Whether nobody waits, or has left word.
    pub(super) fn is_unwaited(&self) -> bool {
        let state = self.state();
        state.to_wake.is_empty() && state.waiting == 0
    }

    /// Takes up the appointment. `false`: there is none under this number.
    pub(super) fn accept(&self, number: u64) -> bool {
        let mut state = self.state();
        let is_appointed = state.is_appointed(number);
        if is_appointed {
            state.turn = Turn::Taken;
        }
        is_appointed
    }

    /// Takes back the word that was left. `true`: the one who left it was appointed, and
    /// somebody else is to be.
    pub(super) fn forget(&self, number: u64) -> bool {
        let mut state = self.state();
        state.to_wake.retain(|(left, _)| *left != number);
        let is_appointed = state.is_appointed(number);
        if is_appointed {
            state.turn = Turn::Taken;
        }
        is_appointed
    }

    pub(super) fn finish(&self, result: T) {
        let mut state = self.state();
        state.turn = Turn::Done(result);
        if state.waiting > 0 {
            self.changed.notify_all();
        }
        let to_wake = std::mem::take(&mut state.to_wake);
        drop(state);
        for (_, wake) in to_wake {
            wake();
        }
    }

    /// Calls upon one of those who wait; the first who left word, if there is one.
    pub(super) fn call(&self) {
        let mut state = self.state();
        if let Some((number, wake)) = state.to_wake.pop_front() {
            state.turn = Turn::Appointed(number);
            drop(state);
            wake();
        } else {
            state.turn = Turn::Anybody;
            if state.waiting > 0 {
                self.changed.notify_one();
            }
        }
    }
}
