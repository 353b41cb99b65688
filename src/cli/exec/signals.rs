//! The signals that are sent to us while a command runs below us.

use crossbeam_channel::{Receiver, unbounded};
use rustix::process::Signal;
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;

use std::thread;

use crate::cli::failure::Failure;

/// A signal that has come.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Which one.
    pub signal: Signal,
    /// Whether a terminal has sent it, which sends it to every process in front of it.
    pub by_terminal: bool,
}

/// A channel on which every signal comes that matters while a command runs. Those that we
/// were started to ignore, as nohup(1) and a shell's `&` have it, stay ignored.
pub fn hear() -> Result<Receiver<Received>, Failure> {
    let ignored = ignored();
    let wanted = [SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH]
        .into_iter()
        .filter(|signal| *signal == SIGCHLD || ignored & (1 << (signal - 1)) == 0);
    let cannot = |error| Failure::other(format!("signals cannot be handled: {error}"));
    let mut signals = SignalsInfo::<WithOrigin>::new(wanted).map_err(cannot)?;
    let (tell, hear) = unbounded();
    let forward = move || {
        for origin in signals.forever() {
            let Some(signal) = Signal::from_named_raw(origin.signal) else { continue };
            let _ = tell.send(Received { signal, by_terminal: origin.process.is_none() });
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(forward).map_err(cannot)?;
    Ok(hear)
}

/// The signals that this process ignores, as bits: `proc_pid_status(5)`. Where there is no
/// such file, none.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}
