//! The clock that leases, deadlines and the breaker are measured by.

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

    let time = clock_gettime(CLOCK);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}
