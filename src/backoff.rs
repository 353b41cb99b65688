//! Exponential back-off: how long to wait before the next attempt.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Pauses that double from attempt to attempt, up to a longest one.
///
/// ```
/// use std::time::Duration;
/// use intentframe_credentials::backoff::Backoff;
///
/// let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(30));
/// assert_eq!(backoff.next_pause(), Duration::from_millis(10));
/// assert_eq!(backoff.next_pause(), Duration::from_millis(20));
/// assert_eq!(backoff.next_pause(), Duration::from_millis(30));
/// backoff.reset();
/// assert_eq!(backoff.next_pause(), Duration::from_millis(10));
/// ```
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Creates a back-off that starts at `first` and never exceeds `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Returns the pause before the next attempt, and doubles the one after it.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// Returns to the first pause. Call it after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Returns whether no attempt has failed since the last success.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.next == self.first
    }
}

/// Returns a random duration between 90 % and 110 % of `pause`, so that many hosts do not act at
/// the same moment. Not for cryptographic use.
#[must_use]
pub fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.9 + 0.2 * fraction())
}

/// Returns a random duration between zero and `pause` ("full jitter"), for competing callers.
#[must_use]
pub fn full_jitter(pause: Duration) -> Duration {
    pause.mul_f64(fraction())
}

/// A random number from 0 to 1.
fn fraction() -> f64 {
    // Each `RandomState` has its own random keys.
    let [.., high, low] = RandomState::new().build_hasher().finish().to_ne_bytes();
    f64::from(u16::from_ne_bytes([high, low])) / f64::from(u16::MAX)
}
