//! The server's clock, which a test can move: nobody has to sleep through a TTL.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use super::values::truncated_to_seconds;

/// Runs with the real time until a test says otherwise.
#[derive(Default)]
pub struct Clock(Mutex<Reading>);

#[derive(Default)]
struct Reading {
    ahead: Duration,
    stopped_at: Option<SystemTime>,
}

impl Clock {
    pub fn now(&self) -> SystemTime {
        let reading = self.0.lock().expect("nothing panics while it is held");
        reading.stopped_at.unwrap_or_else(SystemTime::now) + reading.ahead
    }

    /// Moves the clock forward, whether it runs or stands still.
    pub fn advance(&self, by: Duration) {
        self.0.lock().expect("nothing panics while it is held").ahead += by;
    }

    /// Stops the clock at the next whole second, so that no TTL is rounded: only
    /// [`Clock::advance`] moves it from now on.
    pub fn stop(&self) {
        let mut reading = self.0.lock().expect("nothing panics while it is held");
        let second = Duration::from_secs(1);
        reading.stopped_at.get_or_insert_with(|| truncated_to_seconds(SystemTime::now()) + second);
    }
}
