//! Single-flight: while a call runs, later callers wait, and the next call is made for all of
//! them.

use std::collections::{HashMap, VecDeque};
use std::iter::repeat_with;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sync::{Condvar, Mutex, PoisonError};

use super::lock;
use super::message::{Error, Unavailable};

const PANICKED: &str = "a request to Vault failed; see the service's log";

/// Runs one batch of calls at a time. `I` is a caller's input, `O` its outcome.
pub(super) struct SingleFlight<I, O> {
    state: Mutex<State<I, O>>,
    /// A batch has ended.
    ended: Condvar,
}

struct State<I, O> {
    runs: bool,
    /// The number of callers so far, and so the next one's ticket.
    callers: u64,
    /// The callers that no batch has taken yet, in their order.
    waiting: VecDeque<(u64, I)>,
    /// The outcomes that their callers have not fetched yet.
    outcomes: HashMap<u64, Result<O, Error>>,
}

impl<I, O> Default for SingleFlight<I, O> {
    fn default() -> Self {
        let (waiting, outcomes) = (VecDeque::new(), HashMap::new());
        let state = Mutex::new(State { runs: false, callers: 0, waiting, outcomes });
        Self { state, ended: Condvar::new() }
    }
}

impl<I, O> SingleFlight<I, O> {
    /// Returns the outcome of this call, which this caller or another one runs in a batch.
    ///
    /// The caller that runs a batch uses `batch_size` to decide how many of those that wait go
    /// together, and `run` to make the call for them. `run` returns their outcomes in the same
    /// order. If it panics, all callers of its batch get an error.
    pub(super) fn call(
        &self,
        input: I,
        batch_size: impl Fn(&VecDeque<(u64, I)>) -> usize,
        run: impl Fn(&[I]) -> Vec<Result<O, Error>>,
    ) -> Result<O, Error> {
        let mut state = lock(&self.state);
        let ticket = state.callers;
        state.callers += 1;
        state.waiting.push_back((ticket, input));
        loop {
            let must_wait =
                |state: &mut State<I, O>| state.runs && !state.outcomes.contains_key(&ticket);
            state = self.ended.wait_while(state, must_wait).unwrap_or_else(PoisonError::into_inner);
            if let Some(outcome) = state.outcomes.remove(&ticket) {
                return outcome;
            }
            // This caller still waits in the queue, so the queue is not empty.
            let size = batch_size(&state.waiting).max(1);
            let (tickets, batch): (Vec<u64>, Vec<I>) = state.waiting.drain(..size).unzip();
            state.runs = true;
            drop(state);
            let outcomes = catch_unwind(AssertUnwindSafe(|| run(&batch))).unwrap_or_default();
            let failures = repeat_with(|| Err(Unavailable::new(PANICKED).into()));
            let outcomes = outcomes.into_iter().chain(failures);
            state = lock(&self.state);
            state.runs = false;
            state.outcomes.extend(tickets.into_iter().zip(outcomes));
            self.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    type Flight = SingleFlight<u32, Vec<u32>>;

    /// Runs calls together, and returns the inputs of the batch to each of them.
    fn together(flight: &Flight, input: u32, before: impl Fn()) -> Result<Vec<u32>, Error> {
        let run = |batch: &[u32]| {
            before();
            vec![Ok(batch.to_vec()); batch.len()]
        };
        flight.call(input, VecDeque::len, run)
    }

    fn wait_for_callers(flight: &Flight, count: usize) {
        let start = std::time::Instant::now();
        while lock(&flight.state).waiting.len() < count {
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
                while !lock(&flight.state).runs {
                    thread::yield_now();
                }
                callers.push(scope.spawn(move || together(flight, input, || ())));
            }
            let outcomes = callers.into_iter().map(|caller| caller.join().expect("no panic"));
            outcomes.collect::<Result<Vec<_>, _>>().expect("no error")
        });
        assert_eq!(outcomes.remove(0), [0], "they came after it had begun");
        for mut outcome in outcomes {
            outcome.sort_unstable();
            assert_eq!(outcome, [1, 2, 3]);
        }
        assert!(lock(&flight.state).outcomes.is_empty(), "each is fetched");
    }

    #[test]
    fn a_panic_harms_its_own_batch_only() {
        let flight = Flight::default();
        together(&flight, 0, || panic!("on purpose")).expect_err("its call has no outcome");
        assert_eq!(together(&flight, 1, || ()).expect("no error"), [1]);
    }
}
