//! The clock for leases, deadlines and the breaker.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time since boot. It includes the time that the machine was suspended, since tokens
/// expire meanwhile, and it does not jump when the date is set (`clock_gettime(2)`:
/// `CLOCK_BOOTTIME`; `CLOCK_MONOTONIC` on macOS includes suspension already).
pub(super) fn now() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;

    clock_gettime(CLOCK).try_into().expect("the time since boot is not negative")
}
