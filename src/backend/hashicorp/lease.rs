//! How long a token lives, and what is to be done about it when. Pure: time goes in.

use std::time::Duration;

use super::jitter;

/// What the server says of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    /// What is left of its life; `None` for one that does not end.
    pub(super) ttl: Option<Duration>,
    pub(super) renewable: bool,
}

impl Lease {
    /// From an answer's number of seconds, where 0 is for ever.
    pub(super) fn from_seconds(seconds: u64, renewable: bool) -> Self {
        // 136 years at most: a time is added to it, which must not overflow.
        let seconds = seconds.min(u32::MAX.into());
        Self { ttl: (seconds > 0).then(|| Duration::from_secs(seconds)), renewable }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The token does not end.
    Nothing,
    Renew {
        after: Duration,
    },
    /// Log in for another token.
    LogIn {
        after: Duration,
    },
    /// The token ends and nothing can be done about it.
    End,
}

/// What to do about a token that was just obtained or looked up: about half its life is
/// waited, so that a server that is away for a while does no harm.
pub(super) fn after_obtaining(lease: Lease, can_log_in: bool) -> Next {
    match lease.ttl {
        None => Next::Nothing,
        Some(ttl) if lease.renewable => Next::Renew { after: jitter::around(ttl / 2) },
        Some(ttl) if can_log_in => Next::LogIn { after: jitter::around(ttl / 2) },
        Some(_) => Next::End,
    }
}

/// What to do about a token that was renewed when `left` of its life was left.
///
/// A renewal that gave (almost) nothing means that the token's greatest age is near: the
/// next one would give as little, until it ends.
pub(super) fn after_renewing(left: Duration, lease: Lease, can_log_in: bool) -> Next {
    /// Servers count in whole seconds.
    const ROUNDING: Duration = Duration::from_secs(1);

    let grew = lease.ttl.is_none_or(|ttl| ttl > left + ROUNDING);
    match after_obtaining(lease, can_log_in) {
        Next::Renew { .. } if !grew && can_log_in => Next::LogIn { after: Duration::ZERO },
        Next::Renew { .. } if !grew => Next::End,
        next => next,
    }
}

/// How long to wait after one failure, and after the next.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_mins(1);

    /// The pause after a further failure: from 1 s, doubled each time, to 60 s.
    pub(super) fn after_failure(&mut self) -> Duration {
        self.last = (self.last * 2).clamp(Self::FIRST, Self::LONGEST);
        jitter::around(self.last)
    }

    pub(super) fn reset(&mut self) {
        self.last = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::hashicorp::breaker::{Breaker, Outcome};

    fn lease(seconds: u64, renewable: bool) -> Lease {
        Lease::from_seconds(seconds, renewable)
    }

    fn about(after: Duration, seconds: u64) -> bool {
        let expected = Duration::from_secs(seconds);
        after >= expected.mul_f64(0.9) && after <= expected.mul_f64(1.1)
    }

    #[test]
    fn a_token_is_renewed_at_half_its_life_if_it_can_be() {
        assert_eq!(after_obtaining(lease(0, true), true), Next::Nothing);
        assert_eq!(after_obtaining(lease(20, false), false), Next::End);
        let Next::Renew { after } = after_obtaining(lease(20, true), false) else { panic!() };
        assert!(about(after, 10), "{after:?}");
        let Next::LogIn { after } = after_obtaining(lease(20, false), true) else { panic!() };
        assert!(about(after, 10), "{after:?}");
    }

    #[test]
    fn a_life_that_no_longer_grows_is_the_time_to_log_in() {
        let left = Duration::from_secs(10);
        let Next::Renew { after } = after_renewing(left, lease(20, true), true) else { panic!() };
        assert!(about(after, 10), "{after:?}");
        for seconds in [1, 9, 10, 11] {
            let next = after_renewing(left, lease(seconds, true), true);
            assert_eq!(next, Next::LogIn { after: Duration::ZERO }, "{seconds} s");
            assert_eq!(after_renewing(left, lease(seconds, true), false), Next::End);
        }
        assert_eq!(after_renewing(left, lease(0, true), true), Next::Nothing);
    }

    /// A minute of outage, in simulated time: a thousand callers a second, each with two
    /// retries, and the renewal with its back-off, all through one breaker.
    #[test]
    #[allow(clippy::print_stdout)] // the figure is of interest
    fn a_dead_server_is_left_alone() {
        let (breaker, mut backoff) = (Breaker::default(), Backoff::default());
        let mut renewal_at = Duration::ZERO;
        let (mut sent, mut refused, mut busiest, mut this_second) = (0, 0, 0, 0);
        let mut ask = |now, sent: &mut u32| match breaker.admit(now) {
            Ok(ticket) => {
                *sent += 1;
                ticket.tell(Outcome::Failed, now);
            }
            Err(_) => refused += 1,
        };
        for millis in 0..60_000 {
            let now = Duration::from_millis(millis);
            if millis % 1000 == 0 {
                this_second = sent;
            }
            for _ in 0..3 {
                ask(now, &mut sent);
            }
            if now >= renewal_at {
                ask(now, &mut sent);
                renewal_at = now + backoff.after_failure();
            }
            busiest = busiest.max(sent - this_second);
        }
        println!(
            "a minute of outage: {sent} requests sent, {refused} refused at once, \
             at most {busiest} in a second"
        );
        // Three at first, then one after each pause: 0.25, 0.5, 1, and then every 2 s.
        assert!((25..=45).contains(&sent), "{sent}");
        assert!(busiest <= 6, "{busiest}");
    }
}
