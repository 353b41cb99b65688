//! How long a token lives, and what must be done about it when. Pure: time is an argument.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::backend::hashicorp::message::number;
use crate::backoff::jitter;

/// What the server says about a token's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    /// The rest of its life; `None` if it does not expire.
    pub(super) ttl: Option<Duration>,
    pub(super) renewable: bool,
}

/// Something to do for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    LookUp,
    Renew,
    LogIn,
}

/// What follows for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It does not expire.
    Nothing,
    After(Duration, Step),
    /// It expires, and nothing can be done about it.
    End,
}

impl Lease {
    /// From the number of seconds in an answer, where 0 means that it does not expire.
    fn from_seconds(seconds: u64, renewable: bool) -> Self {
        // A century is as long as 2^64 seconds, and does not overflow.
        const LONGEST: u64 = 100 * 365 * 24 * 3600;

        let ttl = (seconds > 0).then(|| Duration::from_secs(seconds.min(LONGEST)));
        Self { ttl, renewable }
    }

    /// From the fields of an answer.
    pub(super) fn in_json(json: &Value, seconds: &str, renewable: &str) -> Self {
        let renewable = json.pointer(renewable).and_then(Value::as_bool).unwrap_or(false);
        Self::from_seconds(number(json, seconds), renewable)
    }

    /// What follows after the token was obtained or looked up: half of its life is a margin
    /// for outages of the server.
    pub(super) fn after_obtaining(self, can_log_in: bool) -> Next {
        match self.ttl {
            None => Next::Nothing,
            Some(ttl) if self.renewable => Next::After(jitter(ttl / 2), Step::Renew),
            Some(ttl) if can_log_in => Next::After(jitter(ttl / 2), Step::LogIn),
            Some(_) => Next::End,
        }
    }

    /// What follows after the token was renewed when `left` of its life was left.
    ///
    /// A renewal that prolongs it (almost) not at all means that it is near its maximum TTL.
    pub(super) fn after_renewing(self, left: Duration, can_log_in: bool) -> Next {
        /// Servers count whole seconds.
        const ROUNDING: Duration = Duration::from_secs(1);

        let grew = self.ttl.is_none_or(|ttl| ttl > left + ROUNDING);
        match self.after_obtaining(can_log_in) {
            Next::After(_, Step::Renew) if !grew && can_log_in => {
                Next::After(Duration::ZERO, Step::LogIn)
            }
            Next::After(_, Step::Renew) if !grew => Next::End,
            next => next,
        }
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ttl {
            Some(ttl) => write!(f, "it lasts {} s", ttl.as_secs()),
            None => f.write_str("it does not expire"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(seconds: u64, renewable: bool) -> Lease {
        Lease::from_seconds(seconds, renewable)
    }

    #[track_caller]
    fn assert_after(next: Next, seconds: u64, step: Step) {
        let expected = Duration::from_secs(seconds);
        let Next::After(after, found) = next else { panic!("{next:?}") };
        assert!(after >= expected.mul_f64(0.9) && after <= expected.mul_f64(1.1), "{after:?}");
        assert_eq!(found, step);
    }

    #[test]
    fn a_renewable_token_is_renewed_at_half_its_life() {
        assert_eq!(lease(0, true).after_obtaining(true), Next::Nothing);
        assert_eq!(lease(20, false).after_obtaining(false), Next::End);
        assert_after(lease(20, true).after_obtaining(false), 10, Step::Renew);
        assert_after(lease(20, false).after_obtaining(true), 10, Step::LogIn);
    }

    #[test]
    fn a_life_that_no_longer_grows_leads_to_a_login() {
        let left = Duration::from_secs(10);
        assert_after(lease(20, true).after_renewing(left, true), 10, Step::Renew);
        for seconds in [1, 9, 10, 11] {
            let next = lease(seconds, true).after_renewing(left, true);
            assert_eq!(next, Next::After(Duration::ZERO, Step::LogIn), "{seconds} s");
            assert_eq!(lease(seconds, true).after_renewing(left, false), Next::End);
        }
        assert_eq!(lease(0, true).after_renewing(left, true), Next::Nothing);
    }

    #[test]
    fn a_huge_lease_does_not_overflow() {
        let ttl = lease(u64::MAX, true).ttl.expect("it expires");
        assert!(matches!(lease(u64::MAX, true).after_renewing(ttl, false), Next::End));
    }
}
