//! Single-flight: of the calls that do the same, one runs, and the next is made for all who
//! wait behind it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Calls of which one batch runs at a time. `I` is what a caller wants, `O` what it gets.
pub(super) struct SingleFlight<I, O>(Mutex<State<I, O>>);

struct State<I, O> {
    runs: bool,
    waiting: VecDeque<Arc<Call<I, O>>>,
}

/// One caller's part in a batch.
pub(super) struct Call<I, O> {
    pub(super) input: I,
    progress: Mutex<Progress<O>>,
    changed: Condvar,
}

enum Progress<O> {
    Waiting,
    /// This caller runs the next batch.
    Leads,
    Done(O),
}

impl<I, O> Default for SingleFlight<I, O> {
    fn default() -> Self {
        Self(Mutex::new(State { runs: false, waiting: VecDeque::new() }))
    }
}

impl<I, O> SingleFlight<I, O> {
    fn state(&self) -> MutexGuard<'_, State<I, O>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the outcome of this call, which some caller runs as part of a batch.
    ///
    /// If that is this caller: `batch_size` tells how many of those who wait go together (at
    /// least 1, this one being the first), and `run` makes the call for them and returns
    /// their outcomes in the same order. Should it panic, the others get `panicked`.
    pub(super) fn call(
        &self,
        input: I,
        batch_size: impl FnOnce(&VecDeque<Arc<Call<I, O>>>) -> usize,
        run: impl FnOnce(&[Arc<Call<I, O>>]) -> Vec<O>,
        panicked: fn() -> O,
    ) -> O {
        let progress = Mutex::new(Progress::Waiting);
        let call = Arc::new(Call { input, progress, changed: Condvar::new() });
        let mut state = self.state();
        state.waiting.push_back(Arc::clone(&call));
        if state.runs {
            drop(state);
            if let Some(outcome) = call.wait() {
                return outcome;
            }
            state = self.state();
        } else {
            state.runs = true;
        }
        let size = batch_size(&state.waiting).clamp(1, state.waiting.len());
        let batch = state.waiting.drain(..size).collect();
        drop(state);
        let mut running = Running { flight: self, batch, outcomes: Vec::new(), panicked };
        running.outcomes = run(&running.batch);
        drop(running);
        call.wait().unwrap_or_else(panicked)
    }
}

impl<I, O> Call<I, O> {
    fn progress(&self) -> MutexGuard<'_, Progress<O>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the outcome; `None` tells the caller to run the next batch.
    fn wait(&self) -> Option<O> {
        let waits = |progress: &mut Progress<O>| matches!(progress, Progress::Waiting);
        let mut progress =
            self.changed.wait_while(self.progress(), waits).unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *progress, Progress::Waiting) {
            Progress::Done(outcome) => Some(outcome),
            _ => None,
        }
    }

    fn advance(&self, progress: Progress<O>) {
        *self.progress() = progress;
        self.changed.notify_one();
    }
}

/// The batch that runs. When it ends, even by a panic, the next one starts and everybody in
/// this one is answered.
struct Running<'a, I, O> {
    flight: &'a SingleFlight<I, O>,
    batch: Vec<Arc<Call<I, O>>>,
    outcomes: Vec<O>,
    panicked: fn() -> O,
}

impl<I, O> Drop for Running<'_, I, O> {
    fn drop(&mut self) {
        let mut state = self.flight.state();
        match state.waiting.front() {
            Some(next) => next.advance(Progress::Leads),
            None => state.runs = false,
        }
        drop(state);
        let mut outcomes = std::mem::take(&mut self.outcomes).into_iter();
        for call in &self.batch {
            call.advance(Progress::Done(outcomes.next().unwrap_or_else(self.panicked)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    use super::*;

    type Flight = SingleFlight<u32, Vec<u32>>;

    /// Runs calls together, and returns the inputs of the batch to each of them.
    fn together(flight: &Flight, input: u32, before: impl FnOnce()) -> Vec<u32> {
        let run = |batch: &[Arc<Call<u32, Vec<u32>>>]| {
            before();
            let inputs: Vec<u32> = batch.iter().map(|call| call.input).collect();
            vec![inputs; batch.len()]
        };
        flight.call(input, VecDeque::len, run, Vec::new)
    }

    fn wait_for_callers(flight: &Flight, count: usize) {
        let start = std::time::Instant::now();
        while flight.state().waiting.len() < count {
            assert!(start.elapsed().as_secs() < 60, "they do not come");
            thread::yield_now();
        }
    }

    #[test]
    fn callers_behind_a_running_call_share_the_next() {
        let flight = &Flight::default();
        let mut outcomes = thread::scope(|scope| {
            let first = || wait_for_callers(flight, 3);
            let mut callers = vec![scope.spawn(move || together(flight, 0, first))];
            for input in 1..4 {
                while !flight.state().runs {
                    thread::yield_now();
                }
                callers.push(scope.spawn(move || together(flight, input, || ())));
            }
            callers.into_iter().map(|caller| caller.join().expect("no panic")).collect::<Vec<_>>()
        });
        assert_eq!(outcomes.remove(0), [0], "they came after it had begun");
        for mut outcome in outcomes {
            outcome.sort_unstable();
            assert_eq!(outcome, [1, 2, 3]);
        }
    }

    #[test]
    fn a_panic_harms_its_own_batch_only() {
        let flight = Flight::default();
        let failing = AssertUnwindSafe(|| together(&flight, 0, || panic!("on purpose")));
        catch_unwind(failing).expect_err("the caller that ran it panics");
        assert_eq!(together(&flight, 1, || ()), [1]);
    }
}
