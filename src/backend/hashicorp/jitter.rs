//! Chance, so that many hosts do not act at the same moment.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Between 0 and 1. Not for secrets: it spreads moments only.
fn fraction() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    #[allow(clippy::cast_possible_truncation)] // the upper half is as random
    let upper = (random >> 32) as u32;
    f64::from(upper) / f64::from(u32::MAX)
}

/// Somewhere from 90 % to 110 % of `duration`.
pub(super) fn around(duration: Duration) -> Duration {
    duration.mul_f64(0.9 + 0.2 * fraction())
}

/// Somewhere up to `duration`.
pub(super) fn up_to(duration: Duration) -> Duration {
    duration.mul_f64(fraction())
}
