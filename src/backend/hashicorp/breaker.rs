//! The circuit breaker: when a server that fails is left alone, and for how long.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::jitter;

/// Failures in a row after which the server is left alone.
const FAILURES_TO_OPEN: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Keeps requests from a server that does not work. After a few failures in a row it lets
/// none through for a while, then one at a time, each of which opens the way again or
/// doubles the while. So a dead server is asked about once in two seconds, however many
/// want to ask it, and one that is back is found as fast.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    pause: Duration,
    /// Nobody may ask before this time.
    closed_until: Duration,
    /// One asks, for all.
    trying: bool,
}

/// What came of a request, as far as the breaker cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server answered, be it a refusal.
    Worked,
    /// It could not be reached, did not answer in time, or cannot serve.
    Failed,
}

/// The right to send one request, whose outcome has to be told.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    breaker: &'a Breaker,
    /// It is the one request that tries for all.
    is_trial: bool,
    told: bool,
}

impl Breaker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request through, or tells how long it is to wait.
    pub(super) fn admit(&self, now: Duration) -> Result<Ticket<'_>, Duration> {
        let mut state = self.state();
        let is_trial = state.failures >= FAILURES_TO_OPEN;
        if is_trial {
            let pause = state.closed_until.saturating_sub(now);
            if !pause.is_zero() {
                return Err(pause);
            }
            if state.trying {
                return Err(FIRST_PAUSE);
            }
            state.trying = true;
        }
        Ok(Ticket { breaker: self, is_trial, told: false })
    }

    /// Whether nothing has failed since the server last worked.
    pub(super) fn is_calm(&self) -> bool {
        self.state().failures == 0
    }

    /// For a request that was sent while all was calm.
    pub(super) fn ticket(&self) -> Ticket<'_> {
        Ticket { breaker: self, is_trial: false, told: false }
    }

    /// Whether the last requests failed, so that most are not even sent.
    #[cfg(test)]
    fn is_open(&self) -> bool {
        self.state().failures >= FAILURES_TO_OPEN
    }

    fn record(&self, outcome: Outcome, is_trial: bool, now: Duration) {
        let mut state = self.state();
        if is_trial {
            state.trying = false;
        }
        match outcome {
            Outcome::Worked => *state = State { trying: state.trying, ..State::default() },
            // One of many that were under way when the first ones failed: no news.
            Outcome::Failed if state.failures >= FAILURES_TO_OPEN && !is_trial => {}
            Outcome::Failed => {
                state.failures += 1;
                if state.failures >= FAILURES_TO_OPEN {
                    state.pause = (state.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                    state.closed_until = now + jitter::around(state.pause);
                }
            }
        }
    }
}

impl Ticket<'_> {
    /// Tells what came of the request.
    pub(super) fn tell(mut self, outcome: Outcome, now: Duration) {
        self.told = true;
        self.breaker.record(outcome, self.is_trial, now);
    }
}

/// A request that was never sent, or whose thread panicked, tells nothing; but the trial is
/// free again.
impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.is_trial && !self.told {
            self.breaker.state().trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn fail(breaker: &Breaker, now: Duration) {
        breaker.admit(now).expect("let through").tell(Outcome::Failed, now);
    }

    #[test]
    fn a_few_failures_close_the_way_and_one_success_opens_it() {
        let breaker = Breaker::default();
        for _ in 0..FAILURES_TO_OPEN {
            assert!(!breaker.is_open());
            fail(&breaker, at(0));
        }
        assert!(breaker.is_open());
        breaker.admit(at(1)).expect_err("closed");
        let later = at(10_000);
        let trial = breaker.admit(later).expect("one may try");
        breaker.admit(later).expect_err("one only");
        drop(trial);
        let trial = breaker.admit(later).expect("the trial was given back");
        trial.tell(Outcome::Worked, later);
        assert!(!breaker.is_open());
        assert_eq!((breaker.admit(later).is_ok(), breaker.admit(later).is_ok()), (true, true));
    }

    #[test]
    fn failures_between_successes_do_not_add_up() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            fail(&breaker, at(0));
            fail(&breaker, at(0));
            breaker.admit(at(0)).expect("open").tell(Outcome::Worked, at(0));
        }
        assert!(!breaker.is_open());
    }
}
