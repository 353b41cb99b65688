//! The circuit breaker: it keeps requests from a server that fails.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::backoff::{Backoff, jitter};

/// The failures in a row that open the breaker.
const FAILURES_TO_OPEN: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A circuit breaker. After a few failures in a row it is open: it refuses all requests for
/// a pause, then admits one trial at a time. A trial that works closes it, one that fails
/// doubles the pause. So a dead server gets about one request in two seconds, however many
/// callers there are, and its return is noticed as fast.
#[derive(Debug)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug)]
struct State {
    failures: u32,
    backoff: Backoff,
    refuses_until: Duration,
    trial_runs: bool,
}

/// The permission for one request. Its outcome must be reported.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    breaker: &'a Breaker,
    is_trial: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self(Mutex::new(State {
            failures: 0,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            refuses_until: Duration::ZERO,
            trial_runs: false,
        }))
    }
}

impl Breaker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a request, or returns how long it must wait.
    pub(super) fn admit(&self, now: Duration) -> Result<Ticket<'_>, Duration> {
        let mut state = self.state();
        let is_trial = state.failures >= FAILURES_TO_OPEN;
        if is_trial {
            let pause = state.refuses_until.saturating_sub(now);
            if !pause.is_zero() {
                return Err(pause);
            }
            if state.trial_runs {
                return Err(FIRST_PAUSE);
            }
            state.trial_runs = true;
        }
        Ok(Ticket { breaker: self, is_trial })
    }
}

impl Ticket<'_> {
    /// Reports whether the server worked; a server that refuses a request works.
    pub(super) fn report(self, worked: bool, now: Duration) {
        let mut state = self.breaker.state();
        if worked {
            state.failures = 0;
            state.backoff.reset();
        } else if state.failures < FAILURES_TO_OPEN || self.is_trial {
            state.failures = state.failures.saturating_add(1);
            if state.failures >= FAILURES_TO_OPEN {
                state.refuses_until = now + jitter(state.backoff.next_pause());
            }
        } // Else it had started before the breaker opened, and is no news.
    }
}

/// Makes room for the next trial, also after a request that was never sent or a panic.
impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.breaker.state().trial_runs = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn is_open(breaker: &Breaker) -> bool {
        breaker.state().failures >= FAILURES_TO_OPEN
    }

    fn fail(breaker: &Breaker, now: Duration) {
        breaker.admit(now).expect("admitted").report(false, now);
    }

    #[test]
    fn a_few_failures_open_it_and_one_success_closes_it() {
        let breaker = Breaker::default();
        for _ in 0..FAILURES_TO_OPEN {
            assert!(!is_open(&breaker));
            fail(&breaker, at(0));
        }
        assert!(is_open(&breaker));
        breaker.admit(at(1)).expect_err("open");
        let later = at(10_000);
        let trial = breaker.admit(later).expect("a trial");
        breaker.admit(later).expect_err("one trial at a time");
        drop(trial);
        let trial = breaker.admit(later).expect("the first trial was given up");
        trial.report(true, later);
        assert!(!is_open(&breaker));
        assert_eq!((breaker.admit(later).is_ok(), breaker.admit(later).is_ok()), (true, true));
    }

    #[test]
    fn failures_between_successes_do_not_add_up() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            fail(&breaker, at(0));
            fail(&breaker, at(0));
            breaker.admit(at(0)).expect("closed").report(true, at(0));
        }
        assert!(!is_open(&breaker));
    }

    /// A minute of outage in simulated time: three requests in each millisecond, and the
    /// renewal of the token with its own back-off, all through one breaker.
    #[test]
    #[allow(clippy::print_stdout, reason = "the figure is of interest")]
    fn a_dead_server_gets_few_requests() {
        let breaker = Breaker::default();
        let mut renewal = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        let mut renewal_at = Duration::ZERO;
        let (mut sent, mut refused, mut busiest, mut before) = (0, 0, 0, 0);
        let mut ask = |now, sent: &mut u32| match breaker.admit(now) {
            Ok(ticket) => {
                *sent += 1;
                ticket.report(false, now);
            }
            Err(_) => refused += 1,
        };
        for millis in 0..60_000 {
            let now = at(millis);
            if millis % 1000 == 0 {
                before = sent;
            }
            for _ in 0..3 {
                ask(now, &mut sent);
            }
            if now >= renewal_at {
                ask(now, &mut sent);
                renewal_at = now + jitter(renewal.next_pause());
            }
            busiest = busiest.max(sent - before);
        }
        println!("{sent} requests sent, {refused} refused, at most {busiest} sent in a second");
        // Three at first, then one after each pause: 0.25, 0.5, 1, and then every 2 s.
        assert!((25..=45).contains(&sent), "{sent}");
        assert!(busiest <= 6, "{busiest}");
    }
}
