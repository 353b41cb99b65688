//! The circuit breaker: it remembers whether the server works, and keeps requests away from a
//! server that fails.

use std::sync::Mutex;
use std::time::Duration;

use crate::backoff::{Backoff, jitter};

use super::lock;

/// The failures in a row that open the breaker.
const FAILURES_TO_OPEN: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long the last contact counts as the server's present health.
const FRESH: Duration = Duration::from_secs(1);

/// A circuit breaker. After a few failures in a row it is open: it refuses all requests, apart
/// from one trial after each pause. The pauses double; a success closes the breaker. So a dead
/// server gets about one request in two seconds, however many callers there are, and its
/// return is noticed within two seconds.
pub(super) struct Breaker(Mutex<State>);

struct State {
    failures: u32,
    backoff: Backoff,
    next_trial: Duration,
    /// The time of the last contact with the server, or when the last probe began.
    last_contact: Duration,
    /// Why the server did not work at the last contact.
    failure: Option<String>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self(Mutex::new(State {
            failures: 0,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            next_trial: Duration::ZERO,
            last_contact: Duration::ZERO,
            failure: None,
        }))
    }
}

impl Breaker {
    /// Admits a request, or returns how long it must wait.
    pub(super) fn admit(&self, now: Duration) -> Result<(), Duration> {
        let mut state = lock(&self.0);
        if state.failures < FAILURES_TO_OPEN {
            return Ok(());
        }
        let pause = state.next_trial.saturating_sub(now);
        if !pause.is_zero() {
            return Err(pause);
        }
        state.next_trial = now.saturating_add(jitter(state.backoff.next_pause()));
        Ok(())
    }

    /// Reports the outcome of a request: `None`, or why the server did not work. A server that
    /// refuses a request works.
    pub(super) fn report(&self, failure: Option<String>, now: Duration) {
        let mut state = lock(&self.0);
        if failure.is_none() {
            state.failures = 0;
            state.backoff.reset();
        } else {
            state.failures = state.failures.saturating_add(1);
            if state.failures == FAILURES_TO_OPEN {
                state.next_trial = now.saturating_add(jitter(state.backoff.next_pause()));
            }
        }
        state.last_contact = now;
        state.failure = failure;
    }

    /// Why the server did not work at the last contact.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.0).failure.clone()
    }

    /// Whether the last contact is too old to tell the server's health. The first caller that
    /// learns so must probe the server; the others rely on that probe.
    pub(super) fn needs_probe(&self, now: Duration) -> bool {
        let mut state = lock(&self.0);
        let is_old = now.saturating_sub(state.last_contact) >= FRESH;
        if is_old {
            state.last_contact = now;
        }
        is_old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn is_open(breaker: &Breaker) -> bool {
        lock(&breaker.0).failures >= FAILURES_TO_OPEN
    }

    fn fail(breaker: &Breaker, now: Duration) {
        breaker.admit(now).expect("admitted");
        breaker.report(Some(String::new()), now);
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
        breaker.admit(later).expect("a trial");
        breaker.admit(later).expect_err("one trial after each pause");
        breaker.report(None, later);
        assert!(!is_open(&breaker));
        assert_eq!((breaker.admit(later).is_ok(), breaker.admit(later).is_ok()), (true, true));
    }

    #[test]
    fn failures_between_successes_do_not_add_up() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            fail(&breaker, at(0));
            fail(&breaker, at(0));
            breaker.admit(at(0)).expect("closed");
            breaker.report(None, at(0));
        }
        assert!(!is_open(&breaker));
    }

    /// A minute of outage in simulated time: three requests in each millisecond, and the
    /// renewal of the token with its own back-off, all through one breaker.
    #[test]
    #[allow(clippy::print_stdout, reason = "the figure is of interest")]
    fn a_dead_server_gets_few_requests() {
        let breaker = Breaker::default();
        let mut renewal = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let mut renewal_at = Duration::ZERO;
        let (mut sent, mut refused, mut busiest, mut before) = (0, 0, 0, 0);
        let mut ask = |now, sent: &mut u32| match breaker.admit(now) {
            Ok(()) => {
                *sent += 1;
                breaker.report(Some(String::new()), now);
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
