//! Signals, received in a thread of their own.

use std::io;

use rustix::process::Signal;
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
