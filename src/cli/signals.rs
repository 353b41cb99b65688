//! Signals, received in a thread of their own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::Signal;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;

use super::start_thread;

/// A signal that this process has received.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    pub signal: Signal,
    /// Whether a terminal sent it, to every process in its foreground.
    pub by_terminal: bool,
}

/// Handles `signals` from now on: calls `tell` for each, in a thread.
pub fn listen(
    signals: impl IntoIterator<Item = i32>,
    tell: impl Fn(Received) + Send + 'static,
) -> io::Result<()> {
    let mut received = SignalsInfo::<WithOrigin>::new(signals)?;
    start_thread("signals", move || {
        for origin in received.forever() {
            if let Some(signal) = Signal::from_named_raw(origin.signal) {
                tell(Received { signal, by_terminal: origin.process.is_none() });
            }
        }
    })
}

/// The signals that ask a process to stop.
pub const STOP: [i32; 2] = [SIGTERM, SIGINT];

/// A flag that SIGTERM and SIGINT set. A second one ends the process at once.
pub fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in STOP {
        // In this order, the first signal finds the flag unset, and then sets it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&is_stopping))?;
        flag::register(signal, Arc::clone(&is_stopping))?;
    }
    Ok(is_stopping)
}
