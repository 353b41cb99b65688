//! The clock that the life of a token is measured by.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was started. It goes on while the machine sleeps, as tokens do,
/// and does not jump when its date is set (`clock_gettime(2)`: `CLOCK_BOOTTIME`; macOS's
/// `CLOCK_MONOTONIC` counts sleep by itself).
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
